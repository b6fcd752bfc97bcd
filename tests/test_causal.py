"""Masks that hide what comes after each position: every spelling, several sizes, and what is none."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import Array, assert_same, check, operators, optimized, parse, samples

LOW = float(np.finfo(np.float32).min)
SIZES = ({"n": 1, "m": 3}, {"n": 3, "m": 5})
CONSTANTS = {
    "zero": np.array(0, np.int64),
    "one": np.array(1, np.int64),
    "first": np.array([0], np.int64),
    "second": np.array([1], np.int64),
    "both": np.array([0, 1], np.int64),
    "none": np.array(0, np.float32),
    "low": np.array(LOW, np.float32),
    "inf": np.array(-np.inf, np.float32),
    "some": np.array(-5, np.float32),
    "two": np.array(2, np.int64),
    "lows": np.array([LOW], np.float32),
    "yes": np.array(True),
}
PLACES = """
    s0 = Shape(q)
    size = Gather(s0, two)
    places = Range(zero, size, one)
    keys = Unsqueeze(places, first)
    queries = Unsqueeze(places, second)
"""
ATTENTION = """g (float[n, 4, m, 2] q, float[n, 4, m, 2] k, float[n, 4, m, 2] v) => (float[n, 4, m, 2] y) {{
    {mask}
    kt = Transpose<perm=[0, 1, 3, 2]>(k)
    s = MatMul(q, kt)
    a = Add(s, mask)
    p = Softmax<axis=-1>(a)
    y = MatMul(p, v)
}}"""

CAUSAL = [
    "c = LessOrEqual(keys, queries) mask = Where(c, none, low)",
    "c = GreaterOrEqual(queries, keys) mask = Where(c, none, inf)",
    "c = Greater(keys, queries) mask = Where(c, low, none)",
    "c = Less(queries, keys) mask = Where(c, inf, none)",
    "next = Add(queries, one) c = Less(keys, next) mask = Where(c, none, low)",
    "d = Greater(keys, queries) c = Not(d) u = Unsqueeze(c, both) mask = Where(u, none, low)",
    "d = Greater(keys, queries) f = Cast<to=1>(d) mask = Mul(f, low)",
    "d = LessOrEqual(keys, queries) c = And(d, yes) mask = Where(c, none, low)",
    "w = Unsqueeze(size, first) z = Concat<axis=0>(w, w) f = Expand(lows, z) mask = Trilu<upper=1>(f, one)",
]
NOT_CAUSAL = [
    "c = LessOrEqual(keys, queries) mask = Where(c, low, none)",  # the other way round
    "c = Less(keys, queries) mask = Where(c, none, low)",  # not even itself, with a first row of nothing
    "c = LessOrEqual(keys, queries) mask = Where(c, none, some)",  # looks away, but not wholly
    "c = LessOrEqual(keys, queries) mask = Where(c, some, low)",  # something is added
    "next = Add(queries, one) c = LessOrEqual(keys, next) mask = Where(c, none, low)",  # one place further
    "w = Unsqueeze(size, first) z = Concat<axis=0>(w, w) f = Expand(lows, z) mask = Trilu<upper=1>(f, two)",
    "w = Unsqueeze(size, first) z = Concat<axis=0>(w, w) f = Expand(lows, z) mask = Trilu<upper=0>(f)",
]


def flags(proto: object) -> list[tuple[int, int]]:
    """Inputs and `is_causal` of each Attention."""
    return [
        (len(n.input), next((a.i for a in n.attribute if a.name == "is_causal"), 0))
        for n in proto.graph.node  # type: ignore[attr-defined]
        if n.op_type == "Attention"
    ]


@pytest.mark.parametrize("mask", CAUSAL)
def test_every_spelling_is_said_with_an_attribute(mask: str) -> None:
    before = parse(ATTENTION.format(mask=PLACES + mask), 23, CONSTANTS)
    after = optimized(before, "shapes,attention(float32=true),tidy")
    assert flags(after) == [(3, 1)]
    assert not {"Where", "Range", "Trilu"} & set(operators(after))
    assert_same(before, after, *(samples(before, i, **s) for i, s in enumerate(SIZES)))


@pytest.mark.parametrize("mask", NOT_CAUSAL)
def test_what_hides_more_or_less(mask: str) -> None:
    before = parse(ATTENTION.format(mask=PLACES + mask), 23, CONSTANTS)
    after = optimized(before, "shapes,attention(float32=true),tidy")
    assert flags(after) == [(4, 0)]


def table(size: int, least: float, repeated: int = 1) -> Array:
    return np.triu(np.full((repeated, 1, size, size), least, np.float32), 1)


@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("least", [LOW, -np.inf, -1e4])
def test_masks_that_are_constant(size: int, least: float) -> None:
    text = ATTENTION.format(mask="").replace("m,", f"{size},")
    before = parse(text, 23, {"mask": table(size, least)})
    after = optimized(before, "shapes,attention(float32=true),tidy")
    assert flags(after) == [(3, 1)]
    assert_same(before, after, *(samples(before, n, n=n) for n in (1, 2)))


@pytest.mark.parametrize("place", [(0, 0, 1, 0), (0, 0, 0, 1), (0, 0, 1, 1)])
def test_constant_masks_with_another_entry(place: tuple[int, ...]) -> None:
    mask = table(3, LOW)
    mask[place] = -1
    check(
        ATTENTION.format(mask="").replace("m,", "3,"),
        "shapes,attention(float32=true),tidy",
        ["Attention"],
        opset=23,
        weights={"mask": mask},
        sizes=[{"n": 2}],
    )
    after = optimized(
        parse(ATTENTION.format(mask="").replace("m,", "3,"), 23, {"mask": mask}),
        "shapes,attention(float32=true),tidy",
    )
    assert flags(after) == [(4, 0)]


OPERATOR = """g (float[n, 4, m, 2] q, float[n, 4, m, 2] k, float[n, 4, m, 2] v) => (float[n, 4, m, 2] y) {{
    {mask}
    y = Attention(q, k, v, mask)
}}"""


@pytest.mark.parametrize(
    "mask", ["mask = LessOrEqual(keys, queries)", "c = Greater(keys, queries) mask = Where(c, low, none)"]
)
def test_an_attention_with_such_a_mask(mask: str) -> None:
    after = check(
        OPERATOR.format(mask=PLACES + mask),
        "shapes,causal_attention,tidy",
        ["Attention"],
        opset=23,
        weights=CONSTANTS,
    )
    assert flags(after) == [(3, 1)]


@pytest.mark.parametrize(
    "mask", ["mask = Less(keys, queries)", "mask = LessOrEqual(queries, keys)", "mask = Equal(keys, queries)"]
)
def test_an_attention_with_another_mask(mask: str) -> None:
    before = parse(OPERATOR.format(mask=PLACES + mask), 23, CONSTANTS)
    assert flags(optimized(before, "shapes,causal_attention")) == [(4, 0)]


def test_keys_from_before_are_not_hidden() -> None:
    text = OPERATOR.format(mask=PLACES + "mask = LessOrEqual(keys, queries)")
    text = text.replace("float[n, 4, m, 2] v)", "float[n, 4, m, 2] v, float[n, 4, 0, 2] past)")
    text = text.replace("y = Attention(q, k, v, mask)", "y, pk, pv = Attention(q, k, v, mask, past, past)")
    before = parse(text, 23, CONSTANTS)
    assert flags(optimized(before, "shapes,causal_attention")) == [(6, 0)]


# Where ONNX Runtime's kernel for float32 is faster.


@pytest.mark.parametrize(("size", "count"), [(64, 1), (256, 1), (257, 0)])
def test_fast_kernels_are_for_few_keys(size: int, count: int) -> None:
    text = ATTENTION.format(mask="").replace("m,", f"{size},")
    before = parse(text, 23, {"mask": table(size, LOW)})
    after = optimized(before, "shapes,attention(fast_float32=true),tidy")
    assert operators(after).count("Attention") == count
    if count:
        assert_same(before, after, samples(before, n=2))


def test_fast_kernels_are_for_keys_of_known_number() -> None:
    mask = PLACES + "c = LessOrEqual(keys, queries) mask = Where(c, none, low)"
    before = parse(ATTENTION.format(mask=mask), 23, CONSTANTS)
    assert "Attention" not in operators(optimized(before, "shapes,attention(fast_float32=true),tidy"))
