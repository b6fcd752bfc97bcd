"""`optimize debug`: what it prints, writes and returns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from helpers import parse
from onnxlathe.cli import run
from refused import chain, corpus, needs_rtx


def saved(name: str, folder: Path) -> Path:
    path = folder / f"{name}.onnx"
    onnx.save(next(c for c in corpus() if c.name == name).model(), path)
    return path


@needs_rtx
def test_the_answers_and_their_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved("three_causes", tmp_path)
    assert run(["debug", str(path), "--report", str(tmp_path / "r.json")]) == 1
    text = capsys.readouterr().out
    wanted = [
        "refused",
        "where",
        "→ %d = Resize",
        "why",
        "mends it",
        "--passes 'legalize'",
        "at export",
        "--fix",
    ]
    places = [text.index(word) for word in wanted]
    assert places == sorted(places)
    assert "float32[1, 3, 16, 16]" in text, "types and shapes are shown"
    facts = json.loads((tmp_path / "r.json").read_text())
    assert (facts["accepted"], facts["nodes"], facts["nodes_that_run"]) == (False, 5, 2)
    causes = {c["cause"]: [f["node"] for f in c["findings"]] for c in facts["causes"]}
    assert causes == {"resize-antialias": ["down"], "maxpool-indices": ["pool"], "bool-reduction": ["any"]}


@needs_rtx
def test_a_good_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(chain(["Relu", "Tanh"]), tmp_path / "m.onnx")
    assert run(["debug", str(tmp_path / "m.onnx")]) == 0
    assert "not refused" in capsys.readouterr().out
    assert run(["debug", str(tmp_path / "m.onnx"), "--json", "--parse-only"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["accepted"] is True
    assert facts["built"] is None


def test_without_tensorrt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved("unique", tmp_path)
    assert run(["debug", str(path), "--target", "none"]) == 1
    text = capsys.readouterr().out
    assert "by table" in text
    assert "table made with TensorRT for RTX" in text
    assert "Unique" in text
    onnx.save(chain(["Relu", "Tanh"]), tmp_path / "m.onnx")
    assert run(["debug", str(tmp_path / "m.onnx"), "--target", "none"]) == 0
    assert "as far as the table knows" in capsys.readouterr().out


@needs_rtx
def test_reduce(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved("three_causes", tmp_path)
    assert run(["debug", str(path), "--reduce", "--cause", "maxpool-indices"]) == 0
    assert "5 nodes → 1" in capsys.readouterr().out
    folder = tmp_path / "three_causes.reduced"
    assert {p.name for p in folder.iterdir()} == {"README.txt", "model.onnx", "reproduce.py"}
    assert [n.op_type for n in onnx.load(folder / "model.onnx").graph.node] == ["MaxPool"]
    assert run(["debug", str(path), "--reduce"]) == 0, "a folder of ours is written anew"
    assert [n.op_type for n in onnx.load(folder / "model.onnx").graph.node] == ["Resize"]
    (folder / "README.txt").unlink()
    assert run(["debug", str(path), "--reduce"]) == 2, "a folder of somebody else's is left alone"
    assert (folder / "model.onnx").exists()
    assert run(["debug", str(path), "--reduce", "--cause", "loss", "-q"]) == 2


@needs_rtx
def test_fix_and_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved("split_sequence", tmp_path)
    engine = tmp_path / "m.engine"
    assert run(["debug", str(path), "--fix", "--engine", str(engine)]) == 0
    text = capsys.readouterr().out
    assert "mended" in text
    assert "equal" in text
    assert engine.stat().st_size > 0
    fixed = onnx.load(tmp_path / "split_sequence.fixed.onnx")
    assert "SplitToSequence" not in {n.op_type for n in fixed.graph.node}


@needs_rtx
def test_bind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved("reduce_axes_input", tmp_path)
    assert run(["debug", str(path), "--bind", "axes=[1]"]) == 0
    assert "specialised" in capsys.readouterr().out
    assert run(["debug", str(path), "--fix", "--bind", "axes=[1]", "-q"]) == 0
    assert [v.name for v in onnx.load(tmp_path / "reduce_axes_input.fixed.onnx").graph.input] == ["x"]


def test_passes_that_are_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "wrong.py"
    plugin.write_text(
        "from onnxlathe import Rule\n"
        "class Twice(Rule):\n"
        "    '''-x = x, which is wrong.'''\n"
        "    name = 'twice'\n"
        "    def pattern(self, op, x):\n"
        "        return op.Neg(x)\n"
        "    def rewrite(self, op, x):\n"
        "        return op.Abs(x)\n"
    )
    path = tmp_path / "m.onnx"
    onnx.save(chain(["Tanh", "Exp", "Neg", "Sigmoid"]), path)
    assert run(["debug", str(path), "--passes", "twice", "--plugin", str(plugin)]) == 0
    assert "4 nodes → 1" in capsys.readouterr().out
    folder = tmp_path / "m.reduced"
    assert [n.op_type for n in onnx.load(folder / "model.onnx").graph.node] == ["Neg"]
    with np.load(folder / "inputs.npz") as inputs:
        assert list(inputs) == ["v1"]
    assert run(["debug", str(path), "--passes", "tidy"]) == 1, "there is nothing to reduce"


def test_against(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(chain(["Tanh", "Exp", "Neg", "Sigmoid"]), tmp_path / "a.onnx")
    onnx.save(chain(["Tanh", "Exp", "Abs", "Sigmoid"]), tmp_path / "b.onnx")
    assert run(["debug", str(tmp_path / "a.onnx"), "--against", str(tmp_path / "b.onnx")]) == 1
    assert "the first value that differs is 'v2'" in capsys.readouterr().out
    names = {p.name for p in (tmp_path / "a.reduced").iterdir()}
    assert {"model.onnx", "wrong.onnx", "inputs.npz", "reproduce.py"} <= names
    assert run(["debug", str(tmp_path / "a.onnx"), "--against", str(tmp_path / "a.onnx")]) == 0


@pytest.mark.parametrize(
    "words",
    [
        ["missing.onnx"],
        ["m.onnx", "--check", "no-such-program {}"],
        ["m.onnx", "--check", "true", "--passes", "tidy"],
        ["m.onnx", "--fix", "--passes", "tidy"],
        ["m.onnx", "--target", "nobody"],
        ["m.onnx", "--bind", "y=[1]"],
        ["m.onnx", "--memory", "much"],
        ["m.onnx", "--passes", "no_such_pass"],
    ],
)
def test_wrong_usage(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(chain(["Relu"]), tmp_path / "m.onnx")
    assert run(["debug", str(tmp_path / words[0]), *words[1:]]) == 2
    said = capsys.readouterr().err
    assert "error" in said
    assert "Traceback" not in said
    assert "internal" not in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine", "e"], "--engine does nothing without --fix"),
        (["--pad", "3"], "--pad does nothing without --fix"),
        (["--fail-code", "3"], "--fail-code does nothing without --check"),
        (["--cause", "loss"], "--cause does nothing without --reduce"),
        (["--fix", "--reduce"], "--fix excludes --reduce"),
        (["--check", "true {}", "--fail-regex", "("], "--fail-regex ("),
        (["--check", "true '"], "--check true '"),
        (["--target", "none", "--fix"], "--fix asks TensorRT itself"),
        (["--bind", "k"], "--bind k: no value"),
        (["--bind", "k=[1.5]"], "int64 cannot hold [1.5]"),
        (["--bind", "j=[1]"], "no input is called 'j'"),
    ],
)
def test_options_that_do_nothing(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "g (float[2,9] x, int64[1] k) => (float[2,m] v) { v, i = TopK(x, k) }"
    onnx.save(parse(text), tmp_path / "m.onnx")
    assert run(["debug", str(tmp_path / "m.onnx"), *options]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_a_folder_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["debug", str(tmp_path)]) == 2
    assert "a folder, not a model" in " ".join(capsys.readouterr().err.split())


@needs_rtx
def test_an_engine_where_nothing_is_to_be_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(chain(["Relu", "Tanh"]), tmp_path / "m.onnx")
    assert run(["debug", str(tmp_path / "m.onnx"), "--fix", "--engine", str(tmp_path / "e")]) == 0
    assert "nothing to mend" in capsys.readouterr().out
    assert (tmp_path / "e").stat().st_size > 0
    assert {p.name for p in tmp_path.iterdir()} == {"m.onnx", "e"}
