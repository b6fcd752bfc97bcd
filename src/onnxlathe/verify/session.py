"""Opening models in ONNX Runtime: where they lie, and what is cut away from them so that they run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from onnxlathe.model import Model, load
from onnxlathe.model.mapped import save_mapped

from .limits import operator_of, reached_outputs, without_outputs
from .runtime import RuntimeFailure, RuntimeProcess
from .verdict import Unchecked

_MAX_PRUNES = 8  # operators that are cut away before giving up


class Session:
    """ONNX Runtime in a child process, and a temporary folder for models and arrays.

    Args:
        threads: of ONNX Runtime.
        timeout: seconds that loading or one run may take.
        progress: called with a short text before each step that may take long.
    """

    def __init__(self, *, threads: int, timeout: float, progress: Callable[[str], None]) -> None:
        self.runtime = RuntimeProcess(threads=threads, timeout=timeout)
        self.folder = Path(tempfile.mkdtemp(prefix="onnxlathe-verify-"))
        self.progress = progress
        self.notes: list[str] = []  # what whoever reads the verdict should know
        self._files = 0

    def close(self) -> None:
        """End the child process and remove the temporary folder."""
        self.runtime.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def open(
        self, model: Model | None, source: Model | Path | str, unchecked: dict[str, Unchecked]
    ) -> tuple[dict[str, list[str]], RuntimeFailure | None]:
        """Open a model, cutting away what depends on operators that ONNX Runtime lacks.

        Outputs that were cut away are added to `unchecked`. If nothing is left, the failure is returned.
        """
        path = self.as_file(source)
        try:
            interface = self.runtime.open(path)
            if interface.get("instead"):
                note = (
                    "ONNX Runtime is too old for this operator set: onnx's reference evaluator ran it instead"
                )
                self.notes += [note] if note not in self.notes else []
            return interface, None
        except RuntimeFailure as error:
            failure = error
        for _ in range(_MAX_PRUNES):
            if failure.kind != "unsupported" or not failure.operator:
                return {}, failure
            model = model or (source if isinstance(source, Model) else load(Path(source)))
            lacking = [n for n in model.nodes() if operator_of(n) == failure.operator]
            if failure.node:
                lacking = [n for n in lacking if n.name == failure.node] or lacking
            cut = reached_outputs(model, lacking)
            for name, node in cut.items():
                unchecked.setdefault(name, _lacking(name, operator_of(node), node.name or ""))
            rest = without_outputs(model, unchecked) if cut else None
            if rest is None:
                return {}, RuntimeFailure(
                    failure.kind, failure.message, failure.operator, next((n.name or "" for n in lacking), "")
                )
            try:
                return self.runtime.open(self.as_file(rest)), None
            except RuntimeFailure as error:
                failure = error
        return {}, failure

    def as_file(self, source: Model | Path | str) -> Path:
        """Where a model lies; one that lies nowhere is written to the temporary folder."""
        if not isinstance(source, Model):
            return Path(source)
        self._files += 1
        folder = self.folder / f"model{self._files}"
        folder.mkdir()
        for old in self.folder.glob("model*"):  # one at a time: they may be large
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)
        save_mapped(source, folder / "model.onnx")
        return folder / "model.onnx"


def _lacking(output: str, operator: str, node: str) -> Unchecked:
    return Unchecked(
        output,
        f"depends on operator {operator} (node {node!r}), which ONNX Runtime cannot run",
        operator,
        node,
    )


def why_not(who: str, failure: RuntimeFailure) -> Unchecked:
    """Why nothing was checked at all."""
    if failure.kind == "unsupported":
        named = f"operator {failure.operator} (node {failure.node!r})" if failure.operator else "an operator"
        reason = f"ONNX Runtime cannot run {named} of {who.rstrip(',')}: {failure.message}"
    elif failure.kind == "version":
        reason = f"ONNX Runtime is too old for {who}: {failure.message}"
    elif failure.kind in ("timeout", "crash"):
        reason = f"{failure.message}, with {who}"
    else:
        reason = f"{who} cannot be run: {failure.message}"
    hint = "give inputs of your own with --data" if failure.kind == "invalid" else ""
    if failure.kind == "timeout":
        hint = "give it more time, or smaller sizes with --dim"
    return Unchecked("", reason, failure.operator, failure.node, hint)
