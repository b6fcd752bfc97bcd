"""Operators of ONNX Runtime (com.microsoft) that ONNX has, too; and group normalization of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import require
from onnxlathe_passes.legalize.contrib import attribute_of
from onnxlathe_passes.legalize.draft import (
    Draft,
    contents,
    element_type,
    extent,
    given,
    lowers,
    operand,
    rank_of,
    static_dims,
    wanted,
)

T = ir.DataType
_MS = "com.microsoft"


@lowers(f"{_MS}::Trilu", f"{_MS}::Pad", f"{_MS}::Range")
def standard(op: Draft, node: ir.Node) -> ir.Value:
    """The operator of the same name and meaning in ONNX."""
    operands = list(node.inputs)
    if node.op_type == "Range" and len(operands) == 2:
        operands.append(op.like(1, given(node, 0)))
    attributes = {k: a.value for k, a in node.attributes.items()}
    return op.node(node.op_type, operands, attributes).outputs[0]


@lowers(f"{_MS}::GatherND")
def gather_nd(op: Draft, node: ir.Node) -> ir.Value:
    """GatherND, whose indices are int64 in ONNX."""
    result: ir.Value = op.GatherND(given(node, 0), op.cast(given(node, 1), T.INT64))
    return result


@lowers(f"{_MS}::ExpandDims")
def expand_dims(op: Draft, node: ir.Node) -> ir.Value:
    """An axis of size one, where a constant says."""
    axis = int(contents(given(node, 1)).reshape(-1)[0])
    return op.unsqueeze(given(node, 0), axis)


def channels_moved(op: Draft, x: ir.Value, *, first: bool) -> ir.Value:
    """An image with its channels behind the batch, or at the end again."""
    rank = rank_of(x)
    order = [0, rank - 1, *range(1, rank - 1)] if first else [0, *range(2, rank), 1]
    result: ir.Value = op.Transpose(x, perm=order)
    return result


@lowers(f"{_MS}::NhwcConv")
def nhwc_conv(op: Draft, node: ir.Node) -> ir.Value:
    """Conv of an image whose channels come last, as those of the weights do.

    The documentation has weights as Conv takes them; ONNX Runtime's optimizer and kernel have their channels last.
    """
    image, weights = channels_moved(op, given(node, 0), first=True), given(node, 1)
    channels = extent(image, 1) // int(attribute_of(node, "group", 1))
    dims = static_dims(weights)
    if dims[-1] == channels:
        weights = channels_moved(op, weights, first=True)
    else:
        require(dims[1] == channels, "weights of another number of channels")
    attributes = {k: a.value for k, a in node.attributes.items()}
    result = op.node("Conv", [image, weights, *node.inputs[2:]], attributes).outputs[0]
    return channels_moved(op, result, first=False)


@lowers(f"{_MS}::GroupNorm", f"{_MS}::SkipGroupNorm")
def group_norm(op: Draft, node: ir.Node) -> Sequence[ir.Value | None]:
    """Normalization of groups of channels, after a sum with a shortcut and a bias, before SiLU; in float32."""
    x, gamma, beta = (given(node, i) for i in range(3))
    last = bool(attribute_of(node, "channels_last", 1))
    require(rank_of(x) == 4, "no image")
    skip, bias = operand(node, 3), operand(node, 4)
    if skip is not None:
        if rank_of(skip) == 2:
            skip = op.unsqueeze(skip, 1, 2) if last else op.unsqueeze(skip, 2, 3)
        x = op.Add(x, skip)
    if bias is not None:
        x = op.Add(x, bias if last else op.unsqueeze(bias, 1, 2))
    groups, channels = int(attribute_of(node, "groups", 1)), extent(gamma, 0)
    size = channels // groups
    wide = op.cast(x, T.FLOAT)
    shape, axes = ([0, -1, groups, size], [1, 3]) if last else ([0, groups, size, -1], [2, 3])
    parts = op.Reshape(wide, op.ints(shape))
    centered = op.Sub(parts, op.reduce("Mean", parts, axes))
    spread = op.reduce("Mean", op.Mul(centered, centered), axes)
    epsilon = float(attribute_of(node, "epsilon", 1e-5))
    normal = op.Div(centered, op.Sqrt(op.Add(spread, op.constant(np.float32(epsilon)))))
    normal = op.Reshape(normal, op.Shape(x))
    factor, offset = (op.cast(v, T.FLOAT) for v in (gamma, beta))
    if not last:
        factor, offset = op.unsqueeze(factor, 1, 2), op.unsqueeze(offset, 1, 2)
    result = op.Add(op.Mul(normal, factor), offset)
    if attribute_of(node, "activation", 0):
        result = op.Mul(result, op.Sigmoid(result))
    return [op.cast(result, element_type(x)), x if wanted(node, 1) else None]
