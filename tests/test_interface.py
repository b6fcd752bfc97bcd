"""Models whose interface changed on purpose: they say so, and are compared all the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxlathe
from helpers import parse
from legalize_helpers import Refusing
from onnxlathe import Mismatch, Model
from onnxlathe.cli import run as command
from onnxlathe.infer import infer_model
from onnxlathe.model.interface import Interface, bind_input, interface_of, note_change
from onnxlathe.rewrite import Context
from onnxlathe.verify import Verifier
from onnxlathe_passes.legalize import Legalize
from onnxlathe_passes.legalize.run import Legalizing

AXES = (
    "g (float[2,3,4] x, int64[1] axes) => (float[a,b,c] y) { r = Relu(x) y = ReduceSum<keepdims=1>(r, axes) }"
)
PCM = "g (int16[1,16] pcm) => (float[1,16] y) <float c = {32768.0}> { f = Cast<to=1>(pcm) y = Div(f,c) }"


def legalized(proto: onnx.ModelProto, refused: str, **options: str) -> Model:
    model = Model(ir.from_proto(proto))
    infer_model(model)
    judge = Refusing(frozenset([refused]))
    Legalizing(Legalize(**options), model, Context.of(model.ir), judge).run()
    return model


@pytest.mark.parametrize(("axis", "shape"), [(0, "[1, 3, 4]"), (2, "[2, 3, 1]")])
def test_a_bound_input(axis: int, shape: str, tmp_path: Path) -> None:
    proto = parse(AXES, opset=18)
    onnx.save(proto, tmp_path / "original.onnx")
    model = legalized(proto, "Erf", bind=f"axes=[{axis}]")
    assert [v.name for v in model.graph.inputs] == ["x"]
    with Verifier(tmp_path / "original.onnx") as verifier:
        verdict = verifier.check(model)
    assert verdict.status == "equal", verdict.summary()
    assert {str(c.shape) for c in verdict.comparisons} == {shape}
    assert verdict.interface == [f"input 'axes' is the constant [{axis}] now: compared for that value"]


def test_a_bound_input_with_another_value_is_a_difference(tmp_path: Path) -> None:
    proto = parse(AXES, opset=18)
    model = legalized(proto, "Erf", bind="axes=[0]")
    wrong = model.clone()
    wrong.ir.metadata_props["onnxlathe.interface"] = '{"bound": {"axes": [1]}}'
    with Verifier(Model(ir.from_proto(proto))) as verifier:
        assert verifier.check(wrong).status == "different"
        assert verifier.check(model).status == "equal"


def test_data_of_the_user_get_the_bound_value() -> None:
    proto = parse(AXES, opset=18)
    model = legalized(proto, "Erf", bind="axes=[1]")
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    feeds = iter([{"x": x, "axes": np.array([2])}, {"x": -x, "axes": np.array([0])}])
    with Verifier(Model(ir.from_proto(proto)), feeds=feeds) as verifier:
        verdict = verifier.check(model)
    assert verdict.status == "equal", verdict.summary()
    assert len(verdict.feeds) == 2
    assert {tuple(c.shape) for c in verdict.comparisons} == {(2, 1, 4)}


def test_widened_types(tmp_path: Path) -> None:
    proto = parse(PCM)
    model = Model(ir.from_proto(proto))
    infer_model(model)
    with Verifier(Model(ir.from_proto(proto))) as verifier:
        model.graph.inputs[0].type = ir.TensorType(ir.DataType.INT32)
        assert verifier.check(model).status == "different"  # nobody said so
        note_change(model.ir, types={"pcm": ir.DataType.INT16})
        verdict = verifier.check(model)
    assert verdict.status == "equal", verdict.summary()
    assert "'pcm' was int16" in verdict.interface[0]


def test_an_output_of_another_type() -> None:
    proto = parse("g (float[3] x) => (int32[3] y) { y = Cast<to=6>(x) }")
    other = parse("g (float[3] x) => (int64[3] y) { y = Cast<to=7>(x) }")
    wrong = parse("g (float[3] x) => (int64[3] y) { n = Neg(x) y = Cast<to=7>(n) }")
    with Verifier(Model(ir.from_proto(proto))) as verifier:
        for candidate, status in ((other, "equal"), (wrong, "different")):
            model = Model(ir.from_proto(candidate))
            note_change(model.ir, types={"y": ir.DataType.INT32})
            assert verifier.check(model).status == status


def test_one_size_only() -> None:
    proto = parse("g (float[b,4] x) => (float[b,4] y) { y = Relu(x) }")
    frozen = Model(ir.from_proto(parse("g (float[5,4] x) => (float[5,4] y) { y = Relu(x) }")))
    note_change(frozen.ir, sizes={"b": 5})
    with Verifier(Model(ir.from_proto(proto))) as verifier:
        verdict = verifier.check(frozen)
    assert verdict.status == "equal", verdict.summary()
    assert {tuple(c.shape) for c in verdict.comparisons} == {(5, 4)}


def test_the_truth_may_have_changed_its_own_interface_before() -> None:
    model = Model(ir.from_proto(parse(AXES, opset=18)))
    bind_input(model.ir, model.graph.inputs[1], np.array([1]))
    with Verifier(model.clone()) as verifier:
        verdict = verifier.check(model)
    assert verdict.status == "equal"
    assert not verdict.interface


def test_the_first_word_on_a_name_stays() -> None:
    model = parse(PCM)
    proto = ir.from_proto(model)
    note_change(proto, types={"pcm": ir.DataType.INT16})
    note_change(proto, types={"pcm": ir.DataType.INT32}, outside=["a"])
    note_change(proto, outside=["a", "b"])
    assert interface_of(proto) == Interface({"pcm": "INT16"}, outside=["a", "b"])
    proto.metadata_props["onnxlathe.interface"] = "{broken"
    assert not interface_of(proto)


def test_optimize_binds_widens_and_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(parse(AXES, opset=18), tmp_path / "m.onnx")
    out = tmp_path / "o.onnx"
    passes = 'legalize(bind="axes=[1]", cache="none")'
    assert command([str(tmp_path / "m.onnx"), "-o", str(out), "--passes", passes]) == 0
    said = capsys.readouterr().out
    assert "input 'axes' is the constant [1] now" in said
    assert command(["verify", str(tmp_path / "m.onnx"), str(out)]) == 0
    assert "compared for that value" in capsys.readouterr().out


def test_a_wrong_pass_after_binding_is_still_found() -> None:
    model = Model(ir.from_proto(parse(AXES, opset=18)))
    original = model.clone()
    bind_input(model.ir, model.graph.inputs[1], np.array([1]))
    for node in model.graph:
        if node.op_type == "Relu":
            node.op_type = "Neg"
    with pytest.raises(Mismatch):
        onnxlathe.optimize(model, "tidy", original=original)
