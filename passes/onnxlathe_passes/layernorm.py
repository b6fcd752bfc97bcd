"""Layer normalization."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe.rewrite import Builder, Pattern, PatternBuilder, Rule, RuleSet, require
from onnxlathe_passes.norms import (
    TakeBias,
    TakeCasts,
    TakeScale,
    epsilon_of,
    normalization,
    reduced,
    standardized,
)


class _Core(Rule):
    """c/√(mean(c²) + ε) with c = x - mean(x) → LayerNormalization(x, 1)."""

    def pattern(
        self, op: PatternBuilder, x: Pattern, epsilon: Pattern, axes1: Pattern, axes2: Pattern, axes3: Pattern
    ) -> Pattern:
        return standardized(op, x, epsilon, axes1, axes2, axes3)

    def rewrite(
        self,
        op: Builder,
        x: ir.Value,
        epsilon: ir.Value,
        axes1: ir.Value | None,
        axes2: ir.Value | None,
        axes1_attribute: Any,
        axes2_attribute: Any,
        axes3: ir.Value | None = None,
        axes3_attribute: Any = None,
    ) -> Any:
        sizes = reduced(x, axes1, axes1_attribute)
        require(
            reduced(x, axes2, axes2_attribute) == sizes, "its mean and its variance are over different axes"
        )
        if axes3 is not None or axes3_attribute:
            require(reduced(x, axes3, axes3_attribute) == sizes, "its two means are over different axes")
        return normalization(op, "LayerNormalization", x, sizes, epsilon_of(epsilon))


class LayerNorm(RuleSet):
    """Fuse (x - mean)/√(variance + ε)·scale + bias over the last dimensions into LayerNormalization.

    Scale and bias may be missing, or be taken in by a LayerNormalization that is already there. Casts to
    float32 and back around it go away, since the operator computes in float32 anyhow.
    """

    name = "layernorm"
    group = "fuse"
    min_opset = 17
    example = """
    %c = Sub(%x, ReduceMean(%x, [-1]))
    %s = Sqrt(Add(ReduceMean(Pow(%c, 2), [-1]), 1e-5))
    %y = Add(Mul(Div(%c, %s), %scale), %bias)
    →
    %y = LayerNormalization<axis=-1, epsilon=1e-5>(%x, %scale, %bias)
    """

    steps = (_Core(), TakeScale(), TakeBias(), TakeCasts())
