"""The sidecar of an engine: what it says, that it is the same each time, and how it is printed."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from helpers import parse
from onnxlathe.cli import run as command
from onnxlathe.errors import ModelError
from onnxlathe.model import load
from onnxlathe.target.layers import layer_map, nodes_of
from onnxlathe.target.sidecar import read_sidecar, sidecar_path

HAS_WHEELS = (sys.platform, platform.machine()) in {("linux", "x86_64"), ("win32", "AMD64")}
needs_rtx = pytest.mark.skipif(not HAS_WHEELS, reason="tensorrt-rtx has no wheels for this platform")

SOURCE = Path(__file__).parents[1] / "fixtures" / "resnet_ts17.onnx"


def make(folder: Path, *words: str) -> Path:
    folder.mkdir()
    engine = folder / "model.engine"
    done = command([str(SOURCE), "-o", str(folder / "model.onnx"), "--engine", str(engine), "-q", *words])
    assert done == 0
    return engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    report = tmp_path_factory.mktemp("report") / "report.json"
    made = make(tmp_path_factory.mktemp("made") / "first", "--range", "batch=1:2:4", "--report", str(report))
    made.with_name("report.json").write_bytes(report.read_bytes())
    return made


@needs_rtx
def test_what_it_says(engine: Path) -> None:
    facts = read_sidecar(engine)
    assert facts["target"]["name"] == "rtx"
    assert facts["target"]["version"]
    assert facts["built_for"] == {"compute_capabilities": "default"} or "gpu" in facts["built_for"]
    assert facts["source"]["sha256"] == hashlib.sha256(SOURCE.read_bytes()).hexdigest()
    model = engine.with_name("model.onnx")
    assert facts["model"]["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert facts["profiles"][0]["shapes"] == {
        "pixel_values": [[1, 3, 32, 32], [2, 3, 32, 32], [4, 3, 32, 32]]
    }
    assert facts["verdict"]["status"] == facts["extents"]["status"] == "equal"
    assert [feed["shapes"]["pixel_values"][0] for feed in facts["extents"]["feeds"]] == [1, 2, 4]
    assert facts["pipeline"].startswith("shapes,fold")
    assert not facts["options"]["refit"]


@needs_rtx
def test_layers_lead_to_the_original(engine: Path) -> None:
    """From the target's layers over the optimized nodes to nodes that the source has."""
    from onnxlathe.model import load

    facts = read_sidecar(engine)["map"]
    original = {node.name for node in load(SOURCE).nodes()}
    optimized = {node.name for node in load(engine.with_name("model.onnx")).nodes()}
    assert set(facts["nodes"]) <= optimized
    used = {name for layer in facts["layers"] for name in layer["nodes"]}
    assert used == set(facts["nodes"])
    assert len(used) > 0.9 * len(optimized)
    for entry in facts["nodes"].values():
        assert set(entry["original"]) <= original
        assert entry["original"]
    fused = [e["original"] for e in facts["nodes"].values() if e["operator"] == "Conv"]
    assert any(len(names) > 1 for names in fused), "a Conv that took a BatchNormalization in"


@needs_rtx
def test_the_same_each_time(engine: Path, tmp_path: Path) -> None:
    again = make(tmp_path / "second", "--range", "batch=1:2:4")
    assert again.with_name("model.onnx").read_bytes() == engine.with_name("model.onnx").read_bytes()
    assert sidecar_path(again).read_bytes() == sidecar_path(engine).read_bytes()


@needs_rtx
def test_report(engine: Path) -> None:
    report: dict[str, Any] = json.loads(engine.with_name("report.json").read_bytes())
    assert report["engine"]["bytes"] == engine.stat().st_size
    if not report["engine"]["run"]["latencies"]:
        assert "not run" in report["engine"]["run"]["not_checked"]


