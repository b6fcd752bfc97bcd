"""ONNX Runtime's own operators (com.microsoft) in terms of ONNX: what its optimizer fused, taken apart.

Semantics: ContribOperators.md of ONNX Runtime. TensorRT knows none of these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import require
from onnxlathe_passes.legalize.draft import (
    Draft,
    element_type,
    given,
    lowers,
    operand,
    rank_of,
    static_dims,
    wanted,
)

T = ir.DataType
_MS = "com.microsoft"


def attribute_of(node: ir.Node, name: str, default: Any) -> Any:
    """An attribute, texts as such; `default` where it is left out."""
    own = node.attributes.get(name)
    if own is None:
        return default
    value = own.value
    return value.decode() if isinstance(value, bytes) else value


@lowers(f"{_MS}::FusedMatMul", f"{_MS}::TransposeMatMul")
def fused_matmul(op: Draft, node: ir.Node) -> ir.Value:
    """alpha * MatMul of operands whose last two (or first and last but one) axes are exchanged."""
    a, b = given(node, 0), given(node, 1)
    if attribute_of(node, "transBatchA", 0) or attribute_of(node, "transBatchB", 0):
        require(False, "exchanged batch axes")
    values = []
    for x, flag in ((a, "transA"), (b, "transB")):
        rank = rank_of(x)
        if attribute_of(node, flag, 0) and rank > 1:
            order = [*range(rank - 2), rank - 1, rank - 2]
            x = op.Transpose(x, perm=order)
        values.append(x)
    result: ir.Value = op.MatMul(*values)
    alpha = float(attribute_of(node, "alpha", 1.0))
    return result if alpha == 1.0 else op.Mul(result, op.like(alpha, result))


@lowers(f"{_MS}::Gelu", f"{_MS}::BiasGelu")
def gelu(op: Draft, node: ir.Node) -> ir.Value:
    """x * (1 + erf(x / sqrt 2)) / 2, after a bias."""
    x = given(node, 0)
    if node.op_type == "BiasGelu":
        x = op.Add(x, given(node, 1))
    half = op.Mul(x, op.like(0.5, x))
    result: ir.Value = op.Mul(half, op.Add(op.Erf(op.Mul(x, op.like(math.sqrt(0.5), x))), op.like(1.0, x)))
    return result


@lowers(f"{_MS}::FastGelu")
def fast_gelu(op: Draft, node: ir.Node) -> ir.Value:
    """The tanh approximation, after an optional bias."""
    x = given(node, 0)
    bias = operand(node, 1)
    if bias is not None:
        x = op.Add(x, bias)
    cube = op.Mul(op.Mul(x, x), x)
    inner = op.Mul(op.like(math.sqrt(2 / math.pi), x), op.Add(x, op.Mul(op.like(0.044715, x), cube)))
    result: ir.Value = op.Mul(op.Mul(op.like(0.5, x), x), op.Add(op.like(1.0, x), op.Tanh(inner)))
    return result


@lowers(f"{_MS}::QuickGelu")
def quick_gelu(op: Draft, node: ir.Node) -> ir.Value:
    """x * sigmoid(alpha * x)."""
    x = given(node, 0)
    alpha = float(attribute_of(node, "alpha", 1.702))
    result: ir.Value = op.Mul(x, op.Sigmoid(op.Mul(x, op.like(alpha, x))))
    return result


@lowers(f"{_MS}::BiasAdd")
def bias_add(op: Draft, node: ir.Node) -> ir.Value:
    """The sum of data, bias and skip."""
    result: ir.Value = op.Add(op.Add(given(node, 0), given(node, 1)), given(node, 2))
    return result


@lowers(f"{_MS}::BiasSplitGelu")
def bias_split_gelu(op: Draft, node: ir.Node) -> ir.Value:
    """The first half of x + bias times the Gelu of the second."""
    x = op.Add(given(node, 0), given(node, 1))
    half = static_dims(given(node, 1))[0] // 2
    left, right = op.slice(x, -1, 0, half), op.slice(x, -1, half, 2 * half)
    erf = op.Add(op.Erf(op.Mul(right, op.like(math.sqrt(0.5), x))), op.like(1.0, x))
    result: ir.Value = op.Mul(left, op.Mul(op.Mul(right, op.like(0.5, x)), erf))
    return result


def normalized(
    op: Draft, x: ir.Value, scale: ir.Value, bias: ir.Value | None, epsilon: float, centered: bool
) -> ir.Value:
    """Normalization over the last axis, computed in float32 where `x` is in half precision."""
    dtype = element_type(x)
    wide = op.cast(x, T.FLOAT) if dtype in (T.FLOAT16, T.BFLOAT16) else x
    if centered:
        wide = op.Sub(wide, op.reduce("Mean", wide, [-1]))
    variance = op.reduce("Mean", op.Mul(wide, wide), [-1])
    normal = op.Div(wide, op.Sqrt(op.Add(variance, op.like(epsilon, wide))))
    result = op.Mul(normal, op.cast(scale, element_type(wide)))
    if bias is not None:
        result = op.Add(result, op.cast(bias, element_type(wide)))
    return op.cast(result, dtype)


@lowers(f"{_MS}::SkipLayerNormalization", f"{_MS}::SkipSimplifiedLayerNormalization")
def skip_layer_normalization(op: Draft, node: ir.Node) -> Sequence[ir.Value | None]:
    """Normalization over the last axis of the sum of input, skip and bias; the sum is an output, too."""
    x, skip, scale = (given(node, i) for i in range(3))
    simplified = node.op_type == "SkipSimplifiedLayerNormalization"
    beta = None if simplified else operand(node, 3)
    bias = operand(node, 3 if simplified else 4)
    total = op.Add(x, skip)
    if bias is not None:
        total = op.Add(total, bias)
    result = normalized(op, total, scale, beta, float(attribute_of(node, "epsilon", 1e-12)), not simplified)
    return [result, None, None, total if wanted(node, 3) else None]


@lowers("SimplifiedLayerNormalization", f"{_MS}::SimplifiedLayerNormalization")
def simplified_layer_normalization(op: Draft, node: ir.Node) -> ir.Value:
    """Root mean square normalization over the last axis."""
    x = given(node, 0)
    axis = int(attribute_of(node, "axis", -1))
    require(axis in (-1, rank_of(x) - 1) and not wanted(node, 1), "over several axes, or with statistics")
    return normalized(op, x, given(node, 1), None, float(attribute_of(node, "epsilon", 1e-5)), False)


@lowers(f"{_MS}::EmbedLayerNormalization")
def embed_layer_normalization(op: Draft, node: ir.Node) -> Sequence[ir.Value | None]:
    """The sum of word, position and segment embeddings, normalized; and how long each sequence is."""
    ids, segments, segment = given(node, 0), operand(node, 1), operand(node, 4)
    position, places = given(node, 3), operand(node, 8)
    total = op.Gather(given(node, 2), ids, axis=0)
    if places is None:
        total = op.Add(total, op.unsqueeze(first_rows(op, position, ids), 0))
    else:
        total = op.Add(total, op.Gather(position, places, axis=0))
    if segments is not None and segment is not None:
        total = op.Add(total, op.Gather(segment, segments, axis=0))
    epsilon = float(attribute_of(node, "epsilon", 1e-12))
    result = normalized(op, total, given(node, 5), given(node, 6), epsilon, True)
    return [result, lengths_of(op, node, ids, operand(node, 7)), total if wanted(node, 2) else None]


def first_rows(op: Draft, table: ir.Value, ids: ir.Value) -> ir.Value:
    """As many rows of a table as a sequence has places."""
    result: ir.Value = op.Slice(table, op.ints([0]), op.Shape(ids, start=1, end=2), op.ints([0]))
    return result


def lengths_of(op: Draft, node: ir.Node, ids: ir.Value, mask: ir.Value | None) -> ir.Value | None:
    """How many places of each row a mask keeps, the second output of embeddings; zeros where there is no mask."""
    if not wanted(node, 1):
        return None
    counted = op.Mul(ids, 0) if mask is None else mask
    return op.reduce("Sum", op.cast(counted, T.INT32), [1], False)


_ACTIVATIONS = {"Relu", "Tanh", "Sigmoid"}


@lowers(f"{_MS}::FusedConv")
def fused_conv(op: Draft, node: ir.Node) -> ir.Value:
    """A convolution, a summand, an activation."""
    own = ("activation", "activation_params")
    attributes = {k: a.value for k, a in node.attributes.items() if k not in own}
    result = op.node("Conv", [given(node, 0), given(node, 1), operand(node, 2)], attributes).outputs[0]
    summand = operand(node, 3)
    if summand is not None:
        result = op.Add(result, summand)
    return _activated(
        op, result, attribute_of(node, "activation", ""), attribute_of(node, "activation_params", ())
    )


@lowers(f"{_MS}::FusedGemm")
def fused_gemm(op: Draft, node: ir.Node) -> ir.Value:
    """A Gemm and an activation."""
    attributes = {k: a.value for k, a in node.attributes.items() if not k.startswith("activation")}
    result = op.node("Gemm", list(node.inputs), attributes).outputs[0]
    parameters = [attribute_of(node, k, None) for k in ("activation_alpha", "activation_beta")]
    return _activated(
        op, result, attribute_of(node, "activation", ""), [p for p in parameters if p is not None]
    )


def _activated(op: Draft, x: ir.Value, kind: str, parameters: Sequence[float]) -> ir.Value:
    if not kind:
        return x
    if kind in _ACTIVATIONS:
        return op.node(kind, [x]).outputs[0]
    if kind == "LeakyRelu":
        return op.node(kind, [x], {"alpha": float(parameters[0]) if parameters else 0.01}).outputs[0]
    if kind == "Clip":
        low, high = parameters
        return op.node("Clip", [x, op.like(low, x), op.like(high, x)]).outputs[0]
    require(kind == "HardSigmoid", f"the activation {kind}")
    return op.node(kind, [x], {"alpha": float(parameters[0]), "beta": float(parameters[1])}).outputs[0]


# Quantized.


@lowers(f"{_MS}::QuantizeLinear", f"{_MS}::DequantizeLinear")
def standard_quantization(op: Draft, node: ir.Node) -> ir.Value:
    """The operators of the same name and meaning in ONNX."""
    axis = int(attribute_of(node, "axis", 1))
    return op.node(node.op_type, list(node.inputs), {"axis": axis}).outputs[0]


def real(op: Draft, x: ir.Value, scale: ir.Value, zero: ir.Value | None) -> ir.Value:
    """The numbers that quantized ones stand for."""
    level = op.cast(x, T.FLOAT)
    if zero is not None:
        level = op.Sub(level, op.cast(zero, T.FLOAT))
    result: ir.Value = op.Mul(level, scale)
    return result


def levels(op: Draft, x: ir.Value, scale: ir.Value, zero: ir.Value | None, to: ir.DataType) -> ir.Value:
    """Numbers quantized to an integer type."""
    from onnxlathe_passes.legalize.quantize import quantize

    return op.cast(quantize(op, x, scale, zero, to), to)


@lowers(f"{_MS}::QLinearAdd", f"{_MS}::QLinearMul")
def q_linear_binary(op: Draft, node: ir.Node) -> ir.Value:
    """Dequantize both, add or multiply, quantize."""
    a = real(op, given(node, 0), given(node, 1), operand(node, 2))
    b = real(op, given(node, 3), given(node, 4), operand(node, 5))
    result = op.node(node.op_type[7:], [a, b]).outputs[0]
    return levels(op, result, given(node, 6), operand(node, 7), element_type(given(node, 0)))


@lowers(f"{_MS}::QLinearSigmoid", f"{_MS}::QLinearLeakyRelu", f"{_MS}::QLinearSoftmax")
def q_linear_unary(op: Draft, node: ir.Node) -> ir.Value:
    """Dequantize, apply, quantize."""
    x = real(op, given(node, 0), given(node, 1), operand(node, 2))
    kind = node.op_type[7:]
    attributes: dict[str, Any] = {}
    if kind == "LeakyRelu":
        attributes["alpha"] = float(attribute_of(node, "alpha", 0.01))
    if kind == "Softmax":
        require(int(attribute_of(node, "opset", 13)) >= 13, "the old Softmax over flattened axes")
        attributes["axis"] = int(attribute_of(node, "axis", -1))
    result = op.node(kind, [x], attributes).outputs[0]
    return levels(op, result, given(node, 3), operand(node, 4), element_type(given(node, 0)))


@lowers(f"{_MS}::QLinearAveragePool", f"{_MS}::QLinearGlobalAveragePool")
def q_linear_pool(op: Draft, node: ir.Node) -> ir.Value:
    """Dequantize, average, quantize."""
    require(not attribute_of(node, "channels_last", 0), "channels last")
    x = real(op, given(node, 0), given(node, 1), operand(node, 2))
    attributes = {k: a.value for k, a in node.attributes.items() if k != "channels_last"}
    result = op.node(node.op_type[7:], [x], attributes).outputs[0]
    return levels(op, result, given(node, 3), operand(node, 4), element_type(given(node, 0)))


@lowers(f"{_MS}::QLinearConcat")
def q_linear_concat(op: Draft, node: ir.Node) -> ir.Value:
    """Dequantize each, join, quantize."""
    scale, zero = given(node, 0), given(node, 1)
    parts = []
    for i in range(2, len(node.inputs), 3):
        parts.append(real(op, given(node, i), given(node, i + 1), operand(node, i + 2)))
    joined = op.Concat(*parts, axis=int(attribute_of(node, "axis", 1)))
    return levels(op, joined, scale, zero, element_type(given(node, 2)))


@lowers(f"{_MS}::QGemm")
def q_gemm(op: Draft, node: ir.Node) -> ir.Value:
    """A Gemm of integers, whose bias has the product of the scales; quantized where an output scale is given."""
    a, a_scale, a_zero, b, b_scale, b_zero = (given(node, i) for i in range(6))
    left, right = op.cast(a, T.FLOAT), op.cast(b, T.FLOAT)
    if attribute_of(node, "transA", 0):
        left = op.Transpose(left, perm=[1, 0])
    if attribute_of(node, "transB", 0):
        right = op.Transpose(right, perm=[1, 0])
    # B has a zero point and a scale for each column of the product, whichever way it lies.
    total = op.MatMul(op.Sub(left, op.cast(a_zero, T.FLOAT)), op.Sub(right, op.cast(b_zero, T.FLOAT)))
    bias = operand(node, 6)
    if bias is not None:
        total = op.Add(total, op.cast(bias, T.FLOAT))
    scale = op.Mul(a_scale, b_scale)
    alpha = float(attribute_of(node, "alpha", 1.0))
    if alpha != 1.0:
        scale = op.Mul(op.like(alpha, scale), scale)
    y_scale = operand(node, 7)
    if y_scale is None:
        result: ir.Value = op.Mul(total, scale)
        return result
    # One multiplication and one rounding, as ONNX Runtime has it: numbers half way stay half way.
    numbers = op.Mul(total, op.Div(scale, y_scale))
    return levels(op, numbers, op.constant(np.float32(1)), operand(node, 8), element_type(node.outputs[0]))


@lowers(f"{_MS}::MatMulIntegerToFloat")
def matmul_integer_to_float(op: Draft, node: ir.Node) -> ir.Value:
    """A MatMul of integers, times both scales, and a bias."""
    a, b, a_scale, b_scale = (given(node, i) for i in range(4))
    product = op.MatMul(real(op, a, a_scale, operand(node, 4)), real(op, b, b_scale, operand(node, 5)))
    bias = operand(node, 6)
    result: ir.Value = product if bias is None else op.Add(product, bias)
    return result


@lowers(f"{_MS}::DynamicQuantizeMatMul")
def dynamic_quantize_matmul(op: Draft, node: ir.Node) -> ir.Value:
    """Quantize the left operand by its own range, multiply, scale."""
    from onnxlathe_passes.legalize.quantized import dynamic_levels

    a, b, b_scale = (given(node, i) for i in range(3))
    numbers, scale, zero = dynamic_levels(op, a)
    product = op.MatMul(real(op, numbers, scale, zero), real(op, b, b_scale, operand(node, 3)))
    bias = operand(node, 4)
    result: ir.Value = product if bias is None else op.Add(product, bias)
    return result
