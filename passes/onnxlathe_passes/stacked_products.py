"""Products of one matrix and one vector after the other, made at once."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, NodeRule, attribute
from onnxlathe_passes.conditions import from_front, int64, number, producer, rank, used_once
from onnxlathe_passes.views import axes_of, unsqueeze

_FEWEST = 3


class StackedProducts(NodeRule):
    """Concat(h₀·c₀, h₁·c₁, …) = the sum along the last axis of Concat(h₀, h₁, …)·c, where cᵢ is a row of c.

    The axis of the rows is a new one for the matrices hᵢ. So an unrolled state space model reads its states:
    once for all steps, instead of by a product, a Gather and an Unsqueeze for each.
    """

    name = "stacked_products"
    group = "fuse"
    min_opset = 13
    reach = 4
    example = """
    %a = MatMul(%h0, Unsqueeze(Gather(%c, 0, axis=1), [-1]))      # h0, h1, h2: [batch, 512, 16]
    %b = MatMul(%h1, Unsqueeze(Gather(%c, 1, axis=1), [-1]))      # c: [batch, 3, 16]
    %y = Concat(%a, %b, MatMul(%h2, Unsqueeze(Gather(%c, 2, axis=1), [-1])), axis=-1)
    →
    %h = Concat(Unsqueeze(%h0, [2]), Unsqueeze(%h1, [2]), Unsqueeze(%h2, [2]), axis=2)
    %y = ReduceSum(Mul(%h, Unsqueeze(%c, [1])), [-1], keepdims=0)
    """

    visits = ("Concat",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        axes = rank(node.outputs[0])
        if axes is None or axes < 2 or len(node.inputs) < _FEWEST:
            return None
        if from_front([int(attribute(node, "axis", op.opset))], axes) != [axes - 1]:
            return None
        states, rows = [], None
        for place, value in enumerate(node.inputs):
            found = _product(value, axes, op.opset)
            if found is None or found[2] != place or (rows is not None and rows is not found[1]):
                return None
            states.append(found[0])
            rows = found[1]
        dims, first = dims_of(rows) if rows is not None else None, dims_of(states[0])
        if rows is None or dims is None or first is None or dims[axes - 2] != len(states):
            return None
        # Neither side may be broadcast: [batch…, m, k] meets [batch…, count, k].
        if None in first or any(dims_of(h) != first for h in states):
            return None
        if (*first[:-2], first[-1]) != (*dims[:-2], dims[-1]):
            return None
        stacked = op.Concat(*(unsqueeze(op, h, [axes - 1]) for h in states), axis=axes - 1)
        product = op.Mul(stacked, unsqueeze(op, rows, [axes - 2]))
        return op.ReduceSum(product, int64([axes]), keepdims=0)


def _product(value: ir.Value | None, axes: int, opset: int) -> tuple[ir.Value, ir.Value, int] | None:
    """A matrix, and the row of another one with which it is multiplied: `(h, c, i)`."""
    product = producer(value, "MatMul")
    column = producer(product.inputs[1], "Unsqueeze") if product is not None else None
    gather = producer(column.inputs[0], "Gather") if column is not None else None
    if value is None or product is None or column is None or gather is None or not used_once(value):
        return None
    h, (c, index) = product.inputs[0], gather.inputs
    if h is None or c is None or rank(h) != axes or rank(c) != axes or rank(index) != 0:
        return None
    position = number(index)
    if axes_of(column, opset) != [axes - 1] or position is None or position < 0:
        return None
    if from_front([int(attribute(gather, "axis", opset))], axes) != [axes - 2]:
        return None
    return h, c, int(position)
