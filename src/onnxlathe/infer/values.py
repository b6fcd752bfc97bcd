"""What is known about a value: type, symbolic shape, and the contents of small tensors.

Facts live on the value itself: ``value.type``, ``value.shape`` (ints, expression texts, or unknown), and, for
contents that are computed rather than stored, ``value.meta["onnxlathe.known"]``. They are facts about every
run of the model, so a pass may rely on them, and must not keep them on a value whose meaning it changes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxlathe.infer.contents import MAX_ENTRIES, Content, Ratio, as_content
from onnxlathe.infer.dim_text import from_dim_param
from onnxlathe.infer.dims import Dim, DimLike, Dims

__all__ = ["constant", "content_of", "dims_of", "forget_contents", "known", "refine", "set_dims"]

KNOWN = "onnxlathe.known"
_CONSTANT = "onnxlathe.constant"  # (tensor, content): a cache, checked by the tensor's identity
FRESH = "u."  # names of symbols that inference made up for sizes that only a run decides

_KINDS_OF_CONTENT = frozenset("iufb")  # numpy kinds whose entries fit a content


def _read_dim(dim: int | ir.SymbolicDim) -> DimLike:
    if type(dim) is int:
        return dim if dim >= 0 else None  # -1 is some exporters' word for "any size"
    return from_dim_param(dim.value) if isinstance(dim, ir.SymbolicDim) else int(dim)


def dims_of_shape(shape: ir.Shape) -> Dims:
    """The dimensions of a shape as numbers, expressions, or None for unknown ones."""
    return tuple([_read_dim(dim) for dim in shape])


def dims_of(value: ir.Value) -> Dims | None:
    """The value's dimensions; None when the rank is unknown or the value is no tensor.

    Args:
        value: any value of a graph.

    Returns:
        A tuple of int, :class:`Dim` or None (that dimension is unknown).
    """
    shape = value.shape
    if shape is None:
        tensor = value.const_value
        return None if tensor is None else tuple(int(d) for d in tensor.shape.numpy())
    kind = value.type
    if kind is not None and type(kind) is not ir.TensorType:
        return None
    return tuple([dim if type(dim) is int and dim >= 0 else _read_dim(dim) for dim in shape])


def element_dims_of(value: ir.Value) -> Dims | None:
    """The dimensions of the tensors inside of a sequence or optional; None when unknown."""
    return None if value.shape is None else dims_of_shape(value.shape)


def _symbolic(dim: DimLike) -> int | ir.SymbolicDim:
    if isinstance(dim, Dim):
        symbolic = dim._symbolic
        if symbolic is None:
            symbolic = dim._symbolic = ir.SymbolicDim(str(dim))
        return symbolic  # type: ignore[return-value]
    return ir.SymbolicDim(None) if dim is None else dim


def shape_of(dims: Dims) -> ir.Shape:
    """A new IR shape that says these dimensions."""
    return ir.Shape([_symbolic(d) for d in dims])


def set_dims(value: ir.Value, dims: Dims | None) -> None:
    """Writes the dimensions to ``value.shape`` as they are, replacing what stood there."""
    value.shape = None if dims is None else shape_of(dims)


def is_static(dims: Dims | None) -> bool:
    """Whether all dimensions are numbers."""
    if dims is None:
        return False
    return all(type(d) is int for d in dims)


def static_size(dims: Dims | None) -> int | None:
    """The number of elements when all dimensions are numbers."""
    if dims is None:
        return None
    size = 1
    for dim in dims:
        if type(dim) is not int:
            return None
        size *= dim
    return size


# Constants.


def _constant_node_tensor(node: ir.Node) -> ir.TensorProtocol | npt.NDArray[np.generic] | None:
    """What a ``Constant`` node holds, whichever of its attributes holds it."""
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return None  # decided by the caller of the function
        held = attribute.value
        if name == "value":
            return held  # type: ignore[no-any-return]
        if name in ("value_int", "value_ints"):
            return np.array(held, np.int64)
        if name in ("value_float", "value_floats"):
            return np.array(held, np.float32)
        if name in ("value_string", "value_strings"):
            return np.array(held, object)
    return None


def constant_tensor(value: ir.Value) -> ir.TensorProtocol | npt.NDArray[np.generic] | None:
    """The tensor behind a constant value, unread; None when the value is not constant.

    Constant are initializers that are not also graph inputs (a caller may override those), and outputs of
    ``Constant`` nodes.
    """
    producer = value.producer()
    if producer is None:
        if value.is_initializer() and not value.is_graph_input():
            return value.const_value
        return None
    if producer.op_type == "Constant" and producer.domain == "":
        return _constant_node_tensor(producer)
    return None


def constant(value: ir.Value, max_bytes: int = 1 << 20) -> npt.NDArray[np.generic] | None:
    """The array of a constant value.

    Args:
        value: an initializer's value or a ``Constant`` node's output, also of an outer graph.
        max_bytes: larger tensors are not read (they may lie on disk) and None is returned.

    Returns:
        The array (do not write to it), or None when the value is not constant, too large, or unreadable.
    """
    tensor = constant_tensor(value)
    if tensor is None or isinstance(tensor, np.ndarray):
        return tensor
    if tensor.nbytes > max_bytes:
        return None
    try:
        return np.asarray(tensor.numpy())
    except Exception:  # a damaged or exotic tensor is just not known here; load and save complain about it
        return None


def _computed_content(value: ir.Value) -> Content | None:
    # value.meta would create a store for every value that is asked; most have none.
    store = value._metadata
    return None if store is None else store.data.get(KNOWN)


def content_of(value: ir.Value) -> Content | None:
    """Like :func:`known`, with :class:`~onnxlathe.infer.contents.Ratio` entries in float tensors."""
    content = _computed_content(value)
    if content is not None:
        return content
    tensor = constant_tensor(value)
    if tensor is None:
        return None
    if tensor.size > MAX_ENTRIES:
        return None
    cached = value.meta.get(_CONSTANT)
    if cached is not None and cached[0] is tensor:
        return cached[1]  # type: ignore[no-any-return]
    array = constant(value)
    if array is not None:
        if array.dtype.kind in _KINDS_OF_CONTENT:
            content = as_content(array)
        elif array.dtype.kind == "V" and array.dtype.names is None:  # ml_dtypes: bfloat16, int4, float8...
            whole = not isinstance(tensor, np.ndarray) and tensor.dtype in _SMALL_INTEGERS
            content = as_content(array.astype(np.int64 if whole else np.float64))
    if not isinstance(tensor, np.ndarray):
        value.meta[_CONSTANT] = (tensor, content)
    return content


_SMALL_INTEGERS = frozenset((ir.DataType.INT4, ir.DataType.UINT4))


def known(value: ir.Value) -> Content | None:
    """The content of a small tensor, as far as it is known.

    Args:
        value: any value of a graph, constant or computed.

    Returns:
        An object array of the tensor's shape (at most 1024 elements) whose entries are int, bool, float, a
        :class:`Dim`, or None where the entry is unknown; None when nothing is known. Do not write to it.
    """
    content = content_of(value)
    if content is not None and any(type(entry) is Ratio for entry in content.reshape(-1)):
        return as_content(
            [None if type(e) is Ratio else e for e in content.reshape(-1)],
            content.shape,
        )
    return content


def forget_contents(value: ir.Value) -> None:
    """Removes the computed content, for a pass that gives the value a new meaning."""
    if _computed_content(value) is not None:
        del value.meta[KNOWN]


# Refinement: new facts meet those that are already there.


def is_fresh(dim: DimLike) -> bool:
    """Whether an expression depends on a size that inference made up a name for."""
    return isinstance(dim, Dim) and any(name.startswith(FRESH) for name in dim.symbols)


def merge_dim(inferred: DimLike, declared: DimLike) -> DimLike:
    """The better of two statements about one dimension; contradictions are the caller's to report.

    An expression that follows from the inputs beats anything declared; a declared number or name beats a
    made-up one.
    """
    if inferred is None:
        return declared
    if declared is None or type(inferred) is int:
        return inferred
    if is_fresh(inferred) and not is_fresh(declared):
        return declared
    # torch.export declares x[:, :1] to have size 1, where only min(1, seq) is certain: it knows its ranges.
    if isinstance(inferred, Dim) and type(declared) is int:
        call = inferred.call
        if call is not None and call.kind in ("min", "max") and declared in call.args:
            return declared
    return inferred


def refine(
    value: ir.Value,
    dtype: ir.DataType | None,
    dims: Dims | None,
    content: Content | None,
    note: Callable[[str], None],
) -> bool:
    """Adds facts to a tensor value, keeping what is better in the facts that are there.

    Args:
        value: the value to write to.
        dtype, dims, content: what was inferred; None where nothing was.
        note: called with a sentence for each contradiction (the inferred fact is kept).

    Returns:
        Whether anything new was learned.
    """
    changed = False
    if dtype is not None:
        kind = value.type
        if type(kind) is not ir.TensorType or kind.dtype != dtype:
            if kind is not None and kind.dtype != ir.DataType.UNDEFINED:
                note(f"value {value.name!r} is declared {kind}, but is a tensor of {dtype}")
            value.type = ir.TensorType(dtype)
            changed = True
    if dims is not None:
        shape = value.shape
        if shape is None:
            value.shape = shape_of(dims)
            changed = True
        else:
            declared = tuple([d if type(d) is int and d >= 0 else _read_dim(d) for d in shape])
            if declared != dims:
                if len(declared) != len(dims):
                    note(
                        f"value {value.name!r} is declared of rank {len(declared)}, but has rank {len(dims)}"
                    )
                    value.shape = shape_of(dims)
                    changed = True
                else:
                    changed |= _merge_dims(value, dims, declared, note)
    if content is not None:
        changed |= _refine_content(value, content)
    return changed


def _merge_dims(value: ir.Value, dims: Dims, declared: Dims, note: Callable[[str], None]) -> bool:
    merged = tuple([a if a == b else merge_dim(a, b) for a, b in zip(dims, declared, strict=True)])
    for axis, (old, new) in enumerate(zip(declared, merged, strict=True)):
        if old != new and type(old) is int:
            note(f"value {value.name!r} is declared with {old} at axis {axis}, but has {new}")
    if merged == declared:
        return False
    value.shape = shape_of(merged)
    return True


def _same(a: object, b: object) -> bool:
    return a is b or (type(a) is type(b) and (a == b or (a != a and b != b)))


def _refine_content(value: ir.Value, content: Content) -> bool:
    old = _computed_content(value)
    if old is not None and old.shape == content.shape:
        pairs = list(zip(content.reshape(-1), old.reshape(-1), strict=True))
        merged = [b if a is None else a for a, b in pairs]
        if all(_same(m, b) for m, (_, b) in zip(merged, pairs, strict=True)):
            return False
        content = as_content(merged, content.shape)
    value.meta[KNOWN] = content
    return True
