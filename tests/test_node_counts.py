"""The table of the nodes that everyone leaves."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"

ENTRY: dict[str, Any] = {
    "nodes": 100,
    "us": {"nodes": 30, "equal": True, "parsed": True},
    "onnxsim": {"nodes": 60},
    "onnxslim": {"nodes": 50},
    "onnxscript": {"problem": "timeout"},
}


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(TOOLS)
    sys.modules.pop("node_counts", None)
    import node_counts

    return node_counts


def test_the_best_rival_is_the_one_with_the_fewest_nodes(counts: Any) -> None:
    assert counts.best(ENTRY) == 50
    assert counts.best({"us": {}}) is None


def test_a_row_for_each_model_and_the_median(counts: Any) -> None:
    failed = {**ENTRY, "us": {"problem": "it broke"}}
    table = counts.markdown({"b": ENTRY, "a": failed}).splitlines()
    assert table[2] == "| a | 100 | failed | 60 | 50 | failed | failed |  | no | refused |"
    assert table[3] == "| b | 100 | 30 | 60 | 50 | failed | failed | 0.60 | yes | parsed |"
    assert "0.60" in table[-1]
