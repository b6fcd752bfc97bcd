"""Options set on the builder's configuration, inside the child process."""

from __future__ import annotations

from typing import Any

from onnxlathe.target.native import Trouble


def apply(trt: Any, config: Any, options: dict[str, Any]) -> None:
    """Set on `config` what `options` (the fields of `options.BuildOptions`) say.

    Raises:
        Trouble: naming the option that this version does not have.
    """
    for name, size in options["memory_pools"].items():
        config.set_memory_pool_limit(_member(trt, "MemoryPoolType", name, f"memory pool {name}"), size)
    if options["builder_optimization_level"] is not None:
        config.builder_optimization_level = options["builder_optimization_level"]
    if options["hardware_compatibility"] != "none":
        name = options["hardware_compatibility"].replace("+", "-plus")
        level = _member(trt, "HardwareCompatibilityLevel", name, f"--hardware-compatibility {name}")
        config.hardware_compatibility_level = level
    verbosity = options["profiling_verbosity"]
    config.profiling_verbosity = _member(trt, "ProfilingVerbosity", verbosity, "--profiling-verbosity")
    if options["compute_capabilities"]:
        _capabilities(trt, config, options["compute_capabilities"])
    for option, flag in _FLAGS.items():
        if options[option]:
            config.set_flag(_member(trt, "BuilderFlag", flag, "--" + option.replace("_", "-")))
    if not options["tf32"]:
        config.clear_flag(trt.BuilderFlag.TF32)


# In this order: leaving out the lean runtime is refused before version compatibility is set.
_FLAGS = {
    "version_compatible": "VERSION_COMPATIBLE",
    "exclude_lean_runtime": "EXCLUDE_LEAN_RUNTIME",
    "refit": "REFIT",
    "strip_weights": "STRIP_PLAN",
    "weight_streaming": "WEIGHT_STREAMING",
    "sparsity": "SPARSE_WEIGHTS",
}


def _capabilities(trt: Any, config: Any, wanted: list[str]) -> None:
    known = {_decimal(name): member for name, member in trt.ComputeCapability.__members__.items()}
    config.num_compute_capabilities = len(wanted)
    for index, capability in enumerate(wanted):
        if capability not in known or not config.set_compute_capability(known[capability], index):
            raise Trouble(
                f"--compute-capabilities {capability}: the installed version ({trt.__version__}) does not have it",
                f"it has {', '.join(name for name in known if name != 'none')}",
            )


def _decimal(member: str) -> str:
    """`SM86` as "8.6", and `CURRENT` as "current"."""
    digits = member.removeprefix("SM")
    return f"{digits[:-1]}.{digits[-1]}" if digits.isdigit() else member.lower()


def _member(trt: Any, enum: str, name: str, what: str) -> Any:
    kind = getattr(trt, enum, None)
    member = getattr(kind, name.upper().replace("-", "_"), None)
    if member is None:
        known = ", ".join(getattr(kind, "__members__", ()))
        raise Trouble(f"the installed version ({trt.__version__}) does not have {what}; it has {known}")
    return member
