"""Chains of Transpose."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, NodeRule
from onnxlathe_passes.conditions import number, producer, rank, used_once
from onnxlathe_passes.noop_views import permutation


def _compose(first: tuple[int, ...], second: tuple[int, ...]) -> list[int]:
    """Transpose by `first`, then by `second`, in one."""
    return [first[axis] for axis in second]


class TransposeChain(NodeRule):
    """Transpose(Transpose(x, p), q) = Transpose(x, [p[i] for i in q]), or x where they cancel."""

    name = "transpose_chain"
    group = "tidy"
    example = """
    %a = Transpose(%x, perm=[0, 2, 1])
    %y = Transpose(%a, perm=[1, 0, 2])
    →
    %y = Transpose(%x, perm=[2, 0, 1])
    """

    visits = ("Transpose",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        inner = producer(node.inputs[0], "Transpose")
        if inner is None:
            return None
        first, second = permutation(inner, op.opset), permutation(node, op.opset)
        if first is None or second is None or len(first) != len(second):
            return None
        perm = _compose(first, second)
        x = inner.inputs[0]
        return x if perm == sorted(perm) else op.Transpose(x, perm=perm)


# Operators that treat every element alike, wherever it stands.
_ELEMENTWISE = frozenset(
    {
        *("Abs", "Acos", "Asin", "Atan", "BitwiseNot", "Cast", "Ceil", "Celu", "Clip", "Cos", "Elu", "Erf"),
        *("Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish"),
        *(
            "Neg",
            "Not",
            "Reciprocal",
            "Relu",
            "Round",
            "Selu",
            "Shrink",
            "Sigmoid",
            "Sign",
            "Sin",
            "Softplus",
        ),
        *("Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu"),
        *("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max"),
    }
)
_FAR = 4
"""So many elementwise operators between two Transposes are looked past."""


def _path(node: ir.Node) -> int | None:
    """Which input of an elementwise operator is the tensor, the others being single numbers."""
    if node.domain != "" or node.op_type not in _ELEMENTWISE or len(node.outputs) != 1:
        return None
    others = [i for i, v in enumerate(node.inputs) if v is not None and number(v) is None]
    if len(others) != 1:
        return None
    axes = rank(node.inputs[others[0]])
    small = all(v is None or len(dims_of(v) or ()) <= (axes or 0) for v in node.inputs)
    return others[0] if small else None


class TransposeAround(NodeRule):
    """Transpose(f(Transpose(x, p)), q) = f(Transpose(x, p then q)) for elementwise f, or f(x).

    f may be a few operators, also with a number as their other operand.
    """

    name = "transpose_around"
    group = "tidy"
    reach = _FAR + 2
    example = """
    %a = Transpose(%x, perm=[0, 2, 3, 1])
    %b = Sigmoid(%a)
    %y = Transpose(%b, perm=[0, 3, 1, 2])
    →
    %y = Sigmoid(%x)
    """

    visits = ("Transpose",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        between: list[tuple[ir.Node, int]] = []
        value = node.inputs[0]
        while value is not None and used_once(value):
            inner = value.producer()
            if inner is None:
                return None
            if between and producer(value, "Transpose"):
                return self.moved(op, inner, between, node)
            index = _path(inner)
            if index is None or len(between) == _FAR:
                return None
            between.append((inner, index))
            value = inner.inputs[index]
        return None

    def moved(self, op: Builder, first: ir.Node, between: list[tuple[ir.Node, int]], last: ir.Node) -> Any:
        """The elementwise operators after both Transposes."""
        p, q = permutation(first, op.opset), permutation(last, op.opset)
        if p is None or q is None or len(p) != len(q):
            return None
        perm = _compose(p, q)
        value = first.inputs[0]
        if perm != sorted(perm):
            value = op.Transpose(value, perm=perm)
        for node, index in reversed(between):
            inputs = list(node.inputs)
            inputs[index] = value
            made = op.node(node.op_type, inputs, dict(node.attributes))
            value = made.outputs[0]
            value.type = node.outputs[0].type
        return value
