"""A model on disk that points at its weights instead of holding them.

For a runtime on the same machine: the graph is written, and beside it a list of where each weight lies, so that
the runtime can map them into memory. Nothing is copied, and pages of weights are the system's to take back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxlathe.defaults import WEIGHTS_LIST

from .model import Model
from .save import _layout, _pieces, _Plan, _tensors, _write
from .skeleton import Skeleton
from .tensors import FileTensor
from .wire import MIN_PAYLOAD

_T = ir.DataType
_PLAIN = frozenset(
    {_T.FLOAT, _T.DOUBLE, _T.FLOAT16, _T.BOOL}
    | {_T.INT8, _T.INT16, _T.INT32, _T.INT64, _T.UINT8, _T.UINT16, _T.UINT32, _T.UINT64}
)


def save_mapped(model: Model, path: Path) -> None:
    """Write a model whose weights stay in their files; those that are computed go to a data file beside it.

    The list of weights (`WEIGHTS_LIST`) has an object for each: `name`, `path`, `offset`, `shape`, `dtype` for
    numpy, and `exotic`: for types that numpy lacks, their number in `onnx.TensorProto.DataType`, otherwise 0.
    """
    mapped = {id(v.const_value): v.const_value for v in _mappable(model)}
    kept = (tensor for tensor in _tensors(model) if id(tensor) not in mapped)
    data_name = f"{path.name}.data"
    places, data = _layout(kept, data_name)

    def place(tensor: ir.TensorProtocol) -> tuple[str, int] | None:
        return ("mapped", 0) if id(tensor) in mapped else places.get(id(tensor))

    _write(path, _Plan(_pieces(Skeleton(model.ir, place)), data_name, data))
    weights = [_entry(v, v.const_value.file.path, v.const_value.offset) for v in _mappable(model)]  # type: ignore[union-attr]
    computed = {id(tensor): offset for offset, tensor in data}
    weights += [
        _entry(value, path.with_name(data_name), computed[id(value.const_value)])
        for value in model.graph.initializers.values()
        if id(value.const_value) in computed and _has_numpy_type(value.const_value) and value.uses()
    ]
    path.with_name(path.name + WEIGHTS_LIST).write_text(json.dumps(weights), encoding="utf-8")


def _has_numpy_type(tensor: ir.TensorProtocol | None) -> bool:
    return tensor is not None and (tensor.dtype in _PLAIN or tensor.dtype == ir.DataType.BFLOAT16)


def _entry(value: ir.Value, path: Path, offset: int) -> dict[str, Any]:
    tensor = value.const_value
    assert tensor is not None
    plain = tensor.dtype in _PLAIN
    return {
        "name": value.name,
        "path": os.path.abspath(path),
        "offset": offset,
        "shape": list(tensor.shape.numpy()),
        "dtype": str(tensor.dtype.numpy()) if plain else "uint16",
        "exotic": 0 if plain else tensor.dtype.value,
    }


def _mappable(model: Model) -> Iterator[ir.Value]:
    """Initializers of the main graph that lie in a file that is still there under its name.

    Not those that nothing uses: ONNX Runtime drops them first, and then misses them.
    """
    there: dict[int, bool] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not value.uses() and not value.is_graph_output():
            continue
        if not isinstance(tensor, FileTensor) or tensor.nbytes < MIN_PAYLOAD or not _has_numpy_type(tensor):
            continue
        if id(tensor.file) not in there:
            there[id(tensor.file)] = False
            with suppress(OSError):
                there[id(tensor.file)] = tensor.file.same_file(os.stat(tensor.file.path))
        if there[id(tensor.file)]:
            yield value
