"""What the parts of attention become: one projection, one Reshape and Transpose, no factor, no copies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import Array, assert_same, check, operators, optimized, parse, registry, samples
from onnxlathe.model import Model
from onnxlathe.pipeline import Runner, plan

RANDOM = np.random.default_rng(0)


def weights(**shapes: Sequence[int]) -> dict[str, Array]:
    return {name: RANDOM.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def numbers(**values: Any) -> dict[str, Array]:
    return {name: np.array(value, np.int64) for name, value in values.items()}


SMALL = ({"n": 1, "m": 3}, {"n": 3, "m": 4})

# --- One product for several -------------------------------------------------------------------------


@st.composite
def projections(draw: st.DrawFn) -> tuple[str, dict[str, Array], int, int, int]:
    """Several projections of one value: text, weights, how many there are, biases, opset."""
    count = draw(st.integers(2, 4))
    k = draw(st.integers(1, 4))
    rank = draw(st.integers(2, 4))
    opset = draw(st.sampled_from([11, 13, 17, 20]))
    shape = ", ".join([*["n", "m", "2", "3"][: rank - 1], str(k)])
    given_weights: dict[str, Array] = {}
    lines, results, biases = [], [], 0
    for i in range(count):
        width = draw(st.integers(1, 5))
        given_weights |= weights(**{f"w{i}": (k, width)})
        lines.append(f"p{i} = MatMul(x, w{i})")
        y = f"p{i}"
        if draw(st.booleans()):
            biases += 1
            bias = draw(st.sampled_from([(width,), (1, width), (1,), ()] if rank > 1 else [(width,)]))
            given_weights |= weights(**{f"b{i}": bias})
            lines.append(f"a{i} = Add(b{i}, {y})" if draw(st.booleans()) else f"a{i} = Add({y}, b{i})")
            y = f"a{i}"
        lines.append(f"y{i} = {'Relu' if i % 2 else 'Tanh'}({y})")
        results.append(f"y{i}")
    outs = ", ".join(
        f"float[{', '.join('d' + str(10 * i + j) for j in range(rank))}] {r}" for i, r in enumerate(results)
    )
    return (
        f"g (float[{shape}] x) => ({outs}) {{\n" + "\n".join(lines) + "\n}",
        given_weights,
        count,
        biases,
        opset,
    )


@settings(max_examples=60, deadline=None)
@given(projections())
def test_projections_of_one_value(case: tuple[str, dict[str, Array], int, int, int]) -> None:
    text, given_weights, count, biases, opset = case
    before = parse(text, opset, given_weights)
    after = optimized(before, "merge_projections")
    left = operators(after)
    pays = count + biases > 2 + (biases > 0)
    assert left.count("MatMul") == (1 if pays else count)
    assert left.count("Split") == (1 if pays else 0)
    assert len(left) < len(operators(before)) or not pays
    assert_same(before, after, samples(before, 0, n=2, m=3), samples(before, 1, n=1, m=1))


HEADS = """
g (float[n, m, 8] x) => (float[n, 2, m, 4] q, float[n, 2, 4, m] k, float[n, 2, m, 4] v) {
    q0 = MatMul(x, wq)
    q1 = Add(q0, bq)
    q2 = Reshape(q1, s)
    q = Transpose<perm=[0, 2, 1, 3]>(q2)
    k0 = MatMul(x, wk)
    k2 = Reshape(k0, s)
    k = Transpose<perm=[0, 2, 3, 1]>(k2)
    v0 = MatMul(x, wv)
    v1 = Add(bv, v0)
    v2 = Reshape(v1, s)
    v = Transpose<perm=[0, 2, 1, 3]>(v2)
}
"""
GIVEN = weights(wq=(8, 8), wk=(8, 8), wv=(8, 8), bq=(8,), bv=(8,)) | numbers(s=[0, 0, 2, 4])


def named(text: str) -> str:
    """The results of the text made outputs by Identities, which no fusion looks through."""
    for name in ("q", "k", "v"):
        text = text.replace(f"\n    {name} = ", f"\n    {name}_ = ")
    return text.rstrip().removesuffix("}") + "".join(f"{n} = Identity({n}_)\n" for n in "qkv") + "}"


@pytest.mark.parametrize("opset", [12, 17, 20])
def test_queries_keys_and_values_are_one(opset: int) -> None:
    after = check(named(HEADS), "fuse", [
        "MatMul", "Add", "Reshape", "Transpose", "Split", "Transpose", "Identity", "Identity", "Identity",
    ], opset=opset, weights=GIVEN, sizes=SMALL)  # fmt: skip
    sizes = sorted(tuple(t.dims) for t in after.graph.initializer)
    assert (8, 24) in sizes
    assert (1, 1, 24) in sizes


def test_grouped_queries_are_one_with_fewer_keys_and_values() -> None:
    text = named(HEADS).replace("float[n, 2, 4, m] k", "float[n, 1, 4, m] k").replace(
        "float[n, 2, m, 4] v", "float[n, 1, m, 4] v"
    ).replace("Reshape(k0, s)", "Reshape(k0, t)").replace("Reshape(v1, s)", "Reshape(v1, t)")  # fmt: skip
    given_weights = GIVEN | weights(wk=(8, 4), wv=(8, 4), bv=(4,)) | numbers(t=[0, 0, -1, 4])
    check(text, "fuse", [
        "MatMul", "Add", "Reshape", "Transpose", "Split", "Transpose", "Identity", "Identity", "Identity",
    ], weights=given_weights, sizes=SMALL)  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("q0 = MatMul(x, wq)", "xx = Relu(x) q0 = MatMul(xx, wq)"),
        ("q0 = MatMul(x, wq)", "ww = Relu(wr) q0 = MatMul(x, ww)"),
    ],
)
def test_other_products_stay(old: str, new: str) -> None:
    text = named(HEADS).replace(old, new).replace("float[n, m, 8] x", "float[n, m, 8] x, float[8, 8] wr")
    after = optimized(parse(text, 17, GIVEN), "merge_projections")
    assert operators(after).count("MatMul") == 2


GEMMS = """
g (float[n, 8] x) => (float[n, 4] a, float[n, {width}] b, float[n, 4] c) {{
    p = Gemm{form}(x, u, d)
    q = Gemm{form}(x, v)
    r = Gemm{form}(x, w, e)
    {ends}
}}
"""


def gemms(form: str, width: int, ends: str, opset: int = 17, shape: tuple[int, ...] = (4,)) -> list[str]:
    sizes = {"u": (8, 4), "v": (8, width), "w": (8, 4), "d": (4,), "e": shape}
    if "transB" in form:
        sizes |= {"u": (4, 8), "v": (width, 8), "w": (4, 8)}
    before = parse(GEMMS.format(form=form, width=width, ends=ends), opset, weights(**sizes))
    after = optimized(before, "merge_projections")
    assert_same(before, after, samples(before, n=1), samples(before, 1, n=3))
    return operators(after)


@pytest.mark.parametrize("form", ["", "<transB=1>", "<alpha=1.0, beta=1.0>"])
@pytest.mark.parametrize("shape", [(4,), (1, 4), (1,)])
def test_gemms_of_one_value(form: str, shape: tuple[int, ...]) -> None:
    alike, apart = "a = Abs(p) b = Abs(q) c = Abs(r)", "a = Relu(p) b = Tanh(q) c = Abs(r)"
    assert gemms(form, 4, alike, shape=shape) == ["Gemm", "Split", "Abs", "Abs", "Abs"]
    assert gemms(form, 6, apart, shape=shape) == ["Gemm", "Split", "Relu", "Tanh", "Abs"]
    assert gemms(form, 6, apart, 23, shape=shape).count("Gemm") == 3


@pytest.mark.parametrize("form", ["<alpha=2.0>", "<beta=2.0>"])
def test_gemms_with_factors_stay(form: str) -> None:
    # Without a bias, beta means nothing, but one is no group.
    assert gemms(form, 4, "a = Abs(p) b = Abs(q) c = Abs(r)").count("Gemm") == 3


def test_heads_that_are_outputs_of_the_model() -> None:
    text = """
    g (float[n, 8] x, float[n, m, 8] z) => (float[n, 4] a, float[n, 2] b, float[n, 3] c, float[n, m, 4] d, float[n, m, 2] e) {
        a = Gemm(x, u, bu) b = Gemm(x, v) c = Gemm(x, w)
        p = MatMul(z, u) d = Add(p, bu) q = MatMul(z, v) e = Add(q, bv)
    }"""
    before = parse(text, 17, weights(u=(8, 4), v=(8, 2), w=(8, 3), bu=(4,), bv=(2,)))
    after = optimized(before, "merge_projections")
    assert operators(after) == ["Gemm", "Split", "MatMul", "Add", "Split"]
    assert [o.name for o in after.graph.output] == list("abcde")
    assert_same(before, after, samples(before, n=1, m=2), samples(before, 1, n=3, m=1))


def test_two_products_pay_where_the_same_activation_follows() -> None:
    text = """
    g (float[n, 8] x) => (float[n, 4] a, float[n, 4] b) {{
        p = Gemm(x, u) q = Gemm(x, v)
        s = {0}(p) t = {1}(q)
        a = Neg(s) b = Neg(t)
    }}"""
    given_weights = weights(u=(8, 4), v=(8, 4))
    check(text.format("Relu", "Relu"), "fuse", ["Gemm", "Relu", "Split", "Neg", "Neg"], weights=given_weights)
    check(text.format("Relu", "Tanh"), "fuse", None, weights=given_weights)


def test_weights_that_something_else_needs_stay() -> None:
    text = named(HEADS).replace("{\n", "{\n z = Mul(wq, wq)\n", 1).replace("=> (", "=> (float[8, 8] z, ")
    before = parse(text, 17, GIVEN)
    assert operators(optimized(before, "merge_projections(max_copy=0)")).count("MatMul") == 2
    assert operators(optimized(before, "merge_projections")).count("MatMul") == 1


# --- What is done to all parts of a Split ------------------------------------------------------------


@st.composite
def lanes(draw: st.DrawFn) -> tuple[str, dict[str, Array], int]:
    """A Split whose parts all go the same way for a while."""
    rank = draw(st.integers(2, 4))
    axis = draw(st.integers(0, rank - 1))
    sizes = [draw(st.integers(1, 3)) for _ in range(draw(st.integers(2, 4)))]
    shape: list[Any] = [draw(st.sampled_from([2, 3, "n", "m"])) for _ in range(rank)]
    shape[axis] = sum(sizes)
    opset = draw(st.sampled_from([11, 13, 18]))
    given_weights: dict[str, Array] = numbers(z=sizes)
    lines = []
    names = [f"p{i}" for i in range(len(sizes))]
    if opset >= 13:
        lines.append(f"{', '.join(names)} = Split<axis={axis - draw(st.sampled_from([0, rank]))}>(x, z)")
    else:
        lines.append(f"{', '.join(names)} = Split<axis={axis}, split={sizes}>(x)")
    steps = 0
    for depth in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["Relu", "Tanh", "Add", "Mul", "Transpose", "both"]))
        common = [1] * rank
        varying = [a for a in range(rank) if a != axis and isinstance(shape[a], int)]
        if draw(st.booleans()) and varying:
            common[varying[0]] = shape[varying[0]]
        given_weights |= weights(**{f"c{depth}": common})
        perm = draw(st.permutations(list(range(rank))))
        for i, name in enumerate(names):
            new = f"p{i}_{depth}"
            if kind in ("Relu", "Tanh"):
                lines.append(f"{new} = {kind}({name})")
            elif kind in ("Add", "Mul"):
                lines.append(f"{new} = {kind}({name}, c{depth})")
            elif kind == "Transpose":
                lines.append(f"{new} = Transpose<perm={list(perm)}>({name})")
            else:
                lines += [f"{new}a = Sigmoid({name})", f"{new} = Mul({name}, {new}a)"]
            names[i] = new
        steps += 2 if kind == "both" else 1
        if kind == "Transpose":
            axis = perm.index(axis)
            shape = [shape[a] for a in perm]
    if draw(st.booleans()):
        names[0] = "last"
        lines.append(f"last = Exp({lines[-1].split(' ')[0]})")
    lines += [f"y{i} = Identity({name})" for i, name in enumerate(names)]
    inputs = ", ".join(str(d) for d in _original(lines, shape, rank))
    outs = ", ".join(f"float[{', '.join(f'd{i}_{a}' for a in range(rank))}] y{i}" for i in range(len(names)))
    return f"g (float[{inputs}] x) => ({outs}) {{\n" + "\n".join(lines) + "\n}", given_weights, opset


def _original(lines: list[str], shape: list[Any], rank: int) -> list[Any]:
    """The shape before the Transposes among the lines."""
    for line in reversed(lines):
        if line.startswith("p0_") and "Transpose" in line:
            perm = [int(p) for p in line[line.index("[") + 1 : line.index("]")].split(",")]
            shape = [shape[perm.index(a)] for a in range(rank)]
    return shape


@settings(max_examples=120, deadline=None)
@given(lanes())
def test_lanes(case: tuple[str, dict[str, Array], int]) -> None:
    text, given_weights, opset = case
    before = parse(text, opset, given_weights)
    after = optimized(before, "split_late")
    assert len(operators(after)) <= len(operators(before))
    assert_same(before, after, samples(before, 0, n=2, m=3), samples(before, 1, n=1, m=1))


def test_all_lanes_together() -> None:
    check(
        """g (float[n, 5, 4] x) => (float[n, 2, 4] y, float[n, 3, 4] z) {
            a, b = Split<axis=1>(x, s)
            c = Mul(a, w)  d = Mul(b, w)
            e = Tanh(c)  f = Tanh(d)
            y = Identity(e)  z = Identity(f)
        }""",
        "split_late", ["Mul", "Tanh", "Split", "Identity", "Identity"],
        weights=weights(w=(4,)) | numbers(s=[2, 3]), sizes=SMALL,
    )  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        "c = Mul(a, w) d = Mul(b, v)",  # another factor
        "c = Relu(a) d = Tanh(b)",
        "c = Add(a, b) d = Relu(b)",
        "c = Mul(a, u) d = Mul(b, u)",  # varies along the axis of the Split
        "c = Softmax<axis=1>(a) d = Softmax<axis=1>(b)",
    ],
)
def test_lanes_that_part(body: str) -> None:
    check(
        "g (float[n, 4, 4] x) => (float[n, 2, 4] y, float[n, 2, 4] z) {"
        f"a, b = Split<axis=1>(x, s) {body} y = Identity(c) z = Identity(d) }}",
        "split_late", None, weights=weights(w=(4,), v=(4,), u=(2, 1)) | numbers(s=[2, 2]), sizes=SMALL,
    )  # fmt: skip


# --- Factors --------------------------------------------------------------------------------------------

QUARTER = {"f": np.array(0.25, np.float32)}

FACTOR = """
g (float[n, m, 8] x, float[n, 2, 4, m] k) => (float[n, 2, m, m] y) {{
    a = MatMul(x, w)
    b = Add(a, c)
    d = Reshape(b, s)
    q = Transpose<perm=[0, 2, 1, 3]>(d)
    {body}
}}
"""


@pytest.mark.parametrize(
    "body",
    [
        "e = Mul(q, f) y = MatMul(e, k)",
        "e = Div(q, f) y = MatMul(e, k)",
        "e = MatMul(q, k) y0 = Mul(f, e) y = Softmax<axis=-1>(y0)",
    ],
)
@pytest.mark.parametrize("opset", [13, 20])
def test_factor_goes_into_the_projection(body: str, opset: int) -> None:
    given_weights = weights(w=(8, 8), c=(8,)) | numbers(s=[0, 0, 2, 4]) | {"f": np.array([0.25], np.float32)}
    after = check(FACTOR.format(body=body), "fold_scale", [
        op for op in ("MatMul", "Add", "Reshape", "Transpose", "MatMul", "Softmax")
        if op != "Softmax" or "Softmax" in body
    ], opset=opset, weights=given_weights, sizes=SMALL)  # fmt: skip
    assert not {"Mul", "Div"} & set(operators(after))


ROTARY = """
g (float[n, m, 8] x) => (float[n, 2, m, 4] y) {
    a = MatMul(x, w)
    d = Reshape(a, s)
    q = Transpose<perm=[0, 2, 1, 3]>(d)
    q1 = Slice(q, i0, i2, i3)
    q2 = Slice(q, i2, i9, i3)
    n2 = Neg(q2)
    r = Concat<axis=-1>(n2, q1)
    t = Mul(r, sin)
    u = Mul(q, cos)
    v = Add(u, t)
    z = Mul(v, f)
    y = Identity(z)
}
"""
TURN = numbers(s=[0, 0, 2, 4], i0=[0], i2=[2], i3=[3], i9=[2**40]) | {"f": np.array(0.5, np.float32)}


def test_factor_goes_through_a_rotary_embedding() -> None:
    before = parse(ROTARY, 17, TURN | weights(w=(8, 8), sin=(4,), cos=(4,)))
    after = optimized(before, "fold_scale")
    assert operators(after).count("Mul") == 2
    assert_same(before, after, samples(before, 0, n=2, m=3))


def test_factor_of_one_part() -> None:
    """Only the columns of the weight that belong to the part are multiplied."""
    text = FACTOR.format(body="p, r = Split<axis=1>(q, z) e = Mul(p, f) y = Concat<axis=1>(e, r)")
    given_weights = weights(w=(8, 8), c=(8,)) | numbers(s=[0, 0, 2, 4], z=[1, 1])
    before = parse(text.replace("float[n, 2, m, m] y", "float[n, 2, m, 4] y"), 17, given_weights | QUARTER)
    after = optimized(before, "fold_scale")
    assert "Mul" not in operators(after)
    assert_same(before, after, samples(before, 0, n=2, m=3))


@pytest.mark.parametrize(
    "body",
    [
        "e = Mul(q, f) t = MatMul(e, k) u = MatMul(q, k) y = Add(t, u)",  # unscaled as well
        "r = Tanh(q) e = Mul(r, f) y = MatMul(e, k)",
        "e = Mul(q, f2) y = MatMul(e, k)",  # other numbers for other queries
        "e = Mul(q, zero) y = MatMul(e, k)",
        "e = Mul(q, f5) t = Reshape(e, s4) y = MatMul(t, k)",  # adds a dimension
        "t = MatMul(q, k) r = Add(t, m1) y = Mul(r, f)",  # an addend that is no constant
        # A part that takes a head and a half.
        "t = Transpose<perm=[0, 2, 1, 3]>(q) u = Reshape(t, s2) g, h = Split<axis=2>(u, z4) e = Mul(h, f) "
        "o = Concat<axis=2>(g, e) o2 = Reshape(o, s) o3 = Transpose<perm=[0, 2, 1, 3]>(o2) y = MatMul(o3, k)",
    ],
)
def test_factors_that_stay(body: str) -> None:
    given_weights = weights(w=(8, 8), c=(8,), f2=(2, 1, 4), f5=(1, 1, 1, 1, 1)) | numbers(
        s=[0, 0, 2, 4], s4=[-1, 2, 3, 4], s2=[0, 0, 8], z4=[3, 5]
    )
    given_weights |= {"f": np.array(0.25, np.float32), "zero": np.array(0, np.float32)}
    text = FACTOR.format(body=body).replace("k) =>", "k, float[n, 2, m, m] m1) =>")
    check(text, "fold_scale", None, weights=given_weights, sizes=({"n": 1, "m": 3}, {"n": 2, "m": 3}))


# --- Rotary embeddings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("opset", [11, 17, 20])
def test_rotate_half(dynamic: bool, opset: int) -> None:
    text = ROTARY.replace("float[n, m, 8] x", "float[n, m, 8] x, float[m, 4] sin") if dynamic else ROTARY
    given_weights = TURN | weights(w=(8, 8), cos=(4,)) | ({} if dynamic else weights(sin=(4,)))
    before = parse(text, opset, given_weights)
    after = optimized(before, "rotate_half")
    left = operators(after)
    assert "Neg" not in left
    assert "Slice" not in left
    assert left.count("Mul") == (4 if dynamic else 3)
    assert_same(before, after, samples(before, 0, n=2, m=3), samples(before, 1, n=1, m=5))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Concat<axis=-1>(n2, q1)", "Concat<axis=-1>(q1, n2)"),
        ("Slice(q, i0, i2, i3)", "Slice(d, i0, i2, i3)"),
        ("Mul(r, sin)", "Mul(r, one)"),
        ("Slice(q, i2, i9, i3)", "Slice(q, i2, i2, i3)"),
    ],
)
def test_what_is_no_rotation(old: str, new: str) -> None:
    text = ROTARY.replace(old, new)
    if "(d," in new:
        text = text.replace("Slice(d, i0, i2, i3)", "Slice(dd, i0, i2, i3)").replace(
            "    q1 =", "    dd = Relu(q)\n    q1 ="
        )
    given_weights = TURN | weights(w=(8, 8), sin=(4,), cos=(4,), one=(1,))
    if "i2, i2" in new:
        text = text.replace("Concat<axis=-1>(n2, q1)", "Concat<axis=-1>(n2, q)").replace("i2, i2", "i2, i0")
    before = parse(text, 17, given_weights)
    assert operators(optimized(before, "rotate_half")) == operators(before)


# --- Shared keys and values --------------------------------------------------------------------------

GROUPED = """
g (float[n, 4, m, 2] q, float[n, 2, m, 2] k, float[n, 2, m, 2] v, float[n, 1, m, m] mask) => (float[n, m, 8] y) {
    k1 = Unsqueeze(k, ax)
    k2 = Expand(k1, e)
    k3 = Reshape(k2, s)
    k4 = Transpose<perm=[0, 1, 3, 2]>(k3)
    v1 = Unsqueeze(v, ax)
    v2 = Expand(v1, e)
    v3 = Reshape(v2, s)
    a = MatMul(q, k4)
    b = Mul(a, f)
    c = Add(b, mask)
    p = Softmax<axis=-1>(c)
    o = MatMul(p, v3)
    t = Transpose<perm=[0, 2, 1, 3]>(o)
    r = Reshape(t, z)
    y = Identity(r)
}
"""
SHARED = numbers(ax=[2], e=[1, 1, 2, 1, 1], s=[0, 4, -1, 2], z=[0, 0, 8]) | {"f": np.array(0.5, np.float32)}


@pytest.mark.parametrize("mask", ["float[n, 1, m, m]", "float[1, 1, m, m]", "float[m, m]", "float[1, m]"])
def test_keys_and_values_that_heads_share(mask: str) -> None:
    text = GROUPED.replace("float[n, 1, m, m] mask", f"{mask} mask")
    after = check(text, "grouped_heads", [
        "Unsqueeze", "Unsqueeze", "Reshape", "Transpose", "MatMul", "Mul",
        *(["Unsqueeze"] if mask.startswith("float[n") else []),
        "Add", "Softmax", "MatMul", "Transpose", "Reshape", "Identity",
    ], weights=SHARED, sizes=SMALL)  # fmt: skip
    assert "Expand" not in operators(after)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("v3 = Reshape(v2, s)", "v3 = Concat<axis=1>(v, v)"),
        ("float[n, 1, m, m] mask", "float[n, 4, m, m] mask"),
        ("Softmax<axis=-1>(c)", "Softmax<axis=2>(c)"),
        ("y = Identity(r)", "y = Identity(r) w = Identity(p)"),
        ("v2 = Expand(v1, e)", "v2 = Concat<axis=2>(v1, v1)"),
    ],
)
def test_heads_that_share_nothing(old: str, new: str) -> None:
    text = GROUPED.replace(old, new)
    if "w = " in new:
        text = text.replace("=> (", "=> (float[n, 4, m, m] w, ")
    check(text, "grouped_heads", None, weights=SHARED, sizes=SMALL)


# --- Views ----------------------------------------------------------------------------------------------


@st.composite
def detours(draw: st.DrawFn) -> tuple[str, dict[str, Array]]:
    """Reshape, Transpose, Reshape; the first one joins axes, the last one takes them apart."""
    sizes: list[Any] = [draw(st.sampled_from([2, 3, 4, "n"])) for _ in range(draw(st.integers(2, 4)))]
    if sizes.count("n") > 1:
        sizes = ["n" if i == sizes.index("n") else 2 if s == "n" else s for i, s in enumerate(sizes)]
    cut = sorted(draw(st.sets(st.integers(1, len(sizes) - 1), min_size=1)))
    parts = [sizes[a:b] for a, b in zip([0, *cut], [*cut, len(sizes)], strict=True)]
    joined = [-1 if "n" in part else int(np.prod(part)) for part in parts]
    perm = list(draw(st.permutations(range(len(parts)))))
    after = [size for place in perm for size in parts[place]]
    target = [-1 if size == "n" else size for size in after]
    if draw(st.booleans()) and len(target) > 1 and -1 not in target[:2]:
        target[:2] = [target[0] * target[1]]
    text = (
        f"g (float[{', '.join(map(str, sizes))}] x) => (float[{', '.join(f'd{i}' for i in range(len(target)))}] y) {{"
        f"a = Reshape(x, s) b = Transpose<perm={perm}>(a) c = Reshape(b, t) y = Identity(c) }}"
    )
    return text, numbers(s=joined, t=target)


@settings(max_examples=80, deadline=None)
@given(detours())
def test_detours(case: tuple[str, dict[str, Array]]) -> None:
    text, given_weights = case
    before = parse(text, 17, given_weights)
    after = optimized(before, "view_transpose")
    assert len(operators(after)) <= 3
    assert_same(before, after, samples(before, 0, n=2), samples(before, 1, n=5))


def test_attention_comes_back_from_its_detour() -> None:
    check(
        """g (float[n, 3, m, 4] x) => (float[n, 3, 4, m] y) {
            sx = Shape(x)
            m1 = Slice(sx, i2, i3)
            n1 = Slice(sx, i0, i1)
            s = Concat<axis=0>(minus, m1, four)
            t = Concat<axis=0>(n1, three, four, m1)
            a = Reshape(x, s)
            b = Transpose<perm=[0, 2, 1]>(a)
            c = Reshape(b, t)
            y = Identity(c)
        }""",
        "view_transpose", ["Transpose", "Identity"],
        weights=numbers(minus=[-1], four=[4], three=[3], i0=[0], i1=[1], i2=[2], i3=[3]), sizes=SMALL,
    )  # fmt: skip


FLAT = """
g (float[n, m, 4] x) => (float[n, m, 3] y) {
    a = Reshape(x, s)
    b = Gemm(a, w, c)
    d = Reshape(b, t)
    y = Identity(d)
}
"""


@pytest.mark.parametrize("bias", [(3,), (1, 3), (1,), None])
@pytest.mark.parametrize("transposed", [False, True])
def test_flat_gemm(bias: Any, transposed: bool) -> None:
    text = FLAT.replace("Gemm(", "Gemm<transB=1>(") if transposed else FLAT
    given_weights = weights(w=(3, 4) if transposed else (4, 3)) | numbers(s=[-1, 4], t=[0, -1, 3])
    if bias is None:
        text = text.replace(", c)", ")")
    else:
        given_weights |= weights(c=bias)
    sizes = ({"n": 1, "m": 3}, {"n": 1, "m": 7})
    text = text.replace("float[n, m, 4]", "float[1, m, 4]").replace("float[n, m, 3]", "float[1, m, 3]").replace(
        "Reshape(b, t)", "Reshape(b, t1)")  # fmt: skip
    given_weights |= numbers(t1=[1, -1, 3])
    del given_weights["t"]
    check(text, "flat_gemm", ["MatMul", *(["Add"] if bias is not None else []), "Identity"],
          weights=given_weights, sizes=sizes)  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Gemm(a, w, c)", "Gemm<alpha=0.5>(a, w, c)"),
        ("Gemm(a, w, c)", "Gemm<beta=0.5>(a, w, c)"),
        ("Reshape(b, t)", "Reshape(b, t2)"),
    ],
)
def test_gemms_that_stay(old: str, new: str) -> None:
    text = (
        FLAT.replace(old, new)
        .replace("float[n, m, 4]", "float[1, 6, 4]")
        .replace("float[n, m, 3]", "float[d, e, f]")
    )
    given_weights = weights(w=(4, 3), c=(3,)) | numbers(s=[-1, 4], t=[1, -1, 3], t2=[1, 9, 2])
    check(text, "flat_gemm", None, weights=given_weights, sizes=({},))


def test_computed_target() -> None:
    check(
        """g (float[n, 3, 2] x) => (float[n, 6] y) {
            n1 = Shape<end=1>(x)  s = Concat<axis=0>(n1, six)  a = Reshape<allowzero=1>(x, s)  y = Identity(a)
        }""",
        "reshape_target", ["Reshape", "Identity"], weights=numbers(six=[6]), sizes=({"n": 1}, {"n": 4}),
    )  # fmt: skip


# --- Guards and masks ----------------------------------------------------------------------------------

GUARD = """
g (float[n, m, 4] x, float[n, 4, m] k, bool[m, m] keep) => (float[n, m, m] y) {{
    a = MatMul(x, k)
    {body}
    p = Softmax<axis=-1>(z)
    bad = IsNaN(p)
    q = Where(bad, zero, p)
    y = Identity(q)
}}
"""
LIMITS = {
    "zero": np.array(0, np.float32),
    "low": np.array(-3e38, np.float32),
    "inf": np.array(-np.inf, np.float32),
}
TRIANGLE = np.where(np.tri(3, dtype=bool), 0, -np.inf).astype(np.float32)


@pytest.mark.parametrize(
    "body", ["z = Mul(a, low2)", "mask = Where(keep, zero, low) z = Add(a, mask)", "z = Add(tri, a)"]
)
def test_guard_that_is_not_needed(body: str) -> None:
    given_weights = LIMITS | {"tri": TRIANGLE, "low2": np.array(0.5, np.float32)}
    before = parse(GUARD.format(body=body), 17, given_weights)
    after = optimized(before, "softmax_guard")
    assert "IsNaN" not in operators(after)
    assert_same(before, after, samples(before, 0, n=2, m=3))


@pytest.mark.parametrize(
    "body",
    [
        "mask = Where(keep, zero, inf) z = Add(a, mask)",
        "z = Add(a, covered)",
        "z = Log(a)",
        "z = Where(keep, a, inf)",
    ],
)
def test_guard_that_is_needed(body: str) -> None:
    covered = TRIANGLE.copy()
    covered[1] = -np.inf
    text = GUARD.format(body=body)
    before = parse(text, 17, LIMITS | {"covered": covered})
    assert operators(optimized(before, "softmax_guard")) == operators(before)


def test_masks_say_each_row_once() -> None:
    check(
        """g (float[n, 2, m, m] x, bool[n, m] keep) => (float[n, 2, m, m] y) {
            s = Shape<start=1>(keep)  m0 = Squeeze(s)  r = Range(zero, m0, one)
            rows = Unsqueeze(r, ax)  always = GreaterOrEqual(rows, zero)
            k = Unsqueeze(keep, ax2)  both = And(always, k)
            mask = Where(both, f0, low)
            t = Add(x, mask)  y = Identity(t)
        }""",
        "fuse", ["Unsqueeze", "Where", "Add", "Identity"],
        weights=numbers(zero=0, one=1, ax=[0, 1, 3], ax2=[1, 2])
        | {"f0": np.array(0, np.float32), "low": np.array(-3e38, np.float32)},
        sizes=SMALL,
    )  # fmt: skip


def test_a_comparison_that_may_fail_stays() -> None:
    text = """g (float[n, 2, m, m] x) => (float[n, 2, m, m] y) {
            s = Shape<start=3>(x)  m0 = Squeeze(s)  r = Range(zero, m0, one)
            rows = Unsqueeze(r, ax)  some = GreaterOrEqual(rows, one)
            mask = Where(some, f0, low)
            t = Add(x, mask)  y = Identity(t)
        }"""
    given_weights = numbers(zero=0, one=1, ax=[0, 1, 3])
    given_weights |= {"f0": np.array(0, np.float32), "low": np.array(-3, np.float32)}
    check(text, "lean_operands", None, weights=given_weights, sizes=SMALL)


def test_an_expanded_operand_and_one_of_zeros() -> None:
    check(
        """g (float[n, m, 4] x, float[1, 1, 4] w) => (float[n, m, 4] y) {
            s = Shape(x)  e = Expand(w, s)  a = Mul(e, x)
            z = Expand(nothing, s)  b = Add(a, z)  y = Identity(b)
        }""",
        "lean_operands", ["Mul", "Identity"], weights=weights() | {"nothing": np.zeros((1,), np.float32)},
        sizes=SMALL,
    )  # fmt: skip


def test_a_window_whose_rows_are_repeated_for_the_batch() -> None:
    """As torch.export writes a sliding window: positions repeated, turned, and moved before they are compared."""
    check(
        """g (float[n, 2, m, m] x) => (float[n, 2, m, m] y) {
            s = Shape<start=3>(x)  m0 = Squeeze(s)  r = Range(zero, m0, one)  rows = Unsqueeze(r, ax)
            b = Shape<end=1>(x)  t = Concat<axis=0>(b, ones)  all = Expand(rows, t)  q = Unsqueeze(all, ax2)
            first = Sub(q, two)  near = Greater(r, first)  mask = Where(near, f0, low)
            t1 = Add(x, mask)  y = Identity(t1)
        }""",
        "lean_operands,tidy",
        ["Shape", "Squeeze", "Range", "Unsqueeze", "Sub", "Greater", "Where", "Add"],
        weights=numbers(zero=0, one=1, two=2, ones=[1], ax=[0], ax2=[1, 3])
        | {"f0": np.array(0, np.float32), "low": np.array(-3, np.float32)},
        sizes=SMALL,
    )


def test_a_limit_that_is_repeated() -> None:
    check(
        """g (int64[n, m] x) => (int64[n, m] y) {
            s = Shape(x)  e = Expand(most, s)  a = Min(x, e)  f = Expand(least, s)  b = Max(f, a)
            y = Identity(b)
        }""",
        "lean_operands", ["Min", "Max", "Identity"], weights=numbers(most=2, least=[-1]), sizes=SMALL,
    )  # fmt: skip


def test_numbers_that_are_computed_from_repeated_ones_stay() -> None:
    """What is computed for every element anyhow gains nothing from being computed once more."""
    text = """g (float[n, m, 4] x, float[1, 1, 4] w) => (float[n, m, 4] y, float[n, m, 4] z) {
            s = Shape(x)  e = Expand(w, s)  d = Sub(e, x)  a = Mul(d, x)  y = Identity(a)  z = Relu(d)
        }"""
    check(text, "lean_operands", ["Sub", "Mul", "Identity", "Relu"], sizes=SMALL)


def test_one_row_of_a_table() -> None:
    check(
        """g (float[n, m, 4] x, int64[n, m] i) => (float[n, m, 4] y) {
            s = Shape(i)  e = Expand(one, s)  row = Gather(table, e)  a = Add(x, row)  y = Identity(a)
        }""",
        "lean_operands", ["Add", "Identity"], weights=weights(table=(3, 4)) | numbers(one=[1]), sizes=SMALL,
    )  # fmt: skip


COUNTING = """
g (float[n, m] x) => (float[n, 1, m] y) {{
    s = Shape(x)  n0 = Gather(s, zero)  m0 = Gather(s, one)
    r = Range(zero, n0, one)  c = Range({start}, {end}, one)
    r1 = Unsqueeze(r, ax)
    {body}
    y = Identity(t)
}}
"""
COUNTS = numbers(zero=0, one=1, two=2, ax=[1, 2], minus=[-1], last=[3], ax3=[-1], three=[0, 0, 1, 1])


@pytest.mark.parametrize(
    "body",
    [
        "f = Reshape(x, minus) a = Mul(r1, m0) i = Add(a, c) t = Gather(f, i)",
        """w = Max(r1, c) v = Shape(w) e1 = Expand(r1, v) e2 = Expand(c, v)
           u1 = Unsqueeze(e1, ax3) u2 = Unsqueeze(e2, ax3) i = Concat<axis=-1>(u1, u2) t = GatherND(x, i)""",
    ],
)
def test_gathers_that_only_count(body: str) -> None:
    text = COUNTING.format(start="zero", end="m0", body=body)
    before = parse(text, 17, COUNTS)
    after = optimized(before, "fuse")
    assert not {"Gather", "GatherND", "Range"} & set(operators(after))
    assert_same(before, after, samples(before, 0, n=2, m=3), samples(before, 1, n=4, m=1))


@pytest.mark.parametrize(
    ("start", "end", "body"),
    [
        ("zero", "m0", "f = Reshape(x, minus) a = Mul(r1, two) i = Add(a, c) t = Gather(f, i)"),
        ("one", "m0", "f = Reshape(x, minus) a = Mul(r1, m0) i = Add(a, c) t = Gather(f, i)"),
        ("zero", "two", "f = Reshape(x, minus) a = Mul(r1, m0) i = Add(a, c) t = Gather(f, i)"),
    ],
)
def test_gathers_that_choose(start: str, end: str, body: str) -> None:
    text = COUNTING.format(start=start, end=end, body=body).replace("float[n, 1, m] y", "float[d, e, f] y")
    before = parse(text, 17, COUNTS)
    assert "Gather" in operators(optimized(before, "counting_gather"))[2:]
    assert_same(before, optimized(before, "counting_gather"), samples(before, 0, n=3, m=2))


@pytest.mark.parametrize("inverse", ["r = Reciprocal(v)", "r = Div(one, v)"])
def test_products_with_a_reciprocal(inverse: str) -> None:
    check(
        f"g (float[n, 4] x) => (float[n, 4] y) {{ v = Exp(x) {inverse} t = Mul(x, r) y = Identity(t) }}",
        "reciprocal", ["Exp", "Div", "Identity"], weights={"one": np.array(1, np.float32)}, sizes=SMALL,
    )  # fmt: skip


# --- Whole models ----------------------------------------------------------------------------------------

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
LEFT = {
    "bert_dyn18": 63,
    "bert_ts14": 104,
    "bert_ts17": 64,
    "gpt2_dyn18": 70,
    "gpt2_dyn20_static": 48,
    "gpt2_ts17": 75,
    "llama_dyn18_static": 88,
    "llama_dyn20": 100,
    "llama_ts17": 105,
    "vit_dyn18": 63,
    "vit_ts17": 64,
    "whisperenc_dyn20": 50,
    "whisperenc_ts17": 66,
}


@pytest.mark.parametrize(("name", "nodes"), LEFT.items())
def test_exported_transformers(name: str, nodes: int) -> None:
    before = onnx.load(FIXTURES / f"{name}.onnx")
    after = optimized(before, "shapes,fold,tidy,fuse,tidy")
    assert len(operators(after)) <= nodes
    for seed, (batch, seq) in enumerate([(2, 7), (1, 3)]):
        feeds = samples(before, seed, batch=batch, seq=seq)
        for key in feeds:
            if key == "attention_mask":
                feeds[key] = np.tri(batch, seq, seq - 1, dtype=np.int64)
        assert_same(before, after, feeds)


def test_memory_of_weights_is_not_touched() -> None:
    """Merged and scaled weights are recipes until they are written."""
    big = {name: np.zeros((8, 8 * 4096), np.float32) for name in ("wq", "wk", "wv")}
    text = (
        named(HEADS)
        .replace("float[n, 2, m, 4]", "float[n, 2, m, 16384]")
        .replace("float[n, 2, 4, m]", "float[n, 2, 16384, m]")
    )
    given_weights = {**GIVEN, **big, "bq": np.zeros(32768, np.float32), "bv": np.zeros(32768, np.float32)}
    given_weights["s"] = np.array([0, 0, 2, 16384])
    model = Model(ir.from_proto(parse(text, 17, given_weights)))
    Runner().run(model, plan("fuse", registry()))
    lazy = [
        v.const_value for v in model.graph.initializers.values() if isinstance(v.const_value, ir.LazyTensor)
    ]
    assert any(t.nbytes > 1 << 20 for t in lazy)
    assert all(t._tensor is None for t in lazy if t.nbytes > 1 << 20)
