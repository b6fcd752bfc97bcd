"""Determinants, columns to images, one-hot tables."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import require
from onnxlathe_passes.legalize.draft import (
    Draft,
    contents,
    element_type,
    given,
    lowers,
    rank_of,
    static_dims,
    value_of,
)

T = ir.DataType


@lowers("Det")
def det(op: Draft, node: ir.Node) -> ir.Value:
    """Expansion by rows: each set of columns is computed once."""
    x = given(node, 0)
    size = static_dims(x)[-1]
    require(0 < size <= 8, "too large for an expansion")
    rank = rank_of(x)
    cell: dict[tuple[int, int], ir.Value] = {}
    for i, j in itertools.product(range(size), repeat=2):
        row = op.slice(x, rank - 2, i, i + 1)
        cell[i, j] = op.squeeze(op.slice(row, rank - 1, j, j + 1), rank - 2, rank - 1)
    minors: dict[tuple[int, ...], ir.Value] = {(j,): cell[size - 1, j] for j in range(size)}
    for height in range(2, size + 1):
        i = size - height
        for columns in itertools.combinations(range(size), height):
            total: ir.Value | None = None
            for k, j in enumerate(columns):
                term = op.Mul(cell[i, j], minors[columns[:k] + columns[k + 1 :]])
                signed = op.Neg(term) if k % 2 else term
                total = signed if total is None else op.Add(total, signed)
            assert total is not None
            minors[columns] = total
    result = minors[tuple(range(size))]
    return result if size > 1 else op.Identity(result)


@lowers("Col2Im")
def col2im(op: Draft, node: ir.Node) -> ir.Value:
    """A transposed convolution whose kernels each hold a single one."""
    x = given(node, 0)
    image = [int(n) for n in contents(given(node, 1))]
    block = [int(n) for n in contents(given(node, 2))]
    rank = len(image)
    require(rank in (2, 3), "TensorRT convolves in two or three dimensions")
    strides = [int(v) for v in value_of(node, "strides", op, [1] * rank) or [1] * rank]
    dilations = [int(v) for v in value_of(node, "dilations", op, [1] * rank) or [1] * rank]
    pads = [int(v) for v in value_of(node, "pads", op, [0] * 2 * rank) or [0] * 2 * rank]
    batch, rows, _ = static_dims(x)
    area = int(np.prod(block))
    channels = rows // area
    counts = [
        (image[i] + pads[i] + pads[i + rank] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1
        for i in range(rank)
    ]
    columns = op.reshape(x, [batch, rows, *counts])
    kernel = np.tile(np.eye(area).reshape([area, 1, *block]), [channels] + [1] * (rank + 1))
    whole = op.ConvTranspose(
        columns, op.like(kernel, x), group=channels, strides=strides, dilations=dilations, kernel_shape=block
    )
    # The full extent, cut and filled up to the image.
    full = [(counts[i] - 1) * strides[i] + dilations[i] * (block[i] - 1) + 1 for i in range(rank)]
    missing = [max(0, pads[i] + image[i] - full[i]) for i in range(rank)]
    if any(missing):
        whole = op.Pad(whole, op.ints([0, 0] + [0] * rank + [0, 0, *missing]))
    if any(pads) or any(full[i] + missing[i] != image[i] for i in range(rank)):
        whole = op.Slice(
            whole,
            op.ints(pads[:rank]),
            op.ints([pads[i] + image[i] for i in range(rank)]),
            op.ints(list(range(2, rank + 2))),
        )
    return whole  # type: ignore[no-any-return]


@lowers("OneHot")
def one_hot(op: Draft, node: ir.Node) -> ir.Value:
    """Equal to a range, and one of two values chosen."""
    indices, depth, values = (given(node, i) for i in range(3))
    rank = rank_of(indices)
    axis = int(value_of(node, "axis", op, -1))
    axis = axis % (rank + 1)
    count = op.reshape(op.cast(depth, T.INT64), [])
    at = op.cast(indices, T.INT64)
    at = op.Where(op.Less(at, op.like(0, at)), op.Add(at, count), at)
    places = op.Range(op.constant(np.int64(0)), count, op.constant(np.int64(1)))
    column = op.unsqueeze(places, *range(1, rank - axis + 1)) if rank > axis else places
    hit = op.Equal(op.unsqueeze(at, axis), column)
    off = op.squeeze(op.slice(values, 0, 0, 1), 0)
    on = op.squeeze(op.slice(values, 0, 1, 2), 0)
    require(element_type(values) is not None, "untyped")
    result: ir.Value = op.Where(hit, on, off)
    return result


@lowers("MatMul")
def matmul_of_vectors(op: Draft, node: ir.Node) -> ir.Value:
    """A vector stands in a row or a column."""
    a, b = given(node, 0), given(node, 1)
    left, right = rank_of(a), rank_of(b)
    require(left == 1 or right == 1, "no vector")
    product = op.MatMul(op.unsqueeze(a, 0) if left == 1 else a, op.unsqueeze(b, 1) if right == 1 else b)
    axes = ([-1] if right == 1 else []) + ([-2] if left == 1 else [])
    if left == 1 and right == 1:
        return op.squeeze(product, 0, 1)
    return op.squeeze(product, *axes)
