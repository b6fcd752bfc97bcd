"""The parent's end of the child process that runs models (see `worker`)."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

_LAST_LINES = 6


class RuntimeFailure(Exception):
    """A model could not be run.

    Attributes:
        kind: ``unsupported``, ``version``, ``memory``, ``invalid`` (see `worker.classify`), or ``crash`` and
            ``timeout`` for the child process itself.
        operator, node: what the library named, or empty.
        message: what it said.
    """

    def __init__(self, kind: str, message: str, operator: str = "", node: str = "") -> None:
        super().__init__(message)
        self.kind, self.message, self.operator, self.node = kind, message, operator, node


class RuntimeProcess:
    """A child process in which ONNX Runtime may crash or hang. It starts again by itself after it has.

    Args:
        threads: number of threads a model is run with.
        timeout: seconds that one request may take.
    """

    def __init__(self, *, threads: int = 2, timeout: float = 300.0) -> None:
        self.threads, self.timeout = threads, timeout
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._errors: IO[bytes] | None = None
        self._open: str | None = None

    def start(self) -> None:
        """Start the child unless it runs; it loads its libraries while the caller goes on."""
        if self._process is not None and self._process.poll() is None:
            return
        self.stop()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by stop()
        source = str(Path(__file__).parents[2])
        path = os.pathsep.join(p for p in (source, os.environ.get("PYTHONPATH", "")) if p)
        self._process = subprocess.Popen(
            # -P: never import from the current folder, where the user's files lie.
            [sys.executable, "-P", "-m", "onnxlathe.verify.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env=os.environ | {"PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
        )
        self._answers = queue.SimpleQueue()
        threading.Thread(target=_pump, args=(self._process.stdout, self._answers), daemon=True).start()

    def stop(self) -> None:
        """End the child."""
        process, self._process, self._open = self._process, None, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        if self._errors is not None:
            self._errors.close()
            self._errors = None

    def open(self, model: Path) -> dict[str, list[str]]:
        """Load a model; returns its ``inputs`` and ``outputs``.

        Raises:
            RuntimeFailure: it cannot be loaded.
        """
        self._open = None
        answer: dict[str, list[str]] = self._ask(do="open", model=str(model), threads=self.threads)
        self._open = str(model)
        return answer

    def run(self, feed: Path, save: Path) -> dict[str, Any]:
        """Run the open model on a feed, keeping its outputs in `save`.

        Raises:
            RuntimeFailure: it cannot be run on this.
        """
        return self._ask(do="run", feed=str(feed), save=str(save))

    def compare(
        self, feed: Path, expected: Path, index: int, tolerances: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Run the open model on a feed and compare its outputs with `expected`.

        Raises:
            RuntimeFailure: it cannot be run on this.
        """
        answer = self._ask(
            do="compare", feed=str(feed), expected=str(expected), index=index, tolerances=tolerances
        )
        comparisons: list[dict[str, Any]] = answer["comparisons"]
        return comparisons

    def close(self) -> None:
        """Let go of the open model's memory."""
        if self._open is not None:
            self._ask(do="close")
            self._open = None

    def _ask(self, **request: Any) -> dict[str, Any]:
        self.start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = self._answers.get(timeout=self.timeout)
        except queue.Empty:
            self.stop()
            raise RuntimeFailure(
                "timeout", f"ONNX Runtime did not answer within {self.timeout:g} seconds"
            ) from None
        except OSError:
            line = ""
        if not line:
            code = process.wait()
            said = self._last_words()
            self.stop()
            raise RuntimeFailure("crash", f"ONNX Runtime {_how_it_ended(code)}{said}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeFailure(**answer["error"])
        return answer

    def _last_words(self) -> str:
        if self._errors is None:
            return ""
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 4000))
        lines = [s for s in self._errors.read().decode(errors="replace").splitlines() if s.strip()]
        return "; its last words: " + " | ".join(lines[-_LAST_LINES:]) if lines else ""


def _pump(stream: IO[str] | None, answers: queue.SimpleQueue[str]) -> None:
    """Move answers to the queue, and an empty one when the child is gone."""
    if stream is not None:
        with contextlib.suppress(ValueError, OSError):
            for line in stream:
                answers.put(line)
    answers.put("")


def _how_it_ended(code: int) -> str:
    if code < 0:
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"was ended by signal {-code}"
    return f"ended with exit code {code}"
