"""Two branches that have been computed both: the one that counts is chosen, also where they differ in size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import DimLike, dims_of
from onnxlathe_passes.legalize.bounded.bench import Bench
from onnxlathe_passes.legalize.bounded.follow import follows
from onnxlathe_passes.legalize.bounded.prepare import DOMAIN, SELECT
from onnxlathe_passes.legalize.bounded.ragged import Extent, Ragged, Result

__all__ = ["DOMAIN", "SELECT", "dims_or_none"]


def dims_or_none(value: ir.Value) -> Sequence[DimLike]:
    """The dimensions of a value, none where they are unknown."""
    return dims_of(value) or ()


@follows(SELECT)
def choose(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """Candidates of both branches, padded to the larger number, and their masks."""
    op = bench.op
    condition, *parts = bench.operands(node)
    assert isinstance(condition, ir.Value)
    flag = op.reshape(condition, [])
    out = dims_of(node.outputs[0])
    if out is None:
        bench.fail("an If with branches of different rank", *parts)
    ragged = [p for p in parts if isinstance(p, Ragged)]
    shapes = [p.dims if isinstance(p, Ragged) else bench.dims(p) for p in parts]  # type: ignore[arg-type]
    axes = {p.axis for p in ragged} | {i for i, (a, b) in enumerate(zip(*shapes, strict=True)) if a != b}
    if not axes:
        return [bench.where(flag, *parts)]  # type: ignore[arg-type]
    if len(axes) > 1:
        bench.fail("an If with branches that differ on two axes", *parts)
    (axis,) = axes
    sizes = [s[axis] for s in shapes]
    if any(not isinstance(s, int) for s in sizes):
        bench.fail("an If with a branch of open size", *parts)
    bound = max(int(s) for s in sizes)  # type: ignore[arg-type]
    values, masks = [], []
    for part, dims in zip(parts, shapes, strict=True):
        have = int(dims[axis])  # type: ignore[arg-type]
        value = part.value if isinstance(part, Ragged) else part
        assert value is not None
        valid = part.extent.valid if isinstance(part, Ragged) else op.constant(np.ones(have, bool))
        if have < bound:
            missing = [*dims]
            missing[axis] = bound - have
            value = op.Concat(value, op.Expand(op.like(0, value), bench.shape(missing)), axis=axis)
            valid = op.Concat(valid, op.constant(np.zeros(bound - have, bool)), axis=0)
        values.append(value)
        masks.append(valid)
    roots = frozenset(r for p in ragged for r in p.extent.roots)

    def make() -> Extent:
        packed = all(not isinstance(p, Ragged) or p.extent.packed for p in parts)
        return Extent(bench.where(flag, *masks), bound, out[axis], roots, packed)  # type: ignore[arg-type]

    key = tuple(p.extent if isinstance(p, Ragged) else s for p, s in zip(parts, sizes, strict=True))
    extent = bench.derived(("chosen", condition, *key), make)
    bench.alias(extent.size, extent)
    bench.alias(out[axis], extent)  # type: ignore[arg-type]
    return [Ragged(bench.where(flag, *values), axis, extent)]
