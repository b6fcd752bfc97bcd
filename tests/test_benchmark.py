"""The benchmark's own arithmetic, and one run of it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

TOOLS = Path(__file__).resolve().parent.parent / "tools"


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def model(tmp_path: Path) -> Path:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in "xy")
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Exp", ["r"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [y])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_relative_error() -> None:
    judge = tool("benchmark_judge")
    ones = np.ones(4, np.float32)
    assert judge.relative_error(ones, ones) == 0
    assert judge.relative_error(ones, ones * 1.5) == pytest.approx(0.5)
    assert judge.relative_error(ones, ones[:3]) == float("inf")
    assert judge.relative_error(ones, ones * float("nan")) == float("inf")


def test_nested_nodes_are_counted() -> None:
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["t"])], "t", [], [])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    graph = helper.make_graph([branch], "g", [], [])
    assert tool("benchmark_judge").count_nodes(graph) == 3


def test_ratios_are_taken_within_a_repeat() -> None:
    assert tool("benchmark").ratio([1, 2, 30], [2, 4, 10]) == 0.5
    assert tool("benchmark").ratio([], [1]) is None


@pytest.mark.skipif(os.name != "posix", reason="the driver measures with wait4")
def test_a_run_with_one_that_works_and_one_that_fails(model: Path, tmp_path: Path) -> None:
    report, table = tmp_path / "out" / "r.json", tmp_path / "out" / "r.md"
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    command = [sys.executable, str(TOOLS / "benchmark.py"), str(model), str(bad), "--peers", "none"]
    command += ["--without-us", "--repeat", "2", "--json", str(report), "--markdown", str(table)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    cells = json.loads(report.read_text())["models"]
    good = cells["m.onnx"]["none"]
    assert good["verdict"]["nodes"] == 2
    assert good["verdict"]["error"] == 0.0
    assert len(good["seconds"]) == len(good["peak_mib"]) == 2
    assert 10 < good["peak_mib"][0] < 1000
    assert "DecodeError" in cells["bad.onnx"]["none"]["problem"]
    assert "| none " in table.read_text()
