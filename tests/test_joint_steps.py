"""What is done to every step alike, and steps that are put together again."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import Array, assert_same, check, operators, optimized, parse, samples


def test_restack() -> None:
    text = """g (float[3, n, m] x) => (float[n, 3, m] y) {
        a = Gather<axis=0>(x, zero)
        b = Gather<axis=0>(x, one)
        c = Gather<axis=0>(x, two)
        d = Unsqueeze(a, axis)
        e = Unsqueeze(b, axis)
        f = Unsqueeze(c, axis)
        y = Concat<axis=1>(d, e, f)
    }"""
    weights = {"zero": np.array(0), "one": np.array(1), "two": np.array(-1), "axis": np.array([1])}
    check(text, "shapes,fold,tidy,fuse(restack),tidy", ["Transpose"], weights=weights)
    check(
        text,
        "shapes,fold,tidy,fuse(restack),tidy",
        ["Gather", "Transpose"],
        weights={**weights, "one": np.array(2)},
    )
    check(
        text.replace("float[3,", "float[4,"),
        "shapes,fold,tidy,fuse(restack),tidy",
        ["Gather", "Transpose"],
        weights=weights,
    )
    check(
        text.replace("Concat<axis=1>(d, e, f)", "Concat<axis=1>(d, e, d)"),
        "shapes,fold,tidy,fuse(restack),tidy",
        ["Gather", "Transpose"],
        weights=weights,
    )


def test_restack_in_the_place_of_an_axis_of_size_1() -> None:
    text = """g (float[3, 1, n, 4] x) => (float[3, n, 4] y) {
        a = Gather<axis=0>(x, zero)
        b = Gather<axis=0>(x, one)
        c = Gather<axis=0>(x, two)
        y = Concat<axis=0>(a, b, c)
    }"""
    weights = {"zero": np.array(0), "one": np.array(1), "two": np.array(2)}
    check(
        text, "shapes,fold,tidy,fuse(restack),tidy", ["Squeeze"], weights=weights, sizes=({"n": 2}, {"n": 5})
    )
    other = text.replace("float[3, 1,", "float[3, 2,").replace("(float[3, n, 4] y)", "(float[6, n, 4] y)")
    check(other, "shapes,fold,tidy,fuse(restack),tidy", None, weights=weights, sizes=({"n": 2},))


def steps_alike(change: str = "", shared: str = "w") -> tuple[str, dict[str, Array]]:
    """Three steps of Relu(x·w + b), stacked."""
    lines = []
    for i in range(3):
        other = change if i == 2 else ""
        lines += [
            f"s{i} = Gather<axis=1>(x, k{i})",
            f"p{i} = MatMul(s{i}, {other or shared})",
            f"q{i} = Add(p{i}, b)",
            f"r{i} = Relu(q{i})",
            f"u{i} = Unsqueeze(r{i}, axis)",
        ]
    lines.append("y = Concat<axis=1>(u0, u1, u2)")
    weights = {f"k{i}": np.array(i) for i in range(3)} | {"axis": np.array([1])}
    random = np.random.default_rng(0)
    weights |= {"w": random.standard_normal((4, 4)).astype(np.float32), "b": np.arange(4).astype(np.float32)}
    weights["v"] = weights["w"] + 1
    return "g (float[n, 3, 4] x, float[4, 4] m) => (float[n, 3, 4] y) {\n" + "\n".join(lines) + "\n}", weights


def test_steps_done_at_once() -> None:
    pipeline = "shapes,fold,tidy,fuse(joint_steps),tidy"
    text, weights = steps_alike()
    check(text, pipeline, ["MatMul", "Add", "Relu"], weights=weights)
    bias = {**weights, "b": np.ones((1, 4), np.float32)}
    check(text, pipeline, ["MatMul", "Add", "Relu"], weights=bias)


@pytest.mark.parametrize("change", ["v", "m"])
def test_steps_done_differently(change: str) -> None:
    """One step has another weight, or the weight is no constant."""
    text, weights = steps_alike(change) if change == "v" else steps_alike(shared="m")
    before = parse(text, weights=weights)
    after = optimized(before, "shapes,fold,tidy,fuse(joint_steps),tidy")
    assert operators(after).count("MatMul") == 3
    assert_same(before, after, samples(before, n=2))


def test_a_step_is_used_elsewhere() -> None:
    text, weights = steps_alike()
    text = text.replace("(float[n, 3, 4] y)", "(float[n, 3, 4] y, float[n, 4] z)")
    before = parse(text.replace("y = Concat", "z = Neg(r1)\ny = Concat"), weights=weights)
    after = optimized(before, "shapes,fold,tidy,fuse(joint_steps),tidy")
    assert operators(after).count("MatMul") == 3


@pytest.mark.parametrize(
    ("axis", "shape", "expected"),
    [
        (0, "[k, 4]", ["Transpose", "MatMul", "Relu", "Reshape"]),
        (1, "[n, 12]", ["MatMul", "Relu", "Reshape"]),
    ],
)
def test_steps_side_by_side_on_an_axis_that_they_have(axis: int, shape: str, expected: list[str]) -> None:
    lines = []
    for i in range(3):
        lines += [f"s{i} = Gather<axis=1>(x, k{i})", f"p{i} = MatMul(s{i}, w)", f"r{i} = Relu(p{i})"]
    lines.append(f"y = Concat<axis={axis}>(r0, r1, r2)")
    weights = {f"k{i}": np.array(i) for i in range(3)} | {"w": np.eye(4, dtype=np.float32) + 1}
    text = f"g (float[n, 3, 4] x) => (float{shape} y) {{\n" + "\n".join(lines) + "\n}"
    after = optimized(parse(text, weights=weights), "shapes,fold,tidy,fuse(joint_steps),tidy")
    assert sorted(operators(after)) == sorted(expected)
    assert_same(parse(text, weights=weights), after, *(samples(after, i, n=i + 1) for i in range(3)))


def test_steps_in_the_place_of_an_axis_of_size_1() -> None:
    """x[:, t:t+1] of a recurrent layer that is called step by step."""
    lines = []
    for i in range(3):
        lines += [f"s{i} = Gather<axis=0>(x, k{i})", f"v{i} = Reshape(s{i}, form)"]
        lines += [f"p{i} = MatMul(v{i}, w)", f"r{i} = Tanh(p{i})"]
    lines.append("y = Concat<axis=1>(r0, r1, r2)")
    weights = {f"k{i}": np.array(i) for i in range(3)} | {"w": np.eye(4, dtype=np.float32) + 1}
    weights["form"] = np.array([-1, 1, 4])
    text = "g (float[3, 1, n, 4] x) => (float[n, 3, 4] y) {\n" + "\n".join(lines) + "\n}"
    after = optimized(parse(text, weights=weights), "shapes,fold,tidy,fuse(joint_steps),tidy")
    assert sorted(operators(after)) == ["MatMul", "Reshape", "Tanh", "Transpose"]
    assert_same(parse(text, weights=weights), after, *(samples(after, i, n=i + 1) for i in range(3)))


def test_steps_from_the_end_in_order_again() -> None:
    """Put together backwards and turned around: nothing is left of it. A part of it is a Gather."""
    text = """g (float[3, n, m] x) => (float[3, n, m] y) {
        a = Gather<axis=0>(x, zero)
        b = Gather<axis=0>(x, one)
        c = Gather<axis=0>(x, two)
        d = Unsqueeze(a, axis)
        e = Unsqueeze(b, axis)
        f = Unsqueeze(c, axis)
        z = Concat<axis=0>(f, e, d)
        y = Slice(z, start, end, axis, step)
    }"""
    weights = {"zero": np.array(0), "one": np.array(1), "two": np.array(2), "axis": np.array([0])}
    weights |= {"start": np.array([-1]), "end": np.array([-(2**63)]), "step": np.array([-1])}
    pipeline = "shapes,fold,tidy,fuse(restack),tidy"
    check(text, pipeline, ["Identity"], weights=weights)
    part = {**weights, "end": np.array([-3])}
    check(text.replace("(float[3, n, m] y)", "(float[2, n, m] y)"), pipeline, ["Gather"], weights=part)
    gathered = """g (float[5, n] x) => (float[k, n] y) {
        z = Gather<axis=0>(x, places)
        y = Slice(z, start, end, axis, step)
    }"""
    for end, step in ((-(2**63), -1), (1, -2), (-4, -1), (-5, -1)):
        more = {**weights, "places": np.array([4, 1, 3, 0]), "end": np.array([end]), "step": np.array([step])}
        used = {name: more[name] for name in ("places", "start", "end", "axis", "step")}
        check(gathered, pipeline, ["Gather"], weights=used, sizes=({"n": 2},))
