"""Elements and parts of an axis: queries, keys and values in one tensor, factors and offsets of some of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from helpers import Array, assert_same, check, operators, optimized, parse, samples
from onnxlathe.infer import Dim
from onnxlathe_passes.regroup import stretches

RANDOM = np.random.default_rng(11)
SMALL = ({"n": 1, "m": 3}, {"n": 3, "m": 4})


def weights(**shapes: Sequence[int]) -> dict[str, Array]:
    return {name: RANDOM.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def numbers(**values: Any) -> dict[str, Array]:
    return {name: np.array(value, np.int64) for name, value in values.items()}


# --- Which axes become which --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((64, 8, 8), (4, 16, 64), [((0, 1), (0, 2)), ((1, 3), (2, 3))]),
        ((1, 6), (6,), [((0, 2), (0, 1))]),
        ((6, 1, 1), (2, 3), [((0, 3), (0, 2))]),
        ((4, 6), (6, 4), [((0, 2), (0, 2))]),
        (("b", 8, 8, 12), ("b", 64, 3, 4), [((0, 1), (0, 1)), ((1, 3), (1, 2)), ((3, 4), (2, 4))]),
        (("b", "h", 4), ("h", "b", 4), [((0, 2), (0, 2)), ((2, 3), (2, 3))]),
        ((0, 4), (0, 4), None),
        ((None, 4), (None, 4), None),
    ],
)
def test_stretches(before: Any, after: Any, expected: Any) -> None:
    dims = [tuple(Dim(d) if isinstance(d, str) else d for d in shape) for shape in (before, after)]
    found = stretches(*dims)
    assert found == (expected and [(range(*a), range(*b)) for a, b in expected])


# --- Factors of some elements -------------------------------------------------------------------------

GATHERS = """
g (float[n, m, 8] x) => (float[n, m, m] y) {{
    a = MatMul(x, w)
    b = Add(a, c)
    d = Reshape(b, s)
    q = Gather<axis={axis}>(d, {q})
    k = Gather<axis={axis}>(d, {k})
    {body}
}}
"""
SCORES = "e = Mul(q, f) t = Transpose<perm=[0, 2, 1]>(k) y = MatMul(e, t)"
QUARTER = {"f": np.array(0.25, np.float32)}


@pytest.mark.parametrize(
    ("body", "q", "k"),
    [
        (SCORES, "zero", "two"),
        (SCORES, "last", "zero"),
        ("t = Transpose<perm=[0, 2, 1]>(k) e = MatMul(q, t) y = Mul(f, e)", "zero", "two"),
    ],
)
def test_factor_of_one_element(body: str, q: str, k: str) -> None:
    given = weights(w=(8, 24), c=(24,)) | numbers(s=[0, 0, 3, 8], zero=0, two=2, last=-1) | QUARTER
    text = GATHERS.format(axis=2, q=q, k=k, body=body)
    after = check(text, "fold_scale", [
        "MatMul", "Add", "Reshape", "Gather", "Gather", "Transpose", "MatMul"
    ], weights=given, sizes=SMALL)  # fmt: skip
    assert "Mul" not in operators(after)


def test_factor_of_some_elements() -> None:
    """Two of three elements are multiplied; a Reshape that joins other axes as well is in between."""
    text = """
    g (float[n, 2, 2, 8] x) => (float[n, 4, 2, 8] y, float[n, 4, 8] z) {
        a = MatMul(x, w) d = Reshape(a, s) q = Gather<axis=2>(d, i) k = Gather<axis=2>(d, j)
        y = Mul(q, f) z = Neg(k) }"""
    given = weights(w=(8, 24)) | numbers(s=[0, 4, 3, 8], i=[0, 2], j=1) | QUARTER
    before = parse(text, 17, given)
    after = optimized(before, "fold_scale")
    assert "Mul" not in operators(after)
    assert_same(before, after, *(samples(before, 0, n=n) for n in (1, 3)))


def test_the_same_factor_of_all_elements() -> None:
    """Both halves of an embedding that is turned carry it: neither is multiplied alone."""
    text = """
    g (float[n, m, 8] x) => (float[n, m, 4, 2] y) {
        a = MatMul(x, w) d = Reshape(a, s) p = Gather<axis=3>(d, zero) q = Gather<axis=3>(d, one)
        r = Neg(q) u = Unsqueeze(r, o) v = Unsqueeze(p, o) t = Concat<axis=-1>(u, v) z = Mul(t, f) y = Identity(z) }"""
    given = weights(w=(8, 8)) | numbers(s=[0, 0, 4, 2], zero=0, one=1, o=[3]) | QUARTER
    before = parse(text, 17, given)
    after = optimized(before, "fold_scale")
    assert "Mul" not in operators(after)
    assert_same(before, after, *(samples(before, 0, n=n, m=n + 1) for n in (1, 3)))


@pytest.mark.parametrize(
    ("body", "k"),
    [
        (SCORES, "zero"),  # the same element unscaled as well
        ("e = Mul(q, f) u = Abs(d) v = ReduceSum<keepdims=0>(u, o) t = Transpose<perm=[0, 2, 1]>(v) y = MatMul(e, t)",
         "two"),
        ("p = Gather<axis=2>(d, i) e = Mul(q, f) t = Transpose<perm=[0, 2, 1]>(p) y = MatMul(e, t)", "two"),
        ("p = Gather<axis=1>(d, zero) u = ReduceSum<keepdims=0>(p, o1) v = Unsqueeze(u, o1) e = Mul(q, f) "
         "t = Transpose<perm=[0, 2, 1]>(k) h = MatMul(e, t) z = ReduceSum(v, o2) y = Add(h, z)", "two"),
    ],
)  # fmt: skip
def test_factors_of_elements_that_stay(body: str, k: str) -> None:
    """Somebody reads the element otherwise, or all of them, or one that is not known, or along another axis."""
    given = (
        weights(w=(8, 24), c=(24,)) | numbers(s=[0, 0, 3, 8], zero=0, two=2, o=[2], o1=[1], o2=[2]) | QUARTER
    )
    text = GATHERS.format(axis=2, q="zero", k=k, body=body).replace("x)", "x, int64 i)")
    check(text, "fold_scale", None, weights=given, sizes=SMALL)


# --- Elements taken out ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ([0, 4], ["Gather", "Relu"]),  # no more than the axis
        ([-1, 2, 2], ["Gather", "Reshape", "Relu"]),
        ([0, 1, 4], None),  # which is the Slice itself
    ],
)
def test_one_element_and_another_shape(shape: list[int], expected: list[str] | None) -> None:
    text = (
        """g (float[n, 3, 4] x) => (float[p, q] y) { a = Slice(x, s, e, o) b = Reshape(a, t) y = Relu(b) }"""
    )
    given = numbers(s=[1], e=[2], o=[1], t=shape)
    if len(shape) == 3:
        text = text.replace("[p, q]", "[p, q, r]")
    check(text, "shapes,unbind", expected, weights=given)


# --- Done once before a Split ---------------------------------------------------------------------------

PARTS = """
g (float[n, 6, m, 4] x) => ({types} y, {types} z) {{
    p, q = Split<axis=1>(x, sizes)
    a = {call}
    b = {other}
    y = Relu(a)
    z = Neg(b)
}}
"""


@pytest.mark.parametrize(
    ("call", "result", "sizes", "opset"),
    [
        ("Unsqueeze({}, i)", "float[n, u, 1, m, 4]", [2, 4], 17),
        ("Unsqueeze<axes=[0, -1]>({})", "float[1, n, u, m, 4, 1]", [3, 3], 11),
        ("Reshape({}, s)", "float[n, u, 2, 16]", [2, 4], 17),  # cuts the axis, joins others
        ("Reshape({}, t)", "float[n, u, v]", [2, 4], 17),  # joins others
        ("ReduceL2<axes=[-1], keepdims=1>({})", "float[n, u, m, 1]", [1, 5], 17),
        ("ReduceMean<axes=[0, 3], keepdims=0>({})", "float[u, m]", [3, 3], 17),
        ("ReduceMax<keepdims=0>({}, j)", "float[u, m, 4]", [3, 3], 18),
    ],
)
def test_done_once_before_a_split(call: str, result: str, sizes: list[int], opset: int) -> None:
    given = numbers(sizes=sizes, i=[2], j=[0], s=[0, -1, 2, 16], t=[0, 2, -1])
    text = PARTS.format(types=result, call=call.format("p"), other=call.format("q"))
    if opset < 13:
        text = text.replace("Split<axis=1>(x, sizes)", f"Split<axis=1, split={sizes}>(x)")
    if "t)" in call:
        given |= numbers(sizes=[2, 2])
        text = text.replace("float[n, 6, m, 4]", "float[n, 4, m, 4]")
    if "s)" in call:
        text = text.replace("float[n, 6, m, 4]", "float[n, 6, 4, 4]")
    after = check(text, "shapes,split_late", [
        call.split("(")[0].split("<")[0], "Split", "Relu", "Neg"
    ], opset=opset, weights=given, sizes=SMALL)  # fmt: skip
    assert operators(after).count("Split") == 1


@pytest.mark.parametrize(
    ("call", "other", "result"),
    [
        ("Unsqueeze(p, i)", "Unsqueeze(q, j)", "float[u, v, w, m, 4]"),  # at other places
        ("ReduceL2<axes=[1], keepdims=1>(p)", "ReduceL2<axes=[1], keepdims=1>(q)", "float[n, u, m, 4]"),
        ("ReduceL2<axes=[2]>(p)", "ReduceL2<axes=[3]>(q)", "float[n, u, v, w]"),
        ("Reshape(p, s)", "Reshape(q, t)", "float[n, u, v]"),  # the second part's heads are larger
        ("Reshape(p, f)", "Reshape(q, f)", "float[u, v]"),  # joins the axis with others
        ("Squeeze(p, j1)", "Squeeze(q, j1)", "float[n, m, 4]"),  # the axis of the Split itself
    ],
)
def test_not_before_a_split(call: str, other: str, result: str) -> None:
    given = numbers(sizes=[3, 3], i=[2], j=[0], s=[0, 3, -1], t=[0, 1, -1], f=[-1, 4], j1=[1])
    text = PARTS.format(types=result, call=call, other=other)
    if "j1" in call:
        given |= numbers(sizes=[1, 1])
        text = text.replace("float[n, 6, m, 4]", "float[n, 2, m, 4]")
    check(text, "shapes,split_late", None, weights=given, sizes=SMALL)


# --- Factors and what a positive one goes through ------------------------------------------------------

POOLED = """
g (float[n, 4, m, m] x) => (float[n, u, v, w] y) {{
    a = Conv(x, w, c)
    b = {call}
    d = Mul(b, f)
    y = Tanh(d)
}}
"""
CALLS = [
    "Relu(a)",
    "LeakyRelu<alpha=0.3>(a)",
    "MaxPool<kernel_shape=[2, 2]>(a)",
    "AveragePool<kernel_shape=[2, 2], pads=[1, 1, 1, 1]>(a)",
    "GlobalAveragePool(a)",
    "ReduceMax<axes=[1]>(a)",
    "ReduceMean<axes=[2, 3]>(a)",
    "DepthToSpace<blocksize=2>(a)",
    'Resize<mode="linear">(a, , scales)',
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("factor", [1.5, -1.5])
def test_factor_goes_through_what_is_homogeneous(call: str, factor: float) -> None:
    given = weights(w=(8, 4, 1, 1), c=(8,)) | {"f": np.array(factor, np.float32)}
    given |= {"scales": np.array([1, 1, 2, 1.5], np.float32)}
    expected = ["Conv", call.split("(")[0].split("<")[0], "Tanh"] if factor > 0 else None
    check(POOLED.format(call=call), "fold_scale", expected, weights=given, sizes=SMALL)


@pytest.mark.parametrize(
    "call", [
        "Elu(a)",
        'Resize<mode="linear", coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=2.0>'
        "(a, roi, scales)",
    ],
)  # fmt: skip
def test_factor_does_not_go_through_others(call: str) -> None:
    given = weights(w=(8, 4, 1, 1), c=(8,)) | {"f": np.array(1.5, np.float32)}
    given |= {"scales": np.array([1, 1, 2, 1.5], np.float32)}
    given |= {"roi": np.array([0, 0, 0, 0, 1, 1, 1.5, 1.5], np.float32)}
    check(POOLED.format(call=call), "fold_scale", None, weights=given, sizes=SMALL)


PREFIX = """
g (float[n, m, 4] x, float[n, 2, 6] k) => (float[n, 2, u] y) {{
    p = Pad(x, pads)
    a = MatMul(p, w)
    s, t = Split<axis=1>(a, sizes)
    u = Relu({patches})
    c = Concat<axis=1>({prefix}, u)
    d = Mul(c, f)
    e = Transpose<perm=[0, 2, 1]>(d)
    y = MatMul(k, e)
}}
"""


@pytest.mark.parametrize(
    ("prefix", "patches", "fires"),
    [
        ("s", "t", True),
        ("t", "s", True),
        ("s", "s", True),  # the other part is nobody's
        ("s", "v", False),
        ("x2", "t", False),
    ],
)
def test_factor_of_all_parts(prefix: str, patches: str, fires: bool) -> None:
    """Registers are taken off, the rest is turned, and both are put together again."""
    text = PREFIX.format(prefix=prefix, patches=patches).replace("k) =>", "k, float[n, 2, 6] x2) =>")
    text = text.replace("[n, m, 4] x,", "[n, 6, 4] x,").replace("u = Relu(v)", "v = Tanh(t) u = Relu(v)")
    given = weights(w=(4, 6)) | numbers(pads=[0, 2, 0, 0, 0, 0], sizes=[2, 6]) | QUARTER
    before = parse(text, 17, given)
    after = optimized(before, "fold_scale")
    assert ("Mul" not in operators(after)) == fires
    assert_same(before, after, *(samples(before, 0, n=n) for n in (1, 3)))


@pytest.mark.parametrize(
    ("made", "scale", "left"),
    [
        ("MatMul(x, w) b = Add(a, c)", (6,), ["MatMul", "Add"]),
        ("MatMul(x, w) b = Add(a, c)", (1, 1, 6), ["MatMul", "Add"]),
        ("MatMul(x, w) b0 = Reshape(a, s) b = Transpose<perm=[0, 2, 1, 3]>(b0)", (2, 1, 1), ["MatMul", "Reshape",
         "Transpose"]),
        ("MatMul(x, w) b0 = Reshape(a, s) b = Transpose<perm=[0, 2, 1, 3]>(b0)", (3,), ["MatMul", "Reshape",
         "Transpose"]),
        ("MatMul(x, w) b = Tanh(a)", (6,), None),
        ("MatMul(x, w) b = Add(a, z)", (6,), None),  # what is added is no constant
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["Mul", "Div"])
def test_scale_of_a_layer(kind: str, made: str, scale: tuple[int, ...], left: list[str] | None) -> None:
    text = f"""g (float[n, m, 4] x, float[n, m, 6] z) => (float[{"n, 2, m, 3" if "s)" in made else "n, m, 6"}] y) {{
        a = {made} d = {kind}(b, v) y = Tanh(d) }}"""
    given = weights(w=(4, 6), c=(6,)) | numbers(s=[0, 0, 2, 3])
    given["v"] = (RANDOM.random(scale) + 0.5).astype(np.float32)
    check(text, "fold_scale", left and [*left, "Tanh"], weights=given, sizes=SMALL)


@pytest.mark.parametrize(
    ("scale", "value"), [((6,), 0.0), ((6,), np.inf), ((3, 6), 0.5), ((1, 1, 1, 6), 0.5)]
)
def test_scales_that_stay(scale: tuple[int, ...], value: float) -> None:
    """A zero cannot be undone, a position is none of the weight's axes, and an axis is not added."""
    result = "float[1, n, 3, 6]" if len(scale) == 4 else "float[n, 3, 6]"
    text = f"g (float[n, 3, 4] x) => ({result} y) {{ a = MatMul(x, w) d = Mul(a, v) y = Tanh(d) }}"
    given = weights(w=(4, 6)) | {"v": np.full(scale, value, np.float32)}
    given["v"].reshape(-1)[0] = 0.25
    check(text, "fold_scale", None, weights=given, sizes=({"n": 1}, {"n": 2}))


