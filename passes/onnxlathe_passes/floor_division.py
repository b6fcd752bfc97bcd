"""Divisions of integers that round down, where nothing is negative."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import constant
from onnxlathe.rewrite import Builder, NodeRule, attribute, is_constant
from onnxlathe_passes.conditions import operand, producer, same_shape

_DEEP = 12
_INTEGERS = frozenset({ir.DataType.INT32, ir.DataType.INT64})
_COUNTS = frozenset({"ArgMax", "ArgMin", "Shape", "Size", "NonZero", "Abs"})
_MOVES = frozenset(
    {
        *(
            "Identity",
            "Reshape",
            "Flatten",
            "Squeeze",
            "Unsqueeze",
            "Transpose",
            "Expand",
            "Tile",
            "Slice",
            "Split",
        ),
        *("Gather", "GatherElements", "GatherND", "ReduceSum", "ReduceMax", "ReduceMin", "Cast", "Clip"),
    }
)
_COMBINED = frozenset({"Add", "Mul", "Min", "Concat"})


class FloorDivision(NodeRule):
    """x/n - (x < 0 and x mod n ≠ 0) = x/n, for integers x that are never negative, such as indices.

    So does torch.export round down, what the operator rounds towards zero.
    """

    name = "floor_division"
    group = "fuse"
    min_opset = 10
    reach = 8
    example = """
    %v, %i = TopK(%x, 8)
    %c = And(Less(%i, 0), Cast<to=BOOL>(Mod(%i, 5)))
    %y = Sub(Div(%i, 5), Cast<to=INT64>(%c))
    →
    %y = Div(%i, 5)
    """

    visits = ("Sub",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        quotient, rest = node.inputs
        cast = producer(rest, "Cast")
        if quotient is None or cast is None or node.outputs[0].dtype not in _INTEGERS:
            return None
        divided = producer(quotient, "Div")
        condition = cast.inputs[0]
        if divided is None or condition is None or condition.dtype != ir.DataType.BOOL:
            return None
        if not same_shape(quotient, node.outputs[0]) or not _never(condition, op.opset):
            return None
        # A result of its own, so that the node that is left stands where it was.
        return op.Div(*divided.inputs)


def _never(value: ir.Value | None, opset: int, depth: int = 0) -> bool:
    """Whether a condition is false everywhere in every run."""
    if value is None or depth > _DEEP:
        return False
    if is_constant(value):
        array = constant(value)
        return array is not None and not array.any()
    node = producer(
        value, "And", "Equal", "Less", "Greater", "Xor", "Identity", "Unsqueeze", "Reshape", "Expand"
    )
    if node is None:
        return False
    if node.op_type in ("Less", "Greater"):
        x, bound = node.inputs if node.op_type == "Less" else node.inputs[::-1]
        limit = _numbers(bound)
        return limit is not None and bool((limit <= 0).all()) and not_negative(x, opset, depth + 1)
    conditions = [_never(v, opset, depth + 1) for v in node.inputs]
    if node.op_type == "And":
        return any(conditions)
    if node.op_type == "Xor":
        return all(conditions)
    if node.op_type == "Equal":
        pairs = zip(conditions, node.inputs[::-1], strict=True)
        return any(never and _holds(other) for never, other in pairs)
    return conditions[0]


def _holds(value: ir.Value | None) -> bool:
    """Whether a constant condition is true everywhere."""
    array = constant(value) if value is not None and is_constant(value) else None
    return array is not None and array.dtype == np.bool_ and bool(array.all())


def not_negative(value: ir.Value | None, opset: int, depth: int = 0) -> bool:
    """Whether integers are 0 or more in every run, unless they overflow."""
    if value is None or depth > _DEEP or value.dtype not in (*_INTEGERS, ir.DataType.BOOL):
        return False
    if value.dtype == ir.DataType.BOOL:
        return True
    if (array := _numbers(value)) is not None:
        return bool((array >= 0).all())
    node = value.producer()
    if node is None or node.domain != "":
        return False
    if node.op_type in _COUNTS or (node.op_type == "TopK" and value.index() == 1):
        return True
    below = [v for v in node.inputs if v is not None]
    if node.op_type in _MOVES:
        return not_negative(below[0], opset, depth + 1)
    if node.op_type in _COMBINED:
        return all(not_negative(v, opset, depth + 1) for v in below)
    if node.op_type == "Max":
        return any(not_negative(v, opset, depth + 1) for v in below)
    if node.op_type == "Where":
        return all(not_negative(v, opset, depth + 1) for v in below[1:])
    if node.op_type == "Range":
        start, _, step = (_numbers(operand(node, i)) for i in range(3))
        return start is not None and step is not None and bool((start >= 0).all() and (step > 0).all())
    if node.op_type in ("Div", "Mod"):
        by = _numbers(below[1])
        if by is None or not (by > 0).all():
            return False
        rounded = node.op_type == "Mod" and not attribute(node, "fmod", opset)
        return rounded or not_negative(below[0], opset, depth + 1)
    return False


def _numbers(value: ir.Value | None) -> np.ndarray[Any, np.dtype[Any]] | None:
    array = constant(value) if value is not None and is_constant(value) else None
    return None if array is None or array.dtype.kind not in "iu" else array
