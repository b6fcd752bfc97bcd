"""Operands that are repeated before an operator that would repeat them itself."""

from __future__ import annotations

import onnx_ir as ir

from onnxlathe.infer import dims_of, infer_node
from onnxlathe.rewrite import Builder, NodeRule, RuleSet, is_constant
from onnxlathe_passes.conditions import number, producer, rank, used_once

_COMPARE = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
_NUMERIC = ("Add", "Sub", "Mul", "Div", "Pow")
_BROADCAST = (*_COMPARE, *_NUMERIC, "And", "Or", "Xor", "Where", "Max", "Min", "PRelu", "MatMul")
_UNARY = (
    *("Abs", "Cast", "Ceil", "Clip", "Cos", "Erf", "Exp", "Floor", "IsInf", "IsNaN", "Log", "Neg", "Not"),
    *("Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Sqrt", "Tanh"),
)


def repeated(value: ir.Value | None) -> ir.Value | None:
    """What an Expand, or a Tile of axes of size 1, repeats to make the value; `None` where none does."""
    node = producer(value, "Expand", "Tile")
    source = node.inputs[0] if node is not None else None
    if node is None or source is None or node.op_type == "Expand":
        return source
    before, after = dims_of(source), dims_of(node.outputs[0])
    if before is None or after is None or len(before) != len(after):
        return None
    fits = all(a == 1 or (a is not None and a == b) for a, b in zip(before, after, strict=True))
    return source if fits else None


class _Absorb(NodeRule):
    """f(Expand(x), y) = f(x, y), where y, or another operand, makes the result as large as it is."""

    reach = 1
    visits = _BROADCAST

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        wanted = dims_of(node.outputs[0])
        if wanted is None or None in wanted:
            return None
        for index, value in enumerate(node.inputs):
            source = repeated(value)
            if value is None or source is None:
                continue
            dims = dims_of(source)
            if dims is None or (node.op_type == "MatMul" and dims[-2:] != (dims_of(value) or ())[-2:]):
                continue
            if node.op_type == "MatMul" and len(dims) < 2:
                continue
            operands = [source if place == index else other for place, other in enumerate(node.inputs)]
            mark = op.mark()
            made = op.node(node.op_type, operands, dict(node.attributes))
            infer_node(made, op.opset)
            if dims_of(made.outputs[0]) == wanted:
                return made.outputs[0]
            op.rewind(mark)
        return None


class _Sink(NodeRule):
    """f(Expand(x)) = Expand(f(x)): less to compute, and the next operator may do without the Expand."""

    reach = 1
    visits = (*_UNARY, *_COMPARE, *_NUMERIC)

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        unary = node.op_type in _UNARY
        for index, value in enumerate(node.inputs[:1] if unary else node.inputs):
            source, made_by = repeated(value), producer(value, "Expand", "Tile")
            if value is None or source is None or made_by is None or is_constant(source):
                continue
            others = [other for place, other in enumerate(node.inputs) if place != index]
            single = all(
                other is None or (number(other) is not None and (rank(other) or 0) <= (rank(source) or 0))
                for other in others
            )
            if not used_once(value) or not single:
                continue
            operands = [source if place == index else other for place, other in enumerate(node.inputs)]
            inner = op.node(node.op_type, operands, dict(node.attributes)).outputs[0]
            outer: ir.Value = op.node(made_by.op_type, [inner, made_by.inputs[1]]).outputs[0]
            return outer
        return None


class BroadcastOperand(RuleSet):
    """f(Expand(x), y) = f(x, y), where broadcasting makes the result as large; the same for Tile.

    For arithmetic, comparisons, And, Or, Where, Max, Min, and the batch of MatMul. An Expand goes behind
    what is done to each element, so that it meets such an operator.
    """

    name = "broadcast_operand"
    group = "fuse"
    min_opset = 8
    example = """
    %m = Equal(Expand(%mask, Shape(%scores)), 0)            # mask: [batch, 1, 1, seq]
    %y = Where(%m, -1e9, %scores)                           # scores: [batch, 12, seq, seq]
    →
    %y = Where(Equal(%mask, 0), -1e9, %scores)
    """

    steps = (_Absorb(), _Sink())