# --- Factors of slices ------------------------------------------------------------------------------------

SLICES = """
g (float[n, m, 8] x) => (float[n, m, 12] y, float[n, m, 12] z) {{
    a = MatMul(x, w)
    b = Slice(a, {first})
    c = Slice(a, {second})
    d = Mul(b, f)
    y = Tanh(d)
    z = Neg(c)
}}
"""


@pytest.mark.parametrize(
    ("first", "second", "fires"),
    [
        ("zero, half, last", "half, all, last", True),
        ("zero, all, last, two", "one, all, last, two", True),  # every other
        ("back, far, last, down", "zero, half, last", True),  # from behind
        ("zero, half, last", "some, most, last", False),  # they overlap
        ("zero, half, last", "zero, all, first", False),  # another axis
    ],
)
def test_factor_of_a_slice(first: str, second: str, fires: bool) -> None:
    given = weights(w=(8, 24)) | QUARTER | numbers(
        zero=[0], half=[12], all=[2**62], last=[-1], two=[2], one=[1], back=[-1], far=[11], down=[-1], some=[8],
        most=[20], first=[1],
    )  # fmt: skip
    text = SLICES.format(first=first, second=second)
    if "first" in second:
        text = text.replace("float[n, m, 12] z", "float[n, m, 24] z")
    expected = ["MatMul", "Slice", "Slice", "Tanh", "Neg"] if fires else None
    check(text, "fold_scale", expected, weights=given, sizes=SMALL)


