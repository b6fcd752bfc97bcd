"""Elements of the last axis that are moved, repeated, negated; and rows that are looked up."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import Array, assert_same, check, operators, optimized, parse

RANDOM = np.random.default_rng(7)
PASS = "shapes,fuse(element_gather),tidy"
SIZES = ((1, 4), (3, 5))


def random(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def vector(*values: int) -> Array:
    return np.array(values, np.int64)


NUMBERS = {"zero": vector(0), "one": vector(1), "two": vector(2), "three": vector(3), "far": vector(99)}
NUMBERS |= {"last": vector(-1), "eight": vector(8), "flat": vector(0, 0, 8), "fold": vector(0, 0, 4, 2)}


def model(body: str, inputs: str = "float[b, s, 8] x", opset: int = 17, **weights: Array) -> onnx.ModelProto:
    return parse(f"g ({inputs}) => (float[b, s, o] y) {{ {body} }}", opset, NUMBERS | weights)


def feeds(b: int, s: int) -> dict[str, Array]:
    return {"x": random(b, s, 8)}


PAIRS = """
    even = Slice(x, zero, far, two, two)
    odd = Slice(x, one, far, two, two)
    minus = Neg(odd)
    a = Unsqueeze(minus, last)
    c = Unsqueeze(even, last)
    both = Concat<axis=-1>(a, c)
    turned = Reshape(both, flat)
"""
VIEWED = """
    pairs = Reshape(x, fold)
    first, second = Split<axis=3>(pairs)
    minus = Neg(second)
    both = Concat<axis=3>(minus, first)
    turned = Reshape(both, flat)
