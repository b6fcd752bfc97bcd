"""Equal weights are stored once."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass

import onnx_ir as ir

from onnxlathe.model import FileTensor, Model, digest
from onnxlathe.rewrite import Bytes, Context, Pass, drop_initializer, option, subgraphs
from onnxlathe_passes.evaluate import origin_of

_BY_BYTES = 1 << 10
"""Tensors up to so many bytes are compared directly."""

_SAMPLE = 1 << 16
"""Of larger ones so many bytes are looked at first; few tensors that differ begin alike."""


@dataclass(frozen=True)
class Dedup(Pass):
    """Let equal initializers be one: same element type, same shape, same bytes.

    Weights are read only where two have the same type and shape, and read whole only where they also begin
    alike. Of constants that are computed when they are written, two are equal that are computed alike.
    Initializers that a caller may override, or that are outputs, stay as they are.
    """

    name = "dedup"
    group = "tidy"
    keeps = frozenset({"shapes"})
    example = """
    %y = MatMul(%x, %encoder.weight)
    %z = MatMul(%y, %decoder.weight)      # the same bytes
    →
    %y = MatMul(%x, %encoder.weight)
    %z = MatMul(%y, %encoder.weight)
    """

    min_bytes: Bytes = option(0, "leave smaller tensors alone")

    def run(self, model: Model, context: Context) -> int:
        return _Scope(self, context).graph(model.graph)


class _Scope:
    """The initializers that a graph can see, by type and shape, and then by how they begin."""

    def __init__(self, options: Dedup, context: Context) -> None:
        self.options = options
        self.context = context
        self.seen: dict[Hashable, _Twins] = defaultdict(_Twins)

    def graph(self, graph: ir.Graph) -> int:
        changes = 0
        entered: list[tuple[_Twins, ir.Value]] = []
        for value in list(graph.initializers.values()):
            tensor = value.const_value
            if tensor is None or not self.may_share(value, tensor):
                continue
            origin = _origin(tensor)
            twins = self.seen[origin or (tensor.dtype, tuple(tensor.shape.numpy()))]
            twin = twins.find(tensor) if origin is None else twins.unread
            if twin is None:
                twins.add(value)
                entered.append((twins, value))
            elif self.context.permit(self.options.name):
                value.replace_all_uses_with(twin)
                drop_initializer(value)
                self.context.record(self.options.name, [])
                changes += 1
        for node in graph:
            for inner in subgraphs(node):
                changes += self.graph(inner)
        for twins, value in entered:
            twins.remove(value)
        return changes

    def may_share(self, value: ir.Value, tensor: ir.TensorProtocol) -> bool:
        if value.is_graph_input() or value.is_graph_output() or not value.uses():
            return False
        if tensor.dtype == ir.DataType.STRING or tensor.nbytes < self.options.min_bytes:
            return False
        # What is computed only when it is written is not computed to be compared.
        computed = isinstance(tensor, ir.LazyTensor) and tensor.nbytes > _BY_BYTES
        return not computed or _origin(tensor) is not None


def _origin(tensor: ir.TensorProtocol) -> Hashable:
    """What a large constant will be computed from, where that is known."""
    return origin_of(tensor) if tensor.nbytes > _BY_BYTES else None


class _Twins:
    """Different initializers of one type and shape; the first is not read before there is a second."""

    def __init__(self) -> None:
        self.unread: ir.Value | None = None
        self.read: dict[bytes, list[ir.Value]] = defaultdict(list)

    def add(self, value: ir.Value) -> None:
        if self.unread is None and not self.read:
            self.unread = value
        else:
            self.read[_beginning(_tensor(value))].append(value)

    def remove(self, value: ir.Value) -> None:
        if self.unread is value:
            self.unread = None
        else:
            self.read[_beginning(_tensor(value))].remove(value)

    def find(self, tensor: ir.TensorProtocol) -> ir.Value | None:
        """One with the bytes of `tensor`."""
        if self.unread is not None:
            first, self.unread = self.unread, None
            self.read[_beginning(_tensor(first))].append(first)
        if not self.read:
            return None
        candidates = self.read.get(_beginning(tensor), ())
        return next((value for value in candidates if _equal(_tensor(value), tensor)), None)


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value


def _equal(a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
    """Whether two tensors of one type and shape that begin alike have the same bytes."""
    if a is b or a.nbytes <= _BY_BYTES:
        return True
    if isinstance(a, FileTensor) and isinstance(b, FileTensor) and (a.file, a.offset) == (b.file, b.offset):
        return True
    return digest(a) == digest(b)


def _beginning(tensor: ir.TensorProtocol) -> bytes:
    """A small tensor's bytes; a hash of the first bytes of a large one."""
    if tensor.nbytes <= _BY_BYTES:
        return tensor.tobytes()
    if isinstance(tensor, FileTensor):
        sample = bytes(next(iter(tensor.chunks(_SAMPLE)), b""))
    elif tensor.dtype.bitwidth < 8:
        sample = tensor.tobytes()[:_SAMPLE]
    else:
        array = tensor.numpy().reshape(-1)
        sample = array[: _SAMPLE // max(array.itemsize, 1)].tobytes()
    return hashlib.sha256(sample, usedforsecurity=False).digest()
