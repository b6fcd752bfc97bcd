"""Building an engine, inside the child process: handlers of `worker.py`.

`open` parses a model and keeps its network; `build` makes an engine of it. Between the two the parent
decides on profiles, for which it has to know the network's inputs.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxlathe.target import cuda, native_options, timing_cache, weights
from onnxlathe.target.native import Native, Trouble, errors_of

_FULL = "make room, or write to another disk"


@dataclass
class _Parsed:
    """A network and what has to live as long as it does; each refers to the next."""

    alive: list[Any]
    parser: Any
    network: Any
    builder: Any


def device(native: Native) -> dict[str, Any]:
    """The package's `version`, and the `gpus` that CUDA can use."""
    return {"version": native.trt.__version__, "gpus": [gpu.to_dict() for gpu in cuda.gpus()]}


def open_model(native: Native, path: str, plugins: list[str], log: str | None = None) -> dict[str, Any]:
    """Parse the model at `path` and keep the network for `build`.

    Args:
        native: the package.
        path: an ONNX file of any size.
        plugins: libraries of plugins to load first.
        log: file for everything that the package says.

    Returns:
        `accepted` and `errors` as for `parse`; of an accepted model its `inputs`, `outputs` and `layers`.
    """
    native.held = None
    native.log_to(log)
    for plugin in plugins:
        load_plugin(native, plugin)
    builder, network, parser = native.network()
    accepted, alive = weights.parse(parser, path)
    if not accepted:
        return {"accepted": False, "errors": errors_of(parser)}
    decomposable(native.trt, network)
    native.held = _Parsed(alive, parser, network, builder)
    return {
        "accepted": True,
        "errors": [],
        "inputs": [_tensor(network.get_input(i)) for i in range(network.num_inputs)],
        "outputs": [_tensor(network.get_output(i)) for i in range(network.num_outputs)],
        "layers": [_layer(network.get_layer(i)) for i in range(network.num_layers)],
    }


def decomposable(trt: Any, network: Any) -> None:
    """Let attention of a network be built from its parts where there is no kernel for all of it.

    There is none for float32, and none for some sizes of heads; by default the build fails on those.
    """
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)
    if kind is None:
        return
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type == kind:
            layer.__class__ = trt.IAttentionInputLayer  # the bindings know the base class only
            layer.attention.decomposable = True


def load_plugin(native: Native, path: str) -> None:
    """Load a library of plugins into the registry.

    Raises:
        Trouble: it cannot be loaded.
    """
    registry = native.trt.get_plugin_registry()
    before = len(native.messages)
    if registry.load_library(path) is None:
        said = "; ".join(text for _, text in native.messages[before:]) or _why_not_loaded(path)
        raise Trouble(
            f"the plugin library {path!r} cannot be loaded: {said}",
            "it must be built against the installed version of the target",
        )


def _why_not_loaded(path: str) -> str:
    """What the system's loader says, which the registry does not pass on."""
    try:
        ctypes.CDLL(path)
    except OSError as error:
        return str(error)
    return "it registers no plugin"


def build(
    native: Native,
    engine: str,
    profiles: list[dict[str, dict[str, list[list[int]]]]],
    options: dict[str, Any],
) -> dict[str, Any]:
    """Build the network that `open` has kept, and write the engine to the file `engine`.

    Args:
        native: the package.
        engine: the file to write; the parent renames or removes it.
        profiles: each with `shapes` and `values`: by input [min, opt, max].
        options: the fields of `options.BuildOptions`.

    Returns:
        `bytes` of the engine (0 where there is none), `seconds`, and the `messages` of the builder.
    """
    parsed: _Parsed = native.held
    builder, network = parsed.builder, parsed.network
    config = builder.create_builder_config()
    native_options.apply(native.trt, config, options)
    for profile in profiles:
        _add_profile(builder, config, profile)
    cache = options.get("timing_cache")
    if cache:
        timing_cache.attach(native, config, Path(cache))
    native.messages.clear()
    started = time.perf_counter()
    serialized = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - started
    if serialized is None:
        return {"bytes": 0, "seconds": seconds, "messages": native.messages}
    try:
        _write(engine, memoryview(serialized))
    except OSError as error:
        hint = _FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise Trouble(f"cannot write the engine in '{Path(engine).parent}': {error.strerror}", hint) from None
    if cache:
        timing_cache.keep(native, config, Path(cache))
    return {"bytes": serialized.nbytes, "seconds": seconds, "messages": native.messages}


def _add_profile(builder: Any, config: Any, profile: dict[str, dict[str, list[list[int]]]]) -> None:
    made = builder.create_optimization_profile()
    for name, (low, opt, high) in profile["shapes"].items():
        made.set_shape(name, low, opt, high)
    for name, (low, opt, high) in profile["values"].items():
        made.set_shape_input(name, low, opt, high)
    if config.add_optimization_profile(made) < 0:
        raise Trouble(f"the target does not take the optimization profile {profile}")


def _write(path: str, data: memoryview) -> None:
    """Write all of `data` and wait until it is on the disk."""
    with open(path, "wb") as file:
        for start in range(0, len(data), 1 << 26):
            file.write(data[start : start + (1 << 26)])
        file.flush()
        os.fsync(file.fileno())


def _tensor(tensor: Any) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "type": tensor.dtype.name.lower(),
        "shape": list(tensor.shape),
        "shape_tensor": bool(tensor.is_shape_tensor),
    }


def _layer(layer: Any) -> dict[str, str]:
    return {"name": layer.name, "type": layer.type.name, "metadata": layer.metadata}
