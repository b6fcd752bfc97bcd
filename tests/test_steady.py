"""What is the same for the whole batch is computed now, and only that."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import assert_same, check, optimized, parse, samples

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
        body += f"v{index} = {text} "
        value = f"v{index}"
        if kind in ("sum0", "sum1"):
            body += f"w{index} = Sin({value}) "
            value = f"w{index}"
    before = parse(graph(f"{body} y = Add(x, {value})"), 17, WEIGHTS)
    after = optimized(before, "shapes,steady")
    assert_same(before, after, *(samples(before, n=n) for n in (1, 2, 5)))
