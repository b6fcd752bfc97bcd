"""Convolutions and poolings take in what crops, shuffles and sizes images around them."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import Array, assert_same, check, operators, optimized, parse, samples


def rand(*shape: int) -> Array:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("attributes", "kind", "fires"),
    [
        ("kernel_shape=[4,6]", "AveragePool", True),
        ("kernel_shape=[4,6]", "MaxPool", True),
        ("kernel_shape=[9,9], strides=[9,9], ceil_mode=1, count_include_pad=1", "AveragePool", True),
        ("kernel_shape=[4,6], pads=[1,0,1,0], strides=[9,9]", "AveragePool", False),
        ("kernel_shape=[4,5]", "AveragePool", False),
        ("kernel_shape=[2,6], strides=[4,1]", "AveragePool", False),
        ("kernel_shape=[2,2], dilations=[3,5]", "MaxPool", False),
    ],
)
def test_one_window_for_all(attributes: str, kind: str, fires: bool) -> None:
    text = f"g (float[n,3,4,6] x) => (float[n,3,p,q] y) {{ y = {kind}<{attributes}>(x) }}"
    check(text, "shapes,global_pool", [f"Global{kind}"] if fires else None)


@settings(max_examples=40, deadline=None)
@given(
    pads=st.tuples(*[st.integers(0, 4)] * 4),
    cut=st.tuples(*[st.integers(0, 3)] * 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    group=st.sampled_from([1, 2]),
)
def test_what_is_cut_off_a_convolution(
    pads: tuple[int, ...], cut: tuple[int, ...], stride: int, dilation: int, group: int
) -> None:
    sizes = [(9 + pads[a] + pads[a + 2] - 2 * dilation - 1) // stride + 1 for a in range(2)]
    left = [(cut[a], sizes[a] - cut[a + 2]) for a in range(2)]
    if any(start >= end for start, end in left):
        return
    text = f"""g (float[n,4,9,9] x) => (float[n,4,p,q] y) {{
        c = Conv<pads={list(pads)}, strides=[{stride},{stride}], dilations=[{dilation},{dilation}], group={group}>(x, w)
        y = Slice(c, s, e, a) }}"""
    weights = {
        "w": rand(4, 4 // group, 3, 3),
        "s": np.array([left[0][0], left[1][0]]),
        "e": np.array([left[0][1], left[1][1]]),
        "a": np.array([2, 3]),
    }
    fires = all(c * stride <= p for c, p in zip(cut, pads, strict=True))
    check(text, "shapes,conv_crop", ["Conv"] if fires else None, weights=weights)


@pytest.mark.parametrize(
    ("pads", "stride", "start", "end", "fires"),
    [
        ([2, 2], 1, 0, -1, True),  # as long as its input, by an even kernel (wav2vec 2.0)
        ([3, 3], 1, 0, -3, True),  # causal
        ([3, 3], 1, 3, 1 << 62, False),
        ([3, 3], 1, 3, (1 << 63) - 1, True),
        ([2, 1], 1, 0, -1, False),  # shorter than its input: of three samples nothing would be left
        ([4, 4], 2, 0, -2, False),
        ([2, 2], 1, 0, -3, False),  # more than the padding
        ([2, 2], 1, -4, -1, False),
    ],
)
def test_what_is_cut_off_a_signal_of_open_length(
    pads: list[int], stride: int, start: int, end: int, fires: bool
) -> None:
    text = f"""g (float[n,2,m] x) => (float[n,3,p] y) {{
        c = Conv<pads={pads}, strides=[{stride}]>(x, w, b) y = Slice(c, s, e, a) }}"""
    weights = {"w": rand(3, 2, 4), "b": rand(3), "s": np.array([start]), "e": np.array([end])}
    weights["a"] = np.array([2])
    lengths = ({"n": 1, "m": 5}, {"n": 2, "m": 9}, {"n": 1, "m": 4})
    check(text, "shapes,conv_crop", ["Conv"] if fires else None, weights=weights, sizes=lengths)


def test_channels_and_shared_results_are_not_cropped() -> None:
    weights = {
        "w": rand(4, 4, 3),
        "s": np.array([0]),
        "e": np.array([2]),
        "a": np.array([1]),
        "b": np.array([2]),
    }
    text = "g (float[n,4,9] x) => (float[n,2,9] y) { c = Conv<pads=[1,1]>(x, w) y = Slice(c, s, e, a) }"
    check(text, "shapes,conv_crop", None, weights=weights)
    text = """g (float[n,4,9] x) => (float[n,4,2] y, float[n,4,9] z) {
        c = Conv<pads=[1,1]>(x, w) y = Slice(c, s, e, b) z = Relu(c) }"""
    check(text, "shapes,conv_crop", None, weights=weights)


FOCUS = {
    "yolo": [(0, 0), (1, 0), (0, 1), (1, 1)],
    "rows": [(0, 0), (0, 1), (1, 0), (1, 1)],
    "odd": [(1, 1), (0, 0), (1, 0), (0, 1)],
}


def focus(offsets: list[tuple[int, int]], axes: tuple[int, int], dims: str, axis: int) -> str:
    lines = [f"p{i} = Slice(x, o{a}{b}, e, a, s)" for i, (a, b) in enumerate(offsets)]
    weights = "".join(f"int64[2] o{a}{b} = {{{a},{b}}}, " for a, b in product(range(2), repeat=2))
    names = ", ".join(f"p{i}" for i in range(len(offsets)))
    return f"""g (float[{dims}] x) => (float[h,i,j,k] y) <{weights} int64[2] e = {{99,99}}, int64[2] s = {{2,2}},
        int64[2] a = {{{axes[0]},{axes[1]}}}> {{ {" ".join(lines)} c = Concat<axis={axis}>({names})"""


@pytest.mark.parametrize("order", FOCUS)
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (3, 2)])
def test_focus_is_a_convolution(order: str, kernel: tuple[int, int]) -> None:
    text = focus(FOCUS[order], (2, 3), "n,3,8,6", 1) + " y = Conv<pads=[1,0,2,1], strides=[2,1]>(c, w, b) }"
    weights = {"w": rand(5, 12, *kernel), "b": rand(5)}
    check(text, "shapes,focus_conv", ["Conv"], weights=weights)


@pytest.mark.parametrize(
    ("order", "attributes"),
    [("yolo", "group=2"), ("yolo", "dilations=[2,2]"), ("yolo", 'auto_pad="SAME_UPPER"')],
)
def test_other_convolutions_stay(order: str, attributes: str) -> None:
    text = focus(FOCUS[order], (2, 3), "n,4,8,6", 1) + f" y = Conv<{attributes}>(c, w) }}"
    weights = {"w": rand(4, 8 if "group" in attributes else 16, 2, 2)}
    check(text, "shapes,focus_conv", None, weights=weights)


@pytest.mark.parametrize(
    ("order", "axes", "dims", "axis", "expected"),
    [
        ("rows", (2, 3), "n,3,8,6", 1, ["SpaceToDepth"]),
        ("yolo", (2, 3), "n,3,8,6", 1, ["Reshape", "Transpose", "Reshape"]),
        ("yolo", (1, 2), "n,8,6,3", 3, ["Reshape", "Transpose", "Reshape"]),
        ("rows", (1, 2), "n,8,6,m", 3, ["Reshape", "Transpose", "Reshape"]),
        ("odd", (1, 2), "n,8,6,3", 3, None),
    ],
)
def test_space_to_depth(
    order: str, axes: tuple[int, int], dims: str, axis: int, expected: list[str] | None
) -> None:
    text = focus(FOCUS[order], axes, dims, axis) + " y = Relu(c) }"
    check(text, "shapes,space_to_depth", expected and [*expected, "Relu"])


def test_an_offset_that_is_missing() -> None:
    text = focus([(0, 0), (1, 0), (0, 1), (0, 1)], (1, 2), "n,8,6,3", 3) + " y = Relu(c) }"
    check(text, "shapes,space_to_depth", None)


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"])
@pytest.mark.parametrize("size", [(8, 12), (7, 5), (4, 6)])
def test_sizes_as_scales(mode: str, coordinates: str, size: tuple[int, int]) -> None:
    text = f"""g (float[n,3,4,6] x) => (float[n,3,p,q] y) {{
        b = Shape<start=0, end=2>(x) s = Concat<axis=0>(b, t)
        y = Resize<mode="{mode}", coordinate_transformation_mode="{coordinates}">(x, , , s) }}"""
    before = parse(text, 17, {"t": np.array(size)})
    after = optimized(before, "shapes,resize_scales")
    assert operators(after) == ["Resize"]
    assert_same(before, after, samples(before, n=1), samples(before, n=2))


@pytest.mark.parametrize(
    ("dims", "attributes", "opset"),
    [
        ("n,3,m,6", 'mode="nearest"', 17),
        ("n,3,4,6", 'coordinate_transformation_mode="tf_crop_and_resize"', 17),
        ("n,3,4,6", 'keep_aspect_ratio_policy="not_larger"', 18),
    ],
)
def test_sizes_that_stay(dims: str, attributes: str, opset: int) -> None:
    text = f"""g (float[{dims}] x) => (float[n,3,p,q] y) {{
        b = Shape<start=0, end=2>(x) s = Concat<axis=0>(b, t) y = Resize<{attributes}>(x, r, , s) }}"""
    if "m" in dims:
        text = text.replace("(x, r, , s)", "(x, , , s)")
    weights: dict[str, Any] = {"t": np.array([8, 9])}
    if "crop" in attributes:
        weights["r"] = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32)
    else:
        text = text.replace("(x, r,", "(x, ,")
    check(text, "shapes,resize_scales", None, weights=weights, opset=opset)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("a = Mul(x, two) b = Add(a, half) y = Mul(b, eight)", ["Mul", "Add"]),
        ("a = Mul(x, two) b = Add(grid, a) y = Mul(eight, b)", ["Mul", "Add"]),
        ("a = Mul(x, two) b = Pow(a, two) y = Mul(b, grid)", ["Pow", "Mul"]),
        ("a = Mul(x, two) b = Pow(a, eight) y = Mul(b, grid)", None),
        ("a = Mul(x, two) b = Add(a, half) c = Mul(b, eight) y = Add(c, a)", None),
        ("a = Mul(x, two) b = Add(a, half) y = Mul(b, x)", None),
        ("a = Mul(x, two) b = Add(a, half) y = Mul(b, tiny)", None),
    ],
)
def test_factors_around_a_sum(body: str, expected: list[str] | None) -> None:
    weights = {
        "two": np.float32(2),
        "half": np.float32(-0.5),
        "eight": np.float32(8),
        "grid": rand(4),
        "tiny": np.float32(1e-30),
    }
    check(
        f"g (float[n,4] x) => (float[n,4] y) {{ {body} }}", "shapes,affine_chain", expected, weights=weights
    )


def test_two_factors() -> None:
    weights = {"a": np.float32(0.25), "b": np.array([0.5], np.float32), "c": rand(4)}
    text = """g (float[n,m,4] x, float[n,4,m] z) => (float[n,m,m] y) {{
        p = Mul(x, a) q = Mul(z, {}) y = MatMul(p, q) }}"""
    check(text.format("b"), "shapes,two_factors", ["Mul", "MatMul"], weights=weights)
    other = "g (float[n,m,4] x, float[n,4,4] z) => (float[n,m,4] y) { p = Mul(x, a) q = Mul(z, c) y = MatMul(p, q) }"
    check(other, "shapes,two_factors", None, weights=weights)
