"""Bit operations on integers, which TensorRT has for booleans only, as arithmetic on single bits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import require
from onnxlathe_passes.legalize.draft import Draft, element_type, given, lowers
from onnxlathe_passes.legalize.integers import BITS, bits_of, floor_div, from_bits, is_signed, wrap

T = ir.DataType


@lowers("BitwiseNot")
def bitwise_not(op: Draft, node: ir.Node) -> ir.Value:
    """~x = -1 - x."""
    x = given(node, 0)
    require(element_type(x) in (T.INT8, T.INT32, T.INT64), "not a signed integer of TensorRT")
    result: ir.Value = op.Sub(op.like(np.int64(-1), x), x)
    return result


@lowers("BitwiseAnd", "BitwiseOr", "BitwiseXor")
def bitwise(op: Draft, node: ir.Node) -> ir.Value:
    """On single bits a and b: and is ab, or is a + b - ab, exclusive or is a + b - 2ab."""
    x, y = given(node, 0), given(node, 1)
    dtype = element_type(x)
    require(dtype in (T.INT32, T.INT64), "not an integer of TensorRT")
    left, right = bits_of(op, x), bits_of(op, y)

    def joined(a: ir.Value, b: ir.Value) -> ir.Value:
        both = op.Mul(a, b)
        if node.op_type == "BitwiseAnd":
            return both  # type: ignore[no-any-return]
        less = both if node.op_type == "BitwiseOr" else op.Mul(both, 2)
        return op.Sub(op.Add(a, b), less)  # type: ignore[no-any-return]

    return from_bits(op, joined(left[0], right[0]), joined(left[1], right[1]))


@lowers("BitShift")
def bit_shift(op: Draft, node: ir.Node) -> ir.Value:
    """Multiplication by, or division towards minus infinity by, a power of two from a table."""
    dtype = element_type(given(node, 0))
    require(dtype in (T.INT32, T.INT64), "not an integer of TensorRT")
    direction = node.attributes["direction"].value
    right = (direction.decode() if isinstance(direction, bytes) else direction) == "RIGHT"
    return shifted(op, given(node, 0), given(node, 1), dtype, right)


def shifted(op: Draft, x: ir.Value, y: ir.Value, dtype: ir.DataType, right: bool) -> ir.Value:
    """A shift of numbers of `dtype`, which `x` and `y` may carry in a wider type.

    Args:
        op: where to make it.
        x: what is shifted.
        y: by how much.
        dtype: the type that says how many bits there are.
        right: to the right: with the sign where the type has one.
    """
    bits = BITS[dtype]
    carrier = element_type(x)
    unsigned_long = dtype == T.UINT64
    beyond = op.Or(op.Less(y, 0), op.Not(op.Less(y, op.like(np.int64(bits), y))))
    amount = op.Where(beyond, op.like(np.int64(0), y), y)
    table = np.array([1 << k for k in range(bits)], dtype=object)
    if not right:
        powers = np.array([int(v) & ((1 << 64) - 1) for v in table], dtype=np.uint64).view(np.int64)
        power = op.Gather(op.constant(powers.astype(carrier.numpy())), op.cast(amount, T.INT64))
        result = wrap(op, op.Mul(x, power), dtype)
        zero: ir.Value = op.Where(beyond, op.like(np.int64(0), x), result)
        return zero
    # Shifting by bits - 1 would divide by the sign bit; one bit first, then the rest.
    first = op.Less(op.like(np.int64(0), amount), amount)
    half = floor_div(op, x, 2)
    if unsigned_long:
        half = op.Where(op.Less(x, 0), op.Sub(half, op.like(np.int64(-(2**63)), half)), half)
    start = op.Where(first, half, x)
    left_over = op.Where(first, op.Sub(amount, op.like(np.int64(1), amount)), amount)
    powers = np.array([int(v) for v in table[: bits - 1]], dtype=np.int64).astype(carrier.numpy())
    power = op.Gather(op.constant(powers), op.cast(left_over, T.INT64))
    quotient = op.Div(start, power)
    below = op.And(op.Less(start, 0), op.Not(op.Equal(op.Mul(quotient, power), start)))
    result = op.Where(below, op.Sub(quotient, op.like(np.int64(1), quotient)), quotient)
    fill = op.like(np.int64(0), x)
    if is_signed(dtype):
        fill = op.Where(op.Less(x, 0), op.like(np.int64(-1), x), fill)
    final: ir.Value = op.Where(beyond, fill, result)
    return final