# --- Elements whose axes are moved ----------------------------------------------------------------------

ATTENTION = """
g (float[n, m, 24] x) => (float[n, 2, m, 4] y) {{
    a = Reshape(x, s)
    q0 = Gather<axis={axis}>(a, zero)
    k0 = Gather<axis={axis}>(a, one)
    v0 = Gather<axis={axis}>(a, two)
    q = Transpose<perm=[0, 2, 1, 3]>(q0)
    k = Transpose<perm=[0, 2, 3, 1]>(k0)
    v = Transpose<perm=[0, 2, 1, 3]>(v0)
    e = MatMul(q, k)
    y = MatMul(e, v)
}}
"""


@pytest.mark.parametrize(
    ("axis", "shape"), [(2, [0, 0, 3, 2, 4]), (3, [0, 0, 2, 3, 4]), (-1, [0, 0, 2, 4, 3])]
)
def test_elements_are_transposed_together(axis: int, shape: list[int]) -> None:
    given = numbers(s=shape, zero=0, one=-2, two=2)
    after = check(ATTENTION.format(axis=axis), "elements_late", [
        "Reshape", "Transpose", "Gather", "Gather", "Transpose", "Gather", "MatMul", "MatMul"
    ], weights=given, sizes=SMALL)  # fmt: skip
    assert len(operators(after)) == 8
    check(ATTENTION.format(axis=axis), "elements_late", None, opset=23, weights=given, sizes=SMALL)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("v = Transpose<perm=[0, 2, 1, 3]>", "v = Transpose<perm=[2, 0, 1, 3]>"),  # no two alike
        ("e = MatMul(q, k)", "p = Transpose<perm=[0, 2, 1, 3]>(q0) p1 = Relu(q0) p2 = Transpose<perm=[0, 2, 1, 3]>(p1)"
         " p3 = MatMul(p2, k) e0 = MatMul(q, k) e = Add(e0, p3)"),  # read otherwise as well
        ("(a, two)", "(a, i)"),  # which element is not known
    ],
)  # fmt: skip
def test_elements_that_stay(old: str, new: str) -> None:
    text = ATTENTION.format(axis=2).replace(old, new).replace("24] x)", "24] x, int64 i)")
    if "2, 0" in new:
        text = text.replace("y = MatMul(e, v)", "w = Transpose<perm=[1, 0, 2, 3]>(v) y = MatMul(e, w)")
    check(text, "elements_late", None, weights=numbers(s=[0, 0, 3, 2, 4], zero=0, one=1, two=2), sizes=SMALL)


