"""Where a value of one step comes from: a position along the time axis of a tensor, seen through views.

The steps of a recurrence take slices of one tensor, and carry a state on. Between these and the products of
a cell, exporters put axes of size 1 in and out, cut with Gather, Slice or Split, and turn the time around.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxlathe.infer import Dims, dims_of
from onnxlathe.rewrite import attribute
from onnxlathe_passes.conditions import number, numbers, operand, rank
from onnxlathe_passes.noop_views import permutation
from onnxlathe_passes.slices import Cut, cuts


@dataclass(frozen=True)
class Step:
    """Position `start + sign·i` in iteration i of a loop.

    Attributes:
        start: a number or an expression over sizes.
        sign: 1 or -1.
    """

    start: Any = 0
    sign: int = 1


@dataclass(frozen=True)
class Place:
    """A value, or what stands at a position along one of its axes.

    Attributes:
        value: the tensor.
        axis: counted from the front; `None` where the place is the value itself.
        index: the position (a negative one counts from the end), or how it follows from a loop's iteration.
    """

    value: ir.Value
    axis: int | None = None
    index: int | Step | None = None


class Scope:
    """What values mean where a cell is looked for. In a loop's body, inputs stand for something else.

    Attributes:
        opset: version of the default operator set.
    """

    def __init__(self, opset: int) -> None:
        self.opset = opset

    def real(self, value: ir.Value) -> ir.Value:
        """The value that this one is in every step."""
        return value

    def position(self, value: ir.Value | None) -> int | Step | None:
        """Where a Gather with this index takes its element."""
        found = number(value)
        return found if type(found) is int else None

    def scanned(self, value: ir.Value) -> Place | None:
        """What the value is a slice of, if a Scan makes it one."""
        return None

    def bare(self, value: ir.Value) -> ir.Value:
        """The value without what only adds or drops axes of size 1."""
        while True:
            value = self.real(value)
            found = self.above(Place(value))
            if found is None or found.axis is not None:
                return value
            value = found.value

    def place(self, value: ir.Value) -> Place:
        """The tensor that the value is a slice of, and where; or the bare value."""
        at = Place(value)
        while at.axis is None:
            value = self.real(at.value)
            if (found := self.scanned(value)) is not None:
                return found
            above = self.above(Place(value))
            if above is None:
                return Place(value)
            at = above
        return self.uncut(at)

    def uncut(self, at: Place) -> Place:
        """The same place in a tensor before Slices along time, which may have turned it around."""
        while (producer := at.value.producer()) is not None and producer.op_type == "Slice":
            above = self.above(at)
            if above is None:
                break
            at = above
        return at

    def above(self, at: Place) -> Place | None:
        """The same elements as a place in the operand of the node that made the value."""
        node = at.value.producer()
        x = node.inputs[0] if node is not None and node.inputs else None
        if node is None or x is None or node.domain != "":
            return None
        match node.op_type:
            case "Identity":
                return Place(x, at.axis, at.index)
            case "Squeeze" | "Unsqueeze" | "Reshape" | "Flatten":
                return self._view(node.op_type, at, x)
            case "Transpose":
                return self._transpose(node, at, x)
            case "Gather" if at.axis is None:
                index, size = self.position(operand(node, 1)), rank(x)
                if index is None or size is None:
                    return None
                return Place(x, int(attribute(node, "axis", self.opset)) % size, index)
            case "Slice":
                return self._slice(node, at, x)
            case "Split" if at.axis is None:
                return self._part(node, at, x)
            case "LSTM" | "GRU" | "RNN" if at.axis is None and at.value is node.outputs[0]:
                # All states of a sequence of length 1, and the last one.
                single = (dims_of(x) or (0,))[0] == 1 and len(node.outputs) > 1
                return Place(node.outputs[1]) if single else None
        return None

    def _view(self, op_type: str, at: Place, x: ir.Value) -> Place | None:
        """Axes of size 1 come and go; all others keep their order, and the last one stays the last."""
        before, after = dims_of(x), dims_of(at.value)
        if not before or not after or before[-1] != after[-1]:
            return None
        if (op_type in ("Reshape", "Flatten") and None in after) or _large(before) != _large(after):
            return None
        if at.axis is None:
            return Place(x)
        if after[at.axis] == 1:
            return None
        nth = len(_large(after[: at.axis]))
        return Place(x, [axis for axis, size in enumerate(before) if size != 1][nth], at.index)

    def _transpose(self, node: ir.Node, at: Place, x: ir.Value) -> Place | None:
        perm, dims = permutation(node, self.opset), dims_of(x)
        if perm is None or dims is None or len(perm) != len(dims):
            return None
        rest = [axis for position, axis in enumerate(perm) if position != at.axis and dims[axis] != 1]
        if rest != sorted(rest) or (dims[-1] == 1 and perm[-1] != len(dims) - 1):
            return None
        return Place(x) if at.axis is None else Place(x, perm[at.axis], at.index)

    def _slice(self, node: ir.Node, at: Place, x: ir.Value) -> Place | None:
        taken, dims = cuts(node, self.opset), dims_of(x)
        if taken is None or dims is None or len(taken) != 1:
            return None
        ((axis, cut),) = taken.items()
        if at.axis is None:
            index = _only(cut, dims[axis])
            return None if index is None else Place(x, axis, index)
        if axis != at.axis:
            return None
        if cut.step == -1 and cut.start in (-1, 2**63 - 1) and cut.end <= -(2**31):
            turned = _turned(at.index, dims[axis])
            return None if turned is None else Place(x, axis, turned)
        start = at.index if isinstance(at.index, int) and at.index >= 0 else None
        if cut.step == 1 and cut.start >= 0 and start is not None:
            return Place(x, axis, start + cut.start)
        return None

    def _part(self, node: ir.Node, at: Place, x: ir.Value) -> Place | None:
        before = dims_of(x)
        if not before:
            return None
        axis = int(attribute(node, "axis", self.opset)) % len(before)
        start: Any = 0
        for output in node.outputs:
            dims = dims_of(output)
            size = dims[axis] if dims is not None else None
            if output is at.value:
                return Place(x, axis, start) if size == 1 else None
            if not isinstance(size, int):
                return None
            start += size
        return None


def _large(dims: Dims) -> list[Any]:
    return [size for size in dims if size != 1]


def rows(value: ir.Value, *left_out: int) -> list[Any] | None:
    """The sizes of all axes but the last one and some others, without those that are 1."""
    dims = dims_of(value)
    if not dims:
        return None
    return [size for axis, size in enumerate(dims[:-1]) if axis not in left_out and size != 1]


def _only(cut: Cut, size: Any) -> int | None:
    """The one position that a cut takes."""
    whole = cut.normal(size)
    if whole is None:
        # x[-1:] and the like, of an axis whose size is open
        last = cut.step == 1 and cut.start < 0 and (cut.end == cut.start + 1 or cut.end >= 2**31)
        return cut.start if last and (cut.end < 0 or cut.start == -1) else None
    end = min(whole.end, size) if isinstance(size, int) else whole.end
    return whole.start if whole.step == 1 and end - whole.start == 1 else None


def _turned(index: int | Step | None, size: Any) -> int | Step | None:
    """The position counted from the other end."""
    if isinstance(index, int):
        return size - 1 - index if isinstance(size, int) and index >= 0 else -1 - index
    if isinstance(index, Step) and size is not None:
        return Step(size - 1 - index.start, -index.sign)
    return None


def last_axis(node: ir.Node, opset: int) -> bool:
    """Whether a Split, Concat, Slice or Gather works along the last axis."""
    if node.op_type == "Slice":
        taken, size = cuts(node, opset), rank(node.inputs[0])
        return taken is not None and size is not None and list(taken) == [size - 1]
    size = rank(node.inputs[0])
    return size is not None and int(attribute(node, "axis", opset)) % size == size - 1


def indices(value: ir.Value | None) -> list[int] | None:
    """The positions that a Gather along the last axis takes, where they follow each other."""
    found = numbers(value) if rank(value) == 1 else None
    if not found or found[0] < 0 or found != list(range(found[0], found[0] + len(found))):
        return None
    return found
