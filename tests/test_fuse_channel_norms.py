"""Group and instance normalization, in the spellings of exporters and users."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from helpers import Array, assert_same, check, operators, optimized, parse, samples
from test_fuse_schema import expanded

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
RANDOM = np.random.default_rng(0)
SIZES = ({"n": 1, "m": 4}, {"n": 3, "m": 6})


def weights(channels: int = 8, groups: int = 4) -> dict[str, Array]:
    found: dict[str, Any] = {
        "ones": np.ones(groups), "zeros": np.zeros(groups), "scales": RANDOM.uniform(0.5, 2, groups),
        "shifts": RANDOM.standard_normal(groups), "a": RANDOM.uniform(0.5, 2, (channels, 1, 1)),
        "b": RANDOM.standard_normal((1, channels, 1, 1)), "column": RANDOM.standard_normal((4, 1)),
        "k": 1.5, "flat": np.ones(16), "eps": 1e-5, "two": 2.0, "ones8": np.ones(channels),
    }  # fmt: skip
    arrays = {name: np.asarray(array, np.float32) for name, array in found.items()}
    shapes = {"rows": [0, groups, -1], "image": [0, channels, 4, -1], "wide": [0, 2 * channels, 2, -1]}
    shapes |= {"whole": [1, groups, -1], "axes": [2, 3], "last": [3]}
    return arrays | {name: np.array(shape, np.int64) for name, shape in shapes.items()}


def used(body: str) -> dict[str, Array]:
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return {name: array for name, array in weights().items() if name in words}


def model(body: str, last: str = "m") -> str:
    lines = "\n".join(part.strip() for part in body.split(";"))
    shape = f"float[n, 8, 4, {last}]"
    return f"g ({shape} x) => ({shape} y) {{\n{lines}\n}}"


def normed(body: str, expected: list[str] | None, opset: int = 21, last: str = "m") -> onnx.ModelProto:
    return check(model(body, last), "fuse,groupnorm", expected, opset=opset, weights=used(body), sizes=SIZES)


GROUPS = "r = Reshape(x, rows); i = InstanceNormalization(r, ones, zeros); q = Reshape(i, image)"


@pytest.mark.parametrize(
    ("end", "left"),
    [
        ("y = Relu(q)", ["Relu"]),
        ("p = Mul(q, a); y = Add(p, b)", []),
        ("p = Div(q, a); y = Sub(p, b)", []),
        ("p = Add(b, q); y = Mul(k, p)", []),
        ("p = Mul(q, a); o = Add(p, b); y = Add(o, x)", ["Add"]),
        ("p = Mul(q, a); y = Add(p, column)", ["Add"]),  # by row, not by channel
    ],
)
def test_group_normalization(end: str, left: list[str]) -> None:
    after = normed(f"{GROUPS}; {end}", ["GroupNormalization", *left])
    (groups,) = [a.i for a in after.graph.node[0].attribute if a.name == "num_groups"]
    assert groups == 4


def test_a_scale_for_each_group() -> None:
    body = GROUPS.replace("ones, zeros", "scales, shifts")
    normed(f"{body}; y = Mul(q, a)", ["GroupNormalization"])


def test_groups_written_as_layers() -> None:
    body = "r = Reshape(x, rows); i = LayerNormalization(r, flat); q = Reshape(i, image); p = Mul(q, a); y = Add(p, b)"
    normed(body, ["GroupNormalization"], last="2")


@pytest.mark.parametrize(
    "body",
    [
        f"{GROUPS.replace('rows', 'whole').replace('x,', 'x,')}; y = Relu(q)",  # all of the batch at once
        "i = InstanceNormalization(x, ones8, ones8); y = Reshape(i, image)",
    ],
)
def test_no_groups(body: str) -> None:
    after = optimized(parse(model(body), 21, used(body)), "fuse,groupnorm")
    assert "GroupNormalization" not in operators(after)


def test_another_shape_afterwards() -> None:
    body = f"{GROUPS.replace('image', 'wide')}; y = Reshape(q, image)"
    after = optimized(parse(model(body), 21, used(body)), "groupnorm")
    assert "GroupNormalization" not in operators(after)


def test_group_normalization_before_its_opset() -> None:
    normed(f"{GROUPS}; p = Mul(q, a); y = Add(p, b)", None, opset=20)


def test_group_normalization_is_what_its_schema_says() -> None:
    body = f"{GROUPS}; p = Mul(q, a); y = Add(p, b)"
    before = parse(model(body), 21, used(body))
    after = optimized(before, "fuse,groupnorm")
    again = expanded(after, "GroupNormalization")
    assert_same(before, again, samples(before, n=2, m=5))


@pytest.mark.parametrize("name", ["unet_ts17", "unet_dyn18"])
def test_group_normalization_of_real_exports(name: str) -> None:
    before = onnx.load(FIXTURES / f"{name}.onnx")
    after = optimized(before, "trt")
    assert (
        operators(before).count("InstanceNormalization") == operators(after).count("GroupNormalization") > 0
    )
    feeds = [samples(before, seed, batch=n) for seed, n in enumerate((1, 2))]
    assert_same(before, after, *feeds, rtol=1e-3, atol=1e-4)


def spelled(axes: str) -> str:
    return (
        f"m = ReduceMean(x, {axes}); c = Sub(x, m); s = Mul(c, c); v = ReduceMean(s, {axes})"
        "; e = Add(v, eps); t = Sqrt(e); d = Div(c, t)"
    )


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("y = Relu(d)", ["InstanceNormalization", "Relu"]),
        ("p = Mul(d, a); y = Add(p, b)", ["InstanceNormalization"]),
        ("p = Mul(d, a); y = Sub(p, k)", ["InstanceNormalization"]),
    ],
)
def test_instance_normalization_of_open_size(end: str, expected: list[str]) -> None:
    normed(f"{spelled('axes')}; {end}", expected, opset=18)


def test_instance_normalization_of_known_size() -> None:
    normed(f"{spelled('axes')}; p = Mul(d, a); y = Add(p, b)", ["InstanceNormalization"], opset=18, last="6")
    normed(f"{spelled('axes')}; y = Add(d, b)", ["InstanceNormalization"], opset=18, last="6")
    # Without anything per channel, both are one node.
    normed(f"{spelled('axes')}; y = Relu(d)", ["LayerNormalization", "Relu"], opset=18, last="6")


def test_instance_normalization_takes_what_follows() -> None:
    normed(
        "i = InstanceNormalization(x, ones8, ones8); p = Mul(i, a); y = Add(b, p)", ["InstanceNormalization"]
    )


@pytest.mark.parametrize(
    ("body", "last"),
    [
        (f"{spelled('last')}; y = Relu(d)", "m"),  # rows, of open length
        ("i = InstanceNormalization(x, ones8, ones8); y = Mul(i, column)", "m"),
        ("i = InstanceNormalization(x, ones8, ones8); y = Div(b, i)", "m"),
        ("i = InstanceNormalization(x, ones8, ones8); p = Relu(i); y = Mul(p, i)", "m"),
    ],
)
def test_almost_instance_normalization(body: str, last: str) -> None:
    normed(body, None, opset=18, last=last)


def test_channels_that_are_not_known() -> None:
    body = f"{spelled('axes')}; y = Relu(d)"
    text = model(body).replace("8, 4, m", "m, 4, k")
    before = parse(text, 18, used(body))
    after = optimized(before, "fuse")
    assert "InstanceNormalization" not in operators(after)
    assert_same(before, after, samples(before, n=2, m=3, k=5))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("p = Mul(x, x); s = ReduceSum(p, last); y = Sqrt(s)", ["ReduceL2"]),
        ("p = Pow(x, two); s = ReduceSum(p, axes); y = Pow(s, half)", ["ReduceL2"]),
        ("s = ReduceSumSquare(x, last); y = Sqrt(s)", ["ReduceL2"]),
        ("p = Mul(x, x); s = ReduceSum(p, axes); y = Add(s, k)", ["ReduceSumSquare", "Add"]),
        ("p = Abs(x); s = ReduceSum(p, last); y = Relu(s)", ["ReduceL1", "Relu"]),
        (
            "p = Pow(x, two); s = ReduceSum(p, last); r = Sqrt(s); c = Max(r, eps); h = Shape(x)"
            "; e = Expand(c, h); y = Div(x, e)",
            ["ReduceL2", "Max", "Div"],
        ),
    ],
)
@pytest.mark.parametrize("keepdims", [0, 1])
def test_norms(body: str, expected: list[str], keepdims: int) -> None:
    if "Div" in expected and not keepdims:
        keepdims = 1
    body = body.replace("ReduceSum(", f"ReduceSum<keepdims={keepdims}>(")
    body = body.replace("Square(", f"Square<keepdims={keepdims}>(")
    result = "d, e, f, h" if keepdims else "d, e, f" if "last" in body else "d, e"
    text = model(body).replace("=> (float[n, 8, 4, m] y)", f"=> (float[{result}] y)")
    found = used(body) | ({"half": np.float32(0.5)} if "half" in body else {})
    check(text, "fuse", expected, opset=18, weights=found, sizes=SIZES)


@pytest.mark.parametrize(
    "body",
    [
        "p = Mul(x, x); s = ReduceMean(p, last); y = Sqrt(s)",
        "p = Mul(x, k); s = ReduceSum(p, last); y = Sqrt(s)",
        "p = Mul(x, x); s = ReduceSum(p, last); d = Add(s, k); e = Mul(p, d); y = ReduceSum(e, last)",
    ],
)
def test_almost_norms(body: str) -> None:
    text = model(body).replace("=> (float[n, 8, 4, m] y)", "=> (float[d, e, f, h] y)")
    check(text, "fuse", None, opset=18, weights=used(body), sizes=SIZES)
