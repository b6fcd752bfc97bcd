"""Mish."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe.rewrite import Builder, Match, Pattern, PatternBuilder, Rule, any_of, require, shared
from onnxlathe_passes.elementwise import float_type, softplus


class Mish(Rule):
    """Fuse x·tanh(softplus(x)) into Mish."""

    name = "mish"
    group = "fuse"
    min_opset = 18
    example = """
    %y = Mul(%x, Tanh(Softplus(%x)))
    →
    %y = Mish(%x)
    """

    def pattern(self, op: PatternBuilder, x: Pattern) -> Any:
        return op.Mul(x, op.Tanh(any_of(shared(op.Softplus(x)), softplus(op, x))))

    def check(self, match: Match) -> None:
        require(float_type(match) != ir.DataType.BFLOAT16, "TensorRT has no Mish for bfloat16")

    def rewrite(self, op: Builder, x: ir.Value) -> Any:
        return op.Mish(x)
