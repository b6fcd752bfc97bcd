"""Arithmetic with constants, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import Builder, NodeRule, is_constant
from onnxlathe_passes.conditions import FLOATS, SMALL, Array, producer, small_constant, used_once
from onnxlathe_passes.rmsnorm import is_rms_scale

T = ir.DataType
_INTEGERS = frozenset({T.INT8, T.INT16, T.INT32, T.INT64, T.UINT8, T.UINT16, T.UINT32, T.UINT64})
# Half of a type's bits of precision, and of its range of exponents: with constants inside of these, one
# rounding instead of two is all that changes.
_HALF_PRECISION = {T.FLOAT16: 2.0**5, T.BFLOAT16: 2.0**4, T.FLOAT: 2.0**12, T.DOUBLE: 2.0**26}
HALF_RANGE = {T.FLOAT16: 2.0**7, T.BFLOAT16: 2.0**20, T.FLOAT: 2.0**20, T.DOUBLE: 2.0**100}


def with_constant(node: ir.Node, max_bytes: int = SMALL) -> tuple[ir.Value, Array] | None:
    """The operands of a node as a tensor and a constant; the constant of Sub and Div is the right one."""
    left, right = node.inputs
    array = small_constant(right, max_bytes)
    if array is not None and left is not None and not is_constant(left):
        return left, array
    if node.op_type in ("Add", "Mul") and right is not None and not is_constant(right):
        array = small_constant(left, max_bytes)
        return None if array is None else (right, array)
    return None


def joined(left: Array, right: Array, compute: Any, dtype: ir.DataType) -> Array | None:
    """The constants combined, floats in double precision."""
    try:
        with np.errstate(all="ignore"):
            if dtype in FLOATS:
                result = compute(left.astype(np.float64), right.astype(np.float64))
            else:
                result = compute(left, right)
    except ValueError:
        return None
    if result.size > max(left.size, right.size):
        return None
    return np.asarray(result)


def moderate(arrays: list[Array], limit: float, *, from_below: bool) -> bool:
    """Whether all numbers are well inside of the type's limits (or 0)."""
    for array in arrays:
        sizes = np.abs(array.astype(np.float64))
        sizes = sizes[sizes != 0]
        if not np.isfinite(sizes).all() or (sizes > limit).any():
            return False
        if from_below and (sizes < 1 / limit).any():
            return False
    return True


def _keeps_its_size(term: Array, *parts: Array) -> bool:
    """Whether the sum does not cancel: (x + 4000) - 4000 loses digits of x that x + 0 would keep."""
    largest = max(float(np.abs(p.astype(np.float64)).max(initial=0)) for p in parts)
    return float(np.abs(term).min(initial=np.inf)) * 2 >= largest


@dataclass(frozen=True)
class _Chain:
    """(x ∘ a) ∘ b: two operators with a constant each; `below` is the first, which nothing else needs."""

    x: ir.Value
    a: Array
    b: Array
    dtype: ir.DataType
    below: ir.Node

    @classmethod
    def of(cls, node: ir.Node, *op_types: str) -> _Chain | None:
        """The chain that ends in a node, where both operators are of these."""
        outer = with_constant(node)
        below = producer(outer[0], *op_types) if outer is not None else None
        if outer is None or below is None or not used_once(outer[0]):
            return None
        inner, dtype = with_constant(below), outer[0].dtype
        return None if inner is None or dtype is None else cls(*inner, outer[1], dtype, below)


class ScaleChain(NodeRule):
    """(x * a) * b = x * (a*b); (x / a) / b = x / (a*b); (x * a) / b = x * (a/b); (x / a) * b = x * (b/a).

    For floating point, where a and b are far from the limits of their type; integers only multiply. The
    constants are combined in double precision. The scale of an RMS normalization stays a vector before
    opset 23: ONNX Runtime fuses the whole only.
    """

    name = "scale_chain"
    group = "tidy"
    min_opset = 7
    example = """
    %a = Mul(%x, 0.5)
    %y = Mul(%a, 0.25)
    →
    %y = Mul(%x, 0.125)
    """

    visits = ("Mul", "Div")

    def visit(self, op: Builder, node: ir.Node) -> Any:
        chain = _Chain.of(node, "Mul", "Div")
        if chain is None:
            return None
        x, a, b, dtype, below = chain.x, chain.a, chain.b, chain.dtype, chain.below
        kinds = (below.op_type, node.op_type)
        if b.ndim > 1 and below.op_type == "Mul" and is_rms_scale(below, op.opset):
            return None
        if dtype in FLOATS:
            if not moderate([a, b], HALF_RANGE[dtype], from_below=True):
                return None
        elif dtype not in _INTEGERS or kinds != ("Mul", "Mul"):
            return None
        if (kinds[0] == "Div" and not a.all()) or (kinds[1] == "Div" and not b.all()):
            return None
        if kinds == ("Mul", "Div"):
            factor = joined(a, b, np.divide, dtype)
        elif kinds == ("Div", "Mul"):
            factor = joined(b, a, np.divide, dtype)
        else:
            factor = joined(a, b, np.multiply, dtype)
        if factor is None or (dtype in FLOATS and not moderate([factor], HALF_RANGE[dtype], from_below=True)):
            return None
        constant = op.constant(factor, dtype)
        return op.Div(x, constant) if kinds == ("Div", "Div") else op.Mul(x, constant)


class OffsetChain(NodeRule):
    """(x + a) + b = x + (a+b); (x - a) - b = x - (a+b); (x + a) - b = x + (a-b); (x - a) + b = x + (b-a).

    For floating point only with numbers so small that nothing of x is lost in between: adding and
    subtracting 2^23 is how some programs round.
    """

    name = "offset_chain"
    group = "tidy"
    min_opset = 7
    example = """
    %a = Add(%x, 1.0)
    %y = Add(%a, 0.5)
    →
    %y = Add(%x, 1.5)
    """

    visits = ("Add", "Sub")

    def visit(self, op: Builder, node: ir.Node) -> Any:
        chain = _Chain.of(node, "Add", "Sub")
        if chain is None:
            return None
        x, a, b, dtype, below = chain.x, chain.a, chain.b, chain.dtype, chain.below
        if dtype in FLOATS:
            if not moderate([a, b], _HALF_PRECISION[dtype], from_below=False):
                return None
        elif dtype not in _INTEGERS:
            return None
        kinds = (below.op_type, node.op_type)
        if kinds == ("Add", "Sub"):
            term = joined(a, b, np.subtract, dtype)
        elif kinds == ("Sub", "Add"):
            term = joined(b, a, np.subtract, dtype)
        else:
            term = joined(a, b, np.add, dtype)
        if term is None or (dtype in FLOATS and not _keeps_its_size(term, a, b)):
            return None
        constant = op.constant(term, dtype)
        return op.Sub(x, constant) if kinds == ("Sub", "Sub") else op.Add(x, constant)
