"""The child process that judges small models: `python -m onnxlathe_passes.legalize.judge_worker MODULE`.

One JSON request a line on stdin, one JSON reply a line on what was stdout. It parses a model *and* builds an
engine from it, since a parser accepts much that the builder then has no kernel for. The native library may
crash or hang on any of it: `judge.py` expects that.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

_GUESS = 4  # of an unknown dimension


class _Native:
    """The native package and a logger that keeps what it is told."""

    def __init__(self, module: str) -> None:
        self.trt = trt = importlib.import_module(module)
        messages: list[str] = []

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                    messages.append(message)

        self.messages = messages
        self.logger = Logger()
        if hasattr(trt, "init_libnvinfer_plugins"):
            trt.init_libnvinfer_plugins(self.logger, "")


def judge(
    native: _Native,
    model: str = "",
    path: str = "",
    build: bool = True,
    expect: dict[str, Any] | None = None,
    profile: bool = True,
) -> dict[str, Any]:
    """Parse and build.

    Args:
        native: the package.
        model: the model, base64 (or `path`, a file).
        path: an ONNX file.
        build: whether to build an engine where the parser accepts.
        expect: by name of an input: its shape (`{"shape": [...]}`) and, where the target needs them as
            the sample for its optimization profile, its contents (`{"values": [...]}`).
        profile: make an optimization profile where one is needed.
    """
    trt = native.trt
    native.messages.clear()
    builder = trt.Builder(native.logger)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, native.logger)
    scratch = ""
    try:
        if not path:
            with tempfile.NamedTemporaryFile(suffix=".onnx", delete=False) as file:
                file.write(base64.b64decode(model))
            path = scratch = file.name
        parsed = bool(parser.parse_from_file(path))
    finally:
        if scratch:
            os.unlink(scratch)
    errors = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        errors.append(
            {
                "index": error.node(),
                "operator": error.node_operator(),
                "message": str(error.desc()).strip(),
                "nested": bool(error.local_function_stack()),
            }
        )
    reply: dict[str, Any] = {"parsed": parsed, "errors": errors, "built": None, "profile": False}
    if parsed and build:
        config = builder.create_builder_config()
        reply["profile"] = profile and _profile(builder, config, network, expect or {})
        engine = builder.build_serialized_network(network, config)
        reply["built"] = engine is not None
        del engine, config
    reply["log"] = native.messages[:4]
    del parser, network, builder  # in this order: each refers to the next
    return reply


def _profile(builder: Any, config: Any, network: Any, expect: dict[str, Any]) -> bool:
    """One optimization profile where the network has dynamic or shape inputs."""
    profile: Any = None
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        said = expect.get(tensor.name, {})
        if any(d < 0 for d in tensor.shape):
            profile = profile or builder.create_optimization_profile()
            known = said.get("shape") or [_GUESS] * len(tensor.shape)
            shape = [d if d >= 0 else k for d, k in zip(tensor.shape, known, strict=True)]
            profile.set_shape(tensor.name, shape, shape, shape)
        if tensor.is_shape_tensor:
            profile = profile or builder.create_optimization_profile()
            values = said.get("values")
            if values is None:
                count = 1
                for d in tensor.shape:
                    count *= max(int(d), 0)
                values = [1] * count
            profile.set_shape_input(tensor.name, values, values, values)
    if profile is not None:
        config.add_optimization_profile(profile)
    return profile is not None


def hello(native: _Native) -> dict[str, Any]:
    """Says that the package could be loaded, and its version."""
    return {"version": native.trt.__version__}


_HANDLERS: dict[str, Any] = {"hello": hello, "judge": judge}


def _requests() -> Iterator[bytes]:
    """The lines of stdin; when it closes the parent is gone, and so are we, even amid a native call."""
    import queue

    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin.buffer:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield lines.get()


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever prints to stdout from now on ends up in the log
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    native: _Native | None = None
    for line in _requests():
        request = json.loads(line)
        try:
            handler = _HANDLERS[request.pop("do")]
            native = native or _Native(sys.argv[1])
            reply: dict[str, Any] = {"result": handler(native, **request)}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
