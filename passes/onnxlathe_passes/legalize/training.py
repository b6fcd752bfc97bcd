"""What is left in a graph that was exported for training."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxlathe.rewrite import require
from onnxlathe_passes.legalize.draft import (
    Draft,
    contents,
    given,
    lowers,
    operand,
    rank_of,
    static_dims,
    value_of,
    wanted,
)

T = ir.DataType
_TRAINING = "ai.onnx.preview.training"


@lowers("BatchNormalization")
def batch_normalization(op: Draft, node: ir.Node) -> Sequence[ir.Value | None]:
    """Normalization by the batch's own mean and variance, and the running ones moved towards them."""
    require(value_of(node, "training_mode", op, 0), "not in training mode")
    x, scale, bias, mean, variance = (given(node, i) for i in range(5))
    rank = rank_of(x)
    axes = [0, *range(2, rank)]
    momentum = float(value_of(node, "momentum", op, 0.9))
    own_mean = op.reduce("Mean", x, axes)
    centered = op.Sub(x, own_mean)
    own_variance = op.reduce("Mean", op.Mul(centered, centered), axes)
    epsilon = op.like(float(value_of(node, "epsilon", op, 1e-5)), x)
    normal = op.Div(centered, op.Sqrt(op.Add(own_variance, epsilon)))

    def along_channels(v: ir.Value) -> ir.Value:
        return op.unsqueeze(v, *range(1, rank - 1)) if rank > 2 else v

    result = op.Add(op.Mul(normal, along_channels(scale)), along_channels(bias))
    outputs: list[ir.Value | None] = [result]
    for index, (old, new) in enumerate(((mean, own_mean), (variance, own_variance)), start=1):
        if not wanted(node, index):
            outputs.append(None)
            continue
        flat = op.squeeze(new, *axes)
        outputs.append(op.Add(op.Mul(old, op.like(momentum, old)), op.Mul(flat, op.like(1 - momentum, old))))
    return outputs


@lowers("Dropout")
def dropout(op: Draft, node: ir.Node) -> Sequence[ir.Value | None]:
    """Nothing is dropped where it is not training, or where the ratio is zero."""
    import numpy as np

    x, ratio, training = given(node, 0), operand(node, 1), operand(node, 2)
    idle = training is None or not contents(training).reshape(-1)[0]
    if not idle:
        require(ratio is not None and contents(ratio).reshape(-1)[0] == 0, "it drops at random")
    mask = None
    if wanted(node, 1):
        mask = op.Expand(op.constant(np.array(True)), op.ints(static_dims(x)))
    return [op.Identity(x), mask]


def _groups(node: ir.Node, each: int) -> list[list[ir.Value]]:
    rest = [v for v in node.inputs[2:] if v is not None]
    count = len(rest) // each
    return [[rest[k * count + i] for k in range(each)] for i in range(count)]


def _regularized(op: Draft, node: ir.Node, x: ir.Value, g: ir.Value) -> ir.Value:
    norm = node.attributes["norm_coefficient"].as_float() if "norm_coefficient" in node.attributes else 0.0
    result: ir.Value = op.Add(op.Mul(op.like(norm, x), x), g)
    return result


def _number(node: ir.Node, name: str, default: float) -> float:
    return node.attributes[name].as_float() if name in node.attributes else default


@lowers(f"{_TRAINING}::Momentum")
def momentum(op: Draft, node: ir.Node) -> list[ir.Value]:
    """Gradient descent with momentum."""
    rate, step = given(node, 0), given(node, 1)
    alpha, beta = _number(node, "alpha", 0.0), _number(node, "beta", 0.0)
    nesterov = node.attributes["mode"].as_string() == "nesterov"
    new_x, new_v = [], []
    for x, g, v in _groups(node, 3):
        g = _regularized(op, node, x, g)
        first = op.like(1.0, x)
        weight = op.Where(op.Less(op.like(0, step), step), op.like(beta, x), first)
        velocity = op.Add(op.Mul(op.like(alpha, x), v), op.Mul(weight, g))
        push = op.Add(g, op.Mul(op.like(alpha, x), velocity)) if nesterov else velocity
        new_x.append(op.Sub(x, op.Mul(rate, push)))
        new_v.append(velocity)
    return new_x + new_v


@lowers(f"{_TRAINING}::Adagrad")
def adagrad(op: Draft, node: ir.Node) -> list[ir.Value]:
    """Steps that shrink with the sum of squared gradients."""
    rate, step = given(node, 0), given(node, 1)
    decay, epsilon = _number(node, "decay_factor", 0.0), _number(node, "epsilon", 1e-6)
    new_x, new_h = [], []
    for x, g, h in _groups(node, 3):
        slowed = op.Div(
            rate, op.Add(op.like(1.0, x), op.Mul(op.cast(step, x.dtype or T.FLOAT), op.like(decay, x)))
        )
        g = _regularized(op, node, x, g)
        total = op.Add(h, op.Mul(g, g))
        new_h.append(total)
        new_x.append(op.Sub(x, op.Div(op.Mul(slowed, g), op.Add(op.Sqrt(total), op.like(epsilon, x)))))
    return new_x + new_h


@lowers(f"{_TRAINING}::Adam")
def adam(op: Draft, node: ir.Node) -> list[ir.Value]:
    """Steps from running means of gradients and of their squares."""
    rate, step = given(node, 0), given(node, 1)
    alpha, beta = _number(node, "alpha", 0.9), _number(node, "beta", 0.999)
    epsilon = _number(node, "epsilon", 1e-6)
    after = _number(node, "norm_coefficient_post", 0.0)
    new_x, new_v, new_h = [], [], []
    for x, g, v, h in _groups(node, 4):
        one = op.like(1.0, x)
        g = _regularized(op, node, x, g)
        first = op.Add(op.Mul(op.like(alpha, x), v), op.Mul(op.like(1 - alpha, x), g))
        second = op.Add(op.Mul(op.like(beta, x), h), op.Mul(op.like(1 - beta, x), op.Mul(g, g)))
        t = op.cast(step, x.dtype or T.FLOAT)
        correction = op.Div(
            op.Sqrt(op.Sub(one, op.Pow(op.like(beta, x), t))), op.Sub(one, op.Pow(op.like(alpha, x), t))
        )
        adjusted = op.Where(op.Less(op.like(0, step), step), op.Mul(rate, correction), rate)
        moved = op.Sub(x, op.Div(op.Mul(adjusted, first), op.Add(op.Sqrt(second), op.like(epsilon, x))))
        new_x.append(op.Mul(op.like(1 - after, x), moved))
        new_v.append(first)
        new_h.append(second)
    return new_x + new_v + new_h
