"""From an optimized model to an engine with its sidecar: parse, settle profiles, build, check, publish."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from onnxlathe.errors import ModelError
from onnxlathe.model import load

from .build import BUILD_TIMEOUT, Contradiction, EngineBuilder, Opened, check_engine_path, staged
from .layers import layer_map
from .options import BuildOptions
from .profiles import Profile, ProfileWishes, make_profiles, tighter
from .run import Measured, extent_feeds, measure
from .sidecar import encode, model_digest, sidecar_path

if TYPE_CHECKING:
    from onnxlathe.api import VerifyOptions
    from onnxlathe.verify import Verdict

    from .base import Target

_MAX_ATTEMPTS: Final = 6  # to find sizes that a model can have


@dataclass(frozen=True)
class EngineRequest:
    """What engine to build.

    Attributes:
        path: where to put it.
        target: who shall run it.
        options: of the builder.
        wishes: what its profiles shall be.
        timeout: seconds that parsing and building may take, each.
        log: file for everything that the library says.
    """

    path: Path
    target: Target
    options: BuildOptions = field(default_factory=BuildOptions)
    wishes: ProfileWishes = field(default_factory=ProfileWishes)
    timeout: float = BUILD_TIMEOUT
    log: Path | None = None

    @property
    def files(self) -> list[Path]:
        """What is written: the engine, its sidecar, and the log."""
        return [self.path, sidecar_path(self.path), *([self.log] if self.log else [])]


@dataclass
class Engine:
    """An engine that was built.

    Attributes:
        path: where it is; its sidecar lies beside it.
        nbytes: its size.
        seconds: that the builder took.
        target: name of the target.
        version: of the target.
        built_for: the GPU, or the compute capabilities.
        profiles: that it was built with.
        layers: how many the target made of the model.
        extents: the verdict on the model at each profile's min, opt and max, in ONNX Runtime.
        run: what running the engine gave.
        notes: what else the user should know.
    """

    path: Path
    nbytes: int
    seconds: float
    target: str
    version: str
    built_for: dict[str, Any]
    profiles: list[Profile]
    layers: int
    extents: Verdict | None = None
    run: Measured = field(default_factory=Measured)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As plain data for a report."""
        return {
            "path": str(self.path),
            "bytes": self.nbytes,
            "seconds": round(self.seconds, 3),
            "target": {"name": self.target, "version": self.version},
            "built_for": self.built_for,
            "profiles": [profile.to_dict() for profile in self.profiles],
            "layers": self.layers,
            "extents": self.extents.to_dict() if self.extents else None,
            "run": self.run.to_dict(),
            "notes": self.notes,
        }


