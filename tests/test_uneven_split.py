"""Splits into unequal parts that passes made become Gathers; those that the model came with do not."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from helpers import Array, assert_same, check, operators, optimized, parse, samples
from onnxlathe.rewrite import ORIGIN

SIZES = ({"n": 1, "m": 3}, {"n": 3, "m": 5})


def model(
    parts: list[int], axis: int, opset: int = 17, made: bool = True, last: str = "8"
) -> onnx.ModelProto:
    """A Split of `[n, 6, m, 8]`, which another pass made or the model came with; the last part is not used."""
    names = [f"p{i}" for i in range(len(parts))]
    body = " ".join(f"y{i} = Relu({name})" for i, name in enumerate(names[:2]))
    equal = len(set(parts)) == 1
    split = f"{', '.join(names)} = Split<axis={axis}>(x{'' if equal else ', s'})"
    if opset >= 18 and equal:
        split = split.replace(">(", f", num_outputs={len(parts)}>(")
    text = (
        f"g (float[n, 6, m, {last}] x) => (float[a, b, c, d] y0, float[e, f, g, h] y1) {{ {split} {body} }}"
    )
    weights: dict[str, Array] = {} if equal else {"s": np.array(parts, np.int64)}
    proto = parse(text, opset, weights)
    if made:
        entry = proto.graph.node[0].metadata_props.add()
        entry.key, entry.value = ORIGIN, json.dumps(["a", "b"])
    return proto


@pytest.mark.parametrize("parts", [[4, 2], [1, 5], [3, 2, 1]])
@pytest.mark.parametrize("opset", [13, 23])
def test_blocks_are_gathered(parts: list[int], opset: int) -> None:
    before = model(parts, 1, opset)
    after = optimized(before, "uneven_split")
    assert sorted(operators(after)) == ["Gather", "Gather", "Relu", "Relu"]
    assert_same(before, after, *(samples(before, i, **s) for i, s in enumerate(SIZES)))


@pytest.mark.parametrize(
    "before",
    [
        model([4, 2], 1, made=False),
        model([3, 3], 1),
        model([3, 5], 3),
        model([1, 2, 2, 1], 1),
        model([4, 2], 1, last="2"),
    ],
    ids=["the model's own", "equal parts", "single elements", "many parts", "small blocks"],
)
def test_other_splits_stay(before: onnx.ModelProto) -> None:
    after = optimized(before, "uneven_split")
    assert operators(after) == operators(before)


PROJECTIONS = """g (float[n, m, 4] x) => (float[n, m, 6] a, float[n, m, {width}] b) {{
    p = MatMul(x, v) q = MatMul(x, w)
    r = Add(p, c) s = Add(q, d)
    a = Identity(r) b = Identity(s)
}}"""


@pytest.mark.parametrize(("width", "opset", "products"), [(6, 17, 1), (6, 23, 1), (3, 17, 1), (3, 23, 2)])
def test_projections_of_unequal_width_stay_apart_where_there_is_attention(
    width: int, opset: int, products: int
) -> None:
    random = np.random.default_rng(0)
    weights = {
        name: random.standard_normal(shape).astype(np.float32)
        for name, shape in {"v": (4, 6), "w": (4, width), "c": (6,), "d": (width,)}.items()
    }
    expected = ["MatMul", "Add", "Split"] if products == 1 else ["MatMul", "Add"] * 2
    text = PROJECTIONS.format(width=width)
    before = parse(text, opset, weights)
    after = optimized(before, "merge_projections")
    assert [o for o in operators(after) if o != "Identity"].count("MatMul") == products
    assert sorted(o for o in operators(after) if o != "Identity") == sorted(expected)
    check(text, "merge_projections", operators(after), opset=opset, weights=weights, sizes=SIZES)
