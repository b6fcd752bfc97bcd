"""Integer arithmetic of one width inside a wider signed type, exact on overflow and for negative numbers.

Only Add, Sub, Mul, Div (which truncates), comparisons and Where are used: TensorRT computes these exactly in
int32 and int64, and wraps around where the wider type itself overflows. Its Mod has had wrong signs
(NVIDIA/TensorRT issue 4702), so it is not relied on.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxlathe_passes.legalize.draft import Draft, element_type

BITS = {
    ir.DataType.INT2: 2, ir.DataType.UINT2: 2, ir.DataType.INT4: 4, ir.DataType.UINT4: 4,
    ir.DataType.INT8: 8, ir.DataType.UINT8: 8, ir.DataType.INT16: 16, ir.DataType.UINT16: 16,
    ir.DataType.INT32: 32, ir.DataType.UINT32: 32, ir.DataType.INT64: 64, ir.DataType.UINT64: 64,
}  # fmt: skip


def is_signed(dtype: ir.DataType) -> bool:
    """Whether an integer type has negative numbers."""
    return not dtype.name.startswith("U")


def limits(dtype: ir.DataType) -> tuple[int, int]:
    """Smallest and largest number of an integer type."""
    bits = BITS[dtype]
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if is_signed(dtype) else (0, (1 << bits) - 1)


def floor_div(op: Draft, x: ir.Value, by: int) -> ir.Value:
    """`x // by` for a positive constant, rounding towards minus infinity."""
    quotient = op.Div(x, by)
    below = op.And(op.Less(x, 0), op.Not(op.Equal(op.Mul(quotient, by), x)))
    result: ir.Value = op.Where(below, op.Sub(quotient, 1), quotient)
    return result


def modulo(op: Draft, x: ir.Value, by: int) -> ir.Value:
    """`x mod by` for a positive constant, never negative."""
    rest = op.Sub(x, op.Mul(op.Div(x, by), by))
    result: ir.Value = op.Where(op.Less(rest, 0), op.Add(rest, by), rest)
    return result


def wrap(op: Draft, x: ir.Value, dtype: ir.DataType) -> ir.Value:
    """`x` as a number of the narrower `dtype` would have overflowed (two's complement)."""
    bits = BITS[dtype]
    if bits >= BITS[element_type(x)]:
        return x
    low, _ = limits(dtype)
    if low == 0:
        return modulo(op, x, 1 << bits)
    result: ir.Value = op.Add(modulo(op, op.Sub(x, low), 1 << bits), low)
    return result


def bits_of(op: Draft, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The bits of int32 or int64 numbers as 0 and 1 in their type: all but the sign along a new last axis,
    lowest first, and the sign."""
    dtype = element_type(x)
    powers = np.array([1 << k for k in range(BITS[dtype] - 1)], dtype=dtype.numpy())
    column = op.unsqueeze(x, -1)
    quotient = op.Div(column, op.constant(powers))
    below = op.And(op.Less(column, 0), op.Not(op.Equal(op.Mul(quotient, op.constant(powers)), column)))
    floor = op.Where(below, op.Sub(quotient, 1), quotient)
    bits = op.Sub(floor, op.Mul(floor_div(op, floor, 2), 2))
    return bits, op.cast(op.Less(x, 0), dtype)


def from_bits(op: Draft, bits: ir.Value, sign: ir.Value) -> ir.Value:
    """The numbers that have these bits (as `bits_of` gives them)."""
    dtype = element_type(bits)
    # Sums of 16 bits are exact whatever the kernel adds in; ONNX Runtime's adds int64 in double.
    count = BITS[dtype] - 1
    terms = op.Mul(bits, op.constant(np.array([1 << (k % 16) for k in range(count)], dtype=dtype.numpy())))
    low: ir.Value | None = None
    for start in reversed(range(0, count, 16)):
        part = op.reduce("Sum", op.slice(terms, -1, start, min(start + 16, count)), [-1], keepdims=False)
        low = part if low is None else op.Add(op.Mul(low, 1 << 16), part)
    lowest = np.int64(-(1 << (BITS[dtype] - 1)))
    result: ir.Value = op.Add(low, op.Mul(sign, op.like(lowest, sign)))
    return result


def flipped(op: Draft, x: ir.Value) -> ir.Value:
    """An unsigned 64-bit number held in int64, moved so that signed comparisons order it rightly."""
    result: ir.Value = op.Add(x, op.like(np.int64(-(2**63)), x))
    return result


def unsigned_div(op: Draft, x: ir.Value, y: ir.Value) -> ir.Value:
    """Division of unsigned 64-bit numbers held in int64 (Hacker's Delight, 9-3)."""
    small = op.Where(op.Less(y, 0), op.like(np.int64(1), y), y)
    half = op.Add(floor_div(op, x, 2), op.like(np.int64(0), x))
    half = op.Where(op.Less(x, 0), op.Sub(half, op.like(np.int64(-(2**63)), x)), half)
    estimate = op.Mul(op.Div(half, small), 2)
    rest = op.Sub(x, op.Mul(estimate, small))
    more = op.Not(op.Less(flipped(op, rest), flipped(op, small)))
    quotient = op.Add(estimate, op.Cast(more, to=int(ir.DataType.INT64)))
    large = op.Cast(op.Not(op.Less(flipped(op, x), flipped(op, y))), to=int(ir.DataType.INT64))
    result: ir.Value = op.Where(op.Less(y, 0), large, quotient)
    return result
