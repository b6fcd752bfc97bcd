"""Raising the operator set: nodes are adapted, or stop it, and always compute what they did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from helpers import Array, assert_same, operators, optimized, parse, registry, samples
from onnxlathe.errors import UsageError
from onnxlathe.infer import schema_of
from onnxlathe.model import Model
from onnxlathe.pipeline import Runner, plan
from onnxlathe.rewrite import attribute

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
SIZES = ({"n": 1, "m": 6}, {"n": 3, "m": 8})


def version(model: onnx.ModelProto) -> int:
    return next(o.version for o in model.opset_import if o.domain == "")


def raised(
    text: str,
    old: int,
    new: int,
    weights: dict[str, Array] | None = None,
    pipeline: str = "opset(version={})",
) -> onnx.ModelProto:
    """The model at the new version, checked to compute the same."""
    before = parse(text, old, weights)
    after = optimized(before, pipeline.format(new))
    assert_same(before, after, *(samples(before, i, **s) for i, s in enumerate(SIZES)))
    return after


def notes(text: str, old: int, new: int, weights: dict[str, Array] | None = None) -> list[str]:
    """What is said about the model's nodes that stop it."""
    model = Model(ir.from_proto(parse(text, old, weights)))
    runner = Runner(paranoid=True)
    runner.run(model, plan(f"opset(version={new})", registry()))
    return [note for record in runner.records for note in record.notes]


W = np.random.default_rng(0).uniform(-1, 1, (2, 3, 3, 3)).astype(np.float32)
IMAGE = "g (float[n, 3, m, m] x) => (float[a, b, c, d] y) {{ y = {} }}"
FLAT = "g (float[n, m] x) => (float[a, b] y) {{ y = {} }}"


@pytest.mark.parametrize(
    ("text", "old"),
    [
        *((IMAGE.format(f"Reduce{kind}<axes=[2, -1]>(x)"), 11) for kind in ("Sum", "Mean", "Max", "L2")),
        (IMAGE.format("ReduceLogSumExp<axes=[1], keepdims=1>(x)"), 13),
        (FLAT.format("ReduceSum(x)"), 11),
        (FLAT.format("Softmax(x)"), 11),
        (FLAT.format("LogSoftmax<axis=-1>(x)"), 9),
        (IMAGE.format("Softmax<axis=3>(x)"), 12),
        (FLAT.format("Clip<min=-0.5, max=0.5>(x)"), 9),
        (FLAT.format("Clip<max=0.5>(x)"), 10),
        (FLAT.format("Clip(x)"), 10),
        (IMAGE.format("Pad<pads=[0, 0, 1, 0, 0, 0, 0, 2], value=0.5>(x)"), 10),
        (IMAGE.format('Pad<pads=[0, 0, 1, 1, 0, 0, 1, 1], mode="reflect">(x)'), 9),
        (IMAGE.format("Slice<starts=[0, 1], ends=[2, 1000], axes=[1, 3]>(x)"), 9),
        (IMAGE.format("Slice<starts=[0, 1], ends=[2, 2]>(x)"), 8),
        (IMAGE.format("Unsqueeze<axes=[0]>(x)").replace("[a, b, c, d]", "[a, b, c, d, e]"), 11),
        (IMAGE.format("Squeeze<axes=[2]>(z) z = MaxPool<kernel_shape=[1, 1]>(x)").replace("y = ", "", 1), 11),
        (FLAT.format("Dropout<ratio=0.3>(x)"), 10),
        (FLAT.format("Dropout<ratio=0.3>(x)"), 7),
        (IMAGE.format('Upsample<mode="nearest">(x, scales)'), 9),
        (IMAGE.format('Upsample<mode="linear", scales=[1.0, 1.0, 2.0, 2.0]>(x)'), 8),
        (IMAGE.format('Resize<mode="nearest">(x, scales)'), 10),
        (IMAGE.format("BatchNormalization<spatial=1>(x, s, s, s, s)"), 8),
        (IMAGE.format("BatchNormalization(x, s, s, s, s)"), 9),
        (IMAGE.format("Conv<pads=[1, 1, 1, 1]>(x, w)"), 7),
        (IMAGE.format("AveragePool<kernel_shape=[2, 2]>(x)"), 10),
        (IMAGE.format("DepthToSpace<blocksize=1>(x)"), 10),
        (FLAT.format("Gather<axis=1>(x, i)"), 10),
        (FLAT.format("Flatten(x)"), 8),
        (FLAT.format("Constant<value_float=1.0>()").replace("[a, b]", ""), 12),
    ],
)
@pytest.mark.parametrize("new", [13, 17, 18, 21, 23])
def test_nodes_keep_their_meaning(text: str, old: int, new: int) -> None:
    if "Squeeze<axes=[2]>(z)" in text:
        text = "g (float[n, 3, m, m] x) => (float[a, b, c] y) { z = ReduceMean<axes=[2]>(x) y = Squeeze<axes=[2]>(z) }"
    weights = {
        "scales": np.array([1, 1, 2, 2], np.float32), "w": W, "s": np.array([0.5, 1, 2], np.float32),
        "i": np.array([0, 2, 1]),
    }  # fmt: skip
    weights = {k: v for k, v in weights.items() if f"{k})" in text or f", {k}" in text}
    after = raised(text, old, new, weights)
    assert version(after) == new


