"""The common operators in numpy: what one does to its inputs, mostly in a line.

A kernel takes the attributes first, then the inputs in the operator's order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import attribute
from onnxlathe_passes.conditions import Array

Kernel = Callable[..., Any]


class Attributes:
    """A node's attributes as `a.axis`, defaults of the schema included; kept apart from the graph."""

    def __init__(self, node: ir.Node, opset: int) -> None:
        self._values = {name: a.value for name, a in node.attributes.items() if not a.is_ref()}
        self._default = functools.partial(attribute, _Bare(node.op_type, node.domain), opset=opset)  # type: ignore[arg-type]
        self.opset = opset
        self.dtype = node.outputs[0].dtype
        self.outputs = len(node.outputs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._values[name] if name in self._values else self._default(name)


class _Bare:
    """An operator without attributes, for looking up defaults."""

    def __init__(self, op_type: str, domain: str) -> None:
        self.op_type, self.domain = op_type, domain
        self.attributes: Mapping[str, ir.Attr] = {}


def cast(array: Array, dtype: ir.DataType) -> Array:
    """The array in an element type of ONNX; strings are Python objects, and stay so."""
    if dtype == ir.DataType.STRING:
        return array
    wanted = dtype.numpy()
    return array if array.dtype == wanted else array.astype(wanted)


def _axes(a: Attributes, given: Array | None, rank: int) -> tuple[int, ...] | None:
    """Axes as attribute or input, from the front; `None` where they are absent."""
    axes = given.reshape(-1).tolist() if given is not None else a.axes
    return None if axes is None else tuple(sorted(int(x) + rank if x < 0 else int(x) for x in axes))


def _div(a: Attributes, x: Array, y: Array) -> Array:
    if x.dtype.kind in "iu":
        # ONNX truncates towards zero where numpy floors.
        quotient = np.floor_divide(x, y)
        return quotient + ((x % y != 0) & ((x < 0) != (y < 0))).astype(x.dtype)  # type: ignore[no-any-return]
    return np.divide(x, y)


def _reshape(a: Attributes, x: Array, shape: Array | None = None) -> Array:
    target = [int(d) for d in (shape if shape is not None else a.shape)]
    if not a.allowzero:
        target = [x.shape[i] if d == 0 else d for i, d in enumerate(target)]
    return x.reshape(target)


def _flatten(a: Attributes, x: Array) -> Array:
    axis = a.axis + x.ndim if a.axis < 0 else a.axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _squeeze(a: Attributes, x: Array, axes: Array | None = None) -> Array:
    return np.squeeze(x, axis=_axes(a, axes, x.ndim))


def _unsqueeze(a: Attributes, x: Array, axes: Array | None = None) -> Array:
    count = len(axes.reshape(-1)) if axes is not None else len(a.axes)
    return np.expand_dims(x, _axes(a, axes, x.ndim + count) or ())


def _slice(a: Attributes, x: Array, *given: Array | None) -> Array:
    if given:
        lists = [None if g is None else [int(v) for v in g.reshape(-1)] for g in given]
        starts, ends, axes, steps = lists + [None] * (4 - len(lists))
    else:
        starts, ends, axes, steps = list(a.starts), list(a.ends), a.axes and list(a.axes), None
    if starts is None or ends is None:
        raise ValueError("Slice without bounds")
    index = [slice(None)] * x.ndim
    for i, axis in enumerate(axes or range(len(starts))):
        step = steps[i] if steps else 1
        start, end = starts[i], ends[i]
        size = x.shape[axis]
        if step < 0:
            if end >= np.iinfo(np.int64).max:
                raise ValueError("ONNX Runtime and the specification differ on this end")
            # Python reads -1 as the last element; ONNX clamps to "before the first".
            start = min(max(start + size if start < 0 else start, 0), size - 1)
            end = max(end + size if end < 0 else end, -1)
            index[axis] = slice(start, None if end < 0 else end, step)
        else:
            index[axis] = slice(start, end, step)
    return x[tuple(index)]


def _split(a: Attributes, x: Array, split: Array | None = None) -> list[Array]:
    sizes = split.tolist() if split is not None else a.split
    if sizes is None:
        # The last part is smaller where the size is no multiple of their number.
        whole = x.shape[a.axis]
        return np.split(x, range(size := -(-whole // a.outputs), size * a.outputs, size), axis=a.axis)
    return np.split(x, np.cumsum(sizes)[:-1], axis=a.axis)


def _along(parameter: Array, rank: int, axis: int) -> Array:
    """A scale or zero point, per tensor or per channel, in the shape that broadcasts to the tensor."""
    if parameter.size == 1:
        return parameter.reshape(())
    if parameter.ndim != 1:
        raise TypeError("blocked quantization is left alone")
    shape = [1] * rank
    shape[axis] = -1
    return parameter.reshape(shape)


def _quantize(a: Attributes, x: Array, scale: Array, zero: Array | None = None) -> Array:
    wanted = zero.dtype if zero is not None else np.dtype(np.uint8)
    if wanted not in (np.int8, np.uint8):
        raise TypeError("only 8-bit integers are quantized here")
    axis = a.axis if a.axis is not None else 1
    offset = _along(zero, x.ndim, axis).astype(np.int32) if zero is not None else 0
    limits = np.iinfo(wanted)
    return np.clip(np.rint(x / _along(scale, x.ndim, axis)) + offset, limits.min, limits.max).astype(wanted)


def _dequantize(a: Attributes, x: Array, scale: Array, zero: Array | None = None) -> Array:
    if x.dtype not in (np.int8, np.uint8, np.int32):
        raise TypeError("only integers of 8 and 32 bits are dequantized here")
    axis = a.axis if a.axis is not None else 1
    offset = _along(zero, x.ndim, axis).astype(np.int32) if zero is not None else 0
    return (x.astype(np.int32) - offset).astype(scale.dtype) * _along(scale, x.ndim, axis)


def _cast_to(a: Attributes, x: Array) -> Array:
    wanted = ir.DataType(a.to)
    if wanted == ir.DataType.STRING or wanted.bitwidth < 8 or wanted.name.startswith("FLOAT8"):
        raise TypeError("casts to strings, 4-bit types and float8 have rules of their own")
    return _cast_array(x, wanted.numpy())


def _cast_array(x: Array, wanted: np.dtype[Any]) -> Array:
    if x.dtype.kind in "OSU":
        raise TypeError("casts of strings are left alone")
    return x.astype(wanted)


def _constant_of_shape(a: Attributes, shape: Array) -> Array:
    fill = a.value
    return np.full(
        shape.tolist(),
        0.0 if fill is None else fill.numpy().reshape(-1)[0],
        np.float32 if fill is None else None,
    )


def _expand(a: Attributes, x: Array, shape: Array) -> Array:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape.tolist())))


def _range(a: Attributes, start: Array, limit: Array, delta: Array) -> Array:
    count = max(math.ceil((limit.item() - start.item()) / delta.item()), 0)
    values: Array = (start + np.arange(count, dtype=start.dtype) * delta).astype(start.dtype)
    return values.reshape(-1)


def _trilu(a: Attributes, x: Array, k: Array | None = None) -> Array:
    diagonal = int(k.item()) if k is not None else 0
    return np.triu(x, diagonal) if a.upper else np.tril(x, diagonal)


def _shape(a: Attributes, x: Array) -> Array:
    return np.array(x.shape[slice(a.start or 0, a.end)], np.int64)


def _reducer(function: Callable[..., Array], square: bool = False) -> Kernel:
    def kernel(a: Attributes, x: Array, axes: Array | None = None) -> Array:
        where = _axes(a, axes, x.ndim)
        if not x.size:
            raise ValueError("runtimes differ on reductions of nothing")
        if not where and a.noop_with_empty_axes:
            return x * x if square else x
        data = x * x if square else x
        return function(data, axis=where or None, keepdims=bool(a.keepdims)).astype(x.dtype)

    return kernel


def _gather(a: Attributes, x: Array, indices: Array) -> Array:
    return np.take(x, indices, axis=a.axis)


def _gather_nd(a: Attributes, x: Array, indices: Array) -> Array:
    if a.batch_dims:
        raise TypeError("rare: left to the reference evaluator")
    return x[tuple(np.moveaxis(indices, -1, 0))]  # type: ignore[no-any-return]


def _cumsum(a: Attributes, x: Array, axis: Array) -> Array:
    if a.exclusive or a.reverse:
        raise TypeError("rare: left to the reference evaluator")
    return np.cumsum(x, axis=int(axis.item()), dtype=x.dtype)


def _clip(a: Attributes, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    low = low if low is not None else a.min
    high = high if high is not None else a.max
    x = x if low is None else np.maximum(x, np.asarray(low, x.dtype))
    return x if high is None else np.minimum(x, np.asarray(high, x.dtype))


def _mod(a: Attributes, x: Array, y: Array) -> Array:
    return np.fmod(x, y) if a.fmod else np.mod(x, y)


def _pow(a: Attributes, x: Array, y: Array) -> Array:
    result: Array = np.power(x, y.astype(x.dtype) if y.dtype.kind == x.dtype.kind else y)
    return result.astype(x.dtype)


def _plain(function: Callable[..., Any]) -> Kernel:
    return lambda a, *inputs: function(*inputs)


def _folded(function: Callable[[Any, Any], Any]) -> Kernel:
    """An operator of any number of inputs."""
    return lambda a, *inputs: functools.reduce(function, inputs)


KERNELS: dict[str, Kernel] = {
    "Abs": _plain(np.abs),
    "Add": _plain(np.add),
    "And": _plain(np.logical_and),
    "Cast": _cast_to,
    "CastLike": lambda a, x, like: _cast_array(x, like.dtype),
    "Ceil": _plain(np.ceil),
    "Clip": _clip,
    "Concat": lambda a, *xs: np.concatenate(xs, axis=a.axis),
    "ConstantOfShape": _constant_of_shape,
    "Cos": _plain(np.cos),
    "CumSum": _cumsum,
    "DequantizeLinear": _dequantize,
    "Div": _div,
    "Equal": _plain(np.equal),
    "Exp": _plain(np.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _plain(np.floor),
    "Gather": _gather,
    "GatherElements": lambda a, x, i: np.take_along_axis(x, np.where(i < 0, i + x.shape[a.axis], i), a.axis),
    "GatherND": _gather_nd,
    "Greater": _plain(np.greater),
    "GreaterOrEqual": _plain(np.greater_equal),
    "Identity": lambda a, x: x,
    "IsNaN": _plain(np.isnan),
    "Less": _plain(np.less),
    "LessOrEqual": _plain(np.less_equal),
    "Log": _plain(np.log),
    "MatMul": _plain(np.matmul),
    "Max": _folded(np.maximum),
    "Min": _folded(np.minimum),
    "Mod": _mod,
    "Mul": _plain(np.multiply),
    "Neg": _plain(np.negative),
    "Not": _plain(np.logical_not),
    "Or": _plain(np.logical_or),
    "Pow": _pow,
    "QuantizeLinear": _quantize,
    "Range": _range,
    "Reciprocal": lambda a, x: np.divide(x.dtype.type(1), x),
    "ReduceMax": _reducer(np.max),
    "ReduceMean": _reducer(np.mean),
    "ReduceMin": _reducer(np.min),
    "ReduceProd": _reducer(np.prod),
    "ReduceSum": _reducer(np.sum),
    "ReduceSumSquare": _reducer(np.sum, square=True),
    "Relu": lambda a, x: np.maximum(x, x.dtype.type(0)),
    "Reshape": _reshape,
    "Round": _plain(np.rint),
    "Shape": _shape,
    "Sigmoid": lambda a, x: 1 / (1 + np.exp(-x.astype(np.float64))),
    "Sign": _plain(np.sign),
    "Sin": _plain(np.sin),
    "Size": lambda a, x: np.array(x.size, np.int64),
    "Slice": _slice,
    "Split": _split,
    "Sqrt": _plain(np.sqrt),
    "Squeeze": _squeeze,
    "Sub": _plain(np.subtract),
    "Sum": _folded(np.add),
    "Tanh": _plain(np.tanh),
    "Tile": lambda a, x, repeats: np.tile(x, repeats.tolist()),
    "Transpose": lambda a, x: np.transpose(x, a.perm),
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
    "Where": _plain(np.where),
    "Xor": _plain(np.logical_xor),
}
