"""The options that say what engine to build, for `optimize` and `optimize build`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from onnxlathe.pipeline import Recipe
    from onnxlathe.target.engine import EngineRequest

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

# Spelled out here rather than imported: help must not cost an import of the target's modules.
_LEVELS = ("none", "ampere+", "same-compute-capability")
_VERBOSITIES = ("layer-names-only", "none", "detailed")

_ENGINE: Sequence[Decorator] = (
    click.option("--target", metavar="NAME", help="Who runs it: rtx or tensorrt."),
    click.option(
        "--min-shapes", "--minShapes", multiple=True, metavar="INPUT:SHAPE[,…]",
        help="Smallest shapes of the engine's inputs: ids:1x1,mask:1x1. Again for a further profile.",
    ),
    click.option(
        "--opt-shapes", "--optShapes", multiple=True, metavar="INPUT:SHAPE[,…]", help="Shapes to be fastest at."
    ),
    click.option("--max-shapes", "--maxShapes", multiple=True, metavar="INPUT:SHAPE[,…]", help="Largest shapes."),
    click.option(
        "--range", "ranges", multiple=True, metavar="NAME=MIN:OPT:MAX",
        help="The same by the name of a dimension: batch=1:8:32.",
    ),
    click.option("--workspace", metavar="SIZE", help="Memory that layers may take to work in: 4GiB."),
    click.option(
        "--memory-pool", "memory_pools", multiple=True, metavar="POOL:SIZE",
        help="Limit of a memory pool: tactic-shared-memory:64KiB.",
    ),
    click.option(
        "--builder-optimization-level", type=click.IntRange(0, 5),
        help="0 builds fast, 5 makes an engine that runs fast.",
    ),
    click.option(
        "--timing-cache", metavar="FILE", help="Keeps what the builder measured, for the next one. (tensorrt)"
    ),
    click.option(
        "--hardware-compatibility", type=click.Choice(_LEVELS), default="none",
        help="On which other GPUs the engine runs. (tensorrt)",
    ),
    click.option("--version-compatible", is_flag=True, help="It runs with later versions. (tensorrt)"),
    click.option(
        "--exclude-lean-runtime", is_flag=True,
        help="Leave the lean runtime out of a version-compatible engine. (tensorrt)",
    ),
    click.option(
        "--compute-capabilities", metavar="LIST",
        help="The GPUs that the engine is for: 8.6,12.0 or current. (rtx)",
    ),
    click.option("--refit", is_flag=True, help="Weights can be exchanged in the engine."),
    click.option("--strip-weights", is_flag=True, help="Leave weights out; refitting adds them."),
    click.option("--weight-streaming", is_flag=True, help="Weights may stay in host memory."),
    click.option("--sparsity", is_flag=True, help="Use 2:4 sparse weights where there are any."),
    click.option(
        "--profiling-verbosity", type=click.Choice(_VERBOSITIES), default="layer-names-only",
        help="How much the engine says about its layers.",
    ),
    click.option("--no-tf32", is_flag=True, help="Do not compute float32 as TF32."),
    click.option(
        "--plugins", "plugin_libraries", multiple=True, metavar="LIB.so",
        help="Library of TensorRT plugins (--plugin is for passes).",
    ),
    click.option("--build-log", metavar="FILE", help="Keep everything that the library says."),
)  # fmt: skip

OPTIONS = (
    "min_shapes", "opt_shapes", "max_shapes", "ranges", "workspace", "memory_pools",
    "builder_optimization_level", "timing_cache", "hardware_compatibility", "version_compatible",
    "exclude_lean_runtime", "compute_capabilities", "refit", "strip_weights", "weight_streaming", "sparsity",
    "profiling_verbosity", "no_tf32", "plugin_libraries", "build_log", "target",
)  # fmt: skip
"""Names of the options above; a recipe's table `[engine]` takes the same."""


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the options that say what engine to build."""
    for decorate in reversed(_ENGINE):
        command = decorate(command)
    return command


def with_recipe(options: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The options of a command, with those that only a recipe has.

    Raises:
        UsageError: the recipe has a name that is no option, or a value that the option does not take.
    """
    from onnxlathe.cli.options import with_table

    return with_table(options, OPTIONS, recipe.engine, "engine")


def engine_request(
    path: Path,
    options: Mapping[str, Any],
    *models: Path,
    timeout: float,
    fixed: Mapping[str, int] | None = None,
) -> EngineRequest:
    """What engine to build, from the options by name; `models` are files that its log may not replace.

    Raises:
        LatheError: the log cannot be written there.
        UsageError: an option that cannot be read.
        TargetError: the target is not installed.
    """
    from onnxlathe.cli.options import check_writable
    from onnxlathe.errors import UsageError
    from onnxlathe.target import find_target
    from onnxlathe.target.engine import EngineRequest
    from onnxlathe.target.options import BuildOptions, parse_bytes, parse_capabilities, parse_pool
    from onnxlathe.target.profiles import ProfileWishes
    from onnxlathe.target.sidecar import sidecar_path

    if options["target"] == "none":
        raise UsageError("--target none: an engine needs a target", hint="leave the option out, or say rtx")
    pools = dict(parse_pool(text) for text in options["memory_pools"])
    if options["workspace"]:
        pools["workspace"] = parse_bytes(options["workspace"], "--workspace")
    capabilities = options["compute_capabilities"]
    build = BuildOptions(
        memory_pools=pools,
        builder_optimization_level=options["builder_optimization_level"],
        timing_cache=options["timing_cache"],
        hardware_compatibility=options["hardware_compatibility"],
        version_compatible=options["version_compatible"],
        exclude_lean_runtime=options["exclude_lean_runtime"],
        compute_capabilities=() if capabilities is None else parse_capabilities(capabilities),
        refit=options["refit"],
        strip_weights=options["strip_weights"],
        weight_streaming=options["weight_streaming"],
        sparsity=options["sparsity"],
        profiling_verbosity=options["profiling_verbosity"],
        tf32=not options["no_tf32"],
        plugins=tuple(options["plugin_libraries"]),
    )
    wishes = ProfileWishes(
        options["min_shapes"], options["opt_shapes"], options["max_shapes"], options["ranges"], fixed or {}
    )
    log = Path(options["build_log"]) if options["build_log"] else None
    request = EngineRequest(path, find_target(options["target"]), build, wishes, timeout, log)
    if log is not None:
        check_writable(log, *models, path, sidecar_path(path), what="the log")
    return request
