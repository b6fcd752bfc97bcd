"""Slices and gathers with results of run-time size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import Expr, constant
from onnxlathe_passes.legalize.bounded.bench import Bench
from onnxlathe_passes.legalize.bounded.follow import follows
from onnxlathe_passes.legalize.bounded.ragged import Extent, Ragged, Result
from onnxlathe_passes.legalize.bounded.sources import product_of
from onnxlathe_passes.legalize.draft import value_of

T = ir.DataType
_FAR = 2**31 - 1


@follows("Slice")
def part(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """On the axis of run-time size: its first, its last, all but the first, or all of them backwards."""
    x, *rest = bench.operands(node)
    if any(isinstance(o, Ragged) for o in rest):
        bench.fail("a Slice by a result of run-time size", x, *rest)
    given = [bench.entries(v) for v in node.inputs[1:]]
    rank = x.rank if isinstance(x, Ragged) else len(bench.dims(x))  # type: ignore[arg-type]
    if any(g is None for g in given):
        bench.fail("a Slice by numbers given at run time", x, *_extents(bench, node))
    starts, ends = given[0], given[1]
    axes = given[2] if len(given) > 2 else list(range(len(starts or ())))
    steps = given[3] if len(given) > 3 else [1] * len(starts or ())
    out = bench.dims(node.outputs[0])
    result: Ragged | ir.Value = x  # type: ignore[assignment]
    for start, end, axis, step in zip(starts or (), ends or (), axes or (), steps or (), strict=True):
        axis = int(axis) % rank
        if isinstance(result, Ragged) and result.axis == axis:
            result = _along(bench, result, start, out[axis], step)
        elif bench.depends(start) or bench.depends(end):
            if isinstance(result, Ragged):
                bench.fail("a Slice to a run-time size on a second axis", result)
            result = _to(bench, result, axis, start, step, out[axis])
        else:
            source = result.value if isinstance(result, Ragged) else result
            bounds = [bench.sized(e) for e in (start, end)]
            cut = bench.op.Slice(source, *bounds, bench.op.ints([axis]), bench.op.ints([int(step)]))
            result = Ragged(cut, result.axis, result.extent) if isinstance(result, Ragged) else cut
    return [result]


def _extents(bench: Bench, node: ir.Node) -> list[Extent]:
    return [bench.extent_of(d) for d in bench.dims(node.outputs[0]) if bench.depends(d)]


def _along(bench: Bench, x: Ragged, start: Any, size: Expr, step: Any) -> Ragged:
    """A part of what counts."""
    op = bench.op
    if start == 0 and size == x.extent.size and step == 1:
        return x
    x = bench.packed(x)
    if step == -1 and size == x.extent.size and (start == -1 or start >= _FAR):
        last = op.Sub(bench.count(x.extent), op.ints([1]))
        places = op.Max(op.Sub(last, bench.numbers(x.extent.bound)), op.ints([0]))
        return Ragged(op.Gather(x.value, places, axis=x.axis), x.axis, x.extent)
    if not isinstance(start, int) or step != 1:
        bench.fail("a Slice of a run-time size in steps, or from a place given at run time", x)
    if not isinstance(size, int) and not bench.depends(size):
        bench.fail("a Slice of a run-time size to another", x)
    extent = bench.front(bench.extent_of(size)) if bench.depends(size) else None
    bound = extent.bound if extent is not None else size
    have = x.extent.bound
    if start == 0 and isinstance(bound, int) and isinstance(have, int) and bound <= have:
        cut = op.slice(x.value, x.axis, 0, bound)
    else:  # there may be fewer places behind the start than the bound says
        first = op.ints([start]) if start >= 0 else op.Add(bench.count(x.extent), op.ints([start]))
        most = op.Sub(bench.sized(have), op.ints([1]))
        places = op.Min(op.Add(bench.numbers(bound), op.Max(first, op.ints([0]))), most)
        cut = op.Gather(x.value, places, axis=x.axis)
    return Ragged(cut, x.axis, extent) if extent is not None else cut  # type: ignore[return-value]


def _to(bench: Bench, value: ir.Value, axis: int, start: Any, step: Any, size: Expr) -> Ragged:
    """The first of a tensor, as many as data say."""
    op = bench.op
    extent = bench.front(bench.extent_of(size))
    if start != 0 or step != 1 or not isinstance(extent.bound, int):
        bench.fail("a Slice from a place given at run time", extent)
    have = bench.dims(value)[axis]
    if not isinstance(have, int) or have < extent.bound:
        bench.fail("a Slice of fewer than there may be", extent)
    return Ragged(op.slice(value, axis, 0, extent.bound), axis, extent)


@follows("Gather", "GatherElements")
def gathered(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """Rows at places of run-time number; or rows out of those that count."""
    data, indices = bench.operands(node)
    assert data is not None
    assert indices is not None
    rank = data.rank if isinstance(data, Ragged) else len(bench.dims(data))
    axis = int(value_of(node, "axis", bench.op, 0)) % rank
    by_rows = node.op_type == "Gather"
    source = data.value if isinstance(data, Ragged) else data
    if isinstance(data, Ragged) and data.axis != axis:
        if isinstance(indices, Ragged):
            if by_rows or indices.axis != data.axis:
                bench.fail("a Gather with run-time sizes on two axes", data, indices)
            data, indices = bench.aligned([data, indices])
            (made,) = bench.apply(node, [data.value, bench.index(indices, [data.dims[axis]])])
            return [Ragged(made, data.axis, data.extent)]
        if not by_rows:
            bench.fail("a result of run-time size meets a tensor of another size", data)
        (made,) = bench.apply(node, [data.value, indices])
        at = data.axis if data.axis < axis else data.axis - 1 + len(bench.dims(indices))
        return [Ragged(made, at, data.extent)]
    whole = data.dims if isinstance(data, Ragged) else bench.dims(data)
    at_places = bench.index(indices, [whole[axis]]) if isinstance(indices, Ragged) else indices
    if isinstance(data, Ragged):
        data = bench.packed(data)
        source, at_places = data.value, from_front(bench, at_places, data.extent)
    (made,) = bench.apply(node, [source, at_places])
    if not isinstance(indices, Ragged):
        return [made]
    return [Ragged(made, indices.axis + (axis if by_rows else 0), indices.extent)]


def from_front(bench: Bench, indices: ir.Value, extent: Extent) -> ir.Value:
    """Indices into what counts: negative ones count from its end, and none leaves the candidates."""
    op = bench.op
    array = constant(indices)
    if (
        array is not None
        and array.min(initial=0) >= 0
        and isinstance(extent.bound, int)
        and array.max(initial=0) < extent.bound
    ):
        return indices
    wide = op.cast(indices, T.INT64)
    count = op.reshape(bench.count(extent), [])
    wide = op.Where(op.Less(wide, op.constant(np.int64(0))), op.Add(wide, count), wide)
    last = op.reshape(op.Sub(bench.sized(extent.bound), op.ints([1])), [])
    result: ir.Value = op.Max(op.Min(wide, last), op.constant(np.int64(0)))
    return result


@follows("GatherND")
def gathered_nd(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """Elements or rows at coordinates of run-time number."""
    op = bench.op
    data, indices = bench.operands(node)
    assert data is not None
    assert indices is not None
    if value_of(node, "batch_dims", op, 0):
        bench.fail("GatherND in batches", data, indices)
    dims = list(indices.dims) if isinstance(indices, Ragged) else bench.dims(indices)
    depth = int(dims[-1])  # type: ignore[arg-type]
    source = data.value if isinstance(data, Ragged) else data
    whole = [*data.dims] if isinstance(data, Ragged) else bench.dims(data)
    at = bench.index(indices, whole[:depth]) if isinstance(indices, Ragged) else indices
    if isinstance(indices, Ragged) and indices.axis == len(dims) - 1:
        bench.fail("coordinates of run-time length", indices)
    if isinstance(data, Ragged):
        if data.axis >= depth:
            if isinstance(indices, Ragged):
                bench.fail("GatherND with run-time sizes on two axes", data, indices)
            (made,) = bench.apply(node, [source, at])
            return [Ragged(made, data.axis - depth + len(dims) - 1, data.extent)]
        data = bench.packed(data)
        source = data.value
        columns = [op.slice(at, len(dims) - 1, i, i + 1) for i in range(depth)]
        columns[data.axis] = from_front(bench, columns[data.axis], data.extent)
        at = op.Concat(*columns, axis=-1) if depth > 1 else columns[0]
    if len(dims) == 2 and is_everything(at, whole[:depth]):
        rows = product_of(whole[:depth])
        made = source if depth == 1 else op.Reshape(source, bench.shape([rows, *whole[depth:]]))
    else:
        (made,) = bench.apply(node, [source, at])
    return [Ragged(made, indices.axis, indices.extent) if isinstance(indices, Ragged) else made]


def is_everything(indices: ir.Value, dims: list[Expr]) -> bool:
    """Whether indices [n, rank] are the coordinates of all elements in order."""
    array = constant(indices, 1 << 28)
    if array is None or not all(isinstance(d, int) for d in dims):
        return False
    sizes: list[Any] = [*dims]
    grid = np.indices(sizes).reshape(len(dims), -1).T
    return array.shape == grid.shape and bool((array == grid).all())


@follows("OneHot")
def one_hot(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """An axis is added."""
    indices, *rest = bench.operands(node)
    if not isinstance(indices, Ragged) or any(isinstance(o, Ragged) for o in rest):
        bench.fail("OneHot of a run-time depth", indices, *rest)
    axis = int(value_of(node, "axis", bench.op, -1)) % (indices.rank + 1)
    (made,) = bench.apply(node, [indices.value, *node.inputs[1:]])
    return [Ragged(made, indices.axis + (axis <= indices.axis), indices.extent)]
