"""Small things to know about ONNX's tensor and attribute messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir as ir

from onnxlathe.errors import ModelError

from .tensors import nbytes_of

Proto = Any

MAX_DENSE = 1 << 28
"""Bytes up to which a sparse tensor is made dense."""

_TYPE_BY_FIELD = {
    "f": "FLOAT",
    "i": "INT",
    "s": "STRING",
    "t": "TENSOR",
    "g": "GRAPH",
    "tp": "TYPE_PROTO",
    "sparse_tensor": "SPARSE_TENSOR",
    "floats": "FLOATS",
    "ints": "INTS",
    "strings": "STRINGS",
    "tensors": "TENSORS",
    "graphs": "GRAPHS",
    "type_protos": "TYPE_PROTOS",
    "sparse_tensors": "SPARSE_TENSORS",
}


def infer_attribute_type(attribute: Proto) -> None:
    """Set the type of an AttributeProto that has none, from the field that is filled."""
    for field, _ in attribute.ListFields():
        if field.name in _TYPE_BY_FIELD:
            attribute.type = getattr(onnx.AttributeProto, _TYPE_BY_FIELD[field.name])
            return


def text(name: str | bytes, where: str) -> str:
    """A name, which protobuf hands out as bytes where it is no text.

    Raises:
        ModelError: it is no UTF-8 text.
    """
    if isinstance(name, bytes):
        raise ModelError(
            f"{where} has a name that is no UTF-8 text: {name[:40]!r}",
            hint="The file is damaged; export the model again.",
        )
    return name


def bodies_of(proto: Proto) -> Iterator[Proto]:
    """Every GraphProto and FunctionProto of a ModelProto, outer ones before those nested in them."""
    bodies = [proto.graph, *proto.functions]
    for body in bodies:
        yield body
        for node in body.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    bodies.append(attribute.g)
                else:
                    bodies.extend(attribute.graphs)


def tensors_of(proto: Proto) -> Iterator[Proto]:
    """Every TensorProto of a ModelProto, but for those of sparse tensors and training_info."""
    for body in bodies_of(proto):
        if isinstance(body, onnx.GraphProto):
            yield from body.initializer
        else:
            yield from _attribute_tensors(body.attribute_proto)
        for node in body.node:
            yield from _attribute_tensors(node.attribute)


def _attribute_tensors(attributes: Iterable[Proto]) -> Iterator[Proto]:
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        else:
            yield from attribute.tensors


def element_type(tensor: Proto) -> ir.DataType:
    """The element type of a TensorProto.

    Raises:
        ModelError: it has none, or one that onnx_ir does not know.
    """
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    if dtype == ir.DataType.UNDEFINED:
        raise ModelError(
            f"tensor {tensor.name!r} has the element type {tensor.data_type}, which does not exist",
            hint="The file was damaged, or is of an onnx version newer than the installed one.",
        )
    return dtype


def check_tensor(tensor: Proto) -> None:
    """A TensorProto must hold as many elements as its shape says; external ones are checked elsewhere.

    Raises:
        ModelError: naming the tensor, and what it should have had.
    """
    dims = list(tensor.dims)
    if any(dim < 0 for dim in dims):
        raise ModelError(f"tensor {tensor.name!r} has the shape {dims}, with a negative dimension")
    dtype = element_type(tensor)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return
    count = 1
    for dim in dims:
        count *= dim
    if tensor.HasField("raw_data"):
        if dtype == ir.DataType.STRING:
            raise ModelError(f"tensor {tensor.name!r} holds strings in raw_data, which ONNX forbids")
        found, expected, unit = len(tensor.raw_data), nbytes_of(dtype, dims), "bytes"
    else:
        found, unit = _typed_length(tensor), "elements"
        expected = _typed_expected(dtype, count)
    if found != expected:
        raise ModelError(
            f"tensor {tensor.name!r} of type {dtype.name} and shape {dims} should have {expected} {unit}"
            f" of data and has {found}",
            hint="The file was damaged or written wrongly; export the model again.",
        )


def _typed_length(tensor: Proto) -> int:
    return (
        len(tensor.float_data)
        or len(tensor.int32_data)
        or len(tensor.int64_data)
        or len(tensor.double_data)
        or len(tensor.uint64_data)
        or len(tensor.string_data)
    )


def _typed_expected(dtype: ir.DataType, count: int) -> int:
    """Entries of the typed field: complex numbers take two, elements below a byte share one."""
    if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        return 2 * count
    if dtype != ir.DataType.STRING and dtype.bitwidth in (2, 4):
        per = 8 // int(dtype.bitwidth)
        return (count + per - 1) // per
    return count


def dense(sparse: Proto) -> Proto:
    """A SparseTensorProto as a TensorProto with all its zeros.

    Raises:
        ModelError: it would be larger than `MAX_DENSE`, or its indices are out of bounds.
    """
    name, dims = sparse.values.name, list(sparse.dims)
    if onnx.TensorProto.EXTERNAL in (sparse.values.data_location, sparse.indices.data_location):
        raise ModelError(f"sparse tensor {name!r} lies in external data, which is not supported")
    if sparse.values.data_type == onnx.TensorProto.STRING:
        raise ModelError(f"sparse tensor {name!r} holds strings, which is not supported")
    if any(dim < 0 for dim in dims):
        raise ModelError(f"sparse tensor {name!r} has the shape {dims}, with a negative dimension")
    size = nbytes_of(element_type(sparse.values), dims)
    if size > MAX_DENSE:
        raise ModelError(
            f"sparse tensor {name!r} of shape {dims} would take {size} bytes as a dense one",
            hint="Sparse tensors are not supported beyond 256 MiB; export the model with dense ones.",
        )
    try:
        values = onnx.numpy_helper.to_array(sparse.values)
        indices = onnx.numpy_helper.to_array(sparse.indices)
        out = np.zeros(dims, dtype=values.dtype)
        if indices.ndim == 2:
            out[tuple(indices.T)] = values
        else:
            out.reshape(-1)[indices] = values
    except (ValueError, IndexError, TypeError) as error:
        raise ModelError(f"sparse tensor {name!r} is malformed: {error}") from None
    return onnx.numpy_helper.from_array(out, name)
