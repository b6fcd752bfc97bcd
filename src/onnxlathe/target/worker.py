"""The child process that calls the native libraries: `python -m onnxlathe.target.worker MODULE`.

It answers one JSON request a line (stdin) with one JSON reply a line, until stdin closes. A handler that
raises gives an error reply; one that crashes or hangs takes the process along, which `process.py` expects.
Handlers are functions in `HANDLERS`: keyword arguments in, a JSON object out.
"""

from __future__ import annotations

import json
import mmap
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from onnxlathe.target import native_build, native_judge, native_run
from onnxlathe.target.native import Native, Trouble, errors_of


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


HANDLERS: dict[str, Callable[..., dict[str, Any]]] = {
    "hello": hello,
    "parse": parse,
    "supports": supports,
    "device": native_build.device,
    "open": native_build.open_model,
    "build": native_build.build,
    "judge": native_judge.judge,
    "run": native_run.run,
}


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
        except Trouble as error:
            reply = {"error": str(error), "hint": error.hint}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
