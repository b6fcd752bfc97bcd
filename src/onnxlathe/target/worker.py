"""The child process that calls the native libraries: `python -m onnxlathe.target.worker MODULE`.

It answers one JSON request a line (stdin) with one JSON reply a line, until stdin closes. A handler that
raises gives an error reply; one that crashes or hangs takes the process along, which `process.py` expects.
Handlers are functions in `HANDLERS`: keyword arguments in, a JSON object out.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Native:
    """The native package with a logger that prints warnings and worse to stderr.

    Args:
        module: `tensorrt_rtx` or `tensorrt`.
    """

    def __init__(self, module: str) -> None:
        self.trt = trt = importlib.import_module(module)

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                    print(f"[{severity.name}] {message}", file=sys.stderr, flush=True)

        self.logger = Logger()
        if hasattr(trt, "init_libnvinfer_plugins"):
            trt.init_libnvinfer_plugins(self.logger, "")

    def network(self) -> tuple[Any, Any, Any]:
        """A builder, an empty strongly typed network and a parser into it; keep all three alive."""
        trt = self.trt
        builder = trt.Builder(self.logger)
        # TensorRT 10 has to be asked for strong typing; 11 and RTX know nothing else.
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        return builder, network, trt.OnnxParser(network, self.logger)


def hello(native: Native) -> dict[str, Any]:
    """Says that the package could be loaded, and its version."""
    return {"version": native.trt.__version__}


def parse(native: Native, path: str) -> dict[str, Any]:
    """Parse the file at `path`."""
    builder, network, parser = native.network()
    accepted = bool(parser.parse_from_file(path))
    reply = {
        "accepted": accepted,
        "layers": network.num_layers if accepted else None,
        "errors": errors_of(parser),
    }
    del parser, network, builder  # in this order: each refers to the next
    return reply


def supports(native: Native, path: str) -> dict[str, Any]:
    """Which nodes of the file at `path` are supported, as lists of indices into the main graph."""
    builder, network, parser = native.network()
    with open(path, "rb") as file:
        empty = os.fstat(file.fileno()).st_size == 0  # mmap refuses that
        data = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        supported = bool(parser.supports_model_v2(data, path))
    reply = {
        "supported": supported,
        "partitions": [list(parser.get_subgraph_nodes(i)) for i in range(parser.num_subgraphs)],
        "errors": errors_of(parser),
    }
    del parser, network, builder
    return reply


def errors_of(parser: Any) -> list[dict[str, Any]]:
    """The parser's errors with the fields of `base.Refusal`."""
    found = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        found.append(
            {
                "node": error.node_name(),
                "index": error.node(),
                "operator": error.node_operator(),
                "message": message_of(error),
                "code": error.code().name,
                "stack": list(error.local_function_stack()),
            }
        )
    return found


def message_of(error: Any) -> str:
    """The description, with the place in the parser where it says nothing ("false") by itself."""
    text = str(error.desc()).strip()
    place = f"{error.func()}, {error.file()}:{error.line()}"
    return f"not supported ({place})" if text in ("", "false") else f"{text} ({place})"


HANDLERS: dict[str, Callable[..., dict[str, Any]]] = {"hello": hello, "parse": parse, "supports": supports}


def _requests() -> Iterator[bytes]:
    """The lines of stdin. When it closes the parent is gone, and so are we, even amid a native call."""
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin.buffer:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield lines.get()


def main() -> None:
    # Replies go where stdout went; whatever prints to stdout from now on ends up in the log.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business; it ends us
    native: Native | None = None
    for line in _requests():
        request = json.loads(line)
        try:
            handler = HANDLERS[request.pop("do")]
            native = native or Native(sys.argv[1])
            reply: dict[str, Any] = {"result": handler(native, **request)}
        except ImportError as error:
            reply = {"error": f"{sys.argv[1]} is installed but cannot be loaded: {error}"}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
