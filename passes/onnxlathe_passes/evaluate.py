"""Computing a node whose inputs are constants.

The common operators are numpy one-liners here, because a model has thousands of such nodes and most hold a
handful of numbers; every other operator goes to the reference evaluator of the onnx package. A large result
that only rearranges or rescales weights is not computed now but when it is written (`deferred`), so no pass
ever holds the weights of a model.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe import FileTensor
from onnxlathe.infer import constant, dims_of
from onnxlathe.model import RowTensor, rows_of, transposed
from onnxlathe.rewrite import attribute

Array = np.ndarray[Any, np.dtype[Any]]
Kernel = Callable[..., Any]

UNFOLDABLE = frozenset(
    {
        # Not a function of their inputs.
        "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial",
        # Folding them would undo a quantization that somebody wanted.
        "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear",
        # Handled elsewhere, or not tensors.
        "Constant", "If", "Loop", "Scan", "SequenceConstruct", "SequenceEmpty", "SequenceInsert",
        "SequenceErase", "SplitToSequence", "SequenceMap", "Optional", "StringNormalizer", "TfIdfVectorizer",
        "ImageDecoder",
    }
)  # fmt: skip

GROWING = frozenset(
    {"Expand", "Tile", "ConstantOfShape", "Range", "Resize", "Upsample", "OneHot", "EyeLike", "Pad", "Unique"}
)
"""Operators whose result can be larger than their inputs by what the inputs *say*."""


def evaluate(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> list[Array]:
    """The outputs of a node, in the element types of the model.

    Args:
        node: an operator of the default domain, without subgraphs.
        inputs: its inputs' contents; `None` for an absent one.
        opset: version of the operator set.

    Raises:
        Exception: whatever numpy or the reference evaluator raises for inputs that make no sense.
    """
    kernel = KERNELS.get(node.op_type)
    if kernel is None:
        return _reference(node, inputs, opset)
    attributes = _Attributes(node, opset)
    with np.errstate(all="ignore"):
        result = kernel(attributes, *inputs)
    results = list(result) if isinstance(result, (tuple, list)) else [result]
    return [_typed(r, output) for r, output in zip(results, node.outputs, strict=False)]


def deferred(node: ir.Node, opset: int, dims: Sequence[int]) -> ir.TensorProtocol | None:
    """The single output of a node on constants as a tensor that is computed when it is read.

    Args:
        node: a node all of whose inputs are constants.
        opset: version of the operator set.
        dims: dimensions of its output.

    Returns:
        The tensor, or `None` where the operator's result cannot be promised without computing it.
    """
    output = node.outputs[0]
    if node.op_type not in DEFERRABLE or len(node.outputs) != 1 or output.dtype is None:
        return None
    if not _cannot_fail(node, opset):
        return None
    tensors = [None if v is None else _tensor(v) for v in node.inputs]
    first = tensors[0]
    if node.op_type in VIEWS and isinstance(first, FileTensor):
        # The same bytes under another shape: the weight stays in its file.
        return FileTensor(
            first.file, first.offset, dtype=first.dtype, shape=ir.Shape(dims), external=first.external
        )
    kernel = KERNELS[node.op_type]
    attributes = _Attributes(node, opset)
    dtype = output.dtype
    if (
        first is not None
        and node.op_type == "Transpose"
        and len(dims) == 2
        and attributes.perm in (None, (1, 0))
    ):
        return transposed(first)
    rows = _by_rows(node.op_type, attributes, tensors, dims)
    if rows is not None:

        def typed(start: int, stop: int) -> Array:
            with np.errstate(all="ignore"):
                return _cast(np.asarray(rows(start, stop)), dtype)

        return RowTensor(typed, dtype=dtype, shape=ir.Shape(dims))

    def compute() -> ir.TensorProtocol:
        arrays = [None if t is None else np.asarray(t.numpy()) for t in tensors]
        with np.errstate(all="ignore"):
            result = np.asarray(kernel(attributes, *arrays)).reshape(dims)
        return ir.Tensor(_cast(result, dtype), dtype=dtype)

    return ir.LazyTensor(compute, dtype=dtype, shape=ir.Shape(dims), cache=False)


def _by_rows(
    op_type: str, attributes: _Attributes, tensors: Sequence[ir.TensorProtocol | None], dims: Sequence[int]
) -> Callable[[int, int], Any] | None:
    """What makes the result's rows out of its operands' rows, where that is possible."""
    if not dims or op_type not in _ROW_BY_ROW:
        return None
    if op_type == "Concat" and attributes.axis % len(dims) == 0:
        return None
    kernel = KERNELS[op_type]

    def part(tensor: ir.TensorProtocol | None, start: int, stop: int) -> Array | None:
        if tensor is None:
            return None
        shape = tensor.shape.numpy()
        if len(shape) == len(dims) and shape[0] == dims[0]:
            return rows_of(tensor, start, stop)
        return np.asarray(tensor.numpy())

    return lambda start, stop: kernel(attributes, *[part(t, start, stop) for t in tensors])


def _cannot_fail(node: ir.Node, opset: int) -> bool:
    """Whether the kernel is sure to give a result: nobody is there to catch it when it is written."""
    output, first = node.outputs[0], node.inputs[0]
    if (
        output.dtype is None
        or output.dtype.bitwidth < 8
        or output.dtype.name.startswith(("FLOAT8", "STRING"))
    ):
        return False
    if node.op_type == "Pow":
        return first is not None and first.dtype is not None and first.dtype.is_floating_point()
    if node.op_type == "Gather":
        contents, dims = (
            (constant(v) if v is not None else None for v in node.inputs[1:]),
            dims_of(first or output),
        )
        indices = next(contents)
        axis = attribute(node, "axis", opset)
        size = dims[axis] if dims is not None and -len(dims) <= axis < len(dims) else None
        if indices is None or not isinstance(size, int):
            return False
        return all(-size <= index < size for index in indices.reshape(-1).tolist())
    if node.op_type == "Slice":
        steps = [v for v in node.inputs[4:] if v is not None]
        arrays = [constant(v) for v in steps]
        return all(a is not None and min(a.reshape(-1).tolist(), default=1) > 0 for a in arrays)
    return True


class _Attributes:
    """A node's attributes as `a.axis`, defaults of the schema included; kept apart from the graph."""

    def __init__(self, node: ir.Node, opset: int) -> None:
        self._values = {name: a.value for name, a in node.attributes.items() if not a.is_ref()}
        self._default = functools.partial(attribute, _Bare(node.op_type, node.domain), opset=opset)  # type: ignore[arg-type]
        self.opset = opset
        self.dtype = node.outputs[0].dtype

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._values[name] if name in self._values else self._default(name)


