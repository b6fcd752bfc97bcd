"""Elements of an axis that were taken apart and are put together again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, NodeRule, attribute
from onnxlathe_passes.conditions import (
    from_front,
    int64,
    number,
    numbers,
    operand,
    producer,
    rank,
    used_once,
)
from onnxlathe_passes.slices import cuts
from onnxlathe_passes.views import squeeze


class Restack(NodeRule):
    """Concat of Gather(x, 0), Gather(x, 1), … = x, with its axes moved; of some of them one Gather.

    Loops over time or over layers that were written out leave it behind, as torch.stack of x[0], x[1], ….
    """

    name = "restack"
    group = "fuse"
    reach = 3
    example = """
    %a = Unsqueeze(Gather(%x, 0, axis=0), [1])              # x: [2, batch, 64]
    %b = Unsqueeze(Gather(%x, 1, axis=0), [1])
    %y = Concat(%a, %b, axis=1)
    →
    %y = Transpose(%x, perm=[1, 0, 2])
    """

    visits = ("Concat", "Slice")

    def visit(self, op: Builder, node: ir.Node) -> Any:
        if node.op_type == "Slice":
            return _cut(op, node)
        size = rank(node.outputs[0])
        if len(node.inputs) < 2 or size is None:
            return None
        axis = int(attribute(node, "axis", op.opset)) % size
        if used_once(node.outputs[0]) and _turns(node.outputs[0].consumers()[0], axis, op.opset):
            return None  # first it is put together the other way around
        first = _element(node.inputs[0], axis, op.opset)
        if first is None:
            return None
        places = []
        for value in node.inputs:
            found = _element(value, axis, op.opset)
            if found is None or (found.x, found.axis, found.drop) != (first.x, first.axis, first.drop):
                return None
            places.append(found.index)
        x, of = first.x, first.axis
        dims = dims_of(x)
        if dims is None:
            return None
        if places != list(range(len(places))) or dims[of] != len(places):
            x = op.Gather(x, int64(places), axis=of)
        if first.drop is not None:
            x = squeeze(op, x, [first.drop])
            of -= first.drop < of
        order = [a for a in range(size) if a != of]
        order.insert(axis, of)
        if order != list(range(size)):
            return op.Transpose(x, perm=order)
        return x if x is not first.x or dims[of] == len(places) else None


def _cut(op: Builder, node: ir.Node) -> ir.Value | None:
    """A Slice of gathered positions as fewer, or turned around; of steps side by side in the other order.

    So what a loop from the end left comes back in order.
    """
    joined = producer(node.inputs[0], "Concat")
    if joined is not None:
        size = rank(node.outputs[0]) or 0
        axis = int(attribute(joined, "axis", op.opset)) % max(size, 1)
        single = all((dims_of(v) or (None,) * (axis + 1))[axis] == 1 for v in joined.inputs if v is not None)
        if not single or not _turns(node, axis, op.opset) or not used_once(joined.outputs[0]):
            return None
        turned: ir.Value = op.Concat(*reversed(list(joined.inputs)), axis=axis)
        return turned
    gathered, taken = producer(node.inputs[0], "Gather"), cuts(node, op.opset)
    if gathered is None or taken is None or len(taken) != 1 or not used_once(gathered.outputs[0]):
        return None
    x, places = gathered.inputs[0], numbers(operand(gathered, 1))
    dims = dims_of(x) if x is not None else None
    ((axis, cut),) = taken.items()
    if x is None or dims is None or not places or rank(operand(gathered, 1)) != 1:
        return None
    if int(attribute(gathered, "axis", op.opset)) % len(dims) != axis:
        return None
    end = None if cut.step < 0 and cut.end < -len(places) else cut.end  # to the first one, it included
    places = places[cut.start : end : cut.step]
    if not places:
        return None
    if places == list(range(len(places))) and dims[axis] == len(places):
        return x
    gathered_again: ir.Value = op.Gather(x, int64(places), axis=axis)
    return gathered_again


def _turns(node: ir.Node, axis: int, opset: int) -> bool:
    """Whether the node is a Slice that turns an axis around, all of it."""
    taken = cuts(node, opset) if node.op_type == "Slice" and node.domain == "" else None
    if taken is None or list(taken) != [axis]:
        return False
    cut, size = taken[axis], (dims_of(node.outputs[0]) or (None,) * (axis + 1))[axis]
    before = (dims_of(node.inputs[0]) or (None,) * (axis + 1))[axis] if node.inputs[0] is not None else None
    return cut.step == -1 and size is not None and size == before


@dataclass(frozen=True)
class _Element:
    """x at one position along an axis, which is put back elsewhere or in the place of an axis of size 1.

    Attributes:
        x: the tensor.
        axis: of `x`.
        index: the position.
        drop: the axis of `x`, of size 1, in whose place it is put.
    """

    x: ir.Value
    axis: int
    index: int
    drop: int | None = None


def _element(value: ir.Value | None, axis: int, opset: int) -> _Element | None:
    """The value as an element that a Concat along `axis` puts to others."""
    node = producer(value, "Gather", "Unsqueeze")
    added = node is not None and node.op_type == "Unsqueeze"
    if node is not None and added:
        axes = numbers(operand(node, 1)) if opset >= 13 else attribute(node, "axes", opset)
        if axes is None or from_front(axes, rank(value)) != [axis]:
            return None
        node = producer(node.inputs[0], "Gather")
    x = node.inputs[0] if node is not None else None
    dims = dims_of(x) if x is not None else None
    if node is None or x is None or dims is None or rank(operand(node, 1)) != 0:
        return None
    of, index = int(attribute(node, "axis", opset)) % len(dims), number(operand(node, 1))
    if not isinstance(index, int) or (index < 0 and not isinstance(dims[of], int)):
        return None
    if index < 0:
        index += dims[of]  # type: ignore[operator]
    if added:
        return _Element(x, of, index)
    unit = axis if axis < of else axis + 1
    return _Element(x, of, index, unit) if unit < len(dims) and dims[unit] == 1 else None
