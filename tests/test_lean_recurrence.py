"""LSTM, GRU and RNN without what they do not need."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import Array, assert_same, check, operators, optimized, parse, samples

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
TIDY = "shapes,fold,tidy"
LAST = "shapes,fold,tidy,fuse(last_state),tidy"


def weights(kind: str, directions: int = 1) -> dict[str, Array]:
    random = np.random.default_rng(0)
    shapes = {"w": (directions, 4 * GATES[kind], 3), "r": (directions, 4 * GATES[kind], 4)}
    shapes["b"] = (directions, 8 * GATES[kind])
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def inputs_of(proto: onnx.ModelProto, kind: str) -> list[str]:
    (node,) = (n for n in proto.graph.node if n.op_type == kind)
    return list(node.input)


@pytest.mark.parametrize("kind", sorted(GATES))
def test_bias_of_zeros(kind: str) -> None:
    text = f"g (float[m, n, 3] x) => (float[m, 1, n, 4] y) {{ y = {kind}<hidden_size=4>(x, w, r, b) }}"
    given = weights(kind)
    zero = {**given, "b": np.zeros_like(given["b"])}
    after = check(text, TIDY, [kind], weights=zero)
    assert len(inputs_of(after, kind)) == 3
    assert len(inputs_of(check(text, TIDY, [kind], weights=given), kind)) == 4


@pytest.mark.parametrize("lengths", [[5, 5], [5, 4]])
def test_lengths_of_whole_sequences(lengths: list[int]) -> None:
    text = "g (float[5, 2, 3] x) => (float[5, 1, 2, 4] y, float[1, 2, 4] h) { y, h = GRU<hidden_size=4>(x, w, r, , n) }"
    given = {**weights("GRU"), "n": np.array(lengths, np.int32)}
    del given["b"]
    after = check(text, TIDY, ["GRU"], weights=given, sizes=({},))
    assert ("n" in inputs_of(after, "GRU")) is (lengths == [5, 4])


def last(place: int, direction: str, more: str = "", opset: int = 17, time: str = "m") -> str:
    count = 2 if direction == "bidirectional" else 1
    squeezed = "Squeeze(a, axes)" if opset >= 13 else "Squeeze<axes=[1]>(a)"
    return f"""g (float[{time}, n, 3] x) => (float[n, 4] y{more and f", float[{time}, {count}, n, 4] a"}) {{
        a = LSTM<hidden_size=4, direction="{direction}">(x, w, r, b)
        s = {squeezed}
        t = Transpose<perm=[1, 0, 2]>(s)
        y = Gather<axis=1>(t, place{place if place >= 0 else ""})
    }}"""


def given(place: int) -> dict[str, Array]:
    return weights("LSTM") | {"axes": np.array([1]), f"place{place if place >= 0 else ''}": np.array(place)}


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize(
    ("place", "direction", "time"), [(-1, "forward", "m"), (0, "reverse", "m"), (4, "forward", "5")]
)
def test_last_state(place: int, direction: str, time: str, opset: int) -> None:
    constants = given(place)
    if opset < 13:
        del constants["axes"]
    text = last(place, direction, opset=opset, time=time)
    check(text, LAST, ["LSTM", "Squeeze"], weights=constants, opset=opset)


@pytest.mark.parametrize(
    ("place", "direction", "more", "time"),
    [
        (0, "forward", "", "m"),
        (-1, "reverse", "", "m"),
        (1, "forward", "", "m"),
        (-1, "forward", "all", "m"),
        (4, "forward", "", "m"),
    ],
)
def test_other_states(place: int, direction: str, more: str, time: str) -> None:
    """The first one, one in the middle, and the last one where the others are wanted too."""
    text = last(place, direction, more, time=time)
    sizes = ({"n": 1, "m": 5}, {"n": 3, "m": 6})
    before = parse(text, weights=given(place))
    after = optimized(before, LAST)
    assert "Gather" in operators(after)
    assert_same(before, after, *(samples(before, i, **size) for i, size in enumerate(sizes)))


def test_state_that_is_used_as_such() -> None:
    """An operator that has the last state already is not made twice."""
    text = """g (float[m, n, 3] x) => (float[n, 4] y, float[1, n, 4] h, float[1, n, 4] c) {
        a, h, c = LSTM<hidden_size=4>(x, w, r, b)
        s = Squeeze(a, axes)
        y = Gather<axis=0>(s, place)
    }"""
    check(text, LAST, ["LSTM", "Squeeze"], weights=given(-1))
    without = text.replace(", float[1, n, 4] h, float", ", float").replace("a, h, c", "a, , c")
    check(without, LAST, ["LSTM", "Squeeze", "Gather"], weights=given(-1))
