"""Us and the other optimizers side by side: `benchmark.py MODEL... [--json OUT] [--markdown OUT]`.

Everyone does the same work, file to file without verification, in a fresh process each, in turns. Times are
medians over the repeats; ratios are taken within a repeat, so that a slow minute hits both sides. Two times
are given: the whole process as a user waits for it, and load + optimize + save with imports excluded. Ours
are of `optimize MODEL -o OUT --no-verify` and of the Python API. The rivals come with the extra `peers`; one
that is not installed, or fails on a model, is one cell of the table. For Linux and macOS.

This driver imports nothing large on purpose: Linux counts the memory of the process that starts a child
towards the child's peak.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parent
US = "onnxlathe"
PEERS = ("onnxsim", "onnxslim", "onnxscript", "onnxoptimizer", "ort_basic", "polygraphy", "none")
EXTRA_PEERS = ("ort_extended",)
OUR_OPTIONS = ("--passes", "shapes,fold,tidy,fuse", "--no-verify")


@dataclass
class Process:
    """How a child process went.

    Attributes:
        status: exit status, negative for a signal.
        seconds: wall-clock time from its start to its end.
        cpu_seconds: processor time of it and its children, which a busy machine disturbs less.
        peak_mib: largest resident set.
        log: what it printed, both streams.
    """

    status: int
    seconds: float
    cpu_seconds: float
    peak_mib: float
    log: str
    timed_out: bool = False

    @property
    def error(self) -> str:
        """The last line it printed, which is where Python and most programs say what was wrong."""
        if self.timed_out:
            return f"timeout after {self.seconds:.0f} s"
        lines = [line.strip() for line in self.log.splitlines() if line.strip()]
        last = lines[-1][:200] if lines else ""
        return f"signal {-self.status} {last}".strip() if self.status < 0 else last or f"exit {self.status}"


@dataclass
class Cell:
    """One optimizer on one model. Lists have one entry for each repeat.

    Attributes:
        seconds: load, optimize and save, imports excluded.
        process_seconds: the whole process.
        cpu_seconds: processor time of the whole process.
        peak_mib: largest resident set of the whole process.
        megabytes: size of what it wrote, external data included, in 1e6 bytes.
        verdict: what `benchmark_judge.py` found.
        problem: why there is nothing to judge; empty if there is.
    """

    version: str = ""
    seconds: list[float] = field(default_factory=list)
    process_seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)
    megabytes: float = 0.0
    verdict: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def run(command: list[str], timeout: float) -> Process:
    """Run to the end or to the timeout, with all it started."""
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        late = threading.Event()

        def end() -> None:
            late.set()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

        timer = threading.Timer(timeout, end)
        timer.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            end()
            raise
        finally:
            timer.cancel()
        seconds = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        text = log.read().decode(errors="replace")
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    cpu = usage.ru_utime + usage.ru_stime
    return Process(child.returncode, seconds, cpu, usage.ru_maxrss / unit, text, late.is_set())


def our_command() -> list[str]:
    """The console script beside this interpreter, or the same from a source tree."""
    script = Path(sys.executable).parent / "optimize"
    return (
        [str(script)] if script.exists() else [sys.executable, "-c", "from onnxlathe.cli import main; main()"]
    )


def measure(name: str, model: Path, folder: Path, python: str, timeout: float, cell: Cell) -> Path | None:
    """Run one optimizer once and add to its cell; the optimized file, or None where there is none."""
    folder.mkdir()
    output, result = folder / "out.onnx", folder / "result.json"
    program = sys.executable if name == US else python
    process = run(
        [program, str(TOOLS / "benchmark_peer.py"), name, str(model), str(output), str(result)], timeout
    )
    reply = json.loads(result.read_text()) if result.exists() else {}
    if "missing" in reply:
        cell.problem = f"not installed ({reply['missing']})"
        return None
    if "seconds" not in reply:
        cell.problem = process.error
        return None
    if name == US:  # the API gave the time without imports; the rest is what a user of the program gets
        clear(folder)
        process = run([*our_command(), str(model), "-o", str(output), *OUR_OPTIONS], timeout)
        if process.status:
            cell.problem = process.error
            return None
    if not output.exists():
        cell.problem = "wrote no file"
        return None
    result.unlink(missing_ok=True)
    cell.version = reply["version"]
    cell.seconds.append(reply["seconds"])
    cell.process_seconds.append(process.seconds)
    cell.cpu_seconds.append(process.cpu_seconds)
    cell.peak_mib.append(process.peak_mib)
    cell.megabytes = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    return output


def clear(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def judge(model: Path, output: Path, folder: Path, timeout: float) -> dict[str, Any]:
    result = output.parent / "verdict.json"
    truth = folder / "truth.npz"
    program = [sys.executable, str(TOOLS / "benchmark_judge.py")]
    process = run([*program, str(model), str(output), str(result), str(truth)], timeout)
    verdict: dict[str, Any] = (
        json.loads(result.read_text()) if result.exists() else {"failure": process.error}
    )
    return verdict


def compare(model: Path, names: list[str], args: argparse.Namespace) -> dict[str, Cell]:
    """All optimizers on one model, taking turns; the first output of each is judged."""
    cells = {name: Cell() for name in names}
    with tempfile.TemporaryDirectory(prefix="onnxlathe-benchmark-", dir=args.workdir) as temporary:
        folder = Path(temporary)
        warm(model)
        compile_ours()
        for repeat in range(args.repeat):
            for name, cell in cells.items():
                if cell.problem:
                    continue
                place = folder / f"{name}-{repeat}"
                output = measure(name, model, place, args.python, args.timeout, cell)
                if output and not repeat and args.judge:
                    cell.verdict = judge(model, output, folder, args.timeout)
                clear(place)  # a gigabyte each, perhaps
                told = cell.problem or f"{cell.seconds[-1]:.2f} s, {cell.verdict.get('nodes', '?')} nodes"
                print(f"{model.name} {repeat + 1}/{args.repeat} {name}: {told}", file=sys.stderr, flush=True)
    return cells


def compile_ours() -> None:
    """Bytecode of our modules, as pip makes it for what it installs; a source tree may lack it."""
    places = [importlib.util.find_spec(name) for name in ("onnxlathe", "onnxlathe_passes")]
    folders = [folder for place in places if place for folder in place.submodule_search_locations or ()]
    subprocess.run([sys.executable, "-m", "compileall", "-q", *folders], check=False)


def warm(model: Path) -> None:
    """Read the file once, so that the first one does not pay for the disk."""
    with model.open("rb") as file:
        while file.read(1 << 22):
            pass


def ratio(ours: list[float], theirs: list[float]) -> float | None:
    """Median over the repeats of ours / theirs."""
    pairs = list(zip(ours, theirs, strict=False))
    return statistics.median(a / b for a, b in pairs) if pairs else None


def markdown(model: Path, cells: dict[str, Cell]) -> str:
    """One table: a row for each optimizer."""
    size = model.stat().st_size / 1e6
    head = [
        "optimizer",
        "seconds",
        "process",
        "processor",
        "peak MiB",
        "nodes",
        "TensorRT",
        "layers",
        "error",
        "MB",
    ]
    ours = cells.get(US)
    if ours:
        head += ["time ratio", "process ratio", "processor ratio", "memory ratio"]
    rows = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for name, cell in cells.items():
        label = f"{name} {cell.version}".strip()
        if cell.problem:
            rows.append([label, cell.problem.replace("|", "\\|")] + [""] * (len(head) - 2))
            continue
        verdict = cell.verdict
        error = verdict.get("error", verdict.get("failure", "?"))
        accepted = verdict.get("accepted")
        row = [
            label,
            f"{statistics.median(cell.seconds):.2f}",
            f"{statistics.median(cell.process_seconds):.2f}",
            f"{statistics.median(cell.cpu_seconds):.2f}",
            f"{max(cell.peak_mib):.0f}",
            str(verdict.get("nodes", "?")),
            {True: "yes", False: "refused", None: "not asked"}[accepted],
            str(verdict.get("layers") or ""),
            f"{error:.1e}" if isinstance(error, float) else str(error).replace("|", "\\|"),
            f"{cell.megabytes:.1f}",
        ]
        if ours:
            pairs = (
                (ours.seconds, cell.seconds),
                (ours.process_seconds, cell.process_seconds),
                (ours.cpu_seconds, cell.cpu_seconds),
                (ours.peak_mib, cell.peak_mib),
            )
            ratios = [ratio(*pair) for pair in pairs] if name != US else [None] * 4
            row += ["" if r is None else f"{r:.2f}" for r in ratios]
        rows.append(row)
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"### {model.name} ({size:.1f} MB)\n\n{table}\n"


def summary(record: dict[str, dict[str, Cell]]) -> str:
    """All models in one table: ours, and our share of each rival's processor time, wall-clock time and memory."""
    rivals = list(dict.fromkeys(name for cells in record.values() for name in cells if name != US))
    head = ["model", "process", "processor", "peak MiB", *rivals]
    rows = [head, ["---"] + ["---:"] * (len(head) - 1)]
    shares: dict[str, list[float]] = {name: [] for name in rivals}
    for model, cells in record.items():
        ours = cells[US]
        if ours.problem:
            rows.append([model, ours.problem] + [""] * (len(head) - 2))
            continue
        row = [
            model,
            f"{statistics.median(ours.process_seconds):.2f}",
            f"{statistics.median(ours.cpu_seconds):.2f}",
            f"{max(ours.peak_mib):.0f}",
        ]
        for name in rivals:
            cell = cells[name]
            found = [
                ratio(getattr(ours, kind), getattr(cell, kind))
                for kind in ("cpu_seconds", "process_seconds", "peak_mib")
            ]
            row.append("failed" if cell.problem else " / ".join(f"{r or 0:.2f}" for r in found))
            if not cell.problem and found[0] is not None:
                shares[name].append(found[0])
        rows.append(row)
    medians = [f"{statistics.median(s):.2f}" if s else "" for s in shares.values()]
    rows.append(["median of processor time", "", "", "", *medians])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
    }


