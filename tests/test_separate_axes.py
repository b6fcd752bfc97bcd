"""Batch and heads that Reshapes join, kept apart."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import Array, assert_same, operators, optimized, parse

RANDOM = np.random.default_rng(3)
PASS = "shapes,fuse(separate_axes),tidy"
SIZES = ((1, 5), (3, 2))


def random(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def vector(*values: int) -> Array:
    return np.array(values, np.int64)


HEADS = """
g (float[b, 4, s, 8] q, float[b, 4, s, 8] k, float[b, 4, s, 8] v{more}) => (float[b, 4, s, 8] y) {{
    size = Shape<start=2, end=3>(q)
    flat = Concat<axis=0>(minus, size, eight)
    scores = Concat<axis=0>(minus, size, size)
    qf = Reshape(q, flat)
    kf = Reshape(k, flat)
    vf = Reshape(v, flat)
    kt = Transpose<perm=[0, 2, 1]>(kf)
    p = MatMul(qf, kt)
    {masked}
    w = Softmax<axis=-1>(m)
    o = MatMul(w, vf)
    apart = Concat<axis=0>(minus, four, size, eight)
    y = Reshape(o, apart)
}}
"""
WEIGHTS = {"minus": vector(-1), "four": vector(4), "eight": vector(8)}


def heads(b: int, s: int, **more: Array) -> dict[str, Array]:
    return {name: random(b, 4, s, 8) for name in "qkv"} | more


MASKS = {
    "none": ("", "m = Mul(p, half)", lambda b, s: {}),
    "broadcast": (", float[s, s] mask", "m = Add(p, mask)", lambda b, s: {"mask": random(s, s)}),
    "repeated": (
        ", float[b, 1, 1, s] mask",
        """batch = Shape<start=0, end=1>(q)
    wide = Concat<axis=0>(batch, four, one, size)
    every = Expand(mask, wide)
    row = Concat<axis=0>(minus, one, size)
    rows = Reshape(every, row)
    m = Add(p, rows)""",
        lambda b, s: {"mask": random(b, 1, 1, s)},
    ),
    "apart for a moment": (
        ", float[b, 1, s, s] mask",
        """four_d = Concat<axis=0>(minus, four, size, size)
    p4 = Reshape(p, four_d)
    m4 = Add(p4, mask)
    m = Reshape(m4, scores)""",
        lambda b, s: {"mask": random(b, 1, s, s)},
    ),
}


@pytest.mark.parametrize("kind", MASKS)
def test_attention_of_joined_heads_has_no_reshape(kind: str) -> None:
    more, masked, feed = MASKS[kind]
    weights = WEIGHTS | {"half": np.float32(0.5), "one": vector(1)}
    before = parse(HEADS.format(more=more, masked=masked), 17, weights)
    after = optimized(before, PASS)
    assert "Reshape" not in operators(after)
    assert operators(after).count("MatMul") == 2
    for b, s in SIZES:
        assert_same(before, after, heads(b, s, **feed(b, s)))


def test_heads_behind_the_sequence() -> None:
    """As torch's MultiheadAttention joins them: `[seq, batch·heads, size]`."""
    text = """
    g (float[s, b, 32] x, float[s, b, 32] z) => (float[s, b, 32] y) {
        sb = Shape<start=0, end=1>(x)
        batch = Shape<start=1, end=2>(x)
        all = Mul(batch, four)
        to = Concat<axis=0>(sb, all, eight)
        xr = Reshape(x, to)
        zr = Reshape(z, to)
        q = Transpose<perm=[1, 0, 2]>(xr)
        kt = Transpose<perm=[1, 2, 0]>(zr)
        v = Transpose<perm=[1, 0, 2]>(zr)
        p = MatMul(q, kt)
        w = Softmax<axis=-1>(p)
        apart = Concat<axis=0>(batch, four, sb, sb)
        w4 = Reshape(w, apart)
        d = Mul(w4, half)
        back = Concat<axis=0>(all, sb, sb)
        wf = Reshape(d, back)
        o = MatMul(wf, v)
        t = Transpose<perm=[1, 0, 2]>(o)
        y = Reshape(t, ends)
    }
    """
    weights = {"four": vector(4), "eight": vector(8), "ends": vector(0, -1, 32), "half": np.float32(0.5)}
    before = parse(text, 17, weights)
    after = optimized(before, PASS)
    assert operators(after).count("Reshape") == 3  # the heads of x, those of z, and of the result
    for b, s in SIZES:
        assert_same(before, after, {"x": random(s, b, 32), "z": random(s, b, 32)})


