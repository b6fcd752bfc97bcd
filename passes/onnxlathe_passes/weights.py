"""Weights that are made of weights, computed only when they are written.

A pass that scales the weights of a large model must not hold them: what it makes is a recipe, and the file
is read, multiplied and written one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import constant
from onnxlathe.model import FileTensor, RowTensor, rows_of
from onnxlathe.rewrite import Builder, attribute
from onnxlathe_passes.conditions import Array

Rows = Callable[[int, int], Array]

# Small tensors are computed once and kept: biases, and statistics that several rules look at.
_KEPT = 1 << 16


def tensor_of(value: ir.Value) -> ir.TensorProtocol:
    """The tensor behind a constant value (see `onnxlathe.rewrite.is_constant`), unread."""
    producer = value.producer()
    if producer is not None and "value" in producer.attributes:
        return producer.attributes["value"].as_tensor()
    if producer is None and value.const_value is not None:
        return value.const_value
    array = constant(value)
    if array is None:
        raise ValueError(f"{value.name} is not constant")
    return ir.Tensor(array)


def with_shape(tensor: ir.TensorProtocol, shape: Sequence[int]) -> ir.TensorProtocol:
    """The same entries under another shape; a weight in a file stays there, and is copied from file to file."""
    if isinstance(tensor, FileTensor):
        return FileTensor(
            tensor.file, tensor.offset, dtype=tensor.dtype, shape=ir.Shape(shape), external=tensor.external
        )

    def whole() -> ir.TensorProtocol:
        return ir.Tensor(np.asarray(tensor.numpy()).reshape(shape), dtype=tensor.dtype)

    return ir.LazyTensor(whole, dtype=tensor.dtype, shape=ir.Shape(shape), cache=tensor.nbytes <= _KEPT)


def derived(
    op: Builder, like: ir.Value, shape: Sequence[int], compute: Callable[[], Array], name: str | None = None
) -> ir.Value:
    """A constant of `like`'s element type whose contents `compute` makes when they are asked for."""
    dtype = like.dtype
    if dtype is None:
        raise ValueError(f"the element type of {like.name} is not known")

    def evaluate() -> ir.TensorProtocol:
        with np.errstate(all="ignore"):
            return ir.Tensor(np.ascontiguousarray(compute().astype(dtype.numpy(), copy=False)), dtype=dtype)

    kept = dtype.itemsize * int(np.prod(shape, dtype=np.int64)) <= _KEPT
    tensor = ir.LazyTensor(evaluate, dtype=dtype, shape=ir.Shape(shape), cache=kept)
    return op.weight(tensor, name or like.name or "")


def by_rows(op: Builder, like: ir.Value, shape: Sequence[int], rows: Rows) -> ir.Value:
    """A constant of `like`'s element type that is written some rows at a time.

    `rows(start, stop)` makes that part of its first axis; `shape` has at least one dimension.
    """
    dtype = like.dtype
    if dtype is None:
        raise ValueError(f"the element type of {like.name} is not known")
    wanted = dtype.numpy()

    def typed(start: int, stop: int) -> Array:
        with np.errstate(all="ignore"):
            return rows(start, stop).astype(wanted, copy=False)

    kept = dtype.itemsize * int(np.prod(shape, dtype=np.int64)) <= _KEPT
    return op.weight(RowTensor(typed, dtype=dtype, shape=ir.Shape(shape), cache=kept), like.name or "")


def scaled(op: Builder, weight: ir.Value, factor: Array) -> ir.Value:
    """`weight·factor`, where `factor` (float64) broadcasts to the weight; rounded once."""
    source = tensor_of(weight)
    shape = source.shape.numpy()
    if not shape:
        return op.constant(np.multiply(source.numpy(), factor, dtype=np.float64), weight.dtype)
    by_row = factor.ndim == len(shape) and factor.shape[0] != 1

    def rows(start: int, stop: int) -> Array:
        array = rows_of(source, start, stop)
        result = np.empty(array.shape, array.dtype)
        # numpy multiplies in double precision block by block, without a double copy of the weight.
        by = factor[start:stop] if by_row else factor
        np.multiply(array, by, out=result, dtype=np.float64, casting="unsafe")
        return result

    return by_rows(op, weight, shape, rows)


def numbers(value: ir.Value) -> Array:
    """A small constant in double precision."""
    return tensor_of(value).numpy().astype(np.float64)


def may_copy(weight: ir.Value, limit: int) -> bool:
    """Whether a changed weight may stand beside the old one: nothing else uses that, or it is small."""
    return tensor_of(weight).nbytes <= limit or len(weight.uses()) == 1


def attributes_of(node: ir.Node, *left_out: str) -> dict[str, Any]:
    """A node's attributes, to make another one with, except some."""
    return {name: value for name, value in node.attributes.items() if name not in left_out}


def number_of(node: ir.Node, name: str, opset: int, default: float) -> float:
    """A numeric attribute."""
    found = attribute(node, name, opset)
    return default if found is None else float(found)
