"""Asking the target about small models: would it parse this, and would it build an engine?"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import onnx_ir as ir

from onnxlathe.debug.catalogue import static_cause
from onnxlathe.debug.table import SupportTable, table
from onnxlathe.rewrite import subgraphs
from onnxlathe.target import TargetError, TensorRT
from onnxlathe.target.process import WorkerProcess

_ASKED = 2  # how: raised where the same model may get another answer, so that stored ones are forgotten
_TIMEOUT = 120.0  # seconds; an engine of one node takes a tenth of one, parsing gigabytes a minute


@dataclass(frozen=True)
class Ruling:
    """What the target says about a model.

    Attributes:
        accepted: parsed, and an engine was built (where that was asked).
        parsed: the parser took it.
        culprits: indices of the refused nodes in the main graph, where the target names them.
        message: why not, in the target's words.
        fatal: the target crashed or hung.
    """

    accepted: bool
    parsed: bool
    culprits: tuple[int, ...] = ()
    message: str = ""
    fatal: bool = False


Expectation = dict[str, dict[str, Any]]
"""By name of an input: its `shape` and, for small integers, its `values`, as in a run that is typical."""


class Judge(Protocol):
    """Who decides whether a model is accepted."""

    @property
    def title(self) -> str:
        """What users read."""
        ...

    def judge(self, model: ir.Model, expect: Expectation | None = None, *, build: bool = True) -> Ruling:
        """Would the target take the model?"""
        ...

    def judge_file(self, path: Path, model: ir.Model) -> Ruling:
        """Would its parser take the file, which holds `model`?"""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


@dataclass
class TargetJudge:
    """The real parser and builder, in a child process that may die; answers are remembered.

    Args:
        target: whom to ask; must be available.
        cache: folder for answers across runs; `None` remembers them for this run only.
    """

    target: TensorRT
    cache: Path | None = None
    asked: int = 0
    _memory: dict[str, Ruling] = field(default_factory=dict)
    _process: WorkerProcess | None = None

    @property
    def title(self) -> str:
        """What users read."""
        return f"{self.target.name} {self.target.version}"

    def judge(self, model: ir.Model, expect: Expectation | None = None, *, build: bool = True) -> Ruling:
        data = ir.to_proto(model).SerializeToString()
        key = hashlib.sha256(
            data + json.dumps([_ASKED, self.title, build, expect or {}], sort_keys=True, default=str).encode()
        ).hexdigest()
        found = self._memory.get(key) or self._stored(key)
        if found is None:
            self.asked += 1
            found = self._ask(data, expect, build)
            self._store(key, found)
        self._memory[key] = found
        return found

    def without_profile(self, model: ir.Model) -> Ruling:
        """Would the target build the model without an optimization profile, as it is by default?"""
        data = base64.b64encode(ir.to_proto(model).SerializeToString()).decode()
        return self._put({"model": data, "profile": False})

    def judge_file(self, path: Path, model: ir.Model) -> Ruling:
        """Would the parser take the file? It is not built, and the answer is not remembered."""
        return self._put({"path": str(path), "build": False})

    def _ask(self, data: bytes, expect: Expectation | None, build: bool) -> Ruling:
        return self._put({"model": base64.b64encode(data).decode(), "build": build, "expect": expect})

    def _put(self, question: dict[str, Any]) -> Ruling:
        if self._process is None:
            self._process = self.target.session().process
        try:
            reply = self._process.ask("judge", timeout=_TIMEOUT, **question)
        except TargetError as error:
            return Ruling(False, False, (), error.message.splitlines()[0], fatal=True)
        culprits = tuple(dict.fromkeys(e["index"] for e in reply["errors"] if e["index"] >= 0))
        message = next((e["message"] for e in reply["errors"]), "") or next(iter(reply["log"]), "")
        accepted = reply["parsed"] and reply["built"] is not False
        return Ruling(accepted, reply["parsed"], () if reply["parsed"] else culprits, message[:400])

    def _stored(self, key: str) -> Ruling | None:
        if self.cache is None:
            return None
        try:
            found = json.loads((self.cache / key[:2] / f"{key}.json").read_text())
            return Ruling(**{**found, "culprits": tuple(found["culprits"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _store(self, key: str, ruling: Ruling) -> None:
        if self.cache is None or ruling.fatal:
            return
        folder = self.cache / key[:2]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            part = folder / f"{key}.{os.getpid()}"
            part.write_text(json.dumps(asdict(ruling)))
            part.replace(folder / f"{key}.json")
        except OSError:  # a read-only home: then it is asked again next time
            self.cache = None

    def close(self) -> None:
        if self._process is not None:
            self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass
class TableJudge:
    """A table of what the parser and builder took when it was made: operators and types, no shapes."""

    table: SupportTable
    title: str

    @classmethod
    def newest(cls) -> TableJudge:
        """The table that comes with onnxlathe."""
        found = table()
        return cls(found, f"{found.target} {found.version}")

    def judge(self, model: ir.Model, expect: Expectation | None = None, *, build: bool = True) -> Ruling:
        refused = [(i, m) for i, node in enumerate(model.graph) if (m := self._refusal(node))]
        if not refused:
            return Ruling(True, True)
        return Ruling(False, False, tuple(i for i, _ in refused), refused[0][1])

    def _refusal(self, node: ir.Node) -> str:
        for graph in subgraphs(node):
            for inner in graph:
                message = self._refusal(inner)
                if message:
                    return message
        if node.domain == "com.microsoft":
            return "not an operator of ONNX"
        cause = static_cause(node, target=self.table.target, version=self.table.version)
        if cause is not None:
            return cause.title
        entry = self.table.of(node)
        return entry.message or "refused" if entry is not None and entry.verdict == "no" else ""

    def judge_file(self, path: Path, model: ir.Model) -> Ruling:
        return self.judge(model)

    def close(self) -> None:
        pass


def known_good() -> Callable[[ir.Node], bool]:
    """Says of a node whether all that the table's makers tried of its operator and type was built."""
    found = table()

    def sure(node: ir.Node) -> bool:
        entry = found.of(node)
        return entry is not None and entry.verdict == "yes"

    return sure


def cache_folder() -> Path:
    """Where the answers of targets are kept."""
    base = (
        os.environ.get("ONNXLATHE_CACHE") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    )
    return Path(base) / "onnxlathe" / "legalize"
