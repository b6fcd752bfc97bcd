"""Views on both sides of an elementwise operator."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import assert_same, operators, optimized, parse

PASS = "shapes,tidy(view_around),tidy"
WEIGHTS = {
    "a02": np.array([0, 2]), "last": np.array([-1]), "first": np.array([0]), "wide": np.array([1, 1, -1, 1]),
    "flat": np.array([0, 24]), "split": np.array([0, 4, 6]), "half": np.float32(0.5), "low": np.float32(-1),
    "high": np.float32(1), "row": np.arange(6, dtype=np.float32), "one": np.array([0.5], np.float32),
}  # fmt: skip
SIZES = (1, 3)


@pytest.mark.parametrize(
    ("given", "result", "body", "left"),
    [
        ("n", "1, 1, n, 1", "u = Unsqueeze(x, a02) c = Neg(u) y = Reshape(c, wide)", ["Unsqueeze", "Neg"]),
        ("n,4,6", "n,4,6", "u = Reshape(x, flat) c = Relu(u) y = Reshape(c, split)", ["Relu"]),
        ("n,4,6", "n,4,6", "u = Flatten(x) c = Mul(half, u) y = Reshape(c, split)", ["Mul"]),
        ("n,4,6", "n,4,6", "u = Flatten(x) c = Clip(u, low, high) y = Reshape(c, split)", ["Clip"]),
        ("1,n,6", "n,6,1", "u = Unsqueeze(x, last) c = Exp(u) y = Squeeze(c, first)", ["Reshape", "Exp"]),
    ],
)
def test_two_views_are_one(given: str, result: str, body: str, left: list[str]) -> None:
    before = parse(f"g (float[{given}] x) => (float[{result}] y) {{ {body} }}", 17, WEIGHTS)
    after = optimized(before, PASS)
    assert operators(after) == left
    for n in SIZES:
        shape = [n if d.strip() == "n" else int(d) for d in given.split(",")]
        assert_same(before, after, {"x": np.random.default_rng(n).standard_normal(shape, np.float32)})


@pytest.mark.parametrize(
    "body",
    [
        "u = Reshape(x, flat) c = Relu(u) d = Reshape(c, split) e = ReduceMax(c) y = Add(d, e)",
        "u = Reshape(x, flat) c = Relu(u) d = Reshape(c, split) e = ReduceMax(u) y = Add(d, e)",
        "u = Unsqueeze(x, first) c = Mul(u, row) y = Squeeze(c, first)",
        "u = Reshape(x, flat) c = Mul(u, one) y = Reshape(c, split)",
        "u = Reshape(x, flat) c = Softmax(u) y = Reshape(c, split)",
    ],
)
def test_near_misses(body: str) -> None:
    """What else needs the values; operands that are no numbers; operators along an axis."""
    before = parse(f"g (float[n,4,6] x) => (float[n,4,6] y) {{ {body} }}", 17, WEIGHTS)
    after = optimized(before, "shapes,tidy(view_around)")
    assert operators(after) == operators(before)
    for n in SIZES:
        assert_same(before, after, {"x": np.random.default_rng(n).standard_normal((n, 4, 6), np.float32)})
