"""Quantized operators: QLinear*, *Integer, dynamic quantization, and Q/DQ that TensorRT's own layers refuse."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import reject, require
from onnxlathe_passes.conditions import attributes_of
from onnxlathe_passes.legalize.draft import (
    FLOATS,
    Draft,
    element_type,
    extent,
    given,
    lowers,
    operand,
    rank_of,
    static_dims,
    value_of,
)
from onnxlathe_passes.legalize.integers import BITS
from onnxlathe_passes.legalize.minifloat import FORMATS
from onnxlathe_passes.legalize.quantize import dequantize, quantize, spread

T = ir.DataType
_EXACT = 256  # products of 8-bit numbers whose sum is an integer that float32 has: 256 * 255 * 255 < 2^24


def _centered(op: Draft, x: ir.Value, zero: ir.Value | None) -> ir.Value:
    """The integers `x - zero` as floats."""
    level = op.cast(x, T.FLOAT)
    result: ir.Value = level if zero is None else op.Sub(level, op.cast(zero, T.FLOAT))
    return result


@lowers("QLinearMatMul")
def q_linear_matmul(op: Draft, node: ir.Node) -> ir.Value:
    """A product of integers, one multiplication by all three scales, one rounding."""
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (given(node, i) for i in range(8))
    product = op.MatMul(_centered(op, a, _rows(op, a_zero)), _centered(op, b, b_zero))
    left, right, result = (op.cast(s, T.FLOAT) for s in (_rows(op, a_scale), b_scale, _rows(op, y_scale)))
    target = element_type(y_zero)
    factor = op.Div(op.Mul(left, right), result)
    levels = quantize(op, op.Mul(product, factor), op.constant(np.float32(1)), _rows(op, y_zero), target)
    return op.cast(levels, target)


def _rows(op: Draft, x: ir.Value) -> ir.Value:
    """One number a row stands in a column."""
    return op.unsqueeze(x, -1) if rank_of(x) == 1 and static_dims(x) != [1] else x


@lowers("QLinearConv")
def q_linear_conv(op: Draft, node: ir.Node) -> ir.Value:
    """A convolution of integers and an integer bias, one multiplication by all three scales, one rounding."""
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = (given(node, i) for i in range(8))
    bias = operand(node, 8)
    addend = None if bias is None else op.cast(bias, T.FLOAT)
    inputs = [_centered(op, x, x_zero), _centered(op, w, spread(op, w_zero, w, 0)), addend]
    total = op.node("Conv", inputs, attributes_of(node)).outputs[0]
    factor = op.Div(op.Mul(x_scale, w_scale), y_scale)
    if rank_of(factor) == 1 and static_dims(factor) != [1]:
        factor = op.unsqueeze(factor, *range(1, rank_of(w) - 1))
    target = element_type(y_zero)
    levels = quantize(op, op.Mul(total, factor), op.constant(np.float32(1)), y_zero, target)
    return op.cast(levels, target)


@lowers("MatMulInteger")
def matmul_integer(op: Draft, node: ir.Node) -> ir.Value:
    """A float MatMul of integers, in parts whose sums are exact."""
    a, b = given(node, 0), given(node, 1)
    left, right = op.cast(a, T.FLOAT), op.cast(b, T.FLOAT)
    a_zero, b_zero = operand(node, 2), operand(node, 3)
    if a_zero is not None:
        left = op.Sub(left, op.cast(_rows(op, a_zero), T.FLOAT))
    if b_zero is not None:
        right = op.Sub(right, op.cast(b_zero, T.FLOAT))
    axis = -2 if rank_of(b) > 1 else 0  # of B's rows
    depth = extent(b, axis)
    require(depth <= 64 * _EXACT, "too many summands for exact parts")
    if depth <= _EXACT:
        return op.cast(op.MatMul(left, right), T.INT32)
    total: ir.Value | None = None
    for start in range(0, depth, _EXACT):
        end = min(start + _EXACT, depth)
        part = op.MatMul(op.slice(left, -1, start, end), op.slice(right, axis, start, end))
        whole = op.cast(part, T.INT32)
        total = whole if total is None else op.Add(total, whole)
    assert total is not None
    return total


@lowers("ConvInteger")
def conv_integer(op: Draft, node: ir.Node) -> ir.Value:
    """A float Conv of integers, in parts of the channels whose sums are exact."""
    x, w = given(node, 0), given(node, 1)
    x_zero, w_zero = operand(node, 2), operand(node, 3)
    data, weights = op.cast(x, T.FLOAT), op.cast(w, T.FLOAT)
    if x_zero is not None:
        data = op.Sub(data, op.cast(x_zero, T.FLOAT))
    if w_zero is not None:
        weights = op.Sub(weights, op.cast(spread(op, w_zero, w, 0), T.FLOAT))
    _, channels, *kernel = static_dims(w)
    area = int(np.prod(kernel))
    if channels * area <= _EXACT:
        return op.cast(op.node("Conv", [data, weights], attributes_of(node)).outputs[0], T.INT32)
    require(int(value_of(node, "group", op, 1)) == 1 and area <= _EXACT, "too many summands for exact parts")
    step = _EXACT // area
    require(channels <= 64 * step, "too many summands for exact parts")
    total: ir.Value | None = None
    for start in range(0, channels, step):
        end = min(start + step, channels)
        part = [op.slice(data, 1, start, end), op.slice(weights, 1, start, end)]
        whole = op.cast(op.node("Conv", part, attributes_of(node)).outputs[0], T.INT32)
        total = whole if total is None else op.Add(total, whole)
    assert total is not None
    return total


@lowers("DynamicQuantizeLinear")
def dynamic_quantize_linear(op: Draft, node: ir.Node) -> Sequence[ir.Value]:
    """Scale and zero point from the range of the data, which is made to contain 0."""
    levels, scale, point = dynamic_levels(op, given(node, 0))
    return [op.cast(levels, T.UINT8), scale, op.cast(point, T.UINT8)]


def dynamic_levels(op: Draft, x: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """What DynamicQuantizeLinear gives, the numbers of uint8 as floats."""
    axes = list(range(rank_of(x)))
    zero = op.like(0.0, x)
    high = op.Max(op.reduce("Max", x, axes, keepdims=False), zero)
    low = op.Min(op.reduce("Min", x, axes, keepdims=False), zero)
    # Of zeros only, ONNX Runtime says 1; 0 / 0 would be NaN in everything that follows.
    scale = op.Div(op.Sub(high, low), op.like(255.0, x))
    scale = op.Where(op.Equal(high, low), op.like(1.0, x), scale)
    point = op.Clip(op.Round(op.Div(op.Sub(zero, low), scale)), zero, op.like(255.0, x))
    return quantize(op, x, scale, point, T.UINT8), scale, point


@lowers("DequantizeLinear")
def dequantize_in_float(op: Draft, node: ir.Node) -> ir.Value:
    """`(x - zero) * scale`: what TensorRT's layer is not for: uint8, int32, zero points, run-time scales."""
    x, scale = given(node, 0), given(node, 1)
    require(element_type(x) in (T.UINT8, T.INT8, T.INT32), "not an integer that TensorRT can cast")
    axis, block = int(value_of(node, "axis", op, 1)), int(value_of(node, "block_size", op, 0))
    zero = operand(node, 2)
    final = node.outputs[0].dtype or element_type(scale)
    spread_zero = None if zero is None else spread(op, zero, x, axis, block)
    return dequantize(op, x, spread(op, scale, x, axis, block), spread_zero, final)


@lowers("QuantizeLinear")
def quantize_in_float(op: Draft, node: ir.Node) -> ir.Value:
    """Divide, round half to even, add the zero point, saturate."""
    x, scale, zero = given(node, 0), given(node, 1), operand(node, 2)
    target = node.outputs[0].dtype
    if target not in (T.UINT8, T.INT8):
        reject("not a type that TensorRT can cast to")
    assert target in BITS or target in FORMATS
    axis, block = int(value_of(node, "axis", op, 1)), int(value_of(node, "block_size", op, 0))
    data = x if element_type(x) in FLOATS else op.cast(x, T.FLOAT)
    spread_zero = None if zero is None else spread(op, zero, x, axis, block)
    levels = quantize(op, data, spread(op, scale, x, axis, block), spread_zero, target)
    return op.cast(levels, target)
