"""Chains of moves come out as few moves as will do, and move the same elements."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import assert_same, check, operators, optimized, parse, samples


@pytest.mark.parametrize(
    ("shape", "steps", "expected"),
    [
        # Image to tokens and back.
        ("n,8,4,6", ["R 0,8,24", "T 0,2,1", "R 0,4,6,8", "T 0,3,1,2"], []),
        # The folding of patches: five steps are three.
        (
            "n,6,8,10",
            ["R -1,2,5,2", "T 0,2,1,3", "R -1,6,20,4", "T 0,3,2,1", "R -1,20,6"],
            ["Reshape", "Transpose", "Reshape"],
        ),
        # Heads over joined batches.
        (
            "n,7,24",
            ["R 0,7,4,6", "T 0,2,1,3", "R -1,7,6", "T 0,2,1", "R -1,4,6,7"],
            ["Reshape", "Transpose"],
        ),
        # A Transpose and a Reshape turn around where heads are split, and only there.
        ("n,7,24", ["T 0,2,1", "R 0,4,6,7"], ["Reshape", "Transpose"]),
        ("n,4,6,7", ["T 0,3,1,2", "R 0,7,24"], ["Reshape", "Transpose"]),
        ("n,4,6,7", ["T 0,2,1,3", "R 0,6,28"], ["Transpose", "Reshape"]),
        # Nothing in it goes away.
        ("n,6,8", ["R 0,2,3,8", "T 0,2,1,3", "R 0,6,8"], ["Reshape", "Transpose", "Reshape"]),
        ("n,6,m", ["R 0,2,3,-1", "T 0,2,1,3"], ["Reshape", "Transpose"]),
        # Axes of size 1 come and go.
        ("n,1,6,8", ["T 0,2,1,3", "R 0,6,8", "R 0,1,6,8"], []),
        ("n,6,1,8", ["R 0,6,8", "T 0,2,1", "R 0,8,6,1"], ["Transpose"]),
    ],
)
def test_chain(shape: str, steps: list[str], expected: list[str]) -> None:
    text = f"g (float[{shape}] x) => (float[{','.join('abcdef'[: len(steps[-1][2:].split(','))])}] y) {{ "
    value = "x"
    weights: dict[str, Any] = {}
    for index, step in enumerate(steps):
        kind, numbers = step[0], step[2:]
        result = f"v{index}"
        if kind == "R":
            weights[f"s{index}"] = np.array([int(n) for n in numbers.split(",")])
            text += f"{result} = Reshape({value}, s{index}) "
        else:
            text += f"{result} = Transpose<perm=[{numbers}]>({value}) "
        value = result
    text += f"y = Relu({value}) }}"
    check(text, "shapes,move_chain", [*expected, "Relu"], weights=weights)


def test_what_is_used_elsewhere_is_passed_by() -> None:
    text = """g (float[n,6,8] x) => (float[n,8,6] y, float[n,6,8] z)
        { t = Transpose<perm=[0,2,1]>(x) y = Relu(t) u = Transpose<perm=[0,2,1]>(t) z = Abs(u) }"""
    check(text, "shapes,move_chain", ["Transpose", "Relu", "Abs"])


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[Any], list[tuple[str, list[int]]]]:
    """A shape whose first axis may be symbolic, and moves that fit it."""
    dims = [draw(st.sampled_from([1, 2, 3, 4, 6])) for _ in range(draw(st.integers(1, 4)))]
    start, steps = [2, *dims], []
    dims = list(start)
    for _ in range(draw(st.integers(2, 6))):
        if draw(st.booleans()):
            perm = draw(st.permutations(range(len(dims))))
            dims = [dims[axis] for axis in perm]
            steps.append(("T", list(perm)))
        else:
            total, dims = math.prod(dims), []
            while total > 1 and len(dims) < 4:
                size = draw(st.sampled_from([d for d in range(1, total + 1) if total % d == 0]))
                dims.append(size)
                total //= size
            dims.append(total)
            steps.append(("R", list(dims)))
    return start, steps


@settings(max_examples=60, deadline=None)
@given(case=chains())
def test_random_chains(case: tuple[list[Any], list[tuple[str, list[int]]]]) -> None:
    start, steps = case
    text = f"g (float[{','.join(map(str, start))}] x) => (float[{','.join('abcdefg'[: len(steps[-1][1])])}] y) {{ "
    weights, value = {}, "x"
    for index, (kind, numbers) in enumerate(steps):
        if kind == "R":
            weights[f"s{index}"] = np.array(numbers)
            text += f"v{index} = Reshape({value}, s{index}) "
        else:
            text += f"v{index} = Transpose<perm={numbers}>({value}) "
        value = f"v{index}"
    before = parse(text + f"y = Relu({value}) }}", 17, weights)
    after = optimized(before, "shapes,move_chain")
    assert len(operators(after)) <= len(steps) + 1
    assert_same(before, after, samples(before))


TOKENS = """g (float[n,{c},{s}] x) => (float[n,d,{t}] y) {{
    t = Transpose<perm=[{into}]>(x) m = MatMul(t, w) a = Add(m, b) u = Transpose<perm=[{back}]>(a) y = Relu(u) }}"""


@pytest.mark.parametrize(
    ("s", "into", "back"),
    [("m", "0,2,1", "0,2,1"), ("m,5", "0,2,3,1", "0,3,1,2"), ("4,5,3", "0,2,3,4,1", "0,4,1,2,3")],
)
def test_a_product_over_channels_is_a_convolution(s: str, into: str, back: str) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((6, 8)).astype(np.float32),
        "b": rng.standard_normal(8).astype(np.float32),
    }
    dims = ",".join("efgh"[: s.count(",") + 1])
    text = TOKENS.format(c=6, s=s, t=dims, into=into, back=back)
    check(text, "shapes,pointwise_conv", ["Conv", "Relu"], weights=weights)


def test_an_image_that_goes_through_tokens() -> None:
    rng = np.random.default_rng(0)
    text = """g (float[n,6,4,5] x) => (float[n,8,4,5] y) <int64[3] s = {0,6,20}, int64[4] t = {0,8,4,5}> {
        r = Reshape(x, s) a = Transpose<perm=[0,2,1]>(r) m = MatMul(a, w) b = Transpose<perm=[0,2,1]>(m)
        c = Reshape(b, t) y = Relu(c) }"""
    weights = {"w": rng.standard_normal((6, 8)).astype(np.float32)}
    check(text, "shapes,pointwise_conv", ["Conv", "Relu"], weights=weights)


@pytest.mark.parametrize(
    "text",
    [
        # It comes back in another shape.
        """g (float[n,6,4,5] x) => (float[n,8,5,4] y) {
            t = Transpose<perm=[0,2,3,1]>(x) m = MatMul(t, w) y = Transpose<perm=[0,3,2,1]>(m) }""",
        # The product is used elsewhere.
        """g (float[n,6,5] x) => (float[n,8,5] y, float[n,5,8] z) {
            t = Transpose<perm=[0,2,1]>(x) m = MatMul(t, w) y = Transpose<perm=[0,2,1]>(m) z = Relu(m) }""",
        # Another axis is multiplied.
        """g (float[n,5,6] x) => (float[n,8,5] y) { m = MatMul(x, w) y = Transpose<perm=[0,2,1]>(m) }""",
        # What is added is no bias.
        """g (float[n,6,5] x) => (float[n,8,5] y) <float[5,8] c = {0,1,2,3,4,5,6,7,8,9,0,1,2,3,4,5,6,7,8,9,
            0,1,2,3,4,5,6,7,8,9,0,1,2,3,4,5,6,7,8,9}> { t = Transpose<perm=[0,2,1]>(x) m = MatMul(t, w)
            a = Add(m, c) y = Transpose<perm=[0,2,1]>(a) }""",
    ],
)
def test_other_products_stay(text: str) -> None:
    weights = {"w": np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)}
    check(text, "shapes,pointwise_conv", None, weights=weights)


def test_turning_around() -> None:
    text = """g (float[n,7,m] x) => (float[n,7,m] y) {
        a, b = Split<axis=1>(x, s) c = Concat<axis=1>(b, a) y = Relu(c) }"""
    check(text, "shapes,roll", ["Gather", "Relu"], weights={"s": np.array([3, 4])})
    sliced = """g (float[n,7] x) => (float[n,7] y) <int64[1] z = {0}, int64[1] k = {-3}, int64[1] e = {99},
        int64[1] o = {1}> { a = Slice(x, k, e, o) b = Slice(x, z, k, o) c = Concat<axis=1>(a, b) y = Relu(c) }"""
    check(sliced, "shapes,roll", ["Gather", "Relu"])


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("a, b = Split<axis=1>(x, s) c = Concat<axis=1>(a, b) y = Relu(c)", [3, 4]),
        ("a, b = Split<axis=1>(x, s) c = Concat<axis=0>(b, b) y = Relu(c)", [3, 4]),
        ("a, b = Split<axis=1>(x, s) c = Concat<axis=1>(b, a) d = Add(a, b) y = Mul(c, d)", [1, 1]),
        ("a, b, d = Split<axis=1>(x, s) c = Concat<axis=1>(b, a) y = Concat<axis=1>(c, d)", [3, 3, 1]),
    ],
)
def test_near_misses_of_turning_around(text: str, sizes: list[int]) -> None:
    graph = f"g (float[n,{sum(sizes)}] x) => (float[e,f] y) {{ {text} }}"
    check(graph, "shapes,roll", None, weights={"s": np.array(sizes)})


def test_slices_that_share_out() -> None:
    text = """g (float[n,7] x) => (float[n,3] y, float[n,4] z, float[n,4] w) <int64[1] z0 = {0}, int64[1] k = {3},
        int64[1] e = {9223372036854775807}, int64[1] o = {1}, int64[1] m4 = {-4}> {
        b = Slice(x, k, e, o) a = Slice(x, z0, k, o) c = Slice(x, m4, e, o)
        y = Relu(a) z = Abs(b) w = Neg(c) }"""
    check(text, "shapes,slice_partition", ["Split", "Relu", "Abs", "Neg"])


@pytest.mark.parametrize(
    ("first", "second"), [((0, 3), (4, 7)), ((0, 4), (3, 7)), ((0, 3), (3, 6)), ((1, 3), (3, 7))]
)
def test_slices_that_leave_out_or_overlap(first: tuple[int, int], second: tuple[int, int]) -> None:
    text = f"""g (float[n,7] x) => (float[n,p] y, float[n,q] z) <int64[1] a = {{{first[0]}}}, int64[1] b = {{{first[1]}}},
        int64[1] c = {{{second[0]}}}, int64[1] d = {{{second[1]}}}, int64[1] o = {{1}}> {{
        u = Slice(x, a, b, o) v = Slice(x, c, d, o) y = Relu(u) z = Abs(v) }}"""
    check(text, "shapes,slice_partition", None)


@pytest.mark.parametrize(
    ("places", "fires"), [([2, 3, 4], True), ([0, 2, 4], True), ([4, 3, 2], False), ([2, 2], False)]
)
def test_gather_in_steps(places: list[int], fires: bool) -> None:
    text = "g (float[n,7] x) => (float[n,k] y) { a = Gather<axis=1>(x, i) y = Relu(a) }"
    check(text, "shapes,gather_slice", ["Slice", "Relu"] if fires else None, weights={"i": np.array(places)})


@pytest.mark.parametrize(
    ("perm", "axis", "index", "fires"),
    [
        ("1,0,2", 1, -1, True),
        ("1,0,2", 0, 0, True),
        ("2,0,1", 0, 1, True),
        ("2,1,0", 1, 0, False),
        ("0,2,1", 0, 0, False),
    ],
)
def test_one_slice_of_what_is_moved(perm: str, axis: int, index: int, fires: bool) -> None:
    text = f"""g (float[n,m,4] x) => (float[p,q] y) {{
        t = Transpose<perm=[{perm}]>(x) a = Gather<axis={axis}>(t, i) y = Relu(a) }}"""
    check(text, "shapes,gather_moved", ["Gather", "Relu"] if fires else None, weights={"i": np.array(index)})


@pytest.mark.parametrize(
    ("shape", "axis", "squeezed", "fires"),
    [("3,n,4", 0, 0, True), ("n,3,4", 1, -2, True), ("3,n,1", 0, 2, False), ("6,n,4", 0, None, False)],
)
def test_one_by_one(shape: str, axis: int, squeezed: int | None, fires: bool) -> None:
    squeeze = "Abs({})" if squeezed is None else "Squeeze({}, axes)"
    text = f"""g (float[{shape}] x) => (float[p,q] u, float[r,s] v, float[t,w] y) {{
        a, b, c = Split<axis={axis}>(x) d = {squeeze.format("a")} e = {squeeze.format("b")}
        f = {squeeze.format("c")} u = Relu(d) v = Neg(e) y = Exp(f) }}"""
    if squeezed is None:
        text = text.replace("q]", "q,k]").replace("s]", "s,k]").replace("w]", "w,k]")
    expected = [*["Gather"] * 3, "Relu", "Neg", "Exp"]
    weights = {"axes": np.array([squeezed or 0])}
    after = optimized(parse(text, 17, weights), "shapes,unbind")
    assert sorted(operators(after)) == sorted(expected if fires else operators(parse(text, 17, weights)))
    assert_same(parse(text, 17, weights), after, *(samples(parse(text, 17, weights), n=n) for n in (1, 2)))


@pytest.mark.parametrize(
    ("start", "end", "fires"), [(1, 2, True), (-1, 99, True), (0, 1, True), (3, 4, False)]
)
def test_one_element(start: int, end: int, fires: bool) -> None:
    text = """g (float[n,3,4] x) => (float[p,q] y) { a = Slice(x, s, e, o) b = Squeeze(a, o) y = Relu(b) }"""
    weights = {"s": np.array([start]), "e": np.array([end]), "o": np.array([1])}
    if not fires:  # the batch, whose size is not known to be 1
        text = text.replace("[n,3,4]", "[3,n,4]")
        weights |= {"s": np.array([0]), "e": np.array([1])}
    check(text, "shapes,unbind", ["Gather", "Relu"] if fires else None, weights=weights)
