"""The protobuf wire format, as far as it takes to lift weights out of a model and to put them back.

An ONNX file is nested length-delimited fields. Weights are long byte fields of `TensorProto` messages, at
any depth. `elide` reads everything but those; `splice` is its inverse: it replaces placeholders by weights
without ever holding them, in two phases (sizes first, because every enclosing message states its length).

Reference: https://protobuf.dev/programming-guides/encoding/ and onnx.proto for the field numbers.
"""

from __future__ import annotations

import secrets
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

MIN_PAYLOAD: Final = 1024
"""Bytes from which a payload is left on disk; below, it is cheaper to keep it in memory."""

MAX_DEPTH: Final = 100
"""Nesting that protobuf's own parsers accept."""


class WireError(ValueError):
    """The bytes are no protobuf message of ONNX; `at` is the byte offset where that showed."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.at = at


class Sized(Protocol):
    """A payload that is written later; all that matters here is its size in bytes."""

    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Message:
    """A message type: which of its fields lead to tensors."""

    name: str
    fields: dict[int, Message] = field(default_factory=dict)


# Only fields that can lead to a TensorProto are listed; all others are copied as they are. Sparse tensors
# are left in place: they are rare, and small by nature.
TENSOR: Final = Message("TensorProto")
GRAPH: Final = Message("GraphProto", {5: TENSOR})
ATTRIBUTE: Final = Message("AttributeProto", {5: TENSOR, 10: TENSOR, 6: GRAPH, 11: GRAPH})
NODE: Final = Message("NodeProto", {5: ATTRIBUTE})
GRAPH.fields[1] = NODE
FUNCTION: Final = Message("FunctionProto", {7: NODE, 11: ATTRIBUTE})
TRAINING: Final = Message("TrainingInfoProto", {1: GRAPH, 2: GRAPH})
MODEL: Final = Message("ModelProto", {7: GRAPH, 25: FUNCTION, 20: TRAINING})

_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5
_RAW_DATA, _FLOAT_DATA, _DOUBLE_DATA = 9, 4, 10
_DATA_FIELDS = frozenset({_FLOAT_DATA, 5, 6, 7, _RAW_DATA, _DOUBLE_DATA, 11})
_ELIDABLE = frozenset({_RAW_DATA, _FLOAT_DATA, _DOUBLE_DATA})
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_DIGITS = 8  # of the index in a placeholder: fixed, so that splice knows where it ends


class Source:
    """Random access to bytes through a small window, so that what is skipped is never read.

    Args:
        read: `read(start, end)` gives exactly those bytes.
        size: how many bytes there are.
    """

    _SMALL, _LARGE = 4096, 1 << 18
    _HEADER = 20  # a tag and a length are at most 5 + 10 bytes

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self.read = read
        self.size = size
        self._window = b""
        self._start = 0
        self._step = self._SMALL

    @classmethod
    def of(cls, data: bytes) -> Source:
        source = cls(lambda start, end: data[start:end], len(data))
        source._window = data
        return source

    def at(self, position: int) -> tuple[bytes, int]:
        """A buffer and the offset of its first byte; at least a field header is in it from `position`."""
        window, start = self._window, self._start
        stop = start + len(window)
        if start <= position and (position + self._HEADER <= stop or stop == self.size):
            return window, start
        # Read ahead further while the walk goes straight on; start small again after a jump over weights.
        straight = start <= position <= stop
        self._step = min(self._step * 4, self._LARGE) if straight else self._SMALL
        self._window = self.read(position, min(position + self._step, self.size))
        self._start = position
        return self._window, position


def fields(source: Source, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """The fields of the message in `[start, end)`: number, wire type, and where tag, value and end lie."""
    position = start
    while position < end:
        buffer, base = source.at(position)
        index = position - base
        limit = min(len(buffer), end - base)
        try:
            tag = buffer[index]
            index += 1
            if tag >= 0x80:
                tag, index = _long_varint(buffer, index, tag)
            wire_type = tag & 7
            if wire_type == _LEN:
                length = buffer[index]
                index += 1
                if length >= 0x80:
                    length, index = _long_varint(buffer, index, length)
                value = base + index
                stop = value + length
            elif wire_type == _VARINT:
                value = base + index
                while buffer[index] >= 0x80:
                    index += 1
                stop = base + index + 1
            elif wire_type == _I64:
                value, stop = base + index, base + index + 8
            elif wire_type == _I32:
                value, stop = base + index, base + index + 4
            else:
                raise WireError(f"wire type {wire_type} does not exist in ONNX", position)
        except IndexError:
            raise WireError("the data end inside a field", position) from None
        if index > limit or stop > end:
            raise WireError(f"a field ends at byte {stop}, its message at byte {end}", position)
        number = tag >> 3
        if not number:
            raise WireError("field number 0 does not exist", position)
        yield number, wire_type, position, value, stop
        position = stop


def _long_varint(buffer: bytes, index: int, low: int) -> tuple[int, int]:
    """The rest of a varint whose first byte was `low`; returns the value and the index after it."""
    value, shift = low & 0x7F, 7
    while True:
        byte = buffer[index]
        index += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, index
        shift += 7
        if shift > 63:
            raise WireError("a varint is longer than ten bytes", index)


def varint(value: int) -> bytes:
    """`value` >= 0 in base 128, low group first."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | _LEN) + varint(len(payload)) + payload


