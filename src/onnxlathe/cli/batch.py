"""Many models in one call: `optimize *.onnx -j 2 -o out/`.

Each model is a run of its own in a process of its own, so that one that fails, or takes all memory, costs only
itself. What became of each is kept in `out/manifest.json`; a second call goes on where the first one stopped.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxlathe import __version__
from onnxlathe._files import write_whole
from onnxlathe.errors import LatheError, UsageError

if TYPE_CHECKING:
    from rich.progress import Progress

MANIFEST = "manifest.json"


def run_batch(
    models: Sequence[Path], folder: Path | None, words: Sequence[str], *, jobs: int, again: bool, quiet: bool
) -> int:
    """Optimize several models.

    Args:
        models: the models.
        folder: where the results go, under their models' names.
        words: all other words of the command line.
        jobs: how many models at a time.
        again: also those that the manifest says are done.
        quiet: print failures only.

    Returns:
        The largest exit code of all.

    Raises:
        UsageError: there is no folder.
    """
    if folder is None or (folder.exists() and not folder.is_dir()):
        raise UsageError(
            "several models need a folder to be saved in", hint="give one with -o, as in -o out/"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LatheError(f"cannot create '{folder}': {error.strerror}") from error
    manifest = _Manifest(folder / MANIFEST)
    runs = [_Run(model, folder / model.name, tuple(words)) for model in models]
    ready = [] if again else [run for run in runs if manifest.has(run)]
    waiting = [run for run in runs if run not in ready]
    codes = [0]
    with _display(quiet=quiet) as progress, ThreadPoolExecutor(jobs) as pool:
        task = progress.add_task("optimizing", total=len(runs), completed=len(ready))
        if ready:
            progress.console.print(f"[dim]{len(ready)} done before (--again repeats them)[/]")
        for future in as_completed([pool.submit(run.outcome) for run in waiting]):
            outcome = future.result()
            manifest.add(outcome)
            codes.append(outcome["code"])
            progress.console.print(_line(outcome))
            progress.advance(task)
    return max(codes)


@dataclass(frozen=True)
class _Run:
    """One model of the batch."""

    model: Path
    output: Path
    words: tuple[str, ...]

    def identity(self) -> dict[str, Any]:
        """What must be the same for a result to be still good."""
        try:
            stat = self.model.stat()
            size, changed = stat.st_size, stat.st_mtime_ns
        except OSError:
            size, changed = -1, -1
        return {"bytes": size, "mtime_ns": changed, "words": list(self.words), "version": __version__}

    def outcome(self) -> dict[str, Any]:
        """Run it, and say what became of it."""
        identity = self.identity()
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="onnxlathe-batch-") as work:
            report = Path(work) / "report.json"
            command = [sys.executable, "-P", "-m", "onnxlathe.cli", str(self.model), *self.words]
            command += ["-o", str(self.output), "--report", str(report), "--stats", "none"]
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            facts = json.loads(report.read_text()) if report.exists() else {}
        verdict = facts.get("verdict") or {}
        return {
            "model": str(self.model),
            "output": str(self.output) if done.returncode == 0 else None,
            "engine": (facts.get("engine") or {}).get("path"),
            "code": min(abs(done.returncode), 2),
            "message": _message(done.stderr) if done.returncode else "",
            "nodes": [facts.get(when, {}).get("nodes") for when in ("before", "after")] if facts else [],
            "verdict": verdict.get("status", "not verified"),
            "seconds": round(time.perf_counter() - started, 2),
            "identity": identity,
        }


class _Manifest:
    """What became of each model, on disk after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.entries: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["models"]
        except (OSError, ValueError, KeyError, TypeError):
            self.entries = {}

    def has(self, run: _Run) -> bool:
        """Whether the run succeeded before, on the same file with the same words, and its files are there."""
        entry = self.entries.get(str(run.model))
        return (
            isinstance(entry, dict)
            and entry.get("code") == 0
            and entry.get("identity") == run.identity()
            and run.output.exists()
            and (not entry.get("engine") or Path(entry["engine"]).exists())
        )

    def add(self, outcome: dict[str, Any]) -> None:
        """Keep an outcome."""
        self.entries[outcome["model"]] = outcome
        text = json.dumps({"schema": 1, "models": self.entries}, indent=2)
        try:
            write_whole(self.path, text.encode() + b"\n")
        except OSError as error:
            raise LatheError(f"cannot write '{self.path}': {error.strerror}") from error


def _message(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.strip()]
    first = next((line for line in lines if line.startswith("error")), lines[-1] if lines else "")
    return first.removeprefix("error").strip() or "it ended without a word"


def _line(outcome: dict[str, Any]) -> str:
    from rich.markup import escape

    name = escape(Path(outcome["model"]).name)
    if outcome["code"]:
        return f"[red]failed[/]  {name}: {escape(outcome['message'])}"
    before, after = outcome["nodes"] or (None, None)
    return f"[green]done[/]    {name}: {before} → {after} nodes, {outcome['verdict']}, {outcome['seconds']} s"


@contextmanager
def _display(*, quiet: bool) -> Iterator[Progress]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from onnxlathe.cli.output import out

    console = out(quiet=quiet)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress
