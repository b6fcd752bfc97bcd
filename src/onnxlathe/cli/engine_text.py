"""Engines in words: what was built, and what a sidecar says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from onnxlathe.target.engine import Engine

_NODES_SHOWN = 40


def show_engine(console: Console, engine: Engine) -> None:
    """Print what was built, and what was not checked."""
    from rich.markup import escape
    from rich.table import Table

    from onnxlathe.report.terminal import human_size

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    grid.add_row(
        "engine",
        f"[bold]{escape(str(engine.path))}[/]  {human_size(engine.nbytes)}, {engine.layers} layers, "
        f"built in {engine.seconds:.1f} s",
    )
    grid.add_row("target", escape(f"{engine.target} {engine.version}, for {built_for(engine.built_for)}"))
    for number, profile in enumerate(engine.profiles, 1):
        grid.add_row(f"profile {number}" if len(engine.profiles) > 1 else "profile", escape(str(profile)))
    if engine.extents is not None:
        grid.add_row("in range", escape(f"{engine.extents.summary()}"))
    if engine.run.verdict is not None:
        grid.add_row("on the GPU", escape(engine.run.verdict.summary()))
    if engine.run.reason:
        grid.add_row("[yellow]not checked[/]", escape(engine.run.reason))
    for latency in engine.run.latencies:
        grid.add_row(
            "latency",
            escape(
                f"{latency.runner}: median {latency.median:.3f} ms, p99 {latency.p99:.3f} ms, "
                f"{latency.throughput:.0f}/s ({latency.label})"
            ),
        )
    for note in engine.notes:
        grid.add_row("[yellow]note[/]", escape(note))
    console.print(grid)


def built_for(facts: dict[str, Any]) -> str:
    """The GPUs that an engine is for, in words."""
    if "gpu" in facts:
        gpu = facts["gpu"]
        return f"{gpu['name']} (compute capability {gpu['compute_capability']})" if gpu else "this GPU"
    wanted = facts["compute_capabilities"]
    return (
        "its default compute capabilities"
        if wanted == "default"
        else "compute capability " + ", ".join(wanted)
    )


def inspect_engine(engine: Path, *, as_json: bool) -> int:
    """Print what the sidecar of an engine says."""
    from onnxlathe.cli.output import out
    from onnxlathe.target.sidecar import read_sidecar

    facts = read_sidecar(engine)
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(facts), indent=2).decode())
    else:
        _show_sidecar(out(), engine, facts)
    return 0


def _show_sidecar(console: Console, engine: Path, facts: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from onnxlathe.report.terminal import human_size
    from onnxlathe.target.options import BuildOptions

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()

    def row(title: str, text: str) -> None:
        grid.add_row(title, escape(text))

    row("engine", f"{engine}  {human_size(engine.stat().st_size)}")
    row(
        "target",
        f"{facts['target']['name']} {facts['target']['version']}, for {built_for(facts['built_for'])}",
    )
    for title in ("source", "model"):
        if facts[title]:
            row(title, f"{facts[title]['name']}  sha256 {facts[title]['sha256'][:16]}…")
    row("pipeline", facts.get("pipeline") or "(none)")
    default = BuildOptions().to_dict()
    chosen = {k: v for k, v in facts["options"].items() if v != default[k] and v not in ([], {})}
    row("options", ", ".join(f"{k}={v}" for k, v in chosen.items()) or "(defaults)")
    for number, profile in enumerate(facts["profiles"], 1):
        title = f"profile {number}" if len(facts["profiles"]) > 1 else "profile"
        for name, levels in profile["shapes"].items():
            row(title, f"{name}  {' … '.join('x'.join(map(str, level)) or 'scalar' for level in levels)}")
        for name, levels in profile["values"].items():
            row(title, f"{name} = {' … '.join(map(str, levels))}")
    for title in ("inputs", "outputs"):
        for tensor in facts[title]:
            row(title, f"{tensor['name']}  {tensor['type']}{tensor['shape']}")
    for title, key in (("verdict", "verdict"), ("in range", "extents"), ("on the GPU", "engine_verdict")):
        if facts.get(key):
            row(title, facts[key]["summary"])
    if facts["not_checked"]:
        grid.add_row("[yellow]not checked[/]", escape(facts["not_checked"]))
    layers, nodes = facts["map"]["layers"], facts["map"]["nodes"]
    row("layers", f"{len(layers)} of {len(nodes)} nodes:")
    for layer in layers[:_NODES_SHOWN]:
        if layer["nodes"]:
            came = [name for node in layer["nodes"] for name in nodes.get(node, {}).get("original", [node])]
            row("", f"{layer['type'].lower()}  {layer['name']}  ← {', '.join(dict.fromkeys(came))}")
    if len(layers) > _NODES_SHOWN:
        grid.add_row("", "[dim]… --json has them all[/]")
    console.print(grid)
