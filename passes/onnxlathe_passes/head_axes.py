"""Where the heads of a projection are, while they are moved: which axes hold which of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from onnxlathe.infer import Dims, dims_of
from onnxlathe.rewrite import reject, require

ORDERS = {1: "bhsd", 2: "bshd"}
"""The axes of heads that are computed with, by where the heads are."""

Axes = tuple[tuple[str, ...], ...]
"""What each axis of a value is made of: of the batch, the sequence, the heads, their groups and the places in
these, and the channels of a head (b, s, h, g, t, d). What has size 1 is left out."""


@dataclass(frozen=True)
class Part:
    """A value that holds some of the heads.

    Attributes:
        start, stop: which of them.
        size: of a head; 1 where it was reduced.
        axes: where they are.
        groups: into how many groups the axis of the heads was cut; 0 where it was not.
    """

    start: int
    stop: int
    size: int
    axes: Axes
    groups: int = 0

    @property
    def count(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Goal:
    """A value that has its heads in groups: `[batch, groups, times, seq, size]`.

    Attributes:
        part: the heads.
        turned: whether the last two axes are exchanged.
    """

    value: ir.Value
    part: Part
    groups: int
    turned: bool


@dataclass(frozen=True)
class Layout:
    """The sizes of a projection of many heads, `[batch, seq, heads·size]`."""

    batch: Any
    seq: Any
    heads: int
    size: int

    def axes(self, *made_of: str, count: int, size: int) -> Axes:
        """Axes, each given by the letters of what it is made of; what has size 1 is left out."""
        sizes: dict[str, Any] = {"b": self.batch, "s": self.seq, "h": count, "d": size}
        return tuple(tuple(letter for letter in axis if sizes.get(letter) != 1) for axis in made_of)

    def at(self, part: Part) -> int:
        """The axis of the heads, in `[batch, heads, seq, size]` or `[batch, seq, heads, size]`."""
        found = (
            axis
            for axis, order in ORDERS.items()
            if part.axes == self.axes(*order, count=part.count, size=part.size)
        )
        axis = next(found, None)
        if axis is None:
            reject("its heads are not an axis of four")
        return axis

    def reshaped(self, part: Part, dims: Dims) -> Part:
        """The parts of the axes, dealt out to axes of other sizes."""
        groups = part.groups
        sizes: dict[str, Any] = {"b": self.batch, "s": self.seq, "h": part.count, "d": part.size, "g": groups}
        if groups:
            sizes["t"] = part.count // groups
        left = [letter for axis in part.axes for letter in axis]
        axes: list[tuple[str, ...]] = []
        for wanted in dims:
            axis: list[str] = []
            rest: Any = wanted
            while rest != 1:
                require(left, "it has other sizes")
                letter = left[0]
                size = sizes[letter]
                if letter == "h" and isinstance(rest, int) and rest % size and size % rest == 0:
                    groups = rest
                    sizes |= {"g": groups, "t": size // groups}
                    left[0:1] = ["g", "t"]
                    continue
                require(size != 0 and (rest == size or (rest // size) * size == rest), "it cuts across heads")
                rest = 1 if rest == size else rest // size
                axis.append(left.pop(0))
            axes.append(tuple(axis))
        require(not left, "it has other sizes")
        return replace(part, axes=tuple(axes), groups=groups)

    def goal(self, value: ir.Value, part: Part) -> Goal | None:
        """What the value is if its heads are in groups."""
        dims = dims_of(value)
        if dims is None or len(dims) != 5:
            return None
        groups, times = dims[1], dims[2]
        if not isinstance(groups, int) or not isinstance(times, int) or groups * times != part.count:
            return None
        heads = self.axes("h", count=groups, size=1) + self.axes("h", count=times, size=1)
        if part.groups:
            heads = (("g",), ("t",))
        batch, seq, channels = self.axes("b", "s", "d", count=part.count, size=part.size)
        if part.axes == (batch, *heads, seq, channels):
            return Goal(value, part, groups, turned=False)
        if part.axes == (batch, *heads, channels, seq):
            return Goal(value, part, groups, turned=True)
        return None