"""


@pytest.mark.parametrize("spelled", [PAIRS, VIEWED], ids=["slices", "views"])
def test_pairs_are_turned_by_one_gather(spelled: str) -> None:
    body = f"{spelled} p = Mul(turned, sine)\n q = Mul(x, cosine)\n y = Add(p, q)"
    before = model(body, sine=random(8), cosine=random(8))
    after = optimized(before, PASS)
    assert operators(after) == ["Gather", "Mul", "Mul", "Add"]
    for b, s in SIZES:
        assert_same(before, after, feeds(b, s))


def test_a_computed_sine_gets_the_signs_once() -> None:
    body = f"{PAIRS} wave = Sin(angle)\n p = Mul(turned, wave)\n q = Mul(x, wave)\n y = Add(p, q)"
    before = model(body, "float[b, s, 8] x, float[s, 8] angle")
    after = optimized(before, PASS)
    assert operators(after).count("Mul") == 3
    for b, s in SIZES:
        assert_same(before, after, feeds(b, s) | {"angle": random(s, 8)})


def test_a_sine_that_was_itself_gathered() -> None:
    """The signs stand behind a sine that this pass has made."""
    body = f"""
    f = Mul(t, frequency) u = Unsqueeze(f, last) r = Expand(u, times) wide = Reshape(r, flat)
    {PAIRS} p = Mul(turned, wide) q = Mul(x, wide) y = Add(p, q)"""
    weights = {"frequency": random(4), "times": vector(1, 1, 1, 2)}
    before = model(body, "float[b, s, 8] x, float[b, s, 1] t", **weights)
    after = optimized(before, PASS)
    assert "Reshape" not in operators(after)
    for b, s in SIZES:
        assert_same(before, after, feeds(b, s) | {"t": random(b, s, 1)})


def test_signs_without_a_factor() -> None:
    before = model(f"{PAIRS} y = Relu(turned)")
    after = optimized(before, PASS)
    assert operators(after) == ["Gather", "Mul", "Relu"]
    for b, s in SIZES:
        assert_same(before, after, feeds(b, s))


def test_pairs_to_halves_and_back_are_nothing() -> None:
    body = """
    pairs = Reshape(x, fold)
    halves = Transpose<perm=[0, 1, 3, 2]>(pairs)
    h = Reshape(halves, flat)
    first = Slice(h, zero, four, two)
    second = Slice(h, four, far, two)
    a = Unsqueeze(first, last)
    c = Unsqueeze(second, last)
    both = Concat<axis=-1>(a, c)
    again = Reshape(both, flat)
    y = Relu(again)
    """
    before = model(body, four=vector(4))
    after = optimized(before, PASS)
    assert operators(after) == ["Relu"]
    for b, s in SIZES:
        assert_same(before, after, feeds(b, s))


@pytest.mark.parametrize("kind", ["Mul", "Div"])
def test_angles_are_joined_in_the_constant(kind: str) -> None:
    body = f"f = {kind}(x, frequency)\n both = Concat<axis=-1>(f, f)\n n = Neg(both)\n y = Sin(n)"
    before = model(body, "float[b, s, 1] x", frequency=random(1, 1, 6) + 3)
    after = optimized(before, PASS)
    assert operators(after) == [kind, "Sin"]
    for b, s in SIZES:
        assert_same(before, after, {"x": random(b, s, 1)})


def test_rows_of_a_table_are_reordered_in_the_table() -> None:
    body = """
    row = Gather<axis=0>(table, i)
    a = Unsqueeze(row, last)
    wide = Expand(a, times)
    twice = Reshape(wide, to)
    y = Sin(twice)
    """
    weights = {"table": random(11, 6), "times": vector(1, 1, 1, 2), "to": vector(0, 0, 12)}
    before = model(body, "int64[b, s] i", **weights)
    after = optimized(before, PASS)
    assert operators(after) == ["Gather", "Sin"]
    for b, s in SIZES:
        assert_same(before, after, {"i": RANDOM.integers(0, 11, (b, s))})


NEAR_MISSES = {
    "halves stay blocks": """
    first = Slice(x, zero, four, two)
    second = Slice(x, four, far, two)
    minus = Neg(second)
    turned = Concat<axis=-1>(minus, first)
    y = Relu(turned)
    """,
    "two sources": PAIRS.replace("Slice(x, one", "Slice(z, one") + "y = Relu(turned)",
    "along another axis": PAIRS.replace("two, two", "one, two").replace("Reshape(both, flat)", "Relu(both)")
    + "y = ReduceSum<keepdims=0>(turned, last)",
    "a part is needed elsewhere": PAIRS + "m = ReduceSum(even)\n k = Mul(turned, m)\n y = Relu(k)",
}


@pytest.mark.parametrize("kind", NEAR_MISSES)
def test_near_misses(kind: str) -> None:
    before = model(f"z = Sin(x)\n {NEAR_MISSES[kind]}", four=vector(4))
    after = optimized(before, "shapes,fuse(element_gather)")
    if kind == "a part is needed elsewhere":
        assert "Slice" in operators(after)
    else:
        assert operators(after) == operators(before)
    for b, s in ((1, 4), (3, 6)):
        assert_same(before, after, feeds(b, s))


def test_a_product_with_more_than_one_number_for_each_row_stays() -> None:
    before = model("f = Mul(x, c)\n both = Concat<axis=-1>(f, f)\n y = Sin(both)", c=random(8))
    after = optimized(before, "shapes,fuse(element_gather)")
    assert operators(after) == operators(before)


def test_queries_and_keys_are_turned_at_once() -> None:
    """The Gathers of both are equal, so that one before the Split does it."""
    turn = PAIRS.replace("flat)", "to)").replace("two, two)", "axis, two)")
    lines = []
    for half in ("q", "k"):
        text = turn
        for name in ("even", "odd", "minus", "both", "turned", "a ", "c "):
            text = text.replace(name, name.strip() + half + " " * name.endswith(" "))
        text = text.replace("(a, c)", f"(a{half}, c{half})").replace("(x,", f"({half},")
        lines += [text, f"{half}1 = Mul(turned{half}, sine)", f"{half}2 = Add({half}1, {half})"]
    body = "\n".join(["q, k = Split<axis=2>(x)", *lines, "y = Sub(q2, k2)"])
    before = parse(
        f"g (float[b, s, 4, 6] x) => (float[b, s, 2, 6] y) {{ {body} }}",
        17,
        NUMBERS | {"to": vector(0, 0, 2, 6), "axis": vector(3), "sine": random(6)},
    )
    after = optimized(before, "shapes,fuse(element_gather,split_late),tidy")
    assert operators(after).count("Gather") == 1
    for b, s in SIZES:
        assert_same(before, after, {"x": random(b, s, 4, 6)})


ROWS = "{repeat}\n g1 = GatherElements<axis=1>(table, j)\n y = Relu(g1)"


@pytest.mark.parametrize("repeat", ["j = Expand(i, to)", "j = Tile(i, times)"])
def test_rows_are_gathered(repeat: str) -> None:
    weights = {"table": random(1, 9, 4), "to": vector(1, 1, 4), "times": vector(1, 1, 4)}
    text = f"g (int64[1, s, 1] i) => (float[1, s, 4] y) {{ {ROWS.format(repeat=repeat)} }}"
    before = parse(text, 17, weights)
    after = optimized(before, "shapes,fuse(gather_rows),tidy")
    assert "GatherElements" not in operators(after)
    for s in (1, 5):
        assert_same(before, after, {"i": RANDOM.integers(0, 9, (1, s, 1))})


@pytest.mark.parametrize("given", ["int64[1, s, 4] i", "int64[1, 1, 4] i", "int64[1, s, 1] i"])
def test_rows_that_differ_stay(given: str) -> None:
    """Indices that differ along another axis; one index only; a part of the table's other axis."""
    whole = given != "int64[1, s, 1] i"
    weights = {"table": random(1, 9, 4 if whole else 6), "to": vector(1, 1 if "s" in given else 3, 4)}
    text = f"g ({given}) => (float[a, s2, o] y) {{ {ROWS.format(repeat='j = Expand(i, to)')} }}"
    before = parse(text, 17, weights)
    after = optimized(before, "shapes,fuse(gather_rows)")
    assert "GatherElements" in operators(after)
    shape = [1, 5 if "s" in given else 1, 4 if whole else 1]
    assert_same(before, after, {"i": RANDOM.integers(0, 9, shape)})


def test_what_is_only_moved_is_left_to_others() -> None:
    """One head of keys: a Reshape and a Transpose, as the heads of the queries have."""
    text = """g (float[n, m, 4] x) => (float[n, 1, m, 4] y) {
        a = Reshape(x, s)
        b = Transpose<perm=[0, 2, 1, 3]>(a)
        y = Relu(b)
    }"""
    check(text, "element_gather", None, weights={"s": np.array([0, 0, 1, 4])})
