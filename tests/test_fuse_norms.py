"""Layer and RMS normalization in every spelling, and what only looks like one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import Array, assert_same, check, operators, optimized, parse, samples

TYPES = {"float": np.float32, "float16": np.float16, "double": np.float64}
SIZES = ({"n": 1, "m": 3}, {"n": 3, "m": 5})


class Written:
    """A normalization written out, line by line."""

    def __init__(self, opset: int, axes: list[int], dtype: str = "float", keepdims: int = 1) -> None:
        self.opset, self.axes, self.keepdims = opset, axes, keepdims
        self.kind = TYPES[dtype]
        self.lines: list[str] = []
        self.weights: dict[str, Array] = {}

    def op(self, text: str) -> str:
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {text}")
        return name

    def const(self, value: Any, dtype: Any = None) -> str:
        name = f"c{len(self.weights)}"
        self.weights[name] = np.asarray(value, dtype or self.kind)
        return name

    def mean(self, x: str, axes: list[int] | None = None) -> str:
        axes = self.axes if axes is None else axes
        if self.opset < 18:
            return self.op(f"ReduceMean<axes={axes}, keepdims={self.keepdims}>({x})")
        return self.op(f"ReduceMean<keepdims={self.keepdims}>({x}, {self.const(axes, np.int64)})")

    def square(self, x: str, how: int) -> str:
        return self.op(f"Pow({x}, {self.const(2)})" if how == 0 else f"Mul({x}, {x})")

    def over_root(self, x: str, square: str, how: int) -> str:
        if how == 0:
            return self.op(f"Div({x}, {self.op(f'Sqrt({square})')})")
        if how == 1:
            return self.op(f"Mul({self.op('Reciprocal(' + self.op(f'Sqrt({square})') + ')')}, {x})")
        if how == 2:
            root = self.op(f"Sqrt({square})")
            return self.op(f"Mul({x}, {self.op(f'Div({self.const(1)}, {root})')})")
        if how == 3:
            return self.op(f"Mul({x}, {self.op(f'Pow({square}, {self.const(-0.5)})')})")
        return self.op(f"Div({x}, {self.op(f'Pow({square}, {self.const(0.5)})')})")

    def text(self, result: str, shape: str, dtype: str = "float", more: str = "") -> str:
        body = "\n".join([*self.lines, f"y = Identity({result})"])
        return f"g ({dtype}[{shape}] x{more}) => ({dtype}[{shape}] y) {{\n{body}\n}}"


@st.composite
def normalizations(draw: st.DrawFn, rms: bool) -> tuple[Written, str, str]:
    """A normalization, its model's text, its element type."""
    dtype = draw(st.sampled_from(["float", "float", "float16", "double"]))
    rank = draw(st.integers(1, 4))
    sizes = [draw(st.integers(2, 5)) for _ in range(rank)]
    count = draw(st.integers(1, rank))
    axes = draw(st.permutations([draw(st.sampled_from([a, a - rank])) for a in range(rank - count, rank)]))
    opset = 23 if rms else draw(st.sampled_from([17, 18, 21]))
    w = Written(opset, list(axes), dtype)
    x = "x"
    if not rms:
        average = w.mean("x")
        centred = w.op(f"Sub(x, {average})")
        again = draw(st.integers(0, 2))
        other = centred if again == 0 else w.op(f"Sub(x, {average if again == 1 else w.mean('x')})")
        x = centred
    else:
        other = "x"
    square = w.square(other, draw(st.integers(0, 1)))
    epsilon = w.const(draw(st.sampled_from([1e-5, 1e-3])))
    pair = draw(st.permutations([w.mean(square), epsilon]))
    y = w.over_root(x, w.op(f"Add({', '.join(pair)})"), draw(st.integers(0, 4)))
    random = np.random.default_rng(0)
    # One more dimension of size one in front must not matter while the input has it.
    shapes = [tuple(sizes[-count:]), (1,) * (rank - count) + tuple(sizes[-count:]), (1,), ()]
    for op in ("Mul", "Add") if not rms else ("Mul",):
        if draw(st.booleans()):
            c = w.const(random.uniform(0.5, 2, draw(st.sampled_from(shapes))))
            y = w.op(f"{op}({c}, {y})" if draw(st.booleans()) else f"{op}({y}, {c})")
    shape = ", ".join(["n", *map(str, sizes[1:])] if count < rank else map(str, sizes))
    return w, w.text(y, shape, dtype), dtype


def close(dtype: str) -> dict[str, float]:
    return {"rtol": 2e-2, "atol": 2e-2} if dtype == "float16" else {}


