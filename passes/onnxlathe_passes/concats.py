"""Concat of one, of nothing, and of other Concats."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, NodeRule, attribute
from onnxlathe_passes.conditions import producer, rank, used_once


def _axis(node: ir.Node, opset: int) -> int:
    """The axis, counted from the front where the rank is known."""
    axis = int(attribute(node, "axis", opset))
    axes = rank(node.outputs[0])
    return axis + axes if axis < 0 and axes is not None else axis


class ConcatEmpty(NodeRule):
    """Concat(x) = x; inputs of size 0 along the axis are left out."""

    name = "concat_empty"
    group = "tidy"
    reach = 1
    example = """
    %y = Concat(%x, %e, axis=0)      # e: [0, 8]
    →
    %x
    """

    visits = ("Concat",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        if len(node.inputs) == 1:
            return node.inputs[0]
        axis = _axis(node, op.opset)
        kept = [v for v in node.inputs if not _is_empty(v, axis)] or list(node.inputs[:1])
        if len(kept) == len(node.inputs):
            return None
        return kept[0] if len(kept) == 1 else op.Concat(*kept, axis=axis)


def _is_empty(value: ir.Value | None, axis: int) -> bool:
    dims = dims_of(value) if value is not None else None
    return dims is not None and -len(dims) <= axis < len(dims) and dims[axis] == 0


class ConcatChain(NodeRule):
    """Concat(Concat(a, b), c) = Concat(a, b, c) on one axis, where nothing else reads the inner one."""

    name = "concat_chain"
    group = "tidy"
    example = """
    %t = Concat(%a, %b, axis=1)
    %y = Concat(%t, %c, axis=1)
    →
    %y = Concat(%a, %b, %c, axis=1)
    """

    visits = ("Concat",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        axis = _axis(node, op.opset)
        inputs: list[ir.Value | None] = []
        for value in node.inputs:
            inner = producer(value, "Concat")
            if (
                value is not None
                and inner is not None
                and used_once(value)
                and _axis(inner, op.opset) == axis
            ):
                inputs.extend(inner.inputs)
            else:
                inputs.append(value)
        return op.Concat(*inputs, axis=axis) if len(inputs) > len(node.inputs) else None
