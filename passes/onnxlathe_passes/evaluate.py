"""Computing a node whose inputs are constants.

The common operators are numpy one-liners (`kernels`), because a model has thousands of such nodes and most hold
a handful of numbers; every other operator goes to the reference evaluator of the onnx package. A large result
that only rearranges or rescales weights is not computed now but when it is written (`deferred`), so no pass
ever holds the weights of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe import FileTensor
from onnxlathe.infer import constant, dims_of
from onnxlathe.model import RowTensor, rows_of, transposed
from onnxlathe.rewrite import attribute
from onnxlathe_passes.conditions import Array
from onnxlathe_passes.kernels import KERNELS, Attributes, cast
from onnxlathe_passes.weights import with_shape

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


_ORIGIN = "onnxlathe.origin"
_TOLD = 1 << 10
"""Bytes up to which two tensors are compared by what they say."""


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
    attributes = Attributes(node, opset)
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
        return with_shape(first, dims)
    kernel = KERNELS[node.op_type]
    attributes = Attributes(node, opset)
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
                return cast(np.asarray(rows(start, stop)), dtype)

        return _with_origin(RowTensor(typed, dtype=dtype, shape=ir.Shape(dims)), node, tensors)

    def compute() -> ir.TensorProtocol:
        arrays = [None if t is None else np.asarray(t.numpy()) for t in tensors]
        with np.errstate(all="ignore"):
            result = np.asarray(kernel(attributes, *arrays)).reshape(dims)
        return ir.Tensor(cast(result, dtype), dtype=dtype)

    made = ir.LazyTensor(compute, dtype=dtype, shape=ir.Shape(dims), cache=False)
    return _with_origin(made, node, tensors)


def origin_of(tensor: ir.TensorProtocol) -> Hashable:
    """What a deferred tensor will be computed from, equal for two of the same contents; `None` for others."""
    return tensor.meta.get(_ORIGIN)


def _with_origin(
    made: ir.LazyTensor, node: ir.Node, tensors: Sequence[ir.TensorProtocol | None]
) -> ir.LazyTensor:
    attributes = tuple(
        (name, _identity(held.as_tensor()) if held.type == ir.AttributeType.TENSOR else str(held.value))
        for name, held in sorted(node.attributes.items())
    )
    made.meta[_ORIGIN] = (node.op_type, attributes, tuple(_identity(t) for t in tensors))
    return made


def _identity(tensor: ir.TensorProtocol | None) -> Hashable:
    """Small tensors by what they say, weights by where they lie, what is deferred by its origin.

    Others are held by whoever has this, so that their `id` stays theirs.
    """
    if tensor is None:
        return None
    shape = tuple(tensor.shape.numpy())
    if isinstance(tensor, FileTensor):
        return tensor.file, tensor.offset, tensor.dtype, shape
    if isinstance(tensor, ir.LazyTensor):
        return origin_of(tensor) or id(tensor)
    return (tensor.dtype, shape, tensor.tobytes()) if tensor.nbytes <= _TOLD else id(tensor)


def _by_rows(
    op_type: str, attributes: Attributes, tensors: Sequence[ir.TensorProtocol | None], dims: Sequence[int]
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


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    if value.const_value is not None and value.is_initializer():
        return value.const_value
    producer = value.producer()
    assert producer is not None
    return producer.attributes["value"].as_tensor()


def _typed(result: Any, output: ir.Value) -> Array:
    array = np.asarray(result)
    return array if output.dtype is None else cast(array, output.dtype)


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
