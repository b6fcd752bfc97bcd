"""Rules of sequences and optionals: the element type, and the element shape where all elements share it."""

from __future__ import annotations

import onnx_ir as ir

from onnxlathe.infer.contents import as_content
from onnxlathe.infer.context import NodeContext, rule
from onnxlathe.infer.dims import DimLike, Dims
from onnxlathe.infer.values import element_dims_of, shape_of

INT64 = ir.DataType.INT64


ELEMENTS = "onnxlathe.elements"  # meta: the shapes of a sequence's elements, where their number is known
Elements = tuple[Dims | None, ...]
_MAX_ELEMENTS = 256


def _elements(n: NodeContext, index: int) -> Elements | None:
    """The shapes of the elements of an input sequence, in order; None when their number is unknown."""
    value = n.inputs[index] if index < len(n.inputs) else None
    if value is None or value._metadata is None:
        return None
    found: Elements | None = value._metadata.data.get(ELEMENTS)
    return found


def _set_elements(n: NodeContext, elements: Elements | None) -> None:
    # A loop's body is inferred again with other assumptions, and only facts of values are restored then.
    if elements is None or len(elements) > _MAX_ELEMENTS or n.engine.journal is not None:
        return
    n.outputs[0].meta[ELEMENTS] = elements


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
        _set_elements(n, tuple(shapes))


@rule("SequenceEmpty")
def sequence_empty(n: NodeContext) -> None:
    """A sequence of nothing; what is inserted later may have any shape."""
    _set(n, 0, ir.SequenceType(ir.TensorType(ir.DataType(n.attr("dtype", 1)))), None)
    _set_elements(n, ())


@rule("SequenceInsert SequenceErase")
def sequence_edit(n: NodeContext) -> None:
    """The same sequence type; shapes stay as far as they agree."""
    source = n.inputs[0]
    if source is None or source.type is None:
        return
    dims = element_dims_of(source)
    insert = n.node.op_type == "SequenceInsert"
    elements = _elements(n, 0)
    if elements is not None:
        place_at = 2 if insert else 1
        place = n.scalar(place_at) if n.has(place_at) else len(elements) - (not insert)
        if isinstance(place, int) and -len(elements) <= place <= len(elements) - (not insert):
            place = place + len(elements) if place < 0 else place
            added = (n.dims(1),) if insert else ()
            elements = elements[:place] + added + elements[place + (not insert) :]
            _set_elements(n, elements)
            dims = _common(list(elements))
        else:
            elements = None
    if elements is None and insert:
        dims = _common([dims, n.dims(1)])
    _set(n, 0, source.type, dims)


@rule("SequenceAt")
def sequence_at(n: NodeContext) -> None:
    """An element."""
    source = n.inputs[0]
    if source is None or source.type is None:
        return
    dims = element_dims_of(source) if isinstance(source.type, ir.SequenceType) else None
    elements, place = _elements(n, 0), n.scalar(1)
    if elements is not None and isinstance(place, int) and -len(elements) <= place < len(elements):
        dims = elements[place]
    n.out(0, source.type.dtype, dims)


@rule("SequenceLength")
def sequence_length(n: NodeContext) -> None:
    """A scalar."""
    elements = _elements(n, 0)
    n.out(0, INT64, (), None if elements is None else as_content(len(elements)))


@rule("ConcatFromSequence")
def concat_from_sequence(n: NodeContext) -> None:
    """Elements joined along an axis, or stacked along a new one."""
    source = n.inputs[0]
    if source is None or source.type is None:
        return
    axis = n.attr("axis", 0)
    elements = _elements(n, 0)
    dims = _common(list(elements)) if elements else element_dims_of(source)
    if dims is None:
        n.out(0, source.type.dtype)
        return
    result: list[DimLike] = list(dims)
    if n.attr("new_axis", 0):
        count = None if elements is None else len(elements)
        result.insert(axis + len(dims) + 1 if axis < 0 else axis, count)
    else:
        total: DimLike = None if elements is None else 0
        for element in elements or ():
            size = None if element is None else element[axis]
            total = None if total is None or size is None else total + size
        result[axis] = total
    n.out(0, source.type.dtype, result)


@rule("SplitToSequence")
def split_to_sequence(n: NodeContext) -> None:
    """Parts of one axis: of given sizes, of one given size (the last may be smaller), or of size one."""
    dtype, dims = n.dtype(0), n.dims(0)
    if dtype is None:
        return
    kind = ir.SequenceType(ir.TensorType(dtype))
    if not dims:
        _set(n, 0, kind, None)
        return
    axis = n.attr("axis", 0) % len(dims)
    sizes = _part_sizes(n, dims[axis])
    keep = n.has(1) or n.attr("keepdims", 1)

    def part(size: DimLike) -> Dims:
        return (*dims[:axis], *([size] if keep else []), *dims[axis + 1 :])

    if sizes is None:
        _set(n, 0, kind, part(None if n.has(1) else 1))
    else:
        elements = tuple([part(size) for size in sizes])
        _set_elements(n, elements)
        _set(n, 0, kind, _common(list(elements)) if elements else part(None))


def _part_sizes(n: NodeContext, dim: DimLike) -> list[DimLike] | None:
    """The sizes of the parts along the axis; None when their number is unknown."""
    if not n.has(1):
        return [1 for _ in range(dim)] if isinstance(dim, int) and dim <= _MAX_ELEMENTS else None
    content = n.content(1)
    if content is not None and content.ndim == 1:
        return list(content)
    size = n.scalar(1)
    if not isinstance(size, int) or not isinstance(dim, int) or size <= 0 or dim > size * _MAX_ELEMENTS:
        return None
    whole, rest = divmod(dim, size)
    return [*[size] * whole, *([rest] if rest else [])]


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