def legend(args: argparse.Namespace) -> str:
    about = environment()
    return (
        f"Python {about['python']}, {about['system']}, {about['cpus']} CPUs, {about['date']}; medians of "
        f"{args.repeat}. seconds: load, optimize, save, imports excluded; process: the whole program; "
        "processor: its processor time; peak: "
        "largest resident set; error: largest relative error of any output against the original "
        f"(Euclidean norm); ratios: {US} / rival, below 1 is in our favour.\n"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS + EXTRA_PEERS)}")
    parser.add_argument("--without-us", action="store_true", help="measure the rivals only")
    parser.add_argument("--repeat", type=int, default=3, metavar="N")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="for each process")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has the rivals")
    parser.add_argument("--workdir", type=Path, help="where the optimized models go until they are judged")
    parser.add_argument("--no-judge", dest="judge", action="store_false", help="times and memory only")
    parser.add_argument("--summary", type=Path, help="write one table of all models here")
    parser.add_argument("--json", type=Path, help="write all samples here")
    parser.add_argument("--markdown", type=Path, help="write the tables here (also printed)")
    args = parser.parse_args()
    args.peers = [name for name in args.peers.split(",") if name]
    for name in args.peers:
        if name not in PEERS + EXTRA_PEERS:
            parser.error(f"unknown peer {name!r}; there are {', '.join(PEERS + EXTRA_PEERS)}")
    for model in args.models:
        if not model.is_file():
            parser.error(f"{model}: no such file")
    if args.repeat < 1:
        parser.error("--repeat: at least 1")
    return args


def main() -> None:
    args = arguments()
    names = args.peers if args.without_us else [US, *args.peers]
    text = legend(args)
    print(text)
    found: dict[str, dict[str, Cell]] = {}
    record: dict[str, Any] = {"environment": environment(), "repeat": args.repeat, "models": {}}
    for model in args.models:
        cells = compare(model.resolve(), names, args)
        record["models"][model.name] = {name: asdict(cell) for name, cell in cells.items()}
        found[model.name] = cells
        table = markdown(model, cells)
        text += "\n" + table
        print(table, flush=True)
        # After every model, so that an interruption loses one at most.
        overview = "" if args.without_us else summary(found)
        for path, content in (
            (args.json, json.dumps(record, indent=1) + "\n"),
            (args.markdown, text),
            (args.summary, overview),
        ):
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)


if __name__ == "__main__":
    main()
