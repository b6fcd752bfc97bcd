"""Rules of operators that take parts of tensors, or put tensors together."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer.contents import MAX_ENTRIES, Content, as_content
from onnxlathe.infer.context import NodeContext, normal_axis, product, rule
from onnxlathe.infer.dims import Dim, DimLike, Dims, Expr, ceil_div, floor_div, lower, maximum, minimum, upper
from onnxlathe.infer.values import dims_of, static_size

INT64 = ir.DataType.INT64
_FAR = 2**31 - 1  # bounds from here on mean "to the end": no dimension is as long


@rule("Slice")
def slice_(n: NodeContext) -> None:
    """Exact for symbolic dimensions and bounds as far as their order is provable."""
    dims, dtype = n.dims(0), n.dtype(0)
    if dims is None:
        n.out(0, dtype)
        return
    rank = len(dims)
    starts: list[Any] | None
    ends: list[Any] | None
    axes: list[int] | None = None
    steps: list[Any] | None = None
    if n.opset < 10:
        starts, ends = list(n.attr("starts", ())), list(n.attr("ends", ()))
        given = n.attr("axes")
        axes = None if given is None else list(given)
    else:
        starts, ends = n.entries(1), n.entries(2)
        steps = n.entries(4) if n.has(4) else None
        if n.has(3):
            axes = n.numbers(3)
            if axes is None:
                n.out(0, dtype, (None,) * rank)
                return
        if n.has(4) and steps is None:
            starts = None
    count = len(starts) if starts is not None else len(axes) if axes is not None else None
    if axes is None:
        axes = list(range(rank if count is None else count))
    if starts is None or ends is None:
        starts = ends = [None] * len(axes)
    result = list(dims)
    picks: list[slice] | None = [slice(None)] * rank
    for i, axis in enumerate(axes):
        at = normal_axis(axis, rank)
        if at is None or i >= len(starts) or i >= len(ends):
            continue
        step = 1 if steps is None else steps[i] if i < len(steps) else None
        result[at] = slice_length(dims[at], starts[i], ends[i], step)
        if (
            picks is not None
            and result[at] is not None
            and all(type(x) is int for x in (starts[i], ends[i], step, dims[at]))
        ):
            picks[at] = slice(starts[i], ends[i], step)
        else:
            picks = None
    content = n.content(0)
    n.out(0, dtype, result, None if content is None or picks is None else content[tuple(picks)])


def slice_length(dim: DimLike, start: Any, end: Any, step: Any) -> DimLike:
    """How many elements a slice takes of a dimension; None where that is not certain.

    Args:
        dim: the dimension's size.
        start, end, step: int, Dim, or None where unknown.
    """
    if dim is None or start is None or end is None or type(step) is not int or step == 0:
        return None
    if type(dim) is int and type(start) is int and type(end) is int:
        if step < 0 and start < -dim:
            return None  # Python and ONNX clamp differently
        return len(range(*slice(start, end, step).indices(dim)))
    if step < 0:
        whole = (start == -1 or (type(start) is int and start >= _FAR)) and type(end) is int and end <= -_FAR
        return ceil_div(dim, -step) if whole else None
    first, last = _bound(start, dim), _bound(end, dim)
    if first is None or last is None:
        return None
    # The last k elements, or all of them where there are fewer: dim - max(dim - k, 0).
    tail = last == dim and type(start) is int and -_FAR < start < 0
    length = minimum(dim, -start) if tail else last - first
    low = lower(length)
    if low is None or low < 0:
        length = maximum(length, 0)
    return ceil_div(length, step)


def _bound(bound: Expr, dim: Expr) -> Expr | None:
    """A start or end (step > 0) counted from the front and clamped to ``0 <= bound <= dim``."""
    if isinstance(bound, int):
        if bound >= _FAR:
            return dim
        if bound <= -_FAR:
            return 0
        return minimum(bound, dim) if bound >= 0 else maximum(dim + bound, 0)
    low, high = lower(bound), upper(bound)
    if low is not None and low >= 0:
        return minimum(bound, dim)
    if high is not None and high < 0:
        return maximum(dim + bound, 0)
    return None  # its sign decides what it means


@rule("Gather")
def gather(n: NodeContext) -> None:
    """Replaces one dimension by the shape of the indices."""
    dims, indices = n.dims(0), n.dims(1)
    dtype = n.dtype(0)
    if dims is None or indices is None:
        n.out(0, dtype)
        return
    axis = normal_axis(n.attr("axis", 0), len(dims))
    if axis is None:
        n.out(0, dtype)
        return
    content = n.content(0)
    if content is not None:
        places = n.content(1)
        content = None if places is None else _take(content, places, axis)
    n.out(0, dtype, dims[:axis] + indices + dims[axis + 1 :], content)


def _take(content: Content, places: Content, axis: int) -> Content | None:
    size = content.shape[axis]
    if any(type(i) is not int or not -size <= i < size for i in places.reshape(-1)):
        return None
    if places.size * content.size > MAX_ENTRIES * 4:
        return None
    taken = np.take(content, places.astype(np.int64), axis=axis)
    return taken if isinstance(taken, np.ndarray) else as_content(taken)


@rule("GatherElements")
def gather_elements(n: NodeContext) -> None:
    """The shape of the indices."""
    n.out(0, n.dtype(0), n.dims(1))


@rule("GatherND")
def gather_nd(n: NodeContext) -> None:
    """The indices' last dimension says how many of the data's are indexed away."""
    dims, indices = n.dims(0), n.dims(1)
    batch = n.attr("batch_dims", 0)
    if dims is None or not indices or type(indices[-1]) is not int:
        n.out(0, n.dtype(0))
        return
    n.out(0, n.dtype(0), indices[:-1] + dims[batch + indices[-1] :])


@rule("Concat")
def concat(n: NodeContext) -> None:
    """Sums one dimension; the others are equal in all inputs, so the best statement counts."""
    count = len(n.inputs)
    shapes = [n.dims(i) for i in range(count)]
    dtype = next((d for d in map(n.dtype, range(count)) if d is not None), None)
    known_ranks = [s for s in shapes if s is not None]
    if not known_ranks:
        n.out(0, dtype)
        return
    rank = len(known_ranks[0])
    axis = normal_axis(n.attr("axis", 1 if n.opset < 4 else 0), rank)
    if axis is None or any(len(s) != rank for s in known_ranks):
        n.out(0, dtype)
        return
    result: list[DimLike] = []
    for at in range(rank):
        if at == axis:
            total: DimLike = 0
            for dims in shapes:
                size = None if dims is None else dims[at]
                total = None if total is None or size is None else total + size
            result.append(total)
        else:
            best: DimLike = None
            for dims in known_ranks:
                if best is None or (type(dims[at]) is int and type(best) is not int):
                    best = dims[at]
            result.append(best)
    n.out(0, dtype, result, _concatenate(n, shapes, axis, static_size(tuple(result))))


def _concatenate(n: NodeContext, shapes: list[Dims | None], axis: int, size: int | None) -> Content | None:
    if size is None or size > MAX_ENTRIES or None in shapes:
        return None
    parts: list[Content | None] = [n.content(i) for i in range(len(shapes))]
    if all(p is None for p in parts):
        return None
    filled: list[Content] = []
    for part, dims in zip(parts, shapes, strict=True):
        shape = tuple(d for d in dims or () if isinstance(d, int))
        filled.append(
            as_content([None] * int(np.prod(shape, dtype=np.int64)), shape) if part is None else part
        )
    return np.concatenate(filled, axis=axis)


@rule("Split")
def split(n: NodeContext) -> None:
    """Parts of given sizes, of equal sizes, or ``num_outputs`` parts of which the last may be smaller."""
    dims, dtype = n.dims(0), n.dtype(0)
    count = len(n.outputs)
    if dims is None:
        for i in range(count):
            n.out(i, dtype)
        return
    axis = normal_axis(n.attr("axis", 0), len(dims)) or 0
    dim = dims[axis]
    sizes: list[DimLike]
    if n.attr("split") is not None:
        sizes = list(n.attr("split"))
    elif n.opset >= 13 and n.has(1):
        entries = n.entries(1)
        sizes = [None] * count if entries is None else entries
    elif dim is None:
        sizes = [None] * count
    elif n.opset >= 18 and n.attr("num_outputs") is not None:
        parts = n.attr("num_outputs")
        chunk = ceil_div(dim, parts)
        sizes = [chunk] * (parts - 1) + [dim - chunk * (parts - 1)]
    else:
        sizes = [floor_div(dim, count)] * count
    content = n.content(0)
    at: int | None = 0
    for i in range(count):
        size = sizes[i] if i < len(sizes) else None
        part = None
        if content is not None and at is not None and type(size) is int:
            part = content[(slice(None),) * axis + (slice(at, at + size),)]
            at += size
        else:
            at = None
        n.out(i, dtype, (*dims[:axis], size, *dims[axis + 1 :]), part)


@rule("TopK")
def top_k(n: NodeContext) -> None:
    """Values and indices, k along one axis."""
    dims, dtype = n.dims(0), n.dtype(0)
    k = n.attr("k") if n.opset < 10 else n.scalar(1)
    if dims is None:
        n.out(0, dtype)
        n.out(1, INT64)
        return
    axis = normal_axis(n.attr("axis", -1), len(dims)) or 0
    result: Dims = (*dims[:axis], k if isinstance(k, int | Dim) else None, *dims[axis + 1 :])
    n.out(0, dtype, result)
    n.out(1, INT64, _first_names(n, 0, result))


def _first_names(n: NodeContext, index: int, dims: Dims) -> Dims:
    """The dimensions that an output was given: two outputs of one node have the same unknown sizes."""
    from onnxlathe.infer.values import dims_of

    given = dims_of(n.outputs[index])
    return dims if given is None or len(given) != len(dims) else given


@rule("NonZero")
def non_zero(n: NodeContext) -> None:
    """``(rank, count)``; what the count is, only a run knows, unless the content is known."""
    dims = n.dims(0)
    content = n.content(0)
    if content is not None and content.ndim and all(isinstance(x, int | float) for x in content.reshape(-1)):
        found = np.array(np.nonzero(content != 0))
        n.out(0, INT64, found.shape, as_content(found))
        return
    n.out(0, INT64, (None if dims is None else len(dims), None))


@rule("Compress")
def compress(n: NodeContext) -> None:
    """Keeps the elements that a condition selects, of one axis or of the flat tensor."""
    dims, axis = n.dims(0), n.attr("axis")
    if axis is None:
        n.out(0, n.dtype(0), (None,))
        return
    if dims is None:
        n.out(0, n.dtype(0))
        return
    at = normal_axis(axis, len(dims)) or 0
    n.out(0, n.dtype(0), (*dims[:at], None, *dims[at + 1 :]))


@rule("Unique")
def unique(n: NodeContext) -> None:
    """Unique elements (or slices along an axis), with indices, inverse indices and counts."""
    dims, axis = n.dims(0), n.attr("axis")
    shape: Dims | None
    inverse: DimLike = None
    at, shape = 0, None
    if axis is None:
        shape = (None,)
        inverse = None if dims is None else product(dims)
    elif dims is not None:
        at = normal_axis(axis, len(dims)) or 0
        shape, inverse = (*dims[:at], None, *dims[at + 1 :]), dims[at]
    n.out(0, n.dtype(0), shape)
    count = _dim_of(n, 0, at)  # one number, whatever its name
    n.out(1, INT64, (count,))
    n.out(2, INT64, (inverse,))
    n.out(3, INT64, (_dim_of(n, 1, 0) if count is None else count,))


def _dim_of(n: NodeContext, output: int, axis: int) -> DimLike:
    dims = dims_of(n.outputs[output]) if output < len(n.outputs) else None
    return dims[axis] if dims is not None and axis < len(dims) else None


@rule("NonMaxSuppression")
def non_max_suppression(n: NodeContext) -> None:
    """``(count, 3)``: batch, class and box."""
    n.out(0, INT64, (None, 3))
