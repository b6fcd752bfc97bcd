"""Instance normalization."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import (
    Builder,
    Match,
    Pattern,
    PatternBuilder,
    Rule,
    RuleSet,
    any_of,
    attr,
    attribute,
    const,
    reject,
    require,
)
from onnxlathe_passes.channel_norms import TakeAffine, per_channel
from onnxlathe_passes.conditions import filled, numbers
from onnxlathe_passes.elementwise import float_type
from onnxlathe_passes.norms import epsilon_of, standardized


def _normalized(op: Builder, match: Match, x: ir.Value, epsilon: float, factor: Any, shift: Any) -> Any:
    """InstanceNormalization of `x`, its scale and bias given per channel or as one number."""
    require(float_type(match) != ir.DataType.DOUBLE, "its operator is rare for float64")
    dims = dims_of(x)
    if dims is None or len(dims) < 3 or not isinstance(dims[1], int):
        reject("how many channels there are is not known")
    weights = [op.constant(np.broadcast_to(array, dims[1]), x.dtype) for array in (factor, shift)]
    return op.InstanceNormalization(x, *weights, epsilon=epsilon)


class _Core(Rule):
    """c/√(mean(c²) + ε) with c = x - mean(x), over all axes but those of batch and channels."""

    def pattern(
        self, op: PatternBuilder, x: Pattern, epsilon: Pattern, axes1: Pattern, axes2: Pattern, axes3: Pattern
    ) -> Pattern:
        return standardized(op, x, epsilon, axes1, axes2, axes3)

    def rewrite(
        self,
        op: Builder,
        match: Match,
        x: ir.Value,
        epsilon: ir.Value,
        axes1: ir.Value | None,
        axes2: ir.Value | None,
        axes1_attribute: Any,
        axes2_attribute: Any,
        axes3: ir.Value | None = None,
        axes3_attribute: Any = None,
    ) -> Any:
        rank = len(dims_of(x) or ())
        given = [(axes1, axes1_attribute), (axes2, axes2_attribute)]
        given += [(axes3, axes3_attribute)] if axes3 is not None or axes3_attribute else []
        for axes, listed in given:
            found = numbers(axes) if axes is not None else listed
            require(
                rank > 2 and found and sorted(a % rank for a in found) == list(range(2, rank)),
                "it does not normalize all axes but batch and channels",
            )
        return _normalized(op, match, x, epsilon_of(epsilon), 1, 0)


class _Channels(Rule):
    """LayerNormalization of each channel, and then a scale or a bias per channel."""

    def pattern(self, op: PatternBuilder, x: Pattern, scale: Pattern, by: Pattern) -> Any:
        norm = op.LayerNormalization(
            x, const(scale), epsilon=attr("epsilon"), axis=attr("axis"), _name="norm"
        )
        return any_of(op.Mul(norm, const(by)), op.Add(norm, const(by)), tag="added")

    def rewrite(
        self,
        op: Builder,
        match: Match,
        norm: ir.Node,
        x: ir.Value,
        scale: ir.Value,
        by: ir.Value,
        epsilon: float,
        axis: int,
        added: int,
    ) -> Any:
        rank = len(dims_of(x) or ())
        require(rank > 2 and axis % rank == 2, "it does not normalize all axes but batch and channels")
        require(filled(scale) == 1, "its scale varies within a channel")
        require(attribute(norm, "stash_type", op.opset) == 1, "it computes in another type than float32")
        number = per_channel(by, x)
        require(np.ptp(number) > 0, "one number for all channels stays with the LayerNormalization")
        return _normalized(op, match, x, epsilon, *((1, number) if added else (number, 0)))


class InstanceNorm(RuleSet):
    """Fuse (x - mean)/√(variance + ε) over all axes but batch and channels into InstanceNormalization.

    A scale and a bias for each channel are taken in.
    """

    name = "instancenorm"
    group = "fuse"
    min_opset = 7
    example = """
    %c = Sub(%x, ReduceMean(%x, [2, 3]))                        # x: [batch, 32, height, width]
    %s = Sqrt(Add(ReduceMean(Pow(%c, 2), [2, 3]), 1e-5))
    %y = Add(Mul(Div(%c, %s), %scale), %bias)                   # scale, bias: [32, 1, 1]
    →
    %y = InstanceNormalization<epsilon=1e-5>(%x, %scale1, %bias1)
    """

    steps = (_Core(), _Channels(), TakeAffine())
