"""`optimize passes`: what there is, and what one of them does."""

from __future__ import annotations

import inspect
import textwrap
from typing import TYPE_CHECKING, Any

import click

from onnxlathe.cli.options import plugin_option

if TYPE_CHECKING:
    from rich.console import Console

    from onnxlathe.pipeline import Registered, Registry


@click.command(short_help="List the passes, or explain one.")
@click.argument("name", required=False)
@plugin_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def passes_command(name: str | None, plugins: tuple[str, ...], as_json: bool) -> int:
    """List all passes, groups and presets, or explain the one called NAME."""
    from onnxlathe.cli.options import registry_with
    from onnxlathe.cli.output import out
    from onnxlathe.errors import UsageError
    from onnxlathe.pipeline import PRESETS, suggestion

    registry = registry_with(plugins)
    groups = registry.groups()
    if as_json:
        import msgspec

        chosen = [registry.get(name)] if name else [*registry.all()]
        click.echo(msgspec.json.format(msgspec.json.encode([_as_dict(e) for e in chosen]), indent=2).decode())
        return 0
    console = out()
    if name is None:
        _list(console, registry)
    elif name in registry:
        _explain(console, registry.get(name))
    elif name in groups:
        console.print(f"[bold]{name}[/] stands for {len(groups[name])} passes:")
        _table(console, [registry.get(member) for member in groups[name]])
        console.print(
            f"[dim]choose with {name}({groups[name][0]}), leave out with {name}(-{groups[name][0]})[/]"
        )
    elif name in PRESETS:
        console.print(f"[bold]{name}[/] is the pipeline {PRESETS[name]}")
    else:
        raise UsageError(f"there is no pass '{name}'", hint=suggestion(name, [*registry.names(), *PRESETS]))
    return 0


def _as_dict(entry: Registered) -> dict[str, Any]:
    cls = entry.cls
    return {
        "name": cls.name,
        "group": cls.group,
        "origin": entry.origin,
        "summary": cls.summary(),
        "min_opset": cls.min_opset,
        "options": {
            o.name: {"type": _type(o.type), "default": o.default, "doc": o.doc}
            for o in cls.options().values()
        },
    }


def _list(console: Console, registry: Registry) -> None:
    from onnxlathe.pipeline import PRESETS

    groups = registry.groups()
    _table(console, [entry for entry in registry.all() if not entry.cls.group])
    for group, members in groups.items():
        console.print(f"\n[bold]{group}[/] [dim]= all of[/]")
        _table(console, [registry.get(member) for member in members])
    console.print("\n[bold]presets[/]")
    for name, text in PRESETS.items():
        console.print(f"  {name:8} {text}", highlight=False)
    console.print("\n[dim]`optimize passes NAME` explains one; fixpoint(…) repeats until nothing changes[/]")


def _table(console: Console, entries: list[Registered]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    table.add_column(style="dim", no_wrap=True)
    for entry in entries:
        table.add_row(f"  {entry.name}", escape(entry.cls.summary()), escape(entry.origin))
    console.print(table)


def _explain(console: Console, entry: Registered) -> None:
    from rich.markup import escape

    cls = entry.cls
    console.print(f"[bold cyan]{cls.name}[/]  [dim]{escape(entry.origin)}, {cls.__module__}[/]")
    console.print()
    console.print(escape(inspect.getdoc(cls) or ""))
    if cls.example:
        console.print()
        console.print(escape(textwrap.indent(textwrap.dedent(cls.example).strip("\n"), "    ")))
    facts = []
    if cls.group:
        facts.append(f"belongs to the group {cls.group}")
    if cls.min_opset > 1:
        facts.append(f"needs opset {cls.min_opset}")
    if facts:
        console.print(f"\n[dim]{'; '.join(facts)}[/]")
    options = cls.options()
    if options:
        console.print("\n[bold]options[/]")
        for o in options.values():
            console.print(escape(f"  {o.name}: {_type(o.type)} = {_default(o.type, o.default)}   {o.doc}"))


def _type(kind: Any) -> str:
    if getattr(kind, "__metadata__", ())[:1] == ("bytes",):
        return "bytes"
    return getattr(kind, "__name__", None) or str(kind).replace("typing.", "")


def _default(kind: Any, value: Any) -> str:
    from onnxlathe.pipeline.text import Size, show

    return show(Size(value)) if _type(kind) == "bytes" else show(value)
