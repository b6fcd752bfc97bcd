"""Unary operators applied twice."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe.rewrite import Builder, NodeRule
from onnxlathe_passes.conditions import producer

# Outer operator -> inner operators whose results it leaves as they are.
_FIXES = {
    "Abs": ("Abs", "Relu"),
    "Relu": ("Relu",),
    "Sign": ("Sign",),
    "Ceil": ("Ceil", "Floor", "Round"),
    "Floor": ("Ceil", "Floor", "Round"),
    "Round": ("Ceil", "Floor", "Round"),
}


class Idempotent(NodeRule):
    """f(f(x)) = f(x) for Abs, Relu, Sign, Ceil, Floor, Round; Abs(Relu(x)) = Relu(x).

    Also Ceil, Floor and Round of what one of them has made whole.
    """

    name = "idempotent"
    group = "tidy"
    example = """
    %a = Relu(%x)
    %y = Relu(%a)
    →
    %y = Relu(%x)
    """

    visits = tuple(_FIXES)

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        return node.inputs[0] if producer(node.inputs[0], *_FIXES[node.op_type]) is not None else None


class Involution(NodeRule):
    """f(f(x)) = x for Neg, Not and BitwiseNot; Abs(Neg(x)) = Abs(x)."""

    name = "involution"
    group = "tidy"
    example = """
    %a = Not(%x)
    %b = Not(%a)
    →
    %x
    """

    visits = ("Neg", "Not", "BitwiseNot", "Abs")

    def visit(self, op: Builder, node: ir.Node) -> Any:
        inner = producer(node.inputs[0], "Neg" if node.op_type == "Abs" else node.op_type)
        if inner is None:
            return None
        x = inner.inputs[0]
        return op.Abs(x) if node.op_type == "Abs" else x