class EngineMismatch(ModelError):
    """The model or the engine does not compute what the original does; nothing was written."""

    exit_code = 1

    def __init__(self, message: str, verdict: Verdict, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.verdict = verdict


def make_engine(
    optimized: Path,
    request: EngineRequest,
    *,
    original: Path | None = None,
    verify: VerifyOptions | None = None,
    facts: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Engine:
    """Build an engine of `optimized` and put it in place with its sidecar: both, or nothing.

    Args:
        optimized: the ONNX file to build from.
        request: what to build.
        original: the file that is the truth; `optimized` itself if left out.
        verify: compare the model with the original at the profiles' min, opt and max, and the engine with it
            where a GPU can run it; None leaves both out.
        facts: what else the sidecar shall say (pipeline, verdict).
        progress: called with what is being done.

    Raises:
        UsageError: a profile or an option that the model, the target or the machine does not allow.
        TargetError: the target refuses the model, fails, dies or hangs.
        EngineMismatch: something computes otherwise than the original.
        LatheError: the engine cannot be written.
    """
    check_engine_path(request.path, optimized, *([original] if original else []))
    model = load(optimized)
    profiles = make_profiles(model, request.wishes)  # before anything that takes long
    with (
        EngineBuilder(request.target, request.options, timeout=request.timeout, log=request.log) as builder,
        staged(request.path) as stage,
    ):
        title = builder.target.title
        progress(f"{title} parses {optimized.name}")
        opened = builder.open(optimized)
        wishes = request.wishes
        for attempt in range(_MAX_ATTEMPTS):
            try:
                extents = None
                if verify is not None:
                    extents = _check_extents(optimized, original, profiles, verify, progress)
                progress(f"{title} builds {request.path.name}")
                built = builder.build(profiles, stage.temporary)
                break
            except Contradiction as error:
                caps = tighter(profiles[0], error.complaint) if profiles else {}
                if not caps or attempt == _MAX_ATTEMPTS - 1:
                    raise
                wishes = replace(wishes, caps={**wishes.caps, **caps})
                profiles = make_profiles(model, wishes)
                opened = builder.open(optimized)  # a network that failed once is spoilt
        engine = Engine(
            request.path, built.nbytes, built.seconds, builder.target.name, opened.version,
            _built_for(request, opened), profiles, len(opened.layers),
        )  # fmt: skip
        engine.notes += [*_proposals(profiles), *built.warnings]
        engine.extents = extents
        engine.run = measure(
            builder, stage.temporary, opened, original or optimized, profiles, verify, progress=progress
        )
        if engine.run.verdict is not None and engine.run.verdict.status == "different":
            verdict = engine.run.verdict
            raise EngineMismatch(f"the engine differs from the original: {verdict.summary()}", verdict)
        stage.publish(
            encode(
                {
                    **_describe(request, opened, profiles, engine),
                    "source": model_digest(original) if original else None,
                    "model": model_digest(optimized),
                    **(facts or {}),
                    "map": layer_map(opened.layers, model),
                }
            )
        )
    return engine


def _built_for(request: EngineRequest, opened: Opened) -> dict[str, Any]:
    """The GPU where the engine is for the one at hand, else compute capabilities."""
    wanted = request.options.compute_capabilities
    if request.target.name == "rtx" and "current" not in wanted:
        return {"compute_capabilities": list(wanted) or "default"}
    return {"gpu": opened.gpus[0] if opened.gpus else None}


def _describe(
    request: EngineRequest, opened: Opened, profiles: list[Profile], engine: Engine
) -> dict[str, Any]:
    from onnxlathe import __version__

    options = request.options.to_dict()
    options["timing_cache"] = options["timing_cache"] and Path(options["timing_cache"]).name
    options["plugins"] = [Path(plugin).name for plugin in options["plugins"]]
    return {
        "onnxlathe": __version__,
        "target": {"name": request.target.name, "version": opened.version},
        "built_for": engine.built_for,
        "options": options,
        "profiles": [profile.to_dict() for profile in profiles],
        "inputs": opened.inputs,
        "outputs": opened.outputs,
        "extents": brief(engine.extents),
        "engine_verdict": brief(engine.run.verdict),
        "not_checked": engine.run.reason,
    }


def brief(verdict: Verdict | None) -> dict[str, Any] | None:
    """What of a verdict is the same in every run."""
    if verdict is None:
        return None
    full = verdict.to_dict()
    return {key: full[key] for key in ("status", "summary", "feeds", "unchecked", "notes")}


def _proposals(profiles: list[Profile]) -> list[str]:
    notes = []
    for profile in profiles:
        if profile.proposed:
            ranges = ", ".join(
                f"{s}={':'.join(str(b[s]) for b in profile.bindings)}" for s in profile.proposed
            )
            notes.append(
                f"nobody gave a range for {', '.join(profile.proposed)}; the engine takes {ranges} "
                "(min:opt:max). Say otherwise with --range or --min-shapes, --opt-shapes, --max-shapes"
            )
    return list(dict.fromkeys(notes))


def _check_extents(
    optimized: Path,
    original: Path | None,
    profiles: list[Profile],
    verify: VerifyOptions,
    progress: Callable[[str], None],
) -> Verdict | None:
    """Compare the model with its original at every profile's min, opt and max, in ONNX Runtime."""
    if original is None or not profiles:
        return None
    from onnxlathe.verify import Verifier

    feeds = extent_feeds(load(original), profiles)
    with Verifier(
        original,
        feeds=(feed.inputs for feed in feeds),
        tolerances=verify.tolerances,
        timeout=verify.timeout,
        progress=progress,
    ) as verifier:
        verdict = verifier.check(optimized)
    for known, feed in zip(verdict.feeds, feeds, strict=False):
        known.label = feed.label
    if verdict.status == "different":
        raise EngineMismatch(
            f"the optimized model differs from the original within the profiles: {verdict.summary()}",
            verdict,
            hint="optimize it at these sizes (--dim NAME=SIZE), which names the pass and the node to blame",
        )
    refused = re.search(r"on feed (\d+) of the data, cannot be run", verdict.summary())
    if refused and int(refused[1]) > 1:  # it can be run at the first sizes
        feed = feeds[int(refused[1]) - 1]
        raise Contradiction(
            f"the original cannot be run at the sizes of the optimization profile ({feed.label}): "
            + verdict.unchecked[0].reason.partition("cannot be run: ")[2],
            verdict.unchecked[0].reason,
            hint=f"give other {feed.label[:3]} sizes, with --{feed.label[:3]}-shapes or --range",
        )
    return verdict
