"""What a model is reduced for: a reason to be refused, wrong numbers, or whatever a command says.

A check looks at a part of a model and says whether the fault shows in it.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onnxlathe.debug.ask import Oracle
from onnxlathe.debug.locate import Signature, shows
from onnxlathe.errors import LatheError, UsageError
from onnxlathe.model import Model, save
from onnxlathe.model.samples import sample_inputs
from onnxlathe.verify import Tolerances, store
from onnxlathe.verify.runtime import RuntimeFailure, RuntimeProcess

Feeds = Mapping[str, np.ndarray]


class Check(Protocol):
    """Whether the fault shows in a part."""

    needs_feeds: bool
    """The part is to be run: its inputs are to be recorded values."""

    def __call__(self, part: Model, feeds: Feeds) -> bool:
        """Whether the fault shows. `feeds` holds recorded values of the part's inputs where they are needed."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


@dataclass
class RefusedFor:
    """The target refuses the part for the same reason (or dies on it in the same way).

    Args:
        oracle: the target.
        wanted: the reason.
        timeout: seconds for one question.
    """

    oracle: Oracle
    wanted: Signature
    timeout: float | None = None
    needs_feeds: bool = False

    def __call__(self, part: Model, feeds: Feeds) -> bool:
        return shows(
            self.oracle.ask(part, build=self.wanted[0] == "build", timeout=self.timeout), self.wanted
        )

    def close(self) -> None:
        """Nothing: the oracle is the caller's."""


@dataclass
class WrongAfter:
    """A pipeline makes of the part something that computes other numbers.

    Args:
        pipeline: passes, as `optimize --passes` takes them.
        registry: where their names are looked up.
        tolerances: what is still equal.
    """

    pipeline: Any
    registry: Any = None
    tolerances: Tolerances = field(default_factory=Tolerances)
    needs_feeds: bool = True
    bench: Bench = field(default_factory=lambda: Bench())

    def __call__(self, part: Model, feeds: Feeds) -> bool:
        from onnxlathe.api import optimize

        changed = part.clone()
        try:
            optimize(changed, self.pipeline, verify=False, registry=self.registry)
        except LatheError:
            return False
        return self.bench.different(part, changed, feeds, self.tolerances)

    def suspects(self, model: Model) -> list[list[str]]:
        """Names of the nodes that each change of the pipeline replaces, for the reduction to begin with.

        Raises:
            LatheError: the pipeline cannot be read, or a pass fails.
        """
        from onnxlathe.api import optimize

        result = optimize(model.clone(), self.pipeline, verify=False, registry=self.registry)
        groups = [list(f.before) for step in result.steps for f in step.firings if f.before]
        return list({tuple(group): group for group in groups}.values())

    def close(self) -> None:
        self.bench.close()


@dataclass
class Command:
    """A command that fails on the part, as Polygraphy's `debug reduce --check` has it.

    Args:
        command: with `{}` where the path of the model goes; at the end if there is none.
        fail_regex: only output that matches this is the fault; any failure is without it.
        fail_codes: only these exit codes are the fault; any but 0 is without them.
        timeout: seconds; a command that hangs shows the fault.
    """

    command: str
    fail_regex: str = ""
    fail_codes: Sequence[int] = ()
    timeout: float = 300.0
    needs_feeds: bool = False

    def __post_init__(self) -> None:
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise UsageError(f"--check {self.command}: {error}", hint="close the quotes") from None
        try:
            re.compile(self.fail_regex)
        except re.error as error:
            raise UsageError(f"--fail-regex {self.fail_regex}: {error}", hint="escape ( as \\(") from None
        if not words or shutil.which(words[0]) is None:
            raise UsageError(
                f"--check {self.command}: there is no such program", hint="quote the whole command"
            )
        self._folder = Path(tempfile.mkdtemp(prefix="onnxlathe-check-"))

    def __call__(self, part: Model, feeds: Feeds) -> bool:
        path = self._folder / "model.onnx"
        save(part, path)
        words = shlex.split(self.command)
        words = [w.replace("{}", str(path)) for w in words] if "{}" in self.command else [*words, str(path)]
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, errors="replace", timeout=self.timeout, check=False
            )
        except subprocess.TimeoutExpired:
            return not self.fail_regex and not self.fail_codes
        if self.fail_regex:
            return re.search(self.fail_regex, done.stdout + done.stderr) is not None
        return done.returncode in self.fail_codes if self.fail_codes else done.returncode != 0

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


class Bench:
    """ONNX Runtime in a child process, for comparing and recording.

    Args:
        timeout: seconds for loading or running one model.
    """

    def __init__(self, timeout: float = 120.0) -> None:
        self._runtime = RuntimeProcess(timeout=timeout)
        self._folder = Path(tempfile.mkdtemp(prefix="onnxlathe-bench-"))

    def different(self, right: Model, other: Model, feeds: Feeds, tolerances: Tolerances) -> bool:
        """Whether two models of one interface compute different numbers; False where that cannot be told."""
        expected, feed = self._folder / "expected.npz", self._folder / "feed.npz"
        store.write(feed, feeds)
        try:
            self._open(right)
            answer = self._runtime.run(feed, expected)
        except RuntimeFailure:
            return False
        allowed = {n: asdict(tolerances.of(answer["bases"][n], d)) for n, d in answer["outputs"].items()}
        try:
            self._open(other)
            found = self._runtime.compare(feed, expected, 0, allowed)
        except RuntimeFailure as failure:
            return failure.kind == "invalid"
        return any(not comparison["passed"] for comparison in found)

    def record(self, model: Model, names: Sequence[str], feeds: Feeds) -> dict[str, np.ndarray]:
        """What values of the main graph hold on a feed; those that cannot be had are left out."""
        probe = model.clone()
        values = {v.name: v for node in probe.graph for v in node.outputs}
        wanted = [values[n] for n in dict.fromkeys(names) if n in values]
        if not wanted:
            return {}
        probe.graph.outputs.clear()
        probe.graph.outputs.extend(wanted)
        feed, saved = self._folder / "feed.npz", self._folder / "recorded.npz"
        store.write(feed, feeds)
        try:
            self._open(probe)
            self._runtime.run(feed, saved)
        except RuntimeFailure:
            return {}
        with store.Stored(saved) as stored:
            return dict(stored)

    def _open(self, model: Model) -> None:
        path = self._folder / "model.onnx"
        save(model, path)
        self._runtime.open(path)

    def close(self) -> None:
        """End the child process and remove what was written."""
        self._runtime.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


def sample_of(model: Model, bindings: Mapping[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs made up for a model; none where that fails."""
    try:
        return sample_inputs(model, seed=seed, bindings=bindings)
    except LatheError:
        return {}
