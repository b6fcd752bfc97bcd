"""Functions of two branches, one for positive and one for negative numbers: Relu, LeakyRelu, PRelu, Elu."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe.rewrite import (
    Builder,
    Match,
    Pattern,
    PatternBuilder,
    Rule,
    RuleSet,
    any_of,
    const,
    reject,
    require,
    scalar_value,
    shared,
)
from onnxlathe_passes.conditions import broadcasts_into, filled, number
from onnxlathe_passes.elementwise import float_type


def single_type(match: Match) -> None:
    """These operators have kernels for float32 and halves only, on most targets."""
    require(float_type(match) != ir.DataType.DOUBLE, "its operator is rare for float64")


def branches(
    op: PatternBuilder, x: Pattern, bound: Pattern, above: Pattern, below: Pattern, tag: str = "turned"
) -> Pattern:
    """`above` where x is larger than `bound`, else `below`; `tag` is even where x at the bound is `below`."""
    bound = const(bound)
    return any_of(
        op.Where(any_of(shared(op.Greater(x, bound)), shared(op.Less(bound, x))), above, below),
        op.Where(any_of(shared(op.GreaterOrEqual(x, bound)), shared(op.LessOrEqual(bound, x))), above, below),
        op.Where(any_of(shared(op.LessOrEqual(x, bound)), shared(op.GreaterOrEqual(bound, x))), below, above),
        op.Where(any_of(shared(op.Less(x, bound)), shared(op.Greater(bound, x))), below, above),
        tag=tag,
    )


def _at_zero(bound: ir.Value, x: ir.Value) -> None:
    require(filled(bound) == 0 and broadcasts_into(bound, x), "its branches do not meet at 0")


def _leaky(op: Builder, x: ir.Value, slope: ir.Value, factor: float = 1.0) -> Any:
    """x where it is positive, else x·slope·factor."""
    value = number(slope)
    require(broadcasts_into(slope, x), "its slope broadcasts the other operand")
    if value is not None:
        return op.LeakyRelu(x, alpha=value * factor)
    require(factor == 1 and op.opset >= 9, "its slope is not one number")
    return op.PRelu(x, slope)


class _Leaky(Rule):
    """Where(x > 0, x, x·a)."""

    min_opset = 9

    def pattern(self, op: PatternBuilder, x: Pattern, slope: Pattern, bound: Pattern) -> Any:
        return branches(op, x, bound, x, op.Mul(x, const(slope)))

    def check(self, match: Match, bound: ir.Value, x: ir.Value) -> None:
        single_type(match)
        _at_zero(bound, x)

    def rewrite(self, op: Builder, x: ir.Value, slope: ir.Value) -> Any:
        return _leaky(op, x, slope)


class _Elu(Rule):
    """Where(x > 0, x, a·(exp(x) - 1))."""

    min_opset = 9

    def pattern(self, op: PatternBuilder, x: Pattern, alpha: Pattern, bound: Pattern) -> Any:
        grown = any_of(op.Sub(op.Exp(x), 1.0), op.Add(op.Exp(x), -1.0))
        return branches(op, x, bound, x, any_of(grown, op.Mul(grown, const(alpha))))

    def check(self, match: Match, bound: ir.Value, x: ir.Value, alpha: ir.Value | None = None) -> None:
        single_type(match)
        _at_zero(bound, x)
        require(
            alpha is None or (number(alpha) is not None and broadcasts_into(alpha, x)), "its factor varies"
        )

    def rewrite(self, op: Builder, x: ir.Value, alpha: ir.Value | None = None) -> Any:
        return op.Elu(x, alpha=None if alpha is None else float(number(alpha)))


class _Threshold(Rule):
    """Where(x > t, x, 0), and Relu where t is 0."""

    min_opset = 10

    def pattern(self, op: PatternBuilder, x: Pattern, bound: Pattern, nothing: Pattern) -> Any:
        return branches(op, x, bound, x, nothing)

    def check(self, match: Match, x: ir.Value, bound: ir.Value, nothing: ir.Value, turned: int) -> None:
        single_type(match)
        require(filled(nothing) == 0 and broadcasts_into(nothing, x), "its other branch is not 0")
        require(broadcasts_into(bound, x) and number(bound) is not None, "where it branches varies")
        require(number(bound) == 0 or turned % 2 == 0, "it includes where it branches")

    def rewrite(self, op: Builder, x: ir.Value, bound: ir.Value) -> Any:
        return op.ThresholdedRelu(x, alpha=float(number(bound))) if number(bound) else op.Relu(x)


class _Masked(Rule):
    """x·(x > t), the comparison as a number."""

    min_opset = 10

    def pattern(self, op: PatternBuilder, x: Pattern, bound: Pattern) -> Any:
        bound = const(bound)
        above = any_of(op.Greater(x, bound), op.Less(bound, x))
        return any_of(
            op.Mul(x, op.Cast(above)), op.Mul(x, op.Cast(op.GreaterOrEqual(x, bound))), tag="including"
        )

    def rewrite(self, op: Builder, match: Match, x: ir.Value, bound: ir.Value, including: int) -> Any:
        single_type(match)
        limit = number(bound)
        if limit is None:
            reject("where it branches varies")
        require(broadcasts_into(bound, x), "its bound broadcasts the other operand")
        require(limit == 0 or not including, "it includes where it branches")
        return op.ThresholdedRelu(x, alpha=float(limit)) if limit else op.Relu(x)


class _Sum(Rule):
    """relu(x) - a·relu(-x), and max(x, 0) + a·min(x, 0)."""

    def pattern(self, op: PatternBuilder, x: Pattern, slope: Pattern) -> Any:
        slope = const(slope)
        positive = any_of(op.Relu(x), op.Max(x, 0.0), op.Clip(x, 0.0))
        turned = any_of(op.Relu(op.Neg(x)), op.Max(op.Neg(x), 0.0))
        negative = any_of(op.Min(x, 0.0), op.Clip(x, None, 0.0), op.Neg(turned))
        return any_of(
            op.Sub(positive, op.Mul(turned, slope)),
            op.Add(positive, op.Mul(negative, slope)),
            op.Add(positive, op.Mul(turned, slope)),
            tag="negated",
        )

    def check(self, match: Match) -> None:
        single_type(match)

    def rewrite(self, op: Builder, x: ir.Value, slope: ir.Value, negated: int) -> Any:
        if negated == 2:
            return _leaky(op, x, slope, -1.0)
        return _leaky(op, x, slope)


class _Larger(Rule):
    """max(x, x·a) for 0 < a < 1."""

    min_opset = 8

    def pattern(self, op: PatternBuilder, x: Pattern, slope: Pattern) -> Any:
        return op.Max(x, op.Mul(x, const(slope)))

    def check(self, match: Match, slope: ir.Value) -> None:
        single_type(match)
        require(0 < (scalar_value(slope) or 0) < 1, "its slope is not between 0 and 1")

    def rewrite(self, op: Builder, x: ir.Value, slope: ir.Value) -> Any:
        return _leaky(op, x, slope)


class Rectifier(RuleSet):
    """Where(x > 0, x, y) = Relu, LeakyRelu, PRelu or Elu of x; Where(x > t, x, 0) = ThresholdedRelu(x).

    Also x·(x > 0), relu(x) - a·relu(-x), max(x, 0) + a·min(x, 0), and max(x, a·x). What is not a number may
    stay so where a comparison with it chose 0.
    """

    name = "rectifier"
    group = "fuse"
    min_opset = 7
    example = """
    %y = Where(Greater(%x, 0), %x, Mul(%x, 0.1))
    →
    %y = LeakyRelu<alpha=0.1>(%x)
    """

    steps = (_Leaky(), _Elu(), _Threshold(), _Masked(), _Sum(), _Larger())