# --- Offsets of some elements -----------------------------------------------------------------------------

MODULATED = """
g (float[n, 8] c, float[n, m, 4] x) => (float[n, m, 4] y) {{
    a = {made}
    {taken}
    s1 = {added}
    p = Mul(x, s1)
    y = Add(p, t)
}}
"""
GEMM = "Gemm(c, w, b)"
PLUS = "Add(s, one)"
SPLIT = "u = Unsqueeze(a, o1) s, t = Split<axis=2>(u)"


@pytest.mark.parametrize("opset", [13, 20])
@pytest.mark.parametrize(
    ("made", "taken", "added"),
    [
        (GEMM, SPLIT, PLUS),
        (GEMM, SPLIT, "Add(one, s)"),
        (GEMM, SPLIT, "Sub(s, one)"),
        ("Gemm<transB=1>(c, wt)", SPLIT, PLUS),  # no bias so far
        ("Gemm(c, w, b)", "u = Reshape(a, r) v = Transpose<perm=[2, 0, 1]>(u) s2 = Gather(v, zero) "
         "t2 = Gather(v, last) s = Unsqueeze(s2, o1) t = Unsqueeze(t2, o1)", PLUS),
        ("Gemm(c, w, b)", "u = Unsqueeze(a, o1) s = Slice(u, o0, four, o2) t = Slice(u, four, eight, o2)", PLUS),
        ("Gemm(c, w, b2)", SPLIT, PLUS),
    ],
)  # fmt: skip
def test_offset_goes_into_the_bias(made: str, taken: str, added: str, opset: int) -> None:
    given = weights(w=(8, 8), wt=(8, 8), b=(8,), b2=(1, 8)) | {"one": np.array([1], np.float32)}
    given |= numbers(o0=[0], o1=[1], o2=[2], four=[4], eight=[8], zero=0, last=-1, r=[0, 4, 2])
    text = MODULATED.format(made=made, taken=taken, added=added)
    if opset >= 18:
        text = text.replace("Split<axis=2>", "Split<axis=2, num_outputs=2>")
    before = parse(text, opset, given)
    after = optimized(before, "fold_offset")
    assert [operators(after).count(op) for op in ("Add", "Sub")] == [1, 0]
    assert_same(before, after, *(samples(before, 0, **size) for size in SMALL))


