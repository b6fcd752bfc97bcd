"""Tensors whose size data decide, in sizes that do not depend on data.

A result of NonZero, Compress, Unique or NonMaxSuppression has as many rows as the data say. Here it is all of
its *candidates* (every element of the mask, every box) with a mask of those that count. What consumes it
mostly needs no more: a sum adds zero for the others, a scatter does not write them, an operator by elements
does not care. Only where the order or the place of a row matter are the rows that count moved to the front.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxlathe.infer import Expr, dims_of


class Unsupported(Exception):
    """Something is done with a result of run-time size that cannot be done with its candidates.

    Attributes:
        roots: the nodes that the size comes from.
    """

    def __init__(self, reason: str, roots: frozenset[ir.Node]) -> None:
        super().__init__(reason)
        self.reason, self.roots = reason, roots


@dataclass(eq=False)
class Extent:
    """A size that data decide.

    Attributes:
        valid: bool [bound]: which candidates count.
        bound: how many candidates there are.
        size: how many of them count, as the model's inference names it.
        roots: the nodes that the size comes from.
        packed: those that count come first.
        merged: where a reshape made it of several axes: those before, the extent, those behind.
    """

    valid: ir.Value
    bound: Expr
    size: Expr
    roots: frozenset[ir.Node]
    packed: bool = False
    merged: tuple[tuple[Expr, ...], Extent, tuple[Expr, ...]] | None = None
    made: dict[Any, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Ragged:
    """A tensor with one axis of run-time size.

    Attributes:
        value: all candidates; what stands at those that do not count is arbitrary.
        axis: the axis of run-time size.
        extent: that size.
    """

    value: ir.Value
    axis: int
    extent: Extent

    @property
    def dims(self) -> list[Expr]:
        """The dimensions of `value`, as far as its own inference knows them."""
        return whole_dims(self.value, self.extent.roots)

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.dims)


Operand = Ragged | ir.Value | None
Result = Ragged | ir.Value | None


def whole_dims(value: ir.Value, roots: frozenset[ir.Node]) -> list[Expr]:
    """The dimensions of a value, all of which must be known."""
    dims = dims_of(value)
    if dims is None or any(d is None for d in dims):
        raise Unsupported(f"the shape of '{value.name}' is not known", roots)
    return [d for d in dims if d is not None]