def test_several_outputs() -> None:
    text = "g (float[n, 6] x) => (float[n, 2] p, float[n, 4] q) { p, q = Split<axis=1, split=[2, 4]>(x) }"
    raised(text, 11, 23)
    text = "g (float[n, 6] x) => (float[n, 3] p, float[n, 3] q) { p, q = Split<axis=1>(x) }"
    after = raised(text, 11, 23)
    assert onnx.helper.get_node_attr_value(after.graph.node[0], "num_outputs") == 2
    text = "g (float[n, 6] x) => (float[n, 2] p, int64[n, 2] q) { p, q = TopK<k=2>(x) }"
    assert version(raised(text, 9, 23)) == 23


@pytest.mark.parametrize(
    ("text", "old", "reached"),
    [
        (IMAGE.format("Softmax<axis=1>(x)"), 11, 12),  # over all of channels, height and width
        (IMAGE.format("AveragePool<kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1>(x)"), 11, 18),
        (IMAGE.format('ConvTranspose<auto_pad="SAME_UPPER", strides=[2, 2]>(x, v)'), 9, 10),
        ("g (float[n, m] x) => (float[n, m] y, float[n, m] z) { y, z = Dropout(x) }", 9, 9),
        (
            "g (float[n, m] x) => (float[n, m] y) { r = RandomNormalLike(x) z = Mul(r, zero) y = Add(x, z) }",
            17,
            21,
        ),
    ],
)
def test_stops_where_the_meaning_changes(text: str, old: int, reached: int) -> None:
    weights = {
        "v": W.transpose(1, 0, 2, 3).copy(),
        "one": np.ones(1, np.float32),
        "zero": np.zeros(1, np.float32),
    }
    weights = {k: v for k, v in weights.items() if f"{k})" in text or f", {k}" in text}
    after = optimized(parse(text, old, weights), "opset(version=23)")
    assert version(after) == reached
    (note,) = notes(text, old, 23, weights)
    assert note.startswith(f"opset {reached} rather than 23: node ")
    kind = text.split("= ")[1].split("(")[0].split("<")[0]
    assert kind.split()[0] in note
    if reached > old and "Random" not in text:
        raised(text, old, 23, weights)


def test_group_normalization_gets_a_scale_per_channel() -> None:
    weights = {"s": np.array([0.5, 2], np.float32), "b": np.array([1, -1], np.float32)}
    text = "g (float[n, 4, m] x) => (float[n, 4, m] y) { y = GroupNormalization<num_groups=2>(x, s, b) }"
    assert version(raised(text, 18, 23, weights)) == 23


def test_what_needs_no_raising() -> None:
    text = FLAT.format("Relu(x)")
    assert version(raised(text, 23, 20)) == 23
    assert notes(text, 23, 20) == []
    assert version(optimized(parse(text, 6), "opset")) == 6
    (note,) = notes(text, 6, 23)
    assert "before 7" in note
    with pytest.raises(UsageError, match="cannot raise"):
        optimized(parse(text, 17), "opset(version=99)")


def test_ir_version_follows() -> None:
    before = parse(FLAT.format("Relu(x)"), 13)
    before.ir_version = 7
    after = optimized(before, "opset(version=23)")
    assert after.ir_version >= 11


def test_unknown_operators_and_other_domains_stay() -> None:
    text = '<ir_version: 8, opset_import: ["" : 13, "other" : 1]> g (float[n] x) => (float[n] y) { t = other.Softmax<axis=1>(x) y = Relu(t) }'
    after = optimized(parse(text), "opset(version=23)")
    assert version(after) == 23
    assert after.graph.node[0].domain == "other"


