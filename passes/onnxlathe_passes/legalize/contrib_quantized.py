"""ONNX Runtime's quantized operators beyond those by elements (com.microsoft): attention, embeddings, images.

Semantics: ContribOperators.md of ONNX Runtime, and what its CPU kernels do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import is_constant, require
from onnxlathe_passes.legalize.contrib import (
    attribute_of,
    first_rows,
    lengths_of,
    levels,
    normalized,
    real,
)
from onnxlathe_passes.legalize.contrib_attention import self_attended
from onnxlathe_passes.legalize.contrib_renamed import channels_moved
from onnxlathe_passes.legalize.draft import Draft, element_type, given, lowers, operand, static_dims
from onnxlathe_passes.weights import derived, tensor_of

T = ir.DataType
_MS = "com.microsoft"


@lowers(f"{_MS}::QAttention")
def q_attention(op: Draft, node: ir.Node) -> Sequence[ir.Value | None]:
    """Self-attention whose projection is a product of integers."""
    weights = given(node, 1)
    left = real(op, given(node, 0), given(node, 3), operand(node, 6))
    projected = op.MatMul(left, real(op, weights, given(node, 4), operand(node, 7)))
    projected = op.Add(projected, given(node, 2))
    sizes = [static_dims(weights)[1] // 3] * 3
    return self_attended(op, node, projected, sizes, operand(node, 5), operand(node, 8), None)


@lowers(f"{_MS}::QEmbedLayerNormalization")
def q_embed_layer_normalization(op: Draft, node: ir.Node) -> Sequence[ir.Value | None]:
    """The sum of three embeddings in tables of integers, normalized; and how long each sequence is."""
    ids, segments = given(node, 0), operand(node, 1)

    def floats(rows: ir.Value, which: int) -> ir.Value:
        return real(op, rows, given(node, 8 + which), given(node, 13 + which))

    total = floats(op.Gather(given(node, 2), ids, axis=0), 0)
    total = op.Add(total, op.unsqueeze(floats(first_rows(op, given(node, 3), ids), 1), 0))
    if segments is not None and operand(node, 4) is not None:
        total = op.Add(total, floats(op.Gather(given(node, 4), segments, axis=0), 2))
    gamma, beta = floats(given(node, 5), 3), floats(given(node, 6), 4)
    result = normalized(op, total, gamma, beta, float(attribute_of(node, "epsilon", 1e-12)), True)
    return [result, lengths_of(op, node, ids, operand(node, 7))]


@lowers(f"{_MS}::QLinearWhere")
def q_linear_where(op: Draft, node: ir.Node) -> ir.Value:
    """Dequantize both, choose, quantize."""
    x = real(op, given(node, 1), given(node, 2), operand(node, 3))
    y = real(op, given(node, 4), given(node, 5), operand(node, 6))
    chosen = op.Where(given(node, 0), x, y)
    return levels(op, chosen, given(node, 7), operand(node, 8), element_type(given(node, 1)))


@lowers(f"{_MS}::QLinearConv")
def q_linear_conv(op: Draft, node: ir.Node) -> ir.Value:
    """The operator of ONNX, of images whose channels may come last."""
    last = bool(attribute_of(node, "channels_last", 0))
    attributes = {k: a.value for k, a in node.attributes.items() if k != "channels_last"}
    operands = list(node.inputs)
    if last:
        operands[0] = channels_moved(op, given(node, 0), first=True)
    result = op.node("QLinearConv", operands, attributes).outputs[0]
    return channels_moved(op, result, first=False) if last else result


@lowers(f"{_MS}::NhwcMaxPool")
def nhwc_max_pool(op: Draft, node: ir.Node) -> ir.Value:
    """MaxPool of integers whose channels come last, computed in float."""
    x = given(node, 0)
    attributes = {k: a.value for k, a in node.attributes.items()}
    image = channels_moved(op, op.cast(x, T.FLOAT), first=True)
    pooled = op.node("MaxPool", [image], attributes).outputs[0]
    return op.cast(channels_moved(op, pooled, first=False), element_type(x))


# The numbers that four bits stand for (bitsandbytes): floats of three bits and a sign, and normal quantiles.
_FP4 = np.array([0, 0.0625 / 12, 8 / 12, 1, 4 / 12, 0.5, 2 / 12, 0.25], np.float32)
_CODES = (
    np.concatenate([_FP4, -_FP4]),
    np.array(
        [
            -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
            -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
            0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
            0.7229568362236023, 1.0,
        ],
        np.float32,
    ),
)  # fmt: skip


@lowers(f"{_MS}::MatMulBnb4")
def matmul_bnb4(op: Draft, node: ir.Node) -> ir.Value:
    """A MatMul with constant weights of four bits, each the number of an entry in a table; floats now."""
    x, packed, largest = given(node, 0), given(node, 1), given(node, 2)
    require(is_constant(packed) and is_constant(largest), "its weights are no constants")
    require(bool(attribute_of(node, "transB", 1)), "weights that lie the other way")
    depth, width = int(attribute_of(node, "K", 0)), int(attribute_of(node, "N", 0))
    block = int(attribute_of(node, "block_size", 0))
    code = _CODES[int(attribute_of(node, "quant_type", 1))]
    data, scales = tensor_of(packed), tensor_of(largest)

    def made() -> np.ndarray[Any, Any]:
        numbers = data.numpy().reshape(-1)
        entries = np.stack([numbers >> 4, numbers & 15], axis=1).reshape(-1)[: depth * width]
        factors = np.repeat(scales.numpy().astype(np.float32), block)[: depth * width]
        return np.asarray((code[entries] * factors).reshape(width, depth).T)

    product: ir.Value = op.MatMul(x, derived(op, x, (depth, width), made))
    return product
