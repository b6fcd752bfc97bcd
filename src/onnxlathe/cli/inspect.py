"""`optimize inspect MODEL`: what a model or an engine is made of, and what the target thinks of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxlathe.cli.options import plugin_option

if TYPE_CHECKING:
    from rich.console import Console

    from onnxlathe.model import Model

_WEIGHTS_SHOWN = 10


@click.command(short_help="Show what a model is made of and whether TensorRT takes it.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--target", metavar="NAME", help="Whom to ask: rtx, tensorrt or none. What is installed if left out."
)
@click.option("--text", is_flag=True, help="Print the graph as text instead.")
@click.option(
    "--why-not",
    metavar="RULE",
    help="Show where a rule (or a group, or `all`) almost fires and what stops it.",
)
@click.option(
    "--after", metavar="PIPELINE", default="shapes", help="Passes to run before that, as shapes,fold,tidy."
)
@plugin_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def inspect_command(
    model: Path,
    target: str | None,
    text: bool,
    why_not: str | None,
    after: str,
    plugins: tuple[str, ...],
    as_json: bool,
) -> int:
    """Show operators, inputs, outputs, opset and weights of MODEL, and what TensorRT thinks of it.

    Of an engine, show what its sidecar says.
    """
    from onnxlathe.cli.output import out, progress
    from onnxlathe.model import load

    if _is_engine(model):
        from onnxlathe.cli.engine_text import inspect_engine

        return inspect_engine(model, as_json=as_json)

    loaded = load(model)
    if why_not is not None:
        return _why_not(loaded, why_not, after, plugins, as_json)
    if text:
        from onnxlathe.infer import infer_model
        from onnxlathe.report.graph_text import model_text

        infer_model(loaded)
        click.echo(model_text(loaded))
        return 0
    with progress(quiet=as_json) as say:
        say("asking the target")
        facts = {**describe(loaded), "file": _file(model), "target": _ask(model, target)}
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(facts), indent=2).decode())
    else:
        _show(out(), facts)
    return 0


def _why_not(model: Model, rule: str, after: str, plugins: tuple[str, ...], as_json: bool) -> int:
    from onnxlathe.cli.options import registry_with
    from onnxlathe.cli.output import out
    from onnxlathe.cli.whynot import as_data, show_why_not, why_not

    misses = why_not(model, rule, registry_with(plugins), after)
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(as_data(misses)), indent=2).decode())
    else:
        show_why_not(out(), misses)
    return 0


def _is_engine(path: Path) -> bool:
    """TensorRT's serialized engines begin with one of these."""
    try:
        with path.open("rb") as file:
            return (
                file.read(4) in (b"ptrt", b"ftrt", b"rtrt", b"vtrt")
                or path.with_name(path.name + ".json").is_file()
            )
    except OSError:
        return False


def describe(model: Model) -> dict[str, Any]:
    """What a model is made of, as plain data."""
    from onnxlathe.report.graph_text import kind

    weights = [
        (v.name, v.const_value)
        for graph in model.graphs()
        for v in graph.initializers.values()
        if v.const_value is not None
    ]
    weights.sort(key=lambda item: -item[1].nbytes)
    constants = {name for name, _ in weights}
    return {
        "ir_version": model.ir.ir_version,
        "opsets": dict(model.ir.opset_imports),
        "producer": " ".join(filter(None, (model.ir.producer_name, model.ir.producer_version))),
        "nodes": model.count_nodes(),
        "operators": model.count_operators(),
        "functions": [f"{f.domain}::{f.name}" for f in model.ir.functions.values()],
        "inputs": {v.name: kind(v) for v in model.graph.inputs if v.name not in constants},
        "outputs": {v.name: kind(v) for v in model.graph.outputs},
        "weights": {
            "count": len(weights),
            "bytes": sum(tensor.nbytes for _, tensor in weights),
            "largest": [
                {
                    "name": name,
                    "type": tensor.dtype.name.lower(),
                    "shape": list(tensor.shape.numpy()),
                    "bytes": tensor.nbytes,
                }
                for name, tensor in weights[:_WEIGHTS_SHOWN]
            ],
        },
        "repairs": model.repairs,
    }


def _file(path: Path) -> dict[str, Any]:
    return {"path": str(path), "bytes": path.stat().st_size}


def _ask(path: Path, name: str | None) -> dict[str, Any]:
    if name == "none":
        return {"name": "none", "asked": False, "reason": "not asked (--target none)"}
    from onnxlathe.target import find_target

    target = find_target(name)
    if not target.available:
        return {"name": target.name, "asked": False, "reason": target.reason}
    answer = target.parse(path)
    return {
        "name": target.name,
        "version": target.version,
        "asked": True,
        "accepted": answer.accepted,
        "layers": answer.layers,
        "refusals": [
            {"node": e.node, "operator": e.operator, "code": e.code, "message": e.message}
            for e in answer.errors
        ],
    }


def _show(console: Console, facts: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from onnxlathe.report.terminal import human_size

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    grid.add_row("file", f"{escape(facts['file']['path'])}  {human_size(facts['file']['bytes'])}")
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in facts["opsets"].items())
    grid.add_row("opset", f"{opsets}  (IR version {facts['ir_version']})")
    if facts["producer"]:
        grid.add_row("producer", escape(facts["producer"]))
    for title in ("inputs", "outputs"):
        for number, (name, what) in enumerate(facts[title].items()):
            grid.add_row(title if number == 0 else "", escape(f"{name}  {what}"))
    grid.add_row("nodes", str(facts["nodes"]))
    grid.add_row("operators", escape(", ".join(f"{n} {name}" for name, n in facts["operators"].items())))
    if facts["functions"]:
        grid.add_row("functions", escape(", ".join(facts["functions"])))
    weights = facts["weights"]
    grid.add_row("weights", f"{weights['count']} of {human_size(weights['bytes'])}; the largest:")
    for weight in weights["largest"]:
        line = f"{human_size(weight['bytes']):>9}  {weight['type']}{weight['shape']}  {weight['name']}"
        grid.add_row("", escape(line))
    grid.add_row("target", _target(facts["target"]))
    for refusal in facts["target"].get("refusals", []):
        where = f"{refusal['node']} ({refusal['operator']}): " if refusal["node"] else ""
        grid.add_row("", escape(where + refusal["message"]))
    for repair in facts["repairs"]:
        grid.add_row("[yellow]repaired[/]", escape(repair))
    console.print(grid)


def _target(answer: dict[str, Any]) -> str:
    from rich.markup import escape

    if not answer["asked"]:
        return f"[yellow]not asked:[/] {escape(answer['reason'])}"
    name = escape(f"{answer['name']} {answer['version']}".strip())
    if answer["accepted"]:
        return f"{name} [green]accepts[/] it as {answer['layers']} layers"
    return f"{name} [red]refuses[/] it:"
