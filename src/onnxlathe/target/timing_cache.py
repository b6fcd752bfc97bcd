"""The timing cache, inside the child process: what a build measured is kept for the next one.

The file is TensorRT's own form of a timing cache: trtexec and Polygraphy read and write the same. Several
builds may write it at once: each takes a lock, adds what it has measured to what the file holds by then,
and replaces the file whole.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from onnxlathe._files import write_whole
from onnxlathe.target.native import Native, Trouble


class BadCache(Trouble):
    """The file is no timing cache that this version and GPU can use."""


def attach(native: Native, config: Any, path: Path) -> None:
    """Let a build start from what the file holds; it need not exist.

    Raises:
        BadCache: the file is damaged, or of another version or GPU.
        OSError: it cannot be read.
    """
    cache = _read(native, config, path)
    if not config.set_timing_cache(cache, False):
        raise _refusal(path, "it is of another version of TensorRT, or another GPU")


def keep(native: Native, config: Any, path: Path) -> None:
    """Add what a build has measured to the file.

    Raises:
        OSError: it cannot be written; what it held, it still holds.
    """
    measured = config.get_timing_cache()
    if measured is None:
        return
    with locked(path):
        with suppress(BadCache):  # it was good a moment ago: whoever broke it meanwhile loses
            together = _read(native, config, path)
            if together.combine(measured, True):
                measured = together
        write_whole(path, memoryview(measured.serialize()))


def _read(native: Native, config: Any, path: Path) -> Any:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return config.create_timing_cache(b"")
    before = len(native.messages)
    cache = config.create_timing_cache(data)
    # A cache that cannot be read comes back empty; only a message tells.
    said = [text for _, text in native.messages[before:] if "timing cache" in text.lower()]
    if cache is None or said:
        raise _refusal(path, said[-1] if said else "it cannot be read")
    return cache


def _refusal(path: Path, why: str) -> BadCache:
    return BadCache(
        f"the timing cache '{path}' cannot be used: {why.strip()}",
        "delete it to start a new one, or name another file",
    )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until no other process holds the lock of the file at `path`; it is freed when a holder dies."""
    with open(path.with_name(path.name + ".lock"), "ab") as file:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file frees the lock
