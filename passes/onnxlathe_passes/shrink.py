"""Shrink: hard and soft shrinkage."""

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
    RuleSet,
    any_of,
    const,
    require,
)
from onnxlathe_passes.conditions import broadcasts_into, filled
from onnxlathe_passes.elementwise import number
from onnxlathe_passes.rectifiers import branches, single_type


def _limits(x: ir.Value, *limits: ir.Value) -> float:
    """The one positive number that all of these are, or are the negative of."""
    found = [abs(number(limit, x)) for limit in limits]
    require(found[0] > 0 and all(isclose(other, found[0]) for other in found), "its numbers differ")
    return found[0]


def _nothing(value: ir.Value, x: ir.Value) -> None:
    require(filled(value) == 0 and broadcasts_into(value, x), "it is not 0 in between")


class _Hard(Rule):
    """x where |x| > λ, else 0."""

    def pattern(
        self, op: PatternBuilder, x: Pattern, high: Pattern, low: Pattern, nothing: Pattern
    ) -> Pattern:
        high, low = const(high), const(low)
        above = any_of(op.Greater(x, high), op.Less(high, x))
        below = any_of(op.Less(x, low), op.Greater(low, x))
        size = op.Abs(x)
        return any_of(
            op.Where(op.Or(above, below), x, nothing),
            op.Where(any_of(op.Greater(size, high), op.Less(high, size)), x, nothing),
            op.Where(any_of(op.LessOrEqual(size, high), op.GreaterOrEqual(high, size)), nothing, x),
        )

    def rewrite(
        self,
        op: Builder,
        match: Match,
        x: ir.Value,
        high: ir.Value,
        nothing: ir.Value,
        low: ir.Value | None = None,
    ) -> Any:
        single_type(match)
        _nothing(nothing, x)
        require(
            number(high, x) > 0 and (low is None or number(low, x) < 0), "its numbers have the wrong sign"
        )
        return op.Shrink(x, lambd=_limits(x, high, *([low] if low is not None else [])), bias=0.0)


class _Halves(Rule):
    """x - λ where x > λ, plus x + λ where x < -λ, each else 0."""

    def pattern(
        self,
        op: PatternBuilder,
        x: Pattern,
        high: Pattern,
        low: Pattern,
        up: Pattern,
        down: Pattern,
        first: Pattern,
        second: Pattern,
    ) -> Any:
        lowered = any_of(op.Sub(x, const(down)), op.Add(x, const(down)), tag="added")
        raised = any_of(op.Add(x, const(up)), op.Sub(x, const(up)), tag="subtracted")
        return op.Add(
            branches(op, x, high, lowered, first, "above"), branches(op, x, low, second, raised, "below")
        )

    def rewrite(
        self,
        op: Builder,
        match: Match,
        x: ir.Value,
        high: ir.Value,
        low: ir.Value,
        up: ir.Value,
        down: ir.Value,
        first: ir.Value,
        second: ir.Value,
        added: int,
        subtracted: int,
    ) -> Any:
        single_type(match)
        _nothing(first, x)
        _nothing(second, x)
        signs = (number(high, x), -number(low, x), number(down, x) * (1 - 2 * added))
        require(
            all(sign > 0 for sign in (*signs, number(up, x) * (1 - 2 * subtracted))),
            "its numbers have the wrong sign",
        )
        limit = _limits(x, high, low, up, down)
        return op.Shrink(x, lambd=limit, bias=limit)


class _Signed(Rule):
    """x - sign(x)·λ where |x| > λ, else 0; sign(x)·relu(|x| - λ)."""

    def pattern(
        self, op: PatternBuilder, x: Pattern, high: Pattern, by: Pattern, nothing: Pattern
    ) -> Pattern:
        high, size = const(high), op.Abs(x)
        moved = op.Sub(x, op.Mul(op.Sign(x), const(by)))
        zero = any_of(op.Mul(x, 0.0), nothing)
        rest = op.Sub(size, high)
        return any_of(
            op.Where(any_of(op.Greater(size, high), op.Less(high, size)), moved, zero),
            op.Where(any_of(op.LessOrEqual(size, high), op.GreaterOrEqual(high, size)), zero, moved),
            op.Mul(op.Sign(x), any_of(op.Relu(rest), op.Max(rest, 0.0), op.Clip(rest, 0.0))),
        )

    def rewrite(
        self,
        op: Builder,
        match: Match,
        x: ir.Value,
        high: ir.Value,
        by: ir.Value | None = None,
        nothing: ir.Value | None = None,
    ) -> Any:
        single_type(match)
        if nothing is not None:
            _nothing(nothing, x)
        require(number(high, x) > 0 and (by is None or number(by, x) > 0), "its numbers have the wrong sign")
        limit = _limits(x, high, *([by] if by is not None else []))
        return op.Shrink(x, lambd=limit, bias=limit)


class Shrink(RuleSet):
    """Fuse x where |x| > λ, else 0, and sign(x)·max(|x| - λ, 0), into Shrink."""

    name = "shrink"
    group = "fuse"
    min_opset = 9
    example = """
    %y = Where(LessOrEqual(Abs(%x), 0.5), 0, %x)
    →
    %y = Shrink<bias=0, lambd=0.5>(%x)
    """

    steps = (_Hard(), _Halves(), _Signed())
