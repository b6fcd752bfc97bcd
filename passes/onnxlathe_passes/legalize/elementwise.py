"""Element by element: remainders, activations in types without a kernel, choices."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import NoMatch, require
from onnxlathe_passes.conditions import attributes_of
from onnxlathe_passes.legalize.draft import (
    FLOATS,
    Draft,
    contents,
    element_type,
    given,
    lowers,
    operand,
    rank_of,
    static_dims,
    value_of,
)

T = ir.DataType


@lowers("Mod")
def floor_mod(op: Draft, node: ir.Node) -> ir.Value:
    """The remainder with the divisor's sign, from the one with the dividend's sign."""
    x, y = given(node, 0), given(node, 1)
    require(element_type(x) in FLOATS and not value_of(node, "fmod", op, 0), "TensorRT has this one")
    rest = op.Mod(x, y, fmod=1)
    zero = op.like(0.0, x)
    other = op.Not(op.Equal(op.Less(rest, zero), op.Less(y, zero)))
    nonzero = op.Not(op.Equal(rest, zero))
    moved = op.Where(op.And(other, nonzero), op.Add(rest, y), rest)
    # A zero has the divisor's sign, too.
    size = op.Abs(rest)
    signed_zero = op.Where(op.Less(y, zero), op.Neg(size), size)
    result: ir.Value = op.Where(op.Equal(rest, zero), signed_zero, moved)
    return result


@lowers("Clip")
def clip_integers(op: Draft, node: ir.Node) -> ir.Value:
    """Min and Max of the bounds that there are."""
    x, low, high = given(node, 0), operand(node, 1), operand(node, 2)
    if low is not None:
        x = op.Max(x, low)
    if high is not None:
        x = op.Min(x, high)
    return x if low is not None or high is not None else op.Identity(x)


@lowers(
    "Celu", "Elu", "Selu", "Gelu", "Mish", "HardSwish", "Softplus", "Softsign", "Swish", "ThresholdedRelu",
    "Erf", "Acosh", "Asinh", "Atanh", "Acos", "Asin", "Atan", "Cosh", "Sinh", "Tan", "Pow", "CumSum", "Softmax",
    "Hardmax", "LpNormalization", "Det", "GridSample", "LRN", "ReduceLogSumExp", "ReduceLogSum", "ReduceL2",
)  # fmt: skip
def in_single_precision(op: Draft, node: ir.Node) -> ir.Value:
    """Half precision through float32: not less exact."""
    x = given(node, 0)
    dtype = element_type(x)
    require(dtype in (T.FLOAT16, T.BFLOAT16), "not in half precision")
    inputs = [op.cast(v, T.FLOAT) if v is not None and v.dtype == dtype else v for v in node.inputs]
    attributes = attributes_of(node)
    made = op.node(node.op_type, inputs, attributes).outputs[0]
    return op.cast(made, dtype)


@lowers("Celu")
def celu(op: Draft, node: ir.Node) -> ir.Value:
    """max(0, x) + min(0, alpha * (exp(x / alpha) - 1))."""
    x = given(node, 0)
    alpha = float(value_of(node, "alpha", op, 1.0))
    scaled = op.Div(x, op.like(alpha, x))
    negative = op.Mul(op.like(alpha, x), op.Sub(op.Exp(scaled), op.like(1.0, x)))
    result: ir.Value = op.Add(op.Max(x, op.like(0.0, x)), op.Min(negative, op.like(0.0, x)))
    return result


@lowers("CumProd")
def cum_prod(op: Draft, node: ir.Node) -> ir.Value:
    """Products of the part of the axis up to each place, from a triangle of factors and ones.

    Where the axis is given at run time all are computed and one is chosen.
    """
    x, axis = given(node, 0), given(node, 1)
    dims = static_dims(x)
    require(max(dims) * int(np.prod(dims)) <= 1 << 24, "too large for a triangle of factors")
    exclusive = bool(value_of(node, "exclusive", op, 0))
    reverse = bool(value_of(node, "reverse", op, 0))
    try:
        return _products(op, x, dims, int(contents(axis).reshape(-1)[0]) % len(dims), exclusive, reverse)
    except NoMatch:
        pass
    wanted_axis = op.reshape(op.cast(axis, T.INT64), [])
    wanted_axis = op.Where(op.Less(wanted_axis, 0), op.Add(wanted_axis, len(dims)), wanted_axis)
    result = _products(op, x, dims, 0, exclusive, reverse)
    for i in range(1, len(dims)):
        along = _products(op, x, dims, i, exclusive, reverse)
        result = op.Where(op.Equal(wanted_axis, i), along, result)
    return result


def _products(op: Draft, x: ir.Value, dims: list[int], axis: int, exclusive: bool, reverse: bool) -> ir.Value:
    places = np.arange(dims[axis])
    used = places[None, :] < places[:, None] if exclusive else places[None, :] <= places[:, None]
    if reverse:
        used = used[::-1, ::-1]
    # x[..., j, ...] as [..., 1, j, ...] against used[i, j].
    mask = np.ascontiguousarray(used).reshape([*used.shape] + [1] * (len(dims) - axis - 1))
    factors = op.Where(op.constant(mask), op.unsqueeze(x, axis), op.like(1, x))
    return op.reduce("Prod", factors, [axis + 1], keepdims=False)


@lowers("Binarizer", "ai.onnx.ml::Binarizer")
def binarizer(op: Draft, node: ir.Node) -> ir.Value:
    """One where the number is above the threshold."""
    x = given(node, 0)
    threshold = node.attributes["threshold"].as_float() if "threshold" in node.attributes else 0.0
    return op.cast(op.Greater(x, op.like(threshold, x)), element_type(x))


@lowers("ai.onnx.ml::ArrayFeatureExtractor")
def array_feature_extractor(op: Draft, node: ir.Node) -> ir.Value:
    """A Gather along the last axis."""
    indices = op.reshape(op.cast(given(node, 1), T.INT64), [-1])
    picked = op.Gather(given(node, 0), indices, axis=-1)
    result: ir.Value = op.reshape(picked, [1, -1]) if rank_of(given(node, 0)) == 1 else picked
    return result


@lowers("OptionalHasElement")
def optional_has_element(op: Draft, node: ir.Node) -> ir.Value:
    """A tensor is there; a missing input is not."""
    x = operand(node, 0)
    if x is not None:
        require(x.dtype is not None and isinstance(x.type, ir.TensorType), "an optional, not a tensor")
        # Something has to hang on the input, which stays one of the engine.
    return op.constant(np.array(x is not None))


@lowers("OptionalGetElement")
def optional_get_element(op: Draft, node: ir.Node) -> ir.Value:
    """A tensor is its own element."""
    x = given(node, 0)
    require(isinstance(x.type, ir.TensorType), "an optional, not a tensor")
    result: ir.Value = op.Identity(x)
    return result