def test_offset_goes_into_a_sum_and_a_convolution() -> None:
    text = """
    g (float[n, 4, m, m] x) => (float[n, 2, m, m] y, float[n, 2, m, m] z) {
        a = {conv} p, q = Split<axis=1>(a) r = Add(p, h) y = Relu(r) z = Neg(q) }"""
    given = weights(w=(4, 4, 1, 1), b=(4,), d=(1, 4, 1, 1)) | {"h": np.array(0.5, np.float32)}
    for conv in ("Conv(x, w, b)", "Conv(x, w)", "Add(x, d)", "Sub(x, d)"):
        kind = conv.split("(")[0]
        check(text.replace("{conv}", conv), "fold_offset", [kind, "Split", "Relu", "Neg"], weights=given,
              sizes=SMALL)  # fmt: skip


@pytest.mark.parametrize(
    ("made", "taken", "added"),
    [
        (GEMM, SPLIT, "Add(s, large)"),
        (GEMM, SPLIT, "Add(s, vector)"),
        (GEMM, SPLIT, "Sub(one, s)"),
        (GEMM, "u = Unsqueeze(a, o1) s, t0 = Split<axis=2>(u) t = Mul(t0, s)", PLUS),  # read without it as well
        (GEMM, "u = Unsqueeze(a, o1) s, t0 = Split<axis=2>(u) t1 = Relu(u) t = Slice(t1, o0, four, o2)", PLUS),
        ("Tanh(c)", SPLIT, PLUS),
        ("Gemm<beta=0.5>(c, w, b)", SPLIT, PLUS),
        ("Gemm(c, w, rows)", SPLIT, PLUS),  # a bias that is no constant
        ("Add(c, thin)", SPLIT, PLUS),  # one number for both parts
        (GEMM, "u = Unsqueeze(a, o1) s = Slice(u, o0, four, o2) t = Slice(u, o1, five, o2)", PLUS),  # they overlap
    ],
)  # fmt: skip
def test_offsets_that_stay(made: str, taken: str, added: str) -> None:
    given = weights(w=(8, 8), b=(8,), vector=(4,), thin=(1, 1)) | numbers(
        o0=[0], o1=[1], o2=[2], four=[4], five=[5]
    )
    given |= {"one": np.array([1], np.float32), "large": np.array([2**23], np.float32)}
    text = MODULATED.format(made=made, taken=taken, added=added).replace("8] c,", "8] c, float[8] rows,")
    check(text, "fold_offset", None, weights=given, sizes=SMALL, rtol=1e-3)


