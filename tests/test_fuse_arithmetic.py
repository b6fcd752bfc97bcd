"""Arithmetic that comes to less than is written: divisions of indices, terms that cancel."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import check

SMALL = ({"n": 1, "m": 3}, {"n": 3, "m": 4})

# --- Divisions that round down ------------------------------------------------------------------------

DIVIDED = """
g (float[n, 12] x, int64[n, 4] k) => (int64[n, 4] y) {{
    v, i0 = TopK(x, four)
    i = {index}
    l = Less(i, zero)
    {condition}
    r = Mod(i, {by})
    b = Cast<to=9>(r)
    d = And(c, b)
    e = Cast<to=7>(d)
    q = Div(i, {by})
    y = Sub(q, e)
}}
"""
NUMBERS = {name: np.array(value) for name, value in {"zero": 0, "five": 5, "minus": -5, "one": 1}.items()}
NUMBERS |= {"four": np.array([4]), "true": np.array(True), "false": np.array(False)}
PLAIN = "c = Identity(l)"


@pytest.mark.parametrize(
    ("index", "condition", "by", "fires"),
    [
        ("Identity(i0)", PLAIN, "five", True),
        ("Identity(i0)", "c = Equal(l, true)", "five", True),
        ("Identity(i0)", "c = Xor(l, false)", "five", True),
        ("Mod(k, five)", PLAIN, "five", True),  # of the sign of the divisor
        ("Abs(k)", PLAIN, "five", True),
        ("Add(i0, one)", PLAIN, "five", True),
        ("Mul(i0, five)", PLAIN, "five", True),
        ("Max(k, zero)", PLAIN, "five", True),
        ("Identity(k)", PLAIN, "five", False),  # anything
        ("Mod<fmod=1>(k, five)", PLAIN, "five", False),  # of the sign of k
        ("Mod(i0, minus)", PLAIN, "five", False),
        ("Sub(i0, five)", PLAIN, "five", False),
        ("Neg(i0)", PLAIN, "five", False),
        ("Min(k, five)", PLAIN, "five", False),
        ("Identity(i0)", "c = Equal(l, false)", "five", False),
        ("Identity(i0)", "c = Xor(l, true)", "minus", False),  # a negative divisor
    ],
)
def test_indices_are_divided(index: str, condition: str, by: str, fires: bool) -> None:
    text = DIVIDED.format(index=index, condition=condition, by=by)
    made = ["TopK", index.split("(")[0].split("<")[0], "Div"]
    check(text, "floor_division", made if fires else None, weights=NUMBERS, sizes=SMALL)


# --- Terms that cancel -----------------------------------------------------------------------------------

BOXES = """
g (float[n, 2, 5] l, float[n, 2, 5] r{more}) => (float[n, 2, 5] y, float[n, 2, 5] z) {{
    a = Sub({point}, l)
    b = Add({right})
    s = {total}
    y = Mul(s, half)
    z = {difference}
}}
"""
POINT = {"p": np.arange(10, dtype=np.float32).reshape(1, 2, 5), "half": np.array(0.5, np.float32)}


@pytest.mark.parametrize("right", ["p, r", "r, p"])
@pytest.mark.parametrize("total", ["Add(a, b)", "Add(b, a)"])
def test_centers_and_sizes(right: str, total: str) -> None:
    text = BOXES.format(more="", point="p", right=right, total=total, difference="Sub(b, a)")
    check(text, "cancelled_terms", ["Sub", "Add", "Mul", "Add"], weights=POINT)


@pytest.mark.parametrize(
    ("more", "point", "right", "total", "difference", "expected"),
    [
        ("", "p", "p, r", "Add(a, b)", "Sub(a, b)", None),  # the other way round
        ("", "p", "p, r", "Add(a, b)", "Relu(b)", None),  # b is needed
        ("", "p", "q, r", "Add(a, b)", "Sub(b, a)", None),  # another point
        (", float[n, 2, 5] x", "x", "x, r", "Add(a, b)", "Sub(b, a)", ["Sub", "Add", "Add", "Mul", "Add"]),
        ("", "wide", "wide, r", "Add(a, b)", "Sub(b, a)", None),  # the point has more rows than the distances
    ],
)
def test_terms_that_stay(
    more: str, point: str, right: str, total: str, difference: str, expected: list[str] | None
) -> None:
    text = BOXES.format(more=more, point=point, right=right, total=total, difference=difference)
    given = POINT | {"q": POINT["p"] + 1, "wide": np.ones((1, 2, 5), np.float32)}
    if point == "wide":
        text = text.replace("float[n, 2, 5] l, float[n, 2, 5] r", "float[n, 1, 5] l, float[n, 1, 5] r")
    check(text, "cancelled_terms", expected, weights=given)
