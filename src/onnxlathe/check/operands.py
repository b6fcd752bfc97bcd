"""What the operators share that build operands: needed values, integers, axes, images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.check.sketch import Array, Impossible, Size, Sketch, Slot, Want

Operands = list["ir.Value | None"]
Attributes = dict[str, Any]
Draw = Callable[[Sketch, str, Sequence[Slot], Attributes, Want], Operands]

INT64 = ir.DataType.INT64
PARTS = "_parts"
"""Not an attribute: tells `split` how many outputs its node has."""


def needed(value: ir.Value | None) -> ir.Value:
    """`value`, which must be there."""
    if value is None:
        raise Impossible
    return value


def integers(s: Sketch, slots: Sequence[Slot], index: int, numbers: Sequence[int] | None) -> ir.Value | None:
    """An operand of known integers (axes, a shape), or none."""
    if index >= len(slots):
        return None
    if numbers is None:
        return slots[index](Want(absent=True))
    array = np.array(numbers, np.int64)
    return slots[index](Want(array=array, shape=array.shape, dtype=INT64))


def signed(s: Sketch, axis: int, rank: int) -> int:
    """`axis`, now and then counted from the end."""
    return axis - rank if s.chance(3) else axis


def constant_operand(s: Sketch, slot: Slot, array: Array) -> ir.Value | None:
    """An operand with these contents, now and then left out where it may be."""
    if slot.can_be_absent and s.chance(3):
        return slot(Want(absent=True))
    return slot(Want(array=array, shape=array.shape, dtype=ir.DataType.from_numpy(array.dtype)))


def image(s: Sketch, want: Want) -> tuple[Size, ...]:
    """The shape of something with batch, channels and one or two spatial dimensions."""
    if want.shape is not None and len(want.shape) >= 3:
        return want.shape
    spatial = s.pick(2, 1)
    batch: Size = s.shape(1, 1)[0]
    return (batch, s.pick(4, 2, 3, 1), *(s.pick(5, 4, 6) for _ in range(spatial)))
