"""What broadcasting does anyway is not done by an Expand or a Tile before it, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers import Array, assert_same, check, operators, optimized, parse, samples

SIZES = ({"n": 2, "m": 3}, {"n": 1, "m": 1}, {"n": 3, "m": 5})
CONSTANTS: dict[str, Any] = {
    "zero": np.float32(0), "low": np.float32(-1e9), "two": np.float32(2), "tall": np.full((1, 1, 1, 1), 2, np.float32),
    "w": np.arange(1, 5, dtype=np.float32), "ones": np.array([1]), "last": np.array([-1]), "one": np.array([1]),
    "third": np.array([1, 1, 3]), "row": np.arange(4, dtype=np.float32).reshape(1, 4),
}  # fmt: skip


def used(text: str) -> dict[str, Array]:
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return {name: np.asarray(array) for name, array in CONSTANTS.items() if name in words}


def small(
    body: str, expected: list[str] | None, inputs: str = "float[n, 1, 4] c", kind: str = "float"
) -> None:
    lines = "\n".join(part.strip() for part in body.split(";"))
    text = f"g (float[n, m, 4] x, {inputs}) => ({kind}[n, m, 4] y) {{\n{lines}\n}}"
    check(text, "broadcast_operand", expected, weights=used(text), sizes=SIZES)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min"])
@pytest.mark.parametrize("order", ["x, e", "e, x"])
def test_arithmetic(op: str, order: str) -> None:
    small(f"s = Shape(x); e = Expand(c, s); y = {op}({order})", [op])


@pytest.mark.parametrize("op", ["Greater", "Less", "Equal", "GreaterOrEqual", "LessOrEqual"])
def test_comparisons(op: str) -> None:
    small(f"s = Shape(x); e = Expand(c, s); y = {op}(x, e)", [op], kind="bool")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("s = Shape(x); e = Expand(c, s); b = Greater(x, two); y = Where(b, e, x)", ["Greater", "Where"]),
        ("s = Shape(x); e = Expand(c, s); b = Greater(e, two); y = Where(b, low, x)", ["Greater", "Where"]),
        ("s = Shape(x); e = Expand(c, s); b = Equal(e, zero); d = Not(b); y = Where(d, x, low)",
         ["Equal", "Not", "Where"]),
        ("s = Shape(x); e = Expand(c, s); r = Relu(e); q = Mul(two, r); y = Add(q, x)", ["Relu", "Mul", "Add"]),
        ("s = Shape(x); e = Expand(w, s); y = Mul(x, e)", ["Mul"]),
        ("s = Shape(x); m = Gather(s, ones); t = Concat<axis=0>(ones, m, ones); e = Tile(c, t); y = Mul(x, e)",
         ["Mul"]),
        # Expanded for nobody who would broadcast: at least what follows is computed before.
        ("s = Shape(x); e = Expand(c, s); r = Exp(e); z = Softmax(r); y = Add(z, x)",
         ["Shape", "Exp", "Expand", "Softmax", "Add"]),
    ],
)  # fmt: skip
def test_operands(body: str, expected: list[str]) -> None:
    small(body, expected)


@pytest.mark.parametrize(
    "body",
    [
        "s = Shape(x); e = Expand(c, s); y = Concat<axis=2>(e)",
        "s = Shape(x); e = Expand(c, s); y = Softmax<axis=1>(e)",
        "k = Constant<value_int=1>(); s = Shape(x); e = Expand(c, s); y = CumSum(e, k)",
    ],
)  # fmt: skip
def test_operators_that_do_not_broadcast(body: str) -> None:
    small(body, None)


def test_the_only_one_that_is_so_large() -> None:
    """Without the Expand the result would be smaller."""
    small("s = Shape(x); e = Expand(c, s); y = Mul(e, w)", None)
    small(
        "s = Shape(x); e = Expand(c, s); q = Expand(d, s); y = Add(e, q)",
        ["Shape", "Expand", "Add"],
        "float[n, 1, 4] c, float[1, 1, 4] d",
    )


def test_two_that_are_so_large_together() -> None:
    small(
        "s = Shape(x); e = Expand(c, s); q = Expand(d, s); y = Add(e, q)", ["Add"],
        "float[n, 1, 4] c, float[1, m, 1] d",
    )  # fmt: skip


def test_a_tile_along_an_axis_of_several() -> None:
    text = "g (float[n, 6] x, float[n, 2] c) => (float[n, 6] y) {\nt = Tile(c, k)\ny = Mul(x, t)\n}"
    check(text, "broadcast_operand", None, weights={"k": np.array([1, 3])}, sizes=SIZES)


def test_an_expand_that_something_else_needs() -> None:
    text = """g (float[n, m, 4] x, float[n, 1, 4] c) => (float[n, m, 4] y, float[n, m, 4] z) {
        s = Shape(x) e = Expand(c, s) y = Mul(e, x) z = Softmax(e)
    }"""
    check(text, "broadcast_operand", ["Shape", "Expand", "Mul", "Softmax"], sizes=SIZES)


def test_a_constant_with_more_axes() -> None:
    text = """g (float[n, m, 4] x, float[n, 1, 4] c) => (float[1, n, m, 4] y) {
        s = Shape(x) e = Expand(c, s) y = Mul(e, tall)
    }"""
    check(text, "broadcast_operand", None, weights=used(text), sizes=SIZES)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("1, 3, 4", ["MatMul"]),
        ("3, 4", ["MatMul"]),
        ("1, 3, 1", None),  # columns that the product needs
    ],
)
def test_the_batch_of_a_product(source: str, expected: list[str] | None) -> None:
    text = f"""g (float[n, 4, m] x, float[{source}] c) => (float[n, 3, m] y) {{
        s = Shape(x) b = Slice(s, zero1, ones) t = Concat<axis=0>(b, rest)
        e = Expand(c, t) y = MatMul(e, x)
    }}"""
    weights = used(text) | {"rest": np.array([3, 4]), "zero1": np.array([0])}
    before = parse(text, 17, weights)
    after = optimized(before, "shapes,broadcast_operand")
    assert operators(after) == (expected or operators(before))
    assert_same(before, after, *(samples(before, i, **s) for i, s in enumerate(SIZES)))


def test_the_mean_of_what_a_mask_leaves() -> None:
    """As sentences are pooled: the mask is repeated for every feature, and counted so."""
    text = """g (float[n, m, 4] x, int64[n, m] mask) => (float[n, 4] y) {
        u = Unsqueeze(mask, last) s = Shape(x) e = Expand(u, s) f = Cast<to=1>(e)
        p = Mul(x, f) t = ReduceSum<keepdims=0>(p, one)
        k = ReduceSum<keepdims=0>(f, one) d = Clip(k, tiny) y = Div(t, d)
    }"""
    weights = used(text) | {"tiny": np.float32(1e-9)}
    expected = ["Unsqueeze", "Cast", "Mul", "ReduceSum", "ReduceSum", "Clip", "Div"]
    before = parse(text, 17, weights)
    after = optimized(before, "shapes,fold,tidy,fuse,tidy")
    assert sorted(operators(after)) == sorted(expected)
    for n, m in ((1, 2), (3, 5)):
        assert_same(before, after, samples(before, n, n=n, m=m) | {"mask": np.ones((n, m), np.int64)})
