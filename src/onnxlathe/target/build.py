"""Building an engine: the parent's side. The native calls happen in a child process (`native_build.py`)."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from onnxlathe._files import is_special, same_place
from onnxlathe.errors import LatheError, ModelError, UsageError

from .base import Refusal, Target, TargetError
from .options import BuildOptions, check
from .profiles import LEVELS, Profile
from .sidecar import sidecar_path
from .tensorrt import TensorRT, TensorRTSession

BUILD_TIMEOUT: Final = 1800.0
"""Seconds that building an engine may take."""

_MESSAGES: Final = 8
# Every build without a GPU says these, also those that succeed.
_NOISE: Final = re.compile(
    r"cudaError 35|CUDA driver version is insufficient|Thread context has not been set"
)


@dataclass(frozen=True)
class Opened:
    """What the target made of a model.

    Attributes:
        inputs: name, type, shape (-1 for an open dimension) and `shape_tensor` of each input.
        outputs: the same of each output.
        layers: name, type and metadata of each layer.
        gpus: the GPUs of this machine, as `cuda.Gpu` has them.
        version: of the target.
    """

    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    layers: list[dict[str, str]]
    gpus: list[dict[str, Any]]
    version: str


@dataclass(frozen=True)
class Built:
    """An engine that lies under a temporary name.

    Attributes:
        nbytes: its size.
        seconds: that the builder took.
        warnings: what the builder warned of.
    """

    nbytes: int
    seconds: float
    warnings: list[str] = field(default_factory=list)


class Refused(TargetError):
    """The target's parser does not take the model; `refusals` says why."""

    def __init__(self, message: str, refusals: list[Refusal], *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.refusals = refusals


class Contradiction(UsageError):
    """A profile asks for sizes that the model cannot have; `complaint` is the target's own text."""

    def __init__(self, message: str, complaint: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.complaint = complaint


class EngineBuilder:
    """One target, ready to parse a model and to build an engine from it.

    Args:
        target: TensorRT for RTX or TensorRT.
        options: how to build.
        timeout: seconds that parsing and building may take, each.
        log: file for everything that the library says.

    Raises:
        TargetError: the target is not installed.
        UsageError: the target does not have an option.
    """

    def __init__(
        self,
        target: Target,
        options: BuildOptions | None = None,
        *,
        timeout: float = BUILD_TIMEOUT,
        log: Path | None = None,
    ) -> None:
        if not isinstance(target, TensorRT):
            reason = target.reason or "this target builds no engines"
            raise TargetError(f"no engine can be built: {reason}", hint=getattr(target, "hint", ""))
        self.target = target
        self.options = options or BuildOptions()
        self.timeout = timeout
        self.log = log
        self._session: TensorRTSession = target.session()
        self.opened: Opened | None = None
        self._model = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the child."""
        return self._session.process.pid

    def close(self) -> None:
        """End the child process."""
        self._session.close()

    def device(self) -> tuple[str, list[dict[str, Any]]]:
        """The target's version, and the GPUs here. Refuses options that cannot be had.

        Raises:
            UsageError: the target, or this machine, does not have an option.
        """
        reply = self._session.process.ask("device", timeout=self.timeout)
        check(self.options, self.target.name, gpu=bool(reply["gpus"]))
        return reply["version"], reply["gpus"]

    def open(self, model: Path) -> Opened:
        """Parse a model, and keep it for `build`.

        Raises:
            Refused: the parser does not take it.
            ModelError: there is no such file.
            TargetError: the library died or hung.
        """
        version, gpus = self.device()
        if not model.is_file():
            raise ModelError(f"{model}: no such file")
        self._model = str(model.resolve())
        if self.log is not None:
            with _writing(self.log):
                self.log.write_bytes(b"")
        reply = self._session.process.ask(
            "open",
            path=self._model,
            plugins=[str(Path(p).resolve()) for p in self.options.plugins],
            log=str(self.log.resolve()) if self.log else None,
            timeout=self.timeout,
        )
        if not reply["accepted"]:
            refusals = [Refusal(**{**e, "stack": tuple(e["stack"])}) for e in reply["errors"]]
            what = "; ".join(str(r) for r in refusals[:3]) or "without saying why"
            raise Refused(
                f"{self.target.title} {version} refuses '{model.name}': {what}",
                refusals,
                hint=_ASK,
            )
        self.opened = Opened(reply["inputs"], reply["outputs"], reply["layers"], gpus, version)
        return self.opened

    def build(self, profiles: Sequence[Profile], engine: Path) -> Built:
        """Build an engine of the opened model into the file `engine`.

        Raises:
            UsageError: a profile does not fit what the target wants.
            Contradiction: the model cannot have the sizes of a profile.
            TargetError: the builder failed, died or hung; its last messages are in the error.
        """
        assert self.opened is not None, "open comes first"
        options = self.options.to_dict()
        if options["timing_cache"]:
            options["timing_cache"] = str(Path(options["timing_cache"]).resolve())
        reply = self._session.process.ask(
            "build",
            engine=str(engine),
            profiles=[_plain(profile, self.opened) for profile in profiles or [Profile()]],
            options=options,
            timeout=self.timeout,
        )
        said = [(severity, text.strip()) for severity, text in reply["messages"]]
        for _, text in said:
            if found := _INCONSISTENT.search(text):
                raise _contradiction(profiles, found[1].lower(), found[2].partition(" In operator")[0])
            if profiles and "In analyzeShapes" in text and not reply["bytes"]:  # min, opt and max are one
                raise _contradiction(profiles, "max", text)
        if not reply["bytes"]:
            raise _failure(self.target.title, [t for s, t in said if s != "WARNING"], bool(self.opened.gpus))
        warnings = [text for severity, text in said if severity == "WARNING" and not _NOISE.search(text)]
        return Built(reply["bytes"], reply["seconds"], list(dict.fromkeys(warnings)))

    def run(self, engine: Path, feeds: list[dict[str, Any]], timed: int | None) -> dict[str, Any]:
        """Run an engine; see `native_run.run`.

        Raises:
            TargetError: this machine cannot run it, or the library died or hung.
        """
        plugins = [str(Path(p).resolve()) for p in self.options.plugins]
        return self._session.process.ask(
            "run",
            engine=str(engine),
            plugins=plugins,
            feeds=feeds,
            timed=timed,
            refit=self._model if self.options.strip_weights else None,
            timeout=self.timeout,
        )


_INCONSISTENT: Final = re.compile(
    r"k(MIN|OPT|MAX) values (?:are not self-consistent|for profile \d+ violate shape constraints)[.:]?\s*(.*)",
    re.DOTALL,
)


def _contradiction(profiles: Sequence[Profile], level: str, complaint: str) -> Contradiction:
    index = LEVELS.index(level)
    sizes = [", ".join(f"{s}={size}" for s, size in profile.bindings[index].items()) for profile in profiles]
    return Contradiction(
        f"the model cannot have the {level} sizes of the optimization profile ({' or '.join(sizes)}): "
        + complaint,
        complaint,
        hint=f"give others with --{level}-shapes or --range",
    )


def _plain(profile: Profile, opened: Opened) -> dict[str, Any]:
    """The profile as the child takes it: what the target calls a shape tensor gets values."""
    shapes: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for tensor in opened.inputs:
        name = tensor["name"]
        if tensor["shape_tensor"]:
            if name not in profile.values:
                raise UsageError(
                    f"input {name!r} is a shape tensor: the target must know the range of its values",
                    hint=f"give them: --min-shapes {name}:… --opt-shapes {name}:… --max-shapes {name}:…",
                )
            values[name] = profile.values[name]
        elif -1 in tensor["shape"]:
            if name not in profile.shapes:
                raise UsageError(f"input {name!r} has open dimensions for the target, and no profile")
            shapes[name] = profile.shapes[name]
    return {"shapes": shapes, "values": values}


_HINTS: Final = (
    ("workspace limit", "give the builder more memory with --workspace, or leave that option out"),
    ("MemAlloc", "close other programs, or limit the builder with --workspace"),
    ("out of memory", "close other programs, or limit the builder with --workspace"),
)


_ASK = "`optimize debug MODEL` says which node it is, why, and what mends it"


def _failure(title: str, errors: list[str], gpu: bool) -> TargetError:
    """The builder gave no engine: its last messages, and what to do."""
    own = [text for text in errors if not _NOISE.search(text)] or errors
    lines = list(dict.fromkeys(own))[-_MESSAGES:]
    hint = next((hint for mark, hint in _HINTS if any(mark in text for text in lines)), "")
    if not hint and own is errors and not gpu:
        hint = "there is no GPU here; TensorRT for RTX (--target rtx) builds without one"
    hint = hint or _ASK
    body = "\n".join("    " + line for text in lines for line in text.splitlines())
    return TargetError(f"{title} cannot build an engine; its last messages:\n{body}", hint=hint)


# Files --------------------------------------------------------------------------------------------------


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = {
            errno.ENOSPC: "the disk is full; make room, or write to another disk",
            errno.EDQUOT: "your quota is used up; make room, or write to another disk",
        }.get(error.errno or 0, "")
        raise LatheError(f"cannot write '{path}': {error.strerror or error}", hint=hint) from None


def check_engine_path(engine: Path, *models: Path) -> None:
    """Refuse a place where no engine can be written, before the work.

    Raises:
        LatheError: no such folder, or no right to write there.
        UsageError: it is a folder, a device, or one of `models`.
    """
    if engine.is_dir():
        raise UsageError(f"cannot write '{engine}': it is a folder", hint="name a file")
    if is_special(engine):
        raise UsageError(f"cannot write '{engine}': it is no file", hint="name a file")
    if not engine.parent.is_dir():
        raise LatheError(f"there is no folder '{engine.parent}'", hint="create it, or save elsewhere")
    if not os.access(engine.parent, os.W_OK):
        raise LatheError(f"cannot write '{engine}': no right to write in that folder")
    for model in models:
        if same_place(engine, model):
            raise UsageError(f"'{engine}' is the model itself", hint="choose another name for the engine")


@contextmanager
def staged(engine: Path) -> Iterator[Staged]:
    """A name beside the engine's place for a file that is gone afterwards, unless it was published.

    Nothing is there before the builder has something to write: who is killed before that leaves no trace.
    """
    engine = Path(os.path.realpath(engine))
    temporary = engine.with_name(f".{engine.name[:200]}.{secrets.token_hex(6)}.tmp")
    beside = temporary.with_suffix(".json.tmp")
    try:
        yield Staged(engine, temporary, beside)
    finally:
        for path in (temporary, beside):
            with suppress(OSError):
                path.unlink()


@dataclass(frozen=True)
class Staged:
    """An engine that is being made.

    Attributes:
        engine: where it shall be.
        temporary: where it is being written.
    """

    engine: Path
    temporary: Path
    _beside: Path

    def publish(self, sidecar: bytes) -> None:
        """Put the engine and its sidecar in place.

        Raises:
            LatheError: they cannot be written; what was there before is as it was.
        """
        final = sidecar_path(self.engine)
        with _writing(self.engine):
            with self._beside.open("xb") as file:
                file.write(sidecar)
                file.flush()
                os.fsync(file.fileno())
            # Between the two renames there is an engine without a sidecar, never one with another's.
            with suppress(FileNotFoundError):
                final.unlink()
            os.replace(self.temporary, self.engine)
            os.replace(self._beside, final)
