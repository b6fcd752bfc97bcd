"""Engines of many models in several precisions, and what became of each, as a table.

    python tools/engine_table.py corpus/*.onnx --verify --markdown table.md

Each model goes through `optimize MODEL --engine ENGINE`, in a process of its own, once for each type; open
dimensions get the profiles that the program proposes. A cell has the nodes of the optimized model / the layers
that the target made of them / Casts / seconds that the builder took / size of the engine in MiB; where there is
no engine, the error. The exit code is the number of engines that could not be built, 100 at most.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TYPES = ("fp32", "fp16", "bf16")


@dataclass
class Row:
    """One model in one type; `problem` says why there is no engine."""

    model: str
    type: str
    nodes_before: int = 0
    nodes: int = 0
    casts: int = 0
    layers: int = 0
    build_seconds: float = 0.0
    engine_bytes: int = 0
    profiles: str = ""
    verdict: str = ""
    problem: str = ""


def engine(model: Path, kind: str, folder: Path, arguments: argparse.Namespace) -> Row:
    """Build one engine; its file is gone afterwards."""
    row = Row(model.stem, kind)
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    words = [sys.executable, "-m", "onnxlathe.cli", str(model), "-o", str(folder / "model.onnx")]
    words += ["--engine", str(folder / "model.engine"), "--report", str(report), "-q"]
    words += [] if kind == "fp32" else ["--precision", kind]
    words += [] if arguments.passes is None else ["--passes", arguments.passes]
    words += [] if arguments.verify else ["--no-verify"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=arguments.timeout)
    except subprocess.TimeoutExpired:
        row.problem = f"took longer than {arguments.timeout:g} s"
        return row
    if done.returncode:
        row.problem = done.stderr.strip() or f"exit code {done.returncode}"
        return row
    fill(row, json.loads(report.read_text()))
    return row


def fill(row: Row, report: dict[str, Any]) -> None:
    """Take a row's numbers from the program's report."""
    built = report["engine"]
    row.nodes_before, row.nodes = report["before"]["nodes"], report["after"]["nodes"]
    row.casts = report["after"]["operators"].get("Cast", 0)
    row.layers, row.build_seconds, row.engine_bytes = built["layers"], built["seconds"], built["bytes"]
    row.profiles = "; ".join(
        ", ".join(f"{symbol}={':'.join(map(str, sizes))}" for symbol, sizes in profile["dimensions"].items())
        for profile in built["profiles"]
    )
    if built["extents"] is not None:
        row.verdict = built["extents"]["status"]


def markdown(rows: list[Row]) -> str:
    """A line for each model, a column for each type."""
    types = list(dict.fromkeys(row.type for row in rows))
    lines = [f"| model (nodes) | profile | {' | '.join(types)} |", f"|---|---|{'---|' * len(types)}"]
    for name in dict.fromkeys(row.model for row in rows):
        mine = [row for row in rows if row.model == name]
        cells = [row.problem.splitlines()[0] if row.problem else _cell(row) for row in mine]
        profile = next((row.profiles for row in mine if row.profiles), "") or "fixed sizes"
        lines.append(f"| {name} ({mine[0].nodes_before}) | {profile} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(row: Row) -> str:
    size = row.engine_bytes / (1 << 20)
    return f"{row.nodes} / {row.layers} / {row.casts} / {row.build_seconds:.1f} s / {size:.1f} MiB"


def main() -> int:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--types", default=",".join(TYPES), help="of fp32, fp16 and bf16")
    parser.add_argument("--passes", help="the pipeline; the program's own choice if left out")
    parser.add_argument("--verify", action="store_true", help="compare with the original, in range as well")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for one engine, all in all")
    parser.add_argument("--folder", type=Path, help="where engines lie while they are looked at")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for model in arguments.models:
            for kind in arguments.types.split(","):
                rows.append(engine(model, kind, Path(folder), arguments))
                print(json.dumps(asdict(rows[-1])), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(markdown(rows))
    return min(100, sum(bool(row.problem) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
