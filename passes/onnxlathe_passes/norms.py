"""What the fusions of normalizations have in common: patterns of their parts, and their steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import constant, dims_of, known
from onnxlathe.rewrite import (
    Builder,
    Pattern,
    PatternBuilder,
    Rule,
    any_of,
    attr,
    attribute,
    const,
    optional,
    reject,
    require,
    scalar_value,
    shared,
)
from onnxlathe_passes.conditions import FLOATS, HALVES
from onnxlathe_passes.elementwise import squared

_LARGEST = 1 << 26  # bytes of a scale or bias that is worth computing with


def mean(op: PatternBuilder, x: Pattern, axes: Pattern, label: str) -> Any:
    """ReduceMean with its dimensions kept; axes as input or attribute, see `reduced`."""
    return op.ReduceMean(x, optional(axes), axes=attr(f"{label}_attribute"), keepdims=1)


def standardized(
    op: PatternBuilder, x: Pattern, epsilon: Pattern, axes1: Pattern, axes2: Pattern, axes3: Pattern
) -> Pattern:
    """c/√(mean(c²) + ε) with c = x - mean(x); the axes of the means are to be compared."""
    average = mean(op, x, axes1, "axes1")
    centred = op.Sub(x, average)
    # Exporters compute the difference, or even the average, a second time.
    again = any_of(centred, op.Sub(x, average), op.Sub(x, mean(op, x, axes3, "axes3")))
    variance = mean(op, any_of(squared(op, centred), squared(op, again)), axes2, "axes2")
    return over_root(op, centred, op.Add(variance, const(epsilon)))


def over_root(op: PatternBuilder, x: Pattern, square: Pattern) -> Pattern:
    """x/√square, as a quotient or as a product with the inverse."""
    root = any_of(op.Sqrt(square), op.Pow(square, 0.5))
    inverse = any_of(op.Reciprocal(root), op.Div(1.0, root), op.Pow(square, -0.5))
    return any_of(op.Div(x, root), op.Mul(x, inverse))


def reduced(x: ir.Value, axes: ir.Value | None, attribute: Sequence[int] | None) -> list[int]:
    """The sizes of the trailing dimensions that a ReduceMean of `x` reduces.

    Raises:
        NoMatch: the reduced dimensions are not the last ones, or not known to be of fixed size.
    """
    if axes is not None:
        found = known(axes)
        if found is None or not all(isinstance(a, int) for a in found.reshape(-1)):
            reject("its axes are not constant")
        attribute = [int(a) for a in found.reshape(-1)]
    dims = dims_of(x)
    if not attribute or dims is None:
        reject("its axes or the rank of its input are not known")
    rank = len(dims)
    require(
        sorted(a % rank for a in attribute) == list(range(rank - len(attribute), rank)),
        "it does not reduce the last dimensions",
    )
    sizes = [d for d in dims[rank - len(attribute) :] if isinstance(d, int)]
    require(len(sizes) == len(attribute), "it reduces over dimensions of unknown size")
    return sizes


def epsilon_of(value: ir.Value) -> float:
    """The number that keeps the root away from zero."""
    number = scalar_value(value)
    dims = dims_of(value)
    if number is None or number < 0 or dims is None or len(dims) > 1:
        reject("what is added under the root is not one number")
    return number


def normalization(op: Builder, kind: str, x: ir.Value, sizes: Sequence[int], epsilon: float) -> Any:
    """The normalization of `x` over its last dimensions, with a scale of ones."""
    if x.dtype not in FLOATS:
        reject("its element type is not floating point")
    ones = op.constant(np.ones(sizes), x.dtype, name=f"{x.name}/ones")
    # Statistics of half-precision tensors are taken in float32, as every implementation does.
    stash = 11 if x.dtype == ir.DataType.DOUBLE else None
    attributes = {"axis": -len(sizes), "epsilon": epsilon, "stash_type": stash}
    return op.node(kind, [x, ones], attributes).outputs[0]


@dataclass(frozen=True)
class _Step(Rule):
    """A step that follows the normalization operator `kind`."""

    kind: str = "LayerNormalization"

    def normalized(self, op: PatternBuilder, x: Pattern, scale: Pattern, bias: Pattern) -> Any:
        if self.kind == "RMSNormalization":
            return op.RMSNormalization(x, const(scale), _name="norm")
        return op.LayerNormalization(x, const(scale), optional(bias), _name="norm")


class TakeScale(_Step):
    """norm(x, scale, bias)·factor → norm(x, scale·factor, bias·factor)."""

    def pattern(self, op: PatternBuilder, x: Pattern, scale: Pattern, bias: Pattern, factor: Pattern) -> Any:
        norm = self.normalized(op, x, scale, bias)
        return any_of(op.Mul(norm, factor), op.Div(norm, const(factor)), tag="divided")

    def rewrite(
        self,
        op: Builder,
        norm: ir.Node,
        x: ir.Value,
        scale: ir.Value,
        factor: ir.Value,
        divided: int,
        bias: ir.Value | None = None,
    ) -> Any:
        sizes = _sizes(norm, x, op.opset)
        old = _array(scale, sizes)
        if (number := _affine(factor, sizes, x)) is None:
            require(bias is None and (old == 1).all(), "its scale and its factor are not both constant")
            require(dims_of(factor) == tuple(sizes), "its factor is not of the normalized shape")
            return _with(op, norm, x, factor, None)
        number = 1 / number if divided else number
        shift = (
            None if bias is None else op.constant(_array(bias, sizes) * number, x.dtype, name=bias.name or "")
        )
        named = factor.name if factor.name and (old == 1).all() else scale.name
        return _with(op, norm, x, op.constant(old * number, x.dtype, name=named or ""), shift)


class TakeBias(Rule):
    """LayerNormalization(x, scale, bias) + summand → LayerNormalization(x, scale, bias + summand)."""

    def pattern(self, op: PatternBuilder, x: Pattern, scale: Pattern, bias: Pattern, summand: Pattern) -> Any:
        norm = op.LayerNormalization(x, scale, optional(bias), _name="norm")
        return any_of(op.Add(norm, summand), op.Sub(norm, const(summand)), tag="subtracted")

    def rewrite(
        self,
        op: Builder,
        norm: ir.Node,
        x: ir.Value,
        scale: ir.Value,
        summand: ir.Value,
        subtracted: int,
        bias: ir.Value | None,
    ) -> Any:
        sizes = _sizes(norm, x, op.opset)
        number = _affine(summand, sizes, x)
        if bias is None and not subtracted and dims_of(summand) == tuple(sizes):
            return _with(op, norm, x, scale, summand)
        if number is None:
            reject("what is added is not of the normalized shape, or not constant")
        number = -number if subtracted else number
        number = number if bias is None else _array(bias, sizes) + number
        return _with(op, norm, x, scale, op.constant(number, x.dtype, name=summand.name or ""))


class TakeCasts(_Step):
    """Cast(norm(Cast(x to float32), 1)) → norm(x, 1), which computes in float32 by itself."""

    def pattern(self, op: PatternBuilder, x: Pattern, scale: Pattern, bias: Pattern) -> Any:
        wide = shared(op.Cast(x, to=1))
        return op.Cast(self.normalized(op, wide, scale, bias), to=attr("narrow"))

    def rewrite(
        self,
        op: Builder,
        norm: ir.Node,
        x: ir.Value,
        scale: ir.Value,
        narrow: int,
        bias: ir.Value | None = None,
    ) -> Any:
        if x.dtype is None:
            reject("its element type is not known")
        require(x.dtype in HALVES and x.dtype == narrow, "it does not come back to the type it came from")
        sizes = _sizes(norm, x, op.opset)
        require(bias is None and (_array(scale, sizes) == 1).all(), "it is scaled in float32")
        require(attribute(norm, "stash_type", op.opset) == 1, "it computes in another type than float32")
        return _with(op, norm, x, op.constant(np.ones(sizes), x.dtype, name=scale.name or ""), None)


def _sizes(norm: ir.Node, x: ir.Value, opset: int) -> list[int]:
    """The sizes of the normalized dimensions."""
    axis, dims = attribute(norm, "axis", opset), dims_of(x)
    if dims is None or axis is None:
        reject("the rank of its input is not known")
    sizes = [d for d in dims[axis:] if isinstance(d, int)]
    require(sizes and len(sizes) == len(dims[axis:]), "it normalizes over dimensions of unknown size")
    return sizes


def _array(value: ir.Value, sizes: Sequence[int]) -> Any:
    """A constant scale or bias in double precision, in the normalized shape."""
    found = constant(value, _LARGEST)
    if found is None:
        reject(f"{value.name} is not constant, or very large")
    array = found.astype(np.float64)
    while array.ndim > len(sizes) and array.shape[0] == 1:
        array = array[0]
    require(
        array.ndim <= len(sizes)
        and all(a in (1, n) for a, n in zip(array.shape[::-1], sizes[::-1], strict=False)),
        f"{value.name} is not of the normalized shape",
    )
    return np.broadcast_to(array, sizes)


def _affine(value: ir.Value, sizes: Sequence[int], x: ir.Value) -> Any:
    """`value` as something to scale or shift normalized dimensions by; `None` where it is not constant."""
    found, dims = constant(value, _LARGEST), dims_of(x)
    if found is None:
        return None
    require(dims is not None and found.ndim <= len(dims), f"{value.name} adds dimensions to the result")
    return _array(value, sizes)


def _with(op: Builder, norm: ir.Node, x: ir.Value, scale: ir.Value, bias: ir.Value | None) -> Any:
    """The normalization `norm` again, of other operands."""
    return op.node(norm.op_type, [x, scale, bias], dict(norm.attributes)).outputs[0]
