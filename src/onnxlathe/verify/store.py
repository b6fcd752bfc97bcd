"""Arrays on disk between two processes: `.npz` files with a table of contents.

numpy's format knows neither bfloat16 and its kin nor variable-length strings without pickling, and names of
tensors are not names of files. So arrays are numbered, and an entry of JSON says what each one is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_CONTENTS = "contents"


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays; ml_dtypes and strings are fine, other Python objects are not."""
    contents: list[dict[str, Any]] = []
    plain: dict[str, np.ndarray] = {}
    for number, (name, array) in enumerate(arrays.items()):
        entry: dict[str, Any] = {"name": name, "dtype": array.dtype.name, "shape": list(array.shape)}
        if array.dtype.kind in "OUST":
            entry.update(dtype="string", strings=[_text(s) for s in array.reshape(-1).tolist()])
        elif array.dtype.kind == "V" or not array.dtype.isbuiltin:
            plain[str(number)] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        else:
            plain[str(number)] = array
        contents.append(entry)
    plain[_CONTENTS] = np.frombuffer(json.dumps(contents).encode(), dtype=np.uint8)
    np.savez(path, **plain)  # type: ignore[arg-type,unused-ignore]


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


class Stored(Mapping[str, np.ndarray]):
    """The arrays of a file that `write` wrote, each read when it is asked for; a context manager."""

    def __init__(self, path: Path) -> None:
        self._file = np.load(path, allow_pickle=False)
        contents = json.loads(self._file[_CONTENTS].tobytes())
        self._entries = {entry["name"]: (str(n), entry) for n, entry in enumerate(contents)}

    def __getitem__(self, name: str) -> np.ndarray:
        number, entry = self._entries[name]
        if entry["dtype"] == "string":
            return np.array(entry["strings"], dtype=object).reshape(entry["shape"])
        array: np.ndarray = self._file[number]
        if array.dtype.name != entry["dtype"]:
            import ml_dtypes

            array = array.view(getattr(ml_dtypes, entry["dtype"])).reshape(entry["shape"])
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __enter__(self) -> Stored:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
