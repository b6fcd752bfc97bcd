"""Determinants, columns to images, one-hot tables."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import require
from onnxlathe_passes.legalize.draft import (
    Draft,
    contents,
    element_type,
    extent,
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
    size = extent(x, -1)
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
    rows = extent(x, 1)
    area = int(np.prod(block))
    channels = rows // area
    counts = [
        (image[i] + pads[i] + pads[i + rank] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1
        for i in range(rank)
    ]
    columns = op.Reshape(x, op.ints([0, rows, *counts]))  # 0: the batch, whatever it is
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


@lowers("EyeLike")
def eye_like(op: Draft, node: ir.Node) -> ir.Value:
    """Where the column's number is the row's plus k; for any size."""
    x = given(node, 0)
    dtype = node.outputs[0].dtype or element_type(x)
    zero, one = op.constant(np.int64(0)), op.constant(np.int64(1))
    rows, columns = (op.squeeze(op.Shape(x, start=i, end=i + 1), 0) for i in range(2))
    places = op.Add(op.Range(zero, rows, one), op.constant(np.int64(int(value_of(node, "k", op, 0)))))
    return op.cast(op.Equal(op.unsqueeze(places, 1), op.unsqueeze(op.Range(zero, columns, one), 0)), dtype)


@lowers("TopK")
def top_k_by_rank(op: Draft, node: ir.Node) -> list[ir.Value]:
    """For more than TensorRT's 3840: how many are before each one is its place.

    All pairs are compared, which takes the square of the axis in memory. NaN has no place.
    """
    x, k = given(node, 0), given(node, 1)
    dims = static_dims(x)
    axis = int(value_of(node, "axis", op, -1)) % len(dims)
    size, count = dims[axis], int(contents(k).reshape(-1)[0])
    require(size * int(np.prod(dims)) <= 1 << 28, "too many pairs to compare")
    largest = bool(value_of(node, "largest", op, 1))
    mine, other = op.unsqueeze(x, axis + 1), op.unsqueeze(x, axis)
    ahead = op.Less(mine, other) if largest else op.Less(other, mine)
    numbers = np.arange(size)
    shape = [size, size] + [1] * (len(dims) - axis - 1)
    earlier = op.constant((numbers[None] < numbers[:, None]).reshape(shape))
    before = op.Or(ahead, op.And(op.Equal(mine, other), earlier))
    place = op.reduce("Sum", op.cast(before, T.INT64), [axis + 1], keepdims=False)
    index = op.Expand(
        op.constant(numbers.astype(np.int64).reshape([size] + [1] * (len(dims) - axis - 1))), op.ints(dims)
    )
    values = op.ScatterElements(x, place, x, axis=axis)
    indices = op.ScatterElements(index, place, index, axis=axis)
    return [op.slice(values, axis, 0, count), op.slice(indices, axis, 0, count)]


@lowers("Multinomial")
def multinomial(op: Draft, node: ir.Node) -> ir.Value:
    """Draws by the Gumbel trick: the largest of log-probability plus noise."""
    x = given(node, 0)
    batch, classes = static_dims(x)
    draws = int(value_of(node, "sample_size", op, 1))
    seed = node.attributes.get("seed")
    uniform = op.RandomUniform(
        shape=[batch, draws, classes],
        low=1e-7,
        high=1.0,
        seed=seed.as_float() if seed else None,
        dtype=int(T.FLOAT),
    )
    noise = op.Neg(op.Log(op.Neg(op.Log(uniform))))
    chosen = op.ArgMax(op.Add(op.unsqueeze(op.cast(x, T.FLOAT), 1), noise), axis=2, keepdims=0)
    return op.cast(chosen, node.outputs[0].dtype or T.INT32)


@lowers("ai.onnx.ml::LabelEncoder")
def label_encoder(op: Draft, node: ir.Node) -> ir.Value:
    """The number of the key that is equal, looked up; for numbers on both sides."""
    x = given(node, 0)

    def numbers(side: str) -> tuple[str, np.ndarray]:
        for kind, dtype in (("int64s", np.int64), ("floats", np.float32)):
            if f"{side}_{kind}" in node.attributes:
                return kind, np.asarray(node.attributes[f"{side}_{kind}"].value, dtype=dtype)
        require(f"{side}_tensor" in node.attributes, "not numbers")
        tensor = node.attributes[f"{side}_tensor"].as_tensor()
        require(tensor.dtype in (T.INT64, T.FLOAT, T.INT32), "not numbers")
        return "tensor", tensor.numpy().reshape(-1)

    _, keys = numbers("keys")
    kind, values = numbers("values")
    if kind == "tensor" and "default_tensor" in node.attributes:
        default = node.attributes["default_tensor"].as_tensor().numpy().reshape(-1)[0]
    elif kind == "floats":
        own = node.attributes.get("default_float")
        default = own.as_float() if own else -0.0
    else:
        own = node.attributes.get("default_int64")
        default = own.as_int() if own else -1
    hits = op.Equal(op.unsqueeze(x, -1), op.constant(keys.astype(element_type(x).numpy())))
    if keys.dtype.kind == "f" and np.isnan(keys).any():
        hits = op.Or(hits, op.And(op.IsNaN(op.unsqueeze(x, -1)), op.constant(np.isnan(keys))))
    # The place of the hit, the last one where a key is given twice; or that of the default.
    order = op.constant(np.arange(1, len(keys) + 1, dtype=np.int64))
    place = op.reduce("Max", op.Mul(op.cast(hits, T.INT64), order), [-1], keepdims=False)
    table = np.concatenate([np.asarray([default], dtype=values.dtype), values])
    result: ir.Value = op.Gather(op.constant(table), place)
    return result


@lowers("AffineGrid")
def affine_grid(op: Draft, node: ir.Node) -> ir.Value:
    """A constant grid of places times the matrices; for a constant size.

    (The schema's function body squeezes a batch of one away.)
    """
    theta, size = given(node, 0), contents(given(node, 1))
    extents = [int(n) for n in size[2:]]
    aligned = bool(value_of(node, "align_corners", op, 0))
    lines = [np.linspace(-1, 1, n) if aligned and n > 1 else (2 * np.arange(n) + 1) / n - 1 for n in extents]
    if aligned:
        lines = [line if n > 1 else np.array([-1.0]) for line, n in zip(lines, extents, strict=True)]
    mesh = [m.reshape(-1) for m in np.meshgrid(*lines, indexing="ij")]
    places = np.stack([*reversed(mesh), np.ones(mesh[0].size)])
    moved = op.Transpose(op.MatMul(theta, op.like(places, theta)), perm=[0, 2, 1])
    result: ir.Value = op.Reshape(moved, op.ints([int(size[0]), *extents, len(extents)]))
    return result


@lowers("AffineGrid")
def affine_grid_of_any_size(op: Draft, node: ir.Node) -> ir.Value:
    """For a size known at run time: each axis's places times its column of the matrices, added up.

    With align_corners an axis of one place is at -1, as in ONNX's reference; ONNX Runtime puts it at 1.
    """
    theta, size = given(node, 0), given(node, 1)
    dims = dims_of(theta)
    require(dims is not None and len(dims) == 3 and dims[1] in (2, 3), "neither an image nor a volume")
    assert dims is not None
    spatial = 2 if dims[1] == 2 else 3
    aligned = bool(value_of(node, "align_corners", op, 0))
    one = op.like(1.0, theta)

    def column(j: int) -> ir.Value:
        """Column j of the matrices: [batch, 1, 1, (1,) coordinates]."""
        picked = op.squeeze(op.slice(theta, 2, j, j + 1), 2)
        return op.unsqueeze(picked, *range(1, spatial + 1))

    total = column(spatial)
    for axis in range(spatial):
        count = op.squeeze(op.slice(op.cast(size, T.INT64), 0, axis + 2, axis + 3), 0)
        numbers = op.cast(
            op.Range(op.constant(np.int64(0)), count, op.constant(np.int64(1))), element_type(theta)
        )
        extent = op.cast(count, element_type(theta))
        if aligned:
            step = op.Div(op.like(2.0, theta), op.Max(op.Sub(extent, one), one))
            line = op.Sub(op.Mul(numbers, step), one)
        else:
            line = op.Sub(op.Div(op.Add(op.Mul(numbers, op.like(2.0, theta)), one), extent), one)
        others = [i for i in range(spatial + 2) if i != axis + 1]
        # The first coordinate is that of the last axis.
        total = op.Add(total, op.Mul(op.unsqueeze(line, *others), column(spatial - 1 - axis)))
    return total
