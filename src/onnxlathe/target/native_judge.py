"""Judging many small models, inside the child process: parsed and built in one question, nothing is kept."""

from __future__ import annotations

import base64
import math
import os
import tempfile
from typing import Any

from onnxlathe.target import native_build, weights
from onnxlathe.target.native import Native, errors_of

_GUESS = 4  # of an unknown dimension
_ERRORS = ("INTERNAL_ERROR", "ERROR")


def judge(
    native: Native,
    model: str = "",
    path: str = "",
    build: bool = True,
    expect: dict[str, Any] | None = None,
    profile: bool = True,
) -> dict[str, Any]:
    """Parse and build: a parser accepts much that the builder then has no kernel for.

    Args:
        native: the package.
        model: the model, base64 (or `path`, a file).
        path: an ONNX file of any size.
        build: whether to build an engine where the parser accepts.
        expect: by name of an input: its shape (`{"shape": [...]}`) and, where the target needs them as
            the sample for its optimization profile, its contents (`{"values": [...]}`).
        profile: make an optimization profile where one is needed.

    Returns:
        Whether it was `parsed` and `built` (None: not tried), the parser's `errors`, and the first lines of
        the `log`.
    """
    native.messages.clear()
    builder, network, parser = native.network()
    scratch = ""
    alive: list[Any] = []
    try:
        if not path:
            with tempfile.NamedTemporaryFile(suffix=".onnx", delete=False) as file:
                file.write(base64.b64decode(model))
            path = scratch = file.name
            parsed = bool(parser.parse_from_file(path))
        else:
            parsed, alive = weights.parse(parser, path)
    finally:
        if scratch:
            os.unlink(scratch)
    built = None
    if parsed and build:
        native_build.decomposable(native.trt, network)
        config = builder.create_builder_config()
        if profile:
            _profile(builder, config, network, expect or {})
        built = builder.build_serialized_network(network, config) is not None
        del config
    said = [text for severity, text in native.messages if severity in _ERRORS]
    reply = {"parsed": parsed, "errors": errors_of(parser), "built": built, "log": said[:4]}
    del parser, network, builder, alive  # in this order: each refers to the next
    return reply


def _profile(builder: Any, config: Any, network: Any, expect: dict[str, Any]) -> None:
    """One optimization profile where the network has dynamic or shape inputs."""
    profile: Any = None
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        said = expect.get(tensor.name, {})
        known = said.get("shape") or []
        if len(known) != len(tensor.shape):  # of an empty array written as a list the rank is lost
            known = [_GUESS] * len(tensor.shape)
        shape = [d if d >= 0 else k for d, k in zip(tensor.shape, known, strict=True)]
        if any(d < 0 for d in tensor.shape):
            profile = profile or builder.create_optimization_profile()
            profile.set_shape(tensor.name, shape, shape, shape)
        if tensor.is_shape_tensor:
            profile = profile or builder.create_optimization_profile()
            values = said.get("values")
            if values is None:
                values = [1] * math.prod(shape)
            if values:  # a profile cannot say of an empty tensor that it is empty
                profile.set_shape_input(tensor.name, values, values, values)
    if profile is not None:
        config.add_optimization_profile(profile)