# --- Splits of parts ---------------------------------------------------------------------------------------

NESTED = """
g (float[n, 6, m] x) => (float[n, p, m] y, float[n, q, m] z, float[n, r, m] w) {{
    a, b = Split<axis=1>(x, outer)
    c, d = Split<axis={axis}>({part}, inner)
    y = Relu({other})
    z = Neg(c)
    w = Abs(d)
}}
"""


@pytest.mark.parametrize(
    ("outer", "part", "inner", "fires"),
    [
        ([2, 4], "b", [2, 2], True),
        ([4, 2], "a", [2, 2], True),
        ([1, 5], "b", [2, 3], False),  # three parts that are not equal
    ],
)
@pytest.mark.parametrize("opset", [11, 17, 20])
def test_split_of_a_part(outer: list[int], part: str, inner: list[int], fires: bool, opset: int) -> None:
    text = NESTED.format(axis=1, part=part, other="ab".replace(part, ""))
    if opset < 13:
        text = text.replace("axis=1>(x, outer)", f"axis=1, split={outer}>(x)")
        text = text.replace(f"axis=1>({part}, inner)", f"axis=1, split={inner}>({part})")
    given = numbers(outer=outer, inner=inner)
    check(text, "shapes,split_chain", ["Split", "Relu", "Neg", "Abs"] if fires else None, opset=opset,
          weights=given, sizes=SMALL)  # fmt: skip


