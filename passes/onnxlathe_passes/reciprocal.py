"""Products with a reciprocal."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe.rewrite import Builder, Match, Pattern, PatternBuilder, Rule, any_of
from onnxlathe_passes.elementwise import float_type


class Reciprocal(Rule):
    """x·(1/y) = x/y. So the spellings of RMS normalization become the one that every runtime fuses."""

    name = "reciprocal"
    group = "fuse"
    min_opset = 7
    example = """
    %r = Reciprocal(Sqrt(%v))
    %y = Mul(%x, %r)
    →
    %y = Div(%x, Sqrt(%v))
    """

    def pattern(self, op: PatternBuilder, x: Pattern, y: Pattern) -> Any:
        return op.Mul(x, any_of(op.Reciprocal(y), op.Div(1.0, y)))

    def check(self, match: Match) -> None:
        float_type(match)

    def rewrite(self, op: Builder, x: ir.Value, y: ir.Value) -> Any:
        return op.Div(x, y)
