"""A run of `legalize`: what the target refuses is rewritten until it is taken, or said to be beyond us."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onnxlathe import Model
from onnxlathe.debug.findings import NOT_REWRITTEN
from onnxlathe.infer import infer_model
from onnxlathe.model import save
from onnxlathe.model.interface import note_change
from onnxlathe.rewrite import Context, Names, NoMatch, graphs_of, remove_unused, replace_value, subgraphs
from onnxlathe_passes.legalize import Legalize, families  # noqa: F401 - registers the lowerings
from onnxlathe_passes.legalize.bounded import bounded
from onnxlathe_passes.legalize.carriers import CARRIER, NEVER, Carrier, Impossible, expand_first
from onnxlathe_passes.legalize.contrib_weights import BLOCKED
from onnxlathe_passes.legalize.control import unrolled
from onnxlathe_passes.legalize.interface import bind, parse_values
from onnxlathe_passes.legalize.judge import Expectation, Judge, Ruling, known_good
from onnxlathe_passes.legalize.mini import apply, fixed
from onnxlathe_passes.legalize.ranks import differ_in_rank, sink
from onnxlathe_passes.legalize.solve import Solver, tidied
from onnxlathe_passes.legalize.symmetric import to_int8
from onnxlathe_passes.opset import Opset
from onnxlathe_passes.resize_scales import ResizeScales
from onnxlathe_passes.sequences import Sequences

WRITTEN_FOR = 18
"""Our lowerings use operators as they are since this version of the operator set."""

BY_BLOCKS = frozenset({"MatMulNBits"})
"""Operators (com.microsoft) whose weights stay integers where DequantizeLinear has blocks."""

_FEW_NODES = 80
_FEW_BYTES = 16 << 20

FALLBACK = 21
"""Version for a model that has none of the standard operators."""


@dataclass
class Legalizing:
    """One run of the pass over a model.

    Attributes:
        options: the pass.
        model: changed in place.
        context: the run around it.
        judge: who decides what is refused.
        changes: made so far.
        expect: typical inputs.
        solver: the search.
    """

    options: Legalize
    model: Model
    context: Context
    judge: Judge
    changes: int = 0
    expect: Expectation = field(default_factory=dict)
    solver: Solver = field(init=False)

    def run(self) -> int:
        """Do it; returns how much changed."""
        model, context = self.model, self.context
        bound = parse_values(self.options.bind)
        for sentence in bind(model.ir, bound):
            context.note(sentence)
            self.changes += 1
        if bound:
            tidied(model.ir)
        self.expect = _expectation(model.ir, parse_values(self.options.expect, "expect"))
        self.solver = Solver(
            self.judge, permit=lambda: context.permit(self.options.name), changed=self._changed
        )
        if self._ask().accepted:
            return self.changes
        if "" not in model.ir.graph.opset_imports:  # a model of contrib operators only
            model.ir.graph.opset_imports[""] = FALLBACK
        least = BLOCKED if any(node.op_type in BY_BLOCKS for node in model.nodes()) else WRITTEN_FOR
        if 0 < model.opset < least:
            raised = Opset(version=least).run(model, context)
            if raised:
                context.note(f"operator set {model.opset}, which the rewrites are written in")
            self.changes += raised
            infer_model(model)
        if model.ir.functions:
            InlinePass()(model.ir)
            context.note("model-local functions are inlined")
            self.changes += 1
            infer_model(model)
        self._unwrap()
        self._align()
        self._scale()
        if any(node.op_type.startswith(("Sequence", "SplitToSequence")) for node in model.nodes()):
            self._unroll()
            self.changes += Sequences().run(model, context)
        for node, all_of_them in to_int8(model.ir, context.names, lambda: context.permit(self.options.name)):
            self._changed(node, all_of_them, "uint8 around 128 as int8 around 0, exactly")
        self._fix_sizes()
        self._carry(NEVER, model)
        ruling = self._settle()
        if not ruling.accepted:
            nodes = list(self.model.graph)
            near = frozenset(
                v.dtype
                for n in [nodes[i] for i in ruling.culprits if i < len(nodes)] or nodes
                for v in (*n.inputs, *n.outputs)
                if v is not None and v.dtype
            )
            if self._carry(near & frozenset(CARRIER), model):
                ruling = self._settle()
        if not ruling.accepted:
            for name, message in self.solver.unsolved.items():
                context.note(f"node '{name}' stays refused: {message}")
                for reason in self.solver.declined.get(name, ()):
                    context.note(f"{NOT_REWRITTEN}{reason}")
            if not self.solver.unsolved:
                context.note(f"the model stays refused: {ruling.message}")
        return self.changes

    def _fix_sizes(self) -> None:
        """Results whose size data decide, in sizes that do not depend on data."""
        pad = self.options.pad
        outcome = bounded(
            self.model,
            lambda node: not self.judge.judge(self.solver.cut(node, self.model.ir)).accepted,
            pad=bool(pad),
            limit=int(pad) if pad.isdecimal() else None,
        )
        if outcome.model is None or self.context.permit(self.options.name):
            for sentence in outcome.notes:
                self.context.note(sentence)
        else:
            return
        if outcome.model is not None:
            self.model.ir = outcome.model
            self.context.names = Names(self.model.ir)
            for node in outcome.sources:
                self._changed(node, [], "all candidates, and a mask of those that count")
            tidied(self.model.ir)

    @property
    def _small(self) -> bool:
        """Whether an engine of the whole model is quickly built, so that it can be asked about as it is."""
        model = self.model
        if model.count_nodes() > _FEW_NODES:
            return False
        weights = (v.const_value for g in model.graphs() for v in g.initializers.values())
        return sum(w.nbytes for w in weights if w is not None) <= _FEW_BYTES

    def _ask(self) -> Ruling:
        """What the target says: of a small model whether it builds, of a large one whether all of it parses
        and whether those of its nodes build that might not."""
        if self._small:
            return self.judge.judge(self.model.ir, self.expect)
        ruling = self._parsed()
        if ruling.accepted:
            unsure = self._unbuildable()
            if unsure:
                nodes = list(self.model.graph)
                places = tuple(i for i, node in enumerate(nodes) if node in unsure)
                return Ruling(False, True, places, next(iter(unsure.values())))
        return ruling

    def _parsed(self) -> Ruling:
        with tempfile.TemporaryDirectory(prefix="onnxlathe-legalize-") as folder:
            path = Path(folder) / "model.onnx"
            save(self.model, path)
            return self.judge.judge_file(path, self.model.ir)

    def _unbuildable(self) -> dict[ir.Node, str]:
        """Nodes that parse and for which there is no kernel; each asked about alone, alike ones once."""
        sure = known_good()
        found: dict[ir.Node, str] = {}
        for node in self.model.graph:
            if sure(node) or any(True for _ in subgraphs(node)):
                continue
            piece = self.solver.cut(node, self.model.ir)
            decides = [v for v in piece.graph.inputs[1:] if v.dtype in (ir.DataType.INT64, ir.DataType.INT32)]
            weights = sum(v.const_value.nbytes for v in piece.graph.initializers.values() if v.const_value)
            if decides or weights > _FEW_BYTES:
                continue  # alone it would lack the values that it runs on
            ruling = self.judge.judge(piece)
            if not ruling.accepted:
                found[node] = ruling.message
        return found

    def _settle(self) -> Ruling:
        if self._small:
            ruling = self.solver.settle(self.model.ir, expect=self.expect, top=True)
            infer_model(self.model)
            return ruling
        tried: set[ir.Node] = set()
        ruling = self._ask()
        while not ruling.accepted:
            named = self.solver.refused(self.model.ir, ruling) if ruling.culprits else []
            culprits = [node for node in named if node not in tried]
            tried.update(culprits)
            names = Names(self.model.ir)
            progress = [
                self.solver.fix(
                    node, self.model.ir, names, expect=self.expect, top=True, message=ruling.message
                )
                for node in culprits
                if node.graph is not None
            ]
            infer_model(self.model)
            if not any(progress):
                break
            ruling = self._ask()
        return ruling

    def _unwrap(self) -> None:
        """What an Optional wraps and OptionalGetElement takes out again needs neither."""
        for graph in graphs_of(self.model.ir):
            for node in list(graph):
                if node.op_type != "OptionalGetElement" or node.inputs[0] is None:
                    continue
                wrapper = node.inputs[0].producer()
                inside = (
                    wrapper.inputs[0]
                    if wrapper and wrapper.op_type == "Optional" and wrapper.inputs
                    else None
                )
                if inside is not None and self.context.permit(self.options.name):
                    identity = replace_value(node.outputs[0], inside, self.context.names)
                    self._changed(node, [identity] if identity else [], "a wrapping that is taken off again")
                    remove_unused([node])

    def _unroll(self) -> None:
        """Loops that carry a sequence, where they run a known number of times: then its length is known."""
        for node in [n for n in self.model.graph if n.op_type == "Loop" and n.domain == ""]:
            if not any(isinstance(v.type, ir.SequenceType) for v in node.outputs):
                continue
            if not self.context.permit(self.options.name):
                return
            try:
                if apply(unrolled, self.model.ir, node, Names(self.model.ir)):
                    self._changed(node, [], "one copy of the body for each iteration, for the sequence in it")
                    infer_model(self.model)
            except NoMatch:
                continue

    def _scale(self) -> None:
        """Sizes of a refused Resize that are computed for an open batch: constant scales in their place."""
        rule = ResizeScales()
        for node in [n for n in self.model.graph if n.op_type == "Resize" and n.domain == ""]:
            sizes = node.inputs[3] if len(node.inputs) > 3 else None
            if sizes is None or fixed(sizes) is not None:
                continue
            if self.judge.judge(self.solver.cut(node, self.model.ir)).accepted:
                continue
            if not self.context.permit(self.options.name):
                return
            try:
                if apply(rule.visit, self.model.ir, node, Names(self.model.ir)):
                    self._changed(node, [], "scales in place of sizes that are computed")
                    infer_model(self.model)
            except NoMatch:
                continue

    def _align(self) -> None:
        """Branches of different ranks: what follows is done in both of them."""
        for node in [n for n in self.model.graph if n.op_type == "If" and n.domain == ""]:
            if node.graph is None or not differ_in_rank(node):
                continue
            names = Names(self.model.ir)
            moved = sink(self.model.ir, node, names, lambda: self.context.permit(self.options.name))
            if moved is not None:
                self._changed(node, [], f"{len(moved)} nodes that follow are done in both branches")
                infer_model(self.model)

    def _carry(self, types: frozenset[ir.DataType], model: Model) -> bool:
        """Carry all values of these types in others."""
        graphs = list(graphs_of(model.ir))
        values = {v for g in graphs for v in (*g.inputs, *g.initializers.values())}
        values |= {v for g in graphs for n in g for v in n.outputs}
        seeds = [v for v in values if v.dtype in types]
        if not seeds or not self.context.permit(self.options.name):
            return False
        backup = model.ir.clone()
        changes = expand_first(model.ir, types)
        if changes:
            infer_model(model)
            graphs = list(graphs_of(model.ir))
            values = {v for g in graphs for v in (*g.inputs, *g.initializers.values())}
            values |= {v for g in graphs for n in g for v in n.outputs}
            seeds = [v for v in values if v.dtype in types]
        carrier = Carrier(model.ir, types, self.options.io_types == "widen")
        try:
            changes += carrier.run(seeds)
        except Impossible as reason:
            model.ir = backup
            self.context.note(str(reason))
            return False
        if carrier.retyped:
            note_change(model.ir, types=carrier.retyped)
        for note in carrier.notes:
            self.context.note(note)
        shown = ", ".join(sorted(t.name.lower() for t in set(carrier.narrow.values())))
        self.context.note(f"{shown}: computed in types that TensorRT has")
        self.context.record(self.options.name, [])
        self.changes += changes
        tidied(model.ir)
        return changes > 0

    def _changed(self, before: ir.Node, after: list[ir.Node], how: str) -> None:
        self.changes += 1
        self.context.record(self.options.name, [before], after)
        self.context.note(f"{before.op_type} '{before.name}': {how}")


def _expectation(model: ir.Model, values: dict[str, Any]) -> Expectation:
    import numpy as np

    found: Expectation = {}
    for value in model.graph.inputs:
        if value.name in values:
            array = np.asarray(values[value.name])
            found[value.name] = {"shape": list(array.shape), "values": array.reshape(-1).tolist()}
    return found