def test_what_is_repeated_for_all_is_left_to_broadcasting() -> None:
    text = """
    g (float[b, 4, s, 8] q) => (float[b, 4, s, 6] y) {
        size = Shape<start=2, end=3>(q)
        batch = Shape<start=0, end=1>(q)
        flat = Concat<axis=0>(minus, size, eight)
        qf = Reshape(q, flat)
        times = Concat<axis=0>(batch, one, one)
        table = Tile(weight, times)
        turned = Transpose<perm=[0, 2, 1]>(table)
        p = MatMul(qf, turned)
        apart = Concat<axis=0>(minus, four, size, six)
        y = Reshape(p, apart)
    }
    """
    weights = WEIGHTS | {"one": vector(1), "six": vector(6), "weight": random(4, 6, 8)}
    before = parse(text, 17, weights)
    after = optimized(before, PASS)
    assert operators(after) == ["MatMul"]
    for b, s in SIZES:
        assert_same(before, after, {"q": random(b, 4, s, 8)})


def test_indices_repeated_for_all() -> None:
    text = """
    g (float[b, 4, s, 8] q, int64[s, s] i) => (float[b, 4, s, s] y) {
        size = Shape<start=2, end=3>(q)
        batch = Shape<start=0, end=1>(q)
        flat = Concat<axis=0>(minus, size, eight)
        qf = Reshape(q, flat)
        all = Mul(batch, four)
        wide = Concat<axis=0>(all, size, size)
        every = Expand(i, wide)
        g1 = GatherElements<axis=2>(qf, every)
        g2 = Relu(g1)
        apart = Concat<axis=0>(minus, four, size, size)
        y = Reshape(g2, apart)
    }
    """
    before = parse(text, 17, WEIGHTS)
    after = optimized(before, PASS)
    assert "Reshape" not in operators(after)
    for b, s in SIZES:
        assert_same(before, after, {"q": random(b, 4, s, 8), "i": RANDOM.integers(0, 8, (s, s))})


NEAR_MISSES = {
    "an output needs it": "y = MatMul(qf, kt)",
    "it sums along the axis": "r = ReduceSum<keepdims=1>(qf, zero)\n y = Add(r, qf)",
    "it runs along the axis": "z = Softmax<axis=0>(qf)\n y = Reshape(z, other)",
    "it is sliced along the axis": "z = Slice(qf, one, two, zero)\n y = Reshape(z, other)",
    "it is summed by a product": "a = Transpose<perm=[1, 2, 0]>(qf)\n c = Transpose<perm=[1, 0, 2]>(qf)\n y = MatMul(a, c)",
}


@pytest.mark.parametrize("body", NEAR_MISSES.values(), ids=NEAR_MISSES.keys())
def test_near_misses(body: str) -> None:
    text = f"""
    g (float[b, 4, 6, 6] q) => (float[o, p, r] y) {{
        qf = Reshape(q, flat)
        kt = Transpose<perm=[0, 2, 1]>(qf)
        {body}
    }}
    """
    weights = {
        "flat": vector(-1, 6, 6), "other": vector(2, -1, 6), "zero": vector(0), "one": vector(1),
        "two": vector(2),
    }  # fmt: skip
    before = parse(text, 17, weights)
    after = optimized(before, "shapes,fuse(separate_axes)")
    assert operators(after) == operators(before)
    for b in (1, 3):
        assert_same(before, after, {"q": random(b, 4, 6, 6)})


def test_no_change_without_gain() -> None:
    """Three axes are joined and cut again in another way: as many Reshapes as before."""
    text = """
    g (float[b, 4, 6, 8] q, float[8, 3] w) => (float[b, 2, 2, 18] y) {
        qf = Reshape(q, flat)
        z = MatMul(qf, w)
        y = Reshape(z, other)
    }
    """
    weights = {"flat": vector(-1, 6, 8), "other": vector(-1, 2, 2, 18)}
    before = parse(text, 17, weights)
    after = optimized(before, "shapes,fuse(separate_axes)")
    assert operators(after) == ["MatMul", "Reshape"]
    for b in (1, 3):
        assert_same(before, after, {"q": random(b, 4, 6, 8), "w": random(8, 3)})
