"""The search for what must stay in float32: it rescues what overflows, and its file reproduces the rescue."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import parse, registry
from onnxlathe.api import optimize
from onnxlathe.cli import run as command
from onnxlathe.cli.precision_options import before
from onnxlathe.errors import VerificationError
from onnxlathe.infer import infer_model
from onnxlathe.model import Model, load
from onnxlathe.pipeline import Runner, plan
from onnxlathe.precision import emulate
from onnxlathe.precision.ddmin import ddmin
from onnxlathe.precision.probe import compare
from onnxlathe.precision.search import Search, SearchOptions
from onnxlathe.verify import Verdict, Verifier

TOOL = Path(__file__).parents[1] / "tools" / "fragile_model.py"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("fragile") / "model.onnx"
    subprocess.run([sys.executable, TOOL, found], check=True)
    return found


def verdict_of(path: Path, options: str) -> str:
    model = load(path)
    Runner().run(model, plan(f"shapes,precision(keep_io_types=true,{options})", registry()))
    with Verifier(path, seeds=(0, 1)) as verifier:
        return verifier.check(model).status


def test_a_model_that_overflows_is_rescued(path: Path, tmp_path: Path) -> None:
    assert verdict_of(path, "protect=false") == "different"
    file, report = tmp_path / "found.toml", tmp_path / "report.json"
    arguments = ["precision", str(path), "--search", "--passes", "shapes", "--no-protect", "--keep-io-types"]
    assert command([*arguments, "-o", str(file), "--report", str(report), "-q"]) == 0
    found = json.loads(report.read_text())
    kept = {c["node"]: c for c in found["constraints"]["keep"]}
    assert 1 <= len(kept) <= 4
    assert "/MatMul/loud" in kept
    assert "overflows" in kept["/MatMul/loud"]["reason"]
    assert kept["/MatMul/loud"]["statistic"]["largest"] > 65504
    assert found["constraints"]["search"]["minimal"]
    assert verdict_of(path, f'protect=false,constraints="{file}"') == "equal"
    assert not (tmp_path / "found.toml.state").exists()


def test_skipping_keeps_the_nodes_that_are_to_blame(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the whole lowering is left out, but the nodes that a verification names; a few at most."""
    pipeline = "shapes,precision(keep_io_types=true,protect=false)"
    model = load(path)
    result = optimize(model, pipeline, on_mismatch="skip")
    assert result.verdict is not None
    assert result.verdict.status == "equal"
    spared = {name for culprit in result.culprits for name in culprit.before}
    assert "/MatMul/loud" in spared
    assert {culprit.remedy for culprit in result.culprits} == {"it stays in float32"}
    types = {n.name: n.outputs[0].dtype for n in model.graph}
    assert {types[name] for name in spared} == {ir.DataType.FLOAT}
    assert ir.DataType.FLOAT16 in {types[n.name] for n in model.graph if n.op_type == "MatMul"}
    monkeypatch.setattr("onnxlathe.api._MAX_SPARED", 1)
    model = load(path)
    result = optimize(model, pipeline, on_mismatch="skip")
    assert "with 1 kept in float32 it is still wrong" in result.culprits[-1].remedy
    assert "--search" in result.culprits[-1].remedy
    assert not any(v.dtype == ir.DataType.FLOAT16 for n in model.graph for v in n.outputs)


def test_the_default_protection_does_most_of_it(path: Path) -> None:
    model = load(path)
    Runner().run(model, plan("shapes,precision(keep_io_types=true)", registry()))
    wide = {n.name for n in model.graph if n.op_type != "Cast" and n.outputs[0].dtype == ir.DataType.FLOAT}
    assert {"/Pow/square", "/ReduceMean/mean", "/Div/unit"} <= wide


def searched(path: Path, state: Path, options: SearchOptions, said: list[str] | None = None) -> object:
    model = load(path)
    infer_model(model)
    with Verifier(path, seeds=(0,)) as verifier:
        search = Search(
            model, verifier, options, registry(), state=state, identity="this", say=(said or []).append
        )
        try:
            return search.run()
        finally:
            search.close()