class _Bare:
    """An operator without attributes, for looking up defaults."""

    def __init__(self, op_type: str, domain: str) -> None:
        self.op_type, self.domain = op_type, domain
        self.attributes: Mapping[str, ir.Attr] = {}


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    if value.const_value is not None and value.is_initializer():
        return value.const_value
    producer = value.producer()
    assert producer is not None
    return producer.attributes["value"].as_tensor()


def _typed(result: Any, output: ir.Value) -> Array:
    array = np.asarray(result)
    return array if output.dtype is None else _cast(array, output.dtype)


def _cast(array: Array, dtype: ir.DataType) -> Array:
    if dtype == ir.DataType.STRING:
        return array
    wanted = dtype.numpy()
    return array if array.dtype == wanted else array.astype(wanted)


def _reference(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> list[Array]:
    import onnx
    from onnx.reference import ReferenceEvaluator

    proto = ir.to_proto(node)
    names = [value.name if value is not None else "" for value in node.inputs]
    used = dict(zip(names, inputs, strict=True))
    graph = onnx.helper.make_graph(
        [proto],
        "one",
        [onnx.helper.make_empty_tensor_value_info(n) for n in dict.fromkeys(names) if n],
        [onnx.helper.make_empty_tensor_value_info(o.name) for o in node.outputs if o.name],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    results = ReferenceEvaluator(model).run(None, {n: a for n, a in used.items() if n})
    if not all(isinstance(r, (np.ndarray, np.generic)) for r in results):
        raise TypeError(f"{node.op_type} gives no tensors")
    return [_typed(r, o) for r, o in zip(results, node.outputs, strict=True)]


# Kernels: the attributes first, then the inputs in the operator's order.


def _axes(a: _Attributes, given: Array | None, rank: int) -> tuple[int, ...] | None:
    """Axes as attribute or input, from the front; `None` where they are absent."""
    axes = given.reshape(-1).tolist() if given is not None else a.axes
    return None if axes is None else tuple(sorted(int(x) + rank if x < 0 else int(x) for x in axes))


def _div(a: _Attributes, x: Array, y: Array) -> Array:
    if x.dtype.kind in "iu":
        # ONNX truncates towards zero where numpy floors.
        quotient = np.floor_divide(x, y)
        return quotient + ((x % y != 0) & ((x < 0) != (y < 0))).astype(x.dtype)  # type: ignore[no-any-return]
    return np.divide(x, y)


def _reshape(a: _Attributes, x: Array, shape: Array | None = None) -> Array:
    target = [int(d) for d in (shape if shape is not None else a.shape)]
    if not a.allowzero:
        target = [x.shape[i] if d == 0 else d for i, d in enumerate(target)]
    return x.reshape(target)


def _flatten(a: _Attributes, x: Array) -> Array:
    axis = a.axis + x.ndim if a.axis < 0 else a.axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _squeeze(a: _Attributes, x: Array, axes: Array | None = None) -> Array:
    return np.squeeze(x, axis=_axes(a, axes, x.ndim))


def _unsqueeze(a: _Attributes, x: Array, axes: Array | None = None) -> Array:
    count = len(axes.reshape(-1)) if axes is not None else len(a.axes)
    return np.expand_dims(x, _axes(a, axes, x.ndim + count) or ())


def _slice(a: _Attributes, x: Array, *given: Array | None) -> Array:
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


def _split(a: _Attributes, x: Array, split: Array | None = None) -> list[Array]:
    sizes = split.tolist() if split is not None else a.split
    if sizes is None:
        raise ValueError("Split into equal parts needs the number of outputs")
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


def _quantize(a: _Attributes, x: Array, scale: Array, zero: Array | None = None) -> Array:
    wanted = zero.dtype if zero is not None else np.dtype(np.uint8)
    if wanted not in (np.int8, np.uint8):
        raise TypeError("only 8-bit integers are quantized here")
    axis = a.axis if a.axis is not None else 1
    offset = _along(zero, x.ndim, axis).astype(np.int32) if zero is not None else 0
    limits = np.iinfo(wanted)
    return np.clip(np.rint(x / _along(scale, x.ndim, axis)) + offset, limits.min, limits.max).astype(wanted)


def _dequantize(a: _Attributes, x: Array, scale: Array, zero: Array | None = None) -> Array:
    if x.dtype not in (np.int8, np.uint8, np.int32):
        raise TypeError("only integers of 8 and 32 bits are dequantized here")
    axis = a.axis if a.axis is not None else 1
    offset = _along(zero, x.ndim, axis).astype(np.int32) if zero is not None else 0
    return (x.astype(np.int32) - offset).astype(scale.dtype) * _along(scale, x.ndim, axis)


def _cast_to(a: _Attributes, x: Array) -> Array:
    wanted = ir.DataType(a.to)
    if wanted == ir.DataType.STRING or wanted.bitwidth < 8 or wanted.name.startswith("FLOAT8"):
        raise TypeError("casts to strings, 4-bit types and float8 have rules of their own")
    return _cast_array(x, wanted.numpy())


def _cast_array(x: Array, wanted: np.dtype[Any]) -> Array:
    if x.dtype.kind in "OSU":
        raise TypeError("casts of strings are left alone")
    return x.astype(wanted)


def _constant_of_shape(a: _Attributes, shape: Array) -> Array:
    fill = a.value
    return np.full(
        shape.tolist(),
        0.0 if fill is None else fill.numpy().reshape(-1)[0],
        np.float32 if fill is None else None,
    )


def _expand(a: _Attributes, x: Array, shape: Array) -> Array:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape.tolist())))


