"""Rules of operators that ask for shapes, make tensors of given shapes, or change shapes alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer.contents import MAX_ENTRIES, Content, as_content
from onnxlathe.infer.context import NodeContext, broadcast_dim, normal_axis, product, rule
from onnxlathe.infer.dims import Dim, DimLike, Dims, ceil_div, floor_div, maximum
from onnxlathe.infer.fallback import infer_by_schema
from onnxlathe.infer.values import constant_tensor, static_size

INT64 = ir.DataType.INT64


@rule("Shape")
def shape(n: NodeContext) -> None:
    """A vector of dimensions, from ``start`` to ``end`` (opset 15)."""
    dims = n.dims(0)
    if dims is None:
        n.out(0, INT64, (None,))
        return
    if n.opset >= 15:
        dims = dims[slice(n.attr("start", 0), n.attr("end"))]
    n.out(0, INT64, (len(dims),), as_content(dims))


@rule("Size")
def size(n: NodeContext) -> None:
    """The number of elements."""
    dims = n.dims(0)
    total = None if dims is None else product(dims)
    n.out(0, INT64, (), None if total is None else as_content(total))


@rule("Constant")
def constant(n: NodeContext) -> None:
    """Type and shape of what the node holds."""
    tensor = constant_tensor(n.outputs[0])
    if tensor is None:
        return
    if isinstance(tensor, np.ndarray):
        dtype = ir.DataType.STRING if tensor.dtype == object else ir.DataType.from_numpy(tensor.dtype)
        n.out(0, dtype, tensor.shape)
    else:
        n.out(0, tensor.dtype, tensor.shape.numpy())


@rule("ConstantOfShape")
def constant_of_shape(n: NodeContext) -> None:
    """A tensor of the shape that the input holds, filled with one value."""
    tensor = n.attr("value")
    dtype = ir.DataType.FLOAT if tensor is None else tensor.dtype
    entries = n.entries(0)
    if entries is None:
        n.out(0, dtype)
        return
    dims = _sizes(entries)
    elements = static_size(dims)
    content = None
    if elements is not None and elements <= MAX_ENTRIES:
        fill: Any = 0.0 if tensor is None else tensor.numpy().reshape(-1)[0].item()
        if isinstance(fill, bool | int | float):
            content = as_content([fill] * elements, tuple(int(d) for d in dims if isinstance(d, int)))
    n.out(0, dtype, dims, content)


def _sizes(entries: list[Any]) -> Dims:
    """Entries as dimensions; a negative number is none."""
    return tuple([None if type(e) is int and e < 0 else e for e in entries])


@rule("Reshape")
def reshape(n: NodeContext) -> None:
    """The target may be partly known; 0 copies a dimension and -1 takes what is left, divided exactly.

    Symbolic entries of the target are taken to be sizes of at least 1 (0 would mean "copy").
    """
    dtype = n.dtype(0)
    dims = n.dims(0)
    target: list[Any] | None
    if n.opset < 5:
        given = n.attr("shape")
        target = None if given is None else list(given)
    else:
        target = n.entries(1)
    if target is None:
        n.out(0, dtype)
        return
    result = reshaped(dims, target, bool(n.attr("allowzero", 0)))
    content = n.content(0)
    if content is not None:
        total = static_size(result)
        if total == content.size:
            content = content.reshape(tuple(int(d) for d in result if isinstance(d, int)))
        else:
            content = None
    n.out(0, dtype, result, content)


def reshaped(dims: Dims | None, target: list[Any], allow_zero: bool) -> Dims:
    """The shape that ``Reshape`` gives, as far as it follows from what is known.

    Args:
        dims: the input's dimensions, None if its rank is unknown.
        target: entries of the target: int, Dim, or None where unknown.
        allow_zero: whether 0 means 0 instead of "copy the input's".
    """
    result: list[DimLike] = []
    left: list[DimLike] = list(dims) if dims is not None else []
    open_places: list[int] = []  # -1 or unknown: determined by the rest, when there is only one
    others: list[DimLike] = []
    for axis, entry in enumerate(target):
        if entry is None or (type(entry) is int and entry == -1):
            open_places.append(axis)
            result.append(None)
        elif type(entry) is int and entry == 0 and not allow_zero:
            copied = dims[axis] if dims is not None and axis < len(dims) else None
            result.append(copied)
            if copied is None and dims is not None and axis < len(dims):
                left[axis] = 1  # an unknown size cancels against its own copy
            else:
                others.append(copied)
        else:
            result.append(entry)
            others.append(entry)
    if len(open_places) == 1 and dims is not None:
        top, bottom = product(left), product(others)
        if top is not None and bottom is not None and bottom != 0:
            result[open_places[0]] = floor_div(top, bottom)
    return tuple(result)


@rule("Flatten")
def flatten(n: NodeContext) -> None:
    """Two dimensions: the product of those before the axis, and of those from it on."""
    dims = n.dims(0)
    if dims is None:
        n.out(0, n.dtype(0), (None, None))
        return
    axis = n.attr("axis", 1)
    axis = axis + len(dims) if axis < 0 else axis
    n.out(0, n.dtype(0), (product(dims[:axis]), product(dims[axis:])))


@rule("Squeeze")
def squeeze(n: NodeContext) -> None:
    """Removes dimensions of one: the given ones, or all that are."""
    dims, dtype = n.dims(0), n.dtype(0)
    axes = n.axes(1, 13)
    if dims is None or axes is False:
        n.out(0, dtype)
        return
    if axes is None:
        if any(type(d) is not int for d in dims):
            n.out(0, dtype)
            return
        dropped = {axis for axis, d in enumerate(dims) if d == 1}
    else:
        dropped = {a + len(dims) if a < 0 else a for a in axes}  # type: ignore[union-attr]
    result = tuple(d for axis, d in enumerate(dims) if axis not in dropped)
    n.out(0, dtype, result, _with_shape(n.content(0), result))


@rule("Unsqueeze")
def unsqueeze(n: NodeContext) -> None:
    """Inserts dimensions of one."""
    dims, dtype = n.dims(0), n.dtype(0)
    axes = n.axes(1, 13)
    if dims is None or not isinstance(axes, list):
        length = None if dims is None else static_size(n.dims(1))
        n.out(0, dtype, None if dims is None or length is None else (None,) * (len(dims) + length))
        return
    rank = len(dims) + len(axes)
    added = {a + rank if a < 0 else a for a in axes}
    rest = iter(dims)
    result = tuple([1 if axis in added else next(rest, None) for axis in range(rank)])
    n.out(0, dtype, result, _with_shape(n.content(0), result))


def _with_shape(content: Content | None, dims: Dims) -> Content | None:
    if content is None or static_size(dims) != content.size:
        return None
    return content.reshape(tuple(int(d) for d in dims if isinstance(d, int)))


@rule("Transpose")
def transpose(n: NodeContext) -> None:
    """Permutes dimensions; reverses them by default."""
    dims = n.dims(0)
    if dims is None:
        n.out(0, n.dtype(0))
        return
    perm = n.attr("perm")
    if perm is None:
        perm = range(len(dims))[::-1]
    content = n.content(0)
    n.out(
        0,
        n.dtype(0),
        [dims[p] for p in perm],
        None if content is None else content.transpose(tuple(perm)),
    )


@rule("Expand")
def expand(n: NodeContext) -> None:
    """Broadcasts the input with a shape that is data, and may be partly known."""
    dims, dtype = n.dims(0), n.dtype(0)
    entries = n.entries(1)
    if dims is None or entries is None:
        n.out(0, dtype)
        return
    target = _sizes(entries)
    rank = max(len(dims), len(target))
    padded: Dims = (1,) * (rank - len(dims)) + dims
    wanted: Dims = (1,) * (rank - len(target)) + target
    result = tuple([a if a == b else broadcast_dim(a, b) for a, b in zip(padded, wanted, strict=True)])
    content = n.content(0)
    if content is not None:
        elements = static_size(result)
        if elements is not None and elements <= MAX_ENTRIES:
            content = np.broadcast_to(content, tuple(int(d) for d in result if isinstance(d, int)))
        else:
            content = None
    n.out(0, dtype, result, content)


@rule("Tile")
def tile(n: NodeContext) -> None:
    """Repeats each dimension."""
    dims, dtype = n.dims(0), n.dtype(0)
    entries = n.entries(1) if n.opset >= 6 else None
    if dims is None or entries is None or len(entries) != len(dims):
        n.out(0, dtype, None if dims is None else (None,) * len(dims))
        return
    result = tuple(
        [
            0 if d == 0 or r == 0 else None if d is None or r is None else d * r
            for d, r in zip(dims, entries, strict=True)
        ]
    )
    content = n.content(0)
    elements = static_size(result)
    if content is not None and elements is not None and elements <= MAX_ENTRIES:
        content = np.tile(content, [int(r) for r in entries])
    else:
        content = None
    n.out(0, dtype, result, content)


@rule("Range")
def range_(n: NodeContext) -> None:
    """``ceil((limit - start) / delta)`` numbers, never fewer than none."""
    dtype = n.dtype(0)
    start, limit, delta = n.scalar(0), n.scalar(1), n.scalar(2)
    length: DimLike = None
    content = None
    if start is not None and limit is not None and delta is not None and delta != 0:
        numbers = all(isinstance(x, int | float) for x in (start, limit, delta))
        if numbers and dtype in (INT64, ir.DataType.INT32, ir.DataType.INT16):
            count = max(0, -((start - limit) // delta))
            length = count
            if count <= MAX_ENTRIES:
                content = as_content([start + i * delta for i in range(count)])
        elif numbers:
            length = max(0, int(np.ceil((limit - start) / delta)))
        elif all(isinstance(x, int | Dim) or (type(x) is float and x.is_integer()) for x in (start, limit)):
            first, last = (int(x) if type(x) is float else x for x in (start, limit))
            step = int(delta) if type(delta) is float and delta.is_integer() else delta
            if type(step) is int:
                distance = last - first if step > 0 else first - last
                length = maximum(ceil_div(distance, abs(step)), 0)
    n.out(0, dtype, (length,), content)


@rule("OneHot")
def one_hot(n: NodeContext) -> None:
    """Inserts a dimension of the depth."""
    dims = n.dims(0)
    depth = n.scalar(1)
    if type(depth) is float:
        depth = int(depth)
    if dims is None:
        n.out(0, n.dtype(2))
        return
    axis = n.attr("axis", -1)
    axis = axis + len(dims) + 1 if axis < 0 else axis
    n.out(0, n.dtype(2), (*dims[:axis], depth if isinstance(depth, int | Dim) else None, *dims[axis:]))


@rule("DepthToSpace SpaceToDepth")
def blocks(n: NodeContext) -> None:
    """Moves blocks between depth and space."""
    dims, dtype = n.dims(0), n.dtype(0)
    block = n.attr("blocksize")
    if dims is None or len(dims) != 4 or not block:
        n.out(0, dtype, None if dims is None else (None,) * 4)
        return
    batch, channels, height, width = dims
    if n.node.op_type == "DepthToSpace":
        result: Dims = (batch, _over(channels, block * block), _times(height, block), _times(width, block))
    else:
        result = (batch, _times(channels, block * block), _over(height, block), _over(width, block))
    n.out(0, dtype, result)


def _times(dim: DimLike, factor: int) -> DimLike:
    return None if dim is None else dim * factor


def _over(dim: DimLike, factor: int) -> DimLike:
    return None if dim is None else floor_div(dim, factor)


@rule("Pad")
def pad(n: NodeContext) -> None:
    """Adds to (or takes from) both ends of the given axes."""
    dims, dtype = n.dims(0), n.dtype(0)
    if dims is None:
        n.out(0, dtype)
        return
    rank = len(dims)
    pads = list(n.attr("pads") or n.attr("paddings") or []) if n.opset < 11 else n.entries(1)
    axes: list[int] | None = list(range(rank))
    if n.opset >= 18 and n.has(3):
        axes = n.numbers(3)
    if pads is None or axes is None or len(pads) != 2 * len(axes):
        n.out(0, dtype, (None,) * rank)
        return
    result = list(dims)
    for i, axis in enumerate(axes):
        before, after = pads[i], pads[i + len(axes)]
        at = normal_axis(axis, rank)
        if at is None:
            continue
        dim = dims[at]
        result[at] = None if dim is None or before is None or after is None else dim + before + after
    n.out(0, dtype, result)


@rule("Resize Upsample")
def resize(n: NodeContext) -> None:
    """Sizes, or scales (rounded down), for all or some axes."""
    dims, dtype = n.dims(0), n.dtype(0)
    if dims is None:
        n.out(0, dtype)
        return
    rank = len(dims)
    axes = n.attr("axes") or range(rank)
    axes = [a + rank if a < 0 else a for a in axes]
    result: list[DimLike] = list(dims)
    is_resize = n.node.op_type == "Resize"
    sizes_at, scales_at = (3, 2) if is_resize and n.opset >= 11 else (99, 1)
    if n.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        infer_by_schema(n)
        return
    if n.has(sizes_at) and n.dims(sizes_at) != (0,):
        entries = n.entries(sizes_at)
        if entries is None:
            entries = [None] * len(axes)
        for axis, entry in zip(axes, entries, strict=False):
            result[axis] = entry if isinstance(entry, int | Dim) else None
    else:
        attribute = n.attr("scales")
        scales = list(attribute) if attribute is not None else n.entries(scales_at)
        if not scales:
            scales = [None] * len(axes)
        for axis, scale in zip(axes, scales, strict=False):
            result[axis] = _scaled(dims[axis], scale)
    n.out(0, dtype, result)


def _scaled(dim: DimLike, scale: Any) -> DimLike:
    """``floor(dim * scale)`` where it is certain in float32."""
    if dim is None or not isinstance(scale, float):
        return None
    if type(dim) is int:
        return int(np.floor(np.float32(dim) * np.float32(scale)))
    if scale.is_integer():
        return dim * int(scale)
    top, bottom = scale.as_integer_ratio()
    return floor_div(dim * top, bottom) if bottom <= 4096 else None


@rule("AffineGrid")
def affine_grid(n: NodeContext) -> None:
    """``(N, [D,] H, W, 2 or 3)`` from the size input ``(N, C, [D,] H, W)``."""
    entries = n.entries(1)
    if entries is None or len(entries) not in (4, 5):
        n.out(0, n.dtype(0))
        return
    n.out(0, n.dtype(0), (entries[0], *entries[2:], len(entries) - 2))
