"""Attention in float32, as the matrix products and the softmax that it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, NodeRule, attribute, reject, require

_LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class AttentionDecompose(NodeRule):
    """Replace Attention in float32 by MatMul, Softmax and MatMul: TensorRT has kernels for it in half only.

    The builder finds the pattern again and fuses what it can. Attention in float16 and bfloat16 stays, and
    so does one with a cache, capped scores or operands of rank 3.
    """

    name = "attention_decompose"
    min_opset = 23
    visits = ("Attention",)
    example = """
    %y = Attention(%q, %k, %v, %mask)
    →
    %y = MatMul(Softmax(Add(MatMul(Mul(%q, s), Transpose(Mul(%k, s))), %mask)), %v)
    """

    def visit(self, op: Builder, node: ir.Node) -> Any:
        query, key, value, mask = (*node.inputs, None)[:4]
        if query is None or key is None or value is None:
            reject("an operand is missing")
        require(query.dtype == ir.DataType.FLOAT, "it is not in float32")
        require(all(x is None for x in node.inputs[4:]), "it has a cache")
        require(
            all(not y.uses() and not y.is_graph_output() for y in node.outputs[1:]), "it has more outputs"
        )
        require(not attribute(node, "softcap", op.opset), "it caps the scores")
        require(attribute(node, "softmax_precision", op.opset) in (None, 1), "its softmax is not in float32")
        heads, groups = _heads(query, key)
        depth, width = _last(query), _last(value)
        scale = attribute(node, "scale", op.opset)
        # As the specification has it: both factors take the root, so that their product overflows later.
        root = sqrt(1 / sqrt(depth) if scale is None else scale)
        query = op.Mul(query, root)
        key = op.Transpose(op.Mul(key, root), perm=[0, 1, 3, 2])
        mask = _mask(op, query, value, mask, causal=bool(attribute(node, "is_causal", op.opset)))
        if groups > 1:  # each head of the keys serves several of the queries
            query = op.Reshape(query, op.constant([0, heads, groups, -1, depth]))
            key, value = (op.Unsqueeze(x, op.constant([2])) for x in (key, value))
            mask = mask and _grouped(op, mask)
        scores = op.MatMul(query, key)
        if mask is None:
            weights = op.Softmax(scores, axis=-1)
        elif mask.dtype == ir.DataType.BOOL:
            # The second choice gives rows that attend to nothing zeros, as the specification wants.
            weights = op.Where(mask, op.Softmax(op.Where(mask, scores, _number(op, _LOWEST)), axis=-1),
                               _number(op, 0.0))  # fmt: skip
        else:
            weights = op.Softmax(op.Add(scores, mask), axis=-1)
        result = op.MatMul(weights, value)
        if groups > 1:
            result = op.Reshape(result, op.constant([0, heads * groups, -1, width]))
        return (result, *([None] * (len(node.outputs) - 1)))


def _number(op: Builder, number: float) -> ir.Value:
    return op.constant(number, ir.DataType.FLOAT)


def _heads(query: ir.Value, key: ir.Value) -> tuple[int, int]:
    """Heads of the keys, and how many of the queries share one."""
    found = []
    for value in (query, key):
        dims = dims_of(value)
        require(dims is not None and len(dims) == 4, "its operands are not of rank 4")
        count = dims[1] if dims is not None else None
        if not isinstance(count, int):
            reject("the number of heads is not known")
        found.append(count)
    return found[1], found[0] // found[1]


def _last(value: ir.Value) -> int:
    dims = dims_of(value)
    size = dims[-1] if dims else None
    if not isinstance(size, int):
        reject("the size of a head is not known")
    return size


def _mask(op: Builder, query: ir.Value, value: ir.Value, mask: ir.Value | None, *, causal: bool) -> Any:
    """The mask, and the causal one in it; `query` has been scaled and has no dimensions of its own yet."""
    if mask is not None:
        require(mask.dtype in (ir.DataType.BOOL, ir.DataType.FLOAT), "its mask is of another type")
    if not causal:
        return mask
    rows, columns = (op.Squeeze(op.Shape(x, start=2, end=3), op.constant([0])) for x in (query, value))
    zero, one = op.constant(0), op.constant(1)
    row = op.Unsqueeze(op.Range(zero, rows, one), op.constant([1]))
    seen = op.GreaterOrEqual(row, op.Range(zero, columns, one))
    seen.dtype = ir.DataType.BOOL
    if mask is None:
        return seen
    if mask.dtype == ir.DataType.BOOL:
        both = op.And(mask, seen)
        both.dtype = ir.DataType.BOOL
        both.shape = mask.shape
        return both
    biased = op.Where(seen, mask, _number(op, _LOWEST))
    biased.shape = mask.shape
    return biased


def _grouped(op: Builder, mask: ir.Value) -> ir.Value:
    """A mask for scores that have one more dimension, of the groups."""
    dims = dims_of(mask)
    if mask.dtype == ir.DataType.BOOL and mask.shape is None:
        return mask  # our own causal one, of rank 2
    require(dims is not None, "the rank of its mask is not known")
    if dims is not None and len(dims) > 2:
        require(dims[-3] == 1, "its mask differs from head to head")
        wider: ir.Value = op.Unsqueeze(mask, op.constant([-3]))
        wider.type = mask.type
        return wider
    return mask
