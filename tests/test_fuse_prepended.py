"""Class tokens: a constant in front of every element of a batch is a Pad and one sum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers import check

RANDOM = np.random.default_rng(5)


def weights(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return {name: RANDOM.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


REPEATED = """one = Constant<value_ints=[1]>() rest = Constant<value_ints=[1, 6]>()
    size = Shape<end=1>(x) shape = Concat<axis=0>(size, rest) cls = Expand(token, shape)"""


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("t = Concat<axis=1>(cls, x) y = Add(t, pos)", weights(token=(1, 1, 6), pos=(1, 6, 6))),
        ("t = Concat<axis=1>(x, cls) y = Add(pos, t)", weights(token=(6,), pos=(6, 6))),
        ("t = Concat<axis=-2>(cls, x, cls) y = Add(t, pos)", weights(token=(1, 6), pos=(7, 6))),
        # One row for all positions, or one number.
        ("t = Concat<axis=1>(cls, x) y = Add(t, pos)", weights(token=(1, 1, 6), pos=(6,))),
        ("t = Concat<axis=1>(cls, x) y = Add(t, pos)", weights(token=(1, 1, 1), pos=())),
        # Positions before the token.
        ("p = Add(x, pos) y = Concat<axis=1>(cls, p)", weights(token=(1, 1, 6), pos=(1, 5, 6))),
        ("p = Add(pos, x) y = Concat<axis=1>(p, cls)", weights(token=(1, 1, 1), pos=(5, 1))),
    ],
)
def test_a_token_is_padded_in(body: str, constants: dict[str, Any]) -> None:
    text = f"g (float[n,5,6] x) => (float[a,b,c] y) {{ {REPEATED} {body} }}"
    check(text, "shapes,fold,shapes,prepended_constant,dead", ["Pad", "Add"], weights=constants)


def test_tokens_repeated_by_tile() -> None:
    text = """g (float[n,5,6] x) => (float[a,b,c] y) {
        ones = Constant<value_ints=[1, 1]>() size = Shape<end=1>(x) by = Concat<axis=0>(size, ones)
        cls = Tile(token, by) t = Concat<axis=1>(cls, x) y = Add(t, pos) }"""
    check(text, "shapes,fold,shapes,prepended_constant,dead", ["Pad", "Add"],
          weights=weights(token=(1, 2, 6), pos=(1, 7, 6)))  # fmt: skip


@pytest.mark.parametrize(
    ("x", "body", "constants"),
    [
        # The sum makes it larger.
        ("n,5,6", "t = Concat<axis=1>(cls, x) y = Add(t, pos)", weights(token=(1, 1, 6), pos=(2, 1, 6, 6))),
        # Positions are computed.
        ("n,5,6", "t = Concat<axis=1>(cls, x) p = Abs(t) y = Add(t, p)", weights(token=(1, 1, 6))),
        # The Concat is needed as it is.
        ("n,5,6", "t = Concat<axis=1>(cls, x) s = Add(t, pos) y = Mul(s, t)",
         weights(token=(1, 1, 6), pos=(6, 6))),
        # How many patches there are is not known.
        ("n,m,6", "t = Concat<axis=1>(cls, x) y = Add(t, pos)", weights(token=(1, 1, 6), pos=(1, 1, 6))),
        # Nothing is added: a Pad and an Add would be more work.
        ("n,5,6", "t = Concat<axis=1>(cls, x) y = Relu(t)", weights(token=(1, 1, 6))),
        # Two computed tensors.
        ("n,5,6", "z = Abs(x) t = Concat<axis=1>(cls, x, z) y = Add(t, pos)",
         weights(token=(1, 1, 6), pos=(11, 6))),
    ],
)  # fmt: skip
def test_other_joins_stay(x: str, body: str, constants: dict[str, Any]) -> None:
    rank = "a,b,c,d" if constants.get("pos", np.zeros(())).ndim == 4 else "a,b,c"
    text = f"g (float[{x}] x) => (float[{rank}] y) {{ {REPEATED} {body} }}"
    check(text, "prepended_constant", None, weights=constants)
