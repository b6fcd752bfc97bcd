"""GELU, in its exact form and in its tanh approximation."""

from __future__ import annotations

from math import pi, sqrt
from typing import Any

import onnx_ir as ir

from onnxlathe.rewrite import Builder, Match, Pattern, PatternBuilder, Rule, any_of, shared
from onnxlathe_passes.elementwise import float_type, halved, halved_for_more, squared_for_more


class Gelu(Rule):
    """Fuse x·½·(1 + erf(x/√2)), and the approximation by tanh, into Gelu.

    What comes first, such as x·½, may be used for something else as well; then it stays.
    """

    name = "gelu"
    group = "fuse"
    min_opset = 20
    example = """
    %y = Mul(Mul(%x, 0.5), Add(Erf(Div(%x, 1.414214)), 1))
    →
    %y = Gelu(%x)
    """

    def pattern(self, op: PatternBuilder, x: Pattern) -> Pattern:
        erf = op.Erf(any_of(shared(op.Mul(x, sqrt(0.5))), shared(op.Div(x, sqrt(2.0)))))
        return any_of(_gated(op, x, erf), _gated(op, x, _tanh(op, x)), tag="form")

    def check(self, match: Match) -> None:
        float_type(match)

    def rewrite(self, op: Builder, x: ir.Value, form: int) -> Any:
        return op.Gelu(x, approximate="tanh" if form else None)


def _gated(op: PatternBuilder, x: Pattern, gate: Pattern) -> Pattern:
    """x·½·(1 + gate), however it is factored."""
    open_gate = op.Add(gate, 1.0)
    return any_of(
        halved(op, op.Mul(x, open_gate)),
        op.Mul(halved_for_more(op, x), open_gate),
        op.Mul(x, halved(op, open_gate)),
        op.Mul(x, op.Add(halved(op, gate), 0.5)),
    )


def _tanh(op: PatternBuilder, x: Pattern) -> Any:
    """tanh(√(2/π)·(x + 0.044715·x³)), also with x taken out of the sum."""
    outer, inner = sqrt(2 / pi), 0.044715
    square = squared_for_more(op, x)
    cube = any_of(shared(op.Pow(x, 3.0)), shared(op.Mul(square, x)))
    cubic = any_of(op.Mul(cube, inner), op.Mul(op.Mul(x, inner), square), op.Mul(op.Mul(square, inner), x))
    bracket = op.Add(op.Mul(square, inner), 1.0)
    return op.Tanh(
        any_of(
            op.Mul(op.Add(x, cubic), outer),
            op.Mul(op.Mul(x, bracket), outer),
            op.Mul(op.Mul(x, outer), bracket),
            op.Mul(x, op.Mul(bracket, outer)),
        )
    )
