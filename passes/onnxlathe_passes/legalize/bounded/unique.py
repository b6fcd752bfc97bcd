"""Unique by comparing every pair: no sort, so no limit of a sort, and ties are no matter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxlathe_passes.legalize.bounded.bench import Bench
from onnxlathe_passes.legalize.bounded.follow import sources
from onnxlathe_passes.legalize.bounded.ragged import Extent, Ragged, Result
from onnxlathe_passes.legalize.bounded.sources import roots_with
from onnxlathe_passes.legalize.draft import FLOATS, value_of, wanted

T = ir.DataType
_PAIRS = 1 << 28  # of elements that are compared


@sources("Unique")
def unique(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """The first of equal ones counts, and how many smaller ones count is its place.

    NaN is equal to nothing, itself included, and comes last. (ONNX Runtime leaves what it does to chance.)
    """
    op = bench.op
    x = bench.operands(node)[0]
    assert x is not None
    own = node.attributes.get("axis")
    value, dims = (x.value, x.dims) if isinstance(x, Ragged) else (x, bench.dims(x))
    nothing = Extent(value, 0, 0, roots_with(node, x))  # for what fails
    if any(not isinstance(d, int) for d in dims):
        bench.fail("Unique of an open size", nothing)
    sizes = [int(d) for d in dims]  # type: ignore[arg-type]
    axis = int(own.as_int()) % len(sizes) if own is not None else 0
    counted = None
    if isinstance(x, Ragged):
        if len(sizes) > 1:
            bench.fail("Unique of a result of run-time size that is no vector", nothing)
        x = bench.packed(x)
        value, counted = x.value, x.extent.valid
    if own is None and len(sizes) != 1:
        value, sizes = op.reshape(value, [-1]), [math.prod(sizes)]
    amount, width = sizes[axis], math.prod(sizes) // max(1, sizes[axis])
    if amount * amount * width > _PAIRS or not amount * width:
        bench.fail(f"Unique of {amount} elements", nothing)
    equal, smaller = _compared(bench, _rows(bench, value, sizes, axis), width)
    numbers = bench.numbers(amount)
    if counted is not None:
        equal = op.And(equal, op.unsqueeze(counted, 0))
    # The first that it is equal to, which is itself or one before it; for a NaN there is none.
    mine = op.Where(equal, op.unsqueeze(numbers, 0), op.ints([amount]))
    mine = op.reduce("Min", mine, [1], keepdims=False)
    strange = op.Equal(mine, op.ints([amount]))
    mine = op.Min(mine, numbers)
    first = op.Equal(mine, numbers)
    if counted is not None:
        first = op.And(first, counted)
    extent = Extent(first, amount, amount, nothing.roots)
    if value_of(node, "sorted", op, 1):
        below = op.cast(op.And(smaller, op.unsqueeze(first, 0)), T.INT64)
        inverse = op.reduce("Sum", below, [1], keepdims=False)
        if value.dtype in FLOATS:
            inverse = _behind(bench, strange, inverse, extent)
        order = bench.order(extent, places=inverse)
        extent = bench.front(extent)
    else:
        order = None
        inverse = op.Gather(bench.places(extent), mine, axis=0)
    own_size = [i for i in (0, 1, 3) if wanted(node, i)]
    for place, index in enumerate(own_size):
        at = axis if index == 0 else 0
        if place:
            bench.alias(bench.dims(node.outputs[index])[at], extent)
        else:
            bench.root(node, index, at, extent)

    def arranged(candidates: ir.Value, along: int = 0) -> Ragged:
        moved = candidates if order is None else op.Gather(candidates, order, axis=along)
        return Ragged(moved, along, extent)

    results: list[Result] = [arranged(value, axis), None, None, None]
    if wanted(node, 1):
        results[1] = arranged(numbers)
    if wanted(node, 2):
        results[2] = Ragged(inverse, 0, x.extent) if isinstance(x, Ragged) else inverse
    if wanted(node, 3):
        results[3] = arranged(op.reduce("Sum", op.cast(equal, T.INT64), [1], keepdims=False))
    return results[: len(node.outputs)]


def _behind(bench: Bench, strange: ir.Value, places: ir.Value, extent: Extent) -> ir.Value:
    """Places with those of NaN behind all others."""
    op = bench.op
    strange = op.And(strange, extent.valid)
    ones = op.cast(strange, T.INT64)
    start = op.Sub(bench.count(extent), op.reduce("Sum", ones, [0]))
    last = op.Add(start, op.Sub(op.CumSum(ones, op.constant(np.int64(0))), op.ints([1])))
    result: ir.Value = op.Where(strange, last, places)
    return result


def _rows(bench: Bench, value: ir.Value, sizes: list[int], axis: int) -> ir.Value:
    """What is compared, as [amount, width] in a type that can be."""
    op = bench.op
    if value.dtype in (T.BOOL, T.INT8, T.UINT8):
        value = op.cast(value, T.INT32)
    if axis:
        value = op.Transpose(value, perm=[axis, *(i for i in range(len(sizes)) if i != axis)])
    return op.reshape(value, [sizes[axis], -1])


def _compared(bench: Bench, rows: ir.Value, width: int) -> tuple[ir.Value, ir.Value]:
    """[i, j]: whether row i is equal to row j; whether row j comes before row i in lexicographic order."""
    op = bench.op
    mine, other = op.unsqueeze(rows, 1), op.unsqueeze(rows, 0)
    if width == 1:
        return op.squeeze(op.Equal(mine, other), 2), op.squeeze(op.Less(other, mine), 2)
    differ = op.cast(op.Not(op.Equal(mine, other)), T.INT32)
    equal = op.Equal(op.reduce("Max", differ, [2], keepdims=False), op.constant(np.int32(0)))
    where = op.ArgMax(differ, axis=2, keepdims=1)  # the first place where they differ
    less = op.GatherElements(op.cast(op.Less(other, mine), T.INT32), where, axis=2)
    return equal, op.Equal(op.squeeze(less, 2), op.constant(np.int32(1)))
