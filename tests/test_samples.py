"""Made-up inputs mean something to the model."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from helpers import parse
from onnxlathe.errors import ModelError, UsageError
from onnxlathe.model import Model, load
from onnxlathe.model.samples import VARIANTS, default_bindings, sample_inputs

FIXTURES = Path(__file__).parent.parent / "fixtures"


def model(text: str, opset: int = 18, **weights: np.ndarray) -> Model:
    return Model(ir.from_proto(parse(text, opset, weights)))


def table(rows: int) -> np.ndarray:
    return np.zeros((rows, 4), np.float32)


def test_token_ids_stay_within_every_table_they_reach() -> None:
    both = model(
        """g (int64[batch, seq] ids) => (float y, float z) {
            shape = Constant<value_ints=[-1]>()  flat = Reshape(ids, shape)
            narrow = Cast<to=6>(ids)
            y = Gather(big, narrow)  z = Gather(small, flat)
        }""",
        big=table(1000),
        small=table(7),
    )
    for seed in range(4):
        ids = sample_inputs(both, seed=seed)["ids"]
        assert ids.shape == (2, 8)
        assert ids.min() >= 0
        assert 2 <= ids.max() < 7


def test_ids_that_are_shifted_on_their_way() -> None:
    shifted = model(
        "g (int64[batch, seq] position_ids) => (float y) { p = Add(position_ids, two)  y = Gather(t, p) }",
        two=np.array(2),
        t=table(10),
    )
    positions = sample_inputs(shifted, seed=0)["position_ids"]
    assert positions[0].tolist() == list(range(8)), "increasing, and 7 + 2 is the last row"
    negated = model(
        "g (int64[5] a) => (float y) { p = Sub(nine, a)  y = Gather(t, p) }", nine=np.array(9), t=table(4)
    )
    assert set(sample_inputs(negated, seed=1)["a"].tolist()) <= {6, 7, 8, 9}


def test_ids_used_inside_a_branch_and_a_function() -> None:
    nested = model(
        """g (bool c, int64[5] a) => (float y) {
            y = If (c) <
                then_branch = t () => (float p) { p = Gather(small, a) },
                else_branch = e () => (float q) { q = Gather(big, a) }
            >
        }""",
        small=table(3),
        big=table(100),
    )
    assert sample_inputs(nested, seed=3)["a"].max() < 3
    called = parse(
        """<ir_version: 10, opset_import: ["" : 18, "mine" : 1]>
        g (int64[5] a) => (float y) { t = Constant<value_floats=[1.0, 2.0]>()  y = mine.Look(t, a) }
        <domain: "mine", opset_import: ["" : 18]> Look (t, i) => (o) { o = Gather(t, i) }""",
    )
    found = sample_inputs(Model(ir.from_proto(called)), seed=3)["a"]
    assert found.max() < 2 or found.max() == 0


def test_masks_are_full_for_even_seeds_and_padded_for_odd_ones() -> None:
    text = "g (int64[batch, seq] attention_mask) => (float y) { y = Cast<to=1>(attention_mask) }"
    full = sample_inputs(model(text), seed=0)["attention_mask"]
    assert full.min() == 1
    lengths = set()
    for seed in range(1, 21, 2):
        mask = sample_inputs(model(text), seed=seed)["attention_mask"]
        assert set(np.unique(mask)) <= {0, 1}
        assert (np.diff(mask, axis=-1) <= 0).all(), "a prefix is valid"
        assert mask[:, 0].all()
        lengths |= set(mask.sum(-1).tolist())
    assert len(lengths) > 2


def test_masks_by_their_use() -> None:
    by_use = model(
        "g (int64[b, s] m) => (float y) { f = Cast<to=1>(m)  d = Sub(one, f)  y = Mul(d, low) }",
        one=np.float32(1),
        low=np.float32(-1e9),
    )
    assert set(np.unique(sample_inputs(by_use, seed=1)["m"])) <= {0, 1}
    added = model("g (float[b, s] attn_mask, float[b, s] x) => (float y) { y = Add(x, attn_mask) }")
    assert set(np.unique(sample_inputs(added, seed=1)["attn_mask"])) <= {0, -10000}
    bools = model("g (bool[b, s] keep, float[b, s] x) => (float y) { y = Where(keep, x, x) }")
    assert sample_inputs(bools, seed=1)["keep"].dtype == bool


@pytest.mark.parametrize(
    ("text", "name", "low", "high"),
    [
        ("g (float[3, 5] x, int64[2] i) => (float y) { y = Gather<axis=1>(x, i) }", "i", 0, 4),
        ("g (float[3, 5] x, int64[3, 2] i) => (float y) { y = GatherElements<axis=1>(x, i) }", "i", 0, 4),
        ("g (float[3, 5] x, int64[4, 2] i) => (float y) { y = GatherND(x, i) }", "i", 0, 2),
        (
            "g (float[3, 5] x, int64[4, 1] i, float[4, 5] u) => (float y) { y = ScatterND(x, i, u) }",
            "i",
            0,
            2,
        ),
        ("g (float[3, 5] x, int64[1] k) => (float y, int64 j) { y, j = TopK(x, k) }", "k", 1, 5),
        ("g (float[7, 3, 5] x, int32[3] l) => (float y) { y = ReverseSequence(x, l) }", "l", 1, 7),
        ("g (float[3, 5] x, int64[2] s) => (float y) { y = Expand(x, s) }", "s", 1, 1),
        ("g (float[3, 5] x, int64[2] s) => (float y) { y = Reshape(x, s) }", "s", -1, 1),
        ("g (int64[2] s) => (float y) { y = ConstantOfShape(s) }", "s", 2, 4),
        ("g (float[3] x) => (float y) { y = Log(x) }", "x", 0.01, 10),
        ("g (float[3] x) => (float y) { r = Reshape(x, s)  y = Sqrt(r) }", "x", 0.01, 10),
        ("g (float[3] x) => (float y) { y = Pow(x, half) }", "x", 0.01, 10),
        ("g (int64[30] a, int64[30] b) => (int64 y) { y = Div(a, b) }", "b", 1, 10),
        ("g (uint8[1, 3, 32, 32] x) => (float y) { y = Cast<to=1>(x) }", "x", 0, 255),
        ("g (float[50] x) => (float y) { y = Acos(x) }", "x", -1, 1),
        ("g (int64[4] i) => (float y) { y = OneHot(i, depth, v) }", "i", 0, 5),
    ],
)
def test_operands_have_their_domain(text: str, name: str, low: float, high: float) -> None:
    weights = {
        "s": np.array([-1]),
        "half": np.float32(0.5),
        "depth": np.array(6),
        "v": np.array([0, 1], np.float32),
    }
    body = text.partition("=>")[2]
    used = {k: v for k, v in weights.items() if k != name and any(f" {k}{end}" in body for end in "),")}
    for seed in range(3):
        values = sample_inputs(model(text, **used), seed=seed)[name]
        assert low <= values.min()
        assert values.max() <= high


def test_lengths_of_an_lstm_fit_its_sequence() -> None:
    lstm = model(
        "g (float[seq, batch, 2] x, int32[batch] n) => (float y) { y = LSTM<hidden_size=1>(x, w, r, , n) }",
        w=np.zeros((1, 4, 2), np.float32),
        r=np.zeros((1, 4, 1), np.float32),
    )
    inputs = sample_inputs(lstm, seed=1)
    assert inputs["n"].max() == inputs["x"].shape[0]
    assert inputs["n"].min() >= 1
    assert len(inputs["n"]) == inputs["x"].shape[1]


@pytest.mark.parametrize("kind", ["float16", "double", "bfloat16", "string", "int8", "uint32", "complex64"])
def test_every_element_type(kind: str) -> None:
    text = f"g ({kind}[2, 3] x) => ({kind}[2, 3] y) {{ y = Identity(x) }}"
    x = sample_inputs(model(text), seed=0)["x"]
    wanted = {"double": "float64", "string": "object"}.get(kind, kind)
    assert x.dtype == (ml_dtypes.bfloat16 if kind == "bfloat16" else np.dtype(wanted))
    assert x.shape == (2, 3)


def test_values_depend_on_seed_and_name_alone() -> None:
    one = model("g (float[n, 4] x) => (float y) { y = Relu(x) }")
    two = model("g (float[n, 4] w, float[n, 4] x) => (float y) { y = Add(x, w) }")
    first = sample_inputs(one, seed=5)["x"]
    assert np.array_equal(first, sample_inputs(two, seed=5)["x"])
    assert not np.array_equal(first, sample_inputs(one, seed=6)["x"])
    assert not np.array_equal(sample_inputs(two, seed=5)["w"], first)


def test_variants_differ_and_spatial_sizes_divide() -> None:
    images = model(
        "g (float[n, 3, h, w] x) => (float y) { y = Conv(x, k) }", k=np.zeros((4, 3, 3, 3), np.float32)
    )
    sizes = [default_bindings(images, v) for v in range(VARIANTS)]
    assert all(s["h"] % 32 == 0 and s["w"] % 32 == 0 for s in sizes)
    assert all(sizes[0][k] != sizes[1][k] for k in "nhw")
    assert default_bindings(images, 0, given={"n": 9})["n"] == 9


def test_past_lengths_add_up() -> None:
    decoder = model(
        """g (int64[batch, seq] input_ids, int64[batch, total] attention_mask, float[batch, 2, past, 4] past_k,
              int64[batch, past_plus] other_mask) => (float y) { y = Cast<to=1>(input_ids) }"""
    )
    decoder.graph.inputs[3].shape = ir.Shape(["batch", "past + seq"])
    for variant in (0, 1):
        sizes = default_bindings(decoder, variant)
        assert sizes["total"] == sizes["past"] + sizes["seq"]
        inputs = sample_inputs(decoder, seed=0, bindings=sizes)
        assert inputs["other_mask"].shape == inputs["attention_mask"].shape


def test_unreasonable_sizes_are_refused() -> None:
    images = model("g (float[n, 1000000] x) => (float y) { y = Relu(x) }")
    with pytest.raises(ModelError, match="2 GiB"):
        sample_inputs(images, seed=0, bindings={"n": 10**6})
    negative = model("g (float[n, 4] x, float[m, 4] z) => (float y) { y = Relu(x) }")
    negative.graph.inputs[1].shape = ir.Shape(["n - 5", 4])
    with pytest.raises(UsageError, match="comes out as -3"):
        sample_inputs(negative, seed=0, bindings={"n": 2})


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*_*.onnx")), ids=lambda p: p.stem)
def test_inputs_of_real_exports_are_concrete(path: Path) -> None:
    loaded = load(path)
    for variant in (0, 1):
        inputs = sample_inputs(loaded, seed=variant, bindings=default_bindings(loaded, variant))
        assert inputs
        for name, array in inputs.items():
            assert array.size, name
            if name == "input_ids":
                assert array.max() > 10, "drawn from the vocabulary"
