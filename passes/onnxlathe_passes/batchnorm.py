"""Batch normalization into what comes before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import Dims, dims_of
from onnxlathe.model import Model
from onnxlathe.rewrite import (
    Builder,
    Bytes,
    Context,
    Pass,
    Pattern,
    PatternBuilder,
    Rule,
    any_of,
    attribute,
    const,
    is_constant,
    option,
    remove_unused,
    require,
)
from onnxlathe_passes.absorb import Absorption, Factor
from onnxlathe_passes.conditions import Array, producer, used_once
from onnxlathe_passes.fold_offset import bias_above
from onnxlathe_passes.fold_scale import multiply
from onnxlathe_passes.insert import graphs_with_weights, insert, substitute
from onnxlathe_passes.linear import Linear, linear, product
from onnxlathe_passes.regroup import reshaped, target
from onnxlathe_passes.weights import may_copy, numbers, scaled


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


@dataclass(frozen=True)
class FarBatchNorm(Pass):
    """Fold BatchNormalization into weights that are further above it: behind a Reshape, a Transpose, a Concat.

    What it multiplies by goes upwards as in `fold_scale`. What it adds goes into a bias, or remains, as one Add.
    A product whose rows were counted for it becomes a Gemm.
    """

    name = "far_bn"
    group = "fuse"
    min_opset = 7
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %t = Reshape(MatMul(%x, %w), [-1, 64])                        # x: [batch, seq, 32]
    %y = BatchNormalization(%t, %scale, %bias, %mean, %var)
    →
    %t = Reshape(MatMul(%x, %w1), [-1, 64])
    %y = Add(%t, %c)
    """

    max_copy: Bytes = option(1 << 20, "largest weight that is copied because something else uses it too")

    def run(self, model: Model, context: Context) -> int:
        return sum(
            self.fold(node, model.opset, context)
            for graph in graphs_with_weights(model)
            for node in list(graph)
            if node.op_type == "BatchNormalization" and node.domain == "" and infers(node, model.opset)
        )

    def fold(self, node: ir.Node, opset: int, context: Context) -> int:
        """Fold one normalization, if it can be."""
        x, given = node.inputs[0], [v for v in node.inputs[1:5] if v is not None and is_constant(v)]
        dims = dims_of(x) if x is not None else None
        if x is None or dims is None or len(dims) < 2 or len(given) != 4 or not isinstance(dims[1], int):
            return 0
        scale, bias, mean, var = (numbers(v) for v in given)
        factor = scale / np.sqrt(var + attribute(node, "epsilon", opset))
        shift = bias - mean * factor
        if self.flat(node, x, dims, factor, shift, opset, context):
            return 1
        plan = Absorption.of(x, Factor(factor, 1), (node, 0), opset, self.max_copy)
        if plan is None or not context.permit(self.name):
            return 0
        touched = multiply(plan, opset, context)
        offset = bias_above(x, Factor(shift, 1), node, opset)
        op, new = Builder(opset), x
        if offset is not None:
            offset.apply(opset, context)
            touched.append(offset.node)
        else:
            new = op.Add(x, op.constant(shift.reshape(-1, *(1,) * (len(dims) - 2)), x.dtype))
            insert(op, node, context)
        substitute([(node.outputs[0], new)], context)
        context.record(self.name, [node, *touched], [*touched, *op.nodes])
        remove_unused([node])
        return 1

    def flat(
        self,
        node: ir.Node,
        x: ir.Value,
        dims: Dims,
        factor: Array,
        shift: Array,
        opset: int,
        context: Context,
    ) -> bool:
        """Make a Gemm of a product whose rows are counted by a Reshape before they are normalized."""
        view = producer(x, "Reshape", "Flatten")
        made = producer(view.inputs[0], "MatMul") if view is not None else None
        if (
            view is None
            or made is None
            or len(dims) != 2
            or not (used_once(x) and used_once(made.outputs[0]))
        ):
            return False
        a, weight = made.inputs
        shape = dims_of(weight) if weight is not None else None
        if a is None or weight is None or shape is None or len(shape) != 2 or not is_constant(weight):
            return False
        if (dims_of(made.outputs[0]) or ())[-1:] != (dims[1],) or not may_copy(weight, self.max_copy):
            return False
        rows = dims_of(a)
        if rows is None or target(rows, (dims[0], shape[0])) is None or not context.permit(self.name):
            return False
        op = Builder(opset)
        flat = reshaped(op, a, (dims[0], shape[0]), rows)
        by = factor.reshape(1, -1)
        new = op.Gemm(flat, scaled(op, weight, by), op.constant(shift, x.dtype))
        insert(op, node, context)
        substitute([(node.outputs[0], new)], context)
        before = [node, view, made]
        context.record(self.name, before, op.nodes)
        remove_unused(before)
        return True


def infers(norm: ir.Node, opset: int) -> bool:
    """Whether a BatchNormalization uses the statistics that it is given, one for each channel."""
    if opset >= 14:
        training = bool(attribute(norm, "training_mode", opset))
    else:
        training = any(v.name or v.uses() for v in norm.outputs[1:])
    return not training and attribute(norm, "spatial", opset) in (None, 1)
