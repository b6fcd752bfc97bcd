"""The arithmetic of quantization, in float: exact, where TensorRT's own layers take only symmetric int8."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import constant
from onnxlathe_passes.legalize.draft import Draft, element_type, rank_of, static_dims
from onnxlathe_passes.legalize.integers import BITS, limits
from onnxlathe_passes.legalize.minifloat import FORMATS, rounded


def spread(op: Draft, scale: ir.Value, x: ir.Value, axis: int, block: int = 0) -> ir.Value:
    """A scale or zero point in a shape that broadcasts over `x`: per tensor, per axis or per block."""
    rank = rank_of(scale)
    if rank == 0 or (rank == 1 and static_dims(scale) == [1]):
        return scale if rank == 0 else op.reshape(scale, [])
    wide = rank_of(x)
    if block:
        axis %= wide
        dims, blocks = static_dims(x), static_dims(scale)
        repeated = op.Expand(
            op.unsqueeze(scale, axis + 1), op.ints([*blocks[: axis + 1], block, *blocks[axis + 1 :]])
        )
        joined = op.reshape(repeated, [*blocks[:axis], blocks[axis] * block, *blocks[axis + 1 :]])
        return joined if blocks[axis] * block == dims[axis] else op.slice(joined, axis, 0, dims[axis])
    if rank != 1:
        return scale
    axis %= wide
    return op.unsqueeze(scale, *range(1, wide - axis)) if axis < wide - 1 else scale


def quantize(
    op: Draft, x: ir.Value, scale: ir.Value, zero: ir.Value | None, to: ir.DataType, saturate: bool = True
) -> ir.Value:
    """The quantized numbers of `to`, in float32. Scale and zero point broadcast over `x`."""
    one = constant(scale)
    whole = one is not None and one.size == 1 and float(one.reshape(-1)[0]) == 1.0
    ratio = op.cast(x if whole else op.Div(x, op.cast(scale, element_type(x))), ir.DataType.FLOAT)
    if to in FORMATS:
        return rounded(op, ratio, to, saturate)
    level = op.Round(ratio)
    if zero is not None:
        level = op.Add(level, op.cast(zero, ir.DataType.FLOAT))
    low, high = limits(to)
    result: ir.Value = op.Clip(level, op.constant(np.float32(low)), op.constant(np.float32(high)))
    return result


def dequantize(op: Draft, x: ir.Value, scale: ir.Value, zero: ir.Value | None, to: ir.DataType) -> ir.Value:
    """`(x - zero) * scale`. Scale and zero point broadcast over `x`."""
    if zero is None:
        level = op.cast(x, ir.DataType.FLOAT)
    elif x.dtype in BITS and BITS[x.dtype] > 16:  # beyond the integers that float32 has
        level = op.cast(op.Sub(x, op.cast(zero, x.dtype)), ir.DataType.FLOAT)
    else:
        level = op.Sub(op.cast(x, ir.DataType.FLOAT), op.cast(zero, ir.DataType.FLOAT))
    product: ir.Value = op.Mul(level, op.cast(scale, ir.DataType.FLOAT))
    return op.cast(product, to)
