"""What normalizations with a scale and a bias for each channel have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import constant, dims_of
from onnxlathe.rewrite import Builder, Pattern, PatternBuilder, Rule, any_of, const, reject, require
from onnxlathe_passes.conditions import Array

_LARGEST = 1 << 20  # bytes of a scale or bias


def per_channel(value: ir.Value, x: ir.Value) -> Array:
    """A constant operand of `x` (`[batch, channels, …]`) as one number for each channel.

    Raises:
        NoMatch: it varies along another axis, is not constant, or the channels are not known.
    """
    found, dims = constant(value, _LARGEST), dims_of(x)
    if found is None or dims is None or len(dims) < 3 or not isinstance(dims[1], int):
        reject("it has no constant for each channel")
    require(found.ndim <= len(dims), f"{value.name} adds dimensions to the result")
    shape = (1,) * (len(dims) - found.ndim) + found.shape
    require(
        all(size == 1 or (axis == 1 and size == dims[1]) for axis, size in enumerate(shape)),
        f"{value.name} varies along another axis than that of the channels",
    )
    return np.broadcast_to(found.astype(np.float64).reshape(-1), dims[1])


def vector(value: ir.Value, count: int) -> Array:
    """A constant scale or bias of `count` numbers in double precision."""
    found = constant(value, _LARGEST)
    if found is None or found.shape != (count,):
        reject(f"{value.name} is not constant, or of another length")
    return found.astype(np.float64)


@dataclass(frozen=True)
class TakeAffine(Rule):
    """norm(x, scale, bias)·a + b → norm(x, scale·a, bias·a + b), one step at a time; `kind` is the operator."""

    kind: str = "InstanceNormalization"

    def pattern(self, op: PatternBuilder, x: Pattern, scale: Pattern, bias: Pattern, by: Pattern) -> Any:
        made = getattr(op, self.kind)
        norm, by = made(x, const(scale), const(bias), _name="norm"), const(by)
        return any_of(op.Mul(norm, by), op.Div(norm, by), op.Add(norm, by), op.Sub(norm, by), tag="step")

    def rewrite(
        self,
        op: Builder,
        norm: ir.Node,
        x: ir.Value,
        scale: ir.Value,
        bias: ir.Value,
        by: ir.Value,
        step: int,
    ) -> Any:
        number = per_channel(by, x)
        old, shift = vector(scale, number.size), vector(bias, number.size)
        if step == 1:
            require(number.all(), "it divides by zero")
        if step < 2:
            number = 1 / number if step else number
            old, shift = old * number, shift * number
        else:
            shift = shift + number * (1 if step == 2 else -1)
        operands = [x, op.constant(old, x.dtype, name=scale.name or ""), None]
        operands[2] = op.constant(shift, x.dtype, name=bias.name or "")
        return op.node(norm.op_type, operands, dict(norm.attributes)).outputs[0]
