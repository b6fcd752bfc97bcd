"""Operators on rows work on the shape that needs the fewest Reshapes, and only those that see rows alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers import assert_same, check, operators, optimized, parse, samples

RANDOM = np.random.default_rng(11)


def weights(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return {name: RANDOM.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def ints(**values: list[int]) -> dict[str, Any]:
    return {name: np.array(value, np.int64) for name, value in values.items()}


NORM = weights(w=(8, 12), v=(12, 8), s=(8,), b=(8,))


@pytest.mark.parametrize(
    ("text", "expected", "constants"),
    [
        # Windows become heads: the rows are never counted by one axis.
        (
            """g (float[n,4,6,8] x) => (float[a,24,3,4] y) {
               t = Reshape(x, in) m = MatMul(t, w) y = Reshape(m, out) }""",
            ["MatMul", "Reshape"],
            weights(w=(8, 12)) | ints(**{"in": [-1, 24, 8], "out": [0, 24, 3, 4]}),
        ),
        # Heads become windows.
        (
            """g (float[n,24,2,4] x) => (float[a,4,6,12] y) {
               t = Reshape(x, in) m = MatMul(t, w) z = Reshape(m, out) y = Relu(z) }""",
            ["Reshape", "MatMul", "Relu"],
            weights(w=(8, 12)) | ints(**{"in": [0, 24, 8], "out": [-1, 4, 6, 12]}),
        ),
        # A stream of tokens between convolutions that want images.
        (
            """g (float[n,8,4,6] x) => (float[a,12,4,6] y) {
               r = Reshape(x, tokens) t = Transpose<perm=[0,2,1]>(r)
               l = LayerNormalization<axis=2>(t, s, b)
               m = MatMul(l, w) e = Erf(m) k = MatMul(e, v) u = Add(t, k)
               o = MatMul(u, w) h = Reshape(o, image) q = Transpose<perm=[0,3,1,2]>(h) y = Relu(q) }""",
            ["Transpose", "LayerNormalization", "MatMul", "Erf", "MatMul", "Add", "MatMul", "Transpose", "Relu"],
            NORM | ints(tokens=[0, 8, 24], image=[0, 4, 6, 12]),
        ),
        # Positions are constants that differ between rows.
        (
            """g (float[n,4,6,8] x) => (float[a,4,6,12] y) {
               t = Reshape(x, tokens) p = Add(t, grid) q = Mul(p, row) o = MatMul(q, w)
               z = Reshape(o, image) y = Relu(z) }""",
            ["Add", "Mul", "MatMul", "Relu"],
            weights(grid=(1, 24, 8), row=(24, 1), w=(8, 12)) | ints(tokens=[0, 24, 8], image=[0, 4, 6, 12]),
        ),
        # Softmax, sums, halves: all along the last axis, however that is said.
        (
            """g (float[n,4,6,8] x) => (float[a,4,6,4] y) {
               t = Reshape(x, tokens) p = Softmax<axis=2>(t) m = ReduceMean<axes=[2]>(p) d = Sub(p, m)
               a, c = Split<axis=2>(d) f = Concat<axis=2>(c, a, c) g1, g2, g3 = Split<axis=-1>(f)
               i = Sub(g1, g2) j = ReduceSum(g3, two) k = Mul(i, j) z = Reshape(k, image) y = Relu(z) }""",
            ["Softmax", "ReduceMean", "Sub", "Split", "Concat", "Split", "Sub", "ReduceSum", "Mul", "Relu"],
            ints(tokens=[0, 24, 8], image=[0, 4, 6, 4], two=[2]),
        ),
        # Fewer axes than a bias has: it loses those of size 1.
        (
            """g (float[n,24,8] x) => (float[a,24,12] y) {
               t = Reshape(x, image) p = Add(t, bias) o = MatMul(p, w) z = Reshape(o, tokens) y = Relu(z) }""",
            ["Add", "MatMul", "Relu"],
            weights(bias=(1, 1, 1, 8), w=(8, 12)) | ints(tokens=[0, 24, 12], image=[0, 4, 6, 8]),
        ),
        # What others need comes out as it was.
        (
            """g (float[n,4,6,8] x) => (float[a,4,6,12] y, float[c,24,12] z) {
               t = Reshape(x, tokens) a1 = Relu(t) b1 = MatMul(a1, w) c1 = Sigmoid(b1)
               h = Reshape(c1, image) y = Relu(h) g1 = Reshape(b1, image) i = Relu(g1) j = Reshape(i, back)
               k = Transpose<perm=[1,0,2]>(b1) l = Transpose<perm=[1,0,2]>(k) z = Add(l, j) }""",
            None,
            weights(w=(8, 12)) | ints(tokens=[0, 24, 8], image=[0, 4, 6, 12], back=[0, 24, 12]),
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("opset", [17, 21])
def test_rows_keep_their_axes(
    text: str, expected: list[str] | None, constants: dict[str, Any], opset: int
) -> None:
    if opset > 17:
        text = text.replace("ReduceMean<axes=[2]>(p)", "ReduceMean(p, two)")
        text = text.replace("Split<axis=-1>(f)", "Split<axis=-1, num_outputs=3>(f)")
        text = text.replace("Split<axis=2>(d)", "Split<axis=2, num_outputs=2>(d)")
    before = parse(text, opset, constants)
    after = optimized(before, "shapes,row_views,tidy")
    if expected is not None:
        assert operators(after) == expected
    assert len(after.graph.node) < len(before.graph.node)
    assert_same(before, after, samples(before, 1, n=1), samples(before, 2, n=3))


STAYS = {
    "an axis that counts rows is reduced": "s0 = ReduceMean<axes=[1]>(t) z = Add(t, s0) k = MatMul(z, w)",
    "rows meet others": "z = MatMul(t, d) k = MatMul(z, w)",
    "what is added is computed and differs between rows": "r = Reshape(e, rows) z = Add(t, r) k = MatMul(z, w)",
    "rows are put side by side": "z = Concat<axis=1>(t, t) q = MatMul(z, w) k = Slice(q, zero, half, one)",
    "rows are normalized over several axes": "z = LayerNormalization<axis=1>(t, wide) k = MatMul(z, w)",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=list(STAYS))
def test_what_sees_more_than_rows_stays(body: str) -> None:
    """The MatMul behind it may still be spared its Reshape; what comes before is as it was."""
    text = f"""g (float[n,4,6,8] x, float[8,8] d, float[24] e) => (float[a,4,6,12] y) {{
        t = Reshape(x, tokens) {body} h = Reshape(k, image) y = Relu(h) }}"""
    constants = weights(w=(8, 12), wide=(24, 8)) | ints(
        tokens=[0, 24, 8], image=[0, 4, 6, 12], rows=[1, 24, 1], zero=[0], half=[24], one=[1]
    )
    before = parse(text, 17, constants)
    after = optimized(before, "shapes,row_views")
    assert operators(after)[0] == "Reshape"
    assert_same(before, after, samples(before, 1, n=1), samples(before, 2, n=3))


def test_an_output_on_the_way_stays_as_it_is() -> None:
    text = """g (float[n,4,6,8] x) => (float[a,4,6,12] y, float[c,24,12] k) {
        t = Reshape(x, tokens) k = MatMul(t, w) h = Reshape(k, image) y = Relu(h) }"""
    check(text, "row_views", None, weights=weights(w=(8, 12)) | ints(tokens=[0, 24, 8], image=[0, 4, 6, 12]))


def test_attention_takes_heads_of_three_axes() -> None:
    text = """g (float[n,4,6,8] x) => (float[a,24,3,4] y) {
        t = Reshape(x, in) m = MatMul(t, w) y = Reshape(m, out) }"""
    constants = weights(w=(8, 12)) | ints(**{"in": [-1, 24, 8], "out": [0, 24, 3, 4]})
    check(text, "row_views", None, weights=constants, opset=23)


@pytest.mark.parametrize(("residual", "fires"), [("t", False), ("k", True)])
def test_a_sum_that_is_normalized_keeps_three_axes(residual: str, fires: bool) -> None:
    """ONNX Runtime fuses it: not to be given up for one Reshape or two."""
    text = f"""g (float[n,4,6,8] x) => (float[a,4,6,12] y) {{
        t = Reshape(x, tokens) k = Relu(t) u = Add({residual}, t) l = LayerNormalization(u, s, b)
        m = MatMul(l, w) {"z = MatMul(u, w) o = Add(m, z)" if fires else "o = Relu(m)"}
        h = Reshape(o, image) y = Relu(h) }}"""
    before = parse(text, 17, NORM | ints(tokens=[0, 24, 8], image=[0, 4, 6, 12]))
    after = optimized(before, "shapes,row_views")
    assert (operators(after).count("Reshape") < 2) == fires
    assert_same(before, after, samples(before, 1, n=1), samples(before, 2, n=3))


def test_symbolic_rows() -> None:
    """Sizes that a Reshape cannot be told are left where they are; one may be."""
    text = """g (float[n,m,8] x) => (float[a,b,3,4] y) {
        t = Reshape(x, flat) k = MatMul(t, w) y = Reshape(k, heads) }"""
    constants = weights(w=(8, 12)) | ints(flat=[-1, 8], heads=[-1, 1, 3, 4])
    check(text, "row_views", ["MatMul", "Reshape"], weights=constants)
