"""A child process that may die without us: questions and answers as JSON lines, one at a time.

The child is `worker.py`. Its stdin takes requests; what was its stdout takes replies (the child moves it
out of the way of libraries that print); stderr, with all that the libraries print, goes to a temporary
file whose end is shown when the child dies.
"""

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
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final

from .base import CRASHED, TIMED_OUT, TargetError

_START_TIMEOUT: Final = 120.0  # the first start after an installation reads hundreds of megabytes
_LOG_LINES: Final = 12
_LOG_BYTES: Final = 16_384


def worker_command(module: str) -> list[str]:
    """How the child is started for the native package `module`.

    -P: a file of the user's working directory must not shadow a package.
    """
    return [sys.executable, "-P", "-m", "onnxlathe.target.worker", module]


def gpus_here(timeout: float = 20.0) -> list[dict[str, Any]]:
    """The GPUs of this machine, as `cuda.Gpu` has them, asked of the driver in a process of its own."""
    command = [sys.executable, "-P", "-m", "onnxlathe.target.cuda"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, env=_environment())
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return []


def _environment() -> dict[str, str]:
    """Ours, and the child imports the same onnxlathe as we did, wherever that lies."""
    package = Path(__file__).resolve().parents[2]
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


class WorkerProcess:
    """Starts the child at the first question, and again after it died.

    Args:
        command: argument vector of the child.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._replies: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._log: IO[bytes] | None = None
        self._asked_at = 0  # size of the log when the current question was asked
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Process id of the child, None while there is none."""
        return self._process.pid if self._process else None

    def ask(self, question: str, *, timeout: float, **arguments: Any) -> dict[str, Any]:
        """Send one question and wait for its answer.

        Args:
            question: name of a handler of the worker.
            timeout: seconds; the child is killed when they have passed.
            arguments: JSON values.

        Raises:
            TargetError: the child could not start, died, hung, or reported an error.
        """
        with self._lock:  # one question at a time, also from several threads
            if self._process is None or self._process.poll() is not None:
                self._start()
            return self._exchange({"do": question, **arguments}, timeout)

    def close(self) -> None:
        """End the child. It holds nothing that is worth a polite goodbye."""
        process, self._process = self._process, None
        log, self._log = self._log, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        if log is not None:
            log.close()

    def _start(self) -> None:
        self.close()
        # "a": the child shares the file position, and writes at the end wherever we have read.
        self._log = tempfile.TemporaryFile("a+b", prefix="onnxlathe-target-")  # noqa: SIM115  (close does)
        try:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=_environment(),
            )
        except OSError as error:
            raise TargetError(f"the target's process does not start: {error}") from None
        self._replies = queue.SimpleQueue()
        threading.Thread(
            target=_read_lines, args=(self._process.stdout, self._replies), name="target-replies", daemon=True
        ).start()
        self._exchange({"do": "hello"}, _START_TIMEOUT)

    def _exchange(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._log is not None
        self._asked_at = self._log.seek(0, 2)
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._replies.get(timeout=timeout)
        except queue.Empty:
            log = self._last_log()
            self.close()
            raise TargetError(
                f"the target did not answer within {timeout:g} s ({request['do']}){log}",
                hint="give it more time (--timeout; --build-timeout beside --engine), or look for the node "
                "that it hangs on with `optimize debug`",
                code="" if request["do"] == "hello" else TIMED_OUT,
            ) from None
        except OSError:  # the pipe broke: the child died before it took the request
            line = None
        except BaseException:  # Ctrl-C: the next question must not read this one's answer
            self.close()
            raise
        if line is None:
            raise self._death(request["do"])
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise TargetError(reply["error"] + self._last_log(), hint=reply.get("hint", ""))
        result: dict[str, Any] = reply["result"]
        return result

    def _death(self, question: str) -> TargetError:
        assert self._process is not None
        status = self._process.wait()
        log = self._last_log()
        self.close()
        how, hint = f"exited with status {status}", ""
        if status < 0:
            try:
                how = f"was ended by {signal.Signals(-status).name}"
            except ValueError:
                how = f"was ended by signal {-status}"
            if status == -9:  # by number: SIGKILL has no name on Windows
                hint = "The system kills like that when memory runs out."
        return TargetError(
            f"the target's process {how} ({question}){log}",
            hint=hint,
            code="" if question == "hello" else CRASHED,
        )

    def _last_log(self) -> str:
        """The last lines that the libraries printed since the question, ready to follow a message."""
        if self._log is None:
            return ""
        size = self._log.seek(0, 2)
        self._log.seek(max(self._asked_at, size - _LOG_BYTES))
        lines = self._log.read().decode(errors="replace").rstrip().splitlines()[-_LOG_LINES:]
        return "; its last messages:\n" + "\n".join("    " + line for line in lines) if lines else ""


def _read_lines(stream: IO[bytes] | None, replies: queue.SimpleQueue[bytes | None]) -> None:
    """Put each line into `replies`, and None at the end. In a thread: Windows cannot wait on a pipe."""
    assert stream is not None
    try:
        for line in stream:
            replies.put(line)
    except (OSError, ValueError):  # closed while it was being read
        pass
    replies.put(None)
