"""Embeddings of positions that are cut out of a buffer."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import Array, assert_same, operators, optimized, parse

RANDOM = np.random.default_rng(11)
PASS = "shapes,fuse(table_slice)"


def random(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def vector(*values: int) -> Array:
    return np.array(values, np.int64)


def model(body: str, opset: int = 17, **weights: Array) -> onnx.ModelProto:
    constants: dict[str, Array] = {
        "zero": vector(0), "one": vector(1), "table": random(9, 6), "positions": np.arange(9)[None],
    }  # fmt: skip
    text = f"g (float[b, s, 6] x) => (float[b, s, 6] y) {{ n = Shape<start=1, end=2>(x) {body} }}"
    return parse(text, opset, constants | weights)


def same(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    for b, s in ((1, 9), (2, 4), (3, 1)):
        assert_same(before, after, {"x": random(b, s, 6)})


@pytest.mark.parametrize("axis", [1, -1])
def test_the_table_is_cut_itself(axis: int) -> None:
    body = "i = Slice(positions, zero, n, a) e = Gather(table, i) y = Add(x, e)"
    before = model(body, a=vector(axis))
    after = optimized(before, PASS)
    assert operators(after) == ["Shape", "Slice", "Add"]
    same(before, after)


def test_positions_in_another_order() -> None:
    """RoBERTa counts from 2; others count down."""
    body = "i = Slice(positions, zero, n, zero) e = Gather(table, i) y = Add(x, e)"
    before = model(body, positions=np.array([3, 2, 8, -1, 0, 1, 5, 5, 4]))
    after = optimized(before, PASS)
    assert operators(after) == ["Shape", "Slice", "Add"]
    same(before, after)


def test_columns_of_a_table() -> None:
    body = "i = Slice(positions, zero, n, zero) e = Gather<axis=1>(table, i) t = Transpose(e) y = Add(x, t)"
    before = model(body, table=random(6, 9), positions=np.arange(9))
    after = optimized(before, PASS)
    assert operators(after) == ["Shape", "Slice", "Transpose", "Add"]
    same(before, after)


NEAR_MISSES = {
    "positions are used elsewhere": """i = Slice(positions, zero, n, one) e = Gather(table, i)
        f = Cast<to=1>(i) u = Unsqueeze(f, last) g1 = Mul(u, e) y = Add(x, g1)""",
    "positions are computed": """m = Mul(positions, n) l = Min(m, eight) i = Slice(l, zero, n, one)
        e = Gather(table, i) y = Add(x, e)""",
    "the table is computed": "w = Mul(x, x) i = Slice(positions, zero, n, one) e = Gather<axis=2>(w, six) y = Add(x, e)",
}


@pytest.mark.parametrize("kind", NEAR_MISSES)
def test_near_misses(kind: str) -> None:
    body = NEAR_MISSES[kind]
    extra = {"last": vector(-1), "eight": np.array(8), "six": np.array([0, 1, 2, 3, 5, 4])}
    before = model(body, **extra)
    after = optimized(before, PASS)
    assert operators(after) == operators(before)
    same(before, after)


def test_more_positions_than_rows_stay() -> None:
    body = "i = Slice(positions, zero, n, one) e = Gather(table, i) y = Add(x, e)"
    before = model(body, table=random(3, 6), positions=np.arange(9)[None] % 3)
    after = optimized(before, PASS)
    assert operators(after) == operators(before)
    same(before, after)
