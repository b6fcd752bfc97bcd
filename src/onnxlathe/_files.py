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


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that whoever opens it finds either the old or the new contents, whatever happens.

    Raises:
        OSError: it cannot be written; what was there is as it was, and nothing else is left behind.
    """
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
