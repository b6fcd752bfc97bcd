"""Results whose size data decide, in sizes that do not depend on data.

    NonZero, Compress, Unique, NonMaxSuppression  →  all candidates and a mask of those that count (sources)
    what consumes them                            →  the same on all candidates (arithmetic, views, indexing)
    what leaves the model                         →  those that count at the front, zeros behind, and their count

The first two change nothing that a caller sees. The third does, and is done only where it was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from onnxlathe import Model
from onnxlathe.infer import forget_contents, infer_model
from onnxlathe.model.interface import note_change
from onnxlathe.model.padded import Padding
from onnxlathe.rewrite import Names, NoMatch, carry_origin, is_unused, remove_unused, replace_value, subgraphs
from onnxlathe_passes.legalize import mini
from onnxlathe_passes.legalize.bounded import (  # noqa: F401 - registered  # noqa: F401
    arithmetic,
    branches,
    indexing,
    scattering,
    sources,
    suppression,
    unique,
    views,
)
from onnxlathe_passes.legalize.bounded.bench import Bench
from onnxlathe_passes.legalize.bounded.follow import FOLLOWERS
from onnxlathe_passes.legalize.bounded.prepare import Refused, counts_in, prepare, sources_in
from onnxlathe_passes.legalize.bounded.ragged import Ragged, Unsupported
from onnxlathe_passes.legalize.draft import Draft

__all__ = ["Limit", "Outcome", "bounded"]

Limit = int | None
"""The most rows that an output may have; None for as many as the shapes allow."""


@dataclass
class Outcome:
    """What became of the results of run-time size.

    Attributes:
        model: rewritten; None where nothing could be.
        sources: the nodes that were rewritten, as they were.
        notes: what could not be done, and what a caller must know.
    """

    model: ir.Model | None = None
    sources: list[ir.Node] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def bounded(model: Model, refused: Refused, *, pad: bool = False, limit: Limit = None) -> Outcome:
    """Rewrite what the target refuses because its size depends on data; all of it that can be.

    Args:
        model: left as it is.
        refused: whether the target refuses a node alone.
        pad: outputs may be padded.
        limit: how many rows a padded output has, at most.
    """
    outcome = Outcome()
    known: dict[int, bool] = {}

    def asked(node: ir.Node) -> bool:
        key = id(node)
        if key not in known:
            known[key] = refused(node)
        return known[key]

    if not any(asked(n) for n in sources_in(model.graph)) and not any(True for _ in counts_in(model.graph)):
        return outcome
    known.clear()
    base = model.clone()
    chosen = prepare(base, asked, Names(base.ir))
    wanted = {i for i, node in enumerate(base.graph) if node in set(chosen)}
    while wanted:
        copy = base.clone()
        nodes = list(copy.graph)
        work = _Work(copy, {nodes[i] for i in wanted}, pad, limit)
        try:
            work.run()
        except Unsupported as problem:
            given_up = {i for i in wanted if nodes[i] in problem.roots} or set(wanted)
            names = ", ".join(f"'{nodes[i].name}'" for i in sorted(given_up))
            outcome.notes.append(f"{names}: {problem.reason}")
            wanted -= given_up
            continue
        outcome.model = copy.ir
        outcome.sources = [node for i, node in enumerate(base.graph) if i in wanted]
        outcome.notes += [padding.sentence(name) for name, padding in work.padded.items()]
        break
    return outcome


class _Work:
    """One attempt, on a copy."""

    def __init__(self, model: Model, begins: set[ir.Node], pad: bool, limit: Limit) -> None:
        self.model, self.begins, self.pad, self.limit = model, begins, pad, limit
        self.graph = model.graph
        self.names = Names(model.ir)
        self.draft = Draft(model.opset)
        self.bench = Bench(self.draft, self.graph)
        self.padded: dict[str, Padding] = {}
        self.counts: dict[object, str] = {}

    def run(self) -> None:
        bench = self.bench
        done: list[ir.Node] = []
        for node in list(self.graph):
            if node in self.begins or self._concerned(node):
                self._follow(node)
                done.append(node)
        for index, value in enumerate(list(self.graph.outputs)):
            if value in bench.ragged:
                self._leave(index, value)
        for node in reversed(list(self.graph)):
            if is_unused(node):
                remove_unused([node])
        for value in (v for node in self.graph for v in node.outputs):
            forget_contents(value)
        for name in [
            n for n, v in self.graph.initializers.items() if not v.uses() and not v.is_graph_output()
        ]:
            if not self.graph.initializers[name].is_graph_input():
                self.graph.initializers.pop(name)
        if self.padded:
            note_change(self.model.ir, padded=self.padded)
        infer_model(self.model)

    def _concerned(self, node: ir.Node) -> bool:
        if any(v in self.bench.ragged for v in mini.operands_of(node)):
            return True
        if node.op_type == branches.SELECT and node.domain == branches.DOMAIN:
            return True
        return any(self.bench.depends(d) for v in node.outputs for d in (branches.dims_or_none(v)))

    def _follow(self, node: ir.Node) -> None:
        bench = self.bench
        operands = [bench.ragged.get(v) for v in mini.operands_of(node)]
        roots = frozenset(r for o in operands if o is not None for r in o.extent.roots)
        roots |= bench.roots_of(d for v in node.outputs for d in branches.dims_or_none(v))
        if node in self.begins:
            roots |= {node}
        standard = node.domain in ("", branches.DOMAIN)
        follower = FOLLOWERS.get(node.op_type) if standard else None
        where = f"its size depends on data, and {node.op_type} '{node.name}' consumes it"
        if follower is None:
            raise Unsupported(where, roots)
        try:
            results = follower(bench, node)
        except NoMatch as problem:
            raise Unsupported(f"{where}: {problem}", roots) from None
        except Unsupported as problem:
            raise Unsupported(f"{where}: {problem.reason}", problem.roots | roots) from None
        self._flush(node)
        for old, new in zip(node.outputs, results, strict=False):
            if isinstance(new, Ragged):
                bench.ragged[old] = new
            elif new is not None:
                replace_value(old, bench.like(new, old), self.names)

    def _flush(self, before: ir.Node | None) -> None:
        """Put what has been made into the graph."""
        draft, base = self.draft, (before.name or before.op_type) if before is not None else "padded"
        for value in list(draft.constants):
            draft.release(value)
            value.name = self.names.value(f"{base}/const")
            self.graph.register_initializer(value)
        draft.constants.clear()
        if before is not None:
            carry_origin([before], draft.nodes)
        for made in draft.nodes:
            made.name = self.names.node(f"{base}/{made.op_type}")
            self._name(made)
            if before is None:
                self.graph.append(made)
            else:
                self.graph.insert_before(before, made)
        draft.nodes.clear()

    def _name(self, made: ir.Node) -> None:
        """Names for a new node's outputs, and for all values inside of it."""
        for output in made.outputs:
            if output.name is None:
                output.name = self.names.value(f"{made.name}/out")
        for inner in subgraphs(made):
            for value in (*inner.inputs, *(v for node in inner for v in node.outputs)):
                value.name = self.names.value(f"{made.name}/{value.name}")

    def _leave(self, index: int, value: ir.Value) -> None:
        """Let a result leave the model: those that count first, zeros behind, and how many they are."""
        op, bench, name = self.draft, self.bench, str(value.name)
        ragged = bench.ragged[value]
        most = str(ragged.extent.bound) if self.limit is None else str(self.limit)
        if not self.pad:
            raise Unsupported(
                f"output '{name}' has as many rows as data say, on axis {ragged.axis}; with"
                f" legalize(pad=max) it is padded to {ragged.extent.bound}, and a count is added",
                ragged.extent.roots,
            )
        ragged = bench.packed(ragged)
        padded = bench.masked(ragged, False if ragged.value.dtype == ir.DataType.BOOL else 0)
        bound = ragged.extent.bound
        if self.limit is not None and bound != self.limit:
            dims = ragged.dims
            if not isinstance(bound, int) or bound < self.limit:
                dims[ragged.axis] = self.limit
                zeros = op.Expand(op.like(0, padded), bench.shape(dims))
                padded = op.Concat(padded, zeros, axis=ragged.axis)
            padded = op.slice(padded, ragged.axis, 0, self.limit)
        size = ragged.extent.size
        if size not in self.counts:
            self.counts[size] = self.names.value(f"{name}_count")
            amount = op.Identity(bench.count(ragged.extent))
            amount.name = self.counts[size]
            self.graph.outputs.append(amount)
        result = op.Identity(padded)
        value.name = None
        result.name = name
        result.type = value.type
        self.graph.outputs[index] = result
        self._flush(None)
        enough = self.limit is None or (isinstance(bound, int) and bound <= self.limit)
        self.padded[name] = Padding(ragged.axis, most, self.counts[size], enough)
