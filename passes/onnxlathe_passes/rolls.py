"""Turning a tensor around along an axis."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, NodeRule, attribute
from onnxlathe_passes.conditions import producer, used_once
from onnxlathe_passes.slices import cuts


class Roll(NodeRule):
    """Concat(x[k:], x[:k]) = Gather(x, [k, k+1, …, n-1, 0, 1, …, k-1]).

    So windows are shifted. One step instead of three, which copies everything once.
    """

    name = "roll"
    group = "fuse"
    reach = 2
    example = """
    %a, %b = Split(%x, [3, 5], axis=1)
    %y = Concat(%b, %a, axis=1)
    →
    %y = Gather(%x, [3, 4, 5, 6, 7, 0, 1, 2], axis=1)
    """

    visits = ("Concat",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        if len(node.inputs) != 2:
            return None
        rank = len(dims_of(node.outputs[0]) or ())
        axis = int(attribute(node, "axis", op.opset)) % rank if rank else 0
        parts = [_part(value, axis, op.opset) for value in node.inputs]
        first, second = parts
        if first is None or second is None or first[0] is not second[0]:
            return None
        size = (dims_of(first[0]) or (None,) * rank)[axis]
        if second[1] != 0 or second[2] != first[1] or first[2] != size or not isinstance(size, int):
            return None
        # TensorRT makes a layer less of 32 bits.
        places = np.roll(np.arange(size, dtype=np.int32), -first[1])
        return op.Gather(first[0], places, axis=axis)


def _part(value: ir.Value | None, axis: int, opset: int) -> tuple[ir.Value, int, int] | None:
    """The value as positions from … to … along an axis of another value, where nothing else needs it."""
    node = producer(value, "Slice", "Split")
    x = node.inputs[0] if node is not None else None
    dims = dims_of(x) if x is not None else None
    if value is None or node is None or x is None or dims is None or not used_once(value):
        return None
    size = dims[axis]
    if node.op_type == "Slice":
        taken = cuts(node, opset)
        cut = taken[axis].normal(size) if taken is not None and set(taken) == {axis} else None
        if cut is None or cut.step != 1 or not isinstance(size, int):
            return None
        return x, min(cut.start, size), min(cut.end, size)
    if int(attribute(node, "axis", opset)) % len(dims) != axis or len(node.outputs) != 2:
        return None
    start = 0
    for output in node.outputs:
        width = (dims_of(output) or (None,) * len(dims))[axis]
        if not isinstance(width, int):
            return None
        if output is value:
            return x, start, start + width
        start += width
    return None
