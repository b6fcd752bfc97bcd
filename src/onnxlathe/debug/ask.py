"""Asking the real parser and then the real builder about a model or a part of one.

The native library lives in a child process that may crash, hang or allocate without end: each of these is an
answer. `Oracle.ask` says what happened as a `Hearing`; nothing here interprets it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from onnxlathe.errors import LatheError, ModelError
from onnxlathe.model import Model, load, save
from onnxlathe.model.samples import default_bindings, sample_inputs
from onnxlathe.model.shapes import concrete_shape, input_specs
from onnxlathe.target import CRASHED, TIMED_OUT, Target, TargetError, TensorRT
from onnxlathe.target.options import BuildOptions
from onnxlathe.target.tensorrt import TensorRTSession

OUT_OF_MEMORY = "OUT_OF_MEMORY"
"""`Complaint.code` when the child was ended because it took more memory than it may."""

Stage = Literal["parse", "build"]

# Every build without a GPU says these, also those that succeed.
_NOISE = re.compile(
    r"cudaError 35|CUDA driver version is insufficient|Thread context has not been set|"
    r"catchCudaError|ICudaEngine::createExecutionContext"
)
_VARIANTS = 3  # sets of sizes that a profile is tried with


@dataclass(frozen=True, slots=True)
class Complaint:
    """One reason that the target gives.

    Attributes:
        stage: who said it.
        message: in the target's words.
        code: the target's own name for the kind of error, or `CRASHED`, `TIMED_OUT`, `OUT_OF_MEMORY`,
            `BUILDER` (an error that the builder printed).
        node, operator: of the ONNX node, where the target names one.
        stack: what leads to a nested node, outermost first.
    """

    stage: Stage
    message: str
    code: str
    node: str = ""
    operator: str = ""
    stack: tuple[str, ...] = ()

    @property
    def fatal(self) -> bool:
        """The library died rather than refusing."""
        return self.code in (CRASHED, TIMED_OUT, OUT_OF_MEMORY)


@dataclass(frozen=True)
class Hearing:
    """What the target said about one model.

    Attributes:
        accepted: parsed, and built where that was asked.
        parsed: the parser took it.
        built: whether an engine came out; None where that was not tried.
        complaints: reasons.
        layers: name, type and metadata of the target's layers, where it was parsed.
        profile: sizes of open dimensions for which an engine was asked.
        only_at: sizes for which an engine does come out where it does not for a range of them: `shapes`
            and `values` as in `profile`, and `bindings` of the open dimensions.
        nbytes: of the engine.
        seconds: it took.
    """

    accepted: bool
    parsed: bool
    built: bool | None = None
    complaints: list[Complaint] = field(default_factory=list)
    layers: list[dict[str, str]] = field(default_factory=list)
    profile: dict[str, Any] = field(default_factory=dict)
    only_at: dict[str, Any] | None = None
    nbytes: int = 0
    seconds: float = 0.0


class Oracle:
    """The target, held ready for many questions.

    Args:
        target: whom to ask; must be available.
        build: ask the builder too.
        timeout: seconds that one question may take; a longer one is a hang.
        memory: bytes that the child may take; by default four fifths of what is free at the start.
        bindings: sizes of open dimensions that the user gave.
        plugins: libraries of plugins to load.

    Attributes:
        asked: number of questions so far.
    """

    def __init__(
        self,
        target: Target,
        *,
        build: bool = True,
        timeout: float = 120.0,
        memory: int | None = None,
        bindings: Mapping[str, int] | None = None,
        plugins: tuple[str, ...] = (),
    ) -> None:
        if not isinstance(target, TensorRT):
            raise TargetError(target.reason, hint=getattr(target, "hint", ""))
        self.target, self.build, self.timeout = target, build, timeout
        self.bindings = dict(bindings or {})
        self.plugins = tuple(str(Path(p).resolve()) for p in plugins)
        self.asked = 0
        self._keep = False
        self._limit = memory if memory is not None else _free_memory() * 4 // 5
        self._session: TensorRTSession = target.session()
        self._folder = Path(tempfile.mkdtemp(prefix="onnxlathe-debug-"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child process and remove what was written."""
        self._session.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def ask(self, model: Model | Path, *, build: bool | None = None, timeout: float | None = None) -> Hearing:
        """Would the target take the model?

        Args:
            model: a model, or its file.
            build: ask the builder too; as the oracle was made if left out.
            timeout: seconds, if others than the oracle's.

        Raises:
            TargetError: the target cannot be asked at all.
        """
        self.asked += 1
        started = time.perf_counter()
        path = self._file(model)
        patience = timeout or self.timeout
        try:
            reply = self._question("open", patience, path=str(path), plugins=list(self.plugins))
        except TargetError as error:
            return Hearing(False, False, None, [_fatal("parse", error)], seconds=_since(started))
        if not reply["accepted"]:
            complaints = [_parse_complaint(e) for e in reply["errors"]]
            complaints = complaints or [Complaint("parse", "refused without a reason", "UNKNOWN")]
            return Hearing(False, False, None, complaints, seconds=_since(started))
        if not (self.build if build is None else build):
            return Hearing(True, True, None, [], reply["layers"], seconds=_since(started))
        return self._build(model, reply, patience, started)

    def supported(self, model: Model | Path) -> list[list[int]] | None:
        """Runs of nodes that the parser would take, as indices into the main graph; None where it died."""
        try:
            reply = self._question("supports", self.timeout, path=str(self._file(model)))
        except TargetError:
            return None
        parts: list[list[int]] = reply["partitions"]
        return parts

    def write_engine(self, model: Model | Path, engine: Path) -> Path:
        """Build an engine for the sizes that `ask` chose, and save it.

        Raises:
            LatheError: there is none, or it cannot be written.
        """
        self._keep = True
        try:
            hearing = self.ask(model, build=True)
        finally:
            self._keep = False
        if not hearing.built:
            raise LatheError("the target builds no engine of this model", hint="see `optimize debug`")
        try:
            shutil.move(self._folder / "engine", engine)
        except OSError as error:
            raise LatheError(f"cannot write '{engine}': {error.strerror or error}") from None
        return engine

    # --- the builder -----------------------------------------------------------------------------------

    def _build(self, model: Model | Path, opened: dict[str, Any], patience: float, started: float) -> Hearing:
        engine = self._folder / "engine"
        layers = opened["layers"]
        problems: list[Complaint] = []
        profiles = list(self._profiles(model, opened))
        profile: dict[str, Any] = {}
        for number, profile in enumerate(profiles):
            try:
                reply = self._question(
                    "build",
                    patience,
                    engine=str(engine),
                    profiles=[profile] if profile["shapes"] or profile["values"] else [],
                    options=asdict(BuildOptions()),
                )
            except TargetError as error:
                problems.append(_fatal("build", error))
                break
            if reply["bytes"]:
                if not self._keep:
                    engine.unlink(missing_ok=True)
                done = (layers, profiles[0], profile if number else None, reply["bytes"], _since(started))
                return Hearing(not number, True, not number, problems if number else [], *done)
            said = [text for severity, text in reply["messages"] if severity != "WARNING"]
            own = [text for text in said if not _NOISE.search(text)] or said or ["the builder gave no engine"]
            problems = problems or [Complaint("build", text, "BUILDER") for text in dict.fromkeys(own)]
            if number + 1 < len(profiles):  # the network was used up; the next size needs a new one
                self._question("open", patience, path=str(self._file(model)), plugins=list(self.plugins))
        return Hearing(False, True, False, problems, layers, profile, seconds=_since(started))

    def _profiles(self, model: Model | Path, opened: dict[str, Any]) -> list[dict[str, Any]]:
        """Sizes to build for: a range, so that a size that was baked in shows itself."""
        open_inputs = [t for t in opened["inputs"] if any(d < 0 for d in t["shape"])]
        values = [t for t in opened["inputs"] if t["shape_tensor"]]
        if not open_inputs and not values:
            return [{"shapes": {}, "values": {}}]
        loaded = model if isinstance(model, Model) else load(model)
        shapes: list[dict[str, tuple[int, ...]]] = []
        bindings: list[dict[str, int]] = []
        contents: list[dict[str, np.ndarray]] = []
        for variant in range(_VARIANTS):
            try:
                sizes = default_bindings(loaded, variant, given=self.bindings)
                shapes.append({s.name: concrete_shape(s, sizes) for s in input_specs(loaded)})
                bindings.append(sizes)
                contents.append(sample_inputs(loaded, seed=0, bindings=sizes) if values else {})
            except LatheError:
                break
        if not shapes:
            return [{"shapes": {}, "values": {}}]
        low, high = shapes[0], shapes[min(1, len(shapes) - 1)]
        made = []
        for small, big, at in ((low, high, 0), *((s, s, i) for i, s in enumerate(shapes) if i != 1)):
            profile: dict[str, Any] = {"shapes": {}, "values": {}, "bindings": bindings[at]}
            for tensor in open_inputs:
                name = tensor["name"]
                pairs = [sorted(p) for p in zip(small[name], big[name], strict=True)]
                profile["shapes"][name] = [[p[0] for p in pairs], *([[p[1] for p in pairs]] * 2)]
            for tensor in values:
                flat = contents[at][tensor["name"]].astype(np.int64).reshape(-1).tolist()
                if flat:  # a profile cannot say of an empty tensor that it is empty
                    profile["values"][tensor["name"]] = [flat, flat, flat]
            if profile not in made:
                made.append(profile)
        return made

    # --- the child -------------------------------------------------------------------------------------

    def _question(self, what: str, patience: float, **arguments: Any) -> dict[str, Any]:
        """One question, watched for memory."""
        done = threading.Event()
        killed: list[int] = []
        watch = threading.Thread(target=self._watch, args=(done, killed), daemon=True)
        watch.start()
        try:
            return self._session.process.ask(what, timeout=patience, **arguments)
        except TargetError as error:
            if killed:
                error.code = OUT_OF_MEMORY
                error.message = (
                    f"the target's process was ended after it took {killed[0] / 1e9:.1f} GB of memory, "
                    f"more than it may ({self._limit / 1e9:.1f} GB)"
                )
            raise
        finally:
            done.set()

    def _watch(self, done: threading.Event, killed: list[int]) -> None:
        while not done.wait(0.05):
            pid = self._session.process.pid
            used = _resident(pid) if pid else 0
            if pid and used > self._limit:
                killed.append(used)
                with contextlib.suppress(OSError):
                    os.kill(pid, 9)
                return

    def _file(self, model: Model | Path) -> Path:
        if isinstance(model, Path):
            return model
        for old in self._folder.glob("part*"):
            old.unlink()
        path = self._folder / "part.onnx"
        save(model, path)
        return path


def _fatal(stage: Stage, error: TargetError) -> Complaint:
    if not error.code:
        raise error
    return Complaint(stage, error.message, error.code)


def _parse_complaint(error: dict[str, Any]) -> Complaint:
    return Complaint(
        "parse", error["message"], error["code"], error["node"], error["operator"], tuple(error["stack"])
    )


def _since(started: float) -> float:
    return time.perf_counter() - started


def _resident(pid: int) -> int:
    """Bytes of memory that a process holds; 0 where that cannot be told."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError, IndexError):
        return 0


def _free_memory() -> int:
    """Bytes that may be taken without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 1 << 40


def existing(path: Path) -> Path:
    """The path, if there is such a file.

    Raises:
        ModelError: there is none, or it is empty.
    """
    if not path.is_file():
        raise ModelError(f"{path}: a folder, not a model" if path.is_dir() else f"{path}: no such file")
    if not path.stat().st_size:
        raise ModelError(f"{path}: the file is empty")
    return path
