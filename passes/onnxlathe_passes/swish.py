"""Swish, also known as SiLU."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe.rewrite import Builder, Match, Pattern, PatternBuilder, Rule, any_of, const
from onnxlathe_passes.elementwise import float_type, number


class Swish(Rule):
    """Fuse x·sigmoid(x), and x·sigmoid(α·x), into Swish."""

    name = "swish"
    group = "fuse"
    min_opset = 24
    example = """
    %y = Mul(%x, Sigmoid(Mul(%x, 1.702)))
    →
    %y = Swish<alpha=1.702>(%x)
    """

    def pattern(self, op: PatternBuilder, x: Pattern, alpha: Pattern) -> Any:
        return op.Mul(x, op.Sigmoid(any_of(op.Mul(x, const(alpha)), x, tag="plain")))

    def check(self, match: Match) -> None:
        float_type(match)

    def rewrite(self, op: Builder, x: ir.Value, plain: int, alpha: ir.Value | None = None) -> Any:
        return op.Swish(x, alpha=None if plain else number(alpha, x))
