"""How time and memory grow with nodes, with bytes, and with width alone: run, and draw.

    python tools/scaling.py --work /tmp/scaling --json docs/scaling.json --plot docs/scaling.svg

Models from `tools/large_models.py` go file to file through `optimize` without verification, a fresh process each;
beside them `cp` of the same bytes. Needs free disk of about twice the largest model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PASSES = "shapes,fold,tidy,fuse"
TOOLS = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the models; emptied afterwards")
    parser.add_argument("--nodes", type=int, nargs="*", default=[1_000, 3_000, 10_000, 30_000, 100_000])
    parser.add_argument("--gigabytes", type=float, nargs="*", default=[0.1, 0.5, 2, 6, 12])
    parser.add_argument("--widths", type=int, nargs="*", default=[512, 1024, 2048, 4096])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--plot", type=Path, required=True)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    measured: dict[str, list[dict[str, Any]]] = {"nodes": [], "bytes": [], "widths": []}
    for nodes in options.nodes:
        model = make(options.work, "deep", "--nodes", str(nodes))
        measured["nodes"].append(measure(model) | {"nodes": count(model)})
        shutil.rmtree(options.work / "model")
    for gigabytes in options.gigabytes:
        measured["bytes"].append(beside_copy(options.work, "--gigabytes", str(gigabytes)))
    for width in options.widths:
        # The same graph, only its weights grow.
        row = beside_copy(options.work, "--layers", "4", "--width", str(width))
        measured["widths"].append({"width": width} | row)
    options.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    options.plot.write_text(draw(measured), encoding="utf-8")
    for row in (*measured["nodes"], *measured["bytes"], *measured["widths"]):
        print(row)


def make(work: Path, kind: str, *words: str) -> Path:
    folder = work / "model"
    folder.mkdir()
    model = folder / "model.onnx"
    subprocess.run(
        [sys.executable, TOOLS / "large_models.py", kind, model, *words],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return model


def beside_copy(work: Path, *words: str) -> dict[str, Any]:
    """A model of few layers, optimized and copied."""
    model = make(work, "wide", *words)
    size = sum(p.stat().st_size for p in model.parent.iterdir())
    row = {"gigabytes": round(size / 1e9, 3)} | measure(model) | {"cp_seconds": copy(model)}
    shutil.rmtree(work / "model")
    return row


def count(model: Path) -> int:
    import onnx

    return len(onnx.load(model, load_external_data=False).graph.node)


def measure(model: Path) -> dict[str, Any]:
    """Whole process: wall and processor seconds, peak memory."""
    output = model.with_name("out.onnx")
    optimize = str(Path(sys.executable).parent / "optimize")
    started = time.perf_counter()
    child = subprocess.Popen(
        [optimize, str(model), "-o", str(output), "--passes", PASSES, "--no-verify", "-q"]
    )
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"optimize failed on {model}")
    for path in model.parent.glob("out.onnx*"):
        path.unlink()
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mib": usage.ru_maxrss >> 10,
    }


def copy(model: Path) -> float:
    """Seconds that `cp` of the model's files takes."""
    target = model.parent.parent / "copy"
    started = time.perf_counter()
    subprocess.run(["cp", "-r", str(model.parent), str(target)], check=True)
    seconds = time.perf_counter() - started
    shutil.rmtree(target)
    return round(seconds, 2)


WIDTH, HEIGHT, MARGIN = 420, 260, 50


def draw(measured: dict[str, list[dict[str, Any]]]) -> str:
    """Small plots on logarithmic axes: seconds and MiB against nodes, gigabytes and width."""
    by_nodes, by_bytes, by_width = measured["nodes"], measured["bytes"], measured["widths"]
    panels = [
        panel("seconds against nodes", [("optimize", "#0b6", points(by_nodes, "nodes", "cpu_seconds"))]),
        panel("peak MiB against nodes", [("optimize", "#0b6", points(by_nodes, "nodes", "peak_mib"))]),
        panel(
            "seconds against GB",
            [
                ("optimize", "#0b6", points(by_bytes, "gigabytes", "seconds")),
                ("cp", "#999", points(by_bytes, "gigabytes", "cp_seconds")),
            ],
        ),
        panel("peak MiB against GB", [("optimize", "#0b6", points(by_bytes, "gigabytes", "peak_mib"))]),
        panel(
            "seconds against width, same graph",
            [
                ("optimize", "#0b6", points(by_width, "width", "seconds")),
                ("cp", "#999", points(by_width, "width", "cp_seconds")),
            ],
        ),
        panel("peak MiB against width", [("optimize", "#0b6", points(by_width, "width", "peak_mib"))]),
    ]
    placed = "".join(
        f'<g transform="translate({(i % 2) * WIDTH},{(i // 2) * HEIGHT})">{p}</g>'
        for i, p in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" height="{(len(panels) + 1) // 2 * HEIGHT}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>{placed}</svg>\n'
    )


def points(rows: list[dict[str, Any]], x: str, y: str) -> list[tuple[float, float]]:
    return [(row[x], max(row[y], 0.01)) for row in rows]


def panel(title: str, lines: list[tuple[str, str, list[tuple[float, float]]]]) -> str:
    from math import ceil, floor, log10

    if not any(line for _, _, line in lines):
        return f'<text x="{MARGIN}" y="30">{title}: not measured</text>'
    xs = [log10(x) for _, _, line in lines for x, _ in line]
    ys = [log10(y) for _, _, line in lines for _, y in line]
    x0, x1, y0, y1 = floor(min(xs)), ceil(max(xs) + 1e-9), floor(min(ys)), ceil(max(ys) + 1e-9)

    def place(x: float, y: float) -> tuple[float, float]:
        across = MARGIN + (x - x0) / (x1 - x0) * (WIDTH - 2 * MARGIN)
        return across, HEIGHT - MARGIN - (y - y0) / (y1 - y0) * (HEIGHT - 2 * MARGIN)

    parts = [f'<text x="{MARGIN}" y="30" font-weight="bold">{title}</text>']
    for decade in range(x0, x1 + 1):
        x, _ = place(decade, y0)
        parts.append(f'<line x1="{x}" y1="{MARGIN}" x2="{x}" y2="{HEIGHT - MARGIN}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{HEIGHT - MARGIN + 16}" text-anchor="middle">{10.0**decade:g}</text>')
    for decade in range(y0, y1 + 1):
        _, y = place(x0, decade)
        parts.append(f'<line x1="{MARGIN}" y1="{y}" x2="{WIDTH - MARGIN}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{MARGIN - 6}" y="{y + 4}" text-anchor="end">{10.0**decade:g}</text>')
    for row, (name, colour, line) in enumerate(lines):
        placed = [place(log10(x), log10(y)) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed]
        parts.append(
            f'<text x="{WIDTH - MARGIN}" y="{30 + 14 * row}" text-anchor="end" fill="{colour}">{name}</text>'
        )
    return "".join(parts)


if __name__ == "__main__":
    main()
