"""Writing files: all of it, or nothing."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path


def same_place(first: Path, second: Path) -> bool:
    """Whether writing one of two files writes the other; neither need be there yet."""
    if first.exists() and second.exists():
        return first.samefile(second)
    return first.resolve() == second.resolve()


def is_special(path: Path) -> bool:
    """Whether there is something that is neither a file nor a folder: a pipe, a device."""
    return path.exists() and not path.is_file() and not path.is_dir()


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that whoever opens it finds either the old or the new contents, whatever happens.

    A link stays one, and what it points to is written. A pipe or a device (`/dev/stdout`) is written to: it
    may not be replaced by a file.

    Raises:
        OSError: it cannot be written; what was there is as it was, and nothing else is left behind.
    """
    if is_special(path):
        path.write_bytes(data)
        return
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            os.unlink(temporary)
