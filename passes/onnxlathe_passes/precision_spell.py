"""Operators that TensorRT has no kernel for in a low type, said with others for which it has one.

They are the function bodies of the ONNX schema. Nothing in between leaves the range of its operand, so that it
loses little, and Casts to float32 and back around each of them (after every convolution of a MobileNet) are saved.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxlathe import Model
from onnxlathe.precision import FLOAT32, Selection
from onnxlathe.rewrite import Builder, Context, NodeRule, attribute, drive
from onnxlathe_passes.precision_rules import NO_KERNEL


@dataclass(frozen=True)
class _SpellOut(NodeRule):
    name = "precision"

    nodes: Collection[ir.Node] = ()

    visits = ("HardSwish", "Mish", "Celu")

    def visit(self, op: Builder, node: ir.Node) -> Any:
        x = node.inputs[0]
        if node not in self.nodes:
            return None
        if node.op_type == "HardSwish":
            return op.Mul(x, op.HardSigmoid(x, alpha=1 / 6, beta=0.5))
        if node.op_type == "Mish":
            return op.Mul(x, op.Tanh(op.Softplus(x)))
        alpha = float(attribute(node, "alpha", op.opset))
        return op.Elu(x) if alpha == 1 else op.Mul(op.Elu(op.Mul(x, 1 / alpha)), alpha)


def spell_out(model: Model, low: ir.DataType, selection: Selection, context: Context) -> None:
    """Replace nodes that shall be low, and can be only in parts; the parts are selected as the whole was."""
    chosen = {}
    for node in model.nodes():
        asked = selection.nodes.get(node)
        if node.domain == "" and node.op_type in _SpellOut.visits and node.inputs[0].dtype == FLOAT32:  # type: ignore[union-attr]
            dtype = asked[0] if asked is not None else low
            if (node.op_type, dtype) in NO_KERNEL and node.name not in context.spared:
                chosen[node] = asked
    if not chosen:
        return
    names = {node.name: asked for node, asked in chosen.items()}
    done = len(context.firings)
    drive(model, [_SpellOut(frozenset(chosen))], context)
    parts = {part: names[firing.before[0]] for firing in context.firings[done:] for part in firing.after}
    for node in model.nodes():
        if (asked := parts.get(node.name or "")) is not None:
            selection.nodes[node] = asked