def test_many_parts_of_a_part() -> None:
    text = """
    g (float[n, 6, m] x) => (float[n, 2, m] y, float[n, 1, m] z) {
        a, b = Split<axis=1>(x, outer) c, d, e = Split<axis=-2>(b, inner) y = Relu(a) s = Add(c, d) z = Sub(s, e) }"""
    given = numbers(outer=[3, 3], inner=[1, 1, 1])
    check(text.replace("2, m] y", "3, m] y"), "shapes,split_chain", ["Split", "Relu", "Add", "Sub"], weights=given,
          sizes=SMALL)  # fmt: skip


@pytest.mark.parametrize(("axis", "part", "other"), [(0, "b", "a"), (1, "b", "b")])
def test_splits_that_stay(axis: int, part: str, other: str) -> None:
    """Along another axis, or of a part that is read as a whole."""
    text = NESTED.format(axis=axis, part=part, other=other).replace("[n, 6, m]", "[4, 6, m]")
    text = (
        text.replace("[n, p, m]", "[s, p, m]")
        .replace("[n, q, m]", "[t, q, m]")
        .replace("[n, r, m]", "[u, r, m]")
    )
    check(
        text,
        "shapes,split_chain",
        None,
        weights=numbers(outer=[2, 4], inner=[2, 2]),
        sizes=({"m": 2}, {"m": 3}),
    )
