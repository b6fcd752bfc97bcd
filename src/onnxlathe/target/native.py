"""The native package, inside the child process: its logger, its networks, what its parser complains of."""

from __future__ import annotations

import importlib
import sys
from typing import Any


class Trouble(Exception):
    """Something that the parent tells the user as it is.

    Args:
        message: what is wrong.
        hint: what to do next.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


_LOUD = ("INTERNAL_ERROR", "ERROR", "WARNING")


class Native:
    """The native package with a logger that prints warnings and worse to stderr.

    Args:
        module: `tensorrt_rtx` or `tensorrt`.

    Attributes:
        trt: the package.
        messages: (severity, text) of what it said since somebody cleared the list, warnings and worse.
        held: what a handler keeps for the next request (a parsed network).
    """

    def __init__(self, module: str) -> None:
        self.trt = trt = importlib.import_module(module)
        self.messages: list[tuple[str, str]] = []
        self.held: Any = None
        self._file: Any = None
        say = self._say

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                say(severity.name, message)

        self.logger = Logger()
        if hasattr(trt, "init_libnvinfer_plugins"):
            trt.init_libnvinfer_plugins(self.logger, "")

    def _say(self, severity: str, message: str) -> None:
        if severity in _LOUD:
            self.messages.append((severity, message))
            print(f"[{severity}] {message}", file=sys.stderr, flush=True)
        if self._file is not None:
            try:
                self._file.write(f"[{severity}] {message}\n")
            except OSError as error:  # which must not pass through the library that called us
                print(f"the log cannot be written: {error.strerror}", file=sys.stderr, flush=True)
                self._file = None

    def log_to(self, path: str | None) -> None:
        """Write everything that the package says to the file at `path` from now on; None ends that."""
        if self._file is not None:
            self._file.close()
        # Line by line, so that the last words before a crash are there.
        self._file = open(path, "a", encoding="utf-8", buffering=1) if path else None  # noqa: SIM115

    def network(self) -> tuple[Any, Any, Any]:
        """A builder, an empty strongly typed network and a parser into it; keep all three alive."""
        trt = self.trt
        builder = trt.Builder(self.logger)
        # TensorRT 10 has to be asked for strong typing; 11 and RTX know nothing else.
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        return builder, network, trt.OnnxParser(network, self.logger)


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
