"""Recurrent operators that start from zero."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe.rewrite import Builder, NodeRule, attribute, is_constant
from onnxlathe_passes.conditions import uniform

_DEEP = 8
_MOVES = frozenset(
    {
        *("Expand", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Slice", "Gather", "Split"),
        *("Identity", "Cast", "Tile"),
    }
)
_STATES = {"RNN": (5,), "GRU": (5,), "LSTM": (5, 6)}


class ZeroState(NodeRule):
    """LSTM, GRU or RNN whose initial state is 0 everywhere = the same without one.

    Zeros of a size that is only known when the model runs count as well.
    """

    name = "zero_state"
    group = "tidy"
    min_opset = 7
    reach = _DEEP
    example = """
    %h = ConstantOfShape<value=[0]>(Concat([2], Shape<end=1>(%ids), [512]))
    %y = LSTM<hidden_size=512>(%x, %w, %r, %b, , %h, %h)
    →
    %y = LSTM<hidden_size=512>(%x, %w, %r, %b)
    """

    visits = tuple(_STATES)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        zeros = [
            i for i in _STATES[node.op_type] if i < len(node.inputs) and is_zero(node.inputs[i], op.opset)
        ]
        if not zeros:
            return None
        inputs = [None if index in zeros else value for index, value in enumerate(node.inputs)]
        made = op.node(node.op_type, inputs, dict(node.attributes), outputs=len(node.outputs))
        return [new if old.uses() or old.is_graph_output() else None
                for old, new in zip(node.outputs, made.outputs, strict=True)]  # fmt: skip


def is_zero(value: ir.Value | None, opset: int, depth: int = 0) -> bool:
    """Whether all entries of a tensor are 0 in every run, as far as its producers tell."""
    if value is None or depth > _DEEP:
        return False
    if is_constant(value):
        return bool(uniform(value) == 0)
    node = value.producer()
    if node is None or node.domain != "":
        return False
    if node.op_type == "ConstantOfShape":
        filled = attribute(node, "value", opset)
        return filled is None or not filled.numpy().any()
    if node.op_type == "Concat":
        return all(is_zero(v, opset, depth + 1) for v in node.inputs)
    return node.op_type in _MOVES and is_zero(node.inputs[0], opset, depth + 1)
