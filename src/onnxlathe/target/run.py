"""Running an engine where a GPU can: is it right, and how fast is it?

The native calls happen in the child process (`native_run.py`).
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import TargetError
from .ort_latency import latency

if TYPE_CHECKING:
    from onnxlathe.api import VerifyOptions
    from onnxlathe.model import Model
    from onnxlathe.verify import Verdict

    from .build import EngineBuilder, Opened
    from .profiles import Profile


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one inference.

    Attributes:
        runner: who ran it: `engine`, `engine, CUDA graph`, or an execution provider of ONNX Runtime.
        label: at which sizes.
        median, p99: over `runs` runs, after a warm-up.
        throughput: inferences a second.
    """

    runner: str
    label: str
    median: float
    p99: float
    throughput: float
    runs: int


@dataclass
class Measured:
    """What running an engine gave.

    Attributes:
        reason: why it was not run, as a sentence; empty where it was.
        verdict: the comparison of its outputs with the original's.
        latencies: how long it took, and how long ONNX Runtime takes.
    """

    reason: str = ""
    verdict: Verdict | None = None
    latencies: list[Latency] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As plain data for a report."""
        return {
            "not_checked": self.reason,
            "verdict": self.verdict.to_dict() if self.verdict else None,
            "latencies": [asdict(latency) for latency in self.latencies],
        }


def measure(
    builder: EngineBuilder,
    engine: Path,
    opened: Opened,
    original: Path,
    profiles: list[Profile],
    verify: VerifyOptions | None,
    *,
    progress: Callable[[str], None],
) -> Measured:
    """Run an engine at its profiles' min, opt and max, compare it with the original, and time both at opt.

    Raises:
        TargetError: the library died or hung while it ran the engine.
    """
    if not opened.gpus:
        return Measured("the engine was not run: there is no GPU here that CUDA can use")
    if verify is None:
        return Measured("the engine was not run (--no-verify)")
    from onnxlathe.model import load
    from onnxlathe.verify import store

    with tempfile.TemporaryDirectory(prefix="onnxlathe-run-") as folder:
        feeds = extent_feeds(load(original), profiles)
        files = [
            {
                "inputs": str(Path(folder, f"in{number}.npz")),
                "outputs": str(Path(folder, f"out{number}.npz")),
                "profile": feed.profile,
            }
            for number, feed in enumerate(feeds)
        ]
        for feed, file in zip(feeds, files, strict=True):
            store.write(Path(str(file["inputs"])), feed.inputs)
        progress("running the engine")
        timed = min(1, len(feeds) - 1)  # the first profile's opt
        try:
            answer = builder.run(engine, files, timed)
        except TargetError as error:
            if error.code:
                raise
            gpu = opened.gpus[0]
            return Measured(
                f"the engine was not run on {gpu['name']} (compute capability "
                f"{gpu['compute_capability']}): {error.message.splitlines()[0]}"
            )
        verdict = _judge(original, feeds, files, builder, verify, progress)
        label = feeds[timed].label
        latencies = [
            _latency(
                "engine, CUDA graph" if a["graph"] else "engine", label, a["milliseconds"], a["throughput"]
            )
            for a in answer["latencies"]
            if a["milliseconds"]
        ]
        for provider in ("CPUExecutionProvider", "CUDAExecutionProvider"):
            progress(f"timing ONNX Runtime ({provider})")
            found = latency(original, Path(str(files[timed]["inputs"])), provider, timeout=verify.timeout)
            if found:
                name = "ONNX Runtime, " + provider.removesuffix("ExecutionProvider")
                latencies.append(_latency(name, label, found, 1000 * len(found) / sum(found)))
    return Measured("", verdict, latencies)


def _judge(
    original: Path,
    feeds: list[Feed],
    files: list[dict[str, Any]],
    builder: EngineBuilder,
    verify: VerifyOptions,
    progress: Callable[[str], None],
) -> Verdict:
    """The engine's outputs against the original's in ONNX Runtime."""
    from onnxlathe.verify import Verifier

    with Verifier(
        original,
        feeds=(feed.inputs for feed in feeds),
        tolerances=verify.tolerances,
        timeout=verify.timeout,
        progress=progress,
    ) as verifier:
        # TF32 keeps as many digits of a float32 as float16 has.
        through = "float16" if builder.options.tf32 else None
        verdict = verifier.check_outputs([Path(str(file["outputs"])) for file in files], through=through)
    for known, feed in zip(verdict.feeds, feeds, strict=False):
        known.label = feed.label
    return verdict


def _latency(runner: str, label: str, milliseconds: list[float], throughput: float) -> Latency:
    ordered = sorted(milliseconds)
    return Latency(
        runner,
        label,
        statistics.median(ordered),
        ordered[min(len(ordered) - 1, math.ceil(0.99 * len(ordered)) - 1)],
        throughput,
        len(ordered),
    )


@dataclass(frozen=True)
class Feed:
    """Inputs at one end of a profile.

    Attributes:
        label: which, and its sizes.
        inputs: arrays by name.
        profile: number of the profile that they are of.
    """

    label: str
    inputs: dict[str, Any]
    profile: int


def extent_feeds(model: Model, profiles: list[Profile]) -> list[Feed]:
    """Inputs at every profile's min, opt and max; those of equal sizes once.

    A model without profiles gets one set of inputs.
    """
    from onnxlathe.model.samples import sample_inputs

    from .profiles import LEVELS

    if not profiles:
        return [Feed("fixed sizes", sample_inputs(model, seed=0), 0)]
    feeds: dict[tuple[object, ...], Feed] = {}
    for number, profile in enumerate(profiles):
        for index, level in enumerate(LEVELS):
            sizes = profile.bindings[index]
            contents = {name: values[index] for name, values in profile.values.items()}
            key = (*sizes.items(), *contents.items())
            if key in feeds:
                continue
            inputs = sample_inputs(model, seed=index, bindings=sizes)
            for name, values in contents.items():
                inputs[name] = inputs[name].dtype.type(values).reshape(inputs[name].shape)
            at = f" of profile {number + 1}" if len(profiles) > 1 else ""
            words = [f"{s}={size}" for s, size in (*sizes.items(), *contents.items())]
            feeds[key] = Feed(f"{level}{at}: {', '.join(words)}", inputs, number)
    return list(feeds.values())
