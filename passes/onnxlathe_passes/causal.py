"""Masks that let each position look at those before it and at itself, and at nothing else."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import Dims, constant, dims_of
from onnxlathe.rewrite import Builder, NodeRule, attribute, is_constant, require
from onnxlathe_passes.conditions import attributes_of, filled, number, operand, producer
from onnxlathe_passes.coordinates import Counters

_READ = 16 << 20  # bytes; a mask of 2048 tokens
_NOTHING = -1e4
"""What is added to a score so that, after a Softmax, nothing of it is left; exporters' smallest such number."""

Side = Literal["below", "above"]
"""Where a condition holds: at keys up to the query's place, or at those after it."""


def is_causal(mask: ir.Value, opset: int) -> bool:
    """Whether an additive mask is 0 for keys up to the query's place, and as good as -∞ for those after it.

    Args:
        mask: `[…, seq, seq]`, the same for all of the batch and all heads.
        opset: version of the default operator set.
    """
    if not _square(dims_of(mask)):
        return False
    if is_constant(mask):
        array = constant(mask, max_bytes=_READ)
        if array is None or array.dtype.kind in "OSUbc":
            return False
        rows = np.asarray(array, np.float64).reshape(-1, *array.shape[-2:])
        above = np.triu(np.ones(rows.shape[1:], np.bool_), 1)
        return bool((rows[:, ~above] == 0).all() and (rows[:, above] <= _NOTHING).all())
    node = producer(mask, "Where", "Trilu", "Mul", "Cast", "Unsqueeze", "Expand", "Identity")
    if node is None:
        return False
    if node.op_type == "Where":
        chosen, other = (filled(v) if v is not None else None for v in node.inputs[1:])
        side = holds(node.inputs[0], Counters(opset))
        zero, least = (chosen, other) if side == "below" else (other, chosen)
        return side is not None and zero == 0 and _hides(least)
    if node.op_type == "Trilu":
        offset = number(operand(node, 1)) if operand(node, 1) is not None else 0
        x = node.inputs[0]
        hides = x is not None and _hides(filled(x))
        return attribute(node, "upper", opset) == 1 and offset == 1 and hides
    if node.op_type == "Mul":
        for one, by in (node.inputs, node.inputs[::-1]):
            cast = producer(one, "Cast")
            if cast is not None and by is not None and _hides(filled(by)):
                return holds(cast.inputs[0], Counters(opset)) == "above"
        return False
    return node.inputs[0] is not None and is_causal(node.inputs[0], opset)


def holds(condition: ir.Value | None, counters: Counters) -> Side | None:
    """On which side of the diagonal a condition over `[…, queries, keys]` holds, if exactly on one."""
    dims = dims_of(condition) if condition is not None else None
    if condition is None or not _square(dims):
        return None
    if is_constant(condition):
        return _read(condition)
    node = condition.producer()
    if node is None or node.domain != "":
        return None
    if node.op_type in ("Unsqueeze", "Expand", "Identity"):
        return holds(node.inputs[0], counters)
    if node.op_type == "Not":
        inner = holds(node.inputs[0], counters)
        return None if inner is None else "above" if inner == "below" else "below"
    if node.op_type == "And":
        for one, other in (node.inputs, node.inputs[::-1]):
            if counters.truth(one) is True:
                return holds(other, counters)
        return None
    return _compared(node, counters, dims or ())


def _compared(node: ir.Node, counters: Counters, dims: Dims) -> Side | None:
    """Comparisons of the places of keys and queries."""
    if node.op_type not in ("GreaterOrEqual", "Greater", "LessOrEqual", "Less"):
        return None
    a, b = (counters.affine(v) for v in node.inputs)
    if a is None or b is None:
        return None
    if node.op_type.startswith("Less"):
        a, b = b, a
    x, y = a.across(dims), b.across(dims)
    if x is None or y is None:
        return None
    # The condition is `least <= base + slope·place`, where the place is that of a query or of a key.
    base = a.base - b.base - (0 if node.op_type.endswith("Equal") else 1)
    slope = [i - j for i, j in zip(x, y, strict=True)]
    if any(by != 0 for by in slope[:-2]):
        return None
    if slope[-2:] == [1, -1] and base == 0:
        return "below"
    return "above" if slope[-2:] == [-1, 1] and base == -1 else None


def _read(condition: ir.Value) -> Side | None:
    array = constant(condition, max_bytes=_READ)
    if array is None or array.dtype != np.bool_:
        return None
    rows = array.reshape(-1, *array.shape[-2:])
    below = np.tril(np.ones(rows.shape[1:], np.bool_))
    if bool((rows == below).all()):
        return "below"
    return "above" if bool((rows == ~below).all()) else None


def _square(dims: Dims | None) -> bool:
    return dims is not None and len(dims) >= 2 and dims[-1] is not None and dims[-1] == dims[-2] != 1


def _hides(number: float | None) -> bool:
    return number is not None and number <= _NOTHING


class CausalAttention(NodeRule):
    """An Attention whose mask hides what comes after each position, told so by `is_causal`.

    The mask need not be made then, and kernels skip what it would hide.
    """

    name = "causal_attention"
    group = "fuse"
    min_opset = 23
    example = """
    %m = LessOrEqual(Unsqueeze(%places, 0), Unsqueeze(%places, 1))      # places: Range(0, seq, 1)
    %y = Attention(%q, %k, %v, %m)
    →
    %y = Attention<is_causal=1>(%q, %k, %v)
    """

    visits = ("Attention",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        mask = operand(node, 3)
        if mask is None:
            return None
        outputs = [output for output in node.outputs if output.uses() or output.is_graph_output()]
        require(outputs == [node.outputs[0]], "its scores or caches are used as well")
        require(all(operand(node, index) is None for index in (4, 5, 6)), "there are keys from before")
        boolean = mask.dtype == ir.DataType.BOOL
        hides = holds(mask, Counters(op.opset)) == "below" if boolean else is_causal(mask, op.opset)
        require(hides, "its mask does not hide what comes after each position, or more than that")
        attributes = attributes_of(node) | {"is_causal": 1}
        return op.node("Attention", node.inputs[:3], attributes).outputs[0]
