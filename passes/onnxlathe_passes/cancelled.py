"""Sums and differences in which a term cancels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import Builder, NodeRule, is_constant
from onnxlathe_passes.conditions import FLOATS, broadcasts_into, producer
from onnxlathe_passes.weights import scaled


class CancelledTerms(NodeRule):
    """(p + r) - (p - l) = l + r, and (p - l) + (p + r) = (r - l) + 2p for constants p.

    Detectors predict distances to both sides of a point, and make a center and a size of them.
    """

    name = "cancelled_terms"
    group = "fuse"
    min_opset = 7
    reach = 2
    example = """
    %a = Sub(%p, %l)
    %b = Add(%p, %r)
    %center = Mul(Add(%a, %b), 0.5)
    %size = Sub(%b, %a)
    →
    %center = Mul(Add(Sub(%r, %l), %p2), 0.5)        # p2: 2·p
    %size = Add(%l, %r)
    """

    visits = ("Add", "Sub")

    def visit(self, op: Builder, node: ir.Node) -> Any:
        if node.op_type == "Sub":
            found = _terms(node.inputs[1], node.inputs[0])
            return None if found is None else op.Add(found[1], found[2])
        for below, above in (node.inputs, node.inputs[::-1]):
            found = _terms(below, above)
            if found is None or not is_constant(found[0]) or not _goes_away(node, below, above):
                continue
            p, left, right = found
            return op.Add(op.Sub(right, left), scaled(op, p, np.array(2.0)))
        return None


def _terms(below: ir.Value | None, above: ir.Value | None) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """p, l and r of values p - l and p + r of the same shape."""
    difference, total = producer(below, "Sub"), producer(above, "Add")
    if difference is None or total is None or difference is total:
        return None
    p, left = difference.inputs
    if p is None or left is None or p.dtype not in FLOATS:
        return None
    for one, right in (total.inputs, total.inputs[::-1]):
        if one is p and right is not None and broadcasts_into(p, left) and broadcasts_into(p, right):
            return p, left, right
    return None


def _goes_away(node: ir.Node, below: ir.Value | None, above: ir.Value | None) -> bool:
    """Whether nothing needs both values but the node, and differences of them, in which the term cancels."""
    if below is None or above is None or below.is_graph_output() or above.is_graph_output():
        return False
    users = {*below.consumers(), *above.consumers()} - {node}
    return all(u.op_type == "Sub" and u.domain == "" and tuple(u.inputs) == (above, below) for u in users)
