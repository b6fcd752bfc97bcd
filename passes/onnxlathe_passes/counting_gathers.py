"""Gathers that take everything in the order in which it already lies."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe.infer import Dims, dims_of, set_dims
from onnxlathe.rewrite import Builder, NodeRule, attribute, reject, require
from onnxlathe_passes.conditions import from_front, int64, number, producer, used_once
from onnxlathe_passes.coordinates import Counters
from onnxlathe_passes.regroup import viewed
from onnxlathe_passes.views import unsqueeze

_FAR = 16


class CountingGather(NodeRule):
    """Gather(x, [[0, 1, …], [n, n+1, …], …]) = Reshape(x); GatherND(x, all coordinates) = x, or its first part.

    The indices are understood as expressions of their position, so that ranges over symbolic sizes, and what
    exporters make of x[batch, 0, 0, position], count as well.
    """

    name = "counting_gather"
    group = "fuse"
    min_opset = 11
    reach = 6
    example = """
    %i = Add(Mul(Unsqueeze(Range(0, %batch, 1), [1]), %seq), Range(0, %seq, 1))
    %y = Gather(Reshape(%x, [-1]), %i)              # x: [batch, seq]
    →
    %x
    """

    visits = ("Gather", "GatherND")

    def visit(self, op: Builder, node: ir.Node) -> Any:
        x, after = node.inputs[0], dims_of(node.outputs[0])
        before = dims_of(x) if x is not None else None
        if x is None or before is None or after is None or None in after:
            return None
        if node.op_type == "Gather":
            return self.gathered(op, node, x, before, after)
        require(not attribute(node, "batch_dims", op.opset), "it has batches")
        joined = producer(node.inputs[1], "Concat")
        if (
            joined is None
            or from_front([attribute(joined, "axis", op.opset)], len(dims_of(joined.outputs[0]) or ()))
            is None
        ):
            return None
        axes = len(dims_of(joined.outputs[0]) or ())
        if attribute(joined, "axis", op.opset) % axes != axes - 1:
            return None
        return self.taken(op, x, joined, before, after)

    def gathered(self, op: Builder, node: ir.Node, x: ir.Value, before: Dims, after: Dims) -> Any:
        """A Gather whose indices are 0, 1, 2, … up to the end of the axis."""
        axis = from_front([attribute(node, "axis", op.opset)], len(before))
        indices = Counters(op.opset).affine(node.inputs[1])
        if axis is None or indices is None or not indices.row_major:
            return None
        count: Any = 1
        for size in indices.dims:
            count = count * size
        require(before[axis[0]] == count, "it does not take all of the axis")
        return viewed(op, x, after)

    def taken(self, op: Builder, x: ir.Value, joined: ir.Node, before: Dims, after: Dims) -> Any:
        """A GatherND whose coordinates are the positions along axes of its result."""
        ways: list[int] = []
        ends: dict[int, ir.Node] = {}
        counters = Counters(op.opset)
        for place, part in enumerate(joined.inputs):
            coordinate = counters.affine(part)
            if coordinate is None or coordinate.dims[-1] != 1 or place >= len(before):
                return None
            along = [axis for axis, by in enumerate(coordinate.slope) if by != 0]
            if not along and before[place] == 1 and coordinate.base == 0:
                continue
            if len(along) != 1 or coordinate.base != 0 or coordinate.slope[along[0]] != 1:
                return None
            size = coordinate.dims[along[0]]
            if size != before[place]:
                counted = _range_of(part, size)
                if counted is None or not used_once(joined.outputs[0]):
                    reject("it does not take all of an axis")
                ends[place] = counted
            ways.append(along[0])
        require(ways == sorted(set(ways)), "it takes the axes in another order")
        positions = after[: len(after) - (len(before) - len(joined.inputs))]
        others = [size for axis, size in enumerate(positions) if axis not in ways]
        require(all(size == 1 for size in others), "it repeats what it takes")
        for place, counted in ends.items():
            before = (*before[:place], (dims_of(counted.outputs[0]) or ())[0], *before[place + 1 :])
            x = op.Slice(x, int64([0]), unsqueeze(op, counted.inputs[1], [0]), int64([place]))
            set_dims(x, before)
        return viewed(op, x, after)


def _range_of(value: ir.Value | None, size: Any) -> ir.Node | None:
    """The Range from which a coordinate of some size was made: its limit is that size."""
    work, seen = [value], 0
    while work and seen < _FAR:
        node = producer(work.pop(), "Range", "Unsqueeze", "Expand", "Reshape", "Squeeze", "Cast", "Identity")
        seen += 1
        if node is None:
            continue
        if node.op_type != "Range":
            work.append(node.inputs[0])
        elif dims_of(node.outputs[0]) == (size,) and (number(node.inputs[0]), number(node.inputs[2])) == (
            0,
            1,
        ):
            return node
    return None
