"""Softmax and its logarithm, written out."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import (
    Builder,
    Match,
    Pattern,
    PatternBuilder,
    Rule,
    RuleSet,
    any_of,
    attr,
    optional,
    reject,
    require,
    shared,
)
from onnxlathe_passes.conditions import from_front, numbers
from onnxlathe_passes.elementwise import float_type


def _axis(x: ir.Value, axes: ir.Value | None, attribute: Any) -> int:
    """The one axis of `x` that a reduction is over."""
    found = numbers(axes) if axes is not None else attribute
    dims = dims_of(x)
    if not found or dims is None:
        reject("its axes or the rank of its input are not known")
    front = from_front(found, len(dims))
    require(front is not None and len(front) == 1, "it is over several axes")
    assert front is not None
    # Counted from the end, as most models have it, where it is the last one.
    return -1 if front[0] == len(dims) - 1 else front[0]


class _Softmax(Rule):
    """exp(x)/Σexp(x); Softmax does not overflow where exp(x) does."""

    def pattern(self, op: PatternBuilder, x: Pattern, axes: Pattern) -> Any:
        powers = op.Exp(x)
        total = op.ReduceSum(powers, optional(axes), axes=attr("listed"), keepdims=1)
        return any_of(op.Div(powers, total), op.Mul(powers, op.Reciprocal(total)))

    def rewrite(self, op: Builder, match: Match, x: ir.Value, axes: ir.Value | None, listed: Any) -> Any:
        float_type(match)
        return op.Softmax(x, axis=_axis(x, axes, listed))


class _Shifted(Rule):
    """Softmax(x - max(x)) and LogSoftmax(x - max(x)) subtract the maximum by themselves."""

    def pattern(self, op: PatternBuilder, x: Pattern, axes: Pattern) -> Any:
        shifted = op.Sub(x, shared(op.ReduceMax(x, optional(axes), axes=attr("listed"), keepdims=1)))
        return any_of(
            op.Softmax(shifted, axis=attr("axis")), op.LogSoftmax(shifted, axis=attr("axis")), tag="log"
        )

    def rewrite(
        self, op: Builder, x: ir.Value, axes: ir.Value | None, listed: Any, axis: int, log: int
    ) -> Any:
        same = from_front([axis, _axis(x, axes, listed)], len(dims_of(x) or ()))
        require(same is not None and same[0] == same[1], "its maximum is over another axis")
        return op.LogSoftmax(x, axis=axis) if log else op.Softmax(x, axis=axis)


class _Logarithm(Rule):
    """log(Softmax(x)), finite where Softmax underflows."""

    def pattern(self, op: PatternBuilder, x: Pattern) -> Any:
        return op.Log(op.Softmax(x, axis=attr("axis")))

    def rewrite(self, op: Builder, x: ir.Value, axis: int) -> Any:
        return op.LogSoftmax(x, axis=axis)


class _Difference(Rule):
    """x - log(Σexp(x))."""

    def pattern(self, op: PatternBuilder, x: Pattern, axes: Pattern) -> Any:
        total = op.ReduceSum(op.Exp(x), optional(axes), axes=attr("listed"), keepdims=1)
        return any_of(
            op.Sub(x, op.Log(total)),
            op.Sub(x, op.ReduceLogSumExp(x, optional(axes), axes=attr("listed"), keepdims=1)),
        )

    def rewrite(self, op: Builder, match: Match, x: ir.Value, axes: ir.Value | None, listed: Any) -> Any:
        float_type(match)
        return op.LogSoftmax(x, axis=_axis(x, axes, listed))


class Softmax(RuleSet):
    """Fuse exp(x)/Σexp(x) into Softmax, and x - log(Σexp(x)) into LogSoftmax; x - max(x) before them is x."""

    name = "softmax"
    group = "fuse"
    min_opset = 13
    example = """
    %e = Exp(Sub(%x, ReduceMax(%x, [-1])))
    %y = Div(%e, ReduceSum(%e, [-1]))
    →
    %y = Softmax<axis=-1>(%x)
    """

    steps = (_Softmax(), _Logarithm(), _Difference(), _Shifted())
