"""Rectifiers, shrinkage, sigmoids and softmax written out become their operators, and nothing else does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers import Array, check

NUMBERS = {
    "zero": 0.0, "one": 1.0, "two": 2.0, "half": 0.5, "tenth": 0.1, "mhalf": -0.5, "mone": -1.0, "mtenth": -0.1,
    "twenty": 20.0, "five": 5.0, "three": 3.0, "third": 1 / 3,
}  # fmt: skip
SLOPES = {"slopes": np.array([0.1, -0.2, 0.3, 2], np.float32)}


def spelled(
    body: str, expected: list[str] | None, opset: int = 17, dtype: str = "float", **options: float
) -> None:
    kind: Any = {"float": np.float32, "float16": np.float16, "double": np.float64, "int32": np.int32}[dtype]
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    used: dict[str, Array] = {k: np.array(v, kind) for k, v in NUMBERS.items() if k in words}
    used |= {k: v for k, v in SLOPES.items() if k in words}
    if "last" in words:
        used["last"] = np.array([-1], np.int64)
    if "both" in words:
        used["both"] = np.array([0, 1], np.int64)
    if "first" in words:
        used["first"] = np.array([0], np.int64)
    lines = "\n".join(part.strip() for part in body.split(";"))
    text = f"g ({dtype}[n, 4] x) => ({dtype}[n, 4] y) {{\n{lines}\n}}"
    check(text, "fuse", expected, opset=opset, weights=used, sizes=({"n": 1}, {"n": 3}, {"n": 40}), **options)


ABOVE = [
    "c = Greater(x, zero)",
    "c = GreaterOrEqual(x, zero)",
    "c = Less(zero, x)",
    "c = LessOrEqual(zero, x)",
]
BELOW = [
    "c = Less(x, zero)",
    "c = LessOrEqual(x, zero)",
    "c = Greater(zero, x)",
    "c = GreaterOrEqual(zero, x)",
]
OTHERS = [
    ("b = Mul(x, tenth)", "LeakyRelu"),
    ("b = Mul(tenth, x)", "LeakyRelu"),
    ("b = Mul(x, slopes)", "PRelu"),
    ("e = Exp(x); b = Sub(e, one)", "Elu"),
    ("e = Exp(x); d = Sub(e, one); b = Mul(d, two)", "Elu"),
]


@pytest.mark.parametrize(("other", "operator"), OTHERS)
@pytest.mark.parametrize("condition", [*ABOVE, *BELOW])
def test_rectifiers_by_where(condition: str, other: str, operator: str) -> None:
    chosen = "x, b" if condition in ABOVE else "b, x"
    spelled(f"{condition}; {other}; y = Where(c, {chosen})", [operator])


@pytest.mark.parametrize("condition", [*ABOVE, *BELOW])
def test_relu_by_where(condition: str) -> None:
    chosen = "x, zero" if condition in ABOVE else "zero, x"
    spelled(f"{condition}; y = Where(c, {chosen})", ["Relu"])


def test_relu_by_where_into_zeros_of_its_shape() -> None:
    body = "s = Shape(x); z = ConstantOfShape(s); c = Greater(x, zero); y = Where(c, x, z)"
    spelled(body, ["Relu"])


@pytest.mark.parametrize(
    ("body", "operator"),
    [
        ("c = Greater(x, half); y = Where(c, x, zero)", "ThresholdedRelu"),
        ("c = LessOrEqual(x, half); y = Where(c, zero, x)", "ThresholdedRelu"),
        ("c = Greater(x, zero); f = Cast<to=1>(c); y = Mul(x, f)", "Relu"),
        ("c = Less(half, x); f = Cast<to=1>(c); y = Mul(f, x)", "ThresholdedRelu"),
        ("m = Mul(x, tenth); y = Max(x, m)", "LeakyRelu"),
        ("r = Relu(x); n = Neg(x); q = Relu(n); m = Mul(q, tenth); y = Sub(r, m)", "LeakyRelu"),
        ("r = Relu(x); n = Neg(x); q = Relu(n); m = Mul(q, slopes); y = Sub(r, m)", "PRelu"),
        ("r = Relu(x); n = Neg(x); q = Relu(n); m = Mul(q, mtenth); y = Add(r, m)", "LeakyRelu"),
        ("r = Max(x, zero); q = Min(x, zero); m = Mul(q, tenth); y = Add(r, m)", "LeakyRelu"),
        ('r = Clip(x, zero); q = Clip(x, "", zero); m = Mul(slopes, q); y = Add(m, r)', "PRelu"),
    ],
)
def test_rectifiers(body: str, operator: str) -> None:
    spelled(body, [operator])


@pytest.mark.parametrize(
    "body",
    [
        "c = GreaterOrEqual(x, half); y = Where(c, x, zero)",  # x = ½ stays ½
        "c = Less(x, half); y = Where(c, zero, x)",
        "c = Greater(x, half); y = Where(c, x, one)",
        "c = Greater(x, half); b = Mul(x, tenth); y = Where(c, x, b)",  # not at 0
        "c = Greater(x, slopes); y = Where(c, x, zero)",
        "c = Greater(x, zero); b = Mul(x, tenth); y = Where(c, b, x)",  # the other way around
        "a = Abs(x); c = Greater(a, zero); b = Mul(x, tenth); y = Where(c, x, b)",
        "c = Greater(x, zero); e = Exp(x); b = Sub(e, two); y = Where(c, x, b)",
        "c = Greater(x, zero); a = Neg(x); e = Exp(a); b = Sub(e, one); y = Where(c, x, b)",
        "c = Greater(x, zero); f = Cast<to=1>(c); a = Abs(x); y = Mul(a, f)",
        "c = GreaterOrEqual(x, half); f = Cast<to=1>(c); y = Mul(x, f)",
        "m = Mul(x, two); y = Max(x, m)",
        "m = Mul(x, mtenth); y = Max(x, m)",
        "m = Mul(x, tenth); y = Min(x, m)",
        "m = Mul(x, slopes); y = Max(x, m)",
        "r = Relu(x); q = Relu(r); m = Mul(q, tenth); y = Sub(r, m)",
        "r = Relu(x); n = Neg(x); q = Relu(n); m = Mul(q, slopes); y = Add(r, m)",
        "r = Max(x, one); q = Min(x, zero); m = Mul(q, tenth); y = Add(r, m)",
    ],
)
def test_almost_rectifiers(body: str) -> None:
    spelled(body, None)


def test_rectifiers_of_other_types() -> None:
    body = "c = Greater(x, zero); b = Mul(x, half); y = Where(c, x, b)"
    spelled(body, ["LeakyRelu"], dtype="float16", rtol=1e-2)
    spelled(body, None, dtype="double")
    spelled("c = Greater(x, zero); b = Mul(x, two); y = Where(c, x, b)", None, dtype="int32")


def test_a_slope_that_makes_the_result_larger() -> None:
    text = "g (float[4] x) => (float[2, 4] y) {\nc = Greater(x, zero)\nb = Mul(x, s)\ny = Where(c, x, b)\n}"
    weights = {"zero": np.float32(0), "s": np.array([[0.1], [0.2]], np.float32)}
    check(text, "fuse", None, weights=weights)


HARD = [
    "a = Greater(x, half); b = Less(x, mhalf); c = Or(a, b); y = Where(c, x, zero)",
    "s = Abs(x); c = LessOrEqual(s, half); y = Where(c, zero, x)",
    "s = Abs(x); c = Greater(s, half); y = Where(c, x, zero)",
]
SOFT = [
    "a = Greater(x, half); d = Sub(x, half); p = Where(a, d, zero)"
    "; b = Less(x, mhalf); u = Add(x, half); q = Where(b, u, zero); y = Add(p, q)",
    "s = Abs(x); c = Greater(s, half); g = Sign(x); m = Mul(g, half); d = Sub(x, m); z = Mul(x, zero)"
    "; y = Where(c, d, z)",
    "g = Sign(x); s = Abs(x); d = Sub(s, half); r = Relu(d); y = Mul(g, r)",
    "g = Sign(x); s = Abs(x); d = Sub(s, half); r = Max(d, zero); y = Mul(r, g)",
]


@pytest.mark.parametrize("body", [*HARD, *SOFT])
def test_shrink(body: str) -> None:
    spelled(body, ["Shrink"])
    spelled(body, ["Shrink"], dtype="float16", rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    "body",
    [
        HARD[0].replace("Less(x, mhalf)", "Less(x, mone)"),
        HARD[0].replace("Less(x, mhalf)", "Less(x, half)"),
        HARD[0].replace("Or", "And"),
        HARD[0].replace("x, zero)", "x, one)"),
        HARD[1].replace("zero, x", "x, zero"),
        HARD[2].replace("Abs", "Neg"),
        SOFT[0].replace("Sub(x, half)", "Sub(x, one)"),
        SOFT[0].replace("Add(x, half)", "Sub(x, half)"),
        SOFT[0].replace("Where(b, u, zero)", "Where(b, u, one)"),
        SOFT[1].replace("Mul(g, half)", "Mul(g, one)"),
        SOFT[2].replace("Sign", "Neg"),
    ],
)
def test_almost_shrink(body: str) -> None:
    spelled(body, None)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("n = Neg(x); e = Exp(n); p = Add(e, one); y = Reciprocal(p)", ["Sigmoid"]),
        ("n = Mul(x, mone); e = Exp(n); p = Add(one, e); y = Div(one, p)", ["Sigmoid"]),
        ("n = Neg(x); e = Exp(n); p = Add(e, one); y = Div(x, p)", ["Sigmoid", "Mul"]),
        ("e = Exp(x); p = Add(e, one); y = Div(e, p)", ["Sigmoid"]),
        ("n = Neg(x); e = Exp(n); p = Add(e, one); y = Div(e, p)", ["Neg", "Sigmoid"]),
        ("h = Mul(x, half); t = Tanh(h); p = Add(t, one); y = Mul(p, half)", ["Sigmoid"]),
        ("h = Div(x, two); t = Tanh(h); p = Mul(t, half); y = Add(p, half)", ["Sigmoid"]),
        ("a = Abs(x); p = Add(one, a); y = Div(x, p)", ["Softsign"]),
    ],
)
def test_sigmoid(body: str, expected: list[str]) -> None:
    spelled(body, expected)


@pytest.mark.parametrize(
    "body",
    [
        "n = Neg(x); e = Exp(n); p = Add(e, two); y = Reciprocal(p)",
        "e = Exp(x); p = Add(e, one); y = Reciprocal(p)",
        "n = Neg(x); e = Exp(n); p = Sub(one, e); q = Add(p, three); y = Div(one, q)",
        "n = Neg(x); e = Exp(n); p = Add(e, one); y = Div(p, x)",
        "h = Mul(x, two); t = Tanh(h); p = Add(t, one); y = Mul(p, half)",
        "h = Mul(x, half); t = Tanh(h); p = Add(t, one); y = Mul(p, two)",
        "a = Abs(x); p = Add(two, a); y = Div(x, p)",
        "a = Abs(x); p = Add(one, a); y = Div(a, p)",
    ],
)
def test_almost_sigmoid(body: str) -> None:
    spelled(body, None)


def test_softsign_of_float64_stays() -> None:
    spelled("a = Abs(x); p = Add(one, a); y = Div(x, p)", None, dtype="double")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("c = Greater(x, twenty); s = Softplus(x); y = Where(c, x, s)", ["Softplus"]),
        ("c = LessOrEqual(x, twenty); s = Softplus(x); y = Where(c, s, x)", ["Softplus"]),
        (
            "m = Mul(x, two); c = Greater(m, twenty); s = Softplus(m); d = Div(s, two); y = Where(c, x, d)",
            ["Mul", "Softplus", "Div"],
        ),
        (
            "m = Mul(x, three); c = Greater(m, twenty); s = Softplus(m); d = Mul(s, third); y = Where(c, x, d)",
            ["Mul", "Softplus", "Mul"],
        ),
    ],
)
def test_guarded_softplus(body: str, expected: list[str]) -> None:
    spelled(body.replace("y = W", "z = W") + "; y = Relu(z)", [*expected, "Relu"])


@pytest.mark.parametrize(
    "body",
    [
        "c = Greater(x, five); s = Softplus(x); y = Where(c, x, s)",  # softplus(5) is 5.007
        "c = Less(x, twenty); s = Softplus(x); y = Where(c, x, s)",
        "m = Mul(x, two); c = Greater(m, twenty); s = Softplus(m); d = Div(s, three); y = Where(c, x, d)",
        "m = Mul(x, two); c = Greater(m, twenty); s = Softplus(m); d = Mul(s, two); y = Where(c, x, d)",
    ],
)
def test_almost_guarded_softplus(body: str) -> None:
    spelled(body, None)


def test_guarded_softplus_of_float64() -> None:
    spelled("c = Greater(x, twenty); s = Softplus(x); y = Where(c, x, s)", None, dtype="double")


SUM = "t = ReduceSum<keepdims=1>(e, last)"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (f"e = Exp(x); {SUM}; y = Div(e, t)", "Softmax"),
        (f"e = Exp(x); {SUM}; r = Reciprocal(t); y = Mul(r, e)", "Softmax"),
        (f"m = ReduceMax<axes=[-1]>(x); d = Sub(x, m); e = Exp(d); {SUM}; y = Div(e, t)", "Softmax"),
        (f"m = ReduceMax<axes=[1]>(x); d = Sub(x, m); e = Exp(d); {SUM}; y = Div(e, t)", "Softmax"),
        ("e = Exp(x); t = ReduceSum(e, first); y = Div(e, t)", "Softmax"),
        ("s = Softmax<axis=-1>(x); y = Log(s)", "LogSoftmax"),
        (f"e = Exp(x); {SUM}; l = Log(t); y = Sub(x, l)", "LogSoftmax"),
        ("l = ReduceLogSumExp<axes=[-1]>(x); y = Sub(x, l)", "LogSoftmax"),
        (
            f"m = ReduceMax<axes=[-1]>(x); d = Sub(x, m); e = Exp(d); {SUM}; l = Log(t); y = Sub(d, l)",
            "LogSoftmax",
        ),
    ],
)
def test_softmax(body: str, expected: str) -> None:
    spelled(body, [expected])


@pytest.mark.parametrize(
    "body",
    [
        "e = Exp(x); t = ReduceSum(e, both); y = Div(e, t)",  # over everything
        f"e = Exp(x); {SUM}; y = Div(x, t)",
        f"n = Neg(x); e = Exp(n); {SUM}; g = Exp(x); y = Div(g, t)",
        "m = ReduceMax<axes=[0]>(x); d = Sub(x, m); y = Softmax<axis=-1>(d)",
        "m = ReduceMin<axes=[-1]>(x); d = Sub(m, x); y = Softmax<axis=-1>(d)",
        f"e = Exp(x); {SUM}; l = Log(t); y = Sub(l, x)",
        "l = ReduceLogSumExp<axes=[-1]>(x); y = Add(x, l)",
    ],
)
def test_almost_softmax(body: str) -> None:
    spelled(body, None)


def test_softmax_before_its_opset() -> None:
    body = "e = Exp(x); t = ReduceSum<axes=[-1]>(e); y = Div(e, t)"
    spelled(body, None, opset=12)
    spelled(body.replace("<axes=[-1]>(e)", "(e, last)"), ["Softmax"], opset=13)


def test_softmax_that_is_used_twice() -> None:
    spelled("s = Softmax<axis=-1>(x); l = Log(s); y = Add(s, l)", None)
