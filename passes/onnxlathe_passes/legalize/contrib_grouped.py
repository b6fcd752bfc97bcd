"""GroupQueryAttention (com.microsoft), the attention of language models made for ONNX Runtime.

It holds rotary embedding, a cache of keys and values, and a causal mask; how many positions of the cache count
is an input. Semantics: ContribOperators.md of ONNX Runtime, and what its CPU kernel does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import require
from onnxlathe_passes.legalize.contrib import normalized
from onnxlathe_passes.legalize.contrib_attention import positions, split_heads, turned
from onnxlathe_passes.legalize.draft import (
    Draft,
    element_type,
    extent,
    given,
    lowers,
    operand,
    rank_of,
    static_or_none,
    value_of,
    wanted,
)

T = ir.DataType


@dataclass(frozen=True)
class _Cache:
    """Where the new keys and values go.

    Attributes:
        length: of the cache afterwards, int64[1].
        ends: how many positions of each row count afterwards, int64[batch, 1].
        kept: how many of the old cache do, int64[batch or 1, 1].
        first: whether nothing of it does, as in the first call with a prompt; `None` where there is no old cache.
    """

    length: ir.Value
    ends: ir.Value
    kept: ir.Value
    first: ir.Value | None

    @classmethod
    def of(cls, op: Draft, node: ir.Node, new: ir.Value) -> _Cache:
        """As the operands say; `new` are keys or values, `[batch, groups, length, size]`."""
        count = op.Shape(new, start=2, end=3)
        past = operand(node, 3)
        ends = op.unsqueeze(op.Add(op.cast(given(node, 5), T.INT64), op.constant(np.int64(1))), 1)
        if past is None:
            return cls(count, ends, op.constant(np.zeros((1, 1), np.int64)), None)
        total = op.Reshape(op.cast(given(node, 6), T.INT64), op.ints([1]))
        first = op.Equal(total, count)
        # Not below zero even for lengths that cannot be: else a query would see nothing, and that has no meaning.
        zero = op.constant(np.int64(0))
        kept = op.Where(first, zero, op.Max(op.Sub(ends, count), zero))
        length = op.Shape(past, start=2, end=3)
        if not _in_place(node):
            length = op.Max(total, length)
        return cls(length, ends, kept, first)

    def filled(self, op: Draft, past: ir.Value | None, new: ir.Value) -> ir.Value:
        """The old positions that count, the new ones behind them, zeros behind these."""
        if past is None or self.first is None:
            return new
        count, before = op.Shape(new, start=2, end=3), op.Shape(past, start=2, end=3)
        place = op.unsqueeze(positions(op, self.length), 0)
        last = op.Sub(op.Add(before, count), op.constant(np.int64(1)))
        source = op.Where(op.Less(place, self.kept), place, op.Add(op.Sub(place, self.kept), before))
        source = op.Min(source, last)
        used = op.Less(place, op.Add(self.kept, count))
        both = op.Concat(past, new, axis=2)
        dims = static_or_none(new)
        if dims is not None and dims[0] == 1:
            rows = op.Gather(both, op.squeeze(source, 0), axis=2)
        else:
            shape = op.Concat(op.Shape(new, start=0, end=2), self.length, op.Shape(new, start=3), axis=0)
            rows = op.GatherElements(both, op.Expand(op.unsqueeze(source, 1, 3), shape), axis=2)
        result: ir.Value = op.Where(op.unsqueeze(used, 1, 3), rows, op.like(0.0, rows))
        return result


def _in_place(node: ir.Node) -> bool:
    """Whether the cache keeps its length, which is how models say that both are one buffer."""
    past = dims_of(given(node, 3))
    after = dims_of(node.outputs[1]) if len(node.outputs) > 1 else None
    return past is not None and after is not None and past[2] is not None and past[2] == after[2]


@lowers("com.microsoft::GroupQueryAttention")
def group_query_attention(op: Draft, node: ir.Node) -> Sequence[ir.Value | None]:
    """Causal attention whose keys and values groups of heads share, over a cache that is longer than its contents.

    Queries are `[batch, groups, times, length, size]` and keys `[batch, groups, 1, length, size]`, so that nothing
    is repeated.
    """
    require(operand(node, 12) is None and operand(node, 13) is None, "a quantized cache")
    require(not value_of(node, "sliding_window_cache", op, 0), "a cache that forgets")
    require(bool(value_of(node, "causal", op, 1)), "attention in both directions")
    require(not wanted(node, 3), "its scores are asked for")
    query, key, value = _projections(op, node)
    cache = _Cache.of(op, node, key)
    if value_of(node, "do_rotary", op, 0):
        cosine, sine = _angles(op, node, cache, key)
        flag = bool(value_of(node, "rotary_interleaved", op, 0))
        key = turned(op, key, cosine, sine, interleaved=flag)
        cosine, sine = op.unsqueeze(cosine, 1), op.unsqueeze(sine, 1)
        query = turned(op, query, cosine, sine, interleaved=flag)
    count = op.Shape(key, start=2, end=3)
    key = cache.filled(op, operand(node, 3), key)
    value = cache.filled(op, operand(node, 4), value)

    scale = float(value_of(node, "scale", op, 0.0)) or 1.0 / math.sqrt(extent(query, -1))
    keys = op.Transpose(op.unsqueeze(key, 2), perm=[0, 1, 2, 4, 3])
    scores = op.Mul(op.MatMul(query, keys), op.like(scale, query))
    cap = float(value_of(node, "softcap", op, 0.0))
    if cap > 0:
        scores = op.Mul(op.Tanh(op.Mul(scores, op.like(1 / cap, scores))), op.like(cap, scores))
    bias = operand(node, 10)
    if bias is not None:
        scores = op.Add(scores, _bias(op, node, bias, cache))
    scores = op.Add(scores, _mask(op, node, cache, count, element_type(query)))
    weights = _softmax(op, node, scores)
    result = op.Transpose(op.MatMul(weights, op.unsqueeze(value, 2)), perm=[0, 3, 1, 2, 4])
    result = op.Reshape(result, op.ints([0, 0, -1]))
    return [result, key if wanted(node, 1) else None, value if wanted(node, 2) else None]


def _projections(op: Draft, node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Queries `[batch, groups, times, length, size]`, keys and values `[batch, groups, length, size]`."""
    heads, groups = int(value_of(node, "num_heads", op)), int(value_of(node, "kv_num_heads", op))
    query, key, value = given(node, 0), operand(node, 1), operand(node, 2)
    if key is None or value is None:
        size = extent(query, -1) // (heads + 2 * groups)
        ends = [heads * size, (heads + groups) * size, (heads + 2 * groups) * size]
        query, key, value = (op.slice(query, -1, s, e) for s, e in zip([0, *ends], ends, strict=False))
    size = extent(query, -1) // heads
    query = op.Reshape(query, op.ints([0, 0, groups, heads // groups, size]))
    query = op.Transpose(query, perm=[0, 2, 3, 1, 4])
    key, value = split_heads(op, key, groups), split_heads(op, value, groups)
    by_query, by_key = operand(node, 14), operand(node, 15)
    if by_query is not None and by_key is not None:
        epsilon = float(value_of(node, "qk_norm_epsilon", op, 1e-6))
        query = normalized(op, query, by_query, None, epsilon, centered=False)
        key = normalized(op, key, by_key, None, epsilon, centered=False)
    return query, key, value


def _angles(op: Draft, node: ir.Node, cache: _Cache, key: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Cosine and sine of each new position, `[batch or 1, 1, length, half]`."""
    steps = op.unsqueeze(positions(op, op.Shape(key, start=2, end=3)), 0)
    places = operand(node, 9)
    if places is None:
        places = op.Add(cache.kept, steps)
    else:  # of a prompt ONNX Runtime reads the first number alone
        start = op.slice(op.slice(places, 0, 0, 1), 1, 0, 1)
        counted = op.Add(start, steps)
        places = counted if cache.first is None else op.Where(cache.first, counted, places)
    cosine, sine = (op.unsqueeze(op.Gather(given(node, i), places, axis=0), 1) for i in (7, 8))
    return cosine, sine


def _mask(op: Draft, node: ir.Node, cache: _Cache, count: ir.Value, kind: ir.DataType) -> ir.Value:
    """What hides the positions that a query may not see, `[batch or 1, 1, 1, queries, keys]`."""
    window = int(value_of(node, "local_window_size", op, -1))
    at = op.Add(cache.kept, op.unsqueeze(positions(op, count), 0))
    # What pads a shorter prompt sees what the prompt's last position does.
    at = op.unsqueeze(op.Min(at, op.Sub(cache.ends, op.constant(np.int64(1)))), 2)
    place = op.unsqueeze(positions(op, cache.length), 0, 1)
    seen = op.LessOrEqual(place, at)
    if window > 0:
        seen = op.And(seen, op.Greater(place, op.Sub(at, op.constant(np.int64(window)))))
    # Half of the lowest: a score that is added must not make it -inf.
    lowest = float(ml_dtypes.finfo(kind.numpy()).min) / 2
    mask = op.Where(seen, op.constant(0.0, kind), op.constant(lowest, kind))
    return op.unsqueeze(mask, 1, 2)


def _bias(op: Draft, node: ir.Node, bias: ir.Value, cache: _Cache) -> ir.Value:
    """A bias `[batch or 1, heads or 1, queries, total]` for scores in groups over the whole cache."""
    if cache.first is not None:
        last = op.Sub(op.Shape(bias, start=3), op.constant(np.int64(1)))
        bias = op.Gather(bias, op.Min(positions(op, cache.length), last), axis=3)
    if extent(bias, 1) == 1:
        return op.unsqueeze(bias, 1)
    groups = int(value_of(node, "kv_num_heads", op))
    front = op.Concat(op.Shape(bias, end=1), op.ints([groups, -1]), op.Shape(bias, start=2), axis=0)
    result: ir.Value = op.Reshape(bias, front)
    return result


def _softmax(op: Draft, node: ir.Node, scores: ir.Value) -> ir.Value:
    """Over keys, and where asked for over one more score that has no value."""
    sink = operand(node, 11)
    if sink is None and not value_of(node, "smooth_softmax", op, 0):
        result: ir.Value = op.Softmax(scores, axis=-1)
        return result
    groups = int(value_of(node, "kv_num_heads", op))
    if sink is None:
        extra = op.constant(np.zeros((1, 1, 1, 1, 1)), element_type(scores))
    else:
        require(rank_of(sink) == 1, "a sink of another shape")
        extra = op.Reshape(sink, op.ints([1, groups, -1, 1, 1]))
    highest = op.Max(op.reduce("Max", scores, [-1]), extra)
    powers = op.Exp(op.Sub(scores, highest))
    total = op.Add(op.reduce("Sum", powers, [-1]), op.Exp(op.Sub(extra, highest)))
    smooth: ir.Value = op.Div(powers, total)
    return smooth
