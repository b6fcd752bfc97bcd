"""What is the same for the whole batch is computed now, and only that."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import assert_same, check, operators, optimized, parse, samples

WEIGHTS = {
    "six": np.array([6]),
    "axis0": np.array(0),
    "axis1": np.array(1),
    "half": np.float32(0.5),
    "two": np.float32(2),
    "table": np.arange(12, dtype=np.float32).reshape(1, 6, 2),
    "minus": np.array([0, 1, -1]),
    "o1": np.array([1]),
    "row": np.arange(6, dtype=np.float32).reshape(1, 6),
}

ONES = "b = Shape<start=0, end=1>(x) s = Concat<axis=0>(b, six) m = ConstantOfShape<value = float[1] {1}>(s) "


def graph(body: str, result: str = "float[n,6] y") -> str:
    return f"g (float[n,6] x) => ({result}) {{ {ONES} {body} }}"


@pytest.mark.parametrize(
    "body",
    [
        "c = CumSum(m, axis1) d = Sin(c) y = Add(x, d)",
        "c = CumSum(m, axis1) d = Mul(c, half) e = Pow(d, two) f = Sub(e, m) y = Mul(f, x)",
        "c = Mul(m, row) d = Transpose<perm=[1,0]>(c) e = Cos(d) f = Transpose<perm=[1,0]>(e) y = Add(f, x)",
    ],
)
def test_positions_of_a_mask_of_ones(body: str) -> None:
    check(graph(body), "shapes,steady", [body.split("y = ")[1].split("(")[0]], weights=WEIGHTS)


def test_what_depends_on_the_input_is_left_to_it() -> None:
    body = "c = Mul(m, x) d = CumSum(c, axis1) y = Add(x, d)"
    check(graph(body), "shapes,steady", ["Mul", "CumSum", "Add"], weights=WEIGHTS)


def test_what_cannot_broadcast_is_expanded() -> None:
    body = """c = CumSum(m, axis1) d = Sin(c) e = Mul(d, half) f = Exp(e) h = Cos(f) i = Mul(h, h)
        y = Concat<axis=1>(x, i)"""
    check(
        graph(body, "float[n,12] y"),
        "shapes,steady",
        ["Shape", "Concat", "Expand", "Concat"],
        weights=WEIGHTS,
    )


@pytest.mark.parametrize(
    "body",
    [
        # They count along the batch.
        "c = CumSum(m, axis0) d = Sin(c) y = Add(x, d)",
        "c = CumSum(m, axis0) l = Less(c, two) d = Cast<to=1>(l) y = Add(x, d)",
        "z = Squeeze(b) r = Range(axis0, z, axis1) u = Unsqueeze(r, o1) f = Cast<to=1>(u) e = Sin(f) y = Add(x, e)",
        # One end of the batch differs from the other.
        """k = Concat<axis=0>(row, m) q = Sin(k) p = Cos(q) y = Sub(p, half)""",
        # There is nothing to gain.
        "y = Concat<axis=1>(x, m)",
    ],
)
def test_what_stays(body: str) -> None:
    dims = {"k = ": "float[p,6] y", "y = C": "float[n,12] y"}.get(
        body[:4] if body[0] == "k" else body[:5], "float[n,6] y"
    )
    check(graph(body, dims), "shapes,steady", None, weights=WEIGHTS)


UNARY = ("Sin", "Cos", "Exp", "Neg", "Abs", "Sigmoid", "Tanh")


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_computation_over_the_mask(data: st.DataObject) -> None:
    """Random chains, along the batch or not: the same numbers for three sizes of it."""
    value, body = "m", ""
    for index in range(data.draw(st.integers(1, 6))):
        kind = data.draw(st.sampled_from(["unary", "row", "sum0", "sum1", "self"]))
        text = {
            "unary": f"{data.draw(st.sampled_from(UNARY))}({value})",
            "row": f"Mul({value}, row)",
            "sum0": f"CumSum({value}, axis0)",
            "sum1": f"CumSum({value}, axis1)",
            "self": f"Sub({value}, m)",
        }[kind]
        # Kept small, so that a rounding does not grow on the way.
        body += f"v{index} = {text} w{index} = Tanh(v{index}) "
        value = f"w{index}"
    before = parse(graph(f"{body} y = Add(x, {value})"), 17, WEIGHTS)
    after = optimized(before, "shapes,steady")
    assert_same(before, after, *(samples(before, n=n) for n in (1, 2, 5)))


# --- What a detector has learned ------------------------------------------------------------------------

QUERIES = """
g (float[n, 6, 8] x) => (float[n, 4, 6] y) {
    b = Shape<start=0, end=1>(x)
    s = Concat<axis=0>(b, rest)
    q = Expand(queries, s)
    l = LayerNormalization(q, scale, bias)
    p = MatMul(l, w)
    k1 = MatMul(l, w)
    k = Transpose<perm=[0, 2, 1]>(k1)
    a = MatMul(p, k)
    h = Softmax<axis=-1>(a)
    v = MatMul(h, l)
    r = Add(v, q)
    t = Transpose<perm=[0, 2, 1]>(x)
    y = MatMul(r, t)
}
"""


def test_queries_that_were_learned() -> None:
    """Self-attention among them is no work for every image."""
    random = np.random.default_rng(5)
    given = {
        "rest": np.array([4, 8]),
        "queries": random.standard_normal((1, 4, 8)).astype(np.float32),
        "w": random.standard_normal((8, 8)).astype(np.float32),
        "scale": random.standard_normal(8).astype(np.float32),
        "bias": random.standard_normal(8).astype(np.float32),
    }
    sizes = ({"n": 1}, {"n": 4})
    expected = ["Transpose", "MatMul"]
    before, after = parse(QUERIES, 17, given), optimized(parse(QUERIES, 17, given), "shapes,steady")
    assert sorted(operators(after)) == sorted(expected)
    assert_same(before, after, *(samples(before, **size) for size in sizes))
    check(QUERIES.replace("Add(v, q)", "Mul(v, f)").replace("q = Exp", "f = Identity(x1) q = Exp").replace(
        "8] x)", "8] x, float[n, 1, 1] x1)"), "shapes,steady", ["Identity", "Mul", "Transpose", "MatMul"],
        weights=given, sizes=sizes)  # fmt: skip


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("r = ReduceSum(m, o1) y = Mul(x, r)", ["Mul"]),
        ("r = ReduceMax<axes=[0], keepdims=1>(m) y = Mul(x, r)", ["Mul"]),
        ("r = ReduceSum(m, o0) y = Mul(x, r)", None),  # as many as there are in the batch
        ("r = ReduceSum(m, o0) q = Less(r, hundred) f = Cast<to=1>(q) y = Mul(x, f)", None),
        ("l = Cast<to=9>(m) y = Where(l, x, half)", ["Where"]),
        ("p, q = Split<axis=1>(m) r = Concat<axis=1>(q, p) u = Mul(r, row) y = Add(x, u)", ["Add"]),
    ],
)  # fmt: skip
def test_counts(body: str, left: list[str] | None) -> None:
    given = WEIGHTS | {"o0": np.array([0]), "hundred": np.float32(100)}
    check(graph(body), "shapes,steady", left, weights=given)


@pytest.mark.parametrize("fill", ["1", "0"])
def test_a_mask_is_resized(fill: str) -> None:
    text = f"""
    g (float[n, 6, 8] x) => (float[n, 3, 4] y) {{
        s = Shape(x) m = ConstantOfShape<value = float[1] {{{fill}}}>(s) u = Unsqueeze(m, o0)
        r = Resize<mode="nearest">(u, , scales) t = Squeeze(r, o0) c = CumSum(t, one) d = Sin(c)
        a = MaxPool<kernel_shape=[2], strides=[2]>(x) b = Slice(a, zero, three, o1) y = Add(b, d) }}"""
    given = {"o0": np.array([0]), "one": np.array(1), "scales": np.array([1, 1, 0.5, 0.5], np.float32)}
    given |= {"zero": np.array([0]), "three": np.array([3]), "o1": np.array([1])}
    check(text, "shapes,steady", ["MaxPool", "Slice", "Add"], weights=given, sizes=({"n": 1}, {"n": 3}))


@pytest.mark.parametrize(
    "body",
    [
        # Positions of frames, of which there is one for up to four samples.
        "m = Mul(f, zero) o = Add(m, two) c = CumSum(o, axis1) y = Add(f, c)",
        # A number of frames, of a value that shows no size of its own.
        """s = Shape(f) m = ConstantOfShape<value = float[1] {1}>(s) r = ReduceSum<keepdims=1>(m, both)
        y = Add(f, r)""",
        "s = Shape(f) m = ConstantOfShape<value = float[1] {1}>(s) c = CumSum(m, axis1) y = Mul(f, c)",
    ],
)
def test_sizes_of_which_little_is_seen(body: str) -> None:
    """Frames of a waveform: sizes that are 1 for one, two and three samples tell nothing."""
    text = f"g (float[1,n] x) => (float[1,k] y) {{ f = Slice(x, o0, far, o1, four) {body} }}"
    weights = WEIGHTS | {
        "o0": np.array([0]), "far": np.array([1 << 40]), "four": np.array([4]), "zero": np.float32(0),
        "both": np.array([0, 1]),
    }  # fmt: skip
    before = parse(text, 18, weights)
    after = optimized(before, "shapes,fold,steady")
    for size in (3, 9, 17):
        assert_same(before, after, {"x": np.random.default_rng(size).random((1, size), np.float32)})


@pytest.mark.parametrize(
    ("late", "left"), [("Split<axis=0>(grid, twos)", ["Add"]), ("Tile(grid, twos)", None)]
)
def test_constants_that_came_about_late(late: str, left: list[str] | None) -> None:
    """What is made of constants alone is computed where that takes no more room."""
    many = "Tile" in late
    body = f"{'p' if many else 'p, q'} = {late} s = Sin({'p' if many else 'q'}) y = Add(x, s)"
    text = f"g (float[n,{12 if many else 6}] x) => (float[n,{12 if many else 6}] y) {{ {body} }}"
    given = {"grid": np.arange(24, dtype=np.float32).reshape(4, 6), "twos": np.array([2, 2])}
    if many:
        given["grid"] = given["grid"][:1]
        given["twos"] = np.array([1, 2])
    else:
        given |= {"grid": np.arange(12, dtype=np.float32).reshape(2, 6), "twos": np.array([1, 1])}
    check(text, "shapes,steady", left, weights=given, sizes=({"n": 1}, {"n": 3}))
