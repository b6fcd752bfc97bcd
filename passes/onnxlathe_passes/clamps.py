"""Chains of Relu, Clip, Min and Max with numbers: all of them clamp to an interval, and so does the chain."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import Builder, NodeRule, attribute
from onnxlathe_passes.conditions import broadcasts_into, number, operand, producer

_CLAMPS = ("Relu", "Clip", "Min", "Max")
# The types that both Min/Max and Clip are commonly implemented for.
_COMMON = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE})
# Clip of opset 6 has these as its default bounds.
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Clamp:
    """min(max(x, low), high): also what Clip means where low > high."""

    x: ir.Value
    low: Any = -math.inf
    high: Any = math.inf

    def __call__(self, number: Any) -> Any:
        return min(max(number, self.low), self.high)

    def after(self, inner: Clamp) -> Clamp:
        """The clamp that does what `inner` and then this one do."""
        return Clamp(inner.x, self(min(inner.low, inner.high)), self(inner.high))


def as_clamp(node: ir.Node, opset: int) -> Clamp | None:
    """What the node clamps to, where that is known."""
    if node.op_type == "Relu":
        return _clamp(node.inputs[0], 0, math.inf)
    if node.op_type == "Clip":
        if opset < 11:
            low, high = attribute(node, "min", opset), attribute(node, "max", opset)
            # Left out, they are the largest numbers of float32, to which infinity is clipped.
            low, high = -_LARGEST if low is None else low, _LARGEST if high is None else high
        else:
            low = -math.inf if operand(node, 1) is None else number(operand(node, 1))
            high = math.inf if operand(node, 2) is None else number(operand(node, 2))
        return _clamp(node.inputs[0], low, high)
    if len(node.inputs) != 2:
        return None
    for x, bound in (node.inputs, node.inputs[::-1]):
        limit = number(bound)
        if limit is not None and x is not None and bound is not None and broadcasts_into(bound, x):
            low, high = (limit, math.inf) if node.op_type == "Max" else (-math.inf, limit)
            return _clamp(x, low, high)
    return None


def _clamp(x: ir.Value | None, low: Any, high: Any) -> Clamp | None:
    if x is None or low is None or high is None or low != low or high != high:
        return None
    return Clamp(x, low, high)


class ClampChain(NodeRule):
    """Relu, Clip, Min and Max by numbers, one after the other = one of them.

    Clip(Clip(x, a, b), c, d) = Clip(x, max(a, c), min(b, d)), where these intervals overlap;
    Clip(Relu(x), _, b) = Clip(x, 0, b); Min(Max(x, a), b) = Clip(x, a, b). A Clip without bounds is nothing.
    """

    name = "clamp_chain"
    group = "tidy"
    min_opset = 6
    example = """
    %a = Relu(%x)
    %y = Min(%a, 6)
    →
    %y = Clip(%x, 0, 6)
    """

    visits = _CLAMPS

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        outer = as_clamp(node, op.opset)
        if outer is None:
            return None
        if (outer.low, outer.high) == (-math.inf, math.inf):
            return outer.x
        node_below = producer(outer.x, *_CLAMPS)
        inner = as_clamp(node_below, op.opset) if node_below is not None else None
        if node_below is None or inner is None:
            return None
        return _emit(op, outer.after(inner), {node.op_type, node_below.op_type})


def _emit(op: Builder, clamp: Clamp, kinds: set[str]) -> ir.Value | None:
    """The clamp, by an operator of the chain where one will do."""
    x, dtype = clamp.x, clamp.x.dtype
    if dtype is None:
        return None
    low = None if clamp.low == -math.inf else clamp.low
    high = None if clamp.high == math.inf else clamp.high
    result: ir.Value
    if kinds == {"Max"}:
        result = op.Max(x, low)
    elif kinds == {"Min"}:
        result = op.Min(x, high)
    elif low == 0 and high is None and "Relu" in kinds:
        result = op.Relu(x)
    elif "Clip" not in kinds and dtype not in _COMMON:
        return None
    elif op.opset >= 11:
        bounds = [None if bound is None else op.constant(bound, dtype) for bound in (low, high)]
        result = op.Clip(x, *bounds)
    elif dtype in _COMMON:
        numbers = {"min": low, "max": high}
        result = op.Clip(x, **{name: None if b is None else float(b) for name, b in numbers.items()})
    else:
        return None
    return result
