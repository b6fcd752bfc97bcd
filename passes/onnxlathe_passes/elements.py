"""Elements of the last axis, followed through operators that only move, repeat or negate them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import Dims, dims_of
from onnxlathe.rewrite import attribute
from onnxlathe_passes.conditions import Array, from_front, numbers, operand, small_constant
from onnxlathe_passes.noop_views import permutation
from onnxlathe_passes.regroup import static
from onnxlathe_passes.slices import cuts

_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
MOVES = frozenset({*_VIEWS, "Slice", "Split", "Gather", "Neg", "Concat", "Expand", "Tile", "Transpose"})
_DEEP = 12
_MANY = 4096


@dataclass(frozen=True)
class Elements:
    """`source[…, index]·sign`.

    Attributes:
        source: whose last axis is meant.
        lead: the sizes of the axes before; those of the source, up to ones of size 1.
        index: which elements of the source stand where, in the axes behind `lead`.
        sign: 1 or -1 for each of them.
    """

    source: ir.Value
    lead: Dims
    index: Array
    sign: Array

    @classmethod
    def all(cls, value: ir.Value) -> Elements | None:
        """The elements of a value that is not followed further."""
        dims = dims_of(value)
        if not dims or None in dims or not isinstance(dims[-1], int) or not 0 < dims[-1] <= _MANY:
            return None
        return cls(value, dims[:-1], np.arange(dims[-1]), np.ones(dims[-1], np.int8))

    @classmethod
    def of(cls, value: ir.Value, opset: int, depth: int = 0) -> Elements | None:
        """Where the elements of a value come from.

        A value that something else needs as well is not followed: it stays.
        """
        node = value.producer()
        if node is None or node.domain != "" or node.op_type not in MOVES or depth > _DEEP:
            return cls.all(value)
        if depth and not _only_moved(node):
            return cls.all(value)
        if node.op_type == "Concat":
            return _joined(node, opset, depth) or cls.all(value)
        source = node.inputs[0]
        inner = cls.of(source, opset, depth + 1) if source is not None else None
        found = _STEPS[node.op_type](inner, node, value, opset) if inner is not None else None
        return found if found is not None and found.index.size <= _MANY else cls.all(value)

    @property
    def dims(self) -> Dims:
        return (*self.lead, *self.index.shape)

    @property
    def runs(self) -> int:
        """How many blocks of neighbours there are."""
        flat = self.index.reshape(-1)
        return 1 + int(np.count_nonzero(np.diff(flat) != 1))

    def each(self, function: Callable[[Array], Array]) -> Elements:
        """The same done to the positions and to the signs."""
        return replace(self, index=function(self.index), sign=function(self.sign))

    def behind(self, axis: int) -> int | None:
        """An axis of the value as one of `index`; `None` for one of `lead`."""
        place = from_front([axis], len(self.dims))
        return place[0] - len(self.lead) if place is not None and place[0] >= len(self.lead) else None


def _only_moved(node: ir.Node) -> bool:
    """Whether nothing but moves needs the results of a node, so that it can go away with them."""
    return all(
        not value.is_graph_output()
        and all(user.op_type in MOVES and user.domain == "" for user in value.consumers())
        for value in node.outputs
    )


def _joined(node: ir.Node, opset: int, depth: int) -> Elements | None:
    parts = [Elements.of(value, opset, depth + 1) if value is not None else None for value in node.inputs]
    first = parts[0]
    if first is None:
        return None
    axis = first.behind(int(attribute(node, "axis", opset)))
    if axis is None:
        return None
    index, sign = [], []
    for part in parts:
        if part is None or part.source is not first.source or part.lead != first.lead:
            return None
        index.append(part.index)
        sign.append(part.sign)
    return replace(first, index=np.concatenate(index, axis), sign=np.concatenate(sign, axis))


def _viewed(inner: Elements, node: ir.Node, value: ir.Value, opset: int) -> Elements | None:
    dims = dims_of(value)
    if dims is None or None in dims:
        return None
    wanted = [d for d in inner.lead if d != 1]
    for place in range(len(dims), -1, -1):
        last = static(dims[place:])
        if last is None or [d for d in dims[:place] if d != 1] != wanted:
            continue
        if prod(last) == inner.index.size and last:
            return replace(inner.each(lambda array, to=last: array.reshape(to)), lead=dims[:place])  # type: ignore[misc]
    return None


def _sliced(inner: Elements, node: ir.Node, value: ir.Value, opset: int) -> Elements | None:
    found = cuts(node, opset)
    axes = {inner.behind(axis): cut for axis, cut in (found or {}).items()}
    if not axes or None in axes or any(cut.step < 1 for cut in axes.values()):
        return None
    places = tuple(
        slice(axes[a].start, axes[a].end, axes[a].step) if a in axes else slice(None)
        for a in range(inner.index.ndim)
    )
    return inner.each(lambda array: array[places])


def _split(inner: Elements, node: ir.Node, value: ir.Value, opset: int) -> Elements | None:
    axis = inner.behind(int(attribute(node, "axis", opset)))
    shapes = [dims_of(output) for output in node.outputs]
    if axis is None or None in shapes:
        return None
    sizes = static([(shape or ())[len(inner.lead) + axis] for shape in shapes])
    if sizes is None or sum(sizes) != inner.index.shape[axis]:
        return None
    place = value.index() or 0
    start = sum(sizes[:place])
    return inner.each(lambda array: np.take(array, range(start, start + sizes[place]), axis))


def _gathered(inner: Elements, node: ir.Node, value: ir.Value, opset: int) -> Elements | None:
    axis = inner.behind(int(attribute(node, "axis", opset)))
    indices = small_constant(operand(node, 1))
    if axis is None or indices is None or not indices.size:
        return None
    size = inner.index.shape[axis]
    if indices.min() < -size or indices.max() >= size:
        return None
    return inner.each(lambda array: np.take(array, indices, axis))


def _negated(inner: Elements, node: ir.Node, value: ir.Value, opset: int) -> Elements | None:
    return replace(inner, sign=-inner.sign)


def _repeated(inner: Elements, node: ir.Node, value: ir.Value, opset: int) -> Elements | None:
    dims = dims_of(value)
    count = len(inner.lead)
    last = static(dims[count:]) if dims is not None else None
    if dims is None or last is None or dims[:count] != inner.lead or len(last) != inner.index.ndim:
        return None
    if node.op_type == "Tile":
        times = numbers(operand(node, 1))
        return None if times is None else inner.each(lambda array: np.tile(array, times[count:]))
    return inner.each(lambda array: np.broadcast_to(array, last))


def _turned(inner: Elements, node: ir.Node, value: ir.Value, opset: int) -> Elements | None:
    perm, count = permutation(node, opset), len(inner.lead)
    if perm is None or list(perm[:count]) != list(range(count)):
        return None
    return inner.each(lambda array: array.transpose([axis - count for axis in perm[count:]]))


_STEPS: dict[str, Callable[[Elements, ir.Node, ir.Value, int], Elements | None]] = {
    **dict.fromkeys(_VIEWS, _viewed),
    "Slice": _sliced,
    "Split": _split,
    "Gather": _gathered,
    "Neg": _negated,
    "Expand": _repeated,
    "Tile": _repeated,
    "Transpose": _turned,
}
