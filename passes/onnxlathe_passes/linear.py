"""Convolutions and matrix products as one idea: a sum over inputs per output channel, plus a bias.

What multiplies or shifts an output channel can go into the weight and the bias. Which axis of the weight
that is differs between Conv, ConvTranspose, Gemm and MatMul; only this file knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import constant, dims_of
from onnxlathe.rewrite import (
    Builder,
    Pattern,
    PatternBuilder,
    any_of,
    attribute,
    is_constant,
    optional,
    reject,
)
from onnxlathe_passes.conditions import FLOATS, Array
from onnxlathe_passes.weights import attributes_of, numbers, scaled


def linear(op: PatternBuilder, x: Pattern, weight: Pattern, bias: Pattern) -> Pattern:
    """A linear operator that has a bias."""
    return any_of(
        op.Conv(x, weight, optional(bias), _name="node"),
        op.ConvTranspose(x, weight, optional(bias), _name="node"),
        op.Gemm(x, weight, optional(bias), _name="node"),
    )


def product(op: PatternBuilder, x: Pattern, weight: Pattern) -> Any:
    """A linear operator that has none."""
    return op.MatMul(x, weight, _name="node")


@dataclass(frozen=True)
class Linear:
    """A linear operator and what is known of it.

    Attributes:
        node: Conv, ConvTranspose, Gemm, or MatMul with a matrix on the right.
        channels: number of output channels.
        rank: of the output; `None` where it is not known.
        last: how many axes of the output there are from the channel axis on, it included.
    """

    node: ir.Node
    opset: int
    channels: int
    rank: int | None
    last: int

    @classmethod
    def of(cls, node: ir.Node, opset: int) -> Linear:
        """Describe a node.

        Raises:
            NoMatch: its weight's shape is not known, or it is not floating point.
        """
        x, weight = node.inputs[0], node.inputs[1]
        assert x is not None
        assert weight is not None
        dims = dims_of(weight)
        if dims is None or weight.dtype not in FLOATS:
            reject("its weight's shape is not known, or it is not floating point")
        group = int(attribute(node, "group", opset) or 1)
        channels: Any
        rank: int | None = len(dims)
        last = 1
        if node.op_type == "Conv":
            channels, last = dims[0], len(dims) - 1
        elif node.op_type == "ConvTranspose":
            channels, last = dims[1], len(dims) - 1
            channels = channels * group if isinstance(channels, int) else None
        elif node.op_type == "Gemm":
            channels = dims[0 if attribute(node, "transB", opset) else 1]
        else:
            outer = dims_of(x)
            if len(dims) != 2:
                reject("its right operand is not a matrix")
            channels, rank = dims[1], None if outer is None else len(outer)
        if not isinstance(channels, int):
            reject("the number of its output channels is not known")
        return cls(node, opset, channels, rank, last)

    @property
    def x(self) -> ir.Value:
        assert self.node.inputs[0] is not None
        return self.node.inputs[0]

    @property
    def weight(self) -> ir.Value:
        assert self.node.inputs[1] is not None
        return self.node.inputs[1]

    @property
    def bias(self) -> ir.Value | None:
        return self.node.inputs[2] if len(self.node.inputs) > 2 else None

    def per_channel(self, value: ir.Value) -> Array:
        """A constant that is combined with the output, as one number per output channel.

        Raises:
            NoMatch: it varies along another axis, or adds to the output's shape.
        """
        array = constant(value)
        if array is None:
            reject(f"{value.name} is not constant")
        if array.ndim > (1 if self.rank is None else self.rank):
            reject(f"{value.name} adds dimensions to the result")
        at = array.ndim - self.last
        if any(n != 1 for axis, n in enumerate(array.shape) if axis != at) or (
            at >= 0 and array.shape[at] not in (1, self.channels)
        ):
            reject(f"{value.name} is not one number per channel")
        return np.broadcast_to(array.reshape(-1).astype(np.float64), (self.channels,))

    def biases(self) -> Array:
        """The bias as one number per output channel, zeros where there is none.

        Raises:
            NoMatch: it is not constant, or (of a Gemm) varies along the rows.
        """
        if self.bias is None:
            return np.zeros(self.channels)
        if not is_constant(self.bias):
            reject("its bias is not constant")
        if self.node.op_type != "Gemm":
            return numbers(self.bias)
        return self.per_channel(self.bias) * float(attribute(self.node, "beta", self.opset))

    def output_factor(self, factor: Array) -> Array:
        """One number per output channel, in a shape that multiplies the weight."""
        node = self.node
        spatial = (1,) * (self.last - 1)
        if node.op_type == "Conv":
            return factor.reshape(-1, 1, *spatial)
        if node.op_type == "ConvTranspose":
            # (inputs, outputs of one group, …): the inputs of each group belong to its outputs.
            group = int(attribute(node, "group", self.opset) or 1)
            inputs = numbers_of(self.weight, 0)
            return np.repeat(factor.reshape(group, -1), inputs // group, axis=0).reshape(inputs, -1, *spatial)
        return factor.reshape(-1, 1) if attribute(node, "transB", self.opset) else factor.reshape(1, -1)

    def rebuilt(self, op: Builder, weight: ir.Value, bias: ir.Value | None, x: ir.Value | None = None) -> Any:
        """The operator again, of other operands; a MatMul that gets a bias becomes a Gemm."""
        kind = "Gemm" if self.node.op_type == "MatMul" and bias is not None else self.node.op_type
        made = op.node(kind, [self.x if x is None else x, weight, bias], attributes_of(self.node, "beta"))
        return made.outputs[0]

    def affine(self, op: Builder, factor: Array | None, shift: Array | None) -> Any:
        """The operator with `factor·(…) + shift` applied to its output, both per channel."""
        weight, bias = self.weight, self.bias
        if factor is not None:
            weight = scaled(op, weight, self.output_factor(factor))
        if shift is not None or bias is not None:
            biases = self.biases() * (1 if factor is None else factor) + (0 if shift is None else shift)
            bias = op.constant(
                biases, self.weight.dtype, name=(bias and bias.name) or f"{self.node.name}/bias"
            )
        return self.rebuilt(op, weight, bias)


def numbers_of(value: ir.Value, axis: int) -> int:
    """The size of an axis that is known."""
    size = (dims_of(value) or ())[axis]
    assert isinstance(size, int)
    return size
