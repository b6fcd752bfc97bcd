"""Multiplications by a number, into the weights far above them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.model import Model
from onnxlathe.rewrite import (
    Builder,
    Bytes,
    Context,
    Pass,
    drop_initializer,
    is_constant,
    option,
    remove_unused,
    scalar_value,
)
from onnxlathe_passes.absorb import Absorption, Factor
from onnxlathe_passes.conditions import FLOATS, small_constant
from onnxlathe_passes.insert import graphs_with_weights, insert, substitute
from onnxlathe_passes.weights import scaled


@dataclass(frozen=True)
class FoldScale(Pass):
    """Fold a multiplication by a number, or a vector, into the weights from which its operand is computed linearly.

    The factor goes upwards through MatMul, Add, Reshape, Transpose, Split, Concat, rotary embeddings and
    whatever else is linear, and must arrive at weights (and biases) on every way; nothing else may read
    what is on the ways. So the 1/√size of attention goes into the projection of the queries,
    and a layer's scale into the last weights of the layer.
    """

    name = "fold_scale"
    group = "fuse"
    min_opset = 7
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %q = Transpose(Reshape(Add(MatMul(%x, %w), %b)))
    %y = MatMul(Mul(%q, 0.125), %k)
    →
    %q = Transpose(Reshape(Add(MatMul(%x, %w·0.125), %b·0.125)))
    %y = MatMul(%q, %k)
    """

    max_copy: Bytes = option(1 << 20, "largest weight that is copied because something else uses it too")

    def run(self, model: Model, context: Context) -> int:
        changes = 0
        for graph in graphs_with_weights(model):
            for node in graph:
                if node.op_type in ("Mul", "Div") and node.domain == "":
                    changes += self.fold(node, model.opset, context)
        return changes

    def fold(self, node: ir.Node, opset: int, context: Context) -> int:
        """Fold one multiplication, if it can be."""
        found = by_number(node)
        index, factor = (found[0], Factor(np.array(found[1]))) if found is not None else _by_vector(node)
        x = node.inputs[index] if factor is not None else None
        if x is None or factor is None:
            return 0
        plan = Absorption.of(x, factor, (node, index), opset, self.max_copy)
        if plan is None or not context.permit(self.name):
            return 0
        touched = [node, *multiply(plan, opset, context)]
        substitute([(node.outputs[0], x)], context)
        context.record(self.name, touched, touched[1:])
        remove_unused([node])
        return 1


def multiply(plan: Absorption, opset: int, context: Context) -> list[ir.Node]:
    """Multiply the constants of a plan; the nodes that read them."""
    for (user, place), by in plan.constants.items():
        weight = user.inputs[place]
        assert weight is not None
        op = Builder(opset)
        user.replace_input_with(place, scaled(op, weight, by))
        insert(op, user, context)
        if not weight.uses() and weight.is_initializer():
            drop_initializer(weight)
    return [user for user, _ in plan.constants]


def by_number(node: ir.Node) -> tuple[int, float] | None:
    """Which input of a Mul or Div is multiplied, and by what number, where the result has the input's rank."""
    for index in (0, 1) if node.op_type == "Mul" else (0,):
        x, number = node.inputs[index], scalar_value(node.inputs[1 - index])
        constant = node.inputs[1 - index]
        if x is None or constant is None or number is None or is_constant(x) or x.dtype not in FLOATS:
            continue
        dims = dims_of(x)
        if dims is None or len(dims_of(constant) or ()) > len(dims) or number == 0 or not np.isfinite(number):
            continue
        return index, number if node.op_type == "Mul" else 1 / number
    return None


def _by_vector(node: ir.Node) -> tuple[int, Factor | None]:
    """Which input of a Mul or Div is multiplied, and by what number for each place along one axis."""
    for index in (0, 1) if node.op_type == "Mul" else (0,):
        x, constant = node.inputs[index], node.inputs[1 - index]
        array = small_constant(constant)
        dims, shape = (
            dims_of(x) if x is not None else None,
            dims_of(constant) if constant is not None else None,
        )
        if (
            x is None
            or array is None
            or is_constant(x)
            or x.dtype not in FLOATS
            or dims is None
            or shape is None
        ):
            continue
        places = [axis - len(shape) for axis, size in enumerate(shape) if size != 1]
        numbers = array.reshape(-1).astype(np.float64)
        if len(shape) > len(dims) or len(places) != 1 or dims[places[0]] != numbers.size:
            continue
        if not (np.isfinite(numbers) & (numbers != 0)).all():
            continue
        return index, Factor(numbers if node.op_type == "Mul" else 1 / numbers, len(dims) + places[0])
    return 0, None
