"""Functions that squash numbers: Sigmoid and Softsign."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe.rewrite import Builder, Match, Pattern, PatternBuilder, Rule, RuleSet, any_of, require, shared
from onnxlathe_passes.elementwise import float_type, halved


class _Quotient(Rule):
    """y/(1 + exp(-x)); Sigmoid does not overflow where exp(-x) does."""

    def pattern(self, op: PatternBuilder, x: Pattern, y: Pattern) -> Any:
        growth = op.Add(op.Exp(any_of(op.Neg(x), op.Mul(x, -1.0))), 1.0)
        return any_of(op.Reciprocal(growth), op.Div(1.0, growth), op.Div(y, growth), tag="form")

    def check(self, match: Match) -> None:
        float_type(match)

    def rewrite(self, op: Builder, x: ir.Value, form: int, y: ir.Value | None = None) -> Any:
        return op.Mul(y, op.Sigmoid(x)) if form == 2 else op.Sigmoid(x)


class _Exponentials(Rule):
    """exp(x)/(1 + exp(x))."""

    def pattern(self, op: PatternBuilder, x: Pattern) -> Any:
        growth = op.Exp(x)
        return op.Div(growth, op.Add(growth, 1.0))

    def check(self, match: Match) -> None:
        float_type(match)

    def rewrite(self, op: Builder, x: ir.Value) -> Any:
        return op.Sigmoid(x)


class _Tangent(Rule):
    """(tanh(x/2) + 1)/2."""

    def pattern(self, op: PatternBuilder, x: Pattern) -> Any:
        tangent = op.Tanh(halved(op, x))
        return any_of(halved(op, op.Add(tangent, 1.0)), op.Add(halved(op, tangent), 0.5))

    def check(self, match: Match) -> None:
        float_type(match)

    def rewrite(self, op: Builder, x: ir.Value) -> Any:
        return op.Sigmoid(x)


class _Softsign(Rule):
    """x/(1 + |x|)."""

    def pattern(self, op: PatternBuilder, x: Pattern) -> Any:
        return op.Div(x, op.Add(shared(op.Abs(x)), 1.0))

    def check(self, match: Match) -> None:
        require(float_type(match) != ir.DataType.DOUBLE, "its operator is rare for float64")

    def rewrite(self, op: Builder, x: ir.Value) -> Any:
        return op.Softsign(x)


class Sigmoid(RuleSet):
    """Fuse 1/(1 + exp(-x)), and (tanh(x/2) + 1)/2, into Sigmoid; x/(1 + |x|) into Softsign.

    y/(1 + exp(-x)) is y·sigmoid(x).
    """

    name = "sigmoid"
    group = "fuse"
    min_opset = 7
    example = """
    %y = Div(%x, Add(Exp(Neg(%x)), 1))
    →
    %y = Mul(%x, Sigmoid(%x))
    """

    steps = (_Exponentials(), _Quotient(), _Tangent(), _Softsign())
