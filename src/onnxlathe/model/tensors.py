"""Weights that stay on disk.

A `FileTensor` is bytes at an offset of a file that is held open. It reads them each time it is asked and
keeps none, so memory follows what is being worked on. Because the *open file* is held and not its name,
the data survive the file being replaced or deleted; that the file was changed in place is noticed.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir._core import TensorBase

from onnxlathe.errors import ModelError

CHUNK = 1 << 20
"""Bytes moved at once where data pass through this process."""

# What copy_file_range answers when this kernel or file system cannot do it.
_CANNOT_COPY = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV, errno.EBADF}
)


_read = 0


def bytes_read() -> int:
    """Bytes of weights that this process has read so far (not those that were copied file to file)."""
    return _read


class SourceFile:
    """An open file that weights are read from, and what it looked like when it was opened.

    Args:
        path: a regular file.
        keep_open: hold the descriptor for life (the data then survive the file's deletion). Where a
            model has hundreds of weight files, each is opened anew at every read and must still be there.

    Raises:
        ModelError: the file cannot be read, is no regular file, or (at a read) changed since it was opened.
    """

    def __init__(self, path: str | os.PathLike[str], *, keep_open: bool = True) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        fd = self._open()
        found = os.fstat(fd)
        self.size = found.st_size
        self._mtime_ns = found.st_mtime_ns
        self._identity = (found.st_dev, found.st_ino)
        self._fd: int | None = fd
        if keep_open:
            weakref.finalize(self, os.close, fd)
        else:
            os.close(fd)
            self._fd = None

    def _open(self) -> int:
        try:
            # O_NONBLOCK: a named pipe must be refused, not waited for.
            flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
            return os.open(self.path, flags)
        except OSError as error:
            raise ModelError(
                f"cannot open {str(self.path)!r}: {error.strerror}",
                hint="Check the path and its permissions.",
            ) from None

    def _check(self, fd: int) -> None:
        found = os.fstat(fd)
        if found.st_size != self.size or found.st_mtime_ns != self._mtime_ns:
            raise ModelError(
                f"{str(self.path)!r} changed while it was being used",
                hint="Load the model again, and let nothing write to it meanwhile.",
            )

    def same_file(self, stat: os.stat_result) -> bool:
        """Whether this is the file that `stat` describes, under whatever name."""
        return self._identity == (stat.st_dev, stat.st_ino)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `offset` on.

        Raises:
            ModelError: the file changed, ends early, or cannot be read.
        """
        global _read
        _read += len(buffer)
        with _Descriptor(self) as fd:
            self._check(fd)
            done = 0
            while done < len(buffer):
                got = self._read_some(fd, offset + done, buffer[done : done + (1 << 30)])
                if not got:
                    raise ModelError(f"{str(self.path)!r} ends before byte {offset + len(buffer)}")
                done += got

    def _read_some(self, fd: int, offset: int, buffer: memoryview) -> int:
        try:
            if hasattr(os, "preadv"):
                return os.preadv(fd, [buffer], offset)
            with self._lock:  # Windows has no positioned reads
                os.lseek(fd, offset, os.SEEK_SET)
                data = os.read(fd, len(buffer))
        except OSError as error:
            raise ModelError(f"cannot read {str(self.path)!r}: {error.strerror}") from None
        buffer[: len(data)] = data
        return len(data)

    def read(self, start: int, end: int) -> bytes:
        """The bytes `[start, end)`."""
        buffer = bytearray(end - start)
        self.read_into(start, memoryview(buffer))
        return bytes(buffer)

    def mapped(self, offset: int, nbytes: int) -> mmap.mmap:
        """`nbytes` from `offset` on (a multiple of `mmap.ALLOCATIONGRANULARITY`), mapped for reading.

        Raises:
            ModelError: the file changed.
        """
        global _read
        _read += nbytes
        with _Descriptor(self) as fd:
            self._check(fd)
            return mmap.mmap(fd, nbytes, access=mmap.ACCESS_READ, offset=offset)

    def chunks(self, offset: int, nbytes: int, size: int = CHUNK) -> Iterator[memoryview]:
        """`nbytes` from `offset` on, at most `size` at a time; each view is valid until the next."""
        view = memoryview(bytearray(min(size, nbytes)))
        for start in range(0, nbytes, size or 1):
            part = view[: min(size, nbytes - start)]
            self.read_into(offset + start, part)
            yield part

    def copy(self, offset: int, nbytes: int, fd: int, target: int) -> None:
        """Copy `nbytes` from `offset` to byte `target` of the open file `fd`, inside the kernel if it can.

        Raises:
            ModelError: the source changed or ends early.
            OSError: the target cannot be written (`ENOSPC` for a full disk).
        """
        done = 0
        if hasattr(os, "copy_file_range"):
            with _Descriptor(self) as source:
                self._check(source)
                try:
                    while done < nbytes:
                        got = os.copy_file_range(source, fd, nbytes - done, offset + done, target + done)
                        if not got:
                            break
                        done += got
                except OSError as error:
                    if error.errno not in _CANNOT_COPY:
                        raise
                self._check(source)
        os.lseek(fd, target + done, os.SEEK_SET)
        for part in self.chunks(offset + done, nbytes - done):
            write_all(fd, part)


class _Descriptor:
    """The descriptor of a source: the one it holds, or one opened for the occasion."""

    def __init__(self, source: SourceFile) -> None:
        self._source = source

    def __enter__(self) -> int:
        source = self._source
        self._own: int | None = None
        if source._fd is not None:
            return source._fd
        self._own = source._open()
        if not source.same_file(os.fstat(self._own)):
            os.close(self._own)
            raise ModelError(
                f"{str(source.path)!r} was replaced by another file while it was being used",
                hint="Load the model again, and let nothing write to it meanwhile.",
            )
        return self._own

    def __exit__(self, *_: object) -> None:
        if self._own is not None:
            os.close(self._own)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write at the descriptor's position, until everything is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view[: 1 << 30]) :]


class FileTensor(TensorBase):
    """A tensor whose elements lie in a file, little-endian as in ONNX's `raw_data`.

    Args:
        file: the open file.
        offset: byte at which the elements start.
        dtype: element type.
        shape: its dimensions, all known.
        external: whether the file is an external data file rather than the model file itself.

    `nbytes` follows from dtype and shape; that the file is long enough is checked by `load`.
    """

    __slots__ = ("_digest", "_dtype", "_nbytes", "_shape", "external", "file", "offset")

    def __init__(
        self,
        file: SourceFile,
        offset: int,
        *,
        dtype: ir.DataType,
        shape: ir.Shape,
        name: str | None = None,
        doc_string: str | None = None,
        metadata_props: dict[str, str] | None = None,
        external: bool = False,
    ) -> None:
        super().__init__(name=name, doc_string=doc_string, metadata_props=metadata_props)
        self.file = file
        self.offset = offset
        self.external = external
        self._dtype = dtype
        self._shape = shape
        shape.freeze()
        self._nbytes = nbytes_of(dtype, shape.numpy())
        self._digest: bytes | None = None

    @property
    def dtype(self) -> ir.DataType:  # type: ignore[override]  # read-only, as in onnx_ir's own tensors
        return self._dtype

    @property
    def shape(self) -> ir.Shape:  # type: ignore[override]
        return self._shape

    @property
    def nbytes(self) -> int:
        return self._nbytes

    @property
    def raw(self) -> SourceFile:
        """The open file, as `file`."""
        return self.file

    def __repr__(self) -> str:
        return f"{self._repr_base()}({str(self.file.path)!r}, offset={self.offset}, name={self.name!r})"

    def _bytes(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        data = np.empty(self._nbytes, dtype=np.uint8)
        if self._nbytes:
            self.file.read_into(self.offset, data.data)
        # The array is a copy: writing to it would look as if it changed the weight.
        data.flags.writeable = False
        return data

    def numpy(self) -> np.ndarray[Any, np.dtype[Any]]:
        """The elements, read now and not kept; bfloat16, float8 and 4-bit types come as `ml_dtypes`.

        Raises:
            ModelError: the file changed since it was opened, or cannot be read.
        """
        data = self._bytes()
        if self._dtype.bitwidth < 8:
            return ir.PackedTensor(data, self._dtype, shape=self._shape).numpy()
        return data.view(self._dtype.numpy().newbyteorder("<")).reshape(self._shape.numpy())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, np.dtype[Any]]:
        array = self.numpy()
        return array if dtype is None else array.astype(dtype, copy=False)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return np.array(self.numpy()).__dlpack__(stream=stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # CPU

    def tobytes(self) -> bytes:
        """The bytes as they lie in the file, read now and not kept."""
        return self._bytes().tobytes()

    def tofile(self, file: Any) -> None:
        """Write the bytes to a binary file object, a chunk at a time."""
        for part in self.chunks():
            file.write(part)

    def chunks(self, size: int = CHUNK) -> Iterator[memoryview]:
        """The bytes, at most `size` at a time; each view is valid until the next one is asked for."""
        return self.file.chunks(self.offset, self._nbytes, size)

    def copy_to(self, fd: int, offset: int) -> None:
        """Copy the bytes to byte `offset` of the open file `fd`, inside the kernel where that is possible.

        Raises:
            ModelError: the source file changed.
            OSError: the target cannot be written.
        """
        self.file.copy(self.offset, self._nbytes, fd, offset)

    def digest(self) -> bytes:
        """A 16-byte hash of the bytes (not of type and shape), in bounded memory; computed once."""
        if self._digest is None:
            state = _hash()
            for part in self.chunks():
                state.update(part)
            self._digest = state.digest()[:16]
        return self._digest


class SmallTensor(ir.TensorProtoTensor):
    """A tensor held in its protobuf message, which keeps what onnx_ir works out anew at every question."""

    __slots__ = ("_array", "_dtype", "_nbytes", "_shape")

    def __init__(self, proto: Any) -> None:
        super().__init__(proto)
        self._dtype = ir.DataType(proto.data_type)
        self._shape = ir.Shape(proto.dims, frozen=True)
        self._nbytes: int | None = None
        self._array: np.ndarray[Any, np.dtype[Any]] | None = None

    @property
    def dtype(self) -> ir.DataType:  # type: ignore[override]  # read-only, as in onnx_ir's own tensors
        return self._dtype

    @property
    def shape(self) -> ir.Shape:  # type: ignore[override]
        return self._shape

    @property
    def nbytes(self) -> int:
        if self._nbytes is None:
            self._nbytes = super().nbytes
        return self._nbytes

    def numpy(self) -> np.ndarray[Any, np.dtype[Any]]:
        """The elements; the array is shared and cannot be written to."""
        if self._array is None:
            array = super().numpy()
            array.flags.writeable = False
            self._array = array
        return self._array


def _hash() -> Any:
    # The processor has instructions for SHA-256; nothing here is about secrets.
    return hashlib.sha256(usedforsecurity=False)


def digest(tensor: ir.TensorProtocol) -> bytes:
    """A 16-byte hash of a tensor's bytes; equal for equal bytes, whether in a file or in memory."""
    if isinstance(tensor, FileTensor):
        return tensor.digest()
    state = _hash()
    state.update(raw_view(tensor))
    return bytes(state.digest()[:16])


def raw_view(tensor: ir.TensorProtocol) -> memoryview:
    """A tensor's bytes as `raw_data` has them; without a copy where its array already has that form.

    Raises:
        ModelError: the tensor holds strings, which have no raw form.
    """
    if tensor.dtype == ir.DataType.STRING:
        raise ModelError(f"tensor {tensor.name!r} holds strings, which have no raw bytes")
    if tensor.dtype.bitwidth < 8 or sys.byteorder != "little" or isinstance(tensor, ir.ExternalTensor):
        return memoryview(tensor.tobytes())
    array = np.ascontiguousarray(tensor.numpy())
    return array.reshape(-1).view(np.uint8).data


def nbytes_of(dtype: ir.DataType, dims: tuple[int, ...] | list[int]) -> int:
    """Bytes of `raw_data` for this type and shape; elements below a byte are packed, the last one padded."""
    bits = int(dtype.bitwidth)
    for dim in dims:
        bits *= dim
    return (bits + 7) // 8
