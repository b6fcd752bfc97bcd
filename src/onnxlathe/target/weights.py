"""Weights that reach the parser by address, inside the child process.

`parse_from_file` copies a model's weights through one protobuf message. Here the message holds the graph
alone; each big initializer is handed over as an address in the memory-mapped file, wherever that is, so
that a model may be of any size and nothing is read before the builder wants it.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any, Final

_ALIGNMENT: Final = 16
"""Bytes. Data at other addresses is copied once: compiled code may rely on what C++ promises of a float*."""

Proto = Any


def parse(parser: Any, path: str) -> tuple[bool, list[Any]]:
    """Parse the model at `path`.

    Returns:
        Whether it was accepted, and what must stay alive as long as the network does.
    """
    if not hasattr(parser, "load_model_proto"):  # TensorRT before 10.13
        return bool(parser.parse_from_file(path)), []
    weights = _Weights(Path(path))
    skeleton = weights.skeleton()
    if skeleton is None:
        return bool(parser.parse_from_file(path)), []
    if not parser.load_model_proto(skeleton, path):
        return False, []
    for name, address, nbytes in weights.addresses:
        if not parser.load_initializer(name, address, nbytes):
            return False, []
    return bool(parser.parse_model_proto()), [weights]


class _Weights:
    """The memory that a model's big initializers lie in.

    Attributes:
        addresses: name, address and size in bytes of each.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.addresses: list[tuple[str, int, int]] = []
        self._maps: dict[Path, tuple[Any, int]] = {}
        self._copies: list[Any] = []

    def skeleton(self) -> bytes | None:
        """The model without those initializers; None where it has no such form and is to be parsed whole."""
        import onnx

        from onnxlathe.model.protos import tensors_of
        from onnxlathe.model.wire import Source, WireError, elide

        try:
            data, _ = self._map(self.path)
            elided = elide(Source(lambda start, end: data[start:end], len(data)))
            proto = onnx.ModelProto.FromString(elided.data)
        except (OSError, ValueError, WireError):
            return None  # damaged: the parser says so in its own words
        names = [tensor.name for tensor in proto.graph.initializer]
        if len(names) != len(set(names)):
            return None
        for tensor in proto.graph.initializer:
            location = _entry(tensor, "location")
            payload = elided.payload(location)
            if payload is not None:
                self._hand_over(tensor.name, self.path, payload.offset, payload.nbytes)
            elif location:
                self._external(tensor, location)
        # The parser takes addresses for these only; data of other tensors go back where they were.
        taken = {_entry(tensor, "location") for tensor in proto.graph.initializer}
        changed = False
        for tensor in tensors_of(proto):
            location = _entry(tensor, "location")
            payload = elided.payload(location)
            if payload is not None and location not in taken:
                tensor.ClearField("external_data")
                tensor.ClearField("data_location")
                tensor.raw_data = data[payload.offset : payload.offset + payload.nbytes]
                changed = True
        return proto.SerializeToString() if changed else elided.data

    def _external(self, tensor: Proto, location: str) -> None:
        offset, length = int(_entry(tensor, "offset") or 0), int(_entry(tensor, "length") or 0)
        if length:  # without one the parser knows as much as we do
            self._hand_over(tensor.name, self.path.parent / location, offset, length)

    def _hand_over(self, name: str, file: Path, offset: int, nbytes: int) -> None:
        data, base = self._map(file)
        if not nbytes or offset + nbytes > len(data):
            return  # the parser reads it itself, and complains
        address = base + offset
        if address % _ALIGNMENT:
            import numpy as np

            copy = np.frombuffer(data, np.uint8, nbytes, offset).copy()
            self._copies.append(copy)
            address = copy.ctypes.data
        self.addresses.append((name, address, nbytes))

    def _map(self, file: Path) -> tuple[Any, int]:
        found = self._maps.get(file)
        if found is None:
            import numpy as np

            with file.open("rb") as handle:
                data = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
            found = self._maps[file] = data, np.frombuffer(data, np.uint8).ctypes.data
        return found


def _entry(tensor: Proto, key: str) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == key), "")
