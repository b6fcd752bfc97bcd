"""Weights below float16's normal range, brought into it by a power of two that their product is divided by.

Where a small factor (a layer's scale of 1e-6) has been multiplied into a weight, float16 would leave a digit or
none of it. W·2ᵏ keeps all of them, and 2⁻ᵏ is exact: one multiplication, which TensorRT does in passing, in the
place of two Casts and a product in float32. What is too small for that becomes 0 in float16 whatever is done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe import Model
from onnxlathe.precision import FLOAT16, FLOAT32, Selection
from onnxlathe.rewrite import Builder, Context, NodeRule, drive, is_constant
from onnxlathe_passes.precision_weights import Weights
from onnxlathe_passes.weights import attributes_of, scaled, tensor_of

_PRODUCTS = {"MatMul": (0, 1), "Gemm": (0, 1), "Conv": (1,), "ConvTranspose": (1,), "Mul": (0, 1)}
_BIAS = 2
_TYPICAL = -5
"""Binary logarithm of what weights are made about as large as."""
_MOST = 24
"""2⁻²⁴ is the smallest number of float16."""
_LARGEST = 2.0**8
"""Weights and biases are made no larger than that, for their sums to stay in range."""


@dataclass(frozen=True)
class _Scale:
    """Operand `index` of a node is to be multiplied by 2 to the power of `exponent`."""

    index: int
    exponent: int


@dataclass(frozen=True, eq=False)
class _Rescale(NodeRule):
    name = "precision"

    scales: Mapping[ir.Node, _Scale] = field(default_factory=dict)

    visits = tuple(_PRODUCTS)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        scale = self.scales.get(node)
        if scale is None:
            return None
        operands = list(node.inputs)
        for index in {scale.index, *([_BIAS] if len(operands) > _BIAS else [])}:
            weight = operands[index]
            if weight is not None:
                operands[index] = scaled(op, weight, np.array(2.0**scale.exponent))
        product = op.node(node.op_type, operands, attributes_of(node)).outputs[0]
        return op.Mul(product, 2.0**-scale.exponent)


def rescale(model: Model, low: ir.DataType, selection: Selection, weights: Weights, context: Context) -> None:
    """Rescale what shall be float16; the new nodes are selected as the old one was."""
    scales = {}
    for node in model.nodes():
        asked = selection.nodes.get(node)
        dtype = asked[0] if asked is not None else low
        if (
            dtype != FLOAT16
            or node.domain != ""
            or node.op_type not in _PRODUCTS
            or node.name in context.spared
        ):
            continue
        found = _scale(node, weights)
        if found is not None:
            scales[node] = found
    if not scales:
        return
    asked_of = {node.name: selection.nodes.get(node) for node in scales}
    done = len(context.firings)
    drive(model, [_Rescale(scales)], context)
    made = {part: asked_of[firing.before[0]] for firing in context.firings[done:] for part in firing.after}
    for node in model.nodes():
        if (asked := made.get(node.name or "")) is not None:
            selection.nodes[node] = asked
    context.note(
        f"the weights of {len(context.firings) - done} products are below float16's normal range and multiplied "
        "by a power of two, by which the result is divided"
    )


def _scale(node: ir.Node, weights: Weights) -> _Scale | None:
    for index in _PRODUCTS[node.op_type]:
        value = node.inputs[index]
        if value is None or value.dtype != FLOAT32 or not is_constant(value):
            continue
        loss = weights.loss(tensor_of(value), FLOAT16)
        if loss.size == 1 or loss.overflows or not loss.underflow:
            continue
        exponent = min(_MOST, math.floor(_TYPICAL - math.log2(loss.mean_square)))
        if loss.mean_square * 2.0**exponent < 2.0**-14 or loss.largest * 2.0**exponent > _LARGEST:
            continue
        bias = node.inputs[_BIAS] if len(node.inputs) > _BIAS else None
        if bias is not None:
            if not is_constant(bias):
                continue
            if weights.loss(tensor_of(bias), FLOAT16).largest * 2.0**exponent > _LARGEST:
                continue
        return _Scale(index, exponent)
    return None