@settings(max_examples=60, deadline=None)
@given(normalizations(rms=False))
def test_layer_normalization(case: tuple[Written, str, str]) -> None:
    w, text, dtype = case
    check(text, "fuse", ["LayerNormalization", "Identity"], opset=w.opset, weights=w.weights, **close(dtype))


@settings(max_examples=30, deadline=None)
@given(normalizations(rms=True))
def test_rms_normalization(case: tuple[Written, str, str]) -> None:
    w, text, dtype = case
    check(text, "fuse", ["RMSNormalization", "Identity"], opset=w.opset, weights=w.weights, **close(dtype))


def layer(w: Written, epsilon: bool = True, axes2: list[int] | None = None) -> tuple[str, str]:
    """Centre and result of the usual spelling."""
    centred = w.op(f"Sub(x, {w.mean('x')})")
    variance = w.mean(w.square(centred, 0), axes2)
    if epsilon:
        variance = w.op(f"Add({variance}, {w.const(1e-5)})")
    return centred, w.over_root(centred, variance, 0)


def stays(w: Written, result: str, shape: str = "n, m, 4", more: str = "", sizes: Any = SIZES) -> None:
    before = parse(w.text(result, shape, more=more), w.opset, w.weights)
    after = optimized(before, "fuse")
    assert operators(after) == operators(before)
    assert_same(before, after, *(samples(before, i, **s) for i, s in enumerate(sizes)))


def test_no_epsilon() -> None:
    w = Written(17, [-1])
    stays(w, layer(w, epsilon=False)[1])


def test_epsilon_outside_the_root() -> None:
    w = Written(17, [-1])
    centred = w.op(f"Sub(x, {w.mean('x')})")
    root = w.op(f"Sqrt({w.mean(w.square(centred, 0))})")
    stays(w, w.op(f"Div({centred}, {w.op(f'Add({root}, {w.const(1e-5)})')})"))


def test_epsilon_per_place() -> None:
    w = Written(17, [-1])
    centred = w.op(f"Sub(x, {w.mean('x')})")
    variance = w.op(f"Add({w.mean(w.square(centred, 0))}, {w.const([1e-5] * 4)})")
    stays(w, w.over_root(centred, variance, 0))


@pytest.mark.parametrize("axes", [[0], [1], [0, 2], [0, 1]])
def test_axes_that_are_not_the_last(axes: list[int]) -> None:
    for opset in (17, 18):
        w = Written(opset, axes)
        stays(w, layer(w)[1])


def test_mean_and_variance_over_different_axes() -> None:
    w = Written(17, [-1])
    stays(w, layer(w, axes2=[1, 2])[1])


def test_dimensions_of_unknown_size() -> None:
    w = Written(17, [-1])
    stays(w, layer(w)[1], "n, m")


def test_dropped_dimensions() -> None:
    w = Written(17, [-1], keepdims=0)
    stays(w, layer(w)[1], "n, 4, 4", sizes=({"n": 4},))


def test_another_power() -> None:
    w = Written(17, [-1])
    centred = w.op(f"Sub(x, {w.mean('x')})")
    quartic = w.op(f"Pow({centred}, {w.const(4)})")
    stays(w, w.over_root(centred, w.op(f"Add({w.mean(quartic)}, {w.const(1e-5)})"), 0))


def test_variance_of_something_else() -> None:
    w = Written(17, [-1])
    centred = w.op(f"Sub(x, {w.mean('x')})")
    other = w.op("Relu(x)")
    stays(w, w.over_root(centred, w.op(f"Add({w.mean(w.square(other, 1))}, {w.const(1e-5)})"), 0))


def test_part_that_is_used_elsewhere() -> None:
    w = Written(17, [-1])
    centred, y = layer(w)
    stays(w, w.op(f"Add({y}, {centred})"))


def test_before_its_opset() -> None:
    w = Written(16, [-1])
    stays(w, layer(w)[1])
    w = Written(22, [-1])
    stays(w, w.over_root("x", w.op(f"Add({w.mean(w.square('x', 0))}, {w.const(1e-5)})"), 0))


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        ("Mul", (3, 4)),
        ("Mul", (2, 3, 1)),
        ("Add", (3, 4)),
        ("Add", (2, 1, 1)),
        ("Mul", (1, 1, 1, 4)),
        ("Div", (3, 1)),
    ],
)
def test_scale_and_bias_along_other_axes(op: str, shape: tuple[int, ...]) -> None:
    w = Written(17, [-1])
    c = w.const(np.random.default_rng(0).uniform(1, 2, shape))
    y = w.op(f"{op}({layer(w)[1]}, {c})")
    rank = max(3, len(shape))
    out = "2, 3, 4" if rank == 3 else "1, 2, 3, 4"
    text = w.text(y, "2, 3, 4").replace(") => (float[2, 3, 4] y)", f") => (float[{out}] y)")
    check(text, "fuse", ["LayerNormalization", op, "Identity"], opset=17, weights=w.weights)


