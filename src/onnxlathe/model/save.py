"""Writing a model: all of it or nothing, and weights straight from file to file."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import onnx
import onnx_ir as ir

from onnxlathe._collector import paused
from onnxlathe.errors import LatheError, ModelError, UsageError

from .load import EXTERNAL_KEY
from .model import Model
from .protos import tensors_of
from .rows import RowTensor
from .skeleton import Skeleton, names_without_value
from .tensors import FileTensor, SourceFile, raw_view, write_all
from .wire import MIN_PAYLOAD, Piece, Source, elide, size_of, splice

MAX_SINGLE_FILE = 2**31 - 2
"""Bytes of the largest message that protobuf reads: its sizes are 32-bit signed, the last one reserved."""

# External tensors begin at multiples of these, so that runtimes can map them into memory; small ones only
# need to be aligned for vector loads.
_PAGE, _LINE, _PAGE_FROM = 4096, 64, 1 << 16


def save(
    model: Model,
    path: str | os.PathLike[str],
    *,
    in_place: bool = False,
    external: bool | None = None,
) -> None:
    """Write a model; afterwards the file is there completely, or it is as if nothing had been tried.

    Everything is written under temporary names in the target's folder and then renamed; a file that is
    replaced is given up only when the new one is on the disk. Weights that are
    still in their source file are copied from file to file, so memory does not follow the model's size.
    Equal models give equal bytes. The model itself is not changed and goes on reading from its source.

    Args:
        model: what to write.
        path: the target file. A symbolic link is followed.
        in_place: allow the target to be the file that the model was loaded from.
        external: True writes tensors of 1 KiB and more to `<name>.data` beside the target (tensors from
            64 KiB on at multiples of 4096 bytes, others of 64); False writes one file; None writes external
            data where the source had them or where one file would be larger than protobuf can read (2 GB).

    Raises:
        UsageError: the target is the source and `in_place` was not given, or it holds the model's weights.
        LatheError: the target cannot be written: no such folder, no permission, disk full, too large.
        ModelError: the source of a weight changed since the model was loaded.
    """
    target = Path(os.path.realpath(path))
    _check_target(model, target, in_place)
    lost = names_without_value(model.graphs())
    if lost:
        raise LatheError(
            f"initializer {lost[0]!r} has no value and cannot be written",
            hint="A pass has left it so; this is an error of the pass.",
        )
    try:
        with paused():
            plan = _plan(model, target, external)
    except UnicodeDecodeError as error:
        raise ModelError(
            f"the model has a text that is no UTF-8: {error.object[:40]!r}",
            hint="A name, a doc_string or metadata is damaged; export the model again.",
        ) from None
    _check_space(target, plan.nbytes)
    old = _own_data_files(target)
    _write(target, plan)
    for name in old - {plan.data_name}:
        with suppress(OSError):
            os.unlink(target.with_name(name))


@dataclass
class _Plan:
    """What goes where: the pieces of the model file, and tensors with their offsets in the data file."""

    pieces: Sequence[Piece]
    data_name: str = ""
    data: list[tuple[int, ir.TensorProtocol]] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of both files."""
        return size_of(self.pieces) + (self.data[-1][0] + self.data[-1][1].nbytes if self.data else 0)

    @property
    def fits(self) -> bool:
        """Whether the model file can be read by protobuf."""
        return size_of(self.pieces) <= MAX_SINGLE_FILE


def _plan(model: Model, target: Path, external: bool | None) -> _Plan:
    want = external
    if want is None:
        want = bool(model.graph.meta.get(EXTERNAL_KEY)) or any(
            isinstance(tensor, FileTensor) and tensor.external for tensor in _tensors(model)
        )
    if not want:
        plan = _Plan(_pieces(Skeleton(model.ir)))
        if plan.fits:
            return plan
        if external is False:
            raise LatheError(
                f"the model takes {_human(plan.nbytes)} and one file can hold 2 GiB",
                hint="Let the weights be written to an external data file.",
            )
    name = _free_data_name(target)
    # Attributes stay inside while they can: not every runtime looks for external data there.
    for attributes in (False, True):
        places, data = _layout(_tensors(model, attributes=attributes), name)
        plan = _Plan(_pieces(Skeleton(model.ir, lambda tensor: places.get(id(tensor)))), name, data)  # noqa: B023
        if plan.fits:
            return plan
    raise LatheError(
        f"the model takes {_human(size_of(plan.pieces))} even without its weights; 2 GiB is the limit",
        hint="Its strings or small tensors are too many for the ONNX format.",
    )


