"""Rules of operators that work element by element, with broadcasting."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxlathe.infer.contents import BINARY, MAX_ENTRIES, UNARY, as_content, binary, cast, unary
from onnxlathe.infer.context import NodeContext, broadcast, rule

BOOL = ir.DataType.BOOL


@rule(
    "Abs Acos Acosh Asin Asinh Atan Atanh Celu Ceil Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid "
    "HardSwish Hardmax Identity LRN LeakyRelu Log LogSoftmax LpNormalization "
    "MeanVarianceNormalization Mish Neg Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh "
    "Softmax Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu Trilu CumSum CumProd "
    "BitwiseNot Not Clip Bernoulli ReverseSequence ScatterND ScatterElements Scatter "
    "TensorScatter RotaryEmbedding"
)
def like_first_input(n: NodeContext) -> None:
    """The output looks like the first input; contents are computed for operators of shape arithmetic."""
    dtype = n.dtype(0)
    op = n.node.op_type
    if op == "Identity" and not _is_tensor(n.inputs[0]):
        n.engine.copy_facts(n, n.inputs[0], n.outputs[0])
        return
    if op == "Bernoulli" and n.attr("dtype") is not None:
        dtype = ir.DataType(n.attr("dtype"))
    content = None
    function = UNARY.get(op)
    if function is not None and dtype is not None:
        known = n.content(0)
        if known is not None:
            content = unary(function, known, dtype)
    elif op in _SPECIAL and dtype is not None:
        content = _SPECIAL[op](n, dtype)
    n.out(0, dtype, n.dims(0), content)


def _is_tensor(value: ir.Value | None) -> bool:
    return value is None or value.type is None or type(value.type) is ir.TensorType


def _cumulative_sum(n: NodeContext, dtype: ir.DataType) -> np.ndarray | None:
    known = n.content(0)
    axis = n.scalar(1)
    if known is None or axis is None or n.attr("exclusive", 0) or n.attr("reverse", 0):
        return None
    if known.ndim == 0 or any(x is None or type(x) is float for x in known.reshape(-1)):
        return None
    return as_content(np.cumsum(known, axis=axis))


def _clip(n: NodeContext, dtype: ir.DataType) -> np.ndarray | None:
    content = n.content(0)
    if content is None or n.opset < 11:
        return None
    for index, name in ((1, "Max"), (2, "Min")):
        if n.has(index):
            limit = n.content(index)
            if limit is None:
                return None
            content = binary(BINARY[name], content, limit.reshape(()), dtype)
    return content


def _scatter_nd(n: NodeContext, dtype: ir.DataType) -> np.ndarray | None:
    data, updates = n.content(0), n.content(2)
    places = n.content(1)
    if data is None or places is None or n.attr("reduction", "none") != "none":
        return None
    if updates is None:
        entries = n.entries(2)
        dims = n.dims(2)
        if entries is None or dims is None:
            return None
        updates = as_content(entries, tuple(d for d in dims if isinstance(d, int)))
    if places.ndim == 0 or any(type(i) is not int for i in places.reshape(-1)):
        return None
    result = data.copy()
    for at in np.ndindex(*places.shape[:-1]):
        result[tuple(places[at])] = updates[at]
    return result


def _scatter_elements(n: NodeContext, dtype: ir.DataType) -> np.ndarray | None:
    data, places, updates = n.content(0), n.content(1), n.content(2)
    if data is None or places is None or updates is None or n.attr("reduction", "none") != "none":
        return None
    if any(type(i) is not int for i in places.reshape(-1)) or data.ndim == 0:
        return None
    axis = n.attr("axis", 0) % data.ndim
    result = data.copy()
    for at in np.ndindex(*places.shape):
        target = list(at)
        target[axis] = places[at]
        result[tuple(target)] = updates[at]
    return result


_SPECIAL = {
    "CumSum": _cumulative_sum,
    "Clip": _clip,
    "ScatterND": _scatter_nd,
    "ScatterElements": _scatter_elements,
}


@rule(
    "Add Sub Mul Div Mod Pow And Or Xor Equal Less Greater LessOrEqual GreaterOrEqual BitShift "
    "BitwiseAnd BitwiseOr BitwiseXor PRelu"
)
def binary_operator(n: NodeContext) -> None:
    """Two inputs, broadcast. Comparisons give booleans."""
    op = n.node.op_type
    a, b = n.dims(0), n.dims(1)
    if n.opset < 7 and op not in ("Pow", "PRelu"):
        dims = a  # before opset 7 the second operand is stretched to the first
    elif op == "PRelu":
        dims = a  # the slope is broadcast in one direction
    else:
        dims = a if a is not None and a == b else broadcast(a, b)
    dtype = n.dtype(0)
    if op in _COMPARISONS:
        result: ir.DataType | None = BOOL
    elif op == "Pow" or dtype is not None:
        result = dtype
    else:
        result = n.dtype(1)
    content = None
    function = BINARY.get(op)
    if function is not None and n.opset >= 7 and dtype is not None:
        x = n.content(0)
        if x is not None or op in ("Mul", "And", "Or"):
            y = n.content(1)
            x = _unknown_like(n, 0, y) if x is None else x
            y = _unknown_like(n, 1, x) if y is None else y
            if x is not None and y is not None and x.size * y.size <= MAX_ENTRIES * 4:
                if op == "Mod" and n.attr("fmod", 0):
                    x = y = None
                elif op != "Pow" or n.dtype(1) == dtype:
                    content = binary(function, x, y, dtype)
                    if content.size > MAX_ENTRIES:
                        content = None
    n.out(0, result, dims, content)


_COMPARISONS = frozenset(["Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Xor"])


def _unknown_like(n: NodeContext, index: int, other: np.ndarray | None) -> np.ndarray | None:
    """An all-unknown content for a small input, so that ``0 * x`` and ``False and x`` can be decided."""
    if other is None:
        return None
    dims = n.dims(index)
    entries = None if dims is None or n.content(index) is not None else n.entries(index)
    return (
        None
        if entries is None or dims is None
        else as_content(entries, tuple(d for d in dims if isinstance(d, int)))
    )


@rule("Max Min Sum Mean")
def variadic_operator(n: NodeContext) -> None:
    """Any number of inputs, broadcast."""
    count = len(n.inputs)
    dims = broadcast(*[n.dims(i) for i in range(count)])
    dtype = n.dtype(0)
    content = n.content(0)
    function = BINARY.get({"Sum": "Add"}.get(n.node.op_type, n.node.op_type))
    if function is None or dtype is None or (dtype not in _EXACT and count > 2):
        content = None
    for i in range(1, count):
        other = None if content is None else n.content(i)
        if content is None or other is None or function is None or dtype is None:
            content = None
            break
        content = binary(function, content, other, dtype)
    n.out(0, dtype, dims, content)


_EXACT = frozenset((ir.DataType.INT64, ir.DataType.INT32))


@rule("Where")
def where(n: NodeContext) -> None:
    """Chooses between two tensors; entries of a known condition, or equal entries, are known."""
    a, b, c = n.dims(0), n.dims(1), n.dims(2)
    dims = broadcast(a, b, c)
    dtype = n.dtype(1) or n.dtype(2)
    content = None
    x, y = n.content(1), n.content(2)
    if x is not None or y is not None:
        condition = n.content(0)
        condition = _unknown_like(n, 0, y if x is None else x) if condition is None else condition
        x = _unknown_like(n, 1, y) if x is None else x
        y = _unknown_like(n, 2, x) if y is None else y
        if condition is not None and x is not None and y is not None:
            shape = np.broadcast_shapes(condition.shape, x.shape, y.shape)
            if np.prod(shape, dtype=np.int64) <= MAX_ENTRIES:
                arrays = [np.broadcast_to(t, shape).reshape(-1) for t in (condition, x, y)]
                flat = [
                    (p if q else r) if q is not None else (p if type(p) is type(r) and p == r else None)
                    for q, p, r in zip(*arrays, strict=True)
                ]
                content = as_content(flat, shape)
    n.out(0, dtype, dims, content)


@rule("Cast CastLike BitCast")
def cast_to(n: NodeContext) -> None:
    """Another element type; sizes stay known through integer and float types."""
    if n.node.op_type == "CastLike":
        dtype = n.dtype(1)
    else:
        target = n.attr("to")
        dtype = None if target is None else ir.DataType(target)
    content = None
    source = n.dtype(0)
    if dtype is not None and n.node.op_type != "BitCast" and source != ir.DataType.STRING:
        known = n.content(0)
        if known is not None:
            content = as_content([cast(x, dtype) for x in known.reshape(-1)], known.shape)
    n.out(0, dtype, n.dims(0), content)


@rule("IsNaN IsInf")
def is_special(n: NodeContext) -> None:
    """A boolean for each element."""
    n.out(0, BOOL, n.dims(0))


@rule("Dropout")
def dropout(n: NodeContext) -> None:
    """The input, and optionally which elements were kept."""
    dims = n.dims(0)
    n.out(0, n.dtype(0), dims)
    n.out(1, BOOL if n.opset >= 10 else n.dtype(0), dims)


@rule("RandomNormalLike RandomUniformLike EyeLike")
def like_with_dtype(n: NodeContext) -> None:
    """The first input's shape, with an element type of its own if given."""
    given = n.attr("dtype")
    n.out(0, ir.DataType(given) if given is not None else n.dtype(0), n.dims(0))


@rule("RandomNormal RandomUniform")
def random_tensor(n: NodeContext) -> None:
    """The shape is an attribute."""
    shape = n.attr("shape")
    n.out(0, ir.DataType(n.attr("dtype", 1)), None if shape is None else tuple(shape))
