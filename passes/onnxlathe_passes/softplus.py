"""Softplus."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe.rewrite import Builder, Match, Pattern, PatternBuilder, Rule
from onnxlathe_passes.elementwise import float_type, softplus


class Softplus(Rule):
    """Fuse log(1 + exp(x)) into Softplus, which does not overflow where exp(x) does."""

    name = "softplus"
    group = "fuse"
    example = """
    %y = Log(Add(Exp(%x), 1))
    →
    %y = Softplus(%x)
    """

    def pattern(self, op: PatternBuilder, x: Pattern) -> Any:
        return softplus(op, x)

    def check(self, match: Match) -> None:
        float_type(match)

    def rewrite(self, op: Builder, x: ir.Value) -> Any:
        return op.Softplus(x)
