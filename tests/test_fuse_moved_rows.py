"""Rows that are shifted and cut into windows arrive by one Gather; everything else stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers import check


def ints(**values: list[int]) -> dict[str, Any]:
    return {name: np.array(value, np.int64) for name, value in values.items()}


SHIFT = ints(i=[3, 4, 5, 0, 1, 2], j=[2, 3, 0, 1], r=[5, 4, 3, 2, 1, 0])
WINDOWS = SHIFT | ints(
    cut=[0, 2, 3, 2, 2, 5], win=[-1, 6, 5], back=[-1, 2, 2, 3, 2, 5], img=[0, 6, 4, 5], flat=[0, 24, 5]
)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # An image, shifted and cut into windows, as an image or as tokens.
        (
            """a = Gather<axis=1>(x, i) b = Gather<axis=2>(a, j) c = Reshape(b, cut)
               d = Transpose<perm=[0,1,3,2,4,5]>(c) e = Reshape(d, win) y = Relu(e)""",
            ["Reshape", "Gather", "Reshape", "Relu"],
        ),
        (
            """t = Reshape(x, flat) u = Relu(t) v = Reshape(u, img)
               a = Gather<axis=1>(v, i) b = Gather<axis=-2>(a, j) c = Reshape(b, cut)
               d = Transpose<perm=[0,1,3,2,4,5]>(c) y = Relu(d)""",
            ["Reshape", "Relu", "Gather", "Relu"],
        ),
        # And back.
        (
            """a = Gather<axis=1>(x, i) b = Reshape(a, cut) c = Transpose<perm=[0,1,3,2,4,5]>(b) d = Relu(c)
               e = Transpose<perm=[0,1,3,2,4,5]>(d) f = Reshape(e, img) g = Gather<axis=2>(f, j)
               h = Gather<axis=1>(g, r) y = Relu(h)""",
            ["Reshape", "Gather", "Relu", "Reshape", "Gather", "Relu"],
        ),
        # Some rows twice, others not at all.
        (
            "a = Gather<axis=1>(x, some) b = Gather<axis=2>(a, few) y = Transpose<perm=[0,2,1,3]>(b)",
            ["Reshape", "Gather"],
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("opset", [13, 21])
def test_one_gather(body: str, expected: list[str], opset: int) -> None:
    text = f"g (float[n,6,4,5] x) => (float y) {{ {body} }}"
    constants = WINDOWS | ints(some=[0, 0, -1, 5], few=[1, 3])
    check(text, "shapes,moved_rows,tidy", expected, weights=constants, opset=opset)


@pytest.mark.parametrize(
    "body",
    [
        # One copy is one copy.
        "a = Gather<axis=1>(x, i) y = Reshape(a, flat)",
        "a = Reshape(x, cut) b = Transpose<perm=[0,1,3,2,4,5]>(a) y = Reshape(b, win)",
        # Rows are taken apart.
        "a = Gather<axis=1>(x, i) b = Gather<axis=3>(a, k) y = Reshape(b, small)",
        "a = Gather<axis=1>(x, i) b = Transpose<perm=[0,1,3,2]>(a) y = Reshape(b, tokens)",
        "a = Gather<axis=1>(x, i) b = Reshape(a, apart) y = Transpose<perm=[0,2,1]>(b)",
        # Elements of the batch change places.
        "a = Gather<axis=1>(x, i) b = Transpose<perm=[1,0,2,3]>(a) y = Reshape(b, mixed)",
        # What is gathered on the way is needed, and so is what is left to do.
        "a = Gather<axis=1>(x, i) b = Gather<axis=2>(a, j) c = Add(a, b) y = Reshape(c, flat)",
    ],
)
def test_others_stay(body: str) -> None:
    text = f"g (float[n,6,4,5] x) => (float y) {{ {body} }}"
    constants = WINDOWS | ints(
        k=[0, 2], small=[0, 24, 2], tokens=[0, 30, 4], apart=[0, 60, 2], mixed=[6, -1, 5]
    )
    check(text, "moved_rows", None, weights=constants)


def test_rows_of_unknown_number_stay() -> None:
    text = """g (float[n,m,4,5] x) => (float y) {
        a = Gather<axis=2>(x, j) b = Transpose<perm=[0,2,1,3]>(a) y = Gather<axis=1>(b, j) }"""
    check(text, "moved_rows", None, weights=SHIFT)
