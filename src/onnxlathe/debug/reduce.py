"""The smallest part of a model that still shows a fault.

First by cuts: the node that the target named with what is around it, or bisection over the end and then the start
of the model. Then by nodes: delta debugging (Zeller's ddmin) removes what the fault does not need. Values at the
border of a part become inputs, or constants with recorded contents where the fault needs to know them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxlathe.debug.checks import Bench, Check, sample_of
from onnxlathe.debug.locate import first
from onnxlathe.debug.parts import UncutError, Workpiece
from onnxlathe.model import Model
from onnxlathe.rewrite import subgraphs

_RECORD_AT_ONCE = 256 << 20  # bytes of values that are recorded in one run
_SMALL = 64  # elements
_MAX_GROUPS, _MAX_GROWN = 256, 3  # groups of suspects that are tried, and that are tried with what is around


@dataclass
class Reduction:
    """What is left.

    Attributes:
        model: the smallest model that shows the fault.
        before: nodes of the main graph of the whole model.
        after: nodes of the part.
        feeds: recorded inputs of the part, where the fault is one of numbers.
        frozen: names of values that were frozen to recorded contents.
        checks: how often the check was asked.
        seconds: it took.
    """

    model: Model
    before: int
    after: int
    feeds: dict[str, np.ndarray] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    checks: int = 0
    seconds: float = 0.0

    def sentence(self) -> str:
        """What happened, for the user."""
        frozen = f"; frozen to recorded values: {', '.join(self.frozen)}" if self.frozen else ""
        return f"{self.before} nodes → {self.after} in {self.checks} checks, {self.seconds:.1f} s{frozen}"


def reduce_model(
    work: Workpiece,
    check: Check,
    *,
    suspects: Sequence[Collection[int]] = (),
    feeds: dict[str, np.ndarray] | None = None,
    budget: float = 600.0,
    progress: Callable[[str], None] = lambda _: None,
) -> Reduction | None:
    """Find the smallest part of a model that shows a fault.

    Args:
        work: the model.
        check: whether the fault shows.
        suspects: groups of nodes to begin with, as indices into `work.nodes`.
        feeds: inputs of the whole model, for recording; made up if left out.
        budget: seconds; what is smallest by then is the answer.
        progress: called with what is being done.

    Returns:
        The reduction, or None if the fault does not show in the whole model.
    """
    started = time.perf_counter()
    search = _Search(work, check, feeds, started + budget, progress)
    try:
        found = search.run(suspects)
        if found is None:
            return None
        found.before, found.seconds = len(work.nodes), time.perf_counter() - started
        return found
    finally:
        search.close()


class _Search:
    def __init__(
        self,
        work: Workpiece,
        check: Check,
        feeds: dict[str, np.ndarray] | None,
        deadline: float,
        progress: Callable[[str], None],
    ) -> None:
        self.work, self.check, self.deadline, self.progress = work, check, deadline, progress
        self.feeds = feeds
        self.bench: Bench | None = None
        self.tried: dict[frozenset[int], bool] = {}
        self.best: Reduction | None = None
        self.checks = 0

    def close(self) -> None:
        if self.bench is not None:
            self.bench.close()

    def run(self, suspects: Sequence[Collection[int]]) -> Reduction | None:
        everything = frozenset(range(len(self.work.nodes)))
        start = self._near(suspects) or self._bisect(everything)
        if start is None:
            return None
        self._minimize(start)
        self._nested()
        assert self.best is not None
        self._fold_constants()
        self.best.checks = self.checks
        return self.best

    # --- trying a part ---------------------------------------------------------------------------------

    def bad(self, keep: Iterable[int]) -> bool:
        """Whether the fault shows in the part with these nodes. The smallest such part is kept."""
        kept = frozenset(keep)
        if not kept:
            return False
        known = self.tried.get(kept)
        if known is None:
            known = self.tried[kept] = self._try(kept)
        return known

    def _try(self, kept: frozenset[int]) -> bool:
        if self.best is not None and time.perf_counter() > self.deadline:
            return False
        if self.check.needs_feeds:
            return self._attempt(kept, {}, self._recorded(kept))
        if self._attempt(kept, {}, {}):
            return True
        if len(kept) == len(self.work.nodes):
            return False
        frozen = self.work.freezable(kept)
        if not frozen and self._may_freeze(kept):
            self._record_small(kept)
            frozen = self.work.freezable(kept)
        return bool(frozen) and self._attempt(kept, frozen, {})

    def _attempt(
        self, kept: frozenset[int], frozen: dict[str, np.ndarray], feeds: dict[str, np.ndarray]
    ) -> bool:
        try:
            part = self.work.part(kept, frozen=frozen)
        except UncutError:
            return False
        inputs = {v.name: feeds[v.name] for v in part.graph.inputs if v.name in feeds}
        if self.check.needs_feeds and len(inputs) < len(part.graph.inputs):
            return False
        self.checks += 1
        self.progress(f"{len(kept)} of {len(self.work.nodes)} nodes, check {self.checks}")
        if not self.check(part, inputs):
            return False
        if self.best is None or len(kept) <= self.best.after:
            names = tuple(n for n in frozen if n in part.graph.initializers)
            self.best = Reduction(part, 0, len(kept), inputs, names)
        return True

    # --- cuts ------------------------------------------------------------------------------------------

    def _near(self, suspects: Sequence[Collection[int]]) -> frozenset[int] | None:
        """The first group of suspects that shows the fault, or the smallest neighbourhood of one that does."""
        for group in suspects[:_MAX_GROUPS]:
            if self.bad(group):
                return frozenset(group)
        for steps in (1, 2, 4, 8):
            for group in suspects[:_MAX_GROWN]:
                near = {n for i in group for n in self.work.around(i, steps, down=False)}
                if self.bad(near):
                    return frozenset(near)
        for group in suspects[:_MAX_GROWN]:
            near = {n for i in group for n in self.work.around(i, 2)}
            above = {n for i in group for n in self.work.upstream(i)}
            for candidate in (near, above):
                if self.bad(candidate):
                    return frozenset(candidate)
        return None

    def _bisect(self, everything: frozenset[int]) -> frozenset[int] | None:
        """The shortest prefix that shows the fault, and the shortest end of that."""
        if not self.bad(everything):
            return None
        ordered = sorted(everything)
        end = first(lambda count: self.bad(ordered[:count]), len(ordered)) or len(ordered)
        prefix = ordered[:end]
        # From the other end: how many nodes before the last have to stay.
        length = first(lambda count: self.bad(prefix[-count:]), len(prefix)) or len(prefix)
        return frozenset(prefix[-length:])

    def _minimize(self, start: frozenset[int]) -> None:
        """Delta debugging over the nodes of a part that shows the fault."""
        nodes, pieces = sorted(start), 2
        while len(nodes) >= 2:
            size = max(1, len(nodes) // pieces)
            chunks = [nodes[i : i + size] for i in range(0, len(nodes), size)]
            for candidate in _candidates(chunks):
                if self.bad(candidate):
                    smaller = len(candidate) <= size
                    nodes, pieces = sorted(candidate), 2 if smaller else max(pieces - 1, 2)
                    break
            else:
                if pieces >= len(nodes):
                    return
                pieces = min(len(nodes), pieces * 2)
            if time.perf_counter() > self.deadline:
                return

    def _nested(self) -> None:
        """One node with graphs in it is left: perhaps the fault is that of a node inside."""
        if self.best is None or self.best.after != 1:
            return
        names = {n.name for n in self.best.model.graph}
        holder = next((n for n in self.work.nodes if n.name in names), None)
        for graph in subgraphs(holder) if holder is not None else ():
            inner = _Search(self.work.inside(graph), self.check, self.feeds, self.deadline, self.progress)
            inner.bench = self.bench
            if self.check.needs_feeds or not inner.work.nodes:
                continue
            found = inner._each_alone()
            self.checks += inner.checks
            if found is not None:
                self.best = found
                return

    def _each_alone(self) -> Reduction | None:
        return next((self.best for i in range(len(self.work.nodes)) if self.bad([i])), None)

    def _fold_constants(self) -> None:
        """Constants as initializers: what is left to read are the nodes that matter."""
        assert self.best is not None
        plain = self.best.model.clone()
        changed = False
        for node in list(plain.graph):
            if node.op_type == "Constant" and not node.domain and "value" in node.attributes:
                value = node.outputs[0]
                tensor = node.attributes["value"].as_tensor()
                if value.is_graph_output():
                    continue
                constant = ir.Value(name=value.name, const_value=tensor, type=ir.TensorType(tensor.dtype))
                constant.shape = ir.Shape(tensor.shape.numpy())
                value.replace_all_uses_with(constant)
                value.name = None
                plain.graph.remove(node)
                plain.graph.initializers.add(constant)
                changed = True
        if changed and self.check(plain, self.best.feeds):
            self.best.model = plain

    # --- recorded values -------------------------------------------------------------------------------

    def _may_freeze(self, kept: frozenset[int]) -> bool:
        """Whether a border value could be a shape, axes or the like that nobody has recorded yet."""
        return any(_is_small_integer(v) and v.name not in self.work.recorded for v in self.work.border(kept))

    def _record_small(self, kept: frozenset[int]) -> None:
        names = [v.name or "" for node in self.work.nodes for v in node.outputs if _is_small_integer(v)]
        self._record(names)
        for name in [v.name or "" for v in self.work.border(kept)]:
            self.work.recorded.setdefault(name, np.zeros(_SMALL + 1))  # cannot be had: not asked again

    def _recorded(self, kept: frozenset[int]) -> dict[str, np.ndarray]:
        """Values of the part's inputs, as the whole model computes them."""
        names = [v.name or "" for v in self.work.border(kept)]
        if any(n not in self.work.recorded and n not in self._inputs() for n in names):
            values = [v for node in self.work.nodes for v in node.outputs if v.name]
            sizes = [_bytes(v) for v in values]
            at_once = all(s is not None for s in sizes) and sum(s or 0 for s in sizes) < _RECORD_AT_ONCE
            self._record([v.name or "" for v in values] if at_once and not self.work.recorded else names)
        return {n: self.work.recorded[n] for n in names if n in self.work.recorded} | {
            n: a for n, a in self._inputs().items() if n in names
        }

    def _record(self, names: Sequence[str]) -> None:
        self.bench = self.bench or Bench()
        self.progress("recording values")
        self.work.recorded |= self.bench.record(self.work.model, names, self._inputs())

    def _inputs(self) -> dict[str, np.ndarray]:
        if self.feeds is None:
            self.feeds = sample_of(self.work.model, {})
        return self.feeds


def _candidates(chunks: list[list[int]]) -> Iterator[list[int]]:
    """Each chunk alone, then everything but each chunk."""
    if len(chunks) > 2:
        yield from (
            [n for other in chunks if other is not chunk for n in other] for chunk in reversed(chunks)
        )
        yield from chunks
    else:
        yield from reversed(chunks)


def _is_small_integer(value: ir.Value) -> bool:
    if value.dtype is None or not (value.dtype.is_integer() or value.dtype == ir.DataType.BOOL):
        return False
    return value.shape is not None and len(value.shape) <= 1


def _bytes(value: ir.Value) -> int | None:
    """Size of a value, open dimensions taken for 16."""
    if value.dtype is None or value.shape is None:
        return None
    size = 1
    for dim in value.shape:
        size *= dim if isinstance(dim, int) else 16
    return int(size * value.dtype.itemsize)
