"""ONNX Runtime's attention operators (com.microsoft) as projections, products and a softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import require
from onnxlathe_passes.legalize.contrib import _attribute
from onnxlathe_passes.legalize.draft import (
    Draft,
    element_type,
    given,
    lowers,
    operand,
    rank_of,
    static_dims,
    static_or_none,
    wanted,
)

T = ir.DataType
_MS = "com.microsoft"


def _heads(op: Draft, x: ir.Value, count: int) -> ir.Value:
    """[batch, length, count * size] as [batch, count, length, size]."""
    dims = static_or_none(x)
    require(dims is not None and isinstance(dims[-1], int), "the width is not known")
    assert dims is not None
    size = int(dims[-1]) // count  # type: ignore[arg-type]
    split = op.Reshape(x, op.ints([0, 0, count, size]))
    result: ir.Value = op.Transpose(split, perm=[0, 2, 1, 3])
    return result


def _joined(op: Draft, x: ir.Value) -> ir.Value:
    """[batch, count, length, size] as [batch, length, count * size]."""
    result: ir.Value = op.Reshape(op.Transpose(x, perm=[0, 2, 1, 3]), op.ints([0, 0, -1]))
    return result


def _attended(
    op: Draft,
    node: ir.Node,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    masks: Sequence[ir.Value],
) -> ir.Value:
    """softmax(q k^T * scale + masks) v for [batch, heads, length, size]."""
    size = static_or_none(query)
    assert size is not None
    scale = float(_attribute(node, "scale", 0.0)) or 1.0 / math.sqrt(int(size[-1]))  # type: ignore[arg-type]
    scores = op.Mul(op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2])), op.like(scale, query))
    for mask in masks:
        scores = op.Add(scores, mask)
    if _attribute(node, "unidirectional", 0):
        lowest = float(np.finfo(np.float16 if element_type(query) == T.FLOAT16 else np.float32).min)
        scores = op.Where(_future(op, query, key), op.like(lowest, scores), scores)
    result: ir.Value = op.MatMul(op.Softmax(scores, axis=-1), value)
    return result


def _future(op: Draft, query: ir.Value, key: ir.Value) -> ir.Value:
    """Which keys lie after each query: the last query sees all of them."""
    rows, columns = op.Shape(query, start=2, end=3), op.Shape(key, start=2, end=3)
    zero, one = op.constant(np.int64(0)), op.constant(np.int64(1))
    last = op.squeeze(columns, 0)
    at = op.Add(op.Range(zero, op.squeeze(rows, 0), one), op.Sub(last, op.squeeze(rows, 0)))
    result: ir.Value = op.Less(op.unsqueeze(at, 1), op.unsqueeze(op.Range(zero, last, one), 0))
    return result


def _padding(op: Draft, node: ir.Node, mask: ir.Value, like: ir.Value, length_of: ir.Value) -> ir.Value:
    """A mask of keys as a summand."""
    rank = rank_of(mask)
    low = op.like(float(_attribute(node, "mask_filter_value", -10000.0)), like)
    if rank == 1:
        batch = static_or_none(like)
        ours = static_or_none(mask)
        require(batch is not None and ours is not None and batch[0] == ours[0], "a packed mask")
        zero, one = op.constant(np.int64(0)), op.constant(np.int64(1))
        places = op.Range(zero, op.squeeze(op.Shape(length_of, start=2, end=3), 0), one)
        seen = op.Less(op.unsqueeze(places, 0), op.unsqueeze(op.cast(mask, T.INT64), 1))
    else:
        seen = op.Not(op.Equal(op.cast(mask, T.INT32), op.constant(np.int32(0))))
    if rank in (1, 2):
        seen = op.unsqueeze(seen, 1, 2)
    elif rank == 3:
        seen = op.unsqueeze(seen, 1)
    result: ir.Value = op.Where(seen, op.like(0.0, like), low)
    return result


@lowers(f"{_MS}::Attention")
def attention(op: Draft, node: ir.Node) -> Sequence[ir.Value | None]:
    """Self-attention with its three projections in one."""
    x, weights, bias = given(node, 0), given(node, 1), operand(node, 2)
    mask, past, addend = operand(node, 3), operand(node, 4), operand(node, 5)
    require(not _attribute(node, "do_rotary", 0) and operand(node, 6) is None, "rotary, or a shared buffer")
    count = int(_attribute(node, "num_heads", 1))
    total = static_dims(weights)[1]
    sizes = [int(s) for s in _attribute(node, "qkv_hidden_sizes", None) or [total // 3] * 3]
    projected = op.MatMul(x, weights)
    if bias is not None:
        projected = op.Add(projected, bias)
    ends = [sum(sizes[: i + 1]) for i in range(3)]
    query, key, value = (
        _heads(op, op.slice(projected, -1, e - s, e), count) for s, e in zip(sizes, ends, strict=True)
    )
    if past is not None:
        old_key = op.squeeze(op.slice(past, 0, 0, 1), 0)
        old_value = op.squeeze(op.slice(past, 0, 1, 2), 0)
        key, value = op.Concat(old_key, key, axis=2), op.Concat(old_value, value, axis=2)
    masks = [] if mask is None else [_padding(op, node, mask, query, key)]
    masks += [] if addend is None else [addend]
    result = _joined(op, _attended(op, node, query, key, value, masks))
    present = op.Concat(op.unsqueeze(key, 0), op.unsqueeze(value, 0), axis=0) if wanted(node, 1) else None
    return [result, present]


@lowers(f"{_MS}::MultiHeadAttention")
def multi_head_attention(op: Draft, node: ir.Node) -> Sequence[ir.Value | None]:
    """Attention of given queries, keys and values."""
    query, key, value = given(node, 0), given(node, 1), given(node, 2)
    bias, mask, addend = operand(node, 3), operand(node, 4), operand(node, 5)
    past_key, past_value = operand(node, 6), operand(node, 7)
    require(rank_of(query) == 3, "packed queries, keys and values")
    require(operand(node, 8) is None and operand(node, 9) is None, "a shared buffer")
    count = int(_attribute(node, "num_heads", 1))
    if bias is not None:
        width = static_dims(query)[-1] if static_or_none(query) is None else int(static_or_none(query)[-1])  # type: ignore[index, arg-type]
        parts = [op.slice(bias, 0, 0, width), op.slice(bias, 0, width, 2 * width)]
        parts.append(op.slice(bias, 0, 2 * width, static_dims(bias)[0]))
        query = op.Add(query, parts[0])
        if rank_of(key) == 3:
            key, value = op.Add(key, parts[1]), op.Add(value, parts[2])
    query = _heads(op, query, count)
    key = _heads(op, key, count) if rank_of(key) == 3 else key
    value = _heads(op, value, count) if rank_of(value) == 3 else value
    if past_key is not None and past_value is not None:
        key, value = op.Concat(past_key, key, axis=2), op.Concat(past_value, value, axis=2)
    masks = [] if mask is None else [_padding(op, node, mask, query, key)]
    masks += [] if addend is None else [addend]
    result = _joined(op, _attended(op, node, query, key, value, masks))
    return [result, key if wanted(node, 1) else None, value if wanted(node, 2) else None]


@lowers(f"{_MS}::RotaryEmbedding")
def rotary_embedding(op: Draft, node: ir.Node) -> ir.Value:
    """Pairs of numbers turned by an angle that grows with the position."""
    x, places, cosines, sines = (given(node, i) for i in range(4))
    require(rank_of(places) == 2, "one offset for all positions")
    rank = rank_of(x)
    half = static_dims(cosines)[-1]
    count = int(_attribute(node, "num_heads", 0))
    if rank == 3:
        dims = static_or_none(x)
        assert dims is not None
        require(isinstance(dims[-1], int), "the width is not known")
        count = count or int(dims[-1]) // (2 * half)  # type: ignore[arg-type]
        x = _heads(op, x, count)
    size = static_or_none(x)
    assert size is not None
    turned = int(size[-1])  # type: ignore[arg-type]
    part = op.slice(x, -1, 0, 2 * half) if turned != 2 * half else x
    cosine = op.unsqueeze(op.Gather(cosines, places, axis=0), 1)
    sine = op.unsqueeze(op.Gather(sines, places, axis=0), 1)
    if _attribute(node, "interleaved", 0):
        first, second = op.slice(part, -1, 0, 2 * half, 2), op.slice(part, -1, 1, 2 * half, 2)
    else:
        first, second = op.slice(part, -1, 0, half), op.slice(part, -1, half, 2 * half)
    real = op.Sub(op.Mul(first, cosine), op.Mul(second, sine))
    imag = op.Add(op.Mul(first, sine), op.Mul(second, cosine))
    if _attribute(node, "interleaved", 0):
        pairs = op.Concat(op.unsqueeze(real, -1), op.unsqueeze(imag, -1), axis=-1)
        result = op.Reshape(pairs, op.ints([0, 0, 0, -1]))
    else:
        result = op.Concat(real, imag, axis=-1)
    if turned != 2 * half:
        result = op.Concat(result, op.slice(x, -1, 2 * half, turned), axis=-1)
    return _joined(op, result) if rank == 3 else result