Piece = bytes | Sized


def size_of(pieces: Sequence[Piece]) -> int:
    """Bytes that the pieces take when written one after the other."""
    return sum(len(piece) if isinstance(piece, bytes) else piece.nbytes for piece in pieces)


def _rewrite(
    source: Source,
    start: int,
    end: int,
    message: Message,
    wanted: Callable[[int, int], bool],
    tensor: Callable[[int, int], list[Piece] | None],
    depth: int = 0,
) -> list[Piece] | None:
    """The message in `[start, end)` with tensors replaced; None where nothing was replaced.

    Args:
        wanted: whether the bytes `[start, end)` can hold a tensor of interest at all.
        tensor: the replacement for the TensorProto in `[start, end)`, or None to leave it.
    """
    if message is TENSOR:
        return tensor(start, end)
    if depth > MAX_DEPTH:
        raise WireError(f"messages are nested deeper than {MAX_DEPTH}", start)
    pieces: list[Piece] = []
    copied = start
    for number, wire_type, tag, value, stop in fields(source, start, end):
        inner = message.fields.get(number)
        if inner is None or wire_type != _LEN or not wanted(value, stop):
            continue
        replaced = _rewrite(source, value, stop, inner, wanted, tensor, depth + 1)
        if replaced is None:
            continue
        if tag > copied:
            pieces.append(source.read(copied, tag))
        pieces.append(varint(number << 3 | _LEN) + varint(size_of(replaced)))
        pieces.extend(replaced)
        copied = stop
    if copied == start:
        return None
    if end > copied:
        pieces.append(source.read(copied, end))
    return pieces


@dataclass(frozen=True, slots=True)
class Payload:
    """Where the elements of a tensor lie: little-endian, as in `raw_data`.

    `field` is the TensorProto field they were in: "raw_data", "float_data" or "double_data".
    """

    field: str
    offset: int
    nbytes: int


_PAYLOAD_NAMES = {_RAW_DATA: "raw_data", _FLOAT_DATA: "float_data", _DOUBLE_DATA: "double_data"}


@dataclass(frozen=True, slots=True)
class Elided:
    """A serialized ModelProto whose big payloads were left out.

    A tensor that lost its payload says `data_location = EXTERNAL` and has the location
    `placeholder(token, index)`, with the index into `payloads`. The token is random: no file can forge it.
    """

    data: bytes
    payloads: list[Payload]
    token: str

    def payload(self, location: str) -> Payload | None:
        """The payload that an external location stands for, None when it is a file's name."""
        if not location.startswith(self.token):
            return None
        return self.payloads[int(location[len(self.token) :])]


