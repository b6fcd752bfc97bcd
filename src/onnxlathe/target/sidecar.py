"""The sidecar: what there is to know about an engine, as JSON beside it (`model.engine.json`).

The same inputs and versions give an equal sidecar: it holds no time, no path and nothing else that differs
from one run to the next.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

import msgspec

from onnxlathe.errors import LatheError, ModelError

SCHEMA: Final = 1
_KEYS: Final = (
    "target", "built_for", "options", "profiles", "inputs", "outputs", "source", "model", "not_checked", "map",
)  # fmt: skip


def sidecar_path(engine: Path) -> Path:
    """Where the sidecar of an engine lies."""
    return engine.with_name(engine.name + ".json")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's contents, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_digest(path: Path) -> dict[str, Any]:
    """Name and SHA-256 of a model's file, and of each file with external data that it names."""
    from onnxlathe.model import FileTensor, load

    files: dict[str, str] = {}
    for graph in load(path).graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, FileTensor) and tensor.external:
                data = Path(tensor.file.path)
                if data.name not in files:
                    files[data.name] = sha256_of(data)
    return {"name": path.name, "sha256": sha256_of(path), "external_data": dict(sorted(files.items()))}


def encode(data: dict[str, Any]) -> bytes:
    """The sidecar's bytes: two equal dictionaries give equal bytes."""
    return bytes(msgspec.json.format(msgspec.json.encode({"schema": SCHEMA, **data}), indent=1)) + b"\n"


def read_sidecar(engine: Path) -> dict[str, Any]:
    """What the sidecar of an engine says.

    Raises:
        ModelError: there is none, or it is damaged.
    """
    path = sidecar_path(engine)
    try:
        data = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        raise ModelError(
            f"'{engine}' has no sidecar '{path.name}'",
            hint="engines that `optimize` builds have one; keep the two together",
        ) from None
    except OSError as error:
        raise LatheError(f"cannot read '{path}': {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ModelError(f"the sidecar '{path}' is damaged: {error}") from None
    if data.get("schema") != SCHEMA:
        raise ModelError(
            f"the sidecar '{path}' has schema {data.get('schema')!r}, and this program reads {SCHEMA}"
        )
    missing = [key for key in _KEYS if key not in data]
    if missing:
        raise ModelError(f"the sidecar '{path}' is damaged: it has no '{missing[0]}'")
    return data
