"""An If whose branches come to the same is not an If, and any other is."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, operators, optimized, parse, samples


def choice(then: str, other: str, outputs: int = 1) -> onnx.ModelProto:
    def results(letter: str) -> str:
        return ", ".join(f"float[n, 4] {letter}{k}" for k in range(outputs))

    names = ", ".join(f"z{k}" for k in range(outputs))
    ends = " ".join(f"y{k} = Neg(z{k})" for k in range(outputs))
    return parse(
        f"""
        g (bool c, float[n, 4] x, float[n, 4] v) => ({results("y")}) {{
            r = Relu(x)
            {names} = If (c) <
                then_branch = t () => ({results("a")}) {{ {then} }},
                else_branch = e () => ({results("b")}) {{ {other} }}
            >
            {ends}
        }}"""
    )


def both(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    for flag in (True, False):
        feeds = [samples(before, seed, n=n) | {"c": np.array(flag)} for seed, n in enumerate((1, 3))]
        assert_same(before, after, *feeds)


TWO = "k = Constant<value_float=2.0>()"


@pytest.mark.parametrize(
    ("then", "other", "left"),
    [
        (f"{TWO} a0 = Mul(r, k)", "q = Constant<value_float=2.0>() b0 = Mul(q, r)", ["Mul"]),
        ("p = Tanh(r) q = Exp(v) a0 = Add(p, q)", "s = Exp(v) t = Tanh(r) b0 = Add(t, s)", ["Tanh", "Exp", "Add"]),
        ("p = LeakyRelu(r) a0 = Abs(p)", "s = LeakyRelu<alpha=0.01>(r) b0 = Abs(s)", ["LeakyRelu", "Abs"]),
        ("a0 = Identity(r)", "b0 = Identity(r)", []),
    ],
)  # fmt: skip
def test_equal_branches(then: str, other: str, left: list[str]) -> None:
    before = choice(then, other)
    after = optimized(before, "shapes,fold,tidy,tidy")
    assert operators(after) == ["Relu", *left, "Neg"]
    both(before, after)


def test_equal_branches_of_several_results() -> None:
    before = choice("a0 = Tanh(r) a1 = Exp(a0)", "b0 = Tanh(r) b1 = Exp(b0)", 2)
    after = optimized(before, "shapes,fold,tidy")
    assert "If" not in operators(after)
    both(before, after)


@pytest.mark.parametrize(
    ("then", "other"),
    [
        (f"{TWO} a0 = Mul(r, k)", "q = Constant<value_float=3.0>() b0 = Mul(q, r)"),
        (f"{TWO} a0 = Sub(r, k)", f"{TWO.replace('k =', 'q =')} b0 = Sub(q, r)"),
        ("a0 = Tanh(r)", "b0 = Tanh(v)"),
        ("a0 = LeakyRelu(r)", "b0 = LeakyRelu<alpha=0.1>(r)"),
        ("a0 = Tanh(r)", "b0 = Exp(r)"),
        ("a0 = Identity(r)", "b0 = Identity(v)"),
    ],
)
def test_branches_that_differ(then: str, other: str) -> None:
    before = choice(then, other)
    after = optimized(before, "shapes,fold,equal_branches")
    assert "If" in operators(after)
    both(before, after)


def test_results_in_another_order() -> None:
    before = choice("a0 = Tanh(r) a1 = Exp(r)", "b1 = Tanh(r) b0 = Exp(r)", 2)
    after = optimized(before, "shapes,fold,tidy")
    assert "If" in operators(after)
    both(before, after)


def test_random_branches_are_never_equal() -> None:
    before = choice("p = RandomNormalLike(r) a0 = Mul(p, r)", "q = RandomNormalLike(r) b0 = Mul(q, r)")
    assert "If" in operators(optimized(before, "shapes,fold,tidy"))


def test_names_of_the_branch_that_others_have() -> None:
    """Branches side by side may use the same names; outside of them nothing may."""
    text = """
    g (bool c, float[n, 4] x) => (float[n, 4] y) {
        p = If (c) <
            then_branch = t () => (float[n, 4] a) { q = Tanh(x) a = Exp(q) },
            else_branch = e () => (float[n, 4] b) { q = Tanh(x) b = Exp(q) }
        >
        u = If (c) <
            then_branch = t () => (float[n, 4] a) { q = Sin(p) a = Cos(q) },
            else_branch = e () => (float[n, 4] b) { q = Sin(p) b = Cos(q) }
        >
        y = Neg(u)
    }"""
    before = parse(text)
    after = optimized(before, "shapes,fold,tidy")
    assert operators(after) == ["Tanh", "Exp", "Sin", "Cos", "Neg"]
    both(before, after)


def test_a_constant_condition_in_a_function() -> None:
    """The body of a function has no initializers: the constants of the branch become nodes."""
    before = parse(
        """
        <ir_version: 10, opset_import: ["" : 17, "local" : 1]>
        g (float[n] x) => (float[n] y) { y = local.half(x) }
        <domain: "local", opset_import: ["" : 17]>
        half (a) => (b) {
            c = Constant<value_int=1>() d = Cast<to=9>(c)
            b = If (d) <
                then_branch = t () => (p) { k = Constant<value_float=4.0>() p = Div(a, k) },
                else_branch = e () => (q) { q = Neg(a) }
            >
        }
        """
    )
    after = optimized(before, "shapes,fold,tidy")
    assert [n.op_type for n in after.functions[0].node] == ["Constant", "Div"]
    assert_same(before, after, samples(before, n=1), samples(before, 1, n=3))