BRANCH = """
g (bool b, float[n, m] x) => (float[a, c] y) {
  y = If (b) <
    then_branch = t () => (float[a, c] ty) { ty = ReduceMean<axes=[1]>(x) },
    else_branch = e () => (float[a, c] ey) { ey = ReduceSum<axes=[1]>(x) }
  >
}
"""


def test_inside_branches() -> None:
    before = parse(BRANCH, 11)
    after = optimized(before, "opset(version=21)")
    for b in (True, False):
        assert_same(before, after, samples(before, n=2, m=3) | {"b": np.array(b)})


FUNCTION = """
<ir_version: 8, opset_import: ["" : 13, "local" : 1]>
g (float[n, m] x) => (float[n, m] y) { y = local.centre(x) }
<domain: "local", opset_import: ["" : 13]>
centre (v) => (w) { m = ReduceMean<axes=[-1], keepdims=1>(v) w = Sub(v, m) }
"""


def test_inside_a_function() -> None:
    before = parse(FUNCTION)
    after = optimized(before, "opset(version=21)")
    function = after.functions[0]
    assert [n.op_type for n in function.node] == ["Constant", "ReduceMean", "Sub"]
    assert function.opset_import[0].version == 21
    assert_same(before, after, samples(before, n=2, m=3))
    # An attribute that only the caller knows cannot become an input.
    text = (
        FUNCTION.replace("centre (v)", "centre <ks> (v)")
        .replace("axes=[-1]", "axes: ints = @ks")
        .replace("local.centre(x)", "local.centre<ks=[-1]>(x)")
    )
    assert version(optimized(parse(text), "opset(version=21)")) == 17


@pytest.mark.parametrize("name", ["bert_ts14", "vit_ts17", "unet_ts13", "lstm_ts14", "resnet_ts13"])
def test_fixtures_and_what_they_gain(name: str) -> None:
    before = onnx.load(FIXTURES / f"{name}.onnx")
    after = optimized(before, "opset(version=23),fold,fuse")
    assert version(after) == 23
    gained: dict[str, Any] = {"bert_ts14": {"LayerNormalization", "Gelu"}, "vit_ts17": {"Gelu"}}
    assert gained.get(name, set()) <= set(operators(after))


@pytest.mark.parametrize(
    ("body", "reached"),
    [
        ("t = MaxPool<kernel_shape=[2]>(x) y = Relu(t)", 13),
        ("t = Erf(x) y = Relu(t)", 20),
        ("s = Mul(x, x) a = ReduceMean<axes=[-1]>(s) b = Sqrt(a) y = Identity(b)", 23),
        ("a = ReduceMean<axes=[-1]>(x) b = Sqrt(a) y = Identity(b)", 13),
        ("a = MatMul(x, x) b = Softmax(a) y = Identity(b)", 13),
    ],
)
def test_left_to_itself_it_raises_as_far_as_there_is_something_to_gain(body: str, reached: int) -> None:
    before = parse(f"g (float[n, 4, 4] x) => (float[n, a, b] y) {{ {body} }}", 13)
    after = optimized(before, "opset")
    assert version(after) == reached
    assert_same(before, after, samples(before, n=2))


def test_it_raises_for_attention_where_that_is_asked_for() -> None:
    before = parse(
        "g (float[n, 4, 4] x) => (float[n, 4, 4] y) { a = MatMul(x, x) y = Softmax<axis=-1>(a) }", 13
    )
    after = optimized(before, "opset(attention=true)")
    assert version(after) == 23
    assert_same(before, after, samples(before, n=2))


def test_an_operator_that_is_newer_than_the_operator_set() -> None:
    """ONNX Runtime's optimizer writes LayerNormalization into models of any opset, and runs it."""
    text = "g (float[n,8] x, float[8] s) => (float[n,8] y) { y = LayerNormalization<axis=-1>(x, s) }"
    proto = parse(text, opset=14)
    for newer in (18, 21):
        after = optimized(proto, f"opset(version={newer})")
        assert version(after) == newer
        assert [n.op_type for n in after.graph.node] == ["LayerNormalization"]
    node = ir.node("LayerNormalization", [ir.Value(name="x")])
    assert attribute(node, "epsilon", 14) == attribute(node, "epsilon", 17)
    assert attribute(node, "axis", 14) == -1
    assert schema_of("LayerNormalization", "", 14).since_version == 17
    assert schema_of("NoSuchOperator", "", 14) is None