def _range(a: _Attributes, start: Array, limit: Array, delta: Array) -> Array:
    count = max(math.ceil((limit.item() - start.item()) / delta.item()), 0)
    values: Array = (start + np.arange(count, dtype=start.dtype) * delta).astype(start.dtype)
    return values.reshape(-1)


def _trilu(a: _Attributes, x: Array, k: Array | None = None) -> Array:
    diagonal = int(k.item()) if k is not None else 0
    return np.triu(x, diagonal) if a.upper else np.tril(x, diagonal)


def _shape(a: _Attributes, x: Array) -> Array:
    return np.array(x.shape[slice(a.start or 0, a.end)], np.int64)


def _reducer(function: Callable[..., Array], square: bool = False) -> Kernel:
    def kernel(a: _Attributes, x: Array, axes: Array | None = None) -> Array:
        where = _axes(a, axes, x.ndim)
        if not x.size:
            raise ValueError("runtimes differ on reductions of nothing")
        if not where and a.noop_with_empty_axes:
            return x * x if square else x
        data = x * x if square else x
        return function(data, axis=where or None, keepdims=bool(a.keepdims)).astype(x.dtype)

    return kernel


def _gather(a: _Attributes, x: Array, indices: Array) -> Array:
    return np.take(x, indices, axis=a.axis)


def _gather_nd(a: _Attributes, x: Array, indices: Array) -> Array:
    if a.batch_dims:
        raise TypeError("rare: left to the reference evaluator")
    return x[tuple(np.moveaxis(indices, -1, 0))]  # type: ignore[no-any-return]


def _cumsum(a: _Attributes, x: Array, axis: Array) -> Array:
    if a.exclusive or a.reverse:
        raise TypeError("rare: left to the reference evaluator")
    return np.cumsum(x, axis=int(axis.item()), dtype=x.dtype)


def _clip(a: _Attributes, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    low = low if low is not None else a.min
    high = high if high is not None else a.max
    x = x if low is None else np.maximum(x, np.asarray(low, x.dtype))
    return x if high is None else np.minimum(x, np.asarray(high, x.dtype))


def _mod(a: _Attributes, x: Array, y: Array) -> Array:
    return np.fmod(x, y) if a.fmod else np.mod(x, y)


def _pow(a: _Attributes, x: Array, y: Array) -> Array:
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

VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
"""Operators that leave the bytes of their first input as they are."""

DEFERRABLE = VIEWS | {
    "Transpose", "Cast", "Add", "Sub", "Mul", "Div", "Neg", "Sqrt", "Reciprocal", "Concat", "Slice", "Gather",
    "Where", "MatMul", "Expand", "Tile", "ConstantOfShape", "Pow", "Exp", "Abs",
}  # fmt: skip
"""Operators whose kernel cannot fail once the shapes are known to fit."""

_ROW_BY_ROW = frozenset(
    {"Cast", "Add", "Sub", "Mul", "Div", "Neg", "Sqrt", "Reciprocal", "Concat", "Where", "Pow", "Exp", "Abs"}
)
"""Operators that make each row of the result of the same rows of their operands; Concat along other axes."""