def new_token() -> str:
    """A location that is no file's name and that nobody can guess."""
    return f"<{secrets.token_hex(16)}>"


def placeholder(token: str, index: int) -> str:
    """The location of a tensor whose elements are payload number `index`."""
    return f"{token}{index:0{_DIGITS}d}"


def _external(location: str) -> bytes:
    """TensorProto fields that say where the data is."""
    entry = _field(1, b"location") + _field(2, location.encode())
    return _field(_EXTERNAL_DATA, entry) + varint(_DATA_LOCATION << 3 | _VARINT) + b"\x01"


def elide(source: Source, min_payload: int = MIN_PAYLOAD) -> Elided:
    """Read a ModelProto without its big payloads.

    Args:
        source: the whole file.
        min_payload: payloads of fewer bytes stay in place.

    Raises:
        WireError: the bytes are no protobuf message, or are cut off.
    """
    token = new_token()
    payloads: list[Payload] = []

    def tensor(start: int, end: int) -> list[Piece] | None:
        found: tuple[int, int, int, int] | None = None
        data_fields = 0
        for number, wire_type, tag, value, stop in fields(source, start, end):
            if number in _DATA_FIELDS:
                data_fields += 1
                if number in _ELIDABLE and wire_type == _LEN and stop - value >= min_payload:
                    found = number, tag, value, stop
            elif number == _EXTERNAL_DATA or (number == _DATA_LOCATION and source.read(value, stop) != b"\0"):
                return None  # its data are elsewhere; what is here is ignored by the specification
        if found is None or data_fields > 1:
            return None  # a packed field may come in several parts: protobuf puts those together
        number, tag, value, stop = found
        marker = _external(placeholder(token, len(payloads)))
        payloads.append(Payload(_PAYLOAD_NAMES[number], value, stop - value))
        return [source.read(start, tag), source.read(stop, end), marker]

    # A message can only hold a big payload if it is bigger itself.
    pieces = _rewrite(source, 0, source.size, MODEL, lambda start, end: end - start >= min_payload, tensor)
    if pieces is None:
        return Elided(source.read(0, source.size), [], token)
    return Elided(b"".join(piece for piece in pieces if isinstance(piece, bytes)), payloads, token)


def splice(skeleton: bytes, token: str, payloads: Sequence[Sized]) -> list[Piece]:
    """The inverse of `elide`: a serialized model as pieces, with payloads where their placeholders were.

    Args:
        skeleton: a serialized ModelProto; a tensor whose elements are `payloads[i]` has no data but
            one `external_data` entry with the location `placeholder(token, i)`.
        token: what `new_token` gave.
        payloads: the elements of the tensors, little-endian as in `raw_data`.

    Returns:
        Bytes and payloads in the order of the file; `size_of` of it is the size of the file.
    """
    source = Source.of(skeleton)
    mark = token.encode()
    places: list[int] = []
    place = skeleton.find(mark)
    while place >= 0:
        places.append(place)
        place = skeleton.find(mark, place + len(mark))

    def wanted(start: int, end: int) -> bool:
        first = bisect_left(places, start)
        return first < len(places) and places[first] < end

    def tensor(start: int, end: int) -> list[Piece] | None:
        place = places[bisect_left(places, start)] + len(mark)
        payload = payloads[int(skeleton[place : place + _DIGITS])]
        pieces: list[Piece] = []
        for number, _, tag, _, stop in fields(source, start, end):
            if number not in (_EXTERNAL_DATA, _DATA_LOCATION):
                pieces.append(skeleton[tag:stop])
        pieces.append(varint(_RAW_DATA << 3 | _LEN) + varint(payload.nbytes))
        pieces.append(payload)
        return pieces

    pieces = _rewrite(source, 0, len(skeleton), MODEL, wanted, tensor)
    return [skeleton] if pieces is None else pieces
