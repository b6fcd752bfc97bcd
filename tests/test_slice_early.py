"""Slices of what is computed from a constant or a Concat; what is cut only here and there stays."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import Array, check

PASS = "shapes,fixpoint(slice_early,tidy)"
SIZES = ({"n": 1, "m": 3}, {"n": 3, "m": 5})
FACTOR = np.array([1.0, 0.1, -2.0, 0.5], np.float32)


def vectors(**values: int) -> dict[str, Array]:
    return {name: np.array([value], np.int64) for name, value in values.items()}


GIVEN = vectors(zero=0, one=1, two=2, three=3, four=4, last=-1, first=-2, far=2**63 - 1) | {"c": FACTOR}
ANGLES = """g (float[n, m, 1] x) => (float[n, m, 2] y, float[n, m, 2] z) {
    a = Mul(x, c)
    p = Cos(a) q = Sin(a)
    u = Unsqueeze(p, one) v = Unsqueeze(q, one)
    k = Slice(u, zero, two, three) l = Slice(v, zero, two, last)
    y = Squeeze(k, one) z = Squeeze(l, one)
}"""


def test_angles_that_are_there_twice() -> None:
    check(ANGLES, PASS, ["Mul", "Cos", "Sin"], weights=GIVEN, sizes=SIZES)


@pytest.mark.parametrize("operator", ["Add", "Sub", "Div", "Pow"])
@pytest.mark.parametrize("operands", ["x, c", "c, x"])
def test_every_operator_on_a_constant(operator: str, operands: str) -> None:
    text = f"""g (float[n, m, 1] x) => (float[n, m, 2] y) {{
        a = {operator}({operands}) b = Sigmoid(a) y = Slice(b, one, three, last) }}"""
    weights = GIVEN | {"c": np.array([1, 2, 3, 2], np.float32)}
    check(text, PASS, [operator, "Sigmoid"], weights=weights, sizes=SIZES)


@pytest.mark.parametrize(
    ("start", "end", "step"), [("first", "far", "one"), ("zero", "four", "two"), ("one", "last", "one")]
)
def test_bounds(start: str, end: str, step: str) -> None:
    text = f"""g (float[n, m, 1] x) => (float[n, m, k] y) {{
        a = Mul(x, c) b = Exp(a) y = Slice(b, {start}, {end}, two, {step}) }}"""
    check(text, PASS, ["Mul", "Exp"], weights=GIVEN, sizes=SIZES)


@pytest.mark.parametrize(
    ("start", "end", "fires"),
    [
        ("zero", "two", True),
        ("two", "far", True),
        ("first", "far", True),
        ("one", "three", False),
        ("zero", "three", False),
    ],
)
def test_one_part_of_a_concat(start: str, end: str, fires: bool) -> None:
    text = f"""g (float[n, m, 2] x, float[n, m, 2] w) => (float[n, 1, m, k] y) {{
        a = Concat<axis=-1>(x, w) b = Tanh(a) d = Mul(b, two_) u = Unsqueeze(d, one)
        y = Slice(u, {start}, {end}, last) }}"""
    weights = GIVEN | {"two_": np.array(2, np.float32)}
    check(text, PASS, ["Tanh", "Mul", "Unsqueeze"] if fires else None, weights=weights, sizes=SIZES)


def test_past_a_view_that_goes_away() -> None:
    text = """g (float[n, m, 4] x) => (float[n, m, 2] y) {
        a = Abs(x) u = Unsqueeze(a, one) b = Slice(u, zero, two, last) y = Squeeze(b, one) }"""
    check(text, PASS, ["Abs", "Slice"], weights=GIVEN, sizes=SIZES)


@pytest.mark.parametrize(
    "text",
    [
        # the cosine is needed whole as well
        """g (float[n, m, 1] x) => (float[n, m, 2] y, float[n, m, 4] z) {
            a = Mul(x, c) z = Cos(a) y = Slice(z, zero, two, last) }""",
        # cut, but into other parts
        """g (float[n, m, 1] x) => (float[n, m, 2] y, float[n, m, 1] z) {
            a = Mul(x, c) p = Cos(a) q = Sin(a) y = Slice(p, zero, two, last) z = Slice(q, zero, one, last) }""",
        # x varies along the axis
        """g (float[n, m, 4] x) => (float[n, m, 2] y) {
            a = Mul(x, c) b = Cos(a) y = Slice(b, zero, two, last) }""",
        # another axis is cut, of whose entries none is known
        """g (float[n, m, 1] x) => (float[n, k, 4] y) {
            a = Mul(x, c) b = Cos(a) y = Slice(b, zero, two, one) }""",
        # the axis that was added is cut
        """g (float[n, m, 4] x) => (float[n, k, m, 4] y) {
            u = Unsqueeze(x, one) b = Abs(u) d = Slice(b, zero, zero, one) y = Relu(d) }""",
        # no elementwise operator
        """g (float[n, m, 1] x) => (float[n, m, 2] y) {
            a = Mul(x, c) b = Softmax(a) y = Slice(b, zero, two, last) }""",
        # something between the views
        """g (float[n, m, 4] x) => (float[n, m, 2] y) {
            u = Unsqueeze(x, one) a = Abs(u) b = Slice(a, zero, two, last) y = Squeeze(b, one) }""",
        # a view that stays
        """g (float[n, m, 4] x) => (float[n, 1, m, 2] y) {
            u = Unsqueeze(x, one) y = Slice(u, zero, two, last) }""",
    ],
)
def test_what_stays(text: str) -> None:
    check(text, PASS, None, weights=GIVEN, sizes=SIZES)


@pytest.mark.parametrize("outer", [True, False])
def test_a_branch_cuts_what_the_graph_computes(outer: bool) -> None:
    """Work is not moved into a branch."""
    inner = "y_then = Slice(b, zero, two, last)"
    cut = "z = Slice(b, zero, two, last)" if outer else "z = Relu(x)"
    text = f"""g (float[n, m, 1] x, bool p) => (float[n, m, k] y, float[n, m, l] z) {{
        a = Mul(x, c) b = Cos(a) {cut}
        y = If(p) <then_branch = t () => (float[n, m, k] y_then) {{ {inner} }},
                   else_branch = e () => (float[n, m, k] y_else) {{ y_else = Slice(b, one, three, last) }}> }}"""
    check(text, "shapes,slice_early", None, weights=GIVEN, sizes=SIZES)
