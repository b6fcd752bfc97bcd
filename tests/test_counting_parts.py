"""GatherND at all positions up to one that is known at run time: the mask of a decoder with a cache."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import assert_same, operators, optimized, parse

MASK = """
g (float[b, s] x, float[b, p] cache, bool[b, t] mask) => (bool[b, 1, 1, k] y) {{
    bs = Shape<start=0, end=1>(x)
    b0 = Squeeze(bs)
    ss = Shape<start=1, end=2>(x)
    s0 = Squeeze(ss)
    ps = Shape<start=1, end=2>(cache)
    p0 = Squeeze(ps)
    n = Add(p0, s0)
    rows = Range({start}, b0, one)
    columns = Range({start}, n, {step})
    r = Unsqueeze(rows, a123)
    c = Unsqueeze(columns, a012)
    m = Max(r, c)
    size = Shape(m)
    rw = Expand(r, size)
    cw = Expand(c, size)
    ru = Unsqueeze(rw, last)
    cu = Unsqueeze(cw, last)
    at = Concat<axis=-1>({order})
    {taken}
}}
"""
WEIGHTS = {
    "one": np.array(1), "two": np.array(2), "zero": np.array(0), "last": np.array([-1]),
    "a123": np.array([1, 2, 3]), "a012": np.array([0, 1, 2]),
}  # fmt: skip
SIZES = ((1, 1, 4, 5), (2, 3, 4, 9), (3, 2, 2, 4))


def feeds(b: int, s: int, p: int, t: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(t)
    return {
        "x": np.zeros((b, s), np.float32),
        "cache": np.zeros((b, p), np.float32),
        "mask": random.random((b, t)) < 0.5,
    }


def test_the_mask_is_cut() -> None:
    text = MASK.format(start="zero", step="one", order="ru, cu", taken="y = GatherND(mask, at)")
    before = parse(text, 18, WEIGHTS)
    after = optimized(before, "shapes,fold,tidy,fuse,tidy")
    assert {"GatherND", "Range", "Expand"}.isdisjoint(operators(after))
    assert operators(after).count("Slice") == 1
    for sizes in SIZES:
        assert_same(before, after, feeds(*sizes))


@pytest.mark.parametrize(
    ("start", "step", "order", "taken"),
    [
        ("zero", "two", "ru, cu", "y = GatherND(mask, at)"),  # every second
        ("one", "one", "ru, cu", "y = GatherND(mask, at)"),  # not from the first
        (
            "zero",
            "one",
            "ru, cu",
            "u = ReduceMax(at) v = Less(u, one) g1 = GatherND(mask, at) y = And(g1, v)",
        ),
    ],
)
def test_other_positions_stay(start: str, step: str, order: str, taken: str) -> None:
    before = parse(MASK.format(start=start, step=step, order=order, taken=taken), 18, WEIGHTS)
    after = optimized(before, "shapes,fuse(counting_gather)")
    assert "GatherND" in operators(after)
    for sizes in SIZES[1:] if start == "one" else SIZES:
        assert_same(before, after, feeds(*sizes))
