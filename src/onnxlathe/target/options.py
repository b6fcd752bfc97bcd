"""How an engine is built: options by the names that TensorRT's own tools have made usual."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from onnxlathe.errors import UsageError
from onnxlathe.model.shapes import nearest

HARDWARE_LEVELS: Final = ("none", "ampere+", "same-compute-capability")
VERBOSITIES: Final = ("layer-names-only", "none", "detailed")
POOLS: Final = (
    "workspace",
    "tactic-dram",
    "tactic-shared-memory",
    "dla-managed-sram",
    "dla-local-dram",
    "dla-global-dram",
)


@dataclass(frozen=True)
class BuildOptions:
    """Options of the builder. What is left at its default is left to the target.

    Attributes:
        memory_pools: limits in bytes, by the names in `POOLS`.
        builder_optimization_level: 0 (fast to build) … 5 (fast to run).
        timing_cache: file that keeps measurements between builds.
        hardware_compatibility: one of `HARDWARE_LEVELS`.
        version_compatible: the engine runs with later versions too.
        exclude_lean_runtime: leave the lean runtime out of a version-compatible engine.
        compute_capabilities: of the GPUs to build for ("8.6"), or "current".
        refit: weights may be exchanged later.
        strip_weights: leave weights out; they are put in by refitting.
        weight_streaming: weights may stay in host memory.
        sparsity: use 2:4 sparse weights where the model has them.
        profiling_verbosity: one of `VERBOSITIES`.
        tf32: float32 may be computed as TF32.
        plugins: libraries of plugins.
    """

    memory_pools: dict[str, int] = field(default_factory=dict)
    builder_optimization_level: int | None = None
    timing_cache: str | None = None
    hardware_compatibility: str = "none"
    version_compatible: bool = False
    exclude_lean_runtime: bool = False
    compute_capabilities: tuple[str, ...] = ()
    refit: bool = False
    strip_weights: bool = False
    weight_streaming: bool = False
    sparsity: bool = False
    profiling_verbosity: str = "layer-names-only"
    tf32: bool = True
    plugins: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def chosen(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        default = BuildOptions()
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) != getattr(default, f.name)}


def option_name(name: str) -> str:
    """What the command line calls a field."""
    return {"tf32": "--no-tf32", "memory_pools": "--memory-pool"}.get(name, "--" + name.replace("_", "-"))


# Target → option → what to know instead. An option that is not listed is one that the target has.
_LACKS: Final[dict[str, dict[str, str]]] = {
    "rtx": {
        "hardware_compatibility": "its engines are made for a range of GPUs: see --compute-capabilities",
        "version_compatible": "it comes without the lean runtime",
        "exclude_lean_runtime": "it comes without the lean runtime",
        "timing_cache": "it chooses kernels where the engine runs, and times nothing while it builds",
    },
    "tensorrt": {
        "compute_capabilities": "it builds for the GPU at hand: see --hardware-compatibility",
    },
}
_TITLES: Final = {"rtx": "TensorRT for RTX", "tensorrt": "TensorRT"}
# What TensorRT for RTX compiles on the GPU, although it builds all else without one.
_RTX_NEEDS_GPU: Final = ("refit", "strip_weights")


def check(options: BuildOptions, target: str, *, gpu: bool) -> None:
    """Options must be ones that the target has, and that can be had on this machine.

    Args:
        options: the options.
        target: name of the target.
        gpu: whether there is one that CUDA can use.

    Raises:
        UsageError: naming the option, and the target that has it.
    """
    chosen = options.chosen()
    for name in chosen:
        why = _LACKS.get(target, {}).get(name)
        if why is not None:
            others = [t for t in _LACKS if name not in _LACKS[t]]
            has = " and ".join(f"{_TITLES[t]} (--target {t})" for t in others)
            raise UsageError(
                f"{option_name(name)}: {_TITLES[target]} does not have this option: {why}",
                hint=f"{has} has it",
            )
    if target == "rtx" and not gpu:
        for name in _RTX_NEEDS_GPU:
            if name in chosen:
                raise UsageError(
                    f"{option_name(name)}: TensorRT for RTX needs a GPU to build such an engine, "
                    "and there is none that CUDA can use here",
                    hint="build on a machine with a GPU, or without this option",
                )
        if "current" in options.compute_capabilities:
            raise UsageError(
                "--compute-capabilities current: there is no GPU that CUDA can use here",
                hint="name the capability of the GPU that the engine is for, as in 8.9",
            )
    for plugin in options.plugins:
        if not Path(plugin).is_file():
            raise UsageError(f"--plugins {plugin}: no such file")
    if options.exclude_lean_runtime and not options.version_compatible:
        raise UsageError("--exclude-lean-runtime is for --version-compatible engines", hint="give both")


# Reading what users write -------------------------------------------------------------------------------

_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", re.IGNORECASE)


def parse_bytes(text: str, option: str) -> int:
    """`4GiB`, `512M`, `1.5G`, or trtexec's plain number of MiB.

    Raises:
        UsageError: not a size, or 0.
    """
    found = _SIZE.fullmatch(text)
    if found is None or not float(found[1]):
        raise UsageError(f"{option} {text}: not a size", hint="write it as 4GiB or 512MiB")
    number, unit, _ = found.groups()
    return int(float(number) * 1024 ** ("KMGT".index(unit.upper()) + 1 if unit else 2))


def parse_pool(text: str) -> tuple[str, int]:
    """`workspace:4GiB`, also with the names that trtexec uses (`tacticSharedMem:1`).

    Raises:
        UsageError: no such pool, or not a size.
    """
    name, colon, size = text.partition(":")
    if not colon:
        raise UsageError(f"--memory-pool {text}: the size is missing", hint="write it as workspace:4GiB")
    spelled = re.sub("([A-Z]+)", r"-\1", name.strip()).lower().replace("_", "-").strip("-")
    pool = {"tactic-shared-mem": "tactic-shared-memory", "dla-sram": "dla-managed-sram"}.get(spelled, spelled)
    if pool not in POOLS:
        raise UsageError(f"--memory-pool {text}: there is no pool '{name}'", hint=nearest(pool, POOLS))
    return pool, parse_bytes(size, "--memory-pool")


def parse_capabilities(text: str) -> tuple[str, ...]:
    """`8.6,12.0`: capabilities as `parse_capability` reads them, each once.

    Raises:
        UsageError: there is none, or something else.
    """
    found = tuple(dict.fromkeys(parse_capability(word) for word in text.split(",") if word.strip()))
    if not found:
        raise UsageError(f"--compute-capabilities {text}: none is named", hint="write 8.6,12.0 or current")
    return found


def parse_capability(text: str) -> str:
    """`8.6`, `86`, `sm_86` or `current`, as "8.6" or "current".

    Raises:
        UsageError: none of these.
    """
    word = text.strip().lower()
    if word == "current":
        return word
    found = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", word)
    if found is None:
        raise UsageError(
            f"--compute-capabilities {text}: not a compute capability", hint="write 8.6, sm_86 or current"
        )
    return f"{int(found[1])}.{found[2]}"
