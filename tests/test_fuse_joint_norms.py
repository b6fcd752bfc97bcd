"""Normalizations of queries and keys at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import Array, assert_same, check, operators, optimized, parse, samples

RANDOM = np.random.default_rng(0)
SMALL = ({"n": 1, "m": 3}, {"n": 3, "m": 4})
FLAT, HEADS, TURNED = "flat", "heads", "turned"


def number(*values: int) -> Array:
    return np.array(values, np.int64)


def random(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def norm(name: str, x: str, opset: int, power: str = "Pow") -> list[str]:
    """The lines of an RMS normalization of `x`, with the scale `w_name`."""
    if opset >= 23:
        return [f"{name} = RMSNormalization<axis=-1, epsilon=0.001>({x}, w_{name})"]
    axes = "<keepdims=1>({0}_p, last)" if opset >= 18 else "<axes=[-1], keepdims=1>({0}_p)"
    return [
        f"{name}_p = Pow({x}, two)" if power == "Pow" else f"{name}_p = Mul({x}, {x})",
        f"{name}_m = ReduceMean{axes.format(name)}",
        f"{name}_a = Add({name}_m, eps)",
        f"{name}_r = Sqrt({name}_a)",
        f"{name}_d = Div({x}, {name}_r)",
        f"{name} = Mul({name}_d, w_{name})",
    ]


CONSTANTS = {"two": np.array(2, np.float32), "eps": np.array(1e-3, np.float32), "last": number(-1)}


@st.composite
def norms(draw: st.DrawFn) -> tuple[str, dict[str, Array], int, int]:
    """Parts of a Split with normalizations: text, weights, opset, and how many Muls are left."""
    opset = draw(st.sampled_from([13, 17, 18, 23]))
    size, form = draw(st.integers(2, 4)), draw(st.sampled_from([FLAT, HEADS, TURNED]))
    counts = draw(st.lists(st.integers(1, 3), min_size=2, max_size=3))
    others = draw(st.tuples(st.booleans(), st.booleans()))
    equal = draw(st.booleans())
    power = draw(st.sampled_from(["Pow", "Mul"]))
    heads = [*([2] if others[0] else []), *counts, *([1] if others[1] else [])]
    names = [f"p{i}" for i in range(len(heads))]
    normed = names[others[0] : len(names) - others[1]]
    given_weights = dict(CONSTANTS)
    axis = {FLAT: 2, HEADS: 2, TURNED: 1}[form]
    given_weights["z"] = number(*(h * size if form == FLAT else h for h in heads))
    total = sum(heads)
    shape = {
        FLAT: f"n, m, {total * size}",
        HEADS: f"n, m, {total}, {size}",
        TURNED: f"n, {total}, m, {size}",
    }[form]
    lines = [f"{', '.join(names)} = Split<axis={axis}>(x, z)"]
    results = []
    common = random(size)
    for name, count in zip(names, heads, strict=True):
        part = name
        if name in normed:
            if form == FLAT:
                given_weights[f"s_{name}"] = number(0, 0, count, size)
                if draw(st.booleans()):
                    lines.append(f"h_{name} = Reshape({name}, s_{name})")
                else:
                    lines.append(f"v_{name} = Reshape({name}, s_{name})")
                    lines.append(f"h_{name} = Transpose<perm=[0, 2, 1, 3]>(v_{name})")
                part = f"h_{name}"
            given_weights[f"w_n{name}"] = common if equal else random(size)
            lines += norm(f"n{name}", part, opset, power)
            part = f"n{name}"
        lines.append(f"y_{name} = Tanh({part})")
        rank = 3 if form == FLAT and name not in normed else 4
        results.append(f"float[{', '.join(f'd{name}{i}' for i in range(rank))}] y_{name}")
    text = f"g (float[{shape}] x) => ({', '.join(results)}) {{\n" + "\n".join(lines) + "\n}"
    muls = (0 if equal else 1) + (0 if opset >= 23 else 1 + (power == "Mul"))
    return text, given_weights, opset, muls


@settings(max_examples=60, deadline=None)
@given(norms())
def test_norms_side_by_side(case: tuple[str, dict[str, Array], int, int]) -> None:
    text, given_weights, opset, muls = case
    before = parse(text, opset, given_weights)
    after = optimized(before, "joint_norms")
    left = operators(after)
    assert left.count("ReduceMean") + left.count("RMSNormalization") == 1
    assert left.count("Mul") == muls
    assert left.count("Reshape") <= 1
    assert_same(before, after, *(samples(before, i, **sizes) for i, sizes in enumerate(SMALL)))


PAIR = "\n".join(
    [
        "g (float[n, m, 5, 3] x) => (float[n, m, 3, 3] y, float[n, m, 2, 3] z) {",
        "q, k = Split<axis=2>(x, s)",
        *norm("a", "q", 17),
        *norm("b", "k", 17),
        "y = Tanh(a)",
        "z = Tanh(b)",
        "}",
    ]
)
GIVEN = CONSTANTS | {
    "s": number(3, 2),
    "w_a": random(3),
    "w_b": random(3),
    "other": np.array(1e-2, np.float32),
    "three": np.array(3, np.float32),
    "wide": random(2, 3),
}


def test_a_row_for_each_head() -> None:
    after = check(PAIR, "joint_norms,scale_chain", [
        "Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Mul", "Split", "Tanh", "Tanh",
    ], weights=GIVEN, sizes=SMALL)  # fmt: skip
    rows = [tuple(tensor.dims) for tensor in after.graph.initializer]
    assert (5, 3) in rows
    assert (3,) in rows


@pytest.mark.parametrize(
    ("old", "new", "made_too"),
    [
        ("b_a = Add(b_m, eps)", "b_a = Add(b_m, other)", ""),
        ("b_p = Pow(k, two)", "b_p = Pow(k, three)", ""),
        ("b_p = Pow(k, two)", "b_p = Mul(k, k)", ""),
        ("b_m = ReduceMean<axes=[-1], keepdims=1>(b_p)", "b_m = ReduceMean<axes=[2], keepdims=1>(b_p)", ""),
        ("b_d = Div(k, b_r)", "b_d = Div(b_r, k)", ""),
        ("b = Mul(b_d, w_b)", "b = Mul(b_d, wide)", ""),
        ("b = Mul(b_d, w_b)", "v = Relu(w_b) b = Mul(b_d, v)", ""),
        ("z = Tanh(b)", "z = Tanh(b) u = Relu(k)", "float[n, m, 2, 3] u"),
        ("z = Tanh(b)", "z = Tanh(b) u = Relu(b_d)", "float[n, m, 2, 3] u"),
    ],
    ids=["epsilon", "cube", "spelling", "axis", "inverse", "heads", "computed", "used", "unscaled"],
)
def test_norms_that_differ(old: str, new: str, made_too: str) -> None:
    text = PAIR.replace(old, new)
    assert text != PAIR
    if made_too:
        text = text.replace("=> (", f"=> ({made_too}, ")
    check(text, "joint_norms", None, weights=GIVEN, sizes=SMALL, rtol=1e-3)


@pytest.mark.parametrize("factor", [0.25, 1.0])
def test_attention_with_normalized_heads(factor: float) -> None:
    """Two groups of two heads: the constants with a row for each head follow their heads."""
    text = "\n".join(
        [
            "g (float[n, m, 5] x) => (float[n, 2, 2, m, 4] y) {",
            "p = MatMul(x, w)",
            "q, k, v = Split<axis=2>(p, s)",
            "qh = Reshape(q, qs)",
            "kh = Reshape(k, ks)",
            "vh = Reshape(v, ks)",
            *norm("a", "qh", 17),
            *norm("b", "kh", 17),
            *("qt = Transpose<perm=[0, 2, 1, 3]>(a)", "kt = Transpose<perm=[0, 2, 1, 3]>(b)"),
            "vt = Transpose<perm=[0, 2, 1, 3]>(vh)",
            "qf = Mul(qt, factor)",
            *("q5 = Reshape(qf, gs)", "k5 = Unsqueeze(kt, ax)", "v5 = Unsqueeze(vt, ax)"),
            "kx = Transpose<perm=[0, 1, 2, 4, 3]>(k5)",
            *("sc = MatMul(q5, kx)", "at = Softmax<axis=-1>(sc)", "y = MatMul(at, v5)"),
            "}",
        ]
    )
    given_weights = CONSTANTS | {
        "w": random(5, 32),
        "s": number(16, 8, 8),
        "qs": number(0, 0, 4, 4),
        "ks": number(0, 0, 2, 4),
        "gs": number(0, 2, 2, -1, 4),
        "ax": number(2),
        "w_a": random(4),
        "w_b": random(4),
        "factor": np.array(factor, np.float32),
    }
    check(text, "shapes,fold_scale,joint_norms,split_late,grouped_projection", [
        "MatMul", "Reshape", "Transpose", "Split", "Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Mul",
        "Split", "Transpose", "MatMul", "Softmax", "MatMul",
    ], weights=given_weights, sizes=SMALL, atol=1e-4)  # fmt: skip
