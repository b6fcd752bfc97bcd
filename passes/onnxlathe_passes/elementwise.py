"""What patterns of elementwise arithmetic have in common."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Match, Pattern, PatternBuilder, any_of, reject, require, scalar_value, shared
from onnxlathe_passes.conditions import FLOATS


def halved(op: PatternBuilder, x: Pattern) -> Pattern:
    """x/2, as a product or a quotient."""
    return any_of(op.Mul(x, 0.5), op.Div(x, 2.0))


def halved_for_more(op: PatternBuilder, x: Pattern) -> Pattern:
    """x/2, which may be used for something else as well."""
    return any_of(shared(op.Mul(x, 0.5)), shared(op.Div(x, 2.0)))


def sixth(op: PatternBuilder, x: Pattern) -> Pattern:
    """x/6, as a product or a quotient."""
    return any_of(op.Mul(x, 1 / 6), op.Div(x, 6.0))


def squared(op: PatternBuilder, x: Pattern) -> Pattern:
    """x², as a power or a product."""
    return any_of(op.Pow(x, 2.0), op.Mul(x, x))


def squared_for_more(op: PatternBuilder, x: Pattern) -> Pattern:
    """x², which may be used for something else as well."""
    return any_of(shared(op.Pow(x, 2.0)), shared(op.Mul(x, x)))


def softplus(op: PatternBuilder, x: Pattern) -> Any:
    """log(1 + exp(x)); the power may be used for something else as well."""
    return op.Log(op.Add(shared(op.Exp(x)), 1.0))


def float_type(match: Match) -> ir.DataType:
    """The floating-point type that an elementwise match computes in.

    All tensors of such a match but conditions have one type, so any of them tells it. Integers do not match:
    ½ is 0 there.
    """
    values = (v for node in match.nodes for v in (*node.inputs, *node.outputs) if v is not None)
    found = next((v.dtype for v in values if v.dtype not in (None, ir.DataType.BOOL)), None)
    if found not in FLOATS:
        reject("its element type is not floating point, or not known")
    return found


def number(constant: ir.Value | None, x: ir.Value) -> float:
    """The one element of a constant that `x` is combined with; it must not add dimensions to `x`."""
    found = scalar_value(constant)
    if constant is None or found is None:
        reject("its factor is not one number")
    rank, dims = len(dims_of(constant) or ()), dims_of(x)
    require(rank == 0 or (dims is not None and rank <= len(dims)), "its factor broadcasts the other operand")
    return found
