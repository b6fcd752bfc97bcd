"""HardSigmoid and HardSwish."""

from __future__ import annotations

from math import isclose
from typing import Any

import onnx_ir as ir

from onnxlathe.rewrite import (
    Builder,
    Match,
    Pattern,
    PatternBuilder,
    Rule,
    any_of,
    attr,
    const,
    require,
)
from onnxlathe_passes.elementwise import float_type, number, sixth


def relu6(op: PatternBuilder, x: Pattern) -> Pattern:
    """min(max(x, 0), 6), however it is spelled."""
    return any_of(
        op.Clip(x, 0.0, 6.0),
        op.Min(any_of(op.Relu(x), op.Max(x, 0.0)), 6.0),
        op.Max(op.Min(x, 6.0), 0.0),
        op.Clip(op.Relu(x), None, 6.0),
    )


class HardSigmoid(Rule):
    """Fuse clip(x + 3, 0, 6)/6, and clip(α·x + β, 0, 1), into HardSigmoid."""

    name = "hardsigmoid"
    group = "fuse"
    min_opset = 11
    example = """
    %y = Div(Clip(Add(%x, 3), 0, 6), 6)
    →
    %y = HardSigmoid<alpha=0.166667, beta=0.5>(%x)
    """

    def pattern(self, op: PatternBuilder, x: Pattern, alpha: Pattern, beta: Pattern) -> Pattern:
        line = op.Add(any_of(op.Mul(x, const(alpha)), op.Div(x, const(alpha)), tag="divided"), const(beta))
        return any_of(sixth(op, relu6(op, op.Add(x, 3.0))), op.Clip(line, 0.0, 1.0), tag="general")

    def check(self, match: Match) -> None:
        float_type(match)

    def rewrite(
        self,
        op: Builder,
        x: ir.Value,
        general: int,
        divided: int = 0,
        alpha: ir.Value | None = None,
        beta: ir.Value | None = None,
    ) -> Any:
        if not general:
            return op.HardSigmoid(x, alpha=1 / 6, beta=0.5)
        slope = number(alpha, x)
        require(slope or not divided, "it divides by zero")
        return op.HardSigmoid(x, alpha=1 / slope if divided else slope, beta=number(beta, x))


class HardSwish(Rule):
    """Fuse x·clip(x + 3, 0, 6)/6, and x·HardSigmoid(x) with α = 1/6, into HardSwish."""

    name = "hardswish"
    group = "fuse"
    min_opset = 14
    example = """
    %y = Div(Mul(%x, Clip(Add(%x, 3), 0, 6)), 6)
    →
    %y = HardSwish(%x)
    """

    def pattern(self, op: PatternBuilder, x: Pattern) -> Pattern:
        gate = relu6(op, op.Add(x, 3.0))
        sigmoid = op.HardSigmoid(x, alpha=attr("alpha"), beta=attr("beta"))
        return any_of(
            sixth(op, op.Mul(x, gate)),
            op.Mul(sixth(op, x), gate),
            op.Mul(x, sixth(op, gate)),
            op.Mul(x, sigmoid),
        )

    def check(self, match: Match, alpha: float = 1 / 6, beta: float = 0.5) -> None:
        require(float_type(match) != ir.DataType.BFLOAT16, "TensorRT has no HardSwish for bfloat16")
        require(isclose(alpha, 1 / 6, rel_tol=1e-4) and beta == 0.5, "its slope is not 1/6 about ½")

    def rewrite(self, op: Builder, x: ir.Value) -> Any:
        return op.HardSwish(x)
