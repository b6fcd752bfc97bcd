"""Views and other operators on shapes: how to draw what they do."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxlathe.check.operands import (
    INT64,
    PARTS,
    Attributes,
    Operands,
    constant_operand,
    image,
    integers,
    needed,
    signed,
)
from onnxlathe.check.sketch import Impossible, Size, Sketch, Slot, Want, wanted


def transpose(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    from hypothesis import strategies as st

    shape = want.shape if want.shape is not None else s.shape(least=1)
    perm = attributes.get("perm")
    if perm is None and "perm" not in attributes:
        perm = s.again(("perm", len(shape)), lambda: s.draw(st.permutations(range(len(shape)))))
        attributes["perm"] = list(perm) if shape else None
    order = perm if perm is not None else list(range(len(shape)))[::-1]
    if sorted(order) != list(range(len(shape))):
        raise Impossible
    source: list[Size] = [0] * len(shape)
    for i, axis in enumerate(order):
        source[axis] = shape[i]
    return [slots[0](wanted(want, shape=tuple(source)))]


def reshape(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    shape = want.shape if want.shape is not None else s.shape(least=1)
    x = needed(slots[0](Want(shape=shape if s.chance(2) else s.shape(least=1), dtype=want.dtype)))
    dims = s.dims(x)
    still = [i for i, d in enumerate(dims) if not isinstance(d, int)]
    if len(still) > 1 or (still and still[0] != 0):
        target = [0 if not isinstance(d, int) else d for d in dims]
    else:
        rest = math.prod(d for d in dims if isinstance(d, int))
        static = s.pick([rest], [rest, 1], [1, rest], _halves(rest), list(dims[1:] if still else dims))
        target = [0 if s.chance(2) else -1, *static] if still else list(static)
        if not still and target and s.chance(3):
            target[s.pick(*range(len(target)))] = -1
    return [x, integers(s, slots, 1, target)]


def _halves(number: int) -> list[int]:
    factor = next((f for f in (2, 3, 5) if number % f == 0), 1)
    return [factor, number // factor]


def squeeze(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    shape = list(want.shape if want.shape is not None else s.shape(most=3))
    number = s.pick(1, 2)
    axes = sorted({s.pick(*range(len(shape) + 1)) for _ in range(number)})
    if op == "Squeeze":
        for axis in axes:
            shape.insert(axis, 1)
        shape = shape[:5]
        x = needed(slots[0](wanted(want, shape=tuple(shape), exact=True)))
        dims = s.dims(x)
        axes = [a for a in axes if a < len(dims) and dims[a] == 1]
        rank = len(dims)
    else:
        if want.shape is not None:
            axes = [i for i, size in enumerate(shape) if size == 1][:number]
            shape = [size for i, size in enumerate(shape) if i not in axes]
        x = needed(slots[0](wanted(want, shape=tuple(shape), exact=True) if want.shape is not None else want))
        rank = len(s.dims(x)) + len(axes)
        if want.shape is None:
            # Perhaps the very axes that a reduction took away.
            known = [a for (_, r), a in s.memory.items() if _ == "axes" and r == len(s.dims(x)) + len(a)]
            axes = known[0] if known and s.chance(2) else [a for a in axes if a < rank]
            rank = len(s.dims(x)) + len(axes)
    # No axes at all is not the same as none given, and runtimes disagree about it.
    chosen: list[int] | None = [signed(s, a, rank) for a in axes] or None
    if op == "Squeeze" and s.chance(6):
        chosen = None
    if s.opset < 13:
        attributes.setdefault("axes", chosen)
        return [x]
    return [x, integers(s, slots, 1, chosen)] if len(slots) > 1 else [x]


def expand(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    x = needed(slots[0](Want(shape=want.shape, dtype=want.dtype)))
    dims = s.dims(x)
    if op == "Tile":
        return [x, integers(s, slots, 1, [s.pick(1, 2) for _ in dims])]
    target = [d if isinstance(d, int) and (d != 1 or s.chance(2)) else 1 for d in dims]
    target = [s.pick(3, 1) if d == 1 and isinstance(dims[i], int) else d for i, d in enumerate(target)]
    if s.chance(3) and len(target) < 5:
        target = [s.pick(2, 1), *target]
    return [x, integers(s, slots, 1, target)]


def slices(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    shape = want.shape if want.shape else s.shape(least=1)
    x = needed(slots[0](Want(shape=shape, dtype=want.dtype)))
    rank = len(s.dims(x))
    axes = s.subset(range(rank), least=1)
    steps = [s.pick(1, 2, -1) for _ in axes] if len(slots) > 4 and s.chance(2) else None
    starts, ends = [], []
    for i in range(len(axes)):
        back = steps is not None and steps[i] < 0
        starts.append(s.pick(-1) if back else s.pick(0, 1, -2))
        ends.append(s.pick(-(2**62)) if back else s.pick(2**62, 3, -1))
    if s.opset < 10:
        attributes.update(axes=axes, starts=starts, ends=ends)
        return [x]
    turned = [signed(s, a, rank) for a in axes]
    values = [x, integers(s, slots, 1, starts), integers(s, slots, 2, ends), integers(s, slots, 3, turned)]
    return [*values, integers(s, slots, 4, steps)]


def concat(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    shape = want.shape if want.shape else s.shape(least=1)
    first = needed(slots[0](wanted(want, shape=shape)))
    dims = s.dims(first)
    if not dims:
        raise Impossible
    axis = attributes.get("axis")
    if axis is None:
        axis = attributes["axis"] = signed(s, s.pick(*range(len(dims))), len(dims))
    values: Operands = [first]
    for slot in slots[1:]:
        other = list(dims)
        other[axis] = s.pick(dims[axis], 2, 1, 0)
        values.append(slot(Want(shape=tuple(other), dtype=first.dtype, exact=True)))
    return values


def pad(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    shape = want.shape if want.shape else image(s, want) if s.chance(2) else s.shape(least=1)
    x = needed(slots[0](Want(shape=shape, dtype=want.dtype)))
    rank = len(s.dims(x))
    quiet = rank > 2 and s.chance(2)  # leave batch and channels alone
    sides = [0 if quiet and i % rank < 2 else s.pick(0, 1, 2) for i in range(2 * rank)]
    attributes.setdefault("mode", s.pick(None, "edge", "reflect") if s.chance(3) else None)
    if s.opset < 11:
        attributes.setdefault("pads", sides)
        return [x]
    values = [x, integers(s, slots, 1, sides)]
    if len(slots) > 2:
        value = np.array(s.pick(0, 1), (x.dtype or s.dtype).numpy())
        values.append(constant_operand(s, slots[2], value))
    return values


def split(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    shape = want.shape if want.shape else s.shape(least=1)
    x = needed(slots[0](Want(shape=shape, dtype=want.dtype)))
    dims = s.dims(x)
    axes = [i for i, d in enumerate(dims) if isinstance(d, int) and d > 1]
    if not axes:
        raise Impossible
    attributes.setdefault("axis", s.pick(*axes))
    size, parts = dims[attributes["axis"]], attributes.pop(PARTS, 2)
    if size < parts:
        raise Impossible
    if len(slots) > 1:
        return [x, integers(s, slots, 1, [1] * (parts - 1) + [size - parts + 1])]
    if s.opset >= 18:
        attributes["num_outputs"] = parts
    elif size % parts:
        raise Impossible
    return [x]


def gather(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    shape = want.shape if want.shape else s.shape(least=1)
    x = needed(slots[0](Want(shape=shape, dtype=want.dtype)))
    rank = len(s.dims(x))
    attributes.setdefault("axis", s.pick(*range(rank)) if rank else 0)
    indices = np.array(s.pick([0], 0, [0, -1], [[0]]), np.int64)
    return [x, slots[1](Want(array=indices, shape=indices.shape, dtype=INT64))]


def resize(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    x = needed(slots[0](Want(shape=image(s, want), dtype=s.dtype)))
    rank = len(s.dims(x))
    attributes.setdefault("mode", s.pick("nearest", "linear"))
    scales = np.array([1, 1, *(s.pick(1, 2) for _ in range(rank - 2))], np.float32)
    wants = Want(array=scales, shape=scales.shape, dtype=ir.DataType.FLOAT)
    if op == "Upsample" or s.opset < 11:
        return [x, slots[1](wants)]
    modes = ("half_pixel", "asymmetric", "align_corners")
    attributes.setdefault("coordinate_transformation_mode", s.pick(*modes))
    return [x, slots[1](Want(absent=True)), slots[2](wants)]
