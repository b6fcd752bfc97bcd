"""Softplus."""

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
    require,
    shared,
)
from onnxlathe_passes.conditions import broadcasts_into
from onnxlathe_passes.elementwise import float_type, number, softplus

_FAR = 15.0  # from here on, log(1 + exp(x)) rounds to x in float32


class _Core(Rule):
    """log(1 + exp(x))."""

    def pattern(self, op: PatternBuilder, x: Pattern) -> Any:
        return softplus(op, x)

    def check(self, match: Match) -> None:
        float_type(match)

    def rewrite(self, op: Builder, x: ir.Value) -> Any:
        return op.Softplus(x)


class _Guarded(Rule):
    """Where(x·β > 20, x, softplus(x·β)/β) = softplus(x·β)/β: torch's guard against overflow."""

    def pattern(self, op: PatternBuilder, x: Pattern, z: Pattern, beta: Pattern, limit: Pattern) -> Any:
        limit, beta = const(limit), const(beta)
        plain = shared(op.Softplus(x, _name="curve"))
        scaled = shared(op.Mul(x, beta))
        curve = op.Softplus(scaled)
        wide = any_of(
            shared(op.Div(curve, const(z), _name="curve")),
            shared(op.Mul(curve, const(z), _name="curve")),
            tag="times",
        )
        return any_of(
            op.Where(op.Greater(x, limit), x, plain),
            op.Where(op.Greater(scaled, limit), x, wide),
            op.Where(op.LessOrEqual(x, limit), plain, x),
            op.Where(op.LessOrEqual(scaled, limit), wide, x),
        )

    def rewrite(
        self,
        op: Builder,
        match: Match,
        curve: ir.Node,
        x: ir.Value,
        limit: ir.Value,
        beta: ir.Value | None = None,
        z: ir.Value | None = None,
        times: int = 0,
    ) -> Any:
        require(float_type(match) != ir.DataType.DOUBLE, "softplus(20) is not 20 in float64")
        require(number(limit, x) >= _FAR and broadcasts_into(limit, x), "it ends where softplus(x) is not x")
        if beta is not None and z is not None:
            inverse = 1 / number(z, x) if not times else number(z, x)
            require(
                number(beta, x) > 0 and abs(number(beta, x) * inverse - 1) < 1e-6, "its factors do not cancel"
            )
        return curve.outputs[0]


class Softplus(RuleSet):
    """Fuse log(1 + exp(x)) into Softplus, which does not overflow where exp(x) does.

    So torch's choice of x where x > 20 is not needed.
    """

    name = "softplus"
    group = "fuse"
    example = """
    %y = Log(Add(Exp(%x), 1))
    →
    %y = Softplus(%x)
    """

    steps = (_Core(), _Guarded())
