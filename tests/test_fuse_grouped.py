"""Grouped-query attention: groups of heads from the projection on; and the scale of RMS normalization."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import Array, assert_same, check, operators, optimized, parse, registry, samples
from onnxlathe.model import Model
from onnxlathe.pipeline import Runner, plan

RANDOM = np.random.default_rng(0)
FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
SMALL = ({"n": 1, "m": 3}, {"n": 3, "m": 4})


def number(*values: int) -> Array:
    return np.array(values, np.int64)


def random(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


# --- Groups of heads ----------------------------------------------------------------------------------


class Layer:
    """The text of one layer of attention, line by line, and its weights.

    Args:
        groups, times, size: of the heads.
        opset: for how Unsqueeze and Split are spelled.
    """

    def __init__(self, groups: int, times: int, size: int, opset: int) -> None:
        self.groups, self.times, self.size, self.opset = groups, times, size, opset
        self.lines: list[str] = []
        self.weights: dict[str, Array] = {}

    def constant(self, name: str, array: Array) -> str:
        self.weights[name] = array
        return name

    def add(self, name: str, call: str) -> str:
        self.lines.append(f"{name} = {call}")
        return name

    def split(self, names: list[str], x: str, sizes: list[int], axis: int) -> None:
        self.lines.append(
            f"{', '.join(names)} = Split<axis={axis}>({x}, {self.constant(names[0] + '_z', number(*sizes))})"
            if self.opset >= 13
            else f"{', '.join(names)} = Split<axis={axis}, split={sizes}>({x})"
        )

    def unsqueeze(self, name: str, x: str, axis: int) -> str:
        if self.opset < 13:
            return self.add(name, f"Unsqueeze<axes=[{axis}]>({x})")
        return self.add(name, f"Unsqueeze({x}, {self.constant(name + '_x', number(axis))})")

    def reshape(self, name: str, x: str, *shape: int) -> str:
        return self.add(name, f"Reshape({x}, {self.constant(name + '_s', number(*shape))})")

    def rotary(self, x: str) -> str:
        half = self.size // 2
        self.split([f"{x}_1", f"{x}_2"], x, [half, half], 3)
        self.add(f"{x}_t", f"Concat<axis={-1 if half > 1 else 3}>({x}_2, {x}_1)")
        self.add(f"{x}_c", f"Mul({x}, cos)")
        self.add(f"{x}_s", f"Mul(sin, {x}_t)")
        return self.add(f"{x}_r", f"Add({x}_c, {x}_s)")

    def norm(self, x: str) -> str:
        self.add(f"{x}_p", f"Mul({x}, {x})")
        if self.opset < 18:
            self.add(f"{x}_m", f"ReduceMean<axes=[-1], keepdims=1>({x}_p)")
        else:
            self.add(f"{x}_m", f"ReduceMean<keepdims=1>({x}_p, {self.constant(f'{x}_a', number(3))})")
        self.add(f"{x}_e", f"Add({x}_m, {self.constant('eps', np.array(1e-3, np.float32))})")
        self.add(f"{x}_q", f"Sqrt({x}_e)")
        self.add(f"{x}_d", f"Div({x}, {x}_q)")
        return self.add(f"{x}_n", f"Mul({x}_d, {self.constant(f'{x}_w', random(self.size))})")


@st.composite
def layers(draw: st.DrawFn) -> tuple[str, dict[str, Array], int, int]:
    """A layer: its text, weights, opset, and how many Unsqueezes its rotary embedding may cost."""
    groups, times, size = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.sampled_from([2, 4, 6]))
    opset = draw(st.sampled_from([11, 13, 17, 20]))
    layer = Layer(groups, times, size, opset)
    order = draw(st.permutations(["q", "k", "v"]))
    heads = {"q": groups * times, "k": groups, "v": groups}
    counts = [heads[name] for name in order]
    total = sum(counts)
    layer.add("p", f"MatMul(x, {layer.constant('w', random(5, total * size))})")
    flat = "p"
    if draw(st.booleans()):
        bias = random(total * size) if draw(st.booleans()) else random(1)
        flat = layer.add("pb", f"Add({layer.constant('b', bias)}, p)")
    when = draw(st.sampled_from(["flat", "heads", "turned"]))
    if when == "flat":
        layer.split([f"{n}0" for n in order], flat, [c * size for c in counts], 2)
        for name in order:
            layer.reshape(f"{name}1", f"{name}0", 0, 0, heads[name], size)
    else:
        whole = layer.reshape("h", flat, 0, 0, total, size)
        if when == "turned":
            whole = layer.add("ht", "Transpose<perm=[0, 2, 1, 3]>(h)")
        layer.split([f"{n}1" for n in order], whole, counts, 1 if when == "turned" else 2)
    values = {name: f"{name}1" for name in order}
    normed = draw(st.booleans())
    early = draw(st.booleans())
    rotary = draw(st.sampled_from(["", "[1, 1, m, D]", "[n, 1, m, D]", "[m, D]"])).replace("D", str(size))
    for name in order:
        if normed and early and name != "v":
            values[name] = layer.norm(values[name])
        if when != "turned":
            values[name] = layer.add(f"{name}3", f"Transpose<perm=[0, 2, 1, 3]>({values[name]})")
        if normed and not early and name != "v":
            values[name] = layer.norm(values[name])
        if rotary and name != "v":
            values[name] = layer.rotary(values[name])
    layer.reshape("q9", values["q"], 0, groups, times, -1, size)
    layer.unsqueeze("k9", values["k"], 2)
    layer.unsqueeze("v9", values["v"], 2)
    layer.add("kt", "Transpose<perm=[0, 1, 2, 4, 3]>(k9)")
    layer.add("s", "MatMul(q9, kt)")
    layer.add("a", "Softmax<axis=-1>(s)" if opset >= 13 else "Softmax<axis=4>(s)")
    layer.add("o", "MatMul(a, v9)")
    layer.add("y", "Tanh(o)")
    embedding = f", float{rotary} cos, float{rotary} sin" if rotary else ""
    body = "\n".join(layer.lines)
    text = f"g (float[n, m, 5] x{embedding}) => (float[n, {groups}, {times}, m, {size}] y) {{\n{body}\n}}"
    views = 2 if len(rotary.split(",")) == 4 else 0
    return text, layer.weights, opset, views


@settings(max_examples=60, deadline=None)
@given(layers())
def test_groups_from_the_projection_on(case: tuple[str, dict[str, Array], int, int]) -> None:
    text, weights, opset, views = case
    before = parse(text, opset, weights)
    after = optimized(before, "shapes,grouped_projection")
    left = operators(after)
    assert left.count("Reshape") == 1
    assert left.count("Transpose") == 2
    assert left.count("Unsqueeze") == views
    assert_same(before, after, *(samples(before, i, **sizes) for i, sizes in enumerate(SMALL)), atol=1e-4)


PLAIN = """
g (float[n, m, 4] x) => (float[n, 2, 2, m, 3] y) {
    p = MatMul(x, w)
    h = Reshape(p, hs)
    t = Transpose<perm=[0, 2, 1, 3]>(h)
    q, k, v = Split<axis=1>(t, z)
    q1 = Reshape(q, qs)
    k1 = Unsqueeze(k, ax)
    v1 = Unsqueeze(v, ax)
    kt = Transpose<perm=[0, 1, 2, 4, 3]>(k1)
    s = MatMul(q1, kt)
    a = Softmax<axis=-1>(s)
    y = MatMul(a, v1)
}
"""
GIVEN = {
    "w": random(4, 24),
    "hs": number(0, 0, 8, 3),
    "z": number(4, 2, 2),
    "qs": number(0, 2, 2, -1, 3),
    "ax": number(2),
}
GROUPED = ["MatMul", "Reshape", "Transpose", "Split", "Transpose", "MatMul", "Softmax", "MatMul"]


def test_plain_attention() -> None:
    check(PLAIN, "grouped_projection", GROUPED, weights=GIVEN, sizes=SMALL)


def test_later_operators_take_heads_apart_themselves() -> None:
    before = parse(PLAIN, 23, GIVEN)
    assert operators(optimized(before, "grouped_projection")) == operators(before)


def test_keys_that_are_turned_as_they_are_grouped() -> None:
    text = PLAIN.replace("k1 = Unsqueeze(k, ax)", "kx = Transpose<perm=[0, 1, 3, 2]>(k)")
    text = text.replace("kt = Transpose<perm=[0, 1, 2, 4, 3]>(k1)", "kt = Unsqueeze(kx, ax)")
    check(text, "grouped_projection", GROUPED, weights=GIVEN, sizes=SMALL)


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1, 3)])
def test_constants_follow_their_heads(shape: tuple[int, ...]) -> None:
    text = PLAIN.replace("q, k, v = Split<axis=1>(t, z)", "u = Mul(each, t) q, k, v = Split<axis=1>(u, z)")
    expected = [*GROUPED[:3], "Mul", *GROUPED[3:]]
    check(text, "grouped_projection", expected, weights=GIVEN | {"each": random(*shape)}, sizes=SMALL)


def test_heads_in_one_chain_of_moves() -> None:
    """As `move_chain` leaves values: a Reshape to five axes and one Transpose."""
    text = PLAIN.replace("v1 = Unsqueeze(v, ax)", "").replace("q, k, v =", "q, k =")
    text = text.replace("h = Reshape(p, hs)", """
        pq, pv = Split<axis=2>(p, pz)
        h = Reshape(pq, hs)
        vr = Reshape(pv, vs)
        v1 = Transpose<perm=[0, 2, 4, 1, 3]>(vr)""")  # fmt: skip
    given_weights = GIVEN | {
        "pz": number(18, 6),
        "hs": number(0, 0, 6, 3),
        "vs": number(0, 0, 2, 3, 1),
        "z": number(4, 2),
    }
    expected = [*GROUPED[:4], "Split", *GROUPED[4:]]
    check(text, "grouped_projection", expected, weights=given_weights, sizes=SMALL)


@pytest.mark.parametrize("shape", [(2, 3), (1, 5), (3, 1), (1, 1), (4, 4)])
def test_fixed_sizes(shape: tuple[int, int]) -> None:
    text = PLAIN.replace("n, m", f"{shape[0]}, {shape[1]}").replace(", m, 3] y", f", {shape[1]}, 3] y")
    text = text.replace("float[n,", f"float[{shape[0]},")
    check(text, "grouped_projection", GROUPED, weights=GIVEN, sizes=[{}])


_LATER = "y = MatMul(a, v1)"
_KEYS = "k1 = Unsqueeze(k, ax)"
_PAST = "{0}p = Concat<axis=2>(past, {0}) {0}1 = Unsqueeze({0}p, ax)"


@pytest.mark.parametrize(
    ("old", "new", "given_too", "made_too"),
    [
        (_LATER, f"{_LATER} u = Relu(k)", "", "float[n, 2, m, 3] u"),
        (_LATER, f"{_LATER} u = Relu(p)", "", "float[n, m, 24] u"),
        (_LATER, f"{_LATER} u = Relu(w)", "", "float[4, 24] u"),
        (_LATER, f"{_LATER} u = Shape(t)", "", "int64[4] u"),
        ("=> (", "=> (float[n, 2, m, 3] k, ", "", ""),
        (f"{_KEYS}\n    v1 = Unsqueeze(v, ax)", _PAST.format("k") + _PAST.format("v"), "float[n, 2, 1, 3] past", ""),
        ("h = Reshape(p, hs)", "pe = Add(p, e) h = Reshape(pe, hs)", "float[n, m, 24] e", ""),
        ("p = MatMul(x, w)", "wr = Relu(w0) p = MatMul(x, wr)", "float[4, 24] w0", ""),
        ("p = MatMul(x, w)", "x0 = Concat<axis=1>(x, x) p0 = MatMul(x0, w) p = Relu(p0)", "", ""),
        ("q1 = Reshape(q, qs)", "qe = Add(q, heads) q1 = Reshape(qe, qs)", "float[4, 1, 1] heads", ""),
        ("q1 = Reshape(q, qs)", "qe = Softmax<axis=1>(q) q1 = Reshape(qe, qs)", "", ""),
        (_KEYS, "ka, kb = Split<axis=1>(k, one) kc = Concat<axis=1>(kb, ka) k1 = Unsqueeze(kc, ax)", "", ""),
    ],
    ids=[
        *("key", "projection", "weight", "shape", "output", "past", "addend", "computed", "between"),
        *("heads", "softmax", "swapped"),
    ],
)  # fmt: skip
def test_heads_that_stay(old: str, new: str, given_too: str, made_too: str) -> None:
    text = PLAIN.replace(old, new)
    assert text != PLAIN
    if given_too:
        text = text.replace("float[n, m, 4] x", f"float[n, m, 4] x, {given_too}")
    if made_too:
        text = text.replace("=> (", f"=> ({made_too}, ")
    if "x0" in new:
        text = text.replace("2, 2, m, 3] y", "2, 2, d, 3] y")
    given_weights = GIVEN | {"one": number(1, 1)}
    pipeline = "grouped_projection" + ("(max_copy=0)" if "(w)" in new else "")
    check(text, pipeline, None, weights=given_weights, sizes=SMALL)


def test_weights_stay_unread() -> None:
    size = 4096
    given_weights = GIVEN | {"w": np.zeros((4, 8 * size), np.float32), "hs": number(0, 0, 8, size)}
    given_weights["qs"] = number(0, 2, 2, -1, size)
    model = Model(ir.from_proto(parse(PLAIN.replace("m, 3] y", f"m, {size}] y"), 17, given_weights)))
    Runner().run(model, plan("grouped_projection", registry()))
    (weight,) = (v.const_value for v in model.graph.initializers.values() if v.shape == (4, 8 * size))
    assert isinstance(weight, ir.LazyTensor)
    assert weight._tensor is None


# --- The scale of RMS normalization -------------------------------------------------------------------

RMS = """
g (float[n, m, 4] x) => (float[n, m, 3] y) {
    p = Pow(x, two)
    a = ReduceMean<axes=[-1], keepdims=1>(p)
    b = Add(a, eps)
    r = Sqrt(b)
    d = Div(x, r)
    s = Mul(d, scale)
    z = MatMul(s, w)
    y = Tanh(z)
}
"""
SCALE = {
    "two": np.array(2, np.float32),
    "eps": np.array(1e-5, np.float32),
    "one": np.array(1, np.float32),
    "minus": np.array(-0.5, np.float32),
    "half": np.array(0.5, np.float32),
    "w": random(4, 3),
}
SPELLINGS = {
    "p = Pow(x, two)": "p = Mul(x, x)",
    "d = Div(x, r)": "i = Reciprocal(r) d = Mul(i, x)",
    "r = Sqrt(b)\n    d = Div(x, r)": "i = Pow(b, minus) d = Mul(x, i)",
    "r = Sqrt(b)": "r = Pow(b, half)",
    "s = Mul(d, scale)": "s = Mul(scale, d)",
    "b = Add(a, eps)": "b = Add(eps, a)",
    "Div(x, r)\n": "Mul(x, i)\n",
}


def spelled(old: str) -> str:
    text = RMS.replace(old, SPELLINGS[old])
    return (
        text.replace("d = Mul(x, i)\n", "i = Div(one, r) d = Mul(x, i)\n") if old.startswith("Div") else text
    )


@pytest.mark.parametrize("scale", ["ones", "numbers"])
@pytest.mark.parametrize("old", SPELLINGS)
def test_the_scale_stays(old: str, scale: str) -> None:
    given_weights = SCALE | {"scale": np.ones(4, np.float32) if scale == "ones" else random(4)}
    before = parse(spelled(old), 17, given_weights)
    after = optimized(before, "fold,tidy,fuse,tidy")
    assert operators(after)[-3:] == ["Mul", "MatMul", "Tanh"]
    assert_same(before, after, *(samples(before, i, **sizes) for i, sizes in enumerate(SMALL)))


@pytest.mark.parametrize("scale", ["ones", "numbers"])
def test_the_scale_goes_where_there_is_an_operator(scale: str) -> None:
    given_weights = SCALE | {"scale": np.ones(4, np.float32) if scale == "ones" else random(4)}
    given_weights["axes"] = number(-1)
    text = RMS.replace("ReduceMean<axes=[-1], keepdims=1>(p)", "ReduceMean<keepdims=1>(p, axes)")
    left = operators(optimized(parse(text, 23, given_weights), "fold,tidy,fuse,tidy"))
    assert left == ["RMSNormalization", "MatMul", "Tanh"]


@pytest.mark.parametrize(
    ("old", "new", "scale"),
    [
        ("d = Div(x, r)", "o = Relu(x) d = Div(o, r)", (4,)),
        ("ReduceMean", "ReduceMax", (4,)),
        ("Pow(x, two)", "Pow(x, half)", (4,)),
        ("s = Mul(d, scale)", "s = Mul(d, scale)", (1, 1, 4)),
        ("s = Mul(d, scale)", "s = Mul(d, scale)", (1,)),
        ("p = Pow(x, two)", "c = ReduceMean<axes=[-1], keepdims=1>(x) x0 = Sub(x, c) p = Pow(x0, two)", (4,)),
    ],
    ids=["another", "largest", "root", "axes", "number", "layernorm"],
)
def test_other_factors_go(old: str, new: str, scale: tuple[int, ...]) -> None:
    text = RMS.replace(old, new)
    if "x0" in new:
        text = text.replace("Div(x, r)", "Div(x0, r)")
    for factor in (np.ones(scale, np.float32), random(*scale)):
        before = parse(text, 13, SCALE | {"scale": factor})
        after = optimized(before, "tidy,neutral,input_scale")
        assert operators(after).count("Mul") == 0
        feeds = [samples(before, i, **sizes) for i, sizes in enumerate(SMALL)]
        assert_same(before, after, *({"x": np.abs(f["x"]) + 1} for f in feeds))


def test_a_factor_goes_into_the_scale() -> None:
    text = RMS.replace("z = MatMul(s, w)", "t = Transpose<perm=[0, 2, 1]>(s) z = Mul(t, half)")
    text = text.replace("float[n, m, 3] y", "float[n, 4, m] y")
    after = check(text, "fold_scale", [
        "Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Transpose", "Tanh",
    ], weights=SCALE | {"scale": random(4)}, sizes=SMALL)  # fmt: skip
    assert any(tuple(tensor.dims) == (4,) for tensor in after.graph.initializer)


def test_a_factor_goes_past_other_vectors() -> None:
    """Such as cosines, which others need as they are."""
    text = """
    g (float[n, 2, 4] x) => (float[n, 2, 3] y) {
        p = MatMul(x, w)
        c = Mul(p, cos)
        z = Mul(c, half)
        y = Tanh(z)
    }"""
    cosines = random(2, 3)
    given_weights = {"w": random(4, 3), "cos": cosines, "half": SCALE["half"]}
    after = check(text, "fold_scale", ["MatMul", "Mul", "Tanh"], weights=given_weights, sizes=[{"n": 2}])
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in after.graph.initializer]
    assert any(np.array_equal(array, cosines) for array in arrays)


def test_a_factor_does_not_go_into_a_number() -> None:
    text = RMS.replace("z = MatMul(s, w)", "z = Mul(s, half)").replace("m, 3] y", "m, 4] y")
    check(text, "fold_scale", None, weights=SCALE | {"scale": np.array(3, np.float32)}, sizes=SMALL)


@pytest.mark.parametrize("name", ["llama_dyn18_static", "llama_dyn20", "llama_ts17"])
def test_runtime_fuses_what_is_left(name: str, tmp_path: Path) -> None:
    import onnxruntime as ort

    after = optimized(onnx.load(FIXTURES / f"{name}.onnx"), "shapes,fold,tidy,fuse,tidy")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(after.SerializeToString(), options, providers=["CPUExecutionProvider"])
    fused = operators(onnx.load(tmp_path / "optimized.onnx"))
    assert fused.count("SimplifiedLayerNormalization") == operators(after).count("ReduceMean") == 5
