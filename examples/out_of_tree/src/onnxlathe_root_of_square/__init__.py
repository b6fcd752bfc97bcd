"""The pass `root_of_square`: √(x·x) = |x|."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxlathe import Rule
from onnxlathe.rewrite import any_of, require


@dataclass(frozen=True)
class RootOfSquare(Rule):
    """Replace √(x·x), and √(x²), by |x|."""

    name = "root_of_square"
    example = """
    %y = Sqrt(Mul(%x, %x))
    →
    %y = Abs(%x)
    """

    def pattern(self, op: Any, x: Any) -> Any:
        # What to look for. Operators in between must not be used by anything else.
        return op.Sqrt(any_of(op.Mul(x, x), op.Pow(x, 2.0)))

    def check(self, x: Any) -> None:
        # When the identity holds; the reason is shown by `optimize inspect MODEL --why-not root_of_square`.
        require(x.dtype is not None and x.dtype.is_floating_point(), "its element type is not floating point")

    def rewrite(self, op: Any, x: Any) -> Any:
        # What to put there instead.
        return op.Abs(x)


PASSES = [RootOfSquare]
