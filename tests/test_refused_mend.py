"""Refused models through `--fix`: an engine and equal numbers, or the true reason why not."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest

from onnxlathe.debug import Oracle, diagnose
from onnxlathe.target import find_target
from refused import corpus, needs_rtx

ROOT = Path(__file__).resolve().parent.parent

# Those that are not mended, and words of the reason.
NOT_MENDED = {
    "multinomial": "depends on random operator Multinomial",
    "bernoulli": "depends on random operator Bernoulli",
    "draw_ts": "depends on random operator Multinomial",
    "draw_dyn": "depends on random operator Multinomial",
    "custom_op": "neither ONNX nor a loaded plugin",
}
# All pairs of thousands of elements are compared: tools/refused_mend.py takes the time for more than one of them.
LONG = {"topk_large", "sort_ts", "sort_dyn", "order_ts"}


def tool() -> ModuleType:
    """tools/refused_mend.py"""
    corpus()  # which it imports
    name = "refused_mend"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


CASES = tool().Corpus.whole().cases
EXPORTED = [c for c in CASES if c.source != "hand"]


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle(find_target("rtx")) as found:
        yield found


def test_nine_of_ten_are_mended() -> None:
    names = {c.name for c in CASES}
    assert names >= NOT_MENDED.keys() | LONG
    assert len(names) == len(CASES) >= 100
    assert {c.source for c in CASES} == {"hand", "ts", "dyn"}
    assert len(NOT_MENDED) * 10 <= len(CASES)


@needs_rtx
@pytest.mark.parametrize("case", [c for c in CASES if c.name not in LONG], ids=lambda case: case.name)
def test_mended_or_the_true_reason(case: Any, oracle: Oracle, tmp_path: Path) -> None:
    found = tool().outcome(case, oracle, tmp_path)
    assert found.mended == (case.name not in NOT_MENDED), found.reason
    if found.mended:
        # A changed interface is always said, and only changed where the case allows it.
        changed = bool(case.bind or case.widen or case.split)
        assert not changed or found.interface
    else:
        assert NOT_MENDED[case.name] in found.reason


@needs_rtx
@pytest.mark.parametrize("case", EXPORTED, ids=lambda case: case.name)
def test_what_the_exporters_write_is_named_rightly(case: Any, oracle: Oracle) -> None:
    expected = dict(
        line.split(": ") for line in (tool().EXPORTED / "expected.txt").read_text().splitlines() if line
    )
    diagnosis = diagnose(tool().EXPORTED / f"{case.name}.onnx", oracle)
    assert diagnosis.findings
    assert {f.cause_id for f in diagnosis.findings} <= set(expected[case.name].split())


@pytest.mark.parametrize("case", EXPORTED, ids=lambda case: case.name)
def test_nothing_of_the_machine_is_in_them(case: Any) -> None:
    path = tool().EXPORTED / f"{case.name}.onnx"
    model = onnx.load(path)
    assert path.stat().st_size < 8192
    assert not model.metadata_props
    assert b"/torch/" not in path.read_bytes()
    assert b".py" not in path.read_bytes()
