"""Steps written one after the other, which share their weights and hand a state on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import (
    Builder,
    Context,
    NoMatch,
    is_unused,
    reject,
    remove_unused,
    require,
    subgraphs,
)
from onnxlathe_passes.conditions import int64
from onnxlathe_passes.insert import insert, substitute
from onnxlathe_passes.recurrence.build import (
    Span,
    batch_of,
    initial,
    operator,
    over_time,
    shaped,
    single,
    span_of,
)
from onnxlathe_passes.recurrence.cells import Cell, Oriented, starts_from_zero
from onnxlathe_passes.recurrence.formulas import cells_of
from onnxlathe_passes.recurrence.places import Place, Scope
from onnxlathe_passes.views import squeeze, unsqueeze


class Chains:
    """The recurrences that are written out in a graph.

    Args:
        graph: the graph.
        opset: version of its default operator set.
        least: how many steps a recurrence has to have.
    """

    def __init__(self, graph: ir.Graph, opset: int, least: int) -> None:
        self.graph = graph
        self.opset = opset
        self.least = least

    def fuse(self, context: Context, rule: str) -> int:
        """Put an operator in the place of each; how many there were."""
        changes = 0
        while self._one(context, rule):
            changes += 1
        return changes

    def _one(self, context: Context, rule: str) -> bool:
        cells = list(cells_of(self.graph, Scope(self.opset)))
        self.made: dict[ir.Value, list[Cell]] = {}
        for cell in cells:
            self.made.setdefault(cell.result, []).append(cell)
        if len(self.made) < self.least:
            return False
        # The earliest first: what goes into the next layer is what comes out of it.
        for cell in self._last(cells):
            chain = self.chain(cell)
            if len(chain) < self.least:
                continue
            op = Builder(self.opset)
            try:
                found = _replacement(op, chain)
            except NoMatch:
                continue
            if not context.permit(rule):
                return False
            _apply(op, found, context, rule)
            return True
        return False

    def _last(self, cells: Sequence[Cell]) -> list[Cell]:
        """Cells that end a recurrence: they go on from another step, and no other step from them."""
        ends: list[Cell] = []
        inner: set[Cell] = set()
        for cell in cells:
            steps = [step for state in cell.states() if (step := cell.oriented(state)) is not None]
            before = [found.cell for step in steps if (found := self.previous(step)) is not None]
            inner.update(before)
            if before:
                ends.append(cell)
        return [cell for cell in ends if cell not in inner]

    def _before(self, cell: Cell, state: ir.Value) -> list[Cell]:
        """The cells that hand this state on to `cell`."""
        return [
            other
            for other in self.made.get(state, ())
            if other is not cell
            and other.kind == cell.kind
            and (cell.kind != "LSTM" or other.memory is cell.memory_before)
        ]

    def chain(self, last: Cell) -> list[Oriented]:
        """The steps that lead to a cell, itself the last."""
        for state in last.states():
            step = last.oriented(state)
            chain: list[Oriented] = []
            while step is not None:
                chain.insert(0, step)
                step = self.previous(step)
            if len(chain) > 1:
                return chain
        return []

    def previous(self, step: Oriented) -> Oriented | None:
        """The step before, of the same weights."""
        if step.before is None:
            return None
        for cell in self._before(step.cell, step.before):
            for state in cell.states():
                found = cell.oriented(state, step)
                if found is not None and found.same(step):
                    return found
            found = cell.oriented(None)
            if found is not None and starts_from_zero(found, step):
                return found
        return None


@dataclass
class _Found:
    """What is to stand for the results of a chain."""

    chain: Sequence[Oriented]
    each: list[tuple[ir.Value, ir.Value]]
    last: tuple[ir.Value, ir.Value]
    also_last: ir.Value
    memory: tuple[ir.Value, ir.Value] | None


def _replacement(op: Builder, chain: Sequence[Oriented]) -> _Found:
    first, final = chain[0].cell, chain[-1].cell
    size, batch = first.size, batch_of(first.result)
    require(not _leaks(chain), "a cell state is used elsewhere")
    spans = [_span([step.inputs[i] for step in chain]) for i in range(len(chain[0].inputs))]
    spans_backwards = [span.backwards for span in spans if span is not None and span.listed is None]
    backwards = bool(spans_backwards) and all(spans_backwards)
    inputs: list[ir.Value] = []
    for index, span in enumerate(spans):
        width = chain[-1].width(index)
        if span is not None:
            inputs.append(over_time(op, chain[0].inputs[index], span, batch, width, backwards))
        else:
            nears = [step.nears[index] for step in chain]
            require(not _feeds_back(chain, nears), "what goes in depends on what came out")
            inputs.append(_stacked(op, nears[::-1] if backwards else nears, batch, width))
    states = [initial(op, chain[0].before, batch, size)]
    if first.kind == "LSTM":
        states.append(initial(op, first.memory_before, batch, size))
    made = operator(op, chain[-1], inputs, states, backwards)
    all_of = made.outputs[0]
    flat = squeeze(op, all_of, [1])
    each = []
    for position, step in enumerate(chain):
        place = int64([len(chain) - 1 - position if backwards else position])[0]
        like = step.cell.result
        whole = len(dims_of(like) or ()) == 2
        state = op.Gather(flat if whole else all_of, op.constant(place), axis=0)
        each.append((like, state if whole else shaped(op, state, like)))
        if step.cell.node is not None and like is not step.cell.node.outputs[0]:
            each.insert(0, (step.cell.node.outputs[0], unsqueeze(op, state, [0])))
    memory = None
    if final.memory is not None:
        memory = (final.memory, shaped(op, made.outputs[2], final.memory))
    last = (final.result, shaped(op, made.outputs[1], final.result))
    return _Found(chain, each[:-1], last, each[-1][1], memory)


def _span(places: Sequence[Place]) -> Span | None:
    """The positions that the steps take of one tensor; `None` where they take different ones."""
    first = places[0]
    positions = [p.index for p in places if isinstance(p.index, int)]
    if len(positions) < len(places) or any((p.value, p.axis) != (first.value, first.axis) for p in places):
        return None
    dims = dims_of(first.value)
    assert first.axis is not None
    size = dims[first.axis] if dims is not None else None
    if len({p < 0 for p in positions}) > 1 and not isinstance(size, int):
        reject("positions are counted from both ends")
    return span_of(positions, size)


def _stacked(op: Builder, values: Sequence[ir.Value | None], batch: object, width: int) -> ir.Value:
    """What goes into the steps, each a value of its own (or all the same one), as one tensor."""
    parts = [single(op, value, batch, width) for value in dict.fromkeys(values) if value is not None]
    if len(parts) == 1 < len(values) and None not in values:
        repeated: ir.Value = op.Expand(parts[0], int64([len(values), 1, 1]))
        return repeated
    require(len(parts) == len(values), "what goes in is partly repeated")
    joined: ir.Value = op.Concat(*parts, axis=0)
    return joined


def _feeds_back(chain: Sequence[Oriented], values: Iterable[ir.Value | None]) -> bool:
    """Whether what goes into a step depends on what came out of one, as in a decoder."""
    results = {step.cell.result for step in chain} | {step.cell.memory for step in chain}
    seen: set[ir.Value] = set()
    work = [value for value in values if value is not None]
    while work:
        value = work.pop()
        if value in results:
            return True
        node = value.producer()
        if node is None or value in seen:
            continue
        seen.add(value)
        work += [v for v in node.inputs if v is not None]
        work += [v for inner in subgraphs(node) for n in inner for v in n.inputs if v is not None]
    return False


def _leaks(chain: Sequence[Oriented]) -> bool:
    """Whether anything but the recurrence needs a cell state before the last one."""
    inside = {node for step in chain for node in step.cell.inner}
    for step in chain[:-1]:
        for node in step.cell.inner[:1]:
            users = node.outputs[0].consumers()
            if node.outputs[0].is_graph_output() or any(user not in inside for user in users):
                return True
    return False


def _apply(op: Builder, found: _Found, context: Context, rule: str) -> None:
    before = [node for step in found.chain if (node := step.cell.result.producer()) is not None]
    if found.memory is not None and (made := found.memory[0].producer()) is not None:
        before.append(made)
    graph = before[0].graph
    assert graph is not None
    insert(op, before[0], context)
    gathered = [new.producer() for _, new in found.each]
    for old, new in [*found.each, found.last, *([found.memory] if found.memory is not None else [])]:
        if old.uses() or old.is_graph_output():
            substitute([(old, new)], context)
    gone, _ = remove_unused(before)
    graph.sort()  # what goes into the last step may have been computed after the first one
    stays = any(node is not None and node.graph is not None for node in gathered)
    if stays and (found.last[1].uses() or found.last[1].is_graph_output()):
        # Where all steps are wanted, the last one is one of them.
        substitute([(found.last[1], found.also_last)], context)
    remove_unused([node for node in op.nodes if node.graph is not None and is_unused(node)])
    context.record(rule, gone, [node for node in op.nodes if node.graph is not None])
