"""Arithmetic with a neutral element, with one operand, or with the same operand twice."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe.rewrite import Builder, NodeRule
from onnxlathe_passes.conditions import broadcasts_into, producer, same_shape, uniform
from onnxlathe_passes.rmsnorm import ends_rms_norm

# The element e with x ∘ e = x; for those in _COMMUTE also e ∘ x = x.
_NEUTRAL: dict[str, object] = {
    "Add": 0,
    "Sub": 0,
    "Mul": 1,
    "Div": 1,
    "Pow": 1,
    "And": True,
    "Or": False,
    "Xor": False,
    "BitwiseOr": 0,
    "BitwiseXor": 0,
    "BitShift": 0,
}
_COMMUTE = frozenset({"Add", "Mul", "And", "Or", "Xor", "BitwiseOr", "BitwiseXor"})


class Neutral(NodeRule):
    """x + 0, x - 0, x * 1, x / 1, x ** 1, And(x, true), Or(x, false), Xor(x, false) = x.

    The constant may be a whole tensor of zeros or ones, but must not make the result larger than x. The scale
    of an RMS normalization stays before opset 23: ONNX Runtime fuses the whole only.
    """

    name = "neutral"
    group = "tidy"
    min_opset = 7
    reach = 1
    example = """
    %y = Mul(%x, [1, 1, 1, 1])      # x: [batch, 4]
    →
    %x
    """

    visits = tuple(_NEUTRAL)

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        x, e = node.inputs
        if self.neutral(op, node, x, e):
            return x
        return e if node.op_type in _COMMUTE and self.neutral(op, node, e, x) else None

    def neutral(self, op: Builder, node: ir.Node, x: ir.Value | None, e: ir.Value | None) -> bool:
        """Whether `e` does nothing to `x`, and nobody waits for it."""
        if uniform(e) != _NEUTRAL[node.op_type] or not _fits(e, x):
            return False
        return node.op_type != "Mul" or not ends_rms_norm(x, e, op.opset)


def _fits(constant: ir.Value | None, x: ir.Value | None) -> bool:
    return constant is not None and x is not None and broadcasts_into(constant, x)


class SingleOperand(NodeRule):
    """Sum(x) = Mean(x) = Max(x) = Min(x) = x; Max(x, x) = Min(x, x) = And(x, x) = Or(x, x) = x."""

    name = "single_operand"
    group = "tidy"
    reach = 1
    example = """
    %y = Max(%x, %x)
    →
    %x
    """

    visits = ("Sum", "Mean", "Max", "Min", "And", "Or")

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        first = node.inputs[0]
        if len(node.inputs) == 1:
            return first
        idempotent = node.op_type not in ("Sum", "Mean")
        return first if idempotent and all(v is first for v in node.inputs) else None


def _only_chooses(condition: ir.Value) -> bool:
    """Whether all that needs a condition is Where, as a mask for all layers is needed."""
    if condition.is_graph_output():
        return False
    return all(
        user.op_type == "Where" and user.domain == "" and index == 0 for user, index in condition.uses()
    )


class WhereChosen(NodeRule):
    """Where(true, a, b) = a; Where(false, a, b) = b; Where(c, a, a) = a; Where(Not(c), a, b) is
    Where(c, b, a).

    What is chosen must have the shape of the result already.
    """

    name = "where_chosen"
    group = "tidy"
    example = """
    %n = Not(%c)
    %y = Where(%n, %a, %b)
    →
    %y = Where(%c, %b, %a)
    """

    visits = ("Where",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        condition, a, b = node.inputs
        if a is None or b is None or condition is None:
            return None
        verdict = uniform(condition)
        chosen = a if a is b or verdict is True else b if verdict is False else None
        if chosen is not None:
            return chosen if same_shape(chosen, node.outputs[0]) else None
        negation = producer(condition, "Not")
        if negation is not None and _only_chooses(condition):
            return op.Where(negation.inputs[0], b, a)
        return None
