"""Weights that are computed from weights, a few rows at a time.

A pass that transposes, scales or joins large weights leaves a recipe (`RowTensor`), and the recipe is followed
when the model is written: block by block, so that memory stays the same however wide the model is.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from .tensors import FileTensor

Array = np.ndarray[Any, np.dtype[Any]]
Rows = Callable[[int, int], Array]

BLOCK = 1 << 24
"""Bytes of a tensor that are computed at once."""

_CACHED = 1 << 18  # smaller matrices stay in the processor's cache while they are transposed


class RowTensor(ir.LazyTensor):
    """A tensor whose contents are computed when they are read, and block by block when they are written.

    Args:
        rows: gives the entries from `start` up to `stop` of the first axis, in the tensor's element type.
        dtype: element type, of at least a byte.
        shape: its dimensions, all known; at least one.
        cache: keep the contents once they were asked for (for small tensors).
    """

    def __init__(self, rows: Rows, *, dtype: ir.DataType, shape: ir.Shape, cache: bool = False) -> None:
        count = shape.numpy()[0]
        super().__init__(
            lambda: ir.Tensor(np.ascontiguousarray(rows(0, count)), dtype=dtype),
            dtype=dtype,
            shape=shape,
            cache=cache,
        )
        self._rows = rows

    def rows(self, start: int, stop: int) -> Array:
        """The entries from `start` up to `stop` of the first axis."""
        return self.numpy()[start:stop] if self.cache else self._rows(start, stop)

    def blocks(self) -> Iterator[memoryview]:
        """The bytes as `raw_data` has them, about `BLOCK` at a time."""
        count = self.shape.numpy()[0]
        step = rows_at_once(self)
        for start in range(0, count, step):
            block = np.ascontiguousarray(self.rows(start, min(start + step, count)))
            yield block.reshape(-1).view(np.uint8).data


def rows_at_once(tensor: ir.TensorProtocol) -> int:
    """How many entries of the first axis make a block; at least 1."""
    count = tensor.shape.numpy()[0]
    return max(1, BLOCK * count // max(tensor.nbytes, 1))


def rows_of(tensor: ir.TensorProtocol, start: int, stop: int) -> Array:
    """The entries from `start` up to `stop` of the first axis; of a weight in a file, only these are read."""
    if isinstance(tensor, RowTensor):
        return tensor.rows(start, stop)
    if isinstance(tensor, FileTensor) and tensor.dtype.bitwidth >= 8:
        dims = tensor.shape.numpy()
        row = tensor.nbytes // max(dims[0], 1)
        part = FileTensor(
            tensor.file,
            tensor.offset + start * row,
            dtype=tensor.dtype,
            shape=ir.Shape((stop - start, *dims[1:])),
        )
        return part.numpy()
    return np.asarray(tensor.numpy())[start:stop]


def transposed(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A matrix's transpose, computed when it is read; of a weight in a file, block by block."""
    shape = ir.Shape(tensor.shape.numpy()[::-1])
    if isinstance(tensor, FileTensor) and tensor.dtype.bitwidth >= 8:
        return RowTensor(partial(_columns, tensor), dtype=tensor.dtype, shape=shape)

    def whole() -> ir.TensorProtocol:
        return ir.Tensor(_transposed(np.asarray(tensor.numpy())), dtype=tensor.dtype)

    # Every block would need all of the tensor, so one that is computed itself would be computed many times.
    return ir.LazyTensor(whole, dtype=tensor.dtype, shape=shape)


def _columns(tensor: FileTensor, start: int, stop: int) -> Array:
    """Rows `start` to `stop` of a matrix's transpose, in memory order."""
    rows = tensor.shape.numpy()[0]
    if tensor.nbytes <= BLOCK:
        return _transposed(tensor.numpy()[:, start:stop])
    result = np.empty((stop - start, rows), tensor.dtype.numpy().newbyteorder("<"))
    step = rows_at_once(tensor)
    for first in range(0, rows, step):
        last = min(first + step, rows)
        # Mapped and not read: each block of the result takes a few columns of every row.
        with _mapped(tensor, first, last) as tile:
            result[:, first:last] = _transposed(tile[:, start:stop])
            del tile
    return result


@contextmanager
def _mapped(tensor: FileTensor, first: int, last: int) -> Iterator[Array]:
    """Some rows of a matrix in a file, as an array that must be let go of inside."""
    rows, columns = tensor.shape.numpy()
    row = tensor.nbytes // rows
    begin = tensor.offset + first * row
    aligned = begin // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    with tensor.file.mapped(aligned, tensor.offset + last * row - aligned) as view:
        dtype = tensor.dtype.numpy().newbyteorder("<")
        yield np.frombuffer(view, dtype, (last - first) * columns, begin - aligned).reshape(-1, columns)


def _transposed(x: Array) -> Array:
    """A transposed matrix in memory order, a cache line of rows at a time: twice as fast as numpy's own."""
    if x.nbytes < _CACHED:
        return np.ascontiguousarray(x.T)
    result = np.empty(x.shape[::-1], x.dtype)
    rows = max(64 // x.dtype.itemsize, 1)
    for start in range(0, x.shape[0], rows):
        result[:, start : start + rows] = x[start : start + rows].T
    return result
