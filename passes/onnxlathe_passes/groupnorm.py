"""Group normalization."""

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
from onnxlathe_passes.channel_norms import TakeAffine, vector
from onnxlathe_passes.conditions import filled, operand
from onnxlathe_passes.elementwise import float_type


class _Core(Rule):
    """A normalization of `[batch, groups, rest]`, of what was and becomes `[batch, channels, …]`."""

    def pattern(
        self, op: PatternBuilder, x: Pattern, first: Pattern, last: Pattern, scale: Pattern, bias: Pattern
    ) -> Any:
        rows = op.Reshape(x, first, _name="grouped")
        norm = any_of(
            op.InstanceNormalization(rows, const(scale), const(bias), epsilon=attr("epsilon"), _name="norm"),
            op.LayerNormalization(rows, const(scale), epsilon=attr("epsilon"), _name="norm"),
        )
        return op.Reshape(norm, last, _name="back")

    def rewrite(
        self,
        op: Builder,
        match: Match,
        grouped: ir.Node,
        norm: ir.Node,
        back: ir.Node,
        x: ir.Value,
        scale: ir.Value,
        epsilon: float,
        bias: ir.Value | None = None,
    ) -> Any:
        require(float_type(match) != ir.DataType.DOUBLE, "its operator is rare for float64")
        dims, rows = dims_of(x), dims_of(grouped.outputs[0])
        if dims is None or rows is None or len(dims) < 3 or len(rows) < 3:
            reject("its shapes are not known")
        channels, groups = dims[1], rows[1]
        if not isinstance(channels, int) or not isinstance(groups, int) or not groups or channels % groups:
            reject("its channels or groups are not known")
        require(dims[0] is not None and dims[0] == rows[0], "it joins elements of the batch")
        require(None not in dims and dims_of(back.outputs[0]) == dims, "it does not come back to its shape")
        each = channels // groups
        if norm.op_type == "LayerNormalization":
            require(attribute(norm, "axis", op.opset) in (2, 2 - len(rows)), "it normalizes other axes")
            require(filled(scale) == 1 and operand(norm, 2) is None, "its scale varies within a group")
            factors, shifts = np.ones(channels), np.zeros(channels)
        else:
            assert bias is not None
            factors, shifts = vector(scale, groups).repeat(each), vector(bias, groups).repeat(each)
        weights = [op.constant(array, x.dtype) for array in (factors, shifts)]
        return op.GroupNormalization(x, *weights, num_groups=groups, epsilon=epsilon)


class GroupNorm(RuleSet):
    """Fuse Reshape, InstanceNormalization, Reshape, and a scale and bias per channel, into GroupNormalization.

    So exporters write group normalization. TensorRT takes it as one layer since version 10.9;
    ONNX Runtime has no kernel for it and makes some thirty operators of it (microsoft/onnxruntime#24538), so that
    it is for TensorRT alone.
    """

    name = "groupnorm"
    min_opset = 21
    example = """
    %n = InstanceNormalization(Reshape(%x, [0, 8, -1]), %ones, %zeros)      # x: [batch, 32, 64, 64]
    %y = Add(Mul(Reshape(%n, [0, 32, 64, 64]), %scale), %bias)              # scale, bias: [32, 1, 1]
    →
    %y = GroupNormalization<num_groups=8>(%x, %scale1, %bias1)              # scale1, bias1: [32]
    """

    steps = (_Core(), TakeAffine("GroupNormalization"))
