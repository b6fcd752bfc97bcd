"""The parent's end of `worker`, and what two answers have in common."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxlathe.check import worker

Array = np.ndarray[Any, np.dtype[Any]]
RUNTIMES = ("ONNX Runtime", "the reference evaluator")


@dataclass(frozen=True)
class Ran:
    """What one runtime made of one model.

    Attributes:
        outputs: for each feed the outputs in order; empty where it could not be run.
        error: why not.
    """

    outputs: list[list[Array]]
    error: str = ""


class Workers:
    """A child process that runs models; it starts by itself, and again after it crashed or hung.

    Args:
        timeout: seconds that one comparison may take.
    """

    def __init__(self, timeout: float = 60.0) -> None:
        self.timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def __enter__(self) -> Workers:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the child unless it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        source = str(Path(worker.__file__).parents[2])
        path = os.pathsep.join(p for p in (source, os.environ.get("PYTHONPATH", "")) if p)
        self._process = subprocess.Popen(
            # -P: never import from the current folder.
            [sys.executable, "-P", "-m", "onnxlathe.check.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": path},
        )
        self._answers = queue.SimpleQueue()
        threading.Thread(target=_pump, args=(self._process.stdout, self._answers), daemon=True).start()

    def stop(self) -> None:
        """End the child."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def run(
        self,
        models: Sequence[bytes | str],
        feeds: Sequence[Mapping[str, Array]],
        runtimes: Sequence[str] = RUNTIMES,
    ) -> dict[str, list[Ran]]:
        """Run models, serialized or files, on feeds.

        Returns:
            runtime → one `Ran` for each model; all of them errors where the child died.
        """
        self.start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        request = {
            "models": list(models),
            "feeds": [{name: worker.pack(np.asarray(a)) for name, a in feed.items()} for feed in feeds],
            "runtimes": list(runtimes),
        }
        problem = "the process that runs models died"
        answer = None
        try:
            worker.send(process.stdin, request)  # type: ignore[arg-type]
            answer = self._answers.get(timeout=self.timeout)
        except queue.Empty:
            problem = f"no answer within {self.timeout:g} seconds"
        except OSError:
            pass
        if answer is None:
            self.stop()
            return {runtime: [Ran([], problem) for _ in models] for runtime in runtimes}
        return {runtime: [_ran(each) for each in answer[runtime]] for runtime in runtimes}


def _ran(answer: dict[str, Any]) -> Ran:
    if "error" in answer:
        return Ran([], answer["error"])
    return Ran([[worker.unpack(p) for p in outputs] for outputs in answer["outputs"]])


def _pump(stream: Any, answers: queue.SimpleQueue[Any]) -> None:
    with contextlib.suppress(ValueError, OSError):
        while (message := worker.receive(stream)) is not None:
            answers.put(message)
    answers.put(None)


# float64 as well has attributes in float32.
_RELATIVE = {"float64": 1e-7, "float32": 1e-4, "float16": 1e-2, "bfloat16": 4e-2}


def difference(want: Array, got: Array, *, slack: float = 1.0) -> str:
    """How `got` differs from `want` beyond rounding, as a sentence; empty where it does not.

    Numbers may differ by rounding errors relative to the largest of them. Where `want` is not finite
    anything goes: an identity of real numbers says nothing there.

    Args:
        want: what the model gave before.
        got: what it gives now.
        slack: factor on the tolerance.
    """
    if want.dtype != got.dtype:
        return f"its element type is {got.dtype.name} rather than {want.dtype.name}"
    if want.shape != got.shape:
        return f"its shape is {list(got.shape)} rather than {list(want.shape)}"
    if want.size == 0:
        return ""
    if want.dtype.kind not in "fcV":
        wrong = want != got
        return _first(want, got, wrong) if bool(np.any(wrong)) else ""
    a, b = want.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(a)
    if not finite.any():
        return ""
    relative = min(0.1, _RELATIVE.get(want.dtype.name, 1e-2) * slack)
    with np.errstate(invalid="ignore", over="ignore"):
        wrong = finite & ~(np.abs(a - b) <= relative * np.max(np.abs(a[finite])) + relative / 10)
    return _first(want, got, wrong) if bool(wrong.any()) else ""


def blind(outputs: Sequence[Array]) -> bool:
    """Whether there is not one finite number to compare."""
    return not any(
        v.size and (v.dtype.kind not in "fcV" or bool(np.isfinite(v.astype(np.float64)).any()))
        for v in outputs
    )


def _first(want: Array, got: Array, wrong: Any) -> str:
    where = np.argwhere(wrong)
    index = tuple(where[0].tolist())
    more = f" ({len(where)} of {want.size} elements differ)" if want.size > 1 else ""
    place = f"{list(index)} " if index else ""
    return f"{place}is {_show(got[index])} rather than {_show(want[index])}{more}"


def _show(number: Any) -> str:
    return f"{float(number):.6g}" if np.asarray(number).dtype.kind in "fV" else str(number)
