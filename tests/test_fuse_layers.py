"""Spellings that TensorRT's parser makes fewer layers of: they compute the same, and ONNX Runtime still fuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import Array, assert_same, check, operators, optimized, parse, registry, samples
from onnxlathe.model import FileTensor, load
from onnxlathe.pipeline import Runner, plan
from onnxlathe.target import find_target

RANDOM = np.random.default_rng(0)
FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
ALL = "full_rank(everything=true)"


def weights(**shapes: Sequence[int]) -> dict[str, Array]:
    return {name: RANDOM.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of the initializers."""
    return {t.name: tuple(t.dims) for t in model.graph.initializer}


# --- Constants with all axes ----------------------------------------------------------------------------


@st.composite
def broadcasts(draw: st.DrawFn) -> tuple[str, dict[str, Array], int]:
    """An operator on a value and constants of fewer axes: text, constants, axes of the result."""
    axes = draw(st.integers(2, 4))
    shape: list[Any] = [draw(st.sampled_from(["n", "m", 2, 3])) for _ in range(axes - 1)] + [4]

    def constant() -> tuple[int, ...]:
        kept = draw(st.integers(0, axes))
        return tuple(d if isinstance(d, int) and draw(st.booleans()) else 1 for d in shape[axes - kept :])

    kind = draw(st.sampled_from(["Add", "Sub", "Mul", "Max", "PRelu", "Where", "MatMul", "Norm", "Gemm"]))
    if kind == "Gemm":
        axes, shape = 2, [shape[0], 4]
    given_weights = {
        "Where": lambda: weights(c=constant(), d=constant()),
        "MatMul": lambda: weights(c=(4, 4)),
        "Norm": lambda: weights(c=(4,), d=(4,)),
        "Gemm": lambda: weights(c=(4, 4), d=(4,)),
    }.get(kind, lambda: weights(c=constant()))()
    line = {
        "Where": "b = Greater(x, x)\n y = Where(b, c, d)\n",
        "Norm": "y = LayerNormalization<axis=-1>(x, c, d)\n",
        "Gemm": "y = Gemm(x, c, d)\n",
        "Sub": "y = Sub(c, x)\n",
    }.get(kind, f"y = {kind}(x, c)\n")
    dims, out = ", ".join(map(str, shape)), ", ".join(f"d{a}" for a in range(axes))
    return f"g (float[{dims}] x) => (float[{out}] y) {{ {line} }}", given_weights, axes


@settings(max_examples=100, deadline=None)
@given(broadcasts())
def test_all_constants_get_all_axes(case: tuple[str, dict[str, Array], int]) -> None:
    text, given_weights, axes = case
    before = parse(text, 17, given_weights)
    after = optimized(before, ALL)
    assert {len(s) for s in shapes(after).values()} == {axes}
    assert operators(after) == operators(before)
    assert_same(before, after, samples(before, 0, n=1, m=3), samples(before, 1, n=3, m=1))


@pytest.mark.parametrize(
    ("body", "wide"),
    [
        # Norms: of an input, of a sum that is used again, of a sum that only they need.
        ("y = LayerNormalization(x, v, w)", {"v", "w"}),
        ("s = Add(x, r)  t = LayerNormalization(s, v, w)  y = Add(t, s)", {"v", "w"}),
        ("s = Add(x, r)  y = LayerNormalization(s, v, w)", set()),
        # Biases: before a view, and before what they are fused with.
        ("p = MatMul(x, k)  a = Add(p, v)  y = Reshape(a, z)", {"v"}),
        ("p = MatMul(x, k)  a = Add(v, p)  y = Gelu(a)", set()),
        ("p = MatMul(x, k)  a = Add(p, v)  b = Add(a, r)  y = LayerNormalization(b, w)", set()),
        ("p = MatMul(x, k)  a = Add(p, v)  t = Reshape(a, z)  u = Relu(a)  y = MatMul(u, t)", set()),
        ("a = Add(x, v)  y = Reshape(a, z)", set()),
        # Numbers and matrices.
        ("y = Mul(x, one)", set()),
        ("y = MatMul(x, k)", set()),
    ],
)
def test_what_runtimes_fuse_stays(body: str, wide: set[str]) -> None:
    given_weights = weights(v=(8,), w=(8,), k=(8, 8), one=()) | {"z": np.array([0, 8, -1])}
    used = {name: array for name, array in given_weights.items() if f"{name})" in body or f"{name}," in body}
    text = f"g (float[n, m, 8] x, float[n, m, 8] r) => (float[n, d, e] y) {{ {body} }}"
    before = parse(text, 20, used)
    after = optimized(before, "full_rank")
    found = {tuple(s) for s in shapes(after).values()}
    assert (1, 1, 8) in found or not wide
    assert sum(len(a.shape) == 3 for a in map(np.empty, shapes(after).values())) == len(wide)
    assert_same(before, after, samples(before, 0, n=2, m=8), samples(before, 1, n=1, m=8))


