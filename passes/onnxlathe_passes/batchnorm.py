"""Batch normalization into what comes before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import (
    Builder,
    Bytes,
    Pattern,
    PatternBuilder,
    Rule,
    any_of,
    attribute,
    const,
    option,
    require,
)
from onnxlathe_passes.linear import Linear, linear, product
from onnxlathe_passes.weights import may_copy, numbers


@dataclass(frozen=True)
class ConvBatchNorm(Rule):
    """Fold BatchNormalization into the weight and bias of the Conv, ConvTranspose, Gemm or MatMul before it.

    With a = scale/√(var + ε): BN(Conv(x, w, b)) = Conv(x, w·a, (b - mean)·a + bias), channel by channel.
    In training mode the statistics are the batch's, and nothing is folded.
    """

    name = "conv_bn"
    group = "fuse"
    min_opset = 7
    example = """
    %y = BatchNormalization(Conv(%x, %w), %scale, %bias, %mean, %var)
    →
    %y = Conv(%x, %w1, %b1)
    """

    max_copy: Bytes = option(16 << 20, "largest weight that is copied because something else uses it too")

    def pattern(
        self,
        op: PatternBuilder,
        x: Pattern,
        weight: Pattern,
        b: Pattern,
        scale: Pattern,
        bias: Pattern,
        mean: Pattern,
        var: Pattern,
    ) -> Any:
        before = any_of(linear(op, x, const(weight), b), product(op, x, const(weight)))
        return op.BatchNormalization(before, const(scale), const(bias), const(mean), const(var), _name="norm")

    def rewrite(
        self,
        op: Builder,
        node: ir.Node,
        norm: ir.Node,
        x: ir.Value,
        weight: ir.Value,
        scale: ir.Value,
        bias: ir.Value,
        mean: ir.Value,
        var: ir.Value,
    ) -> Any:
        require(infers(norm, op.opset), "it normalizes by the statistics of the batch")
        require(node.op_type != "MatMul" or len(dims_of(x) or ()) == 2, "its channels are not the last axis")
        require(may_copy(weight, self.max_copy), f"{weight.name} is used elsewhere and large")
        epsilon = attribute(norm, "epsilon", op.opset)
        factor = numbers(scale) / np.sqrt(numbers(var) + epsilon)
        shift = numbers(bias) - numbers(mean) * factor
        return Linear.of(node, op.opset).affine(op, factor, shift)


def infers(norm: ir.Node, opset: int) -> bool:
    """Whether a BatchNormalization uses the statistics that it is given, one for each channel."""
    if opset >= 14:
        training = bool(attribute(norm, "training_mode", opset))
    else:
        training = any(v.name or v.uses() for v in norm.outputs[1:])
    return not training and attribute(norm, "spatial", opset) in (None, 1)
