"""Shapes as groups of axes: which axes of a Reshape's input become which axes of its output."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import onnx_ir as ir

from onnxlathe.infer import Dims, dims_of
from onnxlathe.rewrite import Builder, reject
from onnxlathe_passes.conditions import int64, producer
from onnxlathe_passes.views import unsqueeze

_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def groups(fine: Dims, coarse: Dims) -> list[range] | None:
    """The consecutive axes of `fine` that multiply to each axis of `coarse`.

    Sizes are compared as expressions: what is a group is one in every run. Axes of size 1 that no group
    needs go to the one before.

    Returns:
        One range of axes of `fine` for each axis of `coarse`; `None` where there is no such grouping.
    """
    if {None, 0} & {*fine, *coarse}:
        return None
    found: list[range] = []
    start = 0
    for index, wanted in enumerate(coarse):
        end, product = start, 1
        while product != wanted or end == start:
            if end == len(fine):
                break
            product = product * fine[end]  # type: ignore[operator,assignment]
            end += 1
        if product != wanted:
            return None
        # A group takes the ones that follow, unless the next size is itself a 1 that needs them.
        last = index + 1 == len(coarse)
        while end < len(fine) and fine[end] == 1 and (last or coarse[index + 1] != 1):
            end += 1
        found.append(range(start, end))
        start = end
    return found if start == len(fine) else None


def stretches(before: Dims, after: Dims) -> list[tuple[range, range]] | None:
    """Which consecutive axes of a Reshape's input become which of its output, in as many stretches as can be.

    Unlike `groups`, axes may be cut at one place and joined at another: `[b, 64, 8, 8]` becomes `[b, 4, 16, 64]`
    in three stretches.

    Returns:
        Ranges of the axes of `before` and of `after`, in order; `None` where a size is not known.
    """
    if {None, 0} & {*before, *after}:
        return None
    found: list[tuple[range, range]] = []
    i = j = 0
    while i < len(before) and j < len(after):
        end = _meeting(before[i:], after[j:])
        if end is None:
            return None
        found.append((range(i, i + end[0]), range(j, j + end[1])))
        i, j = i + end[0], j + end[1]
    if any(d != 1 for d in (*before[i:], *after[j:])):
        return None
    if found and (i < len(before) or j < len(after)):
        last = found.pop()
        found.append((range(last[0].start, len(before)), range(last[1].start, len(after))))
    return found


def _meeting(one: Dims, other: Dims) -> tuple[int, int] | None:
    """How many axes of each multiply to the same size: as few as will do, and at least one."""
    ours, theirs = [list(accumulate(dims, operator.mul)) for dims in (one, other)]
    pairs = ((i, j) for i, a in enumerate(ours, 1) for j, b in enumerate(theirs, 1) if a == b)
    return min(pairs, key=sum, default=None)


def static(dims: Sequence[Any]) -> list[int] | None:
    """The sizes as numbers; `None` where one is not."""
    return [d for d in dims if isinstance(d, int)] if all(isinstance(d, int) for d in dims) else None


def target(before: Dims, after: Dims) -> list[int] | None:
    """The second input of a Reshape from `before` to `after`; `None` where it cannot be written down.

    A symbolic size is 0 where the input has it at the same place; one more may be -1.
    """
    if None in before or None in after or 0 in after:
        return None
    written = []
    for axis, size in enumerate(after):
        if isinstance(size, int):
            written.append(size)
        else:
            written.append(0 if axis < len(before) and before[axis] == size else -1)
    return written if written.count(-1) <= 1 else None


def reshaped(op: Builder, x: ir.Value, after: Dims, before: Dims | None = None) -> ir.Value:
    """`x` in another shape: itself where it has that shape already, else a Reshape.

    Args:
        before: the shape of `x`, where it is new and does not say so itself.

    Raises:
        NoMatch: the shape has more unknown sizes than a Reshape can be told.
    """
    before = dims_of(x) if before is None else before
    if before is None:
        reject(f"the rank of {x.name} is not known")
    if before == after:
        return x
    written = target(before, after)
    if written is None:
        reject(f"the new shape of {x.name} cannot be written down")
    made: ir.Value = op.Reshape(x, int64(written))
    return made


def viewed(op: Builder, x: ir.Value, after: Dims) -> ir.Value:
    """`x` in another shape, told from what it was before other views; an Unsqueeze where one will do.

    Raises:
        NoMatch: as `reshaped` does.
    """
    made = producer(x, *_VIEWS)
    while made is not None and made.inputs[0] is not None and dims_of(made.inputs[0]) is not None:
        x = made.inputs[0]
        made = producer(x, *_VIEWS)
    before = dims_of(x) or ()
    if before == after:
        return x
    added = _added(before, after)
    return unsqueeze(op, x, added) if added is not None else reshaped(op, x, after)


def _added(before: Dims, after: Dims) -> list[int] | None:
    """Where axes of size 1 come in, if that is all that `after` has more than `before`."""
    added, place = [], 0
    for axis, size in enumerate(after):
        if place < len(before) and size == before[place]:
            place += 1
        elif size == 1:
            added.append(axis)
        else:
            return None
    return added if place == len(before) else None


def split(op: Builder, x: ir.Value, sizes: Sequence[int], axis: int) -> Sequence[ir.Value]:
    """The parts of `x` along an axis, by a Split as this opset spells it; equal ones without their sizes."""
    equal, count = len(set(sizes)) == 1, len(sizes)
    if op.opset < 13:
        return op.node("Split", [x], {"axis": axis, "split": list(sizes)}, outputs=count).outputs
    if not equal:
        return op.node("Split", [x, int64(sizes)], {"axis": axis}, outputs=count).outputs
    number = {"num_outputs": count} if op.opset >= 18 else {}
    return op.node("Split", [x], {"axis": axis, **number}, outputs=count).outputs
