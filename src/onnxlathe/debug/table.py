"""What the parser took when it was last asked: the answer where no TensorRT is installed.

`support/*.json` are made by `tools/make_support_table.py` from the real parser and builder, operator by
operator and type by type. The table knows nothing of shapes and little of attributes; what the catalogue knows
of these is used too. The diagnosis says where it comes from.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec
import onnx_ir as ir

from onnxlathe.debug.ask import Complaint
from onnxlathe.debug.catalogue import find_cause, operator_of, static_cause, type_name
from onnxlathe.debug.findings import Diagnosis, Finding, finding_at
from onnxlathe.debug.locate import Place
from onnxlathe.debug.parts import Workpiece
from onnxlathe.model import Model, load

Verdict = Literal["yes", "no", "depends"]


class Entry(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What happened to an operator with a first input of some type.

    Attributes:
        verdict: taken in all models it was tried in, in none, or in some.
        message: of a refusal.
        stage: who refused.
    """

    verdict: Verdict
    message: str = ""
    stage: Literal["parse", "build"] = "parse"


class SupportTable(msgspec.Struct, forbid_unknown_fields=True):
    """The answers of one version of one target.

    Attributes:
        target: `rtx` or `tensorrt`.
        version: of it.
        onnx: version of the onnx package whose models were asked about.
        models: how many.
        operators: operator → element type of the first input that has one → what happened.
    """

    target: str
    version: str
    onnx: str
    models: int
    operators: dict[str, dict[str, Entry]]

    def of(self, node: ir.Node) -> Entry | None:
        """What is known about a node; None where it is nothing."""
        types = self.operators.get(operator_of(node))
        if types is None:
            return None
        first = next((name for v in node.inputs if (name := type_name(v))), "")
        return types.get(first)


@functools.cache
def table(target: str = "rtx") -> SupportTable:
    """The newest table of a target; of TensorRT for RTX where there is none of its own."""
    folder = resources.files(__package__).joinpath("support")
    files = sorted(f.name for f in folder.iterdir() if f.name.endswith(".json"))
    own = [name for name in files if name.startswith(f"{target}-")] or files
    return msgspec.json.decode(folder.joinpath(own[-1]).read_bytes(), type=SupportTable)


def diagnose_by_table(source: Model | Path, target: str = "rtx", *, reason: str = "") -> Diagnosis:
    """What the table says about a model.

    Args:
        source: the model, or its file.
        target: whose table.
        reason: why the target itself is not asked.

    Raises:
        ModelError: the file cannot be loaded.
    """
    started = time.perf_counter()
    known = table(target)
    model = source if isinstance(source, Model) else load(source)
    work = Workpiece(model)
    result = Diagnosis(known.target, known.version, asked=False, nodes=len(work.nodes))
    refused: set[int] = set()
    unknown: dict[str, None] = {}
    for index, top in enumerate(work.nodes):
        for node in _with_inner(top, work.model):
            finding = _judge(work, known, node, index)
            if finding is not None:
                result.findings.append(finding)
                refused.add(index)
            elif operator_of(node) not in known.operators:
                unknown.setdefault(operator_of(node))
    result.accepted = not refused
    result.runs = result.nodes - len(refused)
    result.notes.append(
        f"{reason or 'TensorRT was not asked'}: this is from a table made with {_title(known.target)} "
        f"{known.version}, which knows operators, types and some attributes, but no shapes"
    )
    if unknown:
        result.notes.append(f"the table does not know {', '.join(unknown)}")
    result.seconds = time.perf_counter() - started
    return result


def _judge(work: Workpiece, known: SupportTable, node: ir.Node, index: int) -> Finding | None:
    place = Place(index, node, "table")
    cause = static_cause(node, target=known.target, version=known.version)
    if cause is not None:
        return finding_at(work, Complaint("parse", cause.title, "TABLE", node.name or ""), place, cause)
    entry = known.of(node)
    if entry is None or entry.verdict != "no":
        return None
    complaint = Complaint(entry.stage, entry.message, "TABLE", node.name or "", operator_of(node))
    cause = find_cause(complaint, node, target=known.target, version=known.version)
    return finding_at(work, complaint, place, cause)


def _with_inner(node: ir.Node, model: Model) -> list[ir.Node]:
    """The node and all in its graphs; in place of a function call, what is in the function."""
    from onnxlathe.rewrite import subgraphs

    function = model.ir.functions.get(node.op_identifier())
    graphs: list[Iterable[ir.Node]] = [function] if function is not None else list(subgraphs(node))
    inner = [n for graph in graphs for one in graph for n in _with_inner(one, model)]
    return inner if function is not None else [node, *inner]


def _title(target: str) -> str:
    return {"rtx": "TensorRT for RTX", "tensorrt": "TensorRT"}.get(target, target)
