"""Numbers of the small float formats (FP8, FP4, E8M0) inside float32: every one of them is a float32 number.

Rounding to such a format is exact: the spacing of the format around `|x|` is looked up by comparison with the
powers of two, `|x|` is divided by it (a power of two: no error), rounded half to even, and multiplied back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import require
from onnxlathe_passes.legalize.draft import Draft


@dataclass(frozen=True)
class Format:
    """A float format.

    Attributes:
        mantissa: bits of the mantissa that are stored.
        lowest: exponent of the smallest normal number.
        largest: largest finite number.
        infinite: has infinities.
        nan: has NaN.
        negative_zero: tells -0 from 0.
    """

    mantissa: int
    lowest: int
    largest: float
    infinite: bool
    nan: bool
    negative_zero: bool


FORMATS = {
    ir.DataType.FLOAT8E4M3FN: Format(3, -6, 448.0, False, True, True),
    ir.DataType.FLOAT8E4M3FNUZ: Format(3, -7, 240.0, False, True, False),
    ir.DataType.FLOAT8E5M2: Format(2, -14, 57344.0, True, True, True),
    ir.DataType.FLOAT8E5M2FNUZ: Format(2, -15, 57344.0, False, True, False),
    ir.DataType.FLOAT4E2M1: Format(1, 0, 6.0, False, False, True),
}


def rounded(op: Draft, x: ir.Value, to: ir.DataType, saturate: bool = True) -> ir.Value:
    """`x` (float32) rounded to the numbers of `to`, as Cast does it."""
    form = FORMATS[to]
    highest = int(np.floor(np.log2(form.largest)))
    powers = np.exp2(np.arange(form.lowest + 1, highest + 2, dtype=np.float64)).astype(np.float32)
    spacings = np.exp2(np.arange(form.lowest, highest + 2, dtype=np.float64) - form.mantissa).astype(
        np.float32
    )
    size = op.Abs(x)
    above = op.Cast(op.Not(op.Less(op.unsqueeze(size, -1), op.constant(powers))), to=int(ir.DataType.INT64))
    index = op.reduce("Sum", above, [-1], keepdims=False)
    spacing = op.Gather(op.constant(spacings), index)
    result = op.Mul(op.Round(op.Div(size, spacing)), spacing)
    over = op.Less(op.like(form.largest, x), result)  # NaN is not over anything
    beyond = float("inf") if form.infinite else float("nan")
    limit = form.largest if saturate or not form.nan else beyond
    result = op.Where(over, op.like(limit, x), result)
    negative = op.Less(x, 0.0)
    signed = op.Where(negative, op.Neg(result), result)
    if form.negative_zero:
        # Where x is ±0 the product keeps the sign; elsewhere the size of the result counts.
        signed = op.Where(op.Equal(x, 0.0), x, signed)
    else:
        signed = op.Where(op.Equal(result, 0.0), op.like(0.0, x), signed)
    unordered = op.IsNaN(x)
    # A format without NaN has no answer to it; -0 is what the onnx package gives.
    final: ir.Value = op.Where(unordered, x if form.nan else op.like(-0.0, x), signed)
    return final


def rounded_to_power(op: Draft, x: ir.Value, mode: str, saturate: bool) -> ir.Value:
    """`x` (float32, not negative) as E8M0, which has the powers of two from 2^-127 to 2^127 and NaN."""
    require(mode in ("up", "down", "nearest"), f"no rounding to E8M0 by {mode!r}")
    powers = np.exp2(np.arange(-127, 128, dtype=np.float64))
    if mode == "up":  # the first power that is not below x
        bounds, open_ended = powers[:-1], True
    elif mode == "down":
        bounds, open_ended = powers[1:], False
    else:  # halves go up, as 1.5 is nearest to even exponents in either reading of the specification
        bounds, open_ended = powers[:-1] * 1.5, False
    table = op.constant(bounds.astype(np.float32))
    column = op.unsqueeze(x, -1)
    passed = op.Less(table, column) if open_ended else op.Not(op.Less(column, table))
    index = op.reduce("Sum", op.Cast(passed, to=int(ir.DataType.INT64)), [-1], keepdims=False)
    result = op.Gather(op.constant(powers.astype(np.float32)), index)
    nan = op.like(float("nan"), x)
    largest = op.like(float(2.0**127), x)
    if not saturate:
        result = op.Where(op.Less(largest, x), nan, result)
        result = op.Where(op.Less(x, op.like(float(2.0**-127), x)), nan, result)
    final: ir.Value = op.Where(op.IsNaN(x), nan, result)
    return final
