"""Loops and scans of known length are written out where that makes few nodes, and all others stay."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from helpers import assert_same, operators, optimized, parse, samples
from onnxlathe.rewrite import ORIGIN

BODY = "f = Cast<to=1>(i) t = Tanh(v) w = Add(t, f)"


def loop(
    trips: str = "four",
    going: str = "yes",
    goes_on: str = "d = Identity(c)",
    body: str = BODY,
    scans: str = "",
    given: str = "",
) -> onnx.ModelProto:
    """A Loop over one value; `scans` is what of the body is stacked."""
    outs = ", float[k, n, 4] all" if scans else ""
    results = f", float[n, 4] {scans}" if scans else ""
    text = f"""
    g ({given}float[n, 4] x) => (float[n, 4] y{outs})
      <int64 four = {{4}}, int64 one = {{1}}, int64 none = {{0}}, bool yes = {{1}}, bool no = {{0}}> {{
        r = Neg(x)
        z{", all" if scans else ""} = Loop ({trips}, {going}, r) <
            body = b (int64 i, bool c, float[n, 4] v) => (bool d, float[n, 4] w{results}) {{ {goes_on} {body} }}
        >
        y = Neg(z)
    }}"""
    return parse(text)


def both(before: onnx.ModelProto, after: onnx.ModelProto, **more: object) -> None:
    feeds = [samples(before, seed, n=n) | more for seed, n in enumerate((1, 3))]
    assert_same(before, after, *feeds)


@pytest.mark.parametrize(
    "goes_on",
    ["d = Identity(c)", "d = Identity(yes)", "e = Identity(c) d = Identity(e)", "d = Cast<to=9>(c)"],
)
def test_a_few_iterations(goes_on: str) -> None:
    before = loop(goes_on=goes_on)
    after = optimized(before, "shapes,fold(unroll=64),tidy")
    # The first number is 0, and adding it is nothing.
    assert operators(after) == ["Neg", "Tanh", *["Tanh", "Add"] * 3, "Neg"]
    both(before, after)


def test_what_is_stacked() -> None:
    before = loop(body=f"{BODY} s = Mul(w, x)", scans="s")
    after = optimized(before, "shapes,fold(unroll=64),tidy")
    assert "Loop" not in operators(after)
    assert operators(after).count("Concat") == 1
    both(before, after)


def test_it_never_runs() -> None:
    for before in (loop(trips="none"), loop(going="no"), loop(trips="", going="no")):
        after = optimized(before, "shapes,fold(unroll=64),tidy")
        assert operators(after) == ["Identity"]
        both(before, after)


def test_nothing_is_stacked() -> None:
    text = """
    g (float[2, 4] x) => (float[k, 2, 4] y) <int64 none = {0}, bool yes = {1}> {
        z, y = Loop (none, yes, x) <
            body = b (int64 i, bool c, float[2, 4] v) => (bool d, float[2, 4] w, float[2, 4] s) {
                d = Identity(c) w = Neg(v) s = Exp(v)
            }
        >
    }"""
    before = parse(text)
    after = optimized(before, "shapes,fold(unroll=64)")
    assert "Loop" not in operators(after)
    assert_same(before, after, samples(before))


@pytest.mark.parametrize(
    "before",
    [
        loop(trips="one"),
        loop(trips="one", goes_on="d = Not(c)"),
        loop(goes_on="d = Identity(no)"),
        loop(trips="", goes_on="d = Identity(no)"),
        loop(trips="", going="", goes_on="d = Identity(no)"),
    ],
)
def test_it_runs_once(before: onnx.ModelProto) -> None:
    after = optimized(before, "shapes,fold(unroll=64),tidy")
    assert "Loop" not in operators(after)
    assert operators(after).count("Tanh") == 1
    both(before, after)


def test_it_runs_once_however_large() -> None:
    body = " ".join(f"a{k} = Tanh({'v' if not k else f'a{k - 1}'})" for k in range(80)) + " w = Neg(a79)"
    once, twice = loop(trips="one", body=body), loop(trips="four", body=body)
    assert "Loop" not in operators(optimized(once, "shapes,fold"))
    assert "Loop" in operators(optimized(twice, "shapes,fold"))
    assert "Loop" not in operators(optimized(twice, "shapes,fold(unroll=1000)"))


@pytest.mark.parametrize(
    ("before", "more"),
    [
        (loop(trips="count", given="int64 count, "), {"count": np.array(3)}),
        (loop(going="p", given="bool p, "), {"p": np.array(True)}),
        (loop(goes_on="h = Constant<value_int=2>() d = Less(i, h)"), {}),
    ],
)
def test_it_may_run_any_number_of_times(before: onnx.ModelProto, more: dict[str, object]) -> None:
    after = optimized(before, "shapes,fold(unroll=64),tidy")
    assert "Loop" in operators(after)
    both(before, after, **more)


def test_values_that_grow() -> None:
    """Their shape is another one in each iteration, whatever the body says."""
    text = """
    g (float[n, 4] x) => (float[m, 4] y) <int64 three = {3}, bool yes = {1}> {
        z = Loop (three, yes, x) <
            body = b (int64 i, bool c, float[a, 4] v) => (bool d, float[b, 4] w) {
                d = Identity(c) w = Concat<axis=0>(v, x)
            }
        >
        s = Shape(z) e = Expand(one, s) y = Add(z, e)
    }"""
    before = parse(text, weights={"one": np.float32([1])})
    after = optimized(before, "shapes,fold,tidy,fuse,tidy")
    assert "Loop" not in operators(after)
    both(before, after)


def test_what_is_around_and_inside() -> None:
    """Values of outer graphs, constants of the body, and graphs in it."""
    body = """
        k = Constant<value_float=2.0>() p = Greater(v, k) q = Cast<to=1>(p) u = ReduceMax<keepdims=0>(q)
        h = Cast<to=9>(u)
        m = If (h) <
            then_branch = t () => (float[n, 4] a) { o = Sub(v, k) a = Mul(o, x) },
            else_branch = e () => (float[n, 4] b) { b = Exp(v) }
        >
        w = Add(m, k)
    """
    before = loop(body=body)
    after = optimized(before, "shapes,fold(unroll=64),tidy")
    assert operators(after).count("If") == 4
    both(before, after)


def test_a_loop_in_a_loop() -> None:
    inner = """
        w = Loop (four, yes, v) <
            body = bb (int64 j, bool cc, float[n, 4] vv) => (bool dd, float[n, 4] ww) {
                dd = Identity(cc) ww = Tanh(vv)
            }
        >
    """
    before = loop(body=inner)
    after = optimized(before, "shapes,fold(unroll=64),tidy")
    assert operators(after) == ["Neg", *["Tanh"] * 16, "Neg"]
    both(before, after)


@pytest.mark.parametrize("direction", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scan(direction: int, axis: int) -> None:
    whole = ["n", "2"]
    whole.insert(axis if axis >= 0 else 2, "3")
    text = f"""
    g (float[n, 2] s0, float[{", ".join(whole)}] xs) => (float[n, 2] s, float[{", ".join(whole)}] ys) {{
        s, ys = Scan <num_scan_inputs = 1, scan_input_axes = [{axis}], scan_output_axes = [{axis}],
            scan_input_directions = [{direction}], scan_output_directions = [{1 - direction}],
            body = b (float[n, 2] a, float[n, 2] x) => (float[n, 2] m, float[n, 2] y) {{
                m = Add(a, x) y = Mul(m, x)
            }}> (s0, xs)
    }}"""
    before = parse(text)
    after = optimized(before, "shapes,fold(unroll=64),tidy")
    assert "Scan" not in operators(after)
    both(before, after)


def test_a_scan_of_open_length() -> None:
    text = """
    g (float[2] s0, float[n, 2] xs) => (float[2] s, float[n, 2] ys) {
        s, ys = Scan <num_scan_inputs = 1, body = b (float[2] a, float[2] x) => (float[2] m, float[2] y) {
            m = Add(a, x) y = Mul(m, x)
        }> (s0, xs)
    }"""
    before = parse(text)
    after = optimized(before, "shapes,fold(unroll=64),tidy")
    assert operators(after) == ["Scan"]
    both(before, after)


def test_copies_say_where_they_come_from() -> None:
    before = loop()
    node = before.graph.node[1]
    node.name = "walk"
    for inner in node.attribute[0].g.node:
        inner.name = f"inner_{inner.op_type}"
    after = optimized(before, "shapes,fold(unroll=64),tidy")
    origins = [
        json.loads(p.value)
        for n in after.graph.node
        if n.op_type == "Tanh"
        for p in n.metadata_props
        if p.key == ORIGIN
    ]
    assert origins == [["inner_Tanh", "walk"]] * 4


def invariants(trips: str, body: str, weights: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    text = f"""
    g (int64 count, float[n, 4] x) => (float[n, 4] y) <int64 three = {{3}}, bool yes = {{1}}> {{
        r = Relu(x)
        y = Loop ({trips}, yes, x) <
            body = b (int64 i, bool c, float[n, 4] v) => (bool d, float[n, 4] w) {{ d = Identity(c) {body} }}
        >
    }}"""
    return parse(text, weights=weights)


W = {"k": np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)}


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("m = MatMul(r, k) t = Tanh(m) w = Add(v, t)", ["Identity", "Add"]),
        ("q = Constant<value_float=2.0>() m = Mul(r, q) w = Add(v, m)", ["Identity", "Add"]),
        (
            "q = Constant<value_float=2.0>() m = Mul(r, q) u = Mul(v, q) w = Add(u, m)",
            ["Identity", "Mul", "Add"],
        ),
    ],
)
def test_what_is_the_same_in_all_iterations(body: str, left: list[str]) -> None:
    before = invariants("count", body, W if "k" in body else None)
    after = optimized(before, "shapes,fold(unroll=64),loop_invariant")
    (node,) = [n for n in after.graph.node if n.op_type == "Loop"]
    assert [n.op_type for n in node.attribute[0].g.node] == left
    for count in (0, 1, 3):
        both(before, after, count=np.array(count))


@pytest.mark.parametrize(
    "body",
    [
        "m = Mul(v, r) t = Tanh(m) w = Add(t, r)",  # of what is carried
        "f = Cast<to=1>(i) m = Mul(r, f) w = Add(v, m)",  # of the number of the iteration
        "m = RandomNormalLike(r) z = Sub(m, m) w = Add(v, z)",
        "w = Tanh(r)",  # an output of the body must be made there
        "q = Constant<value_int=0>() m = Gather<axis=0>(r, q) w = Add(v, m)",  # fails where r is empty
    ],
)
def test_what_differs_or_could_fail(body: str) -> None:
    before = invariants("count", body)
    inside = len(before.graph.node[1].attribute[0].g.node) - body.count("Constant")
    after = optimized(before, "shapes,fold(unroll=64),loop_invariant")
    (node,) = [n for n in after.graph.node if n.op_type == "Loop"]
    assert len(node.attribute[0].g.node) == inside
    both(before, after, count=np.array(2))


def test_what_could_fail_leaves_a_loop_that_runs() -> None:
    body = "q = Constant<value_int=0>() m = Gather<axis=0>(r, q) w = Add(v, m)"
    before = invariants("three", body)
    after = optimized(before, "shapes,fold(unroll=1),loop_invariant")
    assert operators(after) == ["Relu", "Gather", "Loop"]
    both(before, after, count=np.array(2))


def test_out_of_two_loops() -> None:
    body = """
        w = Loop (count, yes, v) <
            body = bb (int64 j, bool cc, float[n, 4] vv) => (bool dd, float[n, 4] ww) {
                dd = Identity(cc) m = MatMul(r, k) ww = Add(vv, m)
            }
        >
    """
    before = invariants("count", body, W)
    after = optimized(before, "shapes,fold(unroll=64),loop_invariant")
    assert operators(after) == ["Relu", "MatMul", "Loop"]
    both(before, after, count=np.array(2))
