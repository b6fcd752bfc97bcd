"""Loops that were unrolled: one Split takes the steps out, and their axis is kept where that is fewer nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers import assert_same, check, operators, optimized, parse, samples

RANDOM = np.random.default_rng(3)
PLACES = {f"i{n}": np.array(n) for n in range(5)} | {"m1": np.array(-1), "v0": np.array([0])}


def weights(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return {name: RANDOM.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def ints(**values: list[int]) -> dict[str, Any]:
    return {name: np.array(value, np.int64) for name, value in values.items()}


STACKED = """u0 = Unsqueeze(h0, one) u1 = Unsqueeze(h1, one) u2 = Unsqueeze(h2, one)
    y = Concat<axis=1>(u0, u1, u2)"""
TAKEN = "a = Gather<axis=1>(x, i0) b = Gather<axis=-2>(x, i1) c = Gather<axis=1>(x, m1)"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # A recurrence, stacked.
        (
            f"{TAKEN} h0 = Tanh(a) r0 = MatMul(h0, w) s1 = Add(b, r0) h1 = Tanh(s1) r1 = MatMul(h1, w)"
            f" s2 = Add(r1, c) h2 = Tanh(s2) {STACKED}",
            ["Split", "Tanh", "MatMul", "Add", "Tanh", "MatMul", "Add", "Tanh", "Concat"],
        ),
        # Constants of as many axes get one more; a state from elsewhere is given it.
        (
            f"{TAKEN} p = Mul(a, gate) h0 = Add(p, start) q = Mul(b, gate) h1 = Add(q, bias)"
            f" r = Sub(c, h1) h2 = Add(r, start) {STACKED}",
            ["Split", "Mul", "Unsqueeze", "Add", "Mul", "Add", "Sub", "Add", "Concat"],
        ),
        # What is done along the last axis, however it is counted; the last state is needed without the axis.
        (
            f"{TAKEN} d = Softmax<axis=1>(a) e, f = Split<axis=1>(d) h0 = Concat<axis=1>(f, e)"
            f" g = LayerNormalization<axis=1>(b, bias) m = ReduceMean<axes=[1]>(g) h1 = Sub(g, m)"
            f" n = ReduceSum<keepdims=1>(c, one) h2 = Div(h1, n) {STACKED} z = Relu(h2)",
            [
                *("Split", "Softmax", "Split", "Concat", "LayerNormalization", "ReduceMean", "Sub"),
                *("ReduceSum", "Div", "Concat", "Squeeze", "Relu"),
            ],
        ),
    ],
)  # fmt: skip
def test_steps_keep_their_axis(body: str, expected: list[str]) -> None:
    more = ", float z" if "z =" in body else ""
    text = f"g (float[n,3,6] x, float[n,6] start) => (float y{more}) {{ {body} }}"
    constants = weights(w=(6, 6), gate=(1, 6), bias=(6,)) | ints(one=[1]) | PLACES
    before = parse(text, 17, constants)
    after = optimized(before, "shapes,unrolled_steps,dead")
    assert sorted(operators(after)) == sorted(expected)
    assert_same(before, after, samples(before, 1, n=1), samples(before, 2, n=4))


def test_axes_before_the_steps_are_counted_from_the_front() -> None:
    """The steps are the last axis but one; what is joined lies before it."""
    text = """g (float[n,4,3,6] x) => (float y, float z) {
        a = Gather<axis=2>(x, i0) b = Gather<axis=2>(x, i1) c = Gather<axis=2>(x, i2)
        d = Concat<axis=1>(a, b) e, f = Split<axis=-2>(d) g = Add(f, e) y = Mul(g, c) z = Concat<axis=0>(g, g) }"""
    before = parse(text, 17, PLACES)
    after = optimized(before, "shapes,unrolled_steps,dead")
    assert operators(after).count("Gather") in (0, 3)
    assert_same(before, after, samples(before, 1, n=1), samples(before, 2, n=4))


STATES = """
    a = Gather<axis=2>(x, i0) b = Gather<axis=2>(x, i1) c = Gather<axis=2>(x, i2)
    p = Gather<axis=2>(v, i0) q = Gather<axis=2>(v, i1) r = Gather<axis=2>(v, i2)
    h1 = Mul(a, q) h2 = Add(h1, b) h3 = Mul(h2, r) h4 = Add(h3, c) h0 = Add(p, a)
    c0 = Gather<axis=1>(t, i0) c1 = Gather<axis=1>(t, i1) c2 = Gather<axis=1>(t, {last})
    k0 = Unsqueeze(c0, end) k1 = Unsqueeze(c1, end) k2 = Unsqueeze(c2, end)
    o0 = MatMul(h0, k0) o1 = MatMul({h1}, k1) o2 = MatMul(h4, k2) y = Concat<axis=-1>({order})"""


@pytest.mark.parametrize("opset", [13, 21])
def test_a_state_space_model(opset: int) -> None:
    body = STATES.format(last="i2", h1="h2", order="o0, o1, o2")
    text = f"g (float[n,5,3,6] x, float[n,5,3,6] v, float[n,3,6] t) => (float[n,5,3] y) {{ {body} }}"
    expected = [
        "Split",
        "Split",
        "Mul",
        "Add",
        "Mul",
        "Add",
        "Add",
        "Concat",
        "Unsqueeze",
        "Mul",
        "ReduceSum",
    ]
    before = parse(text, opset, PLACES | ints(end=[-1]))
    after = optimized(before, "shapes,stacked_products,unrolled_steps,dead")
    assert sorted(operators(after)) == sorted(expected)
    assert_same(before, after, samples(before, 1, n=1), samples(before, 2, n=4))


@pytest.mark.parametrize(
    ("shape", "slots"),
    [
        # Rows in another order, rows that are left out, states that are broadcast, an output on the way.
        ("n,3,6", {"last": "i2", "h1": "h2", "order": "o1, o0, o2"}),
        ("n,5,6", {"last": "i2", "h1": "h2", "order": "o0, o1, o2"}),
        ("n,3,6", {"last": "i1", "h1": "h2", "order": "o0, o1, o2"}),
        ("n,3,6", {"last": "i2", "h1": "one", "order": "o0, o1, o2"}),
    ],
)
def test_other_products_stay(shape: str, slots: dict[str, str]) -> None:
    head = f"g (float[n,5,3,6] x, float[n,5,3,6] v, float[{shape}] t) => (float[n,5,3] y)"
    constants = PLACES | ints(end=[-1]) | weights(one=(1, 5, 6))
    check(f"{head} {{ {STATES.format(**slots)} }}", "stacked_products", None, weights=constants)


@pytest.mark.parametrize(
    ("x", "body"),
    [
        # Some positions only; a number that is not known; several positions at once.
        ("n,4,6", f"{TAKEN} d = Add(a, b) y = Mul(d, c)"),
        ("n,m,6", "a = Gather<axis=1>(x, i0) b = Gather<axis=1>(x, i1) c = Gather<axis=1>(x, i2)"
                  " d = Add(a, b) y = Mul(d, c)"),
        ("n,3,6", "a = Gather<axis=1>(x, v0) b = Gather<axis=1>(x, i1) c = Gather<axis=1>(x, m1)"
                  " d = Add(b, c) e = Unsqueeze(d, one) y = Mul(a, e)"),
        # Everybody wants the steps without the axis: nothing would be gained.
        ("n,3,6", f"{TAKEN} d = Gemm(a, w) e = Gemm(b, w) f = Gemm(c, w) y = Concat<axis=0>(d, e, f)"),
        # The vector's own axis is the one of the steps: a product of a matrix and a vector.
        ("n,6,3", "a = Gather<axis=2>(x, i0) b = Gather<axis=2>(x, i1) c = Gather<axis=2>(x, i2)"
                  " d = MatMul(a, w) e = MatMul(b, w) f = MatMul(c, w) y = Concat<axis=0>(d, e, f)"),
    ],
)  # fmt: skip
def test_steps_that_stay(x: str, body: str) -> None:
    text = f"g (float[{x}] x) => (float y) {{ {body} }}"
    check(text, "unrolled_steps", None, weights=PLACES | weights(w=(6, 6)) | ints(one=[1]))
