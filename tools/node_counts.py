"""Nodes left by us and by the others: `node_counts.py MODEL... --json KEPT [--markdown OUT] [--us]`.

For each model: the nodes (those of nested graphs included) of the file, of what `optimize` leaves with its
default pipeline, and of what each rival leaves; whether our result was verified equal at two sizes, and
whether TensorRT takes it: parsed, and with `--build` built. KEPT remembers all of it from one run to the
next; `--us` asks the rivals only about models that it does not have yet.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx

from benchmark import TOOLS, our_command, run
from benchmark_judge import count_nodes
from onnxlathe.target import find_target

RIVALS = ("onnxsim", "onnxslim", "onnxscript", "ort_basic")

Record = dict[str, Any]


def nodes_of(path: Path) -> int:
    return count_nodes(onnx.load(str(path), load_external_data=False).graph)


def ours(model: Path, folder: Path, timeout: float, build: bool) -> Record:
    """What `optimize` does with the model: nodes, the verdict, and the target's answer."""
    output, report = folder / "ours.onnx", folder / "report.json"
    process = run([*our_command(), str(model), "-o", str(output), "--report", str(report)], timeout)
    if process.status or not output.exists():
        return {"problem": process.error}
    verdict = json.loads(report.read_text())["verdict"]
    record: Record = {"nodes": nodes_of(output), "equal": verdict["status"] == "equal"}
    target = find_target()
    if target.available:
        answer = target.parse(output)
        record |= {"parsed": answer.accepted, "layers": answer.layers}
        record["refusal"] = str(answer.errors[0]).splitlines()[0] if answer.errors else ""
    if build and target.available:
        engine = folder / "engine"
        process = run([*our_command(), "build", str(output), "-o", str(engine)], timeout)
        record["built"] = process.status == 0
        record["refusal"] = record["refusal"] or ("" if process.status == 0 else process.error)
    return record


def rival(name: str, model: Path, folder: Path, timeout: float) -> Record:
    output = folder / f"{name}.onnx"
    result = folder / f"{name}.json"
    command = [sys.executable, str(TOOLS / "benchmark_peer.py"), name, str(model), str(output), str(result)]
    process = run(command, timeout)
    record = {"nodes": nodes_of(output)} if output.exists() else {"problem": process.error}
    output.unlink(missing_ok=True)
    return record


def best(entry: Record) -> int | None:
    """The fewest nodes that any rival leaves."""
    return min((entry[name]["nodes"] for name in RIVALS if "nodes" in entry.get(name, {})), default=None)


def markdown(kept: dict[str, Record]) -> str:
    """One row for each model, and the median of the ratios."""
    rows = [["model", "nodes", "onnxlathe", *RIVALS, "ours / best rival", "equal", "TensorRT"]]
    rows.append(["---"] + ["---:"] * (len(rows[0]) - 3) + ["---", "---"])
    ratios = []
    for name, entry in sorted(kept.items()):
        mine, least = entry["us"].get("nodes"), best(entry)
        ratio = mine / least if mine and least else None
        ratios += [ratio] if ratio else []
        counts = [str(entry.get(r, {}).get("nodes", "failed")) for r in RIVALS]
        taken = "built" if entry["us"].get("built") else "parsed" if entry["us"].get("parsed") else "refused"
        equal = "yes" if entry["us"].get("equal") else "no"
        shown = "" if ratio is None else f"{ratio:.2f}"
        rows.append([name, str(entry["nodes"]), str(mine or "failed"), *counts, shown, equal, taken])
    text = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"{text}\n\nMedian of ours / best rival: {statistics.median(ratios):.2f}.\n" if ratios else text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--json", type=Path, required=True, help="what is known of earlier runs, and of this")
    parser.add_argument("--markdown", type=Path, help="write the table here (also printed)")
    parser.add_argument("--us", action="store_true", help="do not ask rivals again")
    parser.add_argument("--build", action="store_true", help="build an engine as well")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="for each process")
    args = parser.parse_args()
    kept: dict[str, Record] = json.loads(args.json.read_text()) if args.json.exists() else {}
    for model in args.models:
        entry = kept.setdefault(model.stem, {})
        entry["nodes"] = nodes_of(model)
        with tempfile.TemporaryDirectory(prefix="onnxlathe-nodes-") as temporary:
            folder = Path(temporary)
            entry["us"] = ours(model.resolve(), folder, args.timeout, args.build)
            for name in RIVALS:
                if not args.us or name not in entry:
                    entry[name] = rival(name, model.resolve(), folder, args.timeout)
        counts = {name: entry[name].get("nodes", "failed") for name in RIVALS}
        print(f"{model.stem}: {entry['nodes']} → {entry['us']}; {counts}", flush=True)
        args.json.write_text(json.dumps(kept, indent=1) + "\n")
    table = markdown(kept)
    print(table)
    if args.markdown:
        args.markdown.write_text(table)


if __name__ == "__main__":
    main()
