"""Reductions: axes that are computed or given at run time, booleans, and none at all."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import require
from onnxlathe_passes.conditions import attributes_of
from onnxlathe_passes.legalize.draft import (
    FLOATS,
    Draft,
    element_type,
    given,
    lowers,
    operand,
    rank_of,
    static_dims,
    static_or_none,
    value_of,
)

T = ir.DataType

_BASE = {"Sum": "Sum", "Mean": "Mean", "Max": "Max", "Min": "Min", "Prod": "Prod", "LogSumExp": "LogSumExp",
         "L1": "Sum", "L2": "Sum", "LogSum": "Sum", "SumSquare": "Sum"}  # fmt: skip
KINDS = tuple(f"Reduce{kind}" for kind in _BASE)


@lowers("ReduceMax", "ReduceMin")
def of_booleans(op: Draft, node: ir.Node) -> ir.Value:
    """The largest boolean is the largest of 0 and 1."""
    x = given(node, 0)
    require(element_type(x) == T.BOOL, "not boolean")
    numbers = op.cast(x, T.INT32)
    attributes = attributes_of(node)
    made = op.node(node.op_type, [numbers, *node.inputs[1:]], attributes).outputs[0]
    result: ir.Value = op.Greater(made, op.like(0, made))
    return result


@lowers("ArgMax", "ArgMin")
def of_a_vector(op: Draft, node: ir.Node) -> ir.Value:
    """TensorRT looks for the largest of matrices only."""
    x = given(node, 0)
    require(rank_of(x) == 1, "no vector")
    attributes = attributes_of(node) | {"axis": 1}
    made = op.node(node.op_type, [op.unsqueeze(x, 0), *node.inputs[1:]], attributes).outputs[0]
    return op.squeeze(made, 0)


@lowers(*KINDS)
def without_axes(op: Draft, node: ir.Node) -> ir.Value:
    """An empty list of axes means all of them, or none, as the node says."""
    x, axes = given(node, 0), operand(node, 1)
    require(axes is not None and static_dims(axes) == [0], "there are axes")
    if value_of(node, "noop_with_empty_axes", op, 0):
        return _after(op, node.op_type[6:], _before(op, node.op_type[6:], x))
    keepdims = int(value_of(node, "keepdims", op, 1))
    result: ir.Value = op.node(node.op_type, [x], {"keepdims": keepdims}).outputs[0]
    return result


_OF_NOTHING = {
    "Max": -np.inf,
    "Min": np.inf,
    "Prod": 1.0,
    "LogSum": -np.inf,
    "LogSumExp": -np.inf,
    "Mean": np.nan,
}


@lowers(*KINDS)
def of_nothing(op: Draft, node: ir.Node) -> ir.Value:
    """Over an empty set each reduction has its neutral element."""
    x, result = given(node, 0), node.outputs[0]
    extents = static_dims(x)
    require(0 in extents, "there is something to reduce")
    dtype = element_type(x)
    value = _OF_NOTHING.get(node.op_type[6:], 0.0)
    if dtype not in FLOATS:
        require(np.isfinite(value) or dtype in (T.INT32, T.INT64, T.INT8), "no neutral element")
        if not np.isfinite(value):
            limits = np.iinfo(dtype.numpy())
            value = limits.min if value < 0 else limits.max
    dims = static_or_none(result)
    if dims is not None and all(isinstance(d, int) for d in dims):
        return op.constant(np.full(static_dims(result), value).astype(dtype.numpy()))
    axes = given(node, 1)
    (count,) = static_dims(axes)
    chosen = _chosen(op, axes, len(extents))
    kept = op.Sub(op.ints([1]), chosen)
    if value_of(node, "keepdims", op, 1):
        shape = op.Add(op.Mul(kept, op.ints(extents)), chosen)
    else:
        shape = _compacted(op, kept, op.ints(extents), len(extents), len(extents) - count)
    filled: ir.Value = op.Expand(op.constant(np.asarray(value).astype(dtype.numpy())), shape)
    return filled


@lowers(*KINDS)
def at_run_time(op: Draft, node: ir.Node) -> ir.Value:
    """Every axis is reduced, and at run time the result or what was there before is chosen.

    The extents of the output follow from the axes as a shape tensor: a reduced axis is cut down to one, or
    left out of the final shape.
    """
    x, axes = given(node, 0), given(node, 1)
    dims = static_dims(x)
    rank = len(dims)
    (count,) = static_dims(axes)
    require(0 < count <= rank, "not an axis each")
    require(0 not in dims, "nothing to reduce: the result is not among what there is")
    kind = node.op_type[6:]
    chosen = _chosen(op, axes, rank)
    kept = op.Sub(op.ints([1]), chosen)
    value = _before(op, kind, x)
    for axis in range(rank):
        reduced = op.reduce(_BASE[kind], value, [axis])
        flag = op.cast(op.slice(chosen, 0, axis, axis + 1), T.BOOL)
        value = op.Where(flag, reduced, value)
    value = _after(op, kind, value)
    ends = op.Add(op.Mul(kept, op.ints(dims)), chosen)
    value = op.Slice(value, op.ints([0] * rank), ends, op.ints(list(range(rank))))
    if value_of(node, "keepdims", op, 1):
        whole: ir.Value = value
        return whole
    result: ir.Value = op.Reshape(value, _compacted(op, kept, op.ints(dims), rank, rank - count))
    return result


def _before(op: Draft, kind: str, x: ir.Value) -> ir.Value:
    if kind in ("L2", "SumSquare"):
        return op.Mul(x, x)  # type: ignore[no-any-return]
    return op.Abs(x) if kind == "L1" else x


def _after(op: Draft, kind: str, x: ir.Value) -> ir.Value:
    if kind == "L2":
        dtype = element_type(x)
        root: ir.Value = op.cast(op.Sqrt(x if dtype in FLOATS else op.cast(x, T.FLOAT)), dtype)
        return root
    if kind == "LogSum":
        result: ir.Value = op.Log(x)
        return result
    return x


def _chosen(op: Draft, axes: ir.Value, rank: int) -> ir.Value:
    """For each axis 1 where it is among `axes`, else 0."""
    axes = op.cast(axes, T.INT64)
    axes = op.Where(op.Less(axes, op.ints([0])), op.Add(axes, op.ints([rank])), axes)
    same = op.Equal(op.unsqueeze(axes, 1), op.constant(np.arange(rank, dtype=np.int64)[None]))
    return op.reduce("Max", op.cast(same, T.INT64), [0], keepdims=False)


def _compacted(op: Draft, kept: ir.Value, dims: ir.Value, rank: int, count: int) -> ir.Value:
    """Those of `dims` whose entry in `kept` is 1, of which there are `count`."""
    if count == 0:
        return op.ints([])
    # Entry i goes to the place that so many kept ones come before.
    before = np.tril(np.ones((rank, rank), dtype=np.int64), -1)
    place = op.reduce("Sum", op.Mul(op.constant(before), op.unsqueeze(kept, 0)), [1], keepdims=False)
    here = op.Equal(op.unsqueeze(place, 0), op.constant(np.arange(count, dtype=np.int64)[:, None]))
    used = op.Mul(op.cast(here, T.INT64), op.unsqueeze(op.Mul(kept, dims), 0))
    return op.reduce("Sum", used, [1], keepdims=False)


@lowers("Squeeze")
def squeeze_at_run_time(op: Draft, node: ir.Node) -> ir.Value:
    """A Reshape to the extents whose axes are not named."""
    x, axes = given(node, 0), given(node, 1)
    dims = static_dims(x)
    (count,) = static_dims(axes)
    kept = op.Sub(op.ints([1]), _chosen(op, axes, len(dims)))
    result: ir.Value = op.Reshape(x, _compacted(op, kept, op.ints(dims), len(dims), len(dims) - count))
    return result


@lowers("Unsqueeze")
def unsqueeze_at_run_time(op: Draft, node: ir.Node) -> ir.Value:
    """A Reshape to the extents of the input, with ones where the axes say."""
    x, axes = given(node, 0), given(node, 1)
    dims = static_dims(x)
    (count,) = static_dims(axes)
    rank = len(dims) + count
    chosen = _chosen(op, axes, rank)
    if not dims:
        return op.reshape(x, [1] * rank)
    before = np.tril(np.ones((rank, rank), dtype=np.int64), -1)
    kept = op.Sub(op.ints([1]), chosen)
    place = op.reduce("Sum", op.Mul(op.constant(before), op.unsqueeze(kept, 0)), [1], keepdims=False)
    here = op.cast(
        op.Equal(op.unsqueeze(place, 1), op.constant(np.arange(len(dims), dtype=np.int64)[None])), T.INT64
    )
    extents = op.reduce(
        "Sum", op.Mul(here, op.constant(np.array([dims], dtype=np.int64))), [1], keepdims=False
    )
    result: ir.Value = op.Reshape(x, op.Where(op.Equal(chosen, op.ints([1])), op.ints([1]), extents))
    return result


@lowers("ReduceSum", "ReduceMax", "ReduceMin", "ReduceMean", "ReduceProd", "ReduceL1")
def of_scalars(op: Draft, node: ir.Node) -> ir.Value:
    """There is nothing to reduce in a scalar."""
    x = given(node, 0)
    require(rank_of(x) == 0, "not a scalar")
    result: ir.Value = op.Abs(x) if node.op_type == "ReduceL1" else op.Identity(x)
    return result
