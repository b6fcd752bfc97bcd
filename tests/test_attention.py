"""Attention as one operator: every spelling, several sizes, and what is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import Array, assert_same, check, operators, optimized, parse, run, samples
from onnxlathe.api import Result, optimize
from onnxlathe.model import load
from onnxlathe.pipeline.plan import UP_TO_ATTENTION

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
SIZES = ({"n": 1, "m": 3}, {"n": 3, "m": 5})
BOTH = "attention(float32=true)"


def numbers(**values: Any) -> dict[str, Array]:
    return {name: np.array(value, np.int64) for name, value in values.items()}


MASKS = {
    "": "",
    "float[m, m] mask": "[queries, keys]",
    "float[1, 1, m, m] mask": "the same for all",
    "float[n, 1, m, m] mask": "one for each of the batch",
    "float[n, 4, m, m] mask": "one for each head",
    "float[n, 1, 1, m] mask": "of keys",
    "float[m] mask": "of keys, for all",
}


@st.composite
def spellings(draw: st.DrawFn) -> tuple[str, dict[str, Array]]:
    """Softmax(scale·q·kᵀ + mask)·v, its parts spelled and placed in one of the ways that exporters have."""
    mask = draw(st.sampled_from(list(MASKS)))
    size = draw(st.sampled_from([2, 4]))
    head = draw(st.sampled_from([2, 3]))
    given_weights: dict[str, Array] = {}
    lines = []
    q, k = "q", "kt"
    if draw(st.booleans()):
        keys = f"float[n, 4, m, {size}] k"
        lines.append("kt = Transpose<perm=[0, 1, 3, 2]>(k)")
    else:
        keys = f"float[n, m, 4, {size}] k"
        lines.append("kt = Transpose<perm=[0, 2, 3, 1]>(k)")
    for name in draw(st.sampled_from([[], ["q"], ["kt"], ["q", "kt"]])):
        given_weights["root"] = np.array(draw(st.sampled_from([0.5, 0.7])), np.float32)
        lines.append(f"{name}s = Mul({name}, root)")
        q, k = (f"{name}s", k) if name == "q" else (q, f"{name}s")
    lines.append(f"s0 = MatMul({q}, {k})")
    scores = "s0"
    if draw(st.booleans()):
        given_weights["factor"] = np.array([draw(st.sampled_from([1.5, 2.0]))], np.float32)
        lines.append(f"s1 = {draw(st.sampled_from(['Mul', 'Div']))}(s0, factor)")
        scores = "s1"
    if mask:
        a, b = (scores, "mask") if draw(st.booleans()) else ("mask", scores)
        lines.append(f"s2 = Add({a}, {b})")
        scores = "s2"
    lines += [f"p = Softmax<axis={draw(st.sampled_from([-1, 3]))}>({scores})", "y = MatMul(p, v)"]
    inputs = ", ".join(filter(None, [f"float[n, 4, m, {size}] q", keys, f"float[n, 4, m, {head}] v", mask]))
    return f"g ({inputs}) => (float[n, 4, m, {head}] y) {{ {' '.join(lines)} }}", given_weights


@settings(max_examples=120, deadline=None)
@given(spellings())
def test_every_spelling_is_one_operator(case: tuple[str, dict[str, Array]]) -> None:
    text, weights = case
    before = parse(text, 23, weights)
    after = optimized(before, BOTH)
    assert operators(after).count("Attention") == 1
    assert not {"Softmax", "MatMul", "Mul", "Div"} & set(operators(after))
    assert_same(before, after, *(samples(before, i, **s) for i, s in enumerate(SIZES)))


PLAIN = """g (float[n, 4, m, 2] q, float[n, 4, m, 2] k, float[n, 4, m, 2] v, float[n, 1, m, m] mask)
    => (float[n, 4, m, 2] y) {
    kt = Transpose<perm=[0, 1, 3, 2]>(k)
    s = MatMul(q, kt)
    a = Add(s, mask)
    p = Softmax<axis=-1>(a)
    y = MatMul(p, v)
}"""


def test_attention_has_no_factor_of_its_own() -> None:
    after = check(PLAIN, BOTH, ["Attention"], opset=23)
    assert {a.name: a.f for a in after.graph.node[0].attribute}["scale"] == 1.0


def test_float32_is_left_as_it_is() -> None:
    check(PLAIN, "attention", None, opset=23)


def test_operator_sets_without_it_are_left_as_they_are() -> None:
    check(PLAIN, BOTH, None, opset=22)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Softmax<axis=-1>", "Softmax<axis=2>"),
        ("a = Add(s, mask)", "a = Sub(s, mask)"),
        ("a = Add(s, mask)", "b = Add(s, mask) a = Add(b, mask)"),
        ("a = Add(s, mask)", "b = Add(s, mask) a = Mul(b, half)"),
        ("a = Add(s, mask)", "b = Tanh(s) a = Add(b, mask)"),
        ("s = MatMul(q, kt)", "s0 = MatMul(q, kt) s = Mul(s0, mask)"),
        ("float[n, 1, m, m] mask", "float[n, 1, m, 1] mask"),
        ("=> (float[n, 4, m, 2] y)", "=> (float[n, 4, m, 2] y, float[n, 4, m, m] p)"),
        ("=> (float[n, 4, m, 2] y)", "=> (float[n, 4, m, 2] y, float[n, 4, m, m] s)"),
    ],
)
def test_what_is_no_attention(old: str, new: str) -> None:
    check(PLAIN.replace(old, new), BOTH, None, opset=23, weights={"half": np.array(0.5, np.float32)})


GROUPED = """g (float[n, 4, 2, m, 3] q, float[n, 4, 1, m, 3] k, float[n, 4, 1, m, 3] v, float[n, 1, m, m] mask)
    => (float[n, 4, 2, m, 3] y) {
    kt = Transpose<perm=[0, 1, 2, 4, 3]>(k)
    s = MatMul(q, kt)
    u = Unsqueeze(mask, one)
    a = Add(s, u)
    p = Softmax<axis=-1>(a)
    y = MatMul(p, v)
}"""


def test_groups_of_heads_share_keys() -> None:
    weights = numbers(one=[1])
    after = check(GROUPED, f"{BOTH},tidy", [
        "Squeeze", "Squeeze", "Reshape", "Attention", "Reshape",
    ], opset=23, weights=weights)  # fmt: skip
    shapes = {v.name: len(v.type.tensor_type.shape.dim) for v in after.graph.value_info}
    attention = next(n for n in after.graph.node if n.op_type == "Attention")
    assert [shapes[name] for name in attention.input[:3]] == [4, 4, 4]


@pytest.mark.parametrize("old", ["float[n, 1, m, m] mask", "float[n, 4, 1, m, 3] v"])
def test_groups_that_differ_within(old: str) -> None:
    new = old.replace("n, 1", "n, 2").replace("4, 1, m, 3", "4, 2, m, 3")
    check(GROUPED.replace(old, new), BOTH, None, opset=23, weights=numbers(one=[1]), sizes=[{"n": 2, "m": 3}])


REPEATED = """g (float[n, 4, m, 2] q, float[n, 2, m, 2] k, float[n, 2, m, 2] v) => (float[n, 4, m, 2] y) {
    k1 = Unsqueeze(k, two) k2 = Expand(k1, e) k3 = Reshape(k2, s)
    v1 = Unsqueeze(v, two) v2 = Expand(v1, e) v3 = Reshape(v2, s)
    y = Attention(q, k3, v3)
}"""
REPEATS = numbers(two=[2], e=[1, 1, 2, 1, 1], s=[0, 4, -1, 2])


def test_repeated_keys_are_shared() -> None:
    check(REPEATED, "attention_layout,tidy", ["Attention"], opset=23, weights=REPEATS)


def test_only_keys_are_repeated() -> None:
    text = REPEATED.replace("v3 = Reshape(v2, s)", "v3 = Concat<axis=1>(v, v)")
    check(text, "attention_layout", None, opset=23, weights=REPEATS)


FLAT = """g (float[n, m, 12] x) => (float[n, m, 8] y) {
    c = MatMul(x, w)
    r = Reshape(c, s)
    t = Transpose<perm=[0, 2, 1, 3]>(r)
    q, k, v = Split<axis=1>(t, parts)
    a = Attention(q, k, v)
    b = Transpose<perm=[0, 2, 1, 3]>(a)
    y = Reshape(b, joined)
}"""
FLAT_WEIGHTS = {
    "w": np.random.default_rng(0).standard_normal((12, 16)).astype(np.float32),
    **numbers(s=[0, 0, 8, 2], parts=[4, 2, 2], joined=[0, 0, 8]),
}


def test_heads_that_the_operator_takes_apart() -> None:
    after = check(
        FLAT, "attention_layout,tidy", ["MatMul", "Split", "Attention"], opset=23, weights=FLAT_WEIGHTS
    )
    heads = {a.name: a.i for a in after.graph.node[-1].attribute}
    assert (heads["q_num_heads"], heads["kv_num_heads"]) == (4, 2)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("b = Transpose<perm=[0, 2, 1, 3]>(a)", "b = Transpose<perm=[0, 1, 2, 3]>(a)"),
        ("t = Transpose<perm=[0, 2, 1, 3]>(r)", "t0 = Transpose<perm=[0, 2, 1, 3]>(r) t = Relu(t0)"),
    ],
)
def test_heads_in_another_order(old: str, new: str) -> None:
    weights = FLAT_WEIGHTS | (numbers(joined=[0, -1, 8]) if "b = " in old else {})
    text = FLAT.replace(old, new).replace("float[n, m, 8] y", "float[n, d, 8] y")
    check(text, "attention_layout", None, opset=23, weights=weights)


TRANSFORMERS = [
    "bert_ts14", "bert_dyn18", "bert_dyn23", "gpt2_ts17", "gpt2_dyn20_static", "llama_ts17", "llama_dyn20",
    "llama_dyn23", "vit_ts17", "vit_dyn18", "vit_dyn23", "whisperenc_dyn20", "whisperenc_ts17",
]  # fmt: skip


def _attention(fixture: str, pipeline: str) -> Result:
    result = optimize(load(FIXTURES / f"{fixture}.onnx"), pipeline)
    assert result.verdict is not None
    assert result.verdict.status == "equal"
    return result


@pytest.mark.parametrize("fixture", TRANSFORMERS)
def test_transformers_of_both_exporters(fixture: str) -> None:
    """Two layers each, whoever exported them; in float16 after `precision`, and in float32 where asked."""
    half = _attention(fixture, f"{UP_TO_ATTENTION},precision(type=fp16),attention,fold,fuse,tidy")
    whole = _attention(fixture, f"{UP_TO_ATTENTION},{BOTH},fuse,tidy")
    for result in (half, whole):
        kinds = result.after.operators
        assert kinds["Attention"] == 2
        assert "Softmax" not in kinds


def test_a_mask_of_float32_stays_finite_in_float16() -> None:
    """-3.4e38 is -∞ in float16, and a row of -∞ would be NaN."""
    text = PLAIN.replace("float[n, 4, m, 2]", "float16[n, 4, m, 2]").replace(
        "a = Add(s, mask)", "c = Cast<to=1>(s) a = Add(c, mask)"
    ).replace("p = Softmax<axis=-1>(a)", "w = Softmax<axis=-1>(a) p = Cast<to=10>(w)")  # fmt: skip
    before = parse(text, 23)
    after = optimized(before, "attention")
    assert operators(after) == ["Max", "Cast", "Attention"]
    precision = {a.name: a.i for a in after.graph.node[-1].attribute}["softmax_precision"]
    assert precision == onnx.TensorProto.FLOAT
    for seed, sizes in enumerate(SIZES):
        feeds = samples(before, seed, **sizes)
        lowest = np.finfo(np.float32).min
        feeds["mask"] = np.where(feeds["mask"] > 1, lowest, 0).astype(np.float32)
        feeds["mask"][..., 0] = 0
        assert_same(before, after, feeds, rtol=2e-2, atol=2e-2)
        feeds["mask"][0, 0, 0] = lowest
        assert all(np.isfinite(output).all() for output in run(after, feeds))


@pytest.mark.parametrize(("size", "left"), [(2, ["Attention"]), (3, None)])
def test_values_of_another_size_in_float16(size: int, left: list[str] | None) -> None:
    """TensorRT has no kernel for them, as LeViT has them; in float32 ONNX Runtime is asked, which has."""
    text = PLAIN.replace("float[n, 4, m, 2] v", f"float[n, 4, m, {size}] v")
    text = text.replace("(float[n, 4, m, 2] y)", f"(float[n, 4, m, {size}] y)")
    check(text, BOTH, ["Attention"], opset=23)
    half = text.replace("float[", "float16[")
    check(half, "attention", left, opset=23, rtol=2e-2, atol=2e-2)
