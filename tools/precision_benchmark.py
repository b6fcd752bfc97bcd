"""Compare the pass `precision` with other tools that lower a float32 model.

    python tools/precision_benchmark.py corpus/*.onnx --python PEERS/bin/python --markdown table.md

For every model and tool: the relative error (Euclidean norm) of the worst output, on the worst feed and on average
over the feeds, against the float32 original when every result is rounded as on a GPU
(`onnxlathe.precision.emulate`), the number of Casts, the number of nodes that compute in float32, and the seconds
from file to file. All tools keep the types of
inputs and outputs. "autocast" and "converter" get the file as it was exported; "+ ours first" gets it after our
own pipeline, so that only the lowering itself is compared.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from onnxlathe.api import optimize
from onnxlathe.cli.precision_options import around
from onnxlathe.errors import LatheError
from onnxlathe.infer import infer_model
from onnxlathe.model import Model, load, save
from onnxlathe.precision import FLOAT32, LOW_TYPES, LOWERED
from onnxlathe.verify import Verifier
from onnxlathe.verify.runtime import RuntimeFailure, RuntimeProcess

PIPELINE = "O3"
NAMES = {"ours": "OnnxLathe", "autocast": "AutoCast", "converter": "onnxconverter-common"}


@dataclass
class Row:
    """One model lowered by one tool; `problem` says why there are no numbers."""

    model: str
    tool: str
    error: float = math.nan
    mean_error: float = math.nan
    casts: int = 0
    precision_casts: int = 0
    wide: int = 0
    nodes: int = 0
    seconds: float = math.nan
    problem: str = ""


def measured(row: Row, path: Path, verifier: Verifier, runtime: RuntimeProcess) -> Row:
    """Fill in a row from the model that a tool wrote."""
    model = load(path)
    infer_model(model)
    tracked = {FLOAT32, *LOW_TYPES}
    for node in model.nodes():
        kinds = [v.dtype for v in node.outputs]
        if node.op_type == "Cast":
            row.casts += 1
            source = node.inputs[0]
            row.precision_casts += source is not None and source.dtype in tracked and kinds[0] in tracked
        elif node.op_type != "Constant":
            row.wide += any(kind == FLOAT32 for kind in kinds)
    row.nodes = model.count_nodes()
    try:
        runtime.open(path)  # whether it is a valid model, before it is rewritten in float32
        runtime.close()
    except RuntimeFailure as failure:
        row.problem = f"ONNX Runtime refuses it: {failure.message.splitlines()[0][:160]}"
    model.ir.metadata_props[LOWERED] = "float16"
    verdict = verifier.check(model)
    if verdict.error or not verdict.comparisons:
        row.problem = verdict.error or "nothing could be compared"
        return row
    found: dict[str, list[float]] = {}
    for c in verdict.comparisons:
        found.setdefault(c.output, []).append(c.rel_norm if c.nonfinite_agree else math.inf)
    row.error = max(max(errors) for errors in found.values())
    row.mean_error = max(sum(errors) / len(errors) for errors in found.values())
    return row


def ours(source: Path, target: Path, kind: str) -> float:
    """The whole way from file to file; seconds."""
    start = time.perf_counter()
    model = load(source)
    optimize(model, around(f"precision(type={kind},keep_io_types=true)"), verify=False)
    save(model, target)
    return time.perf_counter() - start


def peer(python: Path, tool: str, source: Path, target: Path, kind: str, timeout: float) -> float:
    """Another tool, in its own environment; seconds.

    Raises:
        LatheError: it failed.
    """
    script = Path(__file__).with_name("precision_peer.py")
    try:
        done = subprocess.run(
            [python, script, tool, source, target, kind], capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        raise LatheError(f"took longer than {timeout:g} s") from None
    if done.returncode:
        lines = [s for s in (done.stderr or done.stdout).splitlines() if s.strip()]
        raise LatheError(f"failed: {lines[-1][:160] if lines else done.returncode}")
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def compare(path: Path, arguments: argparse.Namespace) -> list[Row]:
    """All tools on one model."""
    rows: list[Row] = []
    kind = arguments.type
    tools = [t for t in arguments.tools.split(",") if t]
    with (
        tempfile.TemporaryDirectory() as folder,
        Verifier(path, seeds=tuple(range(arguments.seeds))) as verifier,
    ):
        runtime = RuntimeProcess()
        prepared = Path(folder) / "prepared.onnx"
        for tool in tools:
            row = Row(path.stem, tool)
            target = (arguments.keep or Path(folder)) / f"{path.stem}.{tool}.{kind}.onnx"
            times = target.with_suffix(".json")
            try:
                if target.exists() and times.exists():
                    row.seconds = json.loads(times.read_text())["seconds"]
                elif tool == "ours":
                    row.seconds = ours(path, target, kind)
                elif tool.endswith("+"):
                    if not prepared.exists():
                        model: Model = load(path)
                        optimize(model, PIPELINE, verify=False)
                        save(model, prepared)
                    row.seconds = peer(arguments.python, tool[:-1], prepared, target, kind, arguments.timeout)
                else:
                    row.seconds = peer(arguments.python, tool, path, target, kind, arguments.timeout)
                if arguments.keep:
                    times.write_text(json.dumps({"seconds": row.seconds}))
                measured(row, target, verifier, runtime)
            except LatheError as error:
                row.problem = error.message
            if not arguments.keep:
                target.unlink(missing_ok=True)
            rows.append(row)
            print(json.dumps(asdict(row)), flush=True)
        runtime.stop()
    return rows


def label(tool: str) -> str:
    """A tool's name in the table."""
    return NAMES[tool.rstrip("+")] + (" + ours first" if tool.endswith("+") else "")


def markdown(rows: list[Row]) -> str:
    """A table: a line for each model, a column for each tool."""
    tools = list(dict.fromkeys(row.tool for row in rows))
    lines = [
        f"| model | {' | '.join(label(t) for t in tools)} |",
        f"|---|{'---|' * len(tools)}",
    ]
    for name in dict.fromkeys(row.model for row in rows):
        cells = []
        for tool in tools:
            row = next(r for r in rows if (r.model, r.tool) == (name, tool))
            numbers = (
                f"{row.error:.2e} / {row.mean_error:.2e} / {row.casts} / {row.wide} / {row.seconds:.1f} s"
            )
            if row.problem:
                remark = row.problem.split(":")[0]
                numbers = remark if math.isnan(row.error) else f"{numbers} ({remark})"
            cells.append(numbers)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the command line and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--python", type=Path, help="interpreter that has the other tools")
    parser.add_argument(
        "--tools", default="ours,autocast,converter", help="ours, autocast, converter; + for ours first"
    )
    parser.add_argument("--type", default="fp16", choices=["fp16", "bf16"])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--timeout", type=float, default=300.0)
    parser.add_argument("--keep", type=Path, help="folder to keep what the tools wrote in, for another run")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    rows = [row for path in arguments.models for row in compare(path, arguments)]
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(markdown(rows))


if __name__ == "__main__":
    main()
