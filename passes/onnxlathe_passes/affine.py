"""Biases and factors per channel into the linear operator before or after them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import constant, dims_of
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
    reject,
    require,
)
from onnxlathe_passes.conditions import HALVES, Array
from onnxlathe_passes.linear import Linear, linear, product
from onnxlathe_passes.rmsnorm import ends_rms_norm
from onnxlathe_passes.weights import may_copy, scaled

_SHARED = "largest weight that is copied because something else uses it too"


class Bias(Rule):
    """Make a constant per channel that is added to a Conv, ConvTranspose or Gemm its bias."""

    name = "bias"
    group = "fuse"
    min_opset = 7
    example = """
    %y = Add(Conv(%x, %w), %c)          # c: [64, 1, 1]
    →
    %y = Conv(%x, %w, %b)               # b: [64]
    """

    def pattern(self, op: PatternBuilder, x: Pattern, weight: Pattern, b: Pattern, c: Pattern) -> Any:
        before = linear(op, x, weight, b)
        return any_of(op.Add(before, const(c)), op.Sub(before, const(c)), tag="subtracted")

    def rewrite(self, op: Builder, node: ir.Node, c: ir.Value, subtracted: int) -> Any:
        operator = Linear.of(node, op.opset)
        shift = operator.per_channel(c)
        return operator.affine(op, None, -shift if subtracted else shift)


@dataclass(frozen=True)
class Scale(Rule):
    """Multiply a factor per channel that follows a linear operator into its weight and bias."""

    name = "scale"
    group = "fuse"
    min_opset = 7
    example = """
    %y = Mul(Conv(%x, %w, %b), %c)      # c: [64, 1, 1], or one number
    →
    %y = Conv(%x, %w·c, %b·c)
    """

    max_copy: Bytes = option(1 << 20, _SHARED)

    def pattern(self, op: PatternBuilder, x: Pattern, weight: Pattern, b: Pattern, c: Pattern) -> Any:
        before = any_of(linear(op, x, const(weight), b), product(op, x, const(weight)))
        return any_of(op.Mul(before, const(c)), op.Div(before, const(c)), tag="divided")

    def rewrite(self, op: Builder, node: ir.Node, weight: ir.Value, c: ir.Value, divided: int) -> Any:
        require(may_copy(weight, self.max_copy), f"{weight.name} is used elsewhere and large")
        operator = Linear.of(node, op.opset)
        return operator.affine(op, _usable(operator.per_channel(c), divided, weight), None)


@dataclass(frozen=True)
class InputScale(Rule):
    """Multiply a factor per input channel that precedes a linear operator into its weight.

    A Conv pads with zeros, which no factor changes; a summand would. The scale of an RMS normalization stays
    before opset 23: ONNX Runtime fuses the whole only.
    """

    name = "input_scale"
    group = "fuse"
    min_opset = 7
    example = """
    %y = Conv(Mul(%x, 0.00392), %w, %b)
    →
    %y = Conv(%x, %w·0.00392, %b)
    """

    max_copy: Bytes = option(1 << 20, _SHARED)

    def pattern(self, op: PatternBuilder, x: Pattern, weight: Pattern, b: Pattern, c: Pattern) -> Any:
        factor = any_of(op.Mul(x, const(c)), op.Div(x, const(c)), tag="divided")
        return any_of(linear(op, factor, const(weight), b), product(op, factor, const(weight)))

    def rewrite(
        self, op: Builder, node: ir.Node, x: ir.Value, weight: ir.Value, c: ir.Value, divided: int
    ) -> Any:
        require(may_copy(weight, self.max_copy), f"{weight.name} is used elsewhere and large")
        producer = x.producer()
        require(producer is None or producer.op_type != "Mul", "it may belong to an activation written out")
        require(divided or not ends_rms_norm(x, c, op.opset), "it is the scale of an RMS normalization")
        operator = Linear.of(node, op.opset)
        factor = _usable(self.per_input(operator, x, c), divided, weight)
        return operator.rebuilt(op, scaled(op, weight, factor), operator.bias, x)

    def per_input(self, operator: Linear, x: ir.Value, c: ir.Value) -> Array:
        """The factor in a shape that multiplies the weight."""
        array, dims = constant(c), dims_of(x)
        if array is None or dims is None or array.ndim > len(dims):
            reject(f"{c.name} is not constant, or adds dimensions to its operand")
        node, opset = operator.node, operator.opset
        if array.size == 1:
            return array.astype(np.float64).reshape(())
        is_conv = node.op_type in ("Conv", "ConvTranspose")
        require(not attribute(node, "transA", opset), "its factor is per row")
        require(attribute(node, "group", opset) in (None, 1), "its channels are in groups")
        axis = 1 if is_conv else len(dims) - 1
        at = array.ndim - (len(dims) - axis)
        require(
            at >= 0 and array.size == array.shape[at] == dims[axis], f"{c.name} is not one number per channel"
        )
        vector = array.reshape(-1).astype(np.float64)
        if node.op_type == "Conv":
            return vector.reshape(1, -1, *(1,) * (operator.last - 1))
        if node.op_type == "ConvTranspose":
            return vector.reshape(-1, 1, *(1,) * (operator.last - 1))
        return vector.reshape(1, -1) if attribute(node, "transB", opset) else vector.reshape(-1, 1)


def _usable(factor: Array, divided: int, weight: ir.Value) -> Array:
    """The factor, or its inverse, if a weight can be multiplied by it without losing its precision."""
    require(not divided or factor.all(), "it divides by zero")
    factor = 1 / factor if divided else factor
    require(np.isfinite(factor).all(), "its factor is not finite")
    size = np.abs(factor[factor != 0])
    require((size >= 2.0**-40).all() and (size <= 2.0**40).all(), "its factor is too far from 1")
    if weight.dtype in HALVES:
        # Away from 1 the product leaves the range in which half precision is precise.
        size = np.abs(factor)
        require(
            (size >= 1 / 64).all() and (size <= 64).all(), "its factor is too far from 1 for half precision"
        )
    return factor
