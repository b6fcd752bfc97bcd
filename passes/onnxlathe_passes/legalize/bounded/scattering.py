"""Scatters of run-time size, and into tensors of run-time size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import Expr, constant
from onnxlathe_passes.legalize.bounded.arithmetic import extreme
from onnxlathe_passes.legalize.bounded.bench import Bench
from onnxlathe_passes.legalize.bounded.follow import follows
from onnxlathe_passes.legalize.bounded.indexing import from_front, is_everything
from onnxlathe_passes.legalize.bounded.ragged import Operand, Ragged, Result
from onnxlathe_passes.legalize.draft import value_of

T = ir.DataType


def _kind(bench: Bench, node: ir.Node) -> str:
    value = value_of(node, "reduction", bench.op, "none")
    return value.decode() if isinstance(value, bytes) else str(value)


def _neutral(kind: str, value: ir.Value) -> Any:
    return {"add": 0, "mul": 1, "max": extreme(value, -1), "min": extreme(value, 1)}[kind]


@follows("ScatterND")
def scattered_nd(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """What does not count joins nothing, or is written into a row of its own, which is cut off again."""
    op = bench.op
    data, indices, updates = bench.operands(node)
    assert data is not None
    dims = bench.whole(indices)
    depth, kind = int(dims[-1]), _kind(bench, node)  # type: ignore[arg-type]
    into = bench.packed(data) if isinstance(data, Ragged) else None
    if into is not None and into.axis >= depth:
        bench.fail("a result of run-time size is scattered into on another axis", data, indices, updates)
    target, whole = (into.value, into.dims) if into is not None else (data, bench.whole(data))
    assert isinstance(target, ir.Value)

    def result(value: ir.Value) -> Result:
        return value if into is None else Ragged(value, into.axis, into.extent)

    def located(places: ir.Value) -> ir.Value:
        if into is None:
            return places
        columns = [op.slice(places, len(dims) - 1, i, i + 1) for i in range(depth)]
        columns[into.axis] = from_front(bench, columns[into.axis], into.extent)
        return op.Concat(*columns, axis=-1) if depth > 1 else columns[0]

    if not isinstance(indices, Ragged):
        if isinstance(updates, Ragged):
            bench.fail("a ScatterND of a run-time size to places of another", data, updates)
        assert indices is not None
        return [result(v) for v in bench.apply(node, [target, located(indices), updates])]
    if indices.axis == indices.rank - 1:
        bench.fail("coordinates of run-time length", indices)
    indices, new = _as_many(bench, indices, updates)
    if is_everything(indices.value, whole[:depth]) and kind == "none" and indices.rank == 2 and into is None:
        valid = op.Reshape(indices.extent.valid, bench.shape([*whole[:depth], *[1] * (len(whole) - depth)]))
        return [bench.where(valid, op.Reshape(new, bench.shape(whole)), target)]
    if kind != "none":
        idle = bench.masked(Ragged(new, indices.axis, indices.extent), _neutral(kind, new))
        return [
            result(v) for v in bench.apply(node, [target, located(bench.index(indices, whole[:depth])), idle])
        ]
    place = located(_from_start(bench, indices.value, whole[:depth]))
    behind = bench.sized(whole[0])
    outside = behind if depth == 1 else op.Concat(behind, op.ints([0] * (depth - 1)), axis=0)
    valid = op.unsqueeze(indices.extent.valid, *(i for i in range(indices.rank) if i != indices.axis))
    longer = op.Concat(target, op.slice(target, 0, 0, 1), axis=0)
    (made,) = bench.apply(node, [longer, op.Where(valid, place, outside), new])
    return [result(op.Slice(made, op.ints([0]), behind, op.ints([0])))]


def _from_start(bench: Bench, places: ir.Value, sizes: list[Expr]) -> ir.Value:
    """Coordinates without negative ones: the last row is not the one behind the end."""
    op, given = bench.op, constant(places, 1 << 28)
    if given is not None and given.min(initial=0) >= 0:
        return places
    ends = bench.shape(sizes)
    result: ir.Value = op.Where(
        op.Less(places, op.like(0, places)), op.Add(places, op.cast(ends, places.dtype or T.INT64)), places
    )
    return result


def _as_many(bench: Bench, indices: Ragged, updates: Operand) -> tuple[Ragged, ir.Value]:
    """Indices and updates candidate by candidate.

    Updates of a fixed size: a valid model has as many of them as count, so they are those at the front.
    """
    op = bench.op
    if isinstance(updates, Ragged):
        if updates.axis != indices.axis:
            bench.fail("a scatter with run-time sizes on two axes", indices, updates)
        indices, updates = bench.aligned([indices, updates], trust=True)
        return indices, updates.value
    assert updates is not None
    moved = bench.packed(indices)
    dims = bench.dims(updates)
    have, want = dims[moved.axis], moved.extent.bound
    if have == want:
        return moved, updates
    if not isinstance(have, int) or not isinstance(want, int):
        bench.fail("a scatter of a tensor of another size", indices)
    if have > want:
        return moved, op.slice(updates, moved.axis, 0, want)
    pads = np.zeros((2, len(dims)), np.int64)
    pads[1, moved.axis] = want - have
    return moved, op.Pad(updates, op.ints(pads))


@follows("ScatterElements")
def scattered(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """What does not count joins nothing, or is written behind the end, which is cut off again."""
    op = bench.op
    data, indices, updates = bench.operands(node)
    assert data is not None
    axis = int(value_of(node, "axis", op, 0)) % len(bench.whole(data))
    into = bench.packed(data) if isinstance(data, Ragged) else None
    target = into.value if into is not None else data
    assert isinstance(target, ir.Value)
    if into is not None and into.axis != axis:
        bench.fail("a result of run-time size is scattered into on another axis", data, indices, updates)

    def result(value: ir.Value) -> Result:
        return value if into is None else Ragged(value, into.axis, into.extent)

    if not isinstance(indices, Ragged):
        if isinstance(updates, Ragged) or into is None:
            bench.fail("a scatter of a run-time size to places of another", data, updates)
        assert indices is not None
        return [
            result(v) for v in bench.apply(node, [target, from_front(bench, indices, into.extent), updates])
        ]
    if indices.axis != axis:
        bench.fail("a scatter of a run-time size on another axis", indices)
    indices, new = _as_many(bench, indices, updates)
    size, kind = bench.whole(Ragged(target, axis, indices.extent))[axis], _kind(bench, node)
    if kind != "none":
        place = bench.index(indices, [size])
        place = place if into is None else from_front(bench, place, into.extent)
        idle = bench.masked(Ragged(new, axis, indices.extent), _neutral(kind, new))
        return [result(v) for v in bench.apply(node, [target, place, idle])]
    place = op.cast(indices.value, T.INT64)
    place = _from_start(bench, place, [size]) if into is None else from_front(bench, place, into.extent)
    behind = bench.sized(size)
    longer = op.Concat(target, op.slice(target, axis, 0, 1), axis=axis)
    at = op.Where(bench.mask(indices), place, op.reshape(behind, []))
    (made,) = bench.apply(node, [longer, at, new])
    return [result(op.Slice(made, op.ints([0]), behind, op.ints([axis])))]