def test_residual_is_no_bias() -> None:
    w = Written(17, [-1])
    y = w.op(f"Add({layer(w)[1]}, x)")
    check(w.text(y, "n, m, 4"), "fuse", ["LayerNormalization", "Add", "Identity"], weights=w.weights)


def test_scale_and_bias_that_are_not_constant() -> None:
    w = Written(17, [-1])
    y = w.op(f"Add({w.op(f'Mul({layer(w)[1]}, s)')}, b)")
    text = w.text(y, "n, m, 4", more=", float[4] s, float[4] b")
    check(text, "fuse", ["LayerNormalization", "Identity"], weights=w.weights)
    text = w.text(y, "n, m, 4", more=", float[n, 1, 4] s, float[n, 1, 4] b")
    check(text, "fuse", ["LayerNormalization", "Mul", "Add", "Identity"], weights=w.weights)


def test_an_operator_takes_scale_and_bias() -> None:
    weights = {
        "s": np.arange(1, 5, dtype=np.float32),
        "b": np.ones(4, np.float32),
        "c": np.full(4, 3, np.float32),
    }
    norm = "g (float[n, 4] x) => (float[n, 4] y) {{ z = LayerNormalization<axis=-1>(x, s{}) u = Mul(z, c) y = {} }}"
    check(norm.format("", "Sub(u, c)"), "fuse", ["LayerNormalization"], weights=weights)
    check(norm.format(", b", "Add(c, u)"), "fuse", ["LayerNormalization"], weights=weights)
    check(norm.format(", b", "Div(u, c)"), "fuse", ["LayerNormalization"], weights=weights)
    check(norm.format(", b", "Div(c, u)"), "fuse", ["LayerNormalization", "Div"], weights=weights)


@pytest.mark.parametrize("rms", [False, True])
def test_casts_around_it(rms: bool) -> None:
    w = Written(23, [-1])
    wide = w.op("Cast<to=1>(x)")
    centred = wide if rms else w.op(f"Sub({wide}, {w.mean(wide)})")
    y = w.over_root(centred, w.op(f"Add({w.mean(w.square(centred, 0))}, {w.const(1e-5)})"), 1)
    scale = w.const(np.arange(1, 5), np.float16)
    y = w.op(f"Mul({scale}, {w.op(f'Cast<to=10>({y})')})")
    text = w.text(y, "n, m, 4", "float16")
    kind = "RMSNormalization" if rms else "LayerNormalization"
    check(text, "fuse", [kind, "Identity"], opset=23, weights=w.weights, rtol=2e-3, atol=2e-3)


def test_casts_to_another_type_stay() -> None:
    w = Written(23, [-1])
    wide = w.op("Cast<to=1>(x)")
    y = w.over_root(wide, w.op(f"Add({w.mean(w.square(wide, 0))}, {w.const(1e-5)})"), 1)
    y = w.op(f"Cast<to=11>({y})")
    text = w.text(y, "n, m, 4", "float16").replace("=> (float16", "=> (double")
    check(text, "fuse", ["Cast", "RMSNormalization", "Cast", "Identity"], opset=23, weights=w.weights)


def test_inside_a_branch() -> None:
    w = Written(17, [-1])
    _, y = layer(w)
    y = w.op(f"Mul({y}, {w.const([1, 2, 3, 4])})")
    lines = " ".join(w.lines)
    text = f"""g (bool b, float[n, 4] x) => (float[n, 4] y) {{
        y = If (b) <then_branch = t () => (float[n, 4] p) {{ {lines} p = Identity({y}) }},
                    else_branch = e () => (float[n, 4] q) {{ q = Neg(x) }}> }}"""
    before = parse(text, 17, w.weights)
    after = optimized(before, "fuse")
    then = next(a.g for a in after.graph.node[0].attribute if a.name == "then_branch")
    assert [n.op_type for n in then.node] == ["LayerNormalization", "Identity"]
    for b in (True, False):
        assert_same(before, after, samples(before, n=2) | {"b": np.array(b)})
