"""Optimizing with proof: what is equal passes, what is wrong is caught, named and kept out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxlathe
from helpers import operators
from onnxlathe.api import Mismatch
from onnxlathe.pipeline import Registry

ROOT = Path(__file__).parent.parent
BERT = ROOT / "fixtures" / "bert_ts14.onnx"
PLUGINS = ROOT / "tests" / "plugins"

# Those of refused/ have a test of their own.
FIXTURES = sorted(p for p in (ROOT / "fixtures").rglob("*.onnx") if p.parent.name != "refused")


@pytest.fixture
def registry() -> Registry:
    registry = Registry.standard()
    registry.add_plugin(str(PLUGINS / "wrong_gelu.py"))
    registry.add_plugin(str(PLUGINS / "careless.py"))
    return registry


def test_three_lines(tmp_path: Path) -> None:
    model = onnxlathe.load(BERT)
    result = onnxlathe.optimize(model, "shapes,fold,tidy,fuse")
    onnxlathe.save(model, tmp_path / "small.onnx")
    assert result.verdict is not None
    assert result.verdict.status == "equal"
    assert result.before is not None
    assert result.after is not None
    assert result.after.nodes < result.before.nodes / 2
    assert len(onnx.load(tmp_path / "small.onnx").graph.node) == result.after.nodes


def test_a_wrong_rule_is_caught_and_named_with_its_node(registry: Registry, tmp_path: Path) -> None:
    model = onnxlathe.load(BERT)
    nodes = model.count_nodes()
    with pytest.raises(Mismatch) as caught:
        onnxlathe.optimize(
            model, "shapes,fold,wrong_gelu,tidy,fuse", registry=registry, reproducer=tmp_path / "repro"
        )
    (culprit,) = caught.value.result.culprits
    assert culprit.rule == "wrong_gelu"
    assert any("Erf" in name for name in culprit.before)
    assert culprit.after
    assert "wrong_gelu" in caught.value.message
    assert caught.value.exit_code == 1
    assert model.count_nodes() == nodes, "the model is as it was given"


def test_the_reproducer_is_small_and_shows_the_fault(registry: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "repro"
    with pytest.raises(Mismatch):
        onnxlathe.optimize(onnxlathe.load(BERT), "fold,wrong_gelu", registry=registry, reproducer=folder)
    before, after = onnx.load(folder / "before.onnx"), onnx.load(folder / "after.onnx")
    assert operators(before) == ["Div", "Erf", "Add", "Mul", "Mul"]
    assert "Sigmoid" in operators(after)
    with np.load(folder / "inputs.npz") as inputs:
        feeds = dict(inputs)
    assert list(feeds) == [before.graph.input[0].name]
    assert "wrong_gelu" in (folder / "command.sh").read_text()
    with pytest.raises(Mismatch):
        onnxlathe.optimize(
            folder / "before.onnx",
            "wrong_gelu",
            registry=registry,
            verify=onnxlathe.VerifyOptions(feeds=[feeds]),
        )


def test_an_opaque_pass_is_blamed_as_a_whole(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(Mismatch) as caught:
        onnxlathe.optimize(
            onnxlathe.load(BERT), "fold,careless,tidy", registry=registry, reproducer=tmp_path / "repro"
        )
    (culprit,) = caught.value.result.culprits
    assert culprit.rule == "careless"
    assert not culprit.before
    assert (tmp_path / "repro" / "before.onnx").exists()


def test_culprits_may_be_left_out(registry: Registry) -> None:
    model = onnxlathe.load(BERT)
    result = onnxlathe.optimize(
        model, "shapes,fold,wrong_gelu,careless,tidy,fuse", registry=registry, on_mismatch="skip"
    )
    assert result.verdict is not None
    assert result.verdict.status == "equal"
    assert {culprit.rule for culprit in result.culprits} == {"wrong_gelu", "careless"}
    assert "Sigmoid" not in model.count_operators()
    plain = onnxlathe.load(BERT)
    onnxlathe.optimize(plain, "shapes,fold,tidy,fuse", verify=False)
    assert model.count_operators() == plain.count_operators()


def test_a_missing_package_is_named_with_file_and_line(registry: Registry) -> None:
    with pytest.raises(onnxlathe.PassError, match=r"needs_a_package.*careless\.py:\d+"):
        onnxlathe.optimize(onnxlathe.load(BERT), "needs_a_package", registry=registry, verify=False)
    result = onnxlathe.optimize(
        onnxlathe.load(BERT), "needs_a_package,fold", registry=registry, verify=False, on_error="skip"
    )
    assert any("a_package_that_is_not_there" in step.skipped for step in result.steps)


def test_operators_that_cannot_be_run_are_not_called_equal() -> None:
    (path,) = (ROOT / "fixtures" / "tiny").glob("custom_op*.onnx")
    result = onnxlathe.optimize(path, "default")
    assert result.verdict is not None
    assert result.verdict.status == "unchecked"
    assert "not checked" in result.verdict.summary()


@pytest.mark.parametrize("path", FIXTURES, ids=lambda p: p.stem)
def test_every_fixture_is_smaller_and_equal(path: Path) -> None:
    if path.stem.startswith("bomb"):
        pytest.skip("the original cannot be run")
    result = onnxlathe.optimize(path, "default", paranoid=True)
    assert result.verdict is not None
    assert result.before is not None
    assert result.after is not None
    assert result.verdict.status != "different"
    assert result.after.nodes <= result.before.nodes
    proven = result.verdict.status == "equal"
    assert proven or path.stem.startswith(("custom_op", "random"))
