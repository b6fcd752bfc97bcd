"""TensorRT for RTX and TensorRT: one interface, chosen by what is installed."""

from __future__ import annotations

import difflib
import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from onnxlathe.errors import ModelError, UsageError

from .base import PARSE_TIMEOUT, Answer, NoTarget, Refusal, Target, TargetError
from .process import WorkerProcess, gpus_here, worker_command

_DATA_CENTRE = (9, 10, 11)
"""Major compute capabilities that TensorRT for RTX does not run on: Hopper, and Blackwell but for its RTX GPUs."""
_NOT_SUPPORTED = "the target does not take this node here"


@dataclass(frozen=True)
class TensorRT:
    """A TensorRT package, asked in a child process.

    Args:
        name: what `find_target` calls it.
        title: what people call it.
        module: import name of its Python bindings.
        install: the command that installs it.
        command: argument vector of the child; by default the worker of this package.
    """

    name: str
    title: str
    module: str
    install: str
    command: tuple[str, ...] = ()

    @property
    def available(self) -> bool:
        return importlib.util.find_spec(self.module) is not None

    @property
    def version(self) -> str:
        try:
            return metadata.version(self.module) if self.available else ""
        except metadata.PackageNotFoundError:  # bindings of a system package or a container
            return "unknown"

    @property
    def reason(self) -> str:
        return "" if self.available else f"{self.title} is not installed"

    def session(self) -> TensorRTSession:
        if not self.available:
            raise TargetError(self.reason, hint=f"Install it: {self.install}")
        return TensorRTSession(self.command or worker_command(self.module))

    def parse(self, path: Path, *, timeout: float = PARSE_TIMEOUT) -> Answer:
        with self.session() as session:
            return session.parse(path, timeout=timeout)

    def supports(self, path: Path, *, timeout: float = PARSE_TIMEOUT) -> list[Refusal]:
        with self.session() as session:
            return session.supports(path, timeout=timeout)


class TensorRTSession:
    """The child process, kept for several questions. See `base.Session`.

    Args:
        command: argument vector of the child.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.process = WorkerProcess(command)

    def parse(self, path: Path, *, timeout: float = PARSE_TIMEOUT) -> Answer:
        file = _existing(path)
        try:
            reply = self.process.ask("parse", path=file, timeout=timeout)
        except TargetError as error:
            if not error.code:
                raise
            refusal = Refusal(node="", index=-1, operator="", message=error.message, code=error.code)
            return Answer(accepted=False, layers=None, errors=[refusal])
        errors = _refusals(reply["errors"])
        if not reply["accepted"] and not errors:
            errors = [Refusal("", -1, "", "the parser refused the model without a reason", "UNKNOWN")]
        return Answer(accepted=reply["accepted"], layers=reply["layers"], errors=errors)

    def supports(self, path: Path, *, timeout: float = PARSE_TIMEOUT) -> list[Refusal]:
        file = _existing(path)
        reply = self.process.ask("supports", path=file, timeout=timeout)
        if reply["supported"]:
            return []
        refusals = _refusals(reply["errors"])
        named = {refusal.index for refusal in refusals}
        taken = {index for part in reply["partitions"] for index in part}
        # The target puts runs of nodes it can take into partitions and is not always told why not the rest.
        if taken or not refusals:
            for index, (name, operator) in enumerate(_nodes(path)):
                if index not in taken and index not in named:
                    refusals.append(Refusal(name, index, operator, _NOT_SUPPORTED, "NOT_IN_PARTITION"))
        return sorted(refusals, key=lambda refusal: refusal.index)

    def close(self) -> None:
        self.process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


TARGETS: Final = {
    target.name: target
    for target in (
        TensorRT("rtx", "TensorRT for RTX", "tensorrt_rtx", "pip install tensorrt-rtx"),
        TensorRT("tensorrt", "TensorRT", "tensorrt", "pip install 'onnxlathe[tensorrt]'"),
    )
}
"""Every target by its name, in the order in which they are preferred."""


def find_target(name: str | None = None) -> Target:
    """The target called `name` (`rtx`, `tensorrt`, `none`), or the best one that is installed.

    TensorRT for RTX is preferred, unless both are there and it does not run on this machine's GPU.
    Without a name this never fails: where nothing is installed it gives a `NoTarget` that says so.

    Raises:
        UsageError: no target has that name.
        TargetError: it is not installed.
    """
    if name is None:
        found = [target for target in TARGETS.values() if target.available]
        if len(found) > 1 and not _rtx_runs_here():
            found.reverse()
        if found:
            return found[0]
        rtx = TARGETS["rtx"]
        titles = " nor ".join(target.title for target in TARGETS.values())
        return NoTarget(f"neither {titles} is installed", hint=f"Install one: {rtx.install}")
    if name == "none":
        return NoTarget("no target was asked for")
    if name not in TARGETS:
        names = [*TARGETS, "none"]
        near = difflib.get_close_matches(name, names, n=1)
        meant = f"Did you mean {near[0]}? " if near else ""
        raise UsageError(f"unknown target {name!r}", hint=f"{meant}There are: {', '.join(names)}.")
    target = TARGETS[name]
    if not target.available:
        raise TargetError(target.reason, hint=f"Install it: {target.install}")
    return target


@functools.cache
def _rtx_runs_here() -> bool:
    """Whether TensorRT for RTX would run on the first GPU; it builds where there is none."""
    gpus = gpus_here()
    if not gpus:
        return True
    major, _, minor = gpus[0]["compute_capability"].partition(".")
    return (int(major), int(minor)) >= (7, 5) and int(major) not in _DATA_CENTRE


def _existing(path: Path) -> str:
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    if not path.stat().st_size:  # which the parsers take for a model without nodes
        raise ModelError(f"{path}: the file is empty")
    return str(path.resolve())


def _refusals(errors: list[dict[str, Any]]) -> list[Refusal]:
    return [Refusal(**{**error, "stack": tuple(error["stack"])}) for error in errors]


def _nodes(path: Path) -> list[tuple[str, str]]:
    """Name and operator of each node of the main graph, without reading a weight."""
    from onnxlathe.model import wire

    names: list[tuple[str, str]] = []
    with path.open("rb") as file:

        def read(start: int, end: int) -> bytes:
            file.seek(start)
            return file.read(end - start)

        source = wire.Source(read, path.stat().st_size)
        walk = functools.partial(wire.fields, source)
        for number, _, _, start, end in walk(0, source.size):
            if number != 7:  # ModelProto.graph
                continue
            for part, _, _, node, node_end in walk(start, end):
                if part != 1:  # GraphProto.node
                    continue
                texts = {f: (s, e) for f, _, _, s, e in walk(node, node_end) if f in (3, 4)}
                name, operator = (
                    read(*texts[f]).decode(errors="replace") if f in texts else "" for f in (3, 4)
                )
                names.append((name, operator))
    return names
