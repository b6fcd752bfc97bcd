"""An Einsum with a constant makes axes of size 1 by itself."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import check

RANDOM = np.random.default_rng(2)
WEIGHT = {"w": RANDOM.standard_normal((4, 5, 6)).astype(np.float32)}


@pytest.mark.parametrize(
    ("equation", "axes"),
    [
        ("bhwc,hkc->bhwk", [4]),
        ("bhwc,wkc -> bhwk", [3]),
        ("bhwc,hkc->bhwk", [0, -1]),
        ("bhwc,hkc->kb", [1, 2]),
    ],
)
def test_units_go_into_the_weight(equation: str, axes: list[int]) -> None:
    weights = {name: w[:, :, :6] for name, w in WEIGHT.items()}
    text = f"""g (float[n,4,4,6] x) => (float y) {{ a = Constant<value_ints={axes}>()
        r = Einsum<equation="{equation}">(x, w) y = Unsqueeze(r, a) }}"""
    check(text, "shapes,einsum_units,dead", ["Einsum"], weights=weights)


def test_a_constant_on_the_left() -> None:
    text = """g (float[n,4,6] x) => (float y) { a = Constant<value_ints=[1]>()
        r = Einsum<equation="hkc,bhc->bk">(w, x) y = Unsqueeze(r, a) }"""
    check(text, "shapes,einsum_units,dead", ["Einsum"], weights=WEIGHT)


@pytest.mark.parametrize(
    "body",
    [
        # Nothing in it is constant; the result is needed as it is; the equation does not name its result.
        'z = Abs(x) r = Einsum<equation="bhwc,bhwc->bhw">(x, z) y = Unsqueeze(r, a)',
        'r = Einsum<equation="bhwc,hkc->bhwk">(x, w) s = Unsqueeze(r, a) y = Mul(s, r)',
        'r = Einsum<equation="bhwc,hkc">(x, w) y = Unsqueeze(r, a)',
        'r = Einsum<equation="...wc,hkc->...wk">(x, w) y = Unsqueeze(r, a)',
    ],
)
def test_others_stay(body: str) -> None:
    text = f"g (float[n,4,4,6] x) => (float y) {{ a = Constant<value_ints=[0]>() {body} }}"
    check(text, "shapes,einsum_units", None, weights=WEIGHT)
