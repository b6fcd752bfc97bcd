"""Factors on both sides of a sum, a square or a product, joined to one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import Builder, NodeRule
from onnxlathe_passes.conditions import FLOATS, Array, number, producer, used_once
from onnxlathe_passes.constant_chains import HALF_RANGE, joined, moderate, with_constant

_GRID = 1 << 20  # bytes: what a detector adds to boxes is one number for each of them


class AffineChain(NodeRule):
    """(x·a + b)·c = x·(a·c) + b·c; (x·a)²·c = x²·(a²·c), with constant a, b, c.

    For floating point, where the constants are far from the limits of their type, and x is no power.
    """

    name = "affine_chain"
    group = "fuse"
    min_opset = 7
    reach = 3
    example = """
    %y = Mul(Add(Mul(%x, 2), -0.5), 8)
    →
    %y = Add(Mul(%x, 16), -4)
    """

    visits = ("Mul",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        outer = with_constant(node)
        if outer is None or outer[0].dtype not in FLOATS or not used_once(outer[0]):
            return None
        middle, c = outer[0].producer(), outer[1]
        if middle is None or middle.domain != "":
            return None
        if middle.op_type == "Pow":
            return self.square(op, middle, c)
        summed = with_constant(middle, _GRID) if middle.op_type == "Add" else None
        inner = _scaled(summed[0]) if summed is not None else None
        if summed is None or inner is None:
            return None
        (x, a), b = inner, summed[1]
        power = producer(x, "Mul", "Pow")
        if power is not None and (power.op_type == "Pow" or power.inputs[0] is power.inputs[1]):
            return None  # a polynomial, such as that of GELU, which everyone knows by its usual spelling
        factor, term = _product(a, c, x.dtype), _product(b, c, x.dtype)
        if factor is None or term is None or term.size > b.size or not a.all():
            return None
        return op.Add(op.Mul(x, op.constant(factor, x.dtype)), op.constant(term, x.dtype))

    def square(self, op: Builder, power: ir.Node, c: Array) -> Any:
        inner = _scaled(power.inputs[0]) if number(power.inputs[1]) == 2 else None
        if inner is None:
            return None
        x, a = inner
        twice = _product(a, a, x.dtype)
        factor = _product(twice, c, x.dtype) if twice is not None else None
        if factor is None:
            return None
        return op.Mul(op.Pow(x, power.inputs[1]), op.constant(factor, x.dtype))


class TwoFactors(NodeRule):
    """MatMul(x·a, y·b) = MatMul(x·(a·b), y), for numbers a and b.

    So does torch.export divide the scale of attention between queries and keys.
    """

    name = "two_factors"
    group = "fuse"
    min_opset = 7
    example = """
    %y = MatMul(Mul(%q, 0.25), Mul(%k, 0.25))
    →
    %y = MatMul(Mul(%q, 0.0625), %k)
    """

    visits = ("MatMul",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        left, right = (_scaled(value) for value in node.inputs)
        if left is None or right is None or left[1].size != 1 or right[1].size != 1:
            return None
        if left[1].ndim > 1 or right[1].ndim > 1:
            return None
        factor = _product(left[1], right[1], left[0].dtype)
        if factor is None:
            return None
        return op.MatMul(op.Mul(left[0], op.constant(factor, left[0].dtype)), right[0])


def _scaled(value: ir.Value | None) -> tuple[ir.Value, Array] | None:
    """What a value is a constant multiple of, and the constant, where nothing else needs the value."""
    node = producer(value, "Mul")
    if value is None or node is None or not used_once(value) or value.dtype not in FLOATS:
        return None
    return with_constant(node)


def _product(a: Array, b: Array, dtype: ir.DataType | None) -> Array | None:
    """The constants multiplied, where all of them are moderate."""
    assert dtype is not None
    limit = HALF_RANGE[dtype]
    result = joined(a, b, np.multiply, dtype) if moderate([a, b], limit, from_below=True) else None
    return result if result is not None and moderate([result], limit, from_below=True) else None
