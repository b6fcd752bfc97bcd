"""NonZero, Compress and Unique as candidates and a mask."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import Expr, constant
from onnxlathe_passes.legalize.bounded.bench import Bench
from onnxlathe_passes.legalize.bounded.follow import sources
from onnxlathe_passes.legalize.bounded.ragged import Extent, Ragged, Result

T = ir.DataType
_CONSTANT = 1 << 22  # coordinates that are kept as a constant; more are computed


def product_of(dims: list[Expr]) -> Expr:
    total: Expr = 1
    for d in dims:
        total = total * d
    return total


def roots_with(node: ir.Node, *operands: object) -> frozenset[ir.Node]:
    """A source, and what its operands come from."""
    found = frozenset([node])
    for operand in operands:
        if isinstance(operand, Ragged):
            found |= operand.extent.roots
    return found


def coordinates(bench: Bench, dims: list[Expr]) -> ir.Value:
    """The coordinates of all elements in order, int64 [rank, size]."""
    op, rank = bench.op, len(dims)
    if all(isinstance(d, int) for d in dims):
        numbers = [int(d) for d in dims]  # type: ignore[arg-type]
        if rank * math.prod(numbers) <= _CONSTANT:
            return op.constant(np.indices(numbers, dtype=np.int64).reshape(rank, -1))
    flat = bench.numbers(product_of(dims))
    rows = []
    for axis in range(rank):
        row = flat
        if axis + 1 < rank:
            row = op.Div(row, bench.sized(product_of(dims[axis + 1 :])))
        if axis:
            size = bench.sized(dims[axis])
            row = op.Sub(row, op.Mul(op.Div(row, size), size))
        rows.append(op.unsqueeze(row, 0))
    return rows[0] if rank == 1 else op.Concat(*rows, axis=0)


def _flat(bench: Bench, value: ir.Value) -> ir.Value:
    return bench.op.reshape(value, [-1])


@sources("NonZero")
def non_zero(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """All coordinates; those count where the element is not zero (NaN is not)."""
    op = bench.op
    (x,) = bench.operands(node)
    assert x is not None
    value = x.value if isinstance(x, Ragged) else x
    dims = list(x.dims) if isinstance(x, Ragged) else bench.dims(x)
    nonzero = value if value.dtype == T.BOOL else op.Not(op.Equal(value, op.like(0, value)))
    if isinstance(x, Ragged):
        nonzero = op.And(nonzero, bench.mask(x))
    if not dims:  # ONNX Runtime takes a scalar for a vector of one
        nonzero, dims = op.reshape(nonzero, [1]), [1]
    valid = nonzero if len(dims) == 1 else _flat(bench, nonzero)
    bound = product_of(dims)
    extent = Extent(valid, bound, bound, roots_with(node, x))
    bench.root(node, 0, 1, extent)
    places = coordinates(bench, dims)
    if isinstance(x, Ragged) and not x.extent.packed:
        rows = [op.slice(places, 0, i, i + 1) for i in range(len(dims))]
        rows[x.axis] = op.Gather(bench.places(x.extent), rows[x.axis], axis=0)
        places = rows[0] if len(rows) == 1 else op.Concat(*rows, axis=0)
    return [Ragged(places, 1, extent)]


@sources("Compress")
def compress(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """All slices; those count where the condition says so, which may be shorter than the axis."""
    op = bench.op
    x, condition = bench.operands(node)
    assert x is not None
    assert condition is not None
    given = node.attributes.get("axis")
    value = x.value if isinstance(x, Ragged) else x
    dims = list(x.dims) if isinstance(x, Ragged) else bench.dims(x)
    axis = int(given.as_int()) % len(dims) if given is not None else 0
    if isinstance(x, Ragged) and given is not None and axis == x.axis and isinstance(condition, Ragged):
        x, condition = bench.aligned([x, condition])
        value, valid = x.value, op.And(condition.value, condition.extent.valid)
    elif isinstance(x, Ragged) or isinstance(condition, Ragged):
        bench.fail("Compress of a result of run-time size by another", x, condition)
    else:
        valid = condition
    if given is None:
        value, dims = _flat(bench, value), [product_of(dims)]
    size = bench.dims(condition)[0] if isinstance(condition, ir.Value) else dims[axis]
    if size != dims[axis]:
        value = op.Slice(value, op.ints([0]), bench.sized(size), op.ints([axis]))
    extent = Extent(valid, size, size, roots_with(node, x, condition))
    bench.root(node, 0, axis, extent)
    return [Ragged(value, axis, extent)]


def is_settled(node: ir.Node) -> bool:
    """Whether a source has constant data only, so that its size is known."""
    decides = node.inputs[1] if node.op_type == "Compress" else node.inputs[0]
    return decides is not None and constant(decides) is not None
