"""Convolutions of patches as products of matrices."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import check

WEIGHTS = {
    "w": np.random.default_rng(0).standard_normal((5, 3, 2, 4)).astype(np.float32),
    "b": np.random.default_rng(1).standard_normal(5).astype(np.float32),
    "s": np.array([0, 5, 6], np.int64),
    "lone": np.random.default_rng(2).standard_normal((5, 3, 1, 1)).astype(np.float32),
}
TOKENS = """g (float[n, 3, 4, 12] x) => (float[n, 6, 5] y) {
    c = Conv<strides=[2, 4]>(x, w, b)
    r = Reshape(c, s)
    y = Transpose<perm=[0, 2, 1]>(r)
}"""
IMAGE = """g (float[n, 3, 4, 12] x) => (float[n, 2, 3, 5] y) {
    c = Conv<strides=[2, 4]>(x, w)
    y = Transpose<perm=[0, 2, 3, 1]>(c)
}"""
SIGNAL = """g (float[n, 3, 12] x) => (float[n, 6, 4] y) {
    c = Conv<strides=[2]>(x, w1)
    y = Transpose<perm=[0, 2, 1]>(c)
}"""
PATCHES = ["Reshape", "Transpose", "Reshape", "MatMul"]


def test_a_row_of_tokens() -> None:
    check(TOKENS, "patch_projection", [*PATCHES, "Add"], weights=WEIGHTS)
    check(TOKENS.replace(", b)", ")"), "patch_projection", PATCHES, weights=WEIGHTS)


def test_an_image_of_tokens() -> None:
    check(IMAGE, "patch_projection", PATCHES, weights=WEIGHTS)


def test_one_and_three_axes() -> None:
    weights = {"w1": np.random.default_rng(0).standard_normal((4, 3, 2)).astype(np.float32)}
    check(SIGNAL, "patch_projection", PATCHES, weights=weights)
    text = IMAGE.replace("3, 4, 12] x", "3, 4, 12, 2] x").replace("[n, 2, 3, 5] y", "[n, 2, 3, 2, 5] y")
    text = text.replace("strides=[2, 4]", "strides=[2, 4, 1]").replace("[0, 2, 3, 1]", "[0, 2, 3, 4, 1]")
    check(text, "patch_projection", PATCHES, weights={"w": WEIGHTS["w"][..., None]})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("strides=[2, 4]", 'strides=[2, 4], dilations=[1, 1], group=1, auto_pad="SAME_UPPER"'),
        (
            "y = Transpose<perm=[0, 2, 1]>(r)",
            "t = Transpose<perm=[2, 0, 1]>(r) y = Transpose<perm=[1, 0, 2]>(t)",
        ),
        ("3, 4, 12] x", "3, h, 12] x"),
        ("=> (float[n, 6, 5] y)", "=> (float[n, 6, 5] y, float[n, 5, 2, 3] c)"),
        ("=> (float[n, 6, 5] y)", "=> (float[n, 6, 5] y, float[n, 5, 6] r)"),
    ],
)
def test_what_stays(old: str, new: str) -> None:
    sizes = [{"n": 2, "h": 4}]
    check(TOKENS.replace(old, new), "patch_projection", None, weights=WEIGHTS, sizes=sizes)


@pytest.mark.parametrize(
    ("x", "conv", "tokens"),
    [
        ("4, 12", "Conv<strides=[1, 4]>(x, w)", 9),  # patches overlap
        ("5, 13", "Conv<strides=[2, 4]>(x, w)", 6),  # a rest is left over
        ("2, 10", "Conv<strides=[2, 4], pads=[1, 1, 1, 1]>(x, w)", 6),
        ("3, 9", "Conv<strides=[2, 4], dilations=[2, 2]>(x, w)", 1),
        ("2, 3", "Conv(x, lone)", 6),  # single pixels
    ],
)
def test_what_are_no_patches(x: str, conv: str, tokens: int) -> None:
    text = (
        TOKENS.replace("Conv<strides=[2, 4]>(x, w, b)", conv)
        .replace("4, 12", x)
        .replace("6, 5", f"{tokens}, 5")
    )
    check(text, "patch_projection", None, weights=WEIGHTS | {"s": np.array([0, 5, tokens], np.int64)})


def test_groups_stay() -> None:
    weights = WEIGHTS | {"w": np.ones((5, 1, 2, 4), np.float32)}
    text = TOKENS.replace("[n, 3, 4", "[n, 5, 4").replace("strides=[2, 4]", "strides=[2, 4], group=5")
    check(text, "patch_projection", None, weights=weights)
