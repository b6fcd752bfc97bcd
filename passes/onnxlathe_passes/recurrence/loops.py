"""Steps that are the body of a Loop or Scan over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import (
    Builder,
    Context,
    NoMatch,
    attribute,
    is_constant,
    is_unused,
    reject,
    remove_unused,
    require,
)
from onnxlathe_passes.conditions import int64, operand, producer
from onnxlathe_passes.insert import insert, substitute
from onnxlathe_passes.joint_steps import at_once
from onnxlathe_passes.recurrence.body import Body, Carried
from onnxlathe_passes.recurrence.build import (
    END,
    Span,
    batch_of,
    initial,
    operator,
    over_time,
    shaped,
    single,
    turned,
)
from onnxlathe_passes.recurrence.cells import Cell, Oriented
from onnxlathe_passes.recurrence.formulas import cells_of
from onnxlathe_passes.recurrence.places import Place, Step
from onnxlathe_passes.views import squeeze, unsqueeze
from onnxlathe_passes.weights import tensor_of

_DEEP = 24

Pair = tuple[ir.Value, ir.Value]


def fuse_loop(node: ir.Node, opset: int, context: Context, rule: str) -> bool:
    """Put operators in the place of a Loop or Scan whose body is a recurrence, and nothing else that is needed.

    Of a loop that does not run, the states are what they were before; of a sequence of length 0, no recurrent
    operator says anything. So far no exporter's model means the first.
    """
    op = Builder(opset)
    try:
        pairs = _Recurrences(op, Body(node, opset)).replacements()
    except NoMatch:
        return False
    if not pairs or not context.permit(rule):
        return False
    _bring_out(op, node.attributes["body"].as_graph())
    insert(op, node, context)
    fresh = set(op.nodes)
    for old, new in pairs:
        substitute([(old, new)], context, rename=new.producer() in fresh)
    makers = [made for old, _ in pairs if (made := old.producer()) is not None]
    gone, _ = remove_unused([*makers, node])
    remove_unused([made for made in op.nodes if is_unused(made)])
    context.record(rule, gone or [node], [made for made in op.nodes if made.graph is not None])
    return True


def _bring_out(op: Builder, body: ir.Graph) -> None:
    """Let the new nodes have constants of their own for those that lie in the body."""
    for node in list(op.nodes):
        for index, value in enumerate(node.inputs):
            if value is None or value in op.constants or not is_constant(value):
                continue
            made_by = value.producer()
            if (made_by.graph if made_by is not None else value.graph) is body:
                node.replace_input_with(index, op.weight(tensor_of(value), value.name or ""))


@dataclass(frozen=True)
class _Made:
    """An operator that stands for a cell.

    Attributes:
        node: the operator.
        flat: all states as (time, batch, size), in the order of the positions.
        backwards: whether the last position is that of the first iteration.
    """

    node: ir.Node
    flat: ir.Value
    backwards: bool


class _Recurrences:
    """The cells of a body, each an operator."""

    def __init__(self, op: Builder, body: Body) -> None:
        self.op = op
        self.body = body
        self.into = {carried.before: carried for carried in body.carried}
        self.made: dict[ir.Value, _Made] = {}
        self.joint: dict[ir.Value, ir.Value] = {}
        self.finals: dict[ir.Value, ir.Value] = {}  # what is carried -> what it is at last, (1, batch, size)

    def replacements(self) -> list[Pair]:
        """What stands for the loop's results.

        Raises:
            NoMatch: something is not a result of a cell.
        """
        cells = list(cells_of(self.body.graph, self.body))
        while cells:
            left = [cell for cell in cells if not self.operator_of(cell)]
            if len(left) == len(cells):
                break
            cells = left
        require(self.made, "its body holds no cell")
        pairs: list[Pair] = []
        for carried in self.body.carried:
            pairs += self.final(carried)
        for stacked in self.body.stacked:
            if _needed(stacked.all):
                value = self.all_of(stacked.each, stacked.axis, stacked.backwards)
                pairs.append((stacked.all, value))
        return pairs

    def operator_of(self, cell: Cell) -> bool:
        """Make the operator of a cell whose state is carried on; whether that is done (or it was before)."""
        for state in cell.states():
            carried = self.into.get(state)
            if carried is None or self.body.bare(carried.after) is not cell.result:
                continue
            memory = self.into.get(cell.memory_before) if cell.memory_before is not None else None
            if cell.kind == "LSTM" and (memory is None or self.body.bare(memory.after) is not cell.memory):
                continue
            step = cell.oriented(state)
            if step is None or None in step.own or cell.result in self.made:
                continue
            try:
                self.make(step, carried, memory)
            except NoMatch:
                continue
            return True
        return False

    def make(self, step: Oriented, carried: Carried, memory: Carried | None) -> None:
        op, cell = self.op, step.cell
        mark, joint = op.mark(), dict(self.joint)
        try:
            batch = batch_of(cell.result)
            backwards, inputs = self.inputs(step, batch)
            states = [initial(op, carried.initial, batch, cell.size)]
            if memory is not None:
                states.append(initial(op, memory.initial, batch, cell.size))
            made = operator(op, step, inputs, states, backwards)
        except NoMatch:
            op.rewind(mark)
            self.joint = joint
            raise
        self.made[cell.result] = _Made(made, squeeze(op, made.outputs[0], [1]), backwards)
        self.finals[carried.before] = made.outputs[1]
        if memory is not None:
            self.finals[memory.before] = made.outputs[2]

    def inputs(self, step: Oriented, batch: Any) -> tuple[bool, list[ir.Value]]:
        """What goes in, over time, and whether the last position comes first."""
        spans: list[Span | None] = []
        for place in step.inputs:
            spans.append(self.span(place) if isinstance(place.index, Step) else None)
        known = [span.backwards for span in spans if span is not None]
        earlier = [self.made[near] for near in step.nears if near is not None and near in self.made]
        known += [made.backwards for made in earlier]
        backwards = len(known) == len(spans) and all(known)
        inputs = []
        for index, (span, place, near) in enumerate(zip(spans, step.inputs, step.nears, strict=True)):
            if span is not None:
                inputs.append(over_time(self.op, place, span, batch, step.width(index), backwards))
            elif near is not None and near in self.made:
                made = self.made[near]
                inputs.append(made.flat if made.backwards == backwards else turned(self.op, made.flat, 0))
            elif place.axis is None and self.body.outside(place.value):
                inputs.append(self.repeated(place, batch, step.width(index)))
            else:
                require(
                    near is not None and dims_of(near) == (batch, step.width(index)),
                    "what goes in is no vector",
                )
                inputs.append(self.lifted(near))  # type: ignore[arg-type]
        return backwards, inputs

    def span(self, place: Place) -> Span:
        """Which positions of a tensor the iterations take."""
        require(self.body.outside(place.value), "what goes in is made in the loop")
        dims, step, trips = dims_of(place.value), place.index, self.body.trips
        if dims is None or place.axis is None or not isinstance(step, Step):
            reject("what goes in has no known rank")
        size = dims[place.axis]
        if isinstance(trips, ir.Value):
            require(step == Step(), "which positions it takes is not known")
            return Span(0, self.op.Reshape(trips, int64([1])))
        low = step.start if step.sign == 1 else step.start - trips + 1
        backwards = step.sign == -1
        if low == 0 and size == trips:
            return Span(backwards=backwards)
        if type(low) is not int or low < 0:
            reject("which positions it takes is not known")
        if isinstance(trips, int):
            return Span(low, low + trips, backwards)
        require(size is not None and low + trips == size, "which positions it takes is not known")
        return Span(low, END, backwards)

    def repeated(self, place: Place, batch: Any, width: int) -> ir.Value:
        """What goes in alike in every iteration."""
        trips = self.body.trips
        require(isinstance(trips, int), "how often what goes in is repeated is not known")
        once = single(self.op, place.value, batch, width)
        result: ir.Value = self.op.Expand(once, int64([trips, 1, 1]))
        return result

    def final(self, carried: Carried) -> list[Pair]:
        """What stands for a carried value after the loop."""
        if not _needed(carried.final):
            return []
        if carried.before in self.body.same:
            return [(carried.final, carried.initial)]
        if carried.before in self.finals:
            return [(carried.final, shaped(self.op, self.finals[carried.before], carried.final))]
        inserted = producer(carried.after, "SequenceInsert")
        empty = producer(carried.initial, "SequenceEmpty")
        if inserted is None or empty is None or inserted.inputs[0] is not carried.before:
            reject("what is carried is no state of a cell")
        require(operand(inserted, 2) is None and inserted.inputs[1] is not None, "it inserts elsewhere")
        pairs = []
        for user in carried.final.consumers():
            require(
                user.op_type == "ConcatFromSequence" and user.domain == "", "the sequence is used as such"
            )
            pairs.append((user.outputs[0], self.joined(user, inserted.inputs[1])))  # type: ignore[arg-type]
        require(not carried.final.is_graph_output(), "the sequence is an output of the model")
        return pairs

    def joined(self, node: ir.Node, each: ir.Value) -> ir.Value:
        """A ConcatFromSequence of what each iteration put into the sequence."""
        axis, dims = int(attribute(node, "axis", self.op.opset)), dims_of(each)
        if dims is None:
            reject("a state has no known rank")
        if attribute(node, "new_axis", self.op.opset):
            return self.all_of(each, axis % (len(dims) + 1), False)
        axis %= len(dims)
        require(len(dims) == 3 and dims[axis] == 1, "states are joined along an axis that they have")
        return self.moved(self.series(each, False), axis, 3)

    def all_of(self, each: ir.Value, axis: int, backwards: bool) -> ir.Value:
        """The states of all iterations along a new axis."""
        flat, dims = self.series(each, backwards), dims_of(each)
        if dims is None:
            reject("a state has no known rank")
        axis %= len(dims) + 1
        if len(dims) == 2:
            return self.moved(flat, axis, 3)
        require(len(dims) == 3 and 1 in dims[:2], "a state has several axes of size 1")
        unit = 1 if dims[0] == 1 else 2
        return self.moved(unsqueeze(self.op, flat, [unit]), axis, 4)

    def series(self, each: ir.Value, backwards: bool) -> ir.Value:
        """The states of all iterations as (time, batch, size), the first or the last iteration first."""
        made = self.made.get(self.body.bare(each))
        if made is None:
            require(len(dims_of(each) or ()) == 2, "what it leaves behind is no vector")
            joint = self.lifted(each)
            return turned(self.op, joint, 0) if backwards else joint
        return made.flat if made.backwards == backwards else turned(self.op, made.flat, 0)

    def lifted(self, value: ir.Value, depth: int = 0) -> ir.Value:
        """A vector that is made in the loop, of all iterations: (time, batch, features), in their order.

        What is not part of a recurrence needs no loop.
        """
        value = self.body.real(value)
        if value in self.joint:
            return self.joint[value]
        if (made := self.made.get(self.body.bare(value))) is not None and len(dims_of(value) or ()) == 2:
            return turned(self.op, made.flat, 0) if made.backwards else made.flat
        place, dims = self.body.place(value), dims_of(value)
        if isinstance(place.index, Step) and dims is not None and len(dims) == 2 and isinstance(dims[1], int):
            found = over_time(self.op, place, self.span(place), dims[0], dims[1], False)
        else:
            node = value.producer()
            if node is None or node.graph is not self.body.graph or depth > _DEEP:
                reject("what goes in is made in the loop")
            operands = [None if own is None or is_constant(self.body.real(own)) else self.lifted(own, depth + 1)
                        for own in node.inputs]  # fmt: skip
            found = at_once(self.op, node, operands, self.body.real)
        self.joint[value] = found
        return found

    def moved(self, x: ir.Value, axis: int, rank: int) -> ir.Value:
        """The tensor with its first axis somewhere else."""
        if axis == 0:
            return x
        order: Sequence[int] = [*range(1, axis + 1), 0, *range(axis + 1, rank)]
        result: ir.Value = self.op.Transpose(x, perm=list(order))
        return result


def _needed(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()
