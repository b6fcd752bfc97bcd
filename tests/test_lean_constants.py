"""Constants that say the same along an axis."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from helpers import Array, check, optimized, parse

ADD = "g (float[{x}] x) => (float[{y}] y) {{ y = Add(x, c) }}"


def mask(*shape: int) -> Array:
    """A matrix, repeated along the axes before its own."""
    return np.broadcast_to(np.random.default_rng(0).standard_normal(shape[-2:]), shape).astype(np.float32)


def dims(proto: onnx.ModelProto) -> list[list[int]]:
    return [list(tensor.dims) for tensor in proto.graph.initializer]


@pytest.mark.parametrize(
    ("x", "constant", "left"),
    [
        ("2, 3, 4, 5", mask(2, 1, 4, 5), [1, 1, 4, 5]),
        ("2, 3, 4, 5", mask(2, 3, 4, 5), [1, 1, 4, 5]),
        ("n, 3, 4, 5", mask(3, 4, 5), [1, 4, 5]),
        ("2, 3, 4, 5", np.full((2, 3, 4, 5), 0.5, np.float32), [1, 1, 1, 1]),
        ("2, 3, 4, 5", np.arange(8, dtype=np.float32).reshape(2, 1, 4, 1).repeat(5, 3), [2, 1, 4, 1]),
    ],
)
def test_it_is_said_once(x: str, constant: Array, left: list[int]) -> None:
    text = ADD.format(x=x, y=x)
    after = check(text, "lean_constants", None, weights={"c": constant}, sizes=[{"n": 1}, {"n": 3}])
    assert dims(after) == [left]


@pytest.mark.parametrize(
    ("x", "y", "constant"),
    [
        ("1, 3, 4, 5", "2, 3, 4, 5", mask(2, 1, 4, 5)),  # the constant makes the result larger
        ("1", "4, 5", np.ones((4, 5), np.float32)),
        ("4, 5", "4, 5", np.ones(5, np.float32)),  # a scale or a bias
        ("3, 4, 5", "3, 4, 5", np.ones((3, 1, 1), np.float32)),
        ("3, 4, 5", "3, 4, 5", mask(1, 4, 5)),
        ("2, 4, 5", "2, 4, 5", np.random.default_rng(1).random((2, 4, 5), np.float32)),
        ("2, 2, 2", "2, 2, 2", np.array([[[1, 1], [1, 1]], [[1, 1], [1, 2]]], np.float32)),
    ],
)
def test_what_stays(x: str, y: str, constant: Array) -> None:
    after = check(ADD.format(x=x, y=y), "lean_constants", None, weights={"c": constant})
    assert dims(after) == [list(constant.shape)]


def test_operands_that_lean_on_each_other() -> None:
    text = "g (bool[1, 4, 5] x) => (float[2, 4, 5] y) { y = Where(x, a, b) }"
    weights: dict[str, Any] = {"a": mask(2, 4, 5), "b": mask(2, 4, 5) + 1}
    after = check(text, "lean_constants", None, weights=weights)
    assert sorted(dims(after)) == [[1, 4, 5], [2, 4, 5]]


def test_one_constant_of_several_operators_is_made_once() -> None:
    text = "g (float[2, 4, 5] x) => (float[2, 4, 5] y) { p = Add(x, c) q = Add(c, p) y = Mul(q, c) }"
    assert dims(check(text, "lean_constants", None, weights={"c": mask(2, 4, 5)})) == [[1, 4, 5]]


def test_what_a_caller_may_set_is_left_alone() -> None:
    text = "g (float[2, 4, 5] x, float[2, 4, 5] c) => (float[2, 4, 5] y) { y = Add(x, c) }"
    after = optimized(parse(text, weights={"c": mask(2, 4, 5)}), "lean_constants")
    assert dims(after) == [[2, 4, 5]]


def test_masks_that_each_layer_folds_are_one() -> None:
    """As PyTorch exports them for a fixed batch: a Where of each layer, over one condition."""
    steps = "".join(f"m{i} = Where(wide, zero, low)\n s{i + 1} = Add(s{i}, m{i})\n" for i in range(3))
    text = f"""g (float[8, 2, 128, 128] s0) => (float[8, 2, 128, 128] s3) {{
        wide = Expand(below, shape)
        {steps}
    }}"""
    weights = {
        "below": np.tril(np.ones((128, 128), bool)),
        "shape": np.array([8, 1, 128, 128], np.int64),
        "zero": np.array(0, np.float32),
        "low": np.array(-1e9, np.float32),
    }
    after = check(text, "shapes,fold,dedup", ["Add", "Add", "Add"], weights=weights)
    assert dims(after) == [[8, 1, 128, 128]]
    after = check(text, "shapes,fold,tidy", ["Add", "Add", "Add"], weights=weights)
    assert dims(after) == [[1, 1, 128, 128]]
