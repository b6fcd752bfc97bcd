"""Every model of the corpus of refused models: the right nodes, and the true cause of each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnxlathe.debug import Oracle, diagnose, diagnose_by_table
from onnxlathe.debug.bind import bind_inputs
from onnxlathe.debug.fix import mend
from onnxlathe.errors import UsageError
from onnxlathe.model import load
from onnxlathe.model.interface import interface_of
from onnxlathe.target import find_target
from refused import corpus, needs_rtx

CASES = corpus()

# What only the real target knows: shapes, sizes, contents; and branches and loops, in which it names the first
# node and the table all of them.
BEYOND_THE_TABLE = {
    "baked_reshape", "eyelike_dyn", "float_scales_input", "if_ranks", "if_ranks_inside", "int16_audio",
    "int16_branch", "loop_growing", "qdq_asym_int8", "reduce_scalar", "sequence_loop", "squeeze_by_size",
    "topk_large", "uint16_depth",
}  # fmt: skip


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle(find_target("rtx")) as found:
        yield found


def saved(case: Any, tmp_path: Path) -> Path:
    path = tmp_path / f"{case.name}.onnx"
    onnx.save(case.model(), path)
    return path


def test_the_corpus_is_large_enough() -> None:
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)


@needs_rtx
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_node_and_cause(case: Any, oracle: Oracle, tmp_path: Path) -> None:
    diagnosis = diagnose(saved(case, tmp_path), oracle)
    assert not diagnosis.accepted
    assert {f.node: f.cause_id for f in diagnosis.findings} == case.refused
    for finding in diagnosis.findings:
        assert finding.around, "the nodes around it are shown"
        assert any(line.startswith("→") for line in finding.around)
        assert finding.cause is not None
        assert finding.cause.remedies


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_static_table(case: Any, tmp_path: Path) -> None:
    diagnosis = diagnose_by_table(saved(case, tmp_path))
    assert not diagnosis.asked
    assert any("table made with" in note for note in diagnosis.notes)
    if case.name not in BEYOND_THE_TABLE:
        assert {f.node: f.cause_id for f in diagnosis.findings} == case.refused


@needs_rtx
def test_what_would_run_and_what_is_behind(oracle: Oracle, tmp_path: Path) -> None:
    case = next(c for c in CASES if c.name == "three_causes")
    diagnosis = diagnose(saved(case, tmp_path), oracle)
    assert (diagnosis.nodes, diagnosis.runs, diagnosis.unexamined) == (5, 2, [])
    assert len(diagnosis.groups()) == 3


@needs_rtx
def test_nested_nodes_say_where_they_are(oracle: Oracle, tmp_path: Path) -> None:
    for name, top in (("nested_unique", "choose"), ("in_a_function", "call")):
        case = next(c for c in CASES if c.name == name)
        (finding,) = diagnose(saved(case, tmp_path), oracle).findings
        assert (finding.node, finding.operator, finding.top) == ("inner", "Unique", top)


@needs_rtx
@pytest.mark.parametrize("name", ["split_sequence", "melweight", "baked_reshape"])
def test_fix(name: str, oracle: Oracle, tmp_path: Path) -> None:
    case = next(c for c in CASES if c.name == name)
    path = saved(case, tmp_path)
    before = path.read_bytes()
    model = load(path)
    mended = mend(model, oracle, diagnose(model, oracle))
    assert mended.accepted
    kept = [a for a in mended.attempts if a.kept]
    assert kept[-1].refused == 0
    assert kept[-1].verdict.startswith("equal")
    assert oracle.ask(mended.model).built
    assert path.read_bytes() == before


# Whose size data decide → outputs that are padded for it.
SIZED_BY_DATA = {
    "nonzero": {"y"}, "boolean_index": {"y"}, "compress": {"y"}, "unique": {"y"}, "nms": {"y"},
    "nested_unique": {"y"}, "in_a_function": {"y"}, "masked_mean": set(), "mask_assign": set(),
    "masked_scatter": set(), "best_of_selected": {"y", "at"}, "expert": set(), "detector": {"y", "z"},
    "pooled_by_unique": set(), "selected_twice": {"y"},
}  # fmt: skip


@needs_rtx
@pytest.mark.parametrize("name", SIZED_BY_DATA)
def test_results_whose_size_data_decide(name: str, oracle: Oracle, tmp_path: Path) -> None:
    case = next(c for c in CASES if c.name == name)
    model = load(saved(case, tmp_path))
    mended = mend(model, oracle, diagnose(model, oracle))
    assert mended.accepted, mended.attempts
    assert mended.proven
    assert oracle.ask(mended.model).built
    padded = interface_of(mended.model.ir).padded
    assert padded.keys() == SIZED_BY_DATA[name]
    said = [note for a in mended.attempts if a.kept for note in a.notes]
    for output, padding in padded.items():
        assert any(f"'{output}' has {padding.rows} rows now" in n and padding.count in n for n in said)


@needs_rtx
def test_no_output_is_padded_where_that_is_not_wanted(oracle: Oracle, tmp_path: Path) -> None:
    model = load(saved(next(c for c in CASES if c.name == "nonzero"), tmp_path))
    mended = mend(model, oracle, diagnose(model, oracle), pad="")
    assert not mended.accepted
    assert not any("pad" in a.pipeline for a in mended.attempts)


@needs_rtx
def test_what_cannot_be_mended_is_said(oracle: Oracle, tmp_path: Path) -> None:
    case = next(c for c in CASES if c.name == "strings")
    model = load(saved(case, tmp_path))
    mended = mend(model, oracle, diagnose(model, oracle))
    assert not mended.accepted
    assert mended.left is not None
    assert [f.cause_id for f in mended.left.findings] == ["string-tensor"]
    assert all(a.problem for a in mended.attempts)


@needs_rtx
def test_bound_inputs(oracle: Oracle, tmp_path: Path) -> None:
    case = next(c for c in CASES if c.name == "reduce_axes_input")
    model = load(saved(case, tmp_path))
    (said,) = bind_inputs(model, ["axes=[1]"])
    assert "specialised" in said
    assert diagnose(model, oracle).accepted
    for wrong in ("nothing=[1]", "x=words", "x=[1]"):
        with pytest.raises(UsageError, match="--bind"):
            bind_inputs(model, [wrong])


@needs_rtx
def test_nodes_without_names(oracle: Oracle, tmp_path: Path) -> None:
    model = next(c for c in CASES if c.name == "three_causes").model()
    for node in model.graph.node:
        node.ClearField("name")
    onnx.save(model, tmp_path / "m.onnx")
    findings = diagnose(tmp_path / "m.onnx", oracle).findings
    assert [f.operator for f in findings] == ["Resize", "MaxPool", "ReduceMax"]
    assert all(f.node and f.around for f in findings)