def test_a_vector_is_not_a_matrix_of_one_row() -> None:
    text = "g (float[n, m, 4] x) => (float[n, m] y) { y = MatMul(x, v) }"
    after = check(text, ALL, ["MatMul"], weights=weights(v=(4,)))
    assert shapes(after) == {"v": (4,)}


def test_one_constant_for_all_its_uses() -> None:
    text = """g (float[n, m, 4] x, float[m, 4] z) => (float[n, m, 4] y, float[m, 4] u, float[4] c) {
        a = LayerNormalization(x, v, w)  y = LayerNormalization(a, v, w)
        u = LayerNormalization(z, v, w)  c = Relu(w)
    }"""
    after = check(text, "full_rank", ["LayerNormalization"] * 3 + ["Relu"], weights=weights(v=(4,), w=(4,)))
    assert sorted(shapes(after).values()) == sorted([(1, 1, 4), (1, 1, 4), (1, 4), (1, 4), (4,)])


def test_weights_stay_in_their_file(tmp_path: Path) -> None:
    text = "g (float[n, m, 64] x) => (float[n, m, 64] y) { a = MatMul(x, k)  y = LayerNormalization(a, s) }"
    onnx.save(parse(text, 17, weights(k=(64, 64), s=(64,))), tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx")
    Runner().run(model, plan(ALL, registry()))
    tensors = {tuple(v.const_value.shape.numpy()): v.const_value for v in model.graph.initializers.values()}  # type: ignore[union-attr]
    assert set(tensors) == {(1, 64, 64), (1, 1, 64)}
    assert isinstance(tensors[1, 64, 64], FileTensor)


BLOCK = """
g (float[n, m, 8] x, float[n, m, 8] r) => (float[n, m, 8] y) {
    q = MatMul(x, k)  qb = Add(q, b)  qr = Reshape(qb, z)  qt = Reshape(qr, zz)
    o = MatMul(qt, k2)  ob = Add(o, c)  s = Add(ob, r)  l = LayerNormalization<axis=-1>(s, b, c)
    f = MatMul(l, k3)  fb = Add(f, d)  g = Gelu(fb)  y = Identity(g)
}
"""


def test_fusions_of_onnx_runtime_are_kept(tmp_path: Path) -> None:
    """SkipLayerNormalization with its bias, and BiasGelu, want vectors."""
    given_weights = weights(k=(8, 8), k2=(8, 8), k3=(8, 8), b=(8,), c=(8,), d=(8,))
    given_weights |= {"z": np.array([0, 0, 2, 4]), "zz": np.array([0, 0, 8])}
    before = parse(BLOCK, 20, given_weights)
    after = optimized(before, "full_rank")
    assert (1, 1, 8) in shapes(after).values()
    assert fused(after, tmp_path) == fused(before, tmp_path)
    assert {"SkipLayerNormalization", "BiasGelu"} <= set(fused(after, tmp_path))
    assert "SkipLayerNormalization" not in fused(optimized(before, ALL), tmp_path)


def fused(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """The operators that ONNX Runtime makes of the model."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "fused.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(folder / "fused.onnx").graph.node)


# --- Gathers for Splits ---------------------------------------------------------------------------------


@st.composite
def splits(draw: st.DrawFn) -> tuple[str, dict[str, Array], list[int], int]:
    """A Split of whole blocks along any axis but the last: text, constants, sizes of the parts, opset."""
    axes = draw(st.integers(2, 4))
    axis = draw(st.integers(0, axes - 2))
    opset = draw(st.sampled_from([11, 13, 18, 20]))
    sizes = [draw(st.integers(1, 3)) for _ in range(draw(st.integers(2, 4)))]
    shape: list[Any] = [draw(st.sampled_from(["n", "m", 2])) for _ in range(axes - 1)] + [8]
    shape[axis] = sum(sizes)
    place = axis - draw(st.sampled_from([0, axes]))
    parts = ", ".join(f"p{i}" for i in range(len(sizes)))
    if opset < 13:
        line = f"{parts} = Split<axis={place}, split={sizes}>(x)"
    else:
        line = f"{parts} = Split<axis={place}>(x, z)"
    used = [i for i in range(len(sizes)) if i == 0 or draw(st.booleans())]
    body = [line, *(f"y{i} = {'Tanh' if i % 2 else 'Relu'}(p{i})" for i in used)]
    outs = ", ".join(f"float[{', '.join(f'd{i}_{a}' for a in range(axes))}] y{i}" for i in used)
    text = f"g (float[{', '.join(map(str, shape))}] x) => ({outs}) {{\n" + "\n".join(body) + "\n}"
    constants = {"z": np.array(sizes, np.int64)} if opset >= 13 else {}
    dynamic = any(isinstance(d, str) for d in shape)
    return text, constants, [sizes[i] for i in used] if dynamic else [], opset


@settings(max_examples=80, deadline=None)
@given(splits())
def test_parts_of_whole_blocks(case: tuple[str, dict[str, Array], list[int], int]) -> None:
    text, constants, gathered, opset = case
    before = parse(text, opset, constants)
    after = optimized(before, "split_gather")
    assert operators(after).count("Split") == (0 if gathered else 1)
    indices = [t for t in after.graph.initializer if t.data_type == onnx.TensorProto.INT32]
    assert [t.dims[0] for t in indices] == gathered
    assert_same(before, after, samples(before, 0, n=2, m=3), samples(before, 1, n=1, m=1))


@pytest.mark.parametrize(
    ("shape", "axis"),
    [("n, m, 6", 2), ("n, 6, m", 1), ("n, 6, 7", 1), ("2, 6, 8", 1), ("n, 6, m, 4", 1), ("6", 0)],
)
def test_splits_that_stay(shape: str, axis: int) -> None:
    out = ", ".join(f"d{i}" for i, _ in enumerate(shape.split(",")))
    text = f"""g (float[{shape}] x) => (float[{out}] y, float[{out}] z) {{
        p, q = Split<axis={axis}>(x)  y = Relu(p)  z = Relu(q)
    }}"""
    check(text, "split_gather", None)


def test_a_part_that_is_an_output() -> None:
    text = """g (float[n, 4, 8] x) => (float[n, 1, 8] p, float[n, 2, 8] y) {
        p, q, r = Split<axis=1>(x, z)  y = Relu(q)
    }"""
    after = check(text, "split_gather", ["Gather", "Gather", "Relu"], weights={"z": np.array([1, 2, 1])})
    assert [o.name for o in after.graph.output] == ["p", "y"]


# --- States of zero -------------------------------------------------------------------------------------

RECURRENT = """
g (float[m, n, 3] x{more}) => (float[m, 2, n, 4] y, float[2, n, 4] h) {{
    {state}
    y, h{cell} = {kind}<hidden_size=4, direction="bidirectional">(x, w, r, b, , {states})
}}
"""
ZEROS = {
    "computed": "s = Shape<start=1, end=2>(x)  t = Concat<axis=0>(two, s, four)  z = ConstantOfShape(t)",
    "cut": "s = Shape<start=1, end=2>(x)  t = Concat<axis=0>(four, s, four)  c = ConstantOfShape(t) "
    "z = Slice(c, zero, two, zero)",
    "expanded": "s = Shape<start=1, end=2>(x)  t = Concat<axis=0>(two, s, four)  z = Expand(none, t)",
}
STATES = {"RNN": "z", "GRU": "z", "LSTM": "z, z"}
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def recurrent(kind: str, state: str, states: str, more: str = "") -> tuple[str, dict[str, Array]]:
    gates = 4 * GATES[kind]
    given_weights = weights(w=(2, gates, 3), r=(2, gates, 4), b=(2, 2 * gates))
    constants = {"two": np.array([2]), "four": np.array([4]), "zero": np.array([0])}
    constants |= {"none": np.zeros((1,), np.float32)}
    text = RECURRENT.format(
        kind=kind, state=state, states=states, more=more, cell=", e" if kind == "LSTM" else ""
    )
    return text, given_weights | {n: a for n, a in constants.items() if n in state}


@pytest.mark.parametrize("state", ZEROS)
@pytest.mark.parametrize("kind", STATES)
def test_no_state_is_a_state_of_zeros(kind: str, state: str) -> None:
    text, given_weights = recurrent(kind, ZEROS[state], STATES[kind])
    check(text, "tidy", [kind], weights=given_weights)


def test_a_state_that_is_not_zero_stays() -> None:
    fill = ZEROS["computed"].replace("ConstantOfShape(t)", "ConstantOfShape<value = float[1] {0.5}>(t)")
    text, given_weights = recurrent("GRU", fill, "z")
    check(text, "zero_state", None, weights=given_weights)
    text, given_weights = recurrent("LSTM", ZEROS["computed"], "z, c0", ", float[2, n, 4] c0")
    after = check(text, "tidy", ["LSTM"], weights=given_weights)
    assert list(after.graph.node[0].input[4:]) == ["", "", "c0"]
    text, given_weights = recurrent("RNN", ZEROS["computed"] + "  q = Add(z, c0)", "q", ", float[2, n, 4] c0")
    check(text, "zero_state", None, weights=given_weights)


# --- Sizes, chosen one by one ---------------------------------------------------------------------------


@st.composite
def choices(draw: st.DrawFn) -> tuple[str, dict[str, Array]]:
    """A Where of vectors, some of which are Concats of sizes: text and constants."""
    count = draw(st.integers(2, 5))
    given_weights: dict[str, Array] = {"c": np.array([draw(st.booleans()) for _ in range(count)])}
    lines, names = ["sn = Shape<start=0, end=1>(x)", "sm = Shape<start=1, end=2>(x)"], []
    for side in "ab":
        left, parts = count, []
        while left:
            kind = draw(st.sampled_from(["sn", "sm", "vector"]))
            size = draw(st.integers(1, left)) if kind == "vector" else 1
            if kind == "vector":
                kind = f"{side}{left}"
                given_weights[kind] = np.array([draw(st.integers(-1, 9)) for _ in range(size)])
            parts.append(kind)
            left -= size
        if side == "a" and draw(st.booleans()):
            given_weights = {k: v for k, v in given_weights.items() if k not in parts}
            given_weights["a"] = np.array([draw(st.integers(-1, 9))] * draw(st.sampled_from([1, count])))
        else:
            lines.append(f"{side} = Concat<axis=0>({', '.join(parts)})")
        names.append(side)
    lines += [f"w = Where(c, {', '.join(names)})", "y = Neg(w)"]
    text = f"g (float[n, m] x) => (int64[{count}] y) {{\n" + "\n".join(lines) + "\n}"
    return text, given_weights


@settings(max_examples=100, deadline=None)
@given(choices())
def test_chosen_sizes_are_put_together(case: tuple[str, dict[str, Array]]) -> None:
    text, given_weights = case
    before = parse(text, 17, given_weights)
    after = optimized(before, "where_sizes,dead")
    assert len(operators(after)) <= len(operators(before))
    assert "Where" not in operators(after)
    assert_same(before, after, samples(before, 0, n=2, m=3), samples(before, 1, n=1, m=5))


def test_an_expansion_by_torchscript() -> None:
    text = """g (float[n, m, 3] x, float[1, 1, 3] token) => (float[n, 1, 3] y) {
        s = Shape<start=0, end=1>(x)  t = Concat<axis=0>(s, minus, minus)
        w = Where(c, ones, t)  y = Expand(token, w)
    }"""
    constants = {"minus": np.array([-1]), "ones": np.array([1, 1, 1]), "c": np.array([False, True, True])}
    check(text, "tidy", ["Shape", "Concat", "Expand"], weights=constants)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Where(c, ones, t)", "Where(c, matrix, t)"),
        ("Where(c, ones, t)", "Where(d, ones, t)"),
        ("t = Concat<axis=0>(s, two)", "u = Concat<axis=0>(s, two)  t = Neg(u)"),
        (
            "s = Shape<start=0, end=1>(x)  t = Concat<axis=0>(s, two)",
            "s = Shape(x)  t = Concat<axis=0>(s, z)",
        ),
    ],
)
def test_choices_that_stay(old: str, new: str) -> None:
    text = """g (float[n, m, 3] x, bool[3] d) => (int64[a] y) {
        s = Shape<start=0, end=1>(x)  t = Concat<axis=0>(s, two)  w = Where(c, ones, t)  y = Neg(w)
    }""".replace(old, new)
    if "matrix" in new:
        text = text.replace("int64[a]", "int64[a, b]")
    if "(s, z)" in new:
        text = text.replace("float[n, m, 3]", "float[n, m]").replace("bool[3] d", "bool[3] d")
    constants = {"two": np.array([4, 5]), "ones": np.array([1, 2, 3]), "c": np.array([True, False, False])}
    constants |= {"matrix": np.arange(6).reshape(2, 3), "z": np.array([7])}
    used = {k: v for k, v in constants.items() if f"{k})" in text or f"{k}," in text or f"({k}," in text}
    check(text, "where_sizes", None, weights=used)


# --- What TensorRT makes of it --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert_ts17", "vit_ts17", "whisperenc_ts17"])
def test_exported_transformers_have_fewer_layers(name: str, tmp_path: Path) -> None:
    target = find_target()
    if not target.available:
        pytest.skip(target.reason)
    before = onnx.load(FIXTURES / f"{name}.onnx")
    layers = {}
    for pipeline in ("shapes,fold,tidy,fuse(-full_rank),tidy", "default", "trt"):
        after = optimized(before, pipeline)
        path = tmp_path / "m.onnx"
        onnx.save(after, path)
        layers[pipeline] = target.parse(path).layers
        for seed, (batch, seq) in enumerate([(2, 7), (1, 3)]):
            feeds = samples(before, seed, batch=batch, seq=seq)
            for key in feeds:
                if key == "attention_mask":
                    feeds[key] = np.ones((batch, seq), np.int64)
            assert_same(before, after, feeds)
    plain, neutral, trt = layers.values()
    assert neutral is not None
    assert plain is not None
    assert trt is not None
    assert trt < 0.75 * neutral
    assert neutral <= plain
