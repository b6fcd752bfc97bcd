"""Which block of its data a scatter writes, where it writes one.

Exporters spell `x[:, 1:] = y` with a position for every element: ranges over sizes, expanded and joined. Read as
expressions of their place they say where the block begins and how long it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxlathe.infer import Dims, constant, dims_of, lower
from onnxlathe.rewrite import NoMatch, attribute, is_constant, reject, require
from onnxlathe_passes.conditions import from_front, producer, rank, used_once
from onnxlathe_passes.coordinates import Counters, Parts, counted
from onnxlathe_passes.noop_views import permutation

SCATTERS = ("ScatterND", "ScatterElements")
_LARGEST = 1 << 26  # bytes of constant indices that are looked at
_MOST = 16  # scatters that together write all of an axis


@dataclass(frozen=True)
class Span:
    """The places that are written along one axis: `start`, `start + step`, …, `count` of them out of `size`."""

    start: Any
    count: Any
    size: Any
    step: int = 1

    @property
    def whole(self) -> bool:
        """Whether all of the axis is written."""
        return bool(self.start == 0 and self.count == self.size and self.step == 1)

    @property
    def rest(self) -> Any:
        """How many places follow the last one that is written."""
        return self.size - self.start - (self.count - 1) * self.step - 1


@dataclass(frozen=True)
class Block:
    """What a scatter writes.

    Attributes:
        data: the tensor that is written to.
        updates: what is written, in the scatter's own shape.
        spans: where, for each axis of the data.
    """

    data: ir.Value
    updates: ir.Value
    spans: tuple[Span, ...]

    @property
    def dims(self) -> Dims:
        """The shape of the block; `updates` have it but for axes of size 1."""
        return tuple(span.count for span in self.spans)

    @property
    def partial(self) -> list[int]:
        """The axes of which not all is written."""
        return [axis for axis, span in enumerate(self.spans) if not span.whole]


def written(node: ir.Node, opset: int) -> Block:
    """The block that a ScatterND or ScatterElements writes.

    Raises:
        NoMatch: it writes no block, or that is not known.
    """
    data, indices, updates = node.inputs[:3]
    dims = dims_of(data) if data is not None else None
    rows = dims_of(indices) if indices is not None else None
    if data is None or indices is None or updates is None or dims is None or rows is None:
        reject("its shapes are not known")
    require(None not in (*dims, *rows) and 0 not in (*dims, *rows), "some of its sizes are not known, or 0")
    require(attribute(node, "reduction", opset) in ("none", None), "it combines what it writes with the data")
    if node.op_type == "ScatterElements":
        spans = _elements(node, indices, rows, dims, opset)
    else:
        spans = _rows(indices, rows, dims, opset)
    return Block(data, updates, spans)


def covering(node: ir.Node, opset: int) -> tuple[int, list[Block]] | None:
    """The blocks that a scatter and those before it write, where they are the parts of one axis.

    Returns:
        The axis, and the blocks in the order in which they are written; together they leave nothing of the
        data. `None` where it is not so.
    """
    blocks: list[Block] = []
    at: ir.Node | None = node
    while at is not None and len(blocks) < _MOST:
        try:
            block = written(at, opset)
        except NoMatch:
            return None
        if len(block.partial) != 1 or (blocks and not _beside(block, blocks[0])):
            return None
        blocks.insert(0, block)
        places = _places(blocks)
        if places is None or len(set(places)) < len(places):
            return None
        if len(places) == block.spans[block.partial[0]].size:
            return block.partial[0], blocks
        at = producer(block.data, *SCATTERS) if used_once(block.data) else None
    return None


def covered_later(node: ir.Node, opset: int) -> bool:
    """Whether scatters that write to the result of this one are its complement; see `covering`."""
    at = node
    for _ in range(_MOST):
        result = at.outputs[0]
        user = next(iter(result.consumers())) if used_once(result) else None
        if user is None or user.op_type not in SCATTERS or user.domain or user.inputs[0] is not result:
            return False
        found = covering(user, opset)
        if found is not None:
            return any(block.data is node.inputs[0] for block in found[1])
        at = user
    return False


def _beside(one: Block, other: Block) -> bool:
    """Whether two blocks differ in their place along the same axis only."""
    pairs = zip(one.spans, other.spans, strict=True) if len(one.spans) == len(other.spans) else ()
    return one.partial == other.partial and all(a == b for a, b in pairs if a.whole)


def _places(blocks: Sequence[Block]) -> list[int] | None:
    """Every place along the axis, in the order in which the blocks have them."""
    found: list[int] = []
    for block in blocks:
        span = block.spans[block.partial[0]]
        if not all(isinstance(n, int) for n in (span.start, span.count, span.size)):
            return None
        found += range(span.start, span.start + span.count * span.step, span.step)
    return found


def order(blocks: Sequence[Block]) -> list[int]:
    """For each place along the axis, where it is when the blocks stand side by side."""
    places = _places(blocks) or []
    return sorted(range(len(places)), key=places.__getitem__)


def moved_from(value: ir.Value, opset: int) -> tuple[ir.Value, list[int]]:
    """What Transposes, one after the other, made the value of, and the order in which they put its axes."""
    order = list(range(rank(value) or 0))
    while (node := producer(value, "Transpose")) is not None and node.inputs[0] is not None:
        perm = permutation(node, opset)
        if perm is None or len(perm) != len(order):
            break
        order, value = [perm[axis] for axis in order], node.inputs[0]
    return value, order


def _elements(node: ir.Node, indices: ir.Value, rows: Dims, dims: Dims, opset: int) -> tuple[Span, ...]:
    axes = from_front([attribute(node, "axis", opset)], len(dims))
    require(axes is not None and len(rows) == len(dims), "its axis is not one of the data's")
    assert axes is not None
    base, slopes = _parts(indices, opset)
    require(
        all(by == 0 for axis, by in enumerate(slopes) if axis != axes[0]), "its indices vary along other axes"
    )
    spans = [Span(0, count, size) for count, size in zip(rows, dims, strict=True)]
    spans[axes[0]] = _span(base, slopes[axes[0]], rows[axes[0]], dims[axes[0]])
    return tuple(spans)


def _rows(indices: ir.Value, rows: Dims, dims: Dims, opset: int) -> tuple[Span, ...]:
    """The spans of a ScatterND: an axis of the indices walks along an axis of the data, in the same order."""
    depth = rows[-1]
    if not isinstance(depth, int):
        reject("how many axes its indices are for is not known")
    spans: list[Span] = []
    walked: list[int] = []
    for axis, (base, slopes) in enumerate(_coordinates(indices, depth, opset)):
        ways = [way for way, by in enumerate(slopes) if by != 0]
        require(len(ways) <= 1, "its indices cross the axes of the data")
        walked += ways
        count, step = (rows[ways[0]], slopes[ways[0]]) if ways else (1, 0)
        spans.append(_span(base, step, count, dims[axis]))
    require(walked == sorted(set(walked)), "it writes the axes in another order")
    idle = [rows[way] for way in range(len(rows) - 1) if way not in walked]
    require(all(size == 1 for size in idle), "it writes to the same places again")
    return (*spans, *(Span(0, size, size) for size in dims[depth:]))


def _coordinates(indices: ir.Value, depth: int, opset: int) -> list[Parts]:
    """Base and slopes of each coordinate, the axis of the coordinates left out."""
    if is_constant(indices):
        array = constant(indices, max_bytes=_LARGEST)
        if array is None:
            reject("its indices are very large")
        found = [counted(array[..., place]) for place in range(depth)]
        return [parts if parts is not None else reject("its indices do not count") for parts in found]
    joined = producer(indices, "Concat")
    operands: Sequence[ir.Value | None] = [indices]
    if joined is not None and depth > 1:
        require(
            attribute(joined, "axis", opset) in (-1, len(dims_of(indices) or ()) - 1),
            "its coordinates are not side by side",
        )
        operands = joined.inputs
    require(len(operands) == depth, "its coordinates are not told apart")
    return [(base, slopes[:-1]) for base, slopes in (_parts(value, opset) for value in operands)]


def _parts(indices: ir.Value | None, opset: int) -> Parts:
    if indices is not None and is_constant(indices):
        array = constant(indices, max_bytes=_LARGEST)
        parts = counted(array) if array is not None else None
    else:
        affine = Counters(opset).affine(indices)
        parts = (affine.base, affine.slope) if affine is not None else None
    return parts if parts is not None else reject("its indices do not count")


def _span(base: Any, step: Any, count: Any, size: Any) -> Span:
    """Indices `base`, `base + step`, …, counted from the end where they are negative."""
    step = step if count != 1 else 1
    if not isinstance(step, int) or step < 1:
        reject("its indices do not go upwards")
    if isinstance(base, int) and base < 0:
        require(isinstance(count, int) and base + (count - 1) * step < 0, "its indices pass the end")
        base = base + size
    elif size - base != 1:
        # The last place of an axis may be asked for whatever the size; others must not be before the first.
        least = lower(base)
        require(least is not None and least >= 0, "where it writes may be counted from the end")
    return Span(base, count, size, step)
