"""Rules of sequences and optionals: the element type, and the element shape where all elements share it."""

from __future__ import annotations

import onnx_ir as ir

from onnxlathe.infer.contents import as_content
from onnxlathe.infer.context import NodeContext, rule
from onnxlathe.infer.dims import DimLike, Dims
from onnxlathe.infer.values import element_dims_of, shape_of

INT64 = ir.DataType.INT64


def _set(n: NodeContext, index: int, kind: ir.TypeProtocol | None, dims: Dims | None) -> None:
    """States the type of an output that is no tensor."""
    if index >= len(n.outputs) or kind is None:
        return
    value = n.outputs[index]
    if n.engine.journal is not None:
        n.engine.remember(value)
    if value.type is None or value.type != kind:
        value.type = kind
        n.changed = True
    if dims is not None and element_dims_of(value) != dims:
        value.shape = shape_of(dims)
        n.changed = True
    if dims is None and value.shape is not None and type(kind) is not ir.TensorType and index == 0:
        value.shape = None  # elements of different ranks


def _common(shapes: list[Dims | None]) -> Dims | None:
    """What is true of each of the shapes."""
    first = shapes[0] if shapes else None
    if first is None or any(s is None or len(s) != len(first) for s in shapes):
        return None
    columns = zip(*[s for s in shapes if s is not None], strict=True)
    return tuple([column[0] if all(d == column[0] for d in column) else None for column in columns])


@rule("SequenceConstruct")
def sequence_construct(n: NodeContext) -> None:
    """A sequence of the inputs."""
    dtype = n.dtype(0)
    if dtype is not None:
        shapes = [n.dims(i) for i in range(len(n.inputs))]
        _set(n, 0, ir.SequenceType(ir.TensorType(dtype)), _common(shapes))


@rule("SequenceEmpty")
def sequence_empty(n: NodeContext) -> None:
    """A sequence of nothing; what is inserted later may have any shape."""
    _set(n, 0, ir.SequenceType(ir.TensorType(ir.DataType(n.attr("dtype", 1)))), None)


@rule("SequenceInsert", "SequenceErase")
def sequence_edit(n: NodeContext) -> None:
    """The same sequence type; shapes stay as far as they agree."""
    source = n.inputs[0]
    if source is None or source.type is None:
        return
    dims = element_dims_of(source)
    if n.node.op_type == "SequenceInsert":
        dims = _common([dims, n.dims(1)])
    _set(n, 0, source.type, dims)


@rule("SequenceAt")
def sequence_at(n: NodeContext) -> None:
    """An element."""
    source = n.inputs[0]
    if source is None or source.type is None:
        return
    dims = element_dims_of(source) if isinstance(source.type, ir.SequenceType) else None
    n.out(0, source.type.dtype, dims)


@rule("SequenceLength")
def sequence_length(n: NodeContext) -> None:
    """A scalar."""
    n.out(0, INT64, ())


@rule("ConcatFromSequence")
def concat_from_sequence(n: NodeContext) -> None:
    """Elements joined along an axis, or stacked along a new one."""
    source = n.inputs[0]
    if source is None or source.type is None:
        return
    dims = element_dims_of(source)
    axis = n.attr("axis", 0)
    if dims is None:
        n.out(0, source.type.dtype)
        return
    result: list[DimLike] = list(dims)
    if n.attr("new_axis", 0):
        result.insert(axis + len(dims) + 1 if axis < 0 else axis, None)
    else:
        result[axis] = None
    n.out(0, source.type.dtype, result)


@rule("SplitToSequence")
def split_to_sequence(n: NodeContext) -> None:
    """Parts of one axis, whose sizes may differ; without ``split`` each is one (or the axis goes)."""
    dtype, dims = n.dtype(0), n.dims(0)
    if dtype is None:
        return
    result: list[DimLike] | None = None
    if dims is not None:
        result = list(dims)
        axis = n.attr("axis", 0) % max(len(dims), 1)
        if n.has(1):
            result[axis] = None
        elif n.attr("keepdims", 1):
            result[axis] = 1
        else:
            del result[axis]
    _set(n, 0, ir.SequenceType(ir.TensorType(dtype)), None if result is None else tuple(result))


@rule("Optional")
def optional(n: NodeContext) -> None:
    """Wraps a value."""
    source = n.inputs[0] if n.inputs else None
    if source is not None and source.type is not None:
        _set(n, 0, ir.OptionalType(source.type), element_dims_of(source))


@rule("OptionalGetElement")
def optional_get_element(n: NodeContext) -> None:
    """Unwraps a value; since opset 18 a plain one passes through."""
    source = n.inputs[0]
    if source is None or source.type is None:
        return
    kind = source.type
    inner = kind.elem_type if isinstance(kind, ir.OptionalType) else kind
    if isinstance(inner, ir.TensorType):
        n.out(0, inner.dtype, element_dims_of(source))
    elif isinstance(inner, ir.SequenceType):
        _set(n, 0, inner, element_dims_of(source))


@rule("OptionalHasElement")
def optional_has_element(n: NodeContext) -> None:
    """A boolean scalar; known to be false without an input."""
    content = as_content(False) if not n.has(0) else None
    n.out(0, ir.DataType.BOOL, (), content)
