"""Scatters that write a block become what they are, and all others stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import Array, assert_same, check, operators, optimized, parse, samples

GRID = """
    s = Shape(x); n0 = Gather(s, zero); r = Range(zero, n0, one); rows = Reshape(r, down)
    sum = Add(rows, places); whole = Shape(sum)
    a = Expand(rows, whole); au = Unsqueeze(a, last)
    b = Expand(places, whole); bu = Unsqueeze(b, last)
    i = Concat<axis=-1>(au, bu)
"""  # as torch.onnx spells the positions of x[:, places] = u


def ints(**values: Any) -> dict[str, Array]:
    return {name: np.array(value, np.int64) for name, value in values.items()}


def grid(places: list[int]) -> dict[str, Array]:
    return ints(zero=0, one=1, down=[-1, 1], last=[-1], places=places)


def positions(*axes: Any) -> Array:
    """Indices of a ScatterND that writes every combination of places along the axes."""
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).astype(np.int64)


def model(inputs: str, body: str, result: str = "float[n, 4] y") -> str:
    lines = "\n".join(part.strip() for part in body.split(";"))
    return f"g ({inputs}) => ({result}) {{\n{lines}\n}}"


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([1, 2, 3], ["Slice", "Concat"]),
        ([0, 1], ["Slice", "Concat"]),
        ([-2, -1], ["Slice", "Concat"]),
        ([1, 2], ["Pad", "Where"]),
        ([2], ["Where"]),
        ([0, 1, 2, 3], []),
    ],
)
def test_columns_of_an_open_batch(places: list[int], expected: list[str]) -> None:
    text = model(f"float[n, 4] x, float[n, {len(places)}] v", f"{GRID}; u = Neg(v); y = ScatterND(x, i, u)")
    check(text, "fuse", ["Neg", *expected], weights=grid(places))


@pytest.mark.parametrize("places", [[1, 3, 2], [0, 0, 1], [0, 1, 3], [3, 4, 5], [-1, 0, 1], [2, 1, 0]])
def test_columns_that_are_no_block(places: list[int]) -> None:
    places = [p % 4 for p in places] if max(places) > 3 else places
    text = model("float[n, 4] x, float[n, 3] u", f"{GRID}; y = ScatterND(x, i, u)")
    check(text, "fuse", None, weights=grid(places))


def test_positions_that_are_an_input() -> None:
    text = model("float[n, 4] x, int64[n, 1] i, float[n, 4] u", "y = ScatterND(x, i, u)")
    after = optimized(parse(text), "fuse")
    assert operators(after) == ["ScatterND"]


@pytest.mark.parametrize("kind", ["add", "mul", "max"])
def test_updates_that_are_combined(kind: str) -> None:
    text = model("float[n, 4] x, float[n, 3] u", f'{GRID}; y = ScatterND<reduction="{kind}">(x, i, u)')
    check(text, "fuse", None, weights=grid([1, 2, 3]), opset=18)


@pytest.mark.parametrize(
    ("value", "dtype"), [(0, np.float32), (1.5, np.float32), (7, np.int64), (1, np.float16)]
)
def test_into_a_tensor_of_one_number(value: float, dtype: Any) -> None:
    kind = {np.float32: "float", np.int64: "int64", np.float16: "float16"}[dtype]
    text = model(f"{kind}[n, 4] x", f"{GRID}; u = Identity(x); y = ScatterND(z, i, u)", f"{kind}[n, 7] y")
    zeros = f"w = Concat<axis=0>(n1, seven)\nz = ConstantOfShape<value={kind}[1] {{{value}}}>(w)"
    text = text.replace("r = Range", f"n1 = Unsqueeze(n0, nought)\n{zeros}\nr = Range")
    weights = grid([2, 3, 4, 5]) | ints(seven=[7], nought=[0])
    check(text, "tidy,fuse,tidy", ["Pad"], weights=weights)


def test_booleans_are_not_padded() -> None:
    weights = {"z": np.zeros((5, 4), bool), "i": positions([1, 2], range(4))}
    text = model("bool[2, 4] u", "y = ScatterND(z, i, u)", "bool[5, 4] y")
    check(text, "fuse", ["Concat"], weights=weights)


def test_one_number_is_chosen_by_a_mask() -> None:
    body = f"{GRID}; c = Expand(two, whole); y = ScatterND(x, i, c)"
    weights = grid([0, 2]) | {"two": np.float32(2)}
    check(model("float[n, 4] x", body), "fuse", ["Where"], weights=weights)


def test_large_positions_are_worth_a_node() -> None:
    data = {"i": positions(range(64), range(1, 200))}
    text = model("float[64, 200] x, float[64, 199] u", "y = ScatterND(x, i, u)", "float[64, 200] y")
    check(text, "fuse", ["Slice", "Concat"], weights=data)
    text = model("float[4, 20] x, float[4, 19] u", "y = ScatterND(x, i, u)", "float[4, 20] y")
    check(text, "fuse", None, weights={"i": positions(range(4), range(1, 20))})


def test_between_transposes() -> None:
    """torch.export writes along the first axis, and transposes there and back."""
    body = """
        a = Transpose<perm=[1, 0, 2]>(x); b = Transpose<perm=[1, 0, 2]>(u)
        s = ScatterND(a, i, b); y = Transpose<perm=[1, 0, 2]>(s)
    """
    text = model("float[n, 6, 4] x, float[n, 3, 4] u", body, "float[n, 6, 4] y")
    check(text, "fuse,tidy", ["Slice", "Concat"], weights={"i": positions([3, 4, 5])})


def test_between_transposes_that_do_not_undo_each_other() -> None:
    body = """
        a = Transpose<perm=[2, 0, 1]>(x); b = Transpose<perm=[2, 0, 1]>(u)
        s = ScatterND(a, i, b); y = Transpose<perm=[1, 0, 2]>(s)
    """
    text = model("float[n, 6, 4] x, float[n, 6, 2] u", body, "float[n, 4, 6] y")
    check(text, "fuse,tidy", ["Slice", "Concat", "Transpose"], weights={"i": positions([0, 1])})


def test_transposed_otherwise_than_the_data() -> None:
    body = "a = Transpose<perm=[1, 0]>(x); s = ScatterND(a, i, u); y = Transpose<perm=[1, 0]>(s)"
    check(
        model("float[n, 4] x, float[3, n] u", body), "fuse", None, weights={"i": positions([1, 2, 3])},
        sizes=({"n": 2}, {"n": 5}),
    )  # fmt: skip


def test_two_blocks_inside_of_each_other() -> None:
    """x written into a corner of zeros, one axis after the other."""
    body = """
        t = Transpose<perm=[1, 0]>(x); a = ScatterND(z, i, t); b = Transpose<perm=[1, 0]>(a)
        y = ScatterND(w, j, b)
    """
    weights = {"z": np.zeros((8, 3), np.float32), "w": np.zeros((5, 8), np.float32)}
    weights |= {"i": positions([1, 2, 3, 4]), "j": positions([0, 1, 2])}
    check(model("float[3, 4] x", body, "float[5, 8] y"), "fuse,tidy", ["Pad"], weights=weights)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scatter_elements_of_one_row(axis: int) -> None:
    sizes = [3, 4]
    sizes[axis] = 1
    weights = {"i": np.full(sizes, 2, np.int64)}
    body = f"y = ScatterElements<axis={axis}>(x, i, u)"
    check(
        model(f"float[3, 4] x, float[{sizes[0]}, {sizes[1]}] u", body, "float[3, 4] y"),
        "fuse", ["Where"], weights=weights,
    )  # fmt: skip


def test_scatter_elements_that_differ_by_row() -> None:
    weights = {"i": np.array([[0], [1], [2]], np.int64)}
    body = "y = ScatterElements<axis=1>(x, i, u)"
    check(model("float[3, 4] x, float[3, 1] u", body, "float[3, 4] y"), "fuse", None, weights=weights)


def test_the_last_row_of_an_open_axis() -> None:
    body = """
        s = Shape(x); n0 = Gather(s, zero); k = Sub(n0, one); r = Reshape(k, square)
        y = ScatterND(x, r, u)
    """
    check(
        model("float[n, 4] x, float[1, 4] u", body), "shapes,fuse,tidy", ["Slice", "Concat"],
        weights=ints(zero=0, one=1, square=[1, 1]), sizes=({"n": 1}, {"n": 4}),
    )  # fmt: skip


def test_a_row_that_may_be_counted_from_the_end() -> None:
    """With n = 1 the second row from the end is no row, and with a third the indices wrap around."""
    body = """
        s = Shape(x); n0 = Gather(s, zero); k = Sub(n0, three); r = Reshape(k, square)
        y = ScatterND(x, r, u)
    """
    check(
        model("float[n, 4] x, float[1, 4] u", body), "shapes,fuse", None,
        weights=ints(zero=0, three=3, square=[1, 1]), sizes=({"n": 2}, {"n": 4}),
    )  # fmt: skip


@st.composite
def scatters(draw: st.DrawFn) -> tuple[str, dict[str, Array]]:
    """A ScatterND of a block, or something like it, into data of one to three axes."""
    axes = draw(st.integers(1, 3))
    sizes = [draw(st.integers(1, 5)) for _ in range(axes)]
    depth = draw(st.integers(1, axes))
    places: list[Array] = []
    for size in sizes[:depth]:
        step = draw(st.sampled_from([1, 1, 1, 2, -1]))
        start = draw(st.integers(0, size - 1))
        found = np.arange(size)[start :: step if step > 0 else 1]
        found = found[: draw(st.integers(1, len(found)))]
        found = found[::-1] if step < 0 else found
        places.append(found - size if draw(st.booleans()) else found)
    weights: dict[str, Array] = {"i": positions(*places)}
    update = [len(p) for p in places] + sizes[depth:]
    whole, part = ", ".join(map(str, sizes)), ", ".join(map(str, update))
    given = ""
    if draw(st.booleans()):
        weights["x"] = np.full(sizes, draw(st.sampled_from([0, -2.5])), np.float32)
    else:
        given = f"float[{whole}] x, "
    return f"g ({given}float[{part}] u) => (float[{whole}] y) {{ y = ScatterND(x, i, u) }}", weights


@given(scatters())
@settings(max_examples=120, deadline=None)
def test_whatever_is_written_is_written(drawn: tuple[str, dict[str, Array]]) -> None:
    text, weights = drawn
    before = parse(text, 18, weights)
    after = optimized(before, "fuse,tidy")
    assert_same(before, after, samples(before))


def chain(*parts: list[int], width: int = 6) -> tuple[str, dict[str, Array]]:
    """Scatters one after the other into columns of x."""
    names = [f"u{k}" for k in range(len(parts))]
    inputs = ", ".join(f"float[n, {len(p)}] {u}" for u, p in zip(names, parts, strict=True))
    lines, weights, last = ["t = Transpose<perm=[1, 0]>(x)"], {}, "t"
    for k, (u, places) in enumerate(zip(names, parts, strict=True)):
        weights[f"i{k}"] = positions(places)
        lines += [f"v{k} = Transpose<perm=[1, 0]>({u})", f"s{k} = ScatterND({last}, i{k}, v{k})"]
        last = f"s{k}"
    lines.append(f"y = Transpose<perm=[1, 0]>({last})")
    return model(f"float[n, {width}] x, {inputs}", "\n".join(lines), f"float[n, {width}] y"), weights


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (([0, 2, 4], [1, 3, 5]), ["Concat", "Gather"]),
        (([1, 3, 5], [0, 2, 4]), ["Concat", "Gather"]),
        (([0, 1], [2, 3, 4, 5]), ["Concat"]),
        (([3, 4, 5], [0, 1, 2]), ["Concat"]),
        (([2, 3], [0, 1], [4, 5]), ["Concat"]),
        (([0, 3], [2, 5], [1, 4]), ["Concat", "Gather"]),
    ],
)
def test_parts_that_are_everything(parts: tuple[list[int], ...], expected: list[str]) -> None:
    text, weights = chain(*parts)
    check(text, "fuse,tidy", expected, weights=weights)


@pytest.mark.parametrize("parts", [([0, 2, 4], [1, 3]), ([0, 2, 4], [1, 3, 5, 4]), ([0, 2, 4], [0, 2, 4])])
def test_parts_that_are_not_everything(parts: tuple[list[int], ...]) -> None:
    text, weights = chain(*parts)
    before = parse(text, 17, weights)
    after = optimized(before, "fuse,tidy")
    assert "ScatterND" in operators(after)
    assert_same(before, after, samples(before, n=1), samples(before, 1, n=3))


def test_parts_of_which_the_first_is_used_elsewhere() -> None:
    text, weights = chain([0, 2, 4], [1, 3, 5])
    text = text.replace("float[n, 6] y)", "float[n, 6] y, float[6, n] z)").replace(
        "s1 =", "z = Abs(s0)\ns1 ="
    )
    check(text, "fuse", None, weights=weights)


@st.composite
def partitions(draw: st.DrawFn) -> tuple[str, dict[str, Array]]:
    """Parts in steps, which may or may not be everything, or overlap."""
    width = draw(st.integers(2, 6))
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        start, step = draw(st.integers(0, width - 1)), draw(st.integers(1, 3))
        found = list(range(start, width, step))
        parts.append(found[: draw(st.integers(1, len(found)))])
    return chain(*parts, width=width)


@given(partitions())
@settings(max_examples=60, deadline=None)
def test_whatever_parts_there_are(drawn: tuple[str, dict[str, Array]]) -> None:
    text, weights = drawn
    before = parse(text, 18, weights)
    after = optimized(before, "fuse,tidy")
    assert_same(before, after, samples(before, n=2))
