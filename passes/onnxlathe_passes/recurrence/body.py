"""The body of a Loop or Scan: what its values are in iteration i, and how many iterations there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxlathe.infer import dims_of, known
from onnxlathe.rewrite import attribute, is_constant, reject, require
from onnxlathe_passes.conditions import operand, producer
from onnxlathe_passes.recurrence.places import Place, Scope, Step

_ENDLESS = 2**31 - 1
_DEEP = 16


@dataclass(frozen=True)
class Carried:
    """A value that iterations hand on.

    Attributes:
        before, after: in the body.
        initial, final: outside of it.
    """

    before: ir.Value
    after: ir.Value
    initial: ir.Value
    final: ir.Value


@dataclass(frozen=True)
class Stacked:
    """What each iteration leaves behind, one after the other along an axis."""

    each: ir.Value
    all: ir.Value
    axis: int = 0
    backwards: bool = False


class Body(Scope):
    """What the values in a body stand for.

    Attributes:
        carried, stacked: what goes on, and what is left behind.
        trips: how many iterations there are: a number, an expression, or a value that says it.

    Raises:
        NoMatch: when it ends cannot be told.
    """

    def __init__(self, node: ir.Node, opset: int) -> None:
        super().__init__(opset)
        self.node = node
        self.graph = node.attributes["body"].as_graph()
        self.slices: dict[ir.Value, Place] = {}
        self.same: dict[ir.Value, ir.Value] = {}
        self.counters: dict[ir.Value, Step] = {}
        self.trips: Any
        if node.op_type == "Loop":
            self._loop()
        else:
            self._scan()

    def real(self, value: ir.Value) -> ir.Value:
        return self.same.get(value, value)

    def scanned(self, value: ir.Value) -> Place | None:
        return self.slices.get(value)

    def outside(self, value: ir.Value) -> bool:
        """Whether the value is there before the loop."""
        made_by = value.producer()
        return (made_by.graph if made_by is not None else value.graph) is not self.graph

    def position(self, value: ir.Value | None) -> int | Step | None:
        found = self.linear(value)
        if found is None:
            return None
        sign, start = found
        if sign == 0:
            return start if type(start) is int else None
        return Step(start, sign) if sign in (1, -1) else None

    def linear(self, value: ir.Value | None, depth: int = 0) -> tuple[int, Any] | None:
        """`(a, b)`, where the value is a·i + b in iteration i; b may be an expression."""
        if value is None or depth > _DEEP:
            return None
        value = self.real(value)
        if value in self.counters:
            return self.counters[value].sign, self.counters[value].start
        contents = known(value)
        if contents is not None and contents.size == 1 and (self.outside(value) or is_constant(value)):
            entry = contents.reshape(-1)[0]
            return None if entry is None or isinstance(entry, bool | float) else (0, entry)
        node = value.producer()
        if node is None or node.domain != "" or node.graph is not self.graph:
            return None
        if node.op_type in ("Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape"):
            return self.linear(node.inputs[0], depth + 1)
        if node.op_type not in ("Add", "Sub", "Mul"):
            return None
        left, right = (self.linear(v, depth + 1) for v in node.inputs)
        if left is None or right is None:
            return None
        if node.op_type == "Mul":
            factor, other = (left, right) if left[0] == 0 else (right, left)
            if factor[0] != 0 or type(factor[1]) is not int:
                return None
            return other[0] * factor[1], other[1] * factor[1]
        sign = -1 if node.op_type == "Sub" else 1
        return left[0] + sign * right[0], left[1] + sign * right[1]

    def _scan(self) -> None:
        node, opset = self.node, self.opset
        count = int(attribute(node, "num_scan_inputs", opset))
        states = len(node.inputs) - count
        self._carry(list(self.graph.inputs)[:states], list(self.graph.outputs)[:states], 0)
        turned = _list(node, "scan_input_directions", count)
        sizes = []
        for i, axis in enumerate(_list(node, "scan_input_axes", count)):
            x = node.inputs[states + i]
            dims = dims_of(x) if x is not None else None
            if x is None or dims is None:
                reject("what is scanned has no known rank")
            size = dims[axis % len(dims)]
            require(size is not None, "what is scanned has an unknown size")
            step = Step(size - 1, -1) if turned[i] else Step()  # type: ignore[operator]
            self.slices[self.graph.inputs[states + i]] = Place(x, axis % len(dims), step)
            sizes.append(size)
        self.trips = sizes[0]
        left = len(node.outputs) - states
        axes, turned = _list(node, "scan_output_axes", left), _list(node, "scan_output_directions", left)
        self.stacked = [
            Stacked(self.graph.outputs[states + i], node.outputs[states + i], axes[i], bool(turned[i]))
            for i in range(left)
        ]

    def _loop(self) -> None:
        node = self.node
        count = len(node.inputs) - 2
        self._carry(list(self.graph.inputs)[2:], list(self.graph.outputs)[1 : 1 + count], 2)
        self.stacked = [
            Stacked(self.graph.outputs[1 + i], node.outputs[i]) for i in range(count, len(node.outputs))
        ]
        self.counters[self.graph.inputs[0]] = Step()
        for carried in self.carried:
            self._count(carried)
        self.trips = self._trip_count()

    def _carry(self, before: list[ir.Value], after: list[ir.Value], first: int) -> None:
        self.carried: list[Carried] = []
        for index, (into, out) in enumerate(zip(before, after, strict=True)):
            initial = self.node.inputs[first + index]
            if initial is None:
                reject("a state has no start")
            self.carried.append(Carried(into, out, initial, self.node.outputs[index]))
            while (copied := producer(out, "Identity")) is not None and copied.inputs[0] is not None:
                out = copied.inputs[0]
            if out is into:
                self.same[into] = initial

    def _count(self, carried: Carried) -> None:
        """Take note of a state that grows by one in each iteration."""
        start = known(carried.initial)
        if start is None or start.size != 1 or type(start.reshape(-1)[0]) is not int:
            return
        if carried.before in self.same or carried.before.dtype not in (ir.DataType.INT32, ir.DataType.INT64):
            return
        # As if it were the iteration: it is a counter if it is i + 1 or i - 1 afterwards.
        self.counters[carried.before] = Step()
        by = self.linear(carried.after)
        del self.counters[carried.before]
        if by in ((1, 1), (1, -1)) and by is not None:
            self.counters[carried.before] = Step(start.reshape(-1)[0], by[1])

    def _trip_count(self) -> Any:
        most, going = operand(self.node, 0), operand(self.node, 1)
        ends = {bound for bound in self._bounds(self.graph.outputs[0], 1) if not _endless(bound)}
        if going is not None:
            ends |= {bound for bound in self._bounds(going, 0) if not _endless(bound)}
        if most is not None:
            contents = known(most)
            count = contents.reshape(-1)[0] if contents is not None and contents.size == 1 else None
            if count is None:
                require(not ends, "when it ends is not known")
                return most
            if not _endless(count):
                ends.add(count)
        require(len(ends) == 1, "when it ends is not known")
        trips = ends.pop()
        require(not isinstance(trips, int) or trips > 0, "it does not run")
        return trips

    def _bounds(self, value: ir.Value | None, late: int) -> Iterator[Any]:
        """How many iterations a condition allows; `late` is 1 where it is about the next one."""
        while value is not None and (copied := producer(value, "Identity")) is not None:
            value = copied.inputs[0]
        if value is None or value is self.graph.inputs[1]:
            return
        value = self.real(value)
        contents = known(value)
        if contents is not None and contents.size == 1 and contents.reshape(-1)[0] is True:
            return
        node = producer(value, "And", "Less", "Greater", "LessOrEqual", "GreaterOrEqual")
        if node is None:
            reject("when it ends is not known")
        if node.op_type == "And":
            for part in node.inputs:
                yield from self._bounds(part, late)
            return
        low, high = node.inputs if node.op_type.startswith("Less") else reversed(list(node.inputs))
        counted, end = self.linear(low), self.linear(high)
        if counted is None or end is None or counted[0] != late or end[0] != 0:
            reject("when it ends is not known")
        yield end[1] - counted[1] + late + (1 if node.op_type.endswith("OrEqual") else 0)


def _endless(bound: Any) -> bool:
    return isinstance(bound, int) and bound >= _ENDLESS - 1


def _list(node: ir.Node, name: str, count: int) -> list[int]:
    found = node.attributes.get(name)
    return [int(n) for n in found.as_ints()] if found is not None else [0] * count
