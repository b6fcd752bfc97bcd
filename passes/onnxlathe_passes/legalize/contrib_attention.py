"""ONNX Runtime's attention operators (com.microsoft) as projections, products and a softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import reject, require
from onnxlathe_passes.legalize.contrib import attribute_of
from onnxlathe_passes.legalize.draft import (
    Draft,
    element_type,
    extent,
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


def split_heads(op: Draft, x: ir.Value, count: int) -> ir.Value:
    """[batch, length, count * size] as [batch, count, length, size]."""
    split = op.Reshape(x, op.ints([0, 0, count, extent(x, -1) // count]))
    result: ir.Value = op.Transpose(split, perm=[0, 2, 1, 3])
    return result


def joined_heads(op: Draft, x: ir.Value) -> ir.Value:
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
    scale = float(attribute_of(node, "scale", 0.0)) or 1.0 / math.sqrt(extent(query, -1))
    scores = op.Mul(op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2])), op.like(scale, query))
    for mask in masks:
        scores = op.Add(scores, mask)
    if attribute_of(node, "unidirectional", 0):
        lowest = float(np.finfo(np.float16 if element_type(query) == T.FLOAT16 else np.float32).min)
        scores = op.Where(_future(op, query, key), op.like(lowest, scores), scores)
    result: ir.Value = op.MatMul(op.Softmax(scores, axis=-1), value)
    return result


def _future(op: Draft, query: ir.Value, key: ir.Value) -> ir.Value:
    """Which keys lie after each query: the last query sees all of them."""
    rows, columns = op.Shape(query, start=2, end=3), op.Shape(key, start=2, end=3)
    at = op.Add(positions(op, rows), op.Sub(columns, rows))
    result: ir.Value = op.Less(op.unsqueeze(at, 1), op.unsqueeze(positions(op, columns), 0))
    return result


def _padding(op: Draft, node: ir.Node, mask: ir.Value, like: ir.Value, length_of: ir.Value) -> ir.Value:
    """A mask of keys as a summand."""
    rank = rank_of(mask)
    require(rank < 4, "a mask of Megatron")
    low = op.like(float(attribute_of(node, "mask_filter_value", -10000.0)), like)
    if rank == 1:
        seen = _within(op, mask, like, positions(op, op.Shape(length_of, start=2, end=3)))
    else:
        seen = op.Not(op.Equal(op.cast(mask, T.INT32), op.constant(np.int32(0))))
    if rank in (1, 2):
        seen = op.unsqueeze(seen, 1, 2)
    elif rank == 3:
        seen = op.unsqueeze(seen, 1)
    result: ir.Value = op.Where(seen, op.like(0.0, like), low)
    return result


def _within(op: Draft, mask: ir.Value, like: ir.Value, places: ir.Value) -> ir.Value:
    """Which keys lie in each row's sequence: up to its end, or between the ends and the starts behind them."""
    batch, ours = static_or_none(like), static_or_none(mask)
    if batch is None or ours is None or batch[0] is None:
        reject("a mask of unknown length")
    columns, numbers = op.unsqueeze(places, 0), op.cast(mask, T.INT64)
    if ours[0] == batch[0]:
        ends: ir.Value = op.Less(columns, op.unsqueeze(numbers, 1))
        return ends
    require(ours[0] == batch[0] * 2, "a packed mask")
    both = op.Reshape(numbers, op.ints([2, -1, 1]))
    end, start = (op.squeeze(op.slice(both, 0, i, i + 1), 0) for i in range(2))
    between: ir.Value = op.And(op.Less(columns, end), op.GreaterOrEqual(columns, start))
    return between


