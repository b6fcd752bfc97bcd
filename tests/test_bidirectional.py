"""Two recurrences over the same sequence, one from each end."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import Array, assert_same, check, operators, optimized, parse, samples

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
PIPELINE = "shapes,fold,tidy,fuse(bidirectional),tidy"


def weights(kind: str) -> dict[str, Array]:
    random = np.random.default_rng(0)
    gates = 4 * GATES[kind]
    shapes = {
        "w": (1, gates, 3),
        "u": (1, gates, 3),
        "r": (1, gates, 4),
        "s": (1, gates, 4),
        "b": (1, 2 * gates),
    }
    found = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return found | {"axis": np.array([1])}


def text(kind: str, **changed: str) -> str:
    parts = {
        "inputs": "float[m, n, 3] x, float[1, n, 4] h, float[1, n, 4] c",
        "output": "float[m, n, 8] y",
        "one": f"a = {kind}<hidden_size=4>(x, w, r, b)",
        "two": f'd = {kind}<hidden_size=4, direction="reverse">(x, u, s)',
        "end": "p = Squeeze(a, axis)\n q = Squeeze(d, axis)\n y = Concat<axis=2>(p, q)",
    }
    parts |= changed
    return (
        f"g ({parts['inputs']}) => ({parts['output']}) {{\n{parts['one']}\n{parts['two']}\n{parts['end']}\n}}"
    )


@pytest.mark.parametrize("kind", sorted(GATES))
def test_both_directions(kind: str) -> None:
    check(text(kind), PIPELINE, [kind, "Transpose", "Reshape"], weights=weights(kind))
    turned = """p = Squeeze(a, axis)
        q = Squeeze(d, axis)
        p2 = Transpose<perm=[1, 0, 2]>(p)
        q2 = Transpose<perm=[1, 0, 2]>(q)
        y = Concat<axis=-1>(p2, q2)"""
    batch_first = text(kind, output="float[n, m, 8] y", end=turned)
    check(batch_first, PIPELINE, [kind, "Transpose", "Reshape"], weights=weights(kind))


def test_states_and_activations() -> None:
    names = 'activations=["Sigmoid", "Relu", "Tanh"]'
    states = text(
        "LSTM",
        one=f"a = LSTM<hidden_size=4, {names}>(x, w, r, b, , h, c)",
        two=f'd = LSTM<hidden_size=4, direction="reverse", {names}>(x, u, s, b, , c, h)',
    )
    check(states, PIPELINE, ["Concat", "Concat", "LSTM", "Transpose", "Reshape"], weights=weights("LSTM"))


@pytest.mark.parametrize(
    "changed",
    [
        {"two": "d = GRU<hidden_size=4>(x, u, s)"},
        {"one": 'a = GRU<hidden_size=4, direction="reverse">(x, w, r, b)', "two": "d = GRU<hidden_size=4>(x, u, s)"},
        {"two": 'v = Neg(x)\n d = GRU<hidden_size=4, direction="reverse">(v, u, s)'},
        {"two": 'd = GRU<hidden_size=4, direction="reverse", linear_before_reset=1>(x, u, s)'},
        {"two": 'd = GRU<hidden_size=4, direction="reverse">(x, u, s, , , h)'},
        {"two": 'd = GRU<hidden_size=4, direction="reverse", activations=["Sigmoid", "Relu"]>(x, u, s)'},
        {"one": "a, z = GRU<hidden_size=4>(x, w, r, b)", "output": "float[m, n, 8] y, float[1, n, 4] z"},
        {"end": "p = Squeeze(a, axis)\n q = Squeeze(d, axis)\n y = Concat<axis=1>(p, q)", "output": "float[m, k, 4] y"},
    ],
)  # fmt: skip
def test_what_is_not_two_directions(changed: dict[str, str]) -> None:
    before = parse(text("GRU", **changed), weights=weights("GRU"))
    after = optimized(before, PIPELINE)
    assert operators(after).count("GRU") == 2
    assert_same(before, after, samples(before, 0, n=2, m=3), samples(before, 1, n=1, m=5))
