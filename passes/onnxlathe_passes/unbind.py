"""The elements of an axis, one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, NodeRule, attribute
from onnxlathe_passes.conditions import from_front, numbers, operand, producer, used_once
from onnxlathe_passes.regroup import reshaped
from onnxlathe_passes.slices import cuts


class Unbind(NodeRule):
    """Squeeze(x[i:i+1]) = Gather(x, i), of a Slice, or of every part of a Split into parts of size 1.

    So does torch.export take queries, keys and values out of one tensor. A Reshape after a Slice may do more
    than to squeeze; it then stays.
    """

    name = "unbind"
    group = "fuse"
    min_opset = 2
    reach = 2
    example = """
    %a, %b = Split(%x, axis=0)                      # x: [2, batch, 64]
    %y = Squeeze(%a, [0]);  %z = Squeeze(%b, [0])
    →
    %y = Gather(%x, 0, axis=0);  %z = Gather(%x, 1, axis=0)
    """

    visits = ("Squeeze", "Reshape")

    def visit(self, op: Builder, node: ir.Node) -> Any:
        if (sliced := producer(node.inputs[0], "Slice")) is not None:
            return _element(op, node, sliced)
        split = producer(node.inputs[0], "Split")
        x = split.inputs[0] if split is not None else None
        dims = dims_of(x) if x is not None else None
        if split is None or x is None or dims is None:
            return None
        axis = int(attribute(split, "axis", op.opset)) % len(dims)
        if dims[axis] != len(split.outputs):
            return None
        for output in split.outputs:
            users = output.consumers()
            if output.is_graph_output() or any(
                not _squeezes(user, axis, len(dims), op.opset) for user in users
            ):
                return None
        place = list(split.outputs).index(node.inputs[0])  # type: ignore[arg-type]
        return op.Gather(x, np.array(place, np.int64), axis=axis)


def _element(op: Builder, node: ir.Node, sliced: ir.Node) -> Any:
    """The one element of an axis that a Slice takes and a Squeeze leaves without the axis."""
    x, taken = sliced.inputs[0], cuts(sliced, op.opset)
    dims = dims_of(x) if x is not None else None
    if x is None or dims is None or taken is None or len(taken) != 1 or not used_once(sliced.outputs[0]):
        return None
    ((axis, cut),) = taken.items()
    size = dims[axis]
    whole = cut.normal(size)
    if not isinstance(size, int) or whole is None or whole.step != 1:
        return None
    if min(whole.end, size) - whole.start != 1:
        return None
    squeezes = _squeezes(node, axis, len(dims), op.opset)
    after = dims_of(node.outputs[0])
    if not squeezes and (node.op_type == "Squeeze" or after in (None, dims_of(sliced.outputs[0]))):
        return None
    element = op.Gather(x, np.array(whole.start, np.int64), axis=axis)
    return (
        element
        if squeezes or after is None
        else reshaped(op, element, after, (*dims[:axis], *dims[axis + 1 :]))
    )


def _squeezes(node: ir.Node, axis: int, rank: int, opset: int) -> bool:
    """Whether the node takes away this axis and no other."""
    if node.domain == "" and node.op_type == "Reshape" and node.inputs[0] is not None:
        before, after = dims_of(node.inputs[0]), dims_of(node.outputs[0])
        return before is not None and None not in before and after == (*before[:axis], *before[axis + 1 :])
    if node.op_type != "Squeeze" or node.domain != "":
        return False
    axes = numbers(operand(node, 1)) if opset >= 13 else attribute(node, "axes", opset)
    return axes is not None and from_front(axes, rank) == [axis]
