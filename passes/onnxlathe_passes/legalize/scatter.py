"""Scatters with a reduction, or of more updates than places; exact also where several meet at one place."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import Dim
from onnxlathe.rewrite import require
from onnxlathe_passes.legalize.draft import (
    Draft,
    element_type,
    extent,
    given,
    lowers,
    rank_of,
    static_dims,
    static_or_none,
    value_of,
)

T = ir.DataType
_LARGEST = 1 << 24  # entries of the table of places and updates
_ASSUMED = 256  # updates, where their number is open
_NEUTRAL = {"add": 0, "mul": 1}


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _combined(op: Draft, kind: str, data: ir.Value, hits: ir.Value, updates: ir.Value, axis: int) -> ir.Value:
    """`data` joined with those `updates` that hit it; `axis` runs over the updates."""
    dtype = element_type(data)
    if kind == "none":
        return _last(op, data, hits, updates, axis)
    if kind in _NEUTRAL:
        neutral = op.like(_NEUTRAL[kind], data)
        reduced = op.reduce(
            "Sum" if kind == "add" else "Prod", op.Where(hits, updates, neutral), [axis], False
        )
        total: ir.Value = op.Add(data, reduced) if kind == "add" else op.Mul(data, reduced)
        return total
    if dtype.name.startswith(("INT", "UINT")):
        info = np.iinfo(dtype.numpy())
        neutral = op.like(info.min if kind == "max" else info.max, data)
    else:
        neutral = op.like(-math.inf if kind == "max" else math.inf, data)
    reduced = op.reduce("Max" if kind == "max" else "Min", op.Where(hits, updates, neutral), [axis], False)
    extreme: ir.Value = op.Max(data, reduced) if kind == "max" else op.Min(data, reduced)
    return extreme


def _last(op: Draft, data: ir.Value, hits: ir.Value, updates: ir.Value, axis: int) -> ir.Value:
    """The last of the updates that hit a place."""
    dims = static_dims(data)
    numbers = np.arange(static_dims(hits)[axis]).reshape([-1] + [1] * (len(dims) - axis))
    order = op.Where(hits, op.constant(numbers.astype(np.int64)), op.ints([-1]))
    last = op.Expand(op.reduce("Max", order, [axis], False), op.ints(dims))
    taken = op.GatherElements(op.squeeze(updates, axis + 1), op.Max(last, op.ints([0])), axis=axis)
    result: ir.Value = op.Where(op.Less(last, op.ints([0])), data, taken)
    return result


def _not_negative(op: Draft, indices: ir.Value, size: int | ir.Value) -> ir.Value:
    limit = op.like(size, indices) if isinstance(size, int) else size
    result: ir.Value = op.Where(op.Less(indices, op.like(0, indices)), op.Add(indices, limit), indices)
    return result


def _both_known(data: object, indices: object) -> bool:
    return data is not None and (data == indices or (isinstance(data, int) and isinstance(indices, int)))


def _places(op: Draft, size: int | Dim, data: ir.Value, axis: int) -> ir.Value:
    """The numbers of all places along an axis."""
    if isinstance(size, int):
        return op.constant(np.arange(size, dtype=np.int64))
    number = op.squeeze(op.Shape(data, start=axis, end=axis + 1), 0)
    result: ir.Value = op.Range(op.constant(np.int64(0)), number, op.constant(np.int64(1)))
    return result


@lowers("ScatterElements")
def scatter_elements(op: Draft, node: ir.Node) -> ir.Value:
    """Each place of the axis takes those of the updates whose index it is."""
    data, indices, updates = (given(node, i) for i in range(3))
    kind = _text(value_of(node, "reduction", op, "none"))
    require(kind in ("none", "add", "mul", "max", "min"), "no such reduction")
    rank = rank_of(data)
    axis = int(value_of(node, "axis", op, 0)) % rank
    dims, moved = static_or_none(data) or [], static_or_none(indices) or []
    # How many places there are may be open where what hits them is joined: the last hit is one of a number.
    size = dims[axis] if dims else None
    if kind == "none" or not isinstance(size, Dim):
        size = extent(data, axis)
    # How many updates there are may be open, and along the other axes what both share.
    require(
        all(i == axis or _both_known(d, m) for i, (d, m) in enumerate(zip(dims, moved, strict=True))),
        "needs known sizes where data and indices may differ",
    )
    count = math.prod(m if isinstance(m, int) else _ASSUMED for m in moved)
    most = size if isinstance(size, int) else _ASSUMED
    require(count * most <= _LARGEST, "too large for a table of places and updates")
    limit = size if isinstance(size, int) else op.Shape(data, start=axis, end=axis + 1)
    at = _not_negative(op, op.cast(indices, T.INT64), limit)
    # [..., updates, places, ...] in place of the axis
    places = op.unsqueeze(_places(op, size, data, axis), 0, *range(2, rank - axis + 1))
    hits = op.Equal(op.unsqueeze(at, axis + 1), places)
    inner = data
    other = [i for i in range(rank) if i != axis and moved[i] != dims[i]]
    ends = {i: extent(indices, i) for i in other}
    if other:
        inner = op.Slice(data, op.ints([0] * len(other)), op.ints(list(ends.values())), op.ints(other))
    value = _combined(op, kind, inner, hits, op.unsqueeze(updates, axis + 1), axis)
    for i in other:
        # What the updates do not reach along the other axes stays as it was.
        done = [j for j in other if j > i]
        rest = op.slice(data, i, ends[i], extent(data, i))
        if done:
            rest = op.Slice(rest, op.ints([0] * len(done)), op.ints([ends[j] for j in done]), op.ints(done))
        value = op.Concat(value, rest, axis=i)
    return value


@lowers("ScatterND")
def scatter_nd(op: Draft, node: ir.Node) -> ir.Value:
    """Rows of the data, a row number for each update, and the table of which hits which."""
    data, indices, updates = (given(node, i) for i in range(3))
    kind = _text(value_of(node, "reduction", op, "none"))
    require(kind in ("none", "add", "mul", "max", "min"), "no such reduction")
    depth, open_dims = extent(indices, -1), static_or_none(data) or []
    # Of the data, the first dimension may be open: how many rows there are is then asked at run time.
    fixed = not open_dims or isinstance(open_dims[0], int) or depth == 0
    dims = static_dims(data) if fixed else [_ASSUMED, *(extent(data, i) for i in range(1, rank_of(data)))]
    index_dims = static_or_none(indices) or []
    rows, width = int(np.prod(dims[:depth])), int(np.prod(dims[depth:]))
    require(fixed or (kind != "none" and 0 not in dims), "needs known sizes")
    static = all(isinstance(n, int) for n in index_dims[:-1])
    require(static or (kind != "none" and width > 0), "needs a known number of updates")
    count = math.prod(n for n in index_dims[:-1] if isinstance(n, int)) if static else -1
    require(
        rows * width * (count if static else _ASSUMED) <= _LARGEST,
        "too large for a table of places and updates",
    )
    strides = [int(np.prod(dims[i + 1 : depth])) for i in range(depth)]
    at = _not_negative(op, indices, op.ints(dims[:depth]) if fixed else op.Shape(data, start=0, end=depth))
    row = op.reduce("Sum", op.Mul(at, op.ints(strides)), [-1], keepdims=False)
    if fixed:
        places = op.constant(np.arange(rows, dtype=np.int64)[None, :, None])
    else:
        number = op.Mul(op.squeeze(op.Shape(data, start=0, end=1), 0), rows // _ASSUMED)
        numbers = op.Range(op.constant(np.int64(0)), number, op.constant(np.int64(1)))
        places = op.unsqueeze(numbers, 0, 2)
    hits = op.Equal(op.reshape(row, [count, 1, 1]), places)
    flat = op.reshape(data, [rows if fixed else -1, width])
    value = _combined(op, kind, flat, hits, op.reshape(updates, [count, 1, width]), 0)
    return op.reshape(value, dims if fixed else [-1, *dims[1:]])


@lowers("Compress")
def compress(op: Draft, node: ir.Node) -> ir.Value:
    """With a constant condition, a Gather of the places where it holds."""
    from onnxlathe_passes.legalize.draft import contents

    x, condition = given(node, 0), contents(given(node, 1))
    places = op.ints(np.flatnonzero(condition))
    axis = node.attributes.get("axis")
    if axis is None:
        result: ir.Value = op.Gather(op.reshape(x, [-1]), places, axis=0)
        return result
    along: ir.Value = op.Gather(x, places, axis=axis.as_int())
    return along


@lowers("TensorScatter")
def tensor_scatter(op: Draft, node: ir.Node) -> ir.Value:
    """Every place of the cache takes the update that falls on it, or stays."""
    from onnxlathe_passes.legalize.draft import operand

    cache, update = given(node, 0), given(node, 1)
    dims, new = static_dims(cache), static_dims(update)
    axis = int(value_of(node, "axis", op, -2)) % len(dims)
    size, length = dims[axis], new[axis]
    circular = _text(value_of(node, "mode", op, "linear")) == "circular"
    start = operand(node, 2)
    if start is None:
        start = op.constant(np.zeros(dims[0], dtype=np.int64))
    # How far each place lies behind the start; a sequence of its own for each of the batch.
    column = op.unsqueeze(op.cast(start, T.INT64), 1)
    behind = op.Sub(op.constant(np.arange(size, dtype=np.int64)[None]), column)
    if circular:
        behind = op.Sub(behind, op.Mul(op.Div(behind, size), size))
        behind = op.Where(op.Less(behind, 0), op.Add(behind, size), behind)
    hit = op.And(op.Not(op.Less(behind, 0)), op.Less(behind, length))
    shape = [dims[0]] + [1] * (len(dims) - 1)
    shape[axis] = size
    hit = op.reshape(hit, shape)
    place = op.Where(hit, op.reshape(behind, shape), op.ints([0]))
    target = [n if i != axis else size for i, n in enumerate(dims)]
    taken = op.GatherElements(update, op.Expand(place, op.ints(target)), axis=axis)
    result: ir.Value = op.Where(hit, taken, cache)
    return result
