"""Projections with [query, key, value] of each head side by side."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import Array, assert_same, operators, optimized, parse

RANDOM = np.random.default_rng(5)
PASS = "shapes,fuse(slice_partition,stacked_heads),tidy"
SIZES = ((1, 4), (2, 7))


def random(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def vector(*values: int) -> Array:
    return np.array(values, np.int64)


def model(body: str, opset: int = 17, **weights: Array) -> onnx.ModelProto:
    text = f"g (float[b, s, 10] x) => (float[b, 4, s, s] y) {{ {body} }}"
    constants: dict[str, Array] = {"w": random(10, 60), "c": random(60), "zero": np.array(0, np.int64)}
    constants |= {"one": np.array(1, np.int64), "two": np.array(2, np.int64)}
    return parse(text, opset, constants | weights)


SCORES = """
    p = MatMul(q, kt)
    a = ReduceMax<axes=[-1]>(v)
    y = Add(p, a)
"""
GATHERS = """
    f = MatMul(x, w)
    fb = Add(f, c)
    h = Reshape(fb, to)
    q0 = Gather<axis=3>(h, zero)
    k0 = Gather<axis=3>(h, one)
    v0 = Gather<axis=3>(h, two)
    q = Transpose<perm=[0, 2, 1, 3]>(q0)
    kt = Transpose<perm=[0, 2, 3, 1]>(k0)
    v = Transpose<perm=[0, 2, 1, 3]>(v0)
"""
SPLIT = """
    f = MatMul(x, w)
    h = Reshape(f, to)
    t = Transpose<perm=[0, 2, 1, 3]>(h)
    q, k, v = Split<axis=-1>(t{sizes})
    kt = Transpose<perm=[0, 1, 3, 2]>(k)
"""


def same(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    for b, s in SIZES:
        assert_same(before, after, {"x": random(b, s, 10)})


def test_gathers_become_one_split() -> None:
    before = model(GATHERS + SCORES, to=vector(0, 0, 4, 3, 5))
    after = optimized(before, PASS)
    assert operators(after).count("Split") == 1
    assert "Gather" not in operators(after)
    same(before, after)
    assert operators(optimized(before, "shapes,fuse,tidy")).count("Transpose") == 2


@pytest.mark.parametrize("opset", [12, 17])
def test_split_of_each_head_becomes_one_of_heads(opset: int) -> None:
    body = SPLIT.format(sizes=", five" if opset > 12 else "")
    body = body if opset > 12 else body.replace("axis=-1", "axis=-1, split=[5, 5, 5]")
    five = {"five": vector(5, 5, 5)} if opset > 12 else {}
    before = model(body + SCORES, opset, to=vector(0, 0, 4, 15), **five)
    after = optimized(before, PASS)
    (cut,) = [node for node in after.graph.node if node.op_type == "Split"]
    assert onnx.helper.get_node_attr_value(cut, "axis") == 1
    same(before, after)


def test_one_part_may_be_unused() -> None:
    body = GATHERS.replace("v0 = Gather<axis=3>(h, two)", "v0 = Identity(k0)")
    before = model(body + SCORES, to=vector(0, 0, 4, 3, 5))
    after = optimized(before, PASS)
    assert "Gather" not in operators(after)
    same(before, after)


NEAR_MISSES = {
    "unequal parts": SPLIT.format(sizes=", sizes").replace("q, k, v", "r, k, q")
    + "z = ReduceMax<axes=[-1]>(r)\n v = Add(z, q)",
    "more than the parts is needed": GATHERS + "m = ReduceMax<axes=[-1, -2]>(h)\n",
    "the axis before": GATHERS.replace("axis=3", "axis=2"),
    "more than one is taken": GATHERS.replace("v0 = Gather<axis=3>(h, two)", "g = Gather<axis=3>(h, pair)")
    + "v0 = ReduceMax<axes=[3], keepdims=0>(g)\n",
}


@pytest.mark.parametrize("kind", NEAR_MISSES)
def test_near_misses(kind: str) -> None:
    body = NEAR_MISSES[kind]
    lines = [line.strip() for line in body.splitlines() if line.strip()]
    if kind == "more than one is taken":  # v needs what the last line makes
        lines.append(lines.pop(next(i for i, line in enumerate(lines) if line.startswith("v ="))))
    to = vector(0, 0, 4, 15) if kind == "unequal parts" else vector(0, 0, 4, 3, 5)
    if kind == "the axis before":
        to = vector(0, 0, 3, 4, 5)
    before = model("\n".join(lines) + SCORES, to=to, sizes=vector(3, 6, 6), pair=vector(1, 2))
    after = optimized(before, "shapes,fuse(stacked_heads)")
    assert operators(after) == operators(before)
    assert next(n.input[1] for n in after.graph.node if n.op_type == "MatMul") == "w"
    same(before, after)


def test_a_weight_that_others_need_and_is_large_stays() -> None:
    body = GATHERS + SCORES.replace(
        "y = Add(p, a)", "other = MatMul(x, w)\n r = ReduceMax(other)\n y = Add(p, r)"
    )
    before = model(body, to=vector(0, 0, 4, 3, 5))
    after = optimized(before, "shapes,fuse(stacked_heads(max_copy=1KiB))")
    assert operators(after) == operators(before)
    same(before, after)
