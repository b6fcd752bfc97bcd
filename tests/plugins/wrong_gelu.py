"""A plugin with a plausible mistake: erf-GELU becomes its neighbour x·sigmoid(1.702·x)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxlathe import Rule


@dataclass(frozen=True)
class WrongGelu(Rule):
    """Fuse x·½·(1 + erf(x/√2)) into the wrong approximation."""

    name = "wrong_gelu"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, 1.4142135)), 1.0)), 0.5)

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Mul(x, op.Sigmoid(op.Mul(x, 1.702)))
