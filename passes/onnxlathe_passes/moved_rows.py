"""Rows that are gathered and moved several times, brought to their places at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import Dim, Dims, dims_of
from onnxlathe.rewrite import Builder, NodeRule, attribute
from onnxlathe_passes.conditions import Array, int64, producer, small_constant, used_once
from onnxlathe_passes.moves import MOVES
from onnxlathe_passes.noop_views import permutation
from onnxlathe_passes.regroup import target

_LONGEST = 8
_MOST_ROWS = 1 << 16
_BATCHES = (2, 3)
"""What the size of the batch is set to. Every element of the batch must be moved alike, however many there are."""


class MovedRows(NodeRule):
    """Gathers by constants, Reshapes and Transposes that keep the last axis = one Gather of rows.

    So an image is shifted along both of its axes and cut into windows by one copy instead of three.
    """

    name = "moved_rows"
    group = "fuse"
    min_opset = 5
    reach = _LONGEST
    example = """
    %a = Gather(%x, [3, 4, 5, 6, 7, 0, 1, 2], axis=1)            # x: [batch, 8, 8, 96]
    %b = Gather(%a, [3, 4, 5, 6, 7, 0, 1, 2], axis=2)
    %y = Transpose(Reshape(%b, [0, 2, 4, 2, 4, 96]), [0, 1, 3, 2, 4, 5])
    →
    %y = Gather(Reshape(%x, [0, 64, 96]), %i, axis=1)            # i: int32[2, 2, 4, 4]
    """

    visits = ("Gather", *MOVES)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        result = node.outputs[0]
        users = result.consumers()
        if len(users) == 1 and used_once(result) and _is_step(users[0], result):
            return None  # the chain is looked at from its end
        chain: list[ir.Node] = []
        best = None
        for step, x in _upwards(result):
            chain.append(step)
            found = _gathered(chain[::-1], x, op.opset)
            if found is not None:
                best = (tuple(chain), x, found)
        if best is None:
            return None
        steps, x, rows = best
        before, after = dims_of(x), dims_of(result)
        assert before is not None
        assert after is not None
        return _build(op, x, before, after, rows, len(steps))


def _build(op: Builder, x: ir.Value, before: Dims, after: Dims, rows: Array, limit: int) -> Any:
    """The rows of `x` in their places, by fewer nodes than `limit`; `None` where that is not possible."""
    channels = before[-1]
    whole: Dims = (before[0], math.prod(d for d in before[1:-1] if isinstance(d, int)), channels)
    wanted = after[1:-1] if after[0] == before[0] else (rows.size,)
    gathered: Dims = (before[0], *wanted, channels)
    if before != whole:
        written = target(before, whole)
        if written is None:
            return None
        x = op.Reshape(x, int64(written))
    x = op.Gather(x, op.constant(rows.reshape([int(d) for d in wanted if isinstance(d, int)])), axis=1)
    if gathered != after:
        written = target(gathered, after)
        if written is None:
            return None
        x = op.Reshape(x, int64(written))
    return x if len(op.nodes) < limit else None


def _is_step(node: ir.Node, value: ir.Value) -> bool:
    """Whether a node only moves the value's elements, or gathers some of them."""
    if node.domain != "" or node.inputs[0] is not value:
        return False
    return node.op_type in MOVES or (node.op_type == "Gather" and small_constant(node.inputs[1]) is not None)


def _upwards(value: ir.Value) -> Iterator[tuple[ir.Node, ir.Value]]:
    """The moves and Gathers that only the value needs, nearest first, each with what it moves."""
    for place in range(_LONGEST):
        node = producer(value, "Gather", *MOVES)
        x = node.inputs[0] if node is not None else None
        if node is None or x is None or (place and not used_once(value)) or not _is_step(node, x):
            return
        yield node, x
        value = x


def _gathered(chain: list[ir.Node], x: ir.Value, opset: int) -> Array | None:
    """Which row of an element of the batch of `x` each row of the result is, if the chain moves rows.

    Only where it copies more than once, as a single Gather or Transpose is as good as another.
    """
    dims = dims_of(x)
    kinds = [node.op_type for node in chain]
    if (
        dims is None
        or len(dims) < 3
        or "Gather" not in kinds
        or kinds.count("Gather") + kinds.count("Transpose") < 2
    ):
        return None
    if not all(isinstance(d, int) and d > 0 for d in dims[1:]) or dims[0] is None:
        return None
    sizes = (dims[0],) if isinstance(dims[0], int) else _BATCHES
    count = math.prod(d for d in dims[1:-1] if isinstance(d, int))
    if count * max(sizes) > _MOST_ROWS:
        return None
    found: Array | None = None
    for size in sizes:
        rows = _rows(chain, dims, size, opset)
        if rows is None or rows.size % size:
            return None
        rows = rows.reshape(size, -1) - np.arange(size)[:, None] * count
        if (rows != rows[:1]).any() or (rows < 0).any() or (rows >= count).any():
            return None
        if found is not None and not np.array_equal(found, rows[0]):
            return None
        found = rows[0].astype(np.int32)
    return found


def _rows(chain: list[ir.Node], dims: Dims, batch: int, opset: int) -> Array | None:
    """The numbers of all rows where the chain puts them; `None` where it takes rows apart."""
    places = _sized(dims, batch)
    if places is None:
        return None
    rows: Array = np.arange(math.prod(places[:-1])).reshape(places[:-1])
    for node in chain:
        after = dims_of(node.outputs[0])
        shape = _sized(after, batch) if after is not None else None
        if shape is None or not shape or shape[-1] != dims[-1]:
            return None
        if node.op_type == "Transpose":
            perm = permutation(node, opset)
            if perm is None or perm[-1] != rows.ndim:
                return None
            rows = rows.transpose(perm[:-1])
        elif node.op_type == "Gather":
            axis, index = int(attribute(node, "axis", opset)), small_constant(node.inputs[1])
            axis += (rows.ndim + 1) * (axis < 0)
            if index is None or axis == rows.ndim or not rows.size:
                return None
            if (index < -rows.shape[axis]).any() or (index >= rows.shape[axis]).any():
                return None
            rows = np.take(rows, index, axis)
        else:
            if math.prod(shape[:-1]) != rows.size:
                return None
            rows = rows.reshape(shape[:-1])
    return rows


def _sized(dims: Dims, batch: int) -> list[int] | None:
    """A shape with its symbols set to the size of the batch."""
    found = []
    for size in dims:
        if isinstance(size, Dim):
            size = size.substitute(dict.fromkeys(size.symbols, batch))
        if not isinstance(size, int):
            return None
        found.append(size)
    return found
