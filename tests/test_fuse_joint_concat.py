"""What is done to all inputs of a Concat alike is done once behind it, where the numbers are the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers import assert_same, check, operators, optimized, parse, samples

RANDOM = np.random.default_rng(4)


def weights(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return {name: RANDOM.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


CONSTANTS = weights(grid=(1, 5, 2), grids=(1, 3, 2), row=(2,), one=(), two=(), wide=(1, 5, 1), w=(6, 6)) | {
    "parts": np.array([2, 2, 2]),
    "others": np.array([2, 1, 3]),
    "same": np.array(2, np.float32),
    "equal": np.array(2, np.float32),
}
HEAD = "g (float[n,5,6] x, float[n,3,6] z) => (float y)"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # Numbers that are the same, and numbers that are not.
        ("a = Mul(x, same) b = Mul(z, equal) c = Tanh(a) d = Tanh(b) y = Concat<axis=1>(c, d)",
         ["Concat", "Mul", "Tanh"]),
        ("a = Mul(x, one) b = Mul(z, two) c = Exp(a) d = Exp(b) y = Concat<axis=-2>(c, d)",
         ["Concat", "Mul", "Exp"]),
        # A value with itself: each part is joined once.
        ("s = Sigmoid(x) t = Sigmoid(z) a = Mul(x, s) b = Mul(z, t) y = Concat<axis=1>(a, b)",
         ["Concat", "Sigmoid", "Mul"]),
        # Boxes of several scales: grids, a vector for all, parts that go different ways.
        ("s = Sigmoid(x) a, b, c = Split<axis=2>(s, parts) d = Mul(a, one) e = Add(d, grid) f = Mul(b, row)"
         " p = Concat<axis=2>(e, f, c)"
         " t = Sigmoid(z) h, i, j = Split<axis=-1>(t, parts) k = Mul(h, two) l = Add(k, grids) m = Mul(i, row)"
         " q = Concat<axis=-1>(l, m, j) y = Concat<axis=1>(p, q)",
         ["Concat", "Sigmoid", "Split", "Mul", "Add", "Mul", "Concat"]),
        ("a = Softmax<axis=2>(x) b = Softmax<axis=-1>(z) c = Sqrt(a) d = Sqrt(b) y = Concat<axis=1>(c, d)",
         ["Concat", "Softmax", "Sqrt"]),
        ("a = Softmax<axis=2>(x) b = Softmax<axis=2>(z) y = Concat<axis=1>(a, b)", ["Concat", "Softmax"]),
    ],
)  # fmt: skip
def test_once_behind_the_concat(body: str, expected: list[str]) -> None:
    before = parse(f"{HEAD} {{ {body} }}", 17, CONSTANTS)
    after = optimized(before, "shapes,joint_concat,dead")
    assert operators(after) == expected
    assert_same(before, after, samples(before, 1, n=1), samples(before, 2, n=3))


@pytest.mark.parametrize(
    "body",
    [
        # Other operators, other attributes, other parts.
        "a = Relu(x) b = Tanh(z) y = Concat<axis=1>(a, b)",
        "a = Elu<alpha=0.5>(x) b = Elu(z) y = Concat<axis=1>(a, b)",
        "a, c, d = Split<axis=2>(x, parts) b, e, f = Split<axis=2>(z, others) p = Concat<axis=2>(d, c, a)"
        " q = Concat<axis=2>(f, e, b) y = Concat<axis=1>(p, q)",
        # Along the axis itself there is more to see than a part.
        "a = Softmax<axis=1>(x) b = Softmax<axis=1>(z) y = Concat<axis=1>(a, b)",
        "a = Add(x, wide) b = Add(z, x2) y = Concat<axis=1>(a, b)",
        # What comes before is needed as well.
        "a = Relu(x) b = Relu(z) c = Concat<axis=1>(a, b) d = Neg(b) y = Concat<axis=1>(c, d)",
        # A product is fused with what follows it.
        "m = MatMul(x, w) o = MatMul(z, w) a = Relu(m) b = Relu(o) y = Concat<axis=1>(a, b)",
        # One of them is a constant, or the same.
        "a = Relu(x) y = Concat<axis=1>(a, wide6)",
        "a = Relu(x) y = Concat<axis=1>(a, a)",
    ],
)
def test_others_stay(body: str) -> None:
    constants = CONSTANTS | weights(x2=(1, 3, 1), wide6=(1, 2, 6))
    if "x2" in body:
        body = body.replace("Add(z, x2)", "Mul(z, x2)")
    if "wide6" in body:
        constants["wide6"] = np.ones((2, 2, 6), np.float32)
        check("g (float[2,5,6] x) => (float y) { " + body + " }", "joint_concat", None, weights=constants)
    else:
        check(f"{HEAD} {{ {body} }}", "joint_concat", None, weights=constants)


def test_sizes_that_are_not_known_stay() -> None:
    text = (
        "g (float[n,m,6] x, float[n,3,6] z) => (float y) { a = Relu(x) b = Relu(z) y = Concat<axis=1>(a, b) }"
    )
    check(text, "joint_concat", None)


def test_a_detector_decodes_all_scales_at_once() -> None:
    """From images to rows at the end of each scale: the rows come first, so that they can be joined."""

    def scale(x: str, k: str, size: str) -> str:
        return f"""r{k} = Reshape({x}, cut{k}) t{k} = Transpose<perm=[0,1,3,4,2]>(r{k}) s{k} = Sigmoid(t{k})
            a{k}, b{k} = Split<axis=4>(s{k}, halves) c{k} = Mul(a{k}, two) d{k} = Add(c{k}, grid{k})
            e{k} = Mul(d{k}, stride{k}) f{k} = Pow(b{k}, two) h{k} = Mul(f{k}, anchor{k})
            i{k} = Concat<axis=4>(e{k}, h{k}) o{k} = Reshape(i{k}, {size})"""

    text = f"""g (float[n,12,4,6] x, float[n,12,2,3] z) => (float[n,60,6] y) {{
        {scale("x", "0", "rows")} {scale("z", "1", "rows")} y = Concat<axis=1>(o0, o1) }}"""
    constants = weights(
        grid0=(1, 1, 4, 6, 2), grid1=(1, 1, 2, 3, 2), anchor0=(1, 2, 1, 1, 4), anchor1=(1, 2, 1, 1, 4)
    )
    constants |= {
        "two": np.array(2, np.float32), "stride0": np.array(8, np.float32), "stride1": np.array(16, np.float32),
        "halves": np.array([2, 4]), "rows": np.array([0, -1, 6]),
        "cut0": np.array([0, 2, 6, 4, 6]), "cut1": np.array([0, 2, 6, 2, 3]),
    }  # fmt: skip
    check(
        text, "fuse",
        [*["Reshape", "Transpose", "Reshape"] * 2, "Concat", "Sigmoid", "Split", "Mul", "Add", "Pow", "Mul", "Concat"],
        weights=constants, sizes=({"n": 1}, {"n": 3}),
    )  # fmt: skip
