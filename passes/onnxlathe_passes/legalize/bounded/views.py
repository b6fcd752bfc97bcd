"""Results of run-time size under other shapes, and sizes themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import Expr
from onnxlathe_passes.legalize.bounded.arithmetic import first_operand
from onnxlathe_passes.legalize.bounded.bench import Bench
from onnxlathe_passes.legalize.bounded.follow import follows
from onnxlathe_passes.legalize.bounded.ragged import Extent, Ragged, Result
from onnxlathe_passes.legalize.bounded.sources import product_of
from onnxlathe_passes.legalize.draft import value_of

T = ir.DataType


@follows("Shape")
def shape(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """The size is how many count."""
    op = bench.op
    x = first_operand(bench, node)
    dims: list[Expr] = list(x.dims)
    parts = [bench.sized(d) for d in dims]
    parts[x.axis] = bench.count(x.extent)
    start, end = int(value_of(node, "start", op, 0)), value_of(node, "end", op, None)
    chosen = parts[slice(start, None if end is None else int(end))]
    return [op.Concat(*chosen, axis=0) if len(chosen) > 1 else chosen[0] if chosen else op.ints([])]


@follows("Size")
def size(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """How many count, times the other dimensions."""
    op = bench.op
    x = first_operand(bench, node)
    total = bench.count(x.extent)
    for axis, d in enumerate(x.dims):
        if axis != x.axis:
            total = op.Mul(total, bench.sized(d))
    return [op.squeeze(total, 0)]


@follows("Transpose")
def transpose(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """The axis moves."""
    x = first_operand(bench, node)
    own = node.attributes.get("perm")
    perm = list(own.as_ints()) if own is not None else list(reversed(range(x.rank)))
    (made,) = bench.apply(node, [x.value])
    return [Ragged(made, perm.index(x.axis), x.extent)]


@follows("Squeeze", "Unsqueeze", "Reshape", "Flatten")
def view(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """The axis alone, joined with its neighbours, or taken apart again."""
    x, out = first_operand(bench, node), bench.dims(node.outputs[0])
    before: list[Expr] = [*x.dims]
    before[x.axis] = x.extent.size
    places = [i for i, d in enumerate(out) if bench.depends(d)]
    if len(places) != 1:
        bench.fail("a shape with a run-time size on two axes, or on none", x)
    (at,) = places
    extent = _joined(bench, x, before, out, at) or _split(x, before, out, at)
    if extent is None:
        bench.fail(f"{node.op_type} from {_text(before)} to {_text(out)}", x)
    if node.op_type in ("Squeeze", "Unsqueeze"):
        (made,) = bench.apply(node, [x.value, *node.inputs[1:]])
        return [Ragged(made, at, extent)]
    target = [extent.bound if i == at else d for i, d in enumerate(out)]
    reshape = ir.node("Reshape", [None, None], {"allowzero": 1 if 0 in target else 0})
    reshape.outputs[0].type, reshape.outputs[0].name = node.outputs[0].type, "y"
    (made,) = bench.apply(reshape, [x.value, bench.shape(target)])
    return [Ragged(made, at, extent)]


def _text(dims: list[Any]) -> str:
    return "[" + ", ".join(str(d) for d in dims) + "]"


def _joined(bench: Bench, x: Ragged, before: list[Expr], out: list[Expr], at: int) -> Extent | None:
    """The extent where the axis is joined with those between `start` and `end`, or with none."""
    head = product_of(out[:at])
    for start in range(x.axis, -1, -1):
        if product_of(before[:start]) != head:
            continue
        for end in range(x.axis + 1, len(before) + 1):
            if product_of(before[start:end]) == out[at] and product_of(before[end:]) == product_of(
                out[at + 1 :]
            ):
                return _merged(bench, x.extent, before[start : x.axis], before[x.axis + 1 : end], out[at])
    return None


def _merged(bench: Bench, extent: Extent, front: list[Expr], back: list[Expr], size: Expr) -> Extent:
    if all(d == 1 for d in (*front, *back)):
        return extent

    def make() -> Extent:
        op = bench.op
        valid = op.unsqueeze(extent.valid, *(i for i in range(len(front) + 1 + len(back)) if i != len(front)))
        spread = op.Expand(valid, bench.shape([*front, extent.bound, *back]))
        bound = product_of([*front, extent.bound, *back])
        packed = extent.packed and all(d == 1 for d in front)
        merged = (tuple(front), extent, tuple(back))
        return Extent(op.reshape(spread, [-1]), bound, size, extent.roots, packed, merged)

    return bench.derived(("merged", extent, tuple(front), tuple(back)), make)


def _split(x: Ragged, before: list[Expr], out: list[Expr], at: int) -> Extent | None:
    """The extent that was joined, where the axis is taken apart again."""
    if x.extent.merged is None:
        return None
    front, extent, back = x.extent.merged
    same = (
        out[at] == extent.size
        and product_of(out[:at]) == product_of([*before[: x.axis], *front])
        and product_of(out[at + 1 :]) == product_of([*back, *before[x.axis + 1 :]])
    )
    return extent if same else None


@follows("Expand")
def expand(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """To the number of candidates."""
    x, out = bench.operands(node)[0], bench.dims(node.outputs[0])
    places = [i for i, d in enumerate(out) if bench.depends(d)]
    if len(places) != 1:
        bench.fail("an Expand to a run-time size on two axes", x)
    (at,) = places
    if isinstance(x, Ragged):
        if x.axis + len(out) - x.rank != at or out[at] != x.extent.size:
            bench.fail("an Expand from one run-time size to another", x)
        extent, value = x.extent, x.value
    else:
        assert x is not None
        dims = bench.dims(x)
        extent, value = bench.extent_of(out[at]), x
        own = at - len(out) + len(dims)
        if own >= 0 and dims[own] != 1:
            bench.fail("an Expand of another size to a run-time size", extent)
    target = [extent.bound if i == at else d for i, d in enumerate(out)]
    made = bench.op.Expand(value, bench.shape(target))
    return [Ragged(made, at, extent)]


@follows("ConstantOfShape")
def filled(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """As many as there are candidates."""
    out = bench.dims(node.outputs[0])
    places = [i for i, d in enumerate(out) if bench.depends(d)]
    if len(places) != 1:
        bench.fail("a tensor of run-time size on two axes", *(bench.extent_of(out[i]) for i in places))
    (at,) = places
    extent = bench.extent_of(out[at])
    (made,) = bench.apply(node, [bench.shape([extent.bound if i == at else d for i, d in enumerate(out)])])
    return [Ragged(made, at, extent)]


@follows("Range")
def numbers(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """As many numbers as there are candidates, in order."""
    op = bench.op
    (amount,) = bench.dims(node.outputs[0])
    extent = bench.front(bench.extent_of(amount))
    start, _, step = bench.operands(node)
    assert isinstance(start, ir.Value)
    steps = op.Mul(op.cast(bench.numbers(extent.bound), start.dtype or T.INT64), step)
    return [Ragged(op.Add(steps, start), 0, extent)]


@follows("Concat")
def joined(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """Side by side on another axis; or one behind the other, masks as well."""
    op = bench.op
    operands = bench.operands(node)
    ragged = [o for o in operands if isinstance(o, Ragged)]
    rank = ragged[0].rank
    axis = int(value_of(node, "axis", op)) % rank
    if any(r.axis != ragged[0].axis for r in ragged):
        bench.fail("results of run-time size on two axes are joined", *ragged)
    if axis != ragged[0].axis:
        if len(ragged) < len(operands):
            bench.fail("a result of run-time size is joined with a tensor of another size", *ragged)
        ragged = bench.aligned(ragged)
        (made,) = bench.apply(node, [r.value for r in ragged])
        return [Ragged(made, ragged[0].axis, ragged[0].extent)]
    lengths = [o.extent if isinstance(o, Ragged) else bench.dims(o)[axis] for o in operands]  # type: ignore[arg-type]
    total = bench.dims(node.outputs[0])[axis]

    def make() -> Extent:
        masks = [part.valid if isinstance(part, Extent) else _all(bench, part) for part in lengths]
        bound: Expr = 0
        for part in lengths:
            bound = bound + (part.bound if isinstance(part, Extent) else part)
        roots = frozenset(r for part in lengths if isinstance(part, Extent) for r in part.roots)
        return Extent(op.Concat(*masks, axis=0), bound, total, roots)

    extent = bench.derived(("joined", *lengths), make)
    (made,) = bench.apply(node, [o.value if isinstance(o, Ragged) else o for o in operands])
    return [Ragged(made, axis, extent)]


def _all(bench: Bench, amount: Expr) -> ir.Value:
    if isinstance(amount, int):
        return bench.op.constant(np.ones(amount, bool))
    result: ir.Value = bench.op.Expand(bench.op.constant(np.ones(1, bool)), bench.sized(amount))
    return result


@follows("Split")
def split(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """On another axis."""
    x = first_operand(bench, node)
    if int(value_of(node, "axis", bench.op, 0)) % x.rank == x.axis:
        bench.fail("a run-time size is split", x)
    made = bench.apply(node, [x.value, *node.inputs[1:]])
    return [Ragged(m, x.axis, x.extent) for m in made]


@follows("Tile", "Pad")
def enlarged(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """On other axes."""
    x = first_operand(bench, node)
    entries = bench.entries(node.inputs[1])
    if entries is None or len(node.inputs) > 3:
        bench.fail(f"{node.op_type} by numbers given at run time", x)
    still = (
        [entries[x.axis]] == [1]
        if node.op_type == "Tile"
        else entries[x.axis] == entries[x.axis + x.rank] == 0
    )
    if not still:
        bench.fail(f"{node.op_type} of a run-time size", x)
    (made,) = bench.apply(node, [x.value, *node.inputs[1:]])
    return [Ragged(made, x.axis, x.extent)]