def test_an_interrupted_search_goes_on(path: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with pytest.raises(VerificationError, match="within 1 trials"):
        searched(path, state, SearchOptions(protect=False, max_trials=1))
    before = len(json.loads(state.read_text())["trials"])
    assert before >= 1
    result = searched(path, state, SearchOptions(protect=False))
    assert result.resumed == before  # type: ignore[attr-defined]
    assert result.after.passed  # type: ignore[attr-defined]
    again = searched(path, state, SearchOptions(protect=False))
    assert again.trials == again.resumed  # type: ignore[attr-defined]


def test_bfloat16_may_do(path: Path, tmp_path: Path) -> None:
    options = SearchOptions(protect=False, wider="bfloat16", error=5e-2)
    result = searched(path, tmp_path / "state", options)
    assert result.after.passed  # type: ignore[attr-defined]
    assert "bfloat16" in result.after.kept.values()  # type: ignore[attr-defined]


def test_what_cannot_be_reached_is_said(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["precision", str(path), "--search", "--error", "1e-12", "-q"]
    assert command([*arguments, "-o", str(tmp_path / "x.toml")]) == 1
    assert "not met" in capsys.readouterr().err
    assert not (tmp_path / "x.toml").exists()


def test_show(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["precision", str(path), "--passes", "shapes"]) == 0
    assert "statistics of a normalization" in capsys.readouterr().out


def test_what_is_shown_goes_to_the_report(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "r.json"
    assert command(["precision", str(path), "--passes", "shapes", "--report", str(report)]) == 0
    notes = json.loads(report.read_text())["notes"]
    printed = capsys.readouterr().out.split()
    assert notes
    assert " ".join(notes).split() == printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--search", "-o", "MODEL"], "would replace"),
        (["--search", "-o", "."], "it is a folder"),
        (["--search", "-o", "nowhere/x.toml"], "nowhere' is no folder"),
        (["--search", "-o", "x.json", "--report", "x.json"], "would replace"),
        (["--report", "MODEL"], "would replace"),
        (["--data", "inputs.npz"], "--data is about the search"),
        (["--atol", "1"], "--atol is about the search"),
    ],
)
def test_wrong_words_of_the_search(
    path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert command(["precision", str(model), *(w.replace("MODEL", str(model)) for w in words)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    assert model.read_bytes() == path.read_bytes()


def test_lowered_and_verified_in_one_run(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a reproducer is written here
    target = tmp_path / "low.onnx"
    words = ["--precision", "fp16", "--passes", "shapes,fold", "--layerPrecisions", "gone:fp32"]
    assert command([str(path), "-o", str(target), *words]) == 1
    complaint = capsys.readouterr().err
    assert "'/MatMul/loud'" in complaint
    assert "--search" in complaint
    words += ["--keep", "fp32:op=Softmax,output=masked,output=loud"]
    assert command([str(path), "-o", str(target), *words]) == 0
    assert "equal" in capsys.readouterr().out
    kinds = {n.op_type: n.output[0] for n in onnx.load(target).graph.node}
    types = {v.name: v.type.tensor_type.elem_type for v in onnx.load(target).graph.value_info}
    assert types[kinds["Softmax"]] == onnx.TensorProto.FLOAT
    assert command(["verify", str(path), str(target), "-q"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--precision", "int8"], "int8"),
        (["--keep-io-types"], "--precision"),
        (["--precision", "fp16", "--keep", "fp32:Sofmax"], "Softmax"),
        (["--precision", "fp16", "--constraints", "nowhere.toml"], "nowhere.toml"),
        (["--precision", "fp16", "--layerPrecisions", "conv1"], "NAME:TYPE"),
    ],
)
def test_wrong_words(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert command([str(path), "-o", str(tmp_path / "y.onnx"), "--no-verify", *words]) == 2
    assert message in capsys.readouterr().err


@given(st.sets(st.integers(0, 30), max_size=5), st.integers(31, 40))
def test_delta_debugging_finds_exactly_what_is_needed(needed: set[int], count: int) -> None:
    trials = 0

    def works(part: Sequence[int]) -> bool:
        nonlocal trials
        trials += 1
        return needed <= set(part)

    assert set(ddmin(list(range(count)), works)) == needed
    assert trials < 400


def test_delta_debugging_stops_when_told() -> None:
    answers = iter([True, None])
    assert len(ddmin(list(range(8)), lambda _: next(answers))) == 4


def test_errors_are_measured() -> None:
    exact = np.array([3.0, 4.0, 1e-9], np.float32)
    assert compare(exact, exact) == (0.0, 0, 0.0)
    error, lost, vanished = compare(exact, np.array([3.0, np.inf, 0.0], np.float32))
    assert lost == 1
    assert vanished == pytest.approx(0.5)
    assert error < 1e-6
    assert math.isinf(compare(np.zeros(2, np.float32), np.ones(2, np.float32))[0])


def test_emulation_rounds_what_the_runtime_would_not() -> None:
    proto = parse("g (float16[2] x) => (float16[2] y) { a = Mul(x, x)  b = Add(a, one)  y = Sub(b, a) }")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float16(1), "one"))
    model = Model(ir.from_proto(proto))
    infer_model(model)
    from helpers import run

    x = np.array([3.0, 100.0], np.float32)
    (got,) = run(ir.to_proto(emulate(model).ir), {"x": x})
    np.testing.assert_array_equal(got, [1.0, 0.0])  # 10001 is 10000 in float16
    kept = ir.to_proto(emulate(model, keep={"x", "y"}).ir)
    (same,) = run(kept, {"x": x.astype(np.float16)})
    assert same.dtype == np.float16
    np.testing.assert_array_equal(same, got)


def test_trials_are_what_is_delivered() -> None:
    """With Attention in it, which computes in another way than the products it stands for."""
    source = Path(__file__).parents[1] / "fixtures" / "bert_ts17.onnx"
    model = load(source)
    optimize(model, f"{before('default')},shapes", verify=False)
    tried: list[set[str]] = []

    class Watching(Verifier):
        def check(self, optimized: Model | Path | str) -> Verdict:
            assert isinstance(optimized, Model)
            tried.append({node.op_type for node in optimized.nodes()})
            return super().check(optimized)

    for after, there in (("attention,fuse,tidy", True), ("", False)):
        tried.clear()
        with Watching(source, seeds=(0,)) as verifier:
            search = Search(model, verifier, SearchOptions(after=after, error=3e-3), registry())
            result = search.run()
            search.close()
        assert result.after.passed
        assert tried
        assert all(("Attention" in operators) == there for operators in tried)


def test_a_tiny_output_is_remarked_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {"tiny": np.array(1e-9, np.float32), "w": np.eye(8, dtype=np.float32) / 3}
    proto = parse("g (float[n,8] x) => (float[n,8] y) { a = MatMul(x, w) y = Mul(a, tiny) }", weights=weights)
    onnx.save(proto, tmp_path / "tiny.onnx")
    arguments = ["precision", str(tmp_path / "tiny.onnx"), "--search", "--precision", "fp16", "--no-protect"]
    assert command([*arguments, "-o", str(tmp_path / "found.toml"), "--passes", "shapes"]) == 0
    assert "partially checked: output 'y' is smaller than the tolerance" in " ".join(
        capsys.readouterr().out.split()
    )
