"""Rotary embeddings as one operator: how halves and angles are spelled, and what is no rotation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers import Array, check, operators

SIZES = ({"n": 1, "m": 3}, {"n": 3, "m": 5})


def numbers(**values: Any) -> dict[str, Array]:
    return {name: np.array(value, np.int64) for name, value in values.items()}


GIVEN = numbers(start=[0], two=[2], four=[4], last=[3], one=[1])

SLICES = "a = Slice(x, start, two, last) b = Slice(x, two, four, last)"
SPLIT = "a, b = Split<axis=-1, num_outputs=2>(x)"
COMPUTED = """g (float[n, 2, m, 4] x, float[{batch}, m, 2] angle) => (float[n, 2, m, 4] y) {{
    c = Concat<axis=-1>(angle, angle)
    cc = Cos(c) cos = Unsqueeze(cc, one)
    ss = Sin(c) sin = Unsqueeze(ss, one)
    {halves}
    nb = Neg(b)
    r = Concat<axis=-1>(nb, a)
    p = {product}
    q = Mul(r, sin)
    y = Add({sum})
}}"""


@pytest.mark.parametrize("batch", ["1", "n"])
@pytest.mark.parametrize("halves", [SLICES, SPLIT])
@pytest.mark.parametrize(("product", "total"), [("Mul(x, cos)", "p, q"), ("Mul(cos, x)", "q, p")])
def test_every_spelling(batch: str, halves: str, product: str, total: str) -> None:
    text = COMPUTED.format(batch=batch, halves=halves, product=product, sum=total)
    after = check(text, "rotary,tidy", expected(batch), opset=23, weights=GIVEN, sizes=SIZES)
    assert not after.graph.node[-1].attribute


def expected(batch: str) -> list[str]:
    angles = ["Concat", "Cos", "Unsqueeze", "Sin", "Unsqueeze"]
    table = ["Slice", "Squeeze"]
    if batch == "1":
        return [*angles, *table, "Shape", "Concat", "Expand", *table, "Expand", "RotaryEmbedding"]
    return [*angles, *table, *table, "RotaryEmbedding"]


CONSTANT = """g (float[2, 2, 3, 4] x) => (float[2, 2, 3, 4] y, float[2, 2, 3, 4] z) {
    a = Slice(x, start, two, last) b = Slice(x, two, four, last) nb = Neg(b) r = Concat<axis=3>(nb, a)
    p = Mul(x, cos) q = Mul(r, sin) y = Add(p, q)
    w = Relu(x)
    c = Slice(w, start, two, last) d = Slice(w, two, four, last) nd = Neg(d) s = Concat<axis=3>(nd, c)
    t = Mul(w, cos) u = Mul(s, sin) z = Add(t, u)
}"""


def angles(*shape: int) -> dict[str, Array]:
    half = np.random.default_rng(0).standard_normal((*shape[:-1], shape[-1] // 2)).astype(np.float32)
    whole = np.concatenate([half, half], axis=-1)
    return GIVEN | {"cos": np.cos(whole), "sin": np.sin(whole)}


@pytest.mark.parametrize("shape", [(3, 4), (1, 3, 4), (1, 1, 3, 4), (2, 1, 3, 4)])
def test_constant_angles_serve_all_layers(shape: tuple[int, ...]) -> None:
    after = check(CONSTANT, "rotary,fold,tidy", ["RotaryEmbedding", "Relu", "RotaryEmbedding"], opset=23,
                  weights=angles(*shape), sizes=[{}])  # fmt: skip
    one, other = (list(n.input[1:]) for n in after.graph.node if n.op_type == "RotaryEmbedding")
    assert one == other


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("nb = Neg(b) r = Concat<axis=3>(nb, a)", "nb = Neg(a) r = Concat<axis=3>(nb, b)"),
        ("nb = Neg(b) r = Concat<axis=3>(nb, a)", "nb = Neg(b) r = Concat<axis=3>(a, nb)"),
        ("nb = Neg(b)", "nb = Abs(b)"),
        ("p = Mul(x, cos)", "v = Relu(x) p = Mul(v, cos)"),
        ("y = Add(p, q)", "y = Sub(p, q)"),
        ("float[2, 2, 3, 4] x", "float[2, 2, 3, 4] x, float[2, 2, 3, 4] r0"),
    ],
)
def test_what_is_no_rotation(old: str, new: str) -> None:
    text = (
        CONSTANT[: CONSTANT.index("    w = Relu")].replace(", float[2, 2, 3, 4] z", "").replace(old, new)
        + "}"
    )
    if "r0" in new:
        text = text.replace("q = Mul(r, sin)", "rr = Add(r, r0) q = Mul(rr, sin)")
    check(text, "rotary", None, opset=23, weights=angles(1, 1, 3, 4), sizes=[{}])


def test_angles_that_differ_between_halves_or_heads() -> None:
    text = CONSTANT[: CONSTANT.index("    w = Relu")].replace(", float[2, 2, 3, 4] z", "") + "}"
    given = angles(1, 1, 3, 4)
    for other in (given["cos"] * np.float32([1, 1, 1, 2]), np.concatenate([given["cos"]] * 2, axis=1)):
        check(text, "rotary", None, opset=23, weights=given | {"cos": other}, sizes=[{}])


def test_operator_sets_without_it_are_left_as_they_are() -> None:
    check(CONSTANT, "rotary", None, opset=22, weights=angles(1, 1, 3, 4), sizes=[{}])


HEADS = """g (float[n, 6, m, 4] x, float[n, m, 2] cos, float[n, m, 2] sin)
    => (float[n, 4, m, 4] q, float[n, 2, m, 4] k, float[1] size) {
    a, b = Split<axis=1>(x, parts)
    q = RotaryEmbedding(a, cos, sin)
    k = RotaryEmbedding(b, cos, sin)
    s = Shape<start=0, end=1>(a) size = Cast<to=1>(s)
}"""


def test_queries_and_keys_are_turned_together() -> None:
    """Though something else reads a part: it gets that part from a Split that stays."""
    turned = "q1 = Relu(q0) k1 = Relu(k0) q = Identity(q1) k = Identity(k1) s = Shape"
    text = HEADS.replace("q = R", "q0 = R").replace("k = R", "k0 = R").replace("s = Shape", turned)
    after = check(text, "split_late", [
        "Split", "RotaryEmbedding", "Relu", "Split", "Identity", "Identity", "Shape", "Cast",
    ], opset=23, weights=numbers(parts=[4, 2]), sizes=SIZES)  # fmt: skip
    assert operators(after).count("RotaryEmbedding") == 1


@pytest.mark.parametrize("other", ["cos, cos", "sin, cos"])
def test_other_angles_stay_apart(other: str) -> None:
    text = HEADS.replace("RotaryEmbedding(b, cos, sin)", f"RotaryEmbedding(b, {other})")
    check(text, "split_late", None, opset=23, weights=numbers(parts=[4, 2]), sizes=SIZES)