@needs_rtx
def test_inspect(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["inspect", str(engine)]) == 0
    shown = capsys.readouterr().out
    for word in ("rtx", "resnet_ts17.onnx", "1x3x32x32 … 2x3x32x32 … 4x3x32x32", "convolution", "equal"):
        assert word in shown
    assert command(["inspect", str(engine), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == read_sidecar(engine)


@needs_rtx
def test_build_command(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`optimize build` of what `optimize --engine` saved: the same engine but for what only that knows."""
    model, again = engine.with_name("model.onnx"), tmp_path / "again.engine"
    words = ["--max-shapes", "4x3x32x32", "--opt-shapes", "2x3x32x32", "--min-shapes", "1x3x32x32"]
    assert command(["build", str(model), "-o", str(again), "--original", str(SOURCE), *words]) == 0
    assert "built in" in capsys.readouterr().out
    first, second = read_sidecar(engine), read_sidecar(again)
    for key in ("model", "source", "profiles", "extents", "map", "pipeline", "target"):
        assert first[key] == second[key], key


@needs_rtx
def test_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[engine]\nrange = ["batch=1:3:5"]\nworkspace = "1GiB"\ncompute-capabilities = "8.6"\n')
    facts = read_sidecar(make(tmp_path / "made", "--recipe", str(recipe), "--no-verify"))
    assert facts["profiles"][0]["dimensions"] == {"batch": [1, 3, 5]}
    assert facts["options"]["memory_pools"] == {"workspace": 1 << 30}
    assert facts["built_for"] == {"compute_capabilities": ["8.6"]}
    words = [str(SOURCE), "-o", str(tmp_path / "m.onnx"), "--engine", str(tmp_path / "e")]
    for wrong, message in (
        ('workspce = "1GiB"', "[engine] has no option 'workspce'"),
        ("builder-optimization-level = 9", "[engine] builder-optimization-level: 9 is not in the range"),
        ('profiling-verbosity = "loud"', "[engine] profiling-verbosity: 'loud' is not one of"),
        ("range = [3]", "--range 3: not a range"),
    ):
        recipe.write_text(f"[engine]\n{wrong}\n")
        assert command([*words, "--recipe", str(recipe)]) == 2
        assert message in capsys.readouterr().err.replace("\n", " ")
    assert command(["build", str(SOURCE), "-o", str(tmp_path / "e"), "--recipe", str(recipe)]) == 2


def test_nodes_without_names(tmp_path: Path) -> None:
    """The parser names them after their outputs, this program by their operators."""
    path = tmp_path / "model.onnx"
    onnx.save(parse("g (float[n, 4] x) => (float[n, 4] y) { h = Relu(x) y = Neg(h) }"), path)
    layers = [
        {"name": "a", "type": "ACTIVATION", "metadata": "[ONNX Layer: node_of_h]"},
        {"name": "b", "type": "UNARY", "metadata": "[ONNX Layer: node_of_y]"},
    ]
    nodes = layer_map(layers, load(path))["nodes"]
    assert {name: facts["operator"] for name, facts in nodes.items()} == {
        "node_of_h": "Relu",
        "node_of_y": "Neg",
    }


@needs_rtx
def test_several_engines_need_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(SOURCE), str(SOURCE.with_name("unet_ts17.onnx")), "-o", str(tmp_path), "--no-verify"]
    assert command([*words, "--engine", str(tmp_path / "x.engine")]) == 2
    assert "need a folder for their engines" in capsys.readouterr().err
    assert command([*words, "--engine", str(tmp_path)]) == 0
    assert sorted(p.name for p in tmp_path.glob("*.engine")) == ["resnet_ts17.engine", "unet_ts17.engine"]


@needs_rtx
def test_a_model_without_its_engine_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--no-verify", "--compute-capabilities", "1.1"]
    output, engine = tmp_path / "m.onnx", tmp_path / "m.engine"
    assert command([str(SOURCE), "-o", str(output), "--engine", str(engine), *words]) == 2
    said = capsys.readouterr()
    assert "saved" in said.out
    assert "--compute-capabilities 1.1" in said.err
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_options_without_an_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert command([str(SOURCE), "--range", "batch=1:2:4"]) == 2
    assert "--range is about an engine" in capsys.readouterr().err


def test_missing_and_damaged(tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"ptrt")
    with pytest.raises(ModelError, match="has no sidecar"):
        read_sidecar(engine)
    sidecar_path(engine).write_text('{"schema": 1, ')
    with pytest.raises(ModelError, match="is damaged"):
        read_sidecar(engine)
    sidecar_path(engine).write_text('{"schema": 1}')
    with pytest.raises(ModelError, match="is damaged: it has no 'target'"):
        read_sidecar(engine)
    sidecar_path(engine).write_text('{"schema": 99}')
    with pytest.raises(ModelError, match="schema 99"):
        read_sidecar(engine)


@pytest.mark.parametrize(
    ("metadata", "names"),
    [
        ("", []),
        ("[ONNX Layer: /a/b.0/Conv]", ["/a/b.0/Conv"]),
        ("[ONNX Layer: a]\x1e[ONNX Layer: b]\x1e[ONNX Layer: a]", ["a", "b"]),
        ("[ONNX Layer: x[0]]", ["x[0]"]),
        ("[ONNX Layer: with space]", ["with space"]),
    ],
)
def test_metadata_of_layers(metadata: str, names: list[str]) -> None:
    assert nodes_of(metadata) == names
