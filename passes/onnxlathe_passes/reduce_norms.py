"""Norms and sums of squares over axes, written out."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe.rewrite import Builder, Match, Pattern, PatternBuilder, Rule, RuleSet, any_of, optional, reject
from onnxlathe_passes.elementwise import float_type, squared
from onnxlathe_passes.reductions import reduce, reduction


def _reduced(op: Builder, match: Match, kind: str, node: ir.Node, x: ir.Value) -> ir.Value:
    """`x` under the reduction `kind`, over the axes of another reduction."""
    float_type(match)
    what = reduction(node, op.opset)
    if what is None or not what.axes:
        reject("its axes are not known, or none")
    return reduce(op, kind, x, what.axes, what.keepdims)


class _Root(Rule):
    """√Σx²."""

    def pattern(self, op: PatternBuilder, x: Pattern, axes: Pattern) -> Any:
        total = any_of(
            op.ReduceSum(squared(op, x), optional(axes), _name="node"),
            op.ReduceSumSquare(x, optional(axes), _name="node"),
        )
        return any_of(op.Sqrt(total), op.Pow(total, 0.5))

    def rewrite(self, op: Builder, match: Match, node: ir.Node, x: ir.Value) -> Any:
        return _reduced(op, match, "ReduceL2", node, x)


class _Squares(Rule):
    """Σx²."""

    def pattern(self, op: PatternBuilder, x: Pattern, axes: Pattern) -> Any:
        return op.ReduceSum(squared(op, x), optional(axes), _name="node")

    def rewrite(self, op: Builder, match: Match, node: ir.Node, x: ir.Value) -> Any:
        return _reduced(op, match, "ReduceSumSquare", node, x)


class _Sizes(Rule):
    """Σ|x|."""

    def pattern(self, op: PatternBuilder, x: Pattern, axes: Pattern) -> Any:
        return op.ReduceSum(op.Abs(x), optional(axes), _name="node")

    def rewrite(self, op: Builder, match: Match, node: ir.Node, x: ir.Value) -> Any:
        return _reduced(op, match, "ReduceL1", node, x)


class ReduceNorm(RuleSet):
    """Fuse √Σx² into ReduceL2, Σx² into ReduceSumSquare and Σ|x| into ReduceL1.

    So x/max(‖x‖, ε) is three nodes, however it was spelled. LpNormalization has no ε, and TensorRT makes more
    layers of it.
    """

    name = "reduce_norm"
    group = "fuse"
    min_opset = 7
    example = """
    %y = Sqrt(ReduceSum(Pow(%x, 2), [-1]))
    →
    %y = ReduceL2(%x, [-1])
    """

    steps = (_Root(), _Squares(), _Sizes())