@lowers(f"{_MS}::Attention")
def attention(op: Draft, node: ir.Node) -> Sequence[ir.Value | None]:
    """Self-attention with its three projections in one."""
    weights, bias = given(node, 1), operand(node, 2)
    require(operand(node, 6) is None, "a shared buffer")
    total = static_dims(weights)[1]
    sizes = [int(s) for s in attribute_of(node, "qkv_hidden_sizes", None) or [total // 3] * 3]
    projected = op.MatMul(given(node, 0), weights)
    if bias is not None:
        projected = op.Add(projected, bias)
    return self_attended(op, node, projected, sizes, operand(node, 3), operand(node, 4), operand(node, 5))


def self_attended(
    op: Draft,
    node: ir.Node,
    projected: ir.Value,
    sizes: Sequence[int],
    mask: ir.Value | None,
    past: ir.Value | None,
    addend: ir.Value | None,
) -> Sequence[ir.Value | None]:
    """Attention of queries, keys and values that lie side by side, `sizes` of each; and the cache afterwards."""
    require(not attribute_of(node, "do_rotary", 0), "rotary embedding inside")
    count = int(attribute_of(node, "num_heads", 1))
    ends = [sum(sizes[: i + 1]) for i in range(3)]
    query, key, value = (
        split_heads(op, op.slice(projected, -1, e - s, e), count) for s, e in zip(sizes, ends, strict=True)
    )
    if past is not None:
        old_key = op.squeeze(op.slice(past, 0, 0, 1), 0)
        old_value = op.squeeze(op.slice(past, 0, 1, 2), 0)
        key, value = op.Concat(old_key, key, axis=2), op.Concat(old_value, value, axis=2)
    masks = [] if mask is None else [_padding(op, node, mask, query, key)]
    masks += [] if addend is None else [addend]
    result = joined_heads(op, _attended(op, node, query, key, value, masks))
    present = op.Concat(op.unsqueeze(key, 0), op.unsqueeze(value, 0), axis=0) if wanted(node, 1) else None
    return [result, present]


@lowers(f"{_MS}::MultiHeadAttention")
def multi_head_attention(op: Draft, node: ir.Node) -> Sequence[ir.Value | None]:
    """Attention of given queries, keys and values."""
    bias, mask, addend = operand(node, 3), operand(node, 4), operand(node, 5)
    past_key, past_value = operand(node, 6), operand(node, 7)
    require(operand(node, 8) is None and operand(node, 9) is None, "a shared buffer")
    require(not wanted(node, 3), "its scores are asked for")
    query, key, value = _three(op, node, bias)
    if past_key is not None and past_value is not None:
        key, value = op.Concat(past_key, key, axis=2), op.Concat(past_value, value, axis=2)
    masks = [] if mask is None else [_padding(op, node, mask, query, key)]
    masks += [] if addend is None else [addend]
    result = joined_heads(op, _attended(op, node, query, key, value, masks))
    return [result, key if wanted(node, 1) else None, value if wanted(node, 2) else None]


def _three(op: Draft, node: ir.Node, bias: ir.Value | None) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Queries, keys and values as [batch, heads, length, size], however they were packed."""
    count = int(attribute_of(node, "num_heads", 1))
    query, key, value = given(node, 0), operand(node, 1), operand(node, 2)
    if rank_of(query) == 5:
        require(key is None and value is None and bias is None, "packed queries, keys and values with more")
        return _unpacked(op, query, 0), _unpacked(op, query, 1), _unpacked(op, query, 2)
    key = given(node, 1) if key is None else key
    if bias is not None:
        width = extent(query, -1)
        query = op.Add(query, op.slice(bias, 0, 0, width))
        if value is not None and rank_of(key) == 3:
            key = op.Add(key, op.slice(bias, 0, width, 2 * width))
            value = op.Add(value, op.slice(bias, 0, 2 * width, static_dims(bias)[0]))
    query = split_heads(op, query, count)
    if rank_of(key) == 5:
        require(value is None and bias is None, "packed keys and values with more")
        return query, _unpacked(op, key, 0), _unpacked(op, key, 1)
    value = given(node, 2) if value is None else value
    key = split_heads(op, key, count) if rank_of(key) == 3 else key
    value = split_heads(op, value, count) if rank_of(value) == 3 else value
    return query, key, value


def _unpacked(op: Draft, packed: ir.Value, which: int) -> ir.Value:
    """One of the tensors of [batch, length, heads, tensors, size] as [batch, heads, length, size]."""
    one = op.squeeze(op.slice(packed, 3, which, which + 1), 3)
    result: ir.Value = op.Transpose(one, perm=[0, 2, 1, 3])
    return result


@lowers(f"{_MS}::RotaryEmbedding")
def rotary_embedding(op: Draft, node: ir.Node) -> ir.Value:
    """Pairs of numbers turned by an angle that grows with the position."""
    x, places, cosines, sines = (given(node, i) for i in range(4))
    require(not attribute_of(node, "is_packed_batching", 0), "ragged batches")
    require(float(attribute_of(node, "scale", 1.0)) == 1.0, "a scale")
    rank = rank_of(x)
    half = extent(cosines, -1)
    if rank == 3:
        width = extent(x, -1)
        x = split_heads(op, x, int(attribute_of(node, "num_heads", 0)) or width // (2 * half))
    if rank_of(places) == 1:  # the offset of all positions
        places = op.unsqueeze(op.Add(places, positions(op, op.Shape(x, start=2, end=3))), 0)
    angles = [op.unsqueeze(op.Gather(table, places, axis=0), 1) for table in (cosines, sines)]
    result = turned(op, x, angles[0], angles[1], interleaved=bool(attribute_of(node, "interleaved", 0)))
    return joined_heads(op, result) if rank == 3 else result


def turned(op: Draft, x: ir.Value, cosine: ir.Value, sine: ir.Value, *, interleaved: bool) -> ir.Value:
    """The first numbers of the last axis turned in pairs; the rest, if any, as they are.

    Args:
        x: `[..., length, size]`.
        cosine, sine: of half as many numbers as are turned; they broadcast over `x` but for the last axis.
        interleaved: pairs stand side by side, not half the turned numbers apart.
    """
    half, size = extent(cosine, -1), extent(x, -1)
    part = op.slice(x, -1, 0, 2 * half) if size != 2 * half else x
    if interleaved:
        first, second = op.slice(part, -1, 0, 2 * half, 2), op.slice(part, -1, 1, 2 * half, 2)
    else:
        first, second = op.slice(part, -1, 0, half), op.slice(part, -1, half, 2 * half)
    real = op.Sub(op.Mul(first, cosine), op.Mul(second, sine))
    imag = op.Add(op.Mul(first, sine), op.Mul(second, cosine))
    if interleaved:
        pairs = op.Concat(op.unsqueeze(real, -1), op.unsqueeze(imag, -1), axis=-1)
        result: ir.Value = op.Reshape(pairs, op.ints([*[0] * (rank_of(x) - 1), -1]))
    else:
        result = op.Concat(real, imag, axis=-1)
    if size != 2 * half:
        result = op.Concat(result, op.slice(x, -1, 2 * half, size), axis=-1)
    return result


def positions(op: Draft, count: ir.Value) -> ir.Value:
    """0, 1, 2, … as int64; `count` is int64[1]."""
    zero, one = op.constant(np.int64(0)), op.constant(np.int64(1))
    result: ir.Value = op.Range(zero, op.squeeze(count, 0), one)
    return result
