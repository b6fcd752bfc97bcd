"""Root-mean-square normalization."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe.rewrite import Builder, Pattern, PatternBuilder, Rule, RuleSet, const
from onnxlathe_passes.elementwise import squared
from onnxlathe_passes.norms import TakeCasts, TakeScale, epsilon_of, mean, normalization, over_root, reduced


class _Core(Rule):
    """x/√(mean(x²) + ε) → RMSNormalization(x, 1)."""

    def pattern(self, op: PatternBuilder, x: Pattern, epsilon: Pattern, axes: Pattern) -> Pattern:
        power = mean(op, squared(op, x), axes, "axes")
        return over_root(op, x, op.Add(power, const(epsilon)))

    def rewrite(
        self, op: Builder, x: ir.Value, epsilon: ir.Value, axes: ir.Value | None, axes_attribute: Any
    ) -> Any:
        sizes = reduced(x, axes, axes_attribute)
        return normalization(op, "RMSNormalization", x, sizes, epsilon_of(epsilon))


class RMSNorm(RuleSet):
    """Fuse x/√(mean(x²) + ε)·scale over the last dimensions into RMSNormalization.

    The scale may be missing. Casts to float32 and back, as in Llama, go away: the operator computes in
    float32 anyhow.
    """

    name = "rmsnorm"
    group = "fuse"
    min_opset = 23
    example = """
    %r = Reciprocal(Sqrt(Add(ReduceMean(Pow(%x, 2), [-1]), 1e-6)))
    %y = Mul(%scale, Mul(%x, %r))
    →
    %y = RMSNormalization<axis=-1, epsilon=1e-6>(%x, %scale)
    """

    steps = (_Core(), TakeScale("RMSNormalization"), TakeCasts("RMSNormalization"))