def _pieces(skeleton: Skeleton) -> list[Piece]:
    data = skeleton.proto.SerializeToString(deterministic=True)
    return splice(data, skeleton.token, skeleton.inline)


def _layout(
    tensors: Iterator[ir.TensorProtocol], name: str
) -> tuple[dict[int, tuple[str, int]], list[tuple[int, ir.TensorProtocol]]]:
    """Offsets in the data file: by the identity of the tensor, and in order."""
    places: dict[int, tuple[str, int]] = {}
    data: list[tuple[int, ir.TensorProtocol]] = []
    end = 0
    for tensor in tensors:
        if tensor.nbytes < MIN_PAYLOAD or tensor.dtype == ir.DataType.STRING or id(tensor) in places:
            continue
        unit = _PAGE if tensor.nbytes >= _PAGE_FROM else _LINE
        offset = -(-end // unit) * unit
        places[id(tensor)] = name, offset
        data.append((offset, tensor))
        end = offset + tensor.nbytes
    return places, data


def _tensors(model: Model, *, attributes: bool = True) -> Iterator[ir.TensorProtocol]:
    """The tensors of the initializers, and those in attributes."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
        if not attributes:
            continue
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.value
                elif attribute.type == ir.AttributeType.TENSORS:
                    yield from attribute.as_tensors()


# Where to write ----------------------------------------------------------------------------------------


def _check_target(model: Model, target: Path, in_place: bool) -> None:
    folder = target.parent
    if not folder.is_dir():
        raise LatheError(
            f"cannot write {str(target)!r}: there is no folder {str(folder)!r}", hint="Create it first."
        )
    try:
        found = target.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise LatheError(f"cannot write {str(target)!r}: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        what = "a directory" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise LatheError(f"cannot write {str(target)!r}: it is {what}", hint="Name a file.")
    sources = {id(t.file): t for t in _tensors(model) if isinstance(t, FileTensor)}.values()
    inside = [tensor for tensor in sources if tensor.file.same_file(found)]
    if any(tensor.external for tensor in inside):
        raise UsageError(
            f"{str(target)!r} is the external data file of the model itself", hint="Choose another name."
        )
    if in_place:
        return
    is_source = bool(inside)
    if model.path is not None:
        with suppress(OSError):
            is_source = is_source or os.path.samestat(model.path.stat(), found)
    if is_source:
        raise UsageError(
            f"{str(target)!r} is the model that was loaded",
            hint="Choose another output, or allow it with --in-place (`in_place=True`).",
        )


def _free_data_name(target: Path) -> str:
    """A name for the data file that no file has: whatever is there may belong to the model being replaced."""
    number = 0
    while True:
        name = f"{target.name}.{number}.data" if number else f"{target.name}.data"
        if not os.path.lexists(target.with_name(name)):
            return name
        number += 1


def _own_data_files(target: Path) -> set[str]:
    """Data files beside the target that the model in it uses and that bear its name: replaced with it."""
    beside = {
        p.name for p in target.parent.iterdir() if p.name.startswith(target.name) and p.name != target.name
    }
    if not beside or not target.exists():
        return set()
    try:
        file = SourceFile(target)
        proto = onnx.ModelProto.FromString(elide(Source(file.read, file.size)).data)
    except Exception:  # whatever it was, it was no model: nothing is known to be its own
        return set()
    entries = [entry for tensor in tensors_of(proto) for entry in tensor.external_data]
    return beside & {entry.value for entry in entries if entry.key == "location"}


def _check_space(target: Path, nbytes: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if nbytes > free:
        raise LatheError(
            f"cannot write {str(target)!r}: it takes {_human(nbytes)}, and {_human(free)} are free",
            hint="Make room, or write to another disk.",
        )


def _human(nbytes: int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes} {unit}" if unit == "bytes" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024  # type: ignore[assignment]
    return f"{nbytes:.1f} GiB"


# Writing -----------------------------------------------------------------------------------------------


def _write(target: Path, plan: _Plan) -> None:
    """Write both files under temporary names, then rename them: the data first, as the model names it."""
    data_path = target.with_name(plan.data_name) if plan.data else None
    moved = False
    # What is given up must be safe against a power cut; waiting for the disk can take longer than all else.
    replaces = target.exists()
    try:
        with _temporary(target) as (fd, temporary):
            if data_path is not None:
                with _temporary(data_path) as (data_fd, data_temporary):
                    for offset, tensor in plan.data:
                        _write_tensor(data_fd, offset, tensor)
                    if replaces:
                        os.fsync(data_fd)
                    _write_pieces(fd, plan.pieces)
                    if replaces:
                        os.fsync(fd)
                    os.replace(data_temporary, data_path)
                    moved = True
            else:
                _write_pieces(fd, plan.pieces)
                if replaces:
                    os.fsync(fd)
            if replaces:
                shutil.copymode(target, temporary)
            os.replace(temporary, target)
    except BaseException as error:
        if moved and data_path is not None:
            with suppress(OSError):
                os.unlink(data_path)  # it was a free name: no other model uses it
        if isinstance(error, OSError):
            raise _explained(target, error) from None
        raise
    if replaces:
        _sync_folder(target.parent)


def _explained(target: Path, error: OSError) -> LatheError:
    hint = {
        errno.ENOSPC: "The disk is full; make room, or write to another disk.",
        errno.EDQUOT: "Your quota is used up; make room, or write to another disk.",
        errno.EACCES: "You may not write there; choose another folder.",
        errno.EPERM: "You may not write there; choose another folder.",
        errno.EROFS: "That file system is read-only; choose another folder.",
        errno.EFBIG: "That file system cannot hold so large a file; write to another disk.",
    }.get(error.errno or 0, "")
    return LatheError(f"cannot write {str(target)!r}: {error.strerror or error}", hint=hint)


@contextmanager
def _temporary(path: Path) -> Iterator[tuple[int, Path]]:
    """An open file beside `path` that is gone afterwards, unless it was renamed."""
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}.tmp")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        yield fd, temporary
    finally:
        os.close(fd)
        with suppress(OSError):
            os.unlink(temporary)


def _write_pieces(fd: int, pieces: Sequence[Piece]) -> None:
    position = 0
    small: list[bytes] = []
    for piece in pieces:
        if isinstance(piece, bytes):
            small.append(piece)
            continue
        header = b"".join(small)
        small.clear()
        write_all(fd, header)
        position += len(header)
        _write_tensor(fd, position, cast(ir.TensorProtocol, piece))
        position += piece.nbytes
    write_all(fd, b"".join(small))


def _write_tensor(fd: int, offset: int, tensor: ir.TensorProtocol) -> None:
    """Write a tensor's bytes at `offset`, and leave the descriptor after them."""
    if isinstance(tensor, FileTensor):
        tensor.copy_to(fd, offset)
    elif isinstance(tensor, RowTensor) and sys.byteorder == "little":
        os.lseek(fd, offset, os.SEEK_SET)
        done = 0
        for block in tensor.blocks():
            write_all(fd, block)
            done += len(block)
        _check_length(tensor, done)
    else:
        data = raw_view(tensor)
        _check_length(tensor, len(data))
        os.lseek(fd, offset, os.SEEK_SET)
        write_all(fd, data)
    os.lseek(fd, offset + tensor.nbytes, os.SEEK_SET)


def _check_length(tensor: ir.TensorProtocol, given: int) -> None:
    if given != tensor.nbytes:
        raise ModelError(
            f"tensor {tensor.name!r} of type {tensor.dtype.name} and shape {tensor.shape} should have"
            f" {tensor.nbytes} bytes and gave {given}",
            hint="A pass has made it so; this is an error of the pass.",
        )


def _sync_folder(folder: Path) -> None:
    """Make the renaming last; file systems that cannot do that are left alone."""
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
