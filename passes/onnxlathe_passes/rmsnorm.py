"""Root-mean-square normalization."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, Pattern, PatternBuilder, Rule, RuleSet, const, is_constant, is_scalar
from onnxlathe_passes.conditions import producer
from onnxlathe_passes.elementwise import squared
from onnxlathe_passes.norms import TakeCasts, TakeScale, epsilon_of, mean, normalization, over_root, reduced


class _Core(Rule):
    """x/√(mean(x²) + ε) → RMSNormalization(x, 1)."""

    def pattern(self, op: PatternBuilder, x: Pattern, epsilon: Pattern, axes: Pattern) -> Pattern:
        power = mean(op, squared(op, x), axes, "axes")
        return over_root(op, x, op.Add(power, const(epsilon)))

    def rewrite(
        self, op: Builder, x: ir.Value, epsilon: ir.Value, axes: ir.Value | None, axes_attribute: Any
    ) -> Any:
        sizes = reduced(x, axes, axes_attribute)
        return normalization(op, "RMSNormalization", x, sizes, epsilon_of(epsilon))


class RMSNorm(RuleSet):
    """Fuse x/√(mean(x²) + ε)·scale over the last dimensions into RMSNormalization.

    The scale may be missing. Casts to float32 and back, as in Llama, go away: the operator computes in
    float32 anyhow.
    """

    name = "rmsnorm"
    group = "fuse"
    min_opset = 23
    example = """
    %r = Reciprocal(Sqrt(Add(ReduceMean(Pow(%x, 2), [-1]), 1e-6)))
    %y = Mul(%scale, Mul(%x, %r))
    →
    %y = RMSNormalization<axis=-1, epsilon=1e-6>(%x, %scale)
    """

    steps = (_Core(), TakeScale("RMSNormalization"), TakeCasts("RMSNormalization"))


def ends_rms_norm(x: ir.Value | None, scale: ir.Value | None, opset: int) -> bool:
    """Whether x·scale is the end of an RMS normalization that a runtime fuses only as a whole.

    So it is before opset 23: nothing but x/√(mean(x²) + ε)·scale, with one number of the scale for each
    place of the last axis, tells ONNX Runtime (SimplifiedLayerNormFusion) what it is. A scale of ones, or one
    that a MatMul could take in, stays there for that.
    """
    if opset >= RMSNorm.min_opset or x is None or scale is None or not is_constant(scale):
        return False
    dims, sizes = dims_of(x), dims_of(scale)
    return bool(dims and sizes is not None and sizes == dims[-1:] and sizes != (1,)) and _normalized(x)


def is_rms_scale(node: ir.Node, opset: int) -> bool:
    """Whether a Mul is the end of such an RMS normalization."""
    return any(ends_rms_norm(x, scale, opset) for x, scale in (node.inputs, node.inputs[::-1]))


def _normalized(value: ir.Value) -> bool:
    """Whether a value is x/√(mean(x²) + ε), in any of its spellings; an average taken off x is LayerNorm's."""
    node = producer(_uncast(value), "Div", "Mul")
    if node is None:
        return False
    if node.op_type == "Div":
        return _is_root(node.inputs[1], node.inputs[0])
    return any(_is_inverse(inverse, x) for x, inverse in (node.inputs, node.inputs[::-1]))


def _is_inverse(value: ir.Value | None, x: ir.Value | None) -> bool:
    node = producer(value, "Reciprocal", "Div", "Pow")
    if node is None:
        return False
    if node.op_type == "Reciprocal":
        return _is_root(node.inputs[0], x)
    if node.op_type == "Div":
        return is_scalar(node.inputs[0], 1.0) and _is_root(node.inputs[1], x)
    return is_scalar(node.inputs[1], -0.5) and _is_mean(node.inputs[0], x)


def _is_root(value: ir.Value | None, x: ir.Value | None) -> bool:
    node = producer(value, "Sqrt", "Pow")
    if node is None or (node.op_type == "Pow" and not is_scalar(node.inputs[1], 0.5)):
        return False
    return _is_mean(node.inputs[0], x)


def _is_mean(value: ir.Value | None, x: ir.Value | None) -> bool:
    """Whether a value is mean(x²) + ε."""
    total = producer(value, "Add")
    means = [producer(v, "ReduceMean") for v in total.inputs] if total is not None else []
    mean = next((m for m in means if m is not None), None)
    square = producer(mean.inputs[0], "Pow", "Mul") if mean is not None else None
    if square is None or _uncast(square.inputs[0]) is not _uncast(x):
        return False
    is_square = (
        is_scalar(square.inputs[1], 2.0) if square.op_type == "Pow" else square.inputs[1] is square.inputs[0]
    )
    shifted = producer(x, "Sub")
    return is_square and (shifted is None or producer(shifted.inputs[1], "ReduceMean") is None)


def _uncast(value: ir.Value | None) -> ir.Value | None:
    cast = producer(value, "Cast")
    return value if cast is None else cast.inputs[0]
