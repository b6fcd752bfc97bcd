"""Activations written out become their operator, in every spelling, and nothing else does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from helpers import assert_same, check, operators, optimized, parse, samples

CONSTANTS = {
    "half": 0.5, "one": 1.0, "two": 2.0, "three": 3.0, "six": 6.0, "zero": 0.0, "sixth": 1 / 6,
    "r2": 2**0.5, "ir2": 0.5**0.5, "r2pi": (2 / np.pi) ** 0.5, "c": 0.044715, "n": 1.702,
}  # fmt: skip

# What each spelling computes, innermost first; x is the input and y the result.
ERF = ["a = Div(x, r2); e = Erf(a)", "a = Mul(ir2, x); e = Erf(a)"]
TANH = [
    "p = Pow(x, three); q = Mul(p, c); s = Add(x, q); t = Mul(s, r2pi); e = Tanh(t)",
    "x2 = Mul(x, x); p = Mul(x2, x); q = Mul(c, p); s = Add(q, x); t = Mul(r2pi, s); e = Tanh(t)",
    "x2 = Mul(x, x); p = Mul(x, x2); q = Mul(c, p); s = Add(q, x); t = Mul(r2pi, s); e = Tanh(t)",
    "x2 = Mul(x, x); xc = Mul(x, c); p = Mul(xc, x2); s = Add(x, p); t = Mul(s, r2pi); e = Tanh(t)",
    "x2 = Pow(x, two); q = Mul(x2, c); u = Add(one, q); v = Mul(x, r2pi); t = Mul(v, u); e = Tanh(t)",
    "x2 = Mul(x, x); q = Mul(x2, c); u = Add(one, q); v = Mul(r2pi, u); t = Mul(x, v); e = Tanh(t)",
]
GATES = [
    "g = Add(e, one); m = Mul(x, g); y = Mul(m, half)",
    "g = Add(one, e); m = Mul(half, x); y = Mul(m, g)",
    "g = Add(e, one); m = Div(x, two); y = Mul(g, m)",
    "g = Add(e, one); m = Mul(half, g); y = Mul(x, m)",
    "g = Add(e, one); m = Mul(g, x); y = Div(m, two)",
    "h = Mul(e, half); g = Add(h, half); y = Mul(g, x)",
]
RELU6 = [
    "k = Add(x, three); r = Clip(k, zero, six)",
    "k = Add(three, x); q = Relu(k); r = Min(q, six)",
    "k = Add(x, three); q = Max(zero, k); r = Min(six, q)",
    "k = Add(x, three); q = Min(k, six); r = Max(q, zero)",
    'k = Add(x, three); q = Relu(k); r = Clip(q, "", six)',
]
HARD = [
    "m = Mul(x, r); y = Div(m, six)",
    "m = Mul(r, x); y = Mul(m, sixth)",
    "m = Div(r, six); y = Mul(x, m)",
    "m = Mul(sixth, x); y = Mul(m, r)",
]


def model(body: str, dtype: str = "float", shape: str = "n, 4") -> str:
    lines = "\n".join(part.strip() for part in body.split(";"))
    kind = f"{dtype}[{shape}]" if shape else dtype
    return f"g ({kind} x) => ({kind} y) {{\n{lines}\n}}"


def constants(dtype: type = np.float32) -> dict[str, np.ndarray]:
    return {name: np.array(value, dtype) for name, value in CONSTANTS.items()}


def fused(body: str, expected: list[str] | None, opset: int, dtype: str = "float", **options: float) -> None:
    kind = {"float": np.float32, "float16": np.float16, "double": np.float64}[dtype]
    used = {
        k: v
        for k, v in constants(kind).items()
        if k in body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    }
    check(model(body, dtype), "fuse", expected, opset=opset, weights=used, **options)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("inner", ERF)
def test_gelu(inner: str, gate: str) -> None:
    fused(f"{inner}; {gate}", ["Gelu"], 20)


@pytest.mark.parametrize("inner", TANH)
@pytest.mark.parametrize("gate", GATES[:3])
def test_gelu_tanh(inner: str, gate: str) -> None:
    after = fused_model(f"{inner}; {gate}", 20)
    (node,) = after.graph.node
    assert node.attribute[0].s == b"tanh"


def fused_model(body: str, opset: int) -> object:
    before = parse(model(body), opset, constants())
    after = optimized(before, "fuse")
    assert_same(before, after, samples(before, n=3))
    return after


def test_gelu_of_half_precision() -> None:
    fused(f"{ERF[0]}; {GATES[0]}", ["Gelu"], 20, "float16", rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize(
    "body",
    [
        "a = Div(x, three); e = Erf(a); " + GATES[0],  # another constant
        "a = Mul(x, r2); e = Erf(a); " + GATES[0],  # the constant on the wrong side
        "a = Div(r2, x); e = Erf(a); " + GATES[0],
        f"{ERF[0]}; g = Sub(one, e); m = Mul(x, g); y = Mul(m, half)",
        f"{ERF[0]}; g = Add(e, half); m = Mul(x, g); y = Mul(m, half)",
        f"{ERF[0]}; g = Add(e, one); m = Mul(a, g); y = Mul(m, half)",  # not the same x
        f"{ERF[0]}; g = Add(e, one); m = Mul(x, g); y = Mul(m, one)",
        f"{ERF[0]}; g = Add(e, one); m = Mul(x, g); y = Div(half, m)",
        TANH[0].replace("Pow(x, three)", "Pow(x, two)") + "; " + GATES[0],
        TANH[0].replace("Mul(p, c)", "Mul(p, half)") + "; " + GATES[0],
        TANH[0].replace("Add(x, q)", "Sub(x, q)") + "; " + GATES[0],
        TANH[0].replace("r2pi", "ir2") + "; " + GATES[0],
    ],
)
def test_almost_gelu(body: str) -> None:
    fused(body, None, 20)


def test_gelu_whose_inside_is_used_elsewhere() -> None:
    body = model(f"{ERF[0]}; {GATES[0]}").replace("(float[n, 4] y)", "(float[n, 4] y, float[n, 4] e)")
    check(body, "fuse", None, opset=20, weights=constants())


@pytest.mark.parametrize("inner", [ERF[0], TANH[0]])
@pytest.mark.parametrize("first", ["m = Mul(x, half)", "m = Div(x, two)"])
def test_gelu_whose_half_is_used_elsewhere(inner: str, first: str) -> None:
    fused(f"{inner}; g = Add(e, one); {first}; z = Mul(m, g); y = Add(z, m)", [first[4:7], "Gelu", "Add"], 20)


def test_two_gelus_that_share_what_they_begin_with() -> None:
    exact = "a = Div(x, r2); e = Erf(a); g = Add(e, one); h = Mul(x, half); u = Mul(h, g)"
    rough = TANH[1].replace("e = ", "f = ") + "; k = Add(f, one); v = Mul(h, k)"
    fused(f"{exact}; {rough}; y = Sub(u, v)", ["Gelu", "Gelu", "Sub"], 20)
    fused(f"{exact}; {rough}; w = Sub(u, v); y = Add(w, x2)", ["Gelu", "Mul", "Gelu", "Sub", "Add"], 20)


def test_mish_whose_softplus_is_used_elsewhere() -> None:
    fused("l = Softplus(x); t = Tanh(l); m = Mul(t, x); y = Add(m, l)", ["Softplus", "Mish", "Add"], 18)
    fused("e = Exp(x); p = Add(e, one); l = Log(p); y = Mul(l, e)", ["Exp", "Softplus", "Mul"], 13)
    fused("l = Softplus(x); t = Tanh(l); m = Mul(t, x); y = Add(m, t)", None, 18)


def test_gelu_before_its_opset() -> None:
    fused(f"{ERF[0]}; {GATES[0]}", None, 19)


def test_gelu_through_a_constant_that_adds_a_dimension() -> None:
    text = f"g (float[n, 4] x) => (float[1, n, 4] y) {{ {ERF[0]} {GATES[0]} }}".replace(";", " ")
    check(text, "fuse", None, opset=20, weights=constants() | {"half": np.full((1, 1, 1), 0.5, np.float32)})


@pytest.mark.parametrize("outer", HARD)
@pytest.mark.parametrize("inner", RELU6)
def test_hardswish(inner: str, outer: str) -> None:
    fused(f"{inner}; {outer}", ["HardSwish"], 14)


@pytest.mark.parametrize("inner", RELU6)
def test_hardsigmoid(inner: str) -> None:
    fused(f"{inner}; y = Div(r, six)", ["HardSigmoid"], 13)


def test_hardsigmoid_of_any_slope() -> None:
    fused("l = Mul(x, n); k = Add(l, half); y = Clip(k, zero, one)", ["HardSigmoid"], 13)
    fused("l = Div(x, six); k = Add(half, l); y = Clip(k, zero, one)", ["HardSigmoid"], 13)


@pytest.mark.parametrize(
    "body",
    [
        "k = Add(x, three); r = Clip(k, zero, three); m = Mul(x, r); y = Div(m, six)",
        "k = Add(x, two); r = Clip(k, zero, six); m = Mul(x, r); y = Div(m, six)",
        "k = Sub(x, three); r = Clip(k, zero, six); m = Mul(x, r); y = Div(m, six)",
        "k = Add(x, three); r = Clip(k, zero, six); m = Mul(x, r); y = Div(m, three)",
        "k = Add(x, three); r = Clip(k, zero, six); m = Mul(x, r); y = Div(six, m)",
        "k = Add(x, three); r = Clip(k, zero); m = Mul(x, r); y = Div(m, six)",
        "k = Add(x, three); r = Clip(k, zero, six); m = Mul(k, r); y = Div(m, six)",
    ],
)
def test_almost_hardswish(body: str) -> None:
    fused(body, None, 14)


def test_integers_have_no_hardswish() -> None:
    text = "g (int32[n, 4] x) => (int32[n, 4] y) { k = Add(x, three) r = Clip(k, zero, six) m = Mul(x, r) y = Div(m, six) }"
    check(text, "fuse", None, opset=14, weights=constants(np.int32))


@pytest.mark.parametrize("alpha", [1.0, 0.2])
def test_hardsigmoid_of_another_slope_is_no_hardswish(alpha: float) -> None:
    fused(f"s = HardSigmoid<alpha={alpha}, beta=0.5>(x); y = Mul(x, s)", None, 14)


def test_swish() -> None:
    fused("s = Sigmoid(x); y = Mul(s, x)", ["Swish"], 24)
    fused("s = Sigmoid(x); y = Mul(s, x)", None, 23)
    fused("a = Mul(n, x); s = Sigmoid(a); y = Mul(x, s)", ["Swish"], 24)
    fused("a = Mul(n, x); s = Sigmoid(a); y = Mul(a, s)", ["Mul", "Swish"], 24)
    fused("a = Add(n, x); s = Sigmoid(a); y = Mul(x, s)", None, 24)


def test_swish_of_a_vector_of_slopes() -> None:
    text = model("a = Mul(v, x); s = Sigmoid(a); y = Mul(x, s)")
    check(text, "fuse", None, opset=24, weights={"v": np.arange(4, dtype=np.float32)})


def test_softplus_and_mish() -> None:
    fused("e = Exp(x); p = Add(e, one); y = Log(p)", ["Softplus"], 13)
    fused("e = Exp(x); p = Add(one, e); l = Log(p); t = Tanh(l); y = Mul(x, t)", ["Mish"], 18)
    fused("l = Softplus(x); t = Tanh(l); y = Mul(t, x)", ["Mish"], 18)
    fused("l = Softplus(x); t = Tanh(l); y = Mul(t, x)", None, 17)
    fused("e = Exp(x); p = Add(e, two); y = Log(p)", None, 18)
    fused("e = Exp(x); p = Sub(e, one); y = Log(p)", None, 18, atol=1e-5)
    fused("l = Softplus(x); t = Sigmoid(l); y = Mul(t, x)", None, 18)


@settings(max_examples=25, deadline=None)
@given(
    x=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=0, max_dims=4, max_side=4),
        elements=st.floats(-20, 20, width=32),
    ),
    inner=st.sampled_from(ERF + TANH),
    gate=st.sampled_from(GATES),
)
def test_gelu_of_any_shape(x: np.ndarray, inner: str, gate: str) -> None:
    before = parse(model(f"{inner}; {gate}", shape=", ".join(map(str, x.shape))), 20, constants())
    after = optimized(before, "fuse")
    assert operators(after) == ["Gelu"]
    assert_same(before, after, {"x": x})


BRANCH = """
g (bool b, float[n, 4] x) => (float[n, 4] y) {
  y = If (b) <
    then_branch = t () => (float[n, 4] ty) { ta = Div(x, r2) te = Erf(ta) tg = Add(te, one) tm = Mul(x, tg) ty = Mul(tm, half) },
    else_branch = e () => (float[n, 4] ey) { es = Softplus(x) et = Tanh(es) ey = Mul(x, et) }
  >
}
"""


def test_inside_branches() -> None:
    before = parse(BRANCH, 20, constants())
    after = optimized(before, "fuse")
    branches = [a.g for a in after.graph.node[0].attribute]
    assert sorted(n.op_type for b in branches for n in b.node) == ["Gelu", "Mish"]
    for b in (True, False):
        assert_same(before, after, samples(before, n=2) | {"b": np.array(b)})


LOOP = """
g (int64 trips, float[n, 4] x) => (float[n, 4] y) {
  go = Constant<value = bool {1}>()
  y = Loop (trips, go, x) <
    body = step (int64 i, bool c, float[n, 4] v) => (bool c1, float[n, 4] w) {
      c1 = Identity(c) s = Softplus(v) t = Tanh(s) w = Mul(v, t)
    }
  >
}
"""


def test_inside_a_loop() -> None:
    before = parse(LOOP, 20)
    after = optimized(before, "fuse")
    body = next(a.g for n in after.graph.node for a in n.attribute if a.name == "body")
    assert [n.op_type for n in body.node] == ["Identity", "Mish"]
    assert_same(before, after, samples(before, n=2) | {"trips": np.array(3)})


FUNCTION = """
<ir_version: 10, opset_import: ["" : 20, "local" : 1]>
g (float[n, 4] x) => (float[n, 4] y) { t = local.act(x) y = local.act(t) }
<domain: "local", opset_import: ["" : 20]>
act (v) => (w) {
  r2 = Constant<value_float=1.4142135>() one = Constant<value_float=1.0>() half = Constant<value_float=0.5>()
  a = Div(v, r2) e = Erf(a) g = Add(e, one) m = Mul(v, g) w = Mul(m, half)
}
"""


def test_inside_a_function() -> None:
    before = parse(FUNCTION)
    after = optimized(before, "fuse")
    assert [n.op_type for n in after.functions[0].node if n.op_type != "Constant"] == ["Gelu"]
    assert_same(before, after, samples(before, n=2))
