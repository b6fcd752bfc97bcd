"""`optimize diff A B`: what was removed, fused, changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from onnxlathe.report.diff import Change, Difference

_SHOWN = 10


@click.command(short_help="Show what was removed, fused and changed between two models.")
@click.argument("first", metavar="A", type=click.Path(path_type=Path))
@click.argument("second", metavar="B", type=click.Path(path_type=Path))
@click.option(
    "--all", "everything", is_flag=True, help="Show every change, not only the first ten of a kind."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def diff_command(first: Path, second: Path, everything: bool, as_json: bool) -> int:
    """Show how the graph of model B differs from that of model A.

    Nodes are matched by provenance: those of a model that this program wrote say which original nodes they
    stand for. Numbers are not compared: that is what `optimize verify A B` does.

    Exit code 0: no difference; 1: there are differences.
    """
    from onnxlathe.cli.output import out
    from onnxlathe.model import load
    from onnxlathe.report.diff import difference

    found = difference(load(first), load(second))
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(found.to_dict()), indent=2).decode())
    else:
        _show(out(), found, None if everything else _SHOWN)
    return 0 if found.empty else 1


_KINDS = {
    "fused": "magenta",
    "expanded": "magenta",
    "changed": "yellow",
    "removed": "red",
    "added": "green",
}


def _show(console: Console, found: Difference, limit: int | None) -> None:
    from rich.markup import escape

    for kind, style in _KINDS.items():
        changes: Sequence[Change] = getattr(found, kind)
        if not changes:
            continue
        console.print(f"[bold {style}]{kind}[/] {len(changes)}{_operators(kind, changes)}")
        for change in changes[:limit]:
            console.print(f"  {escape(_line(change))}", soft_wrap=True)
        if limit is not None and len(changes) > limit:
            console.print(f"  [dim]… and {len(changes) - limit} more (--all)[/]")
    for kind, names in found.weights.items():
        if names:
            shown = ", ".join(names[: limit or len(names)])
            more = f" and {len(names) - limit} more" if limit is not None and len(names) > limit else ""
            console.print(f"[bold]weights {kind}[/] {len(names)}: {escape(shown)}{more}", soft_wrap=True)
    for sentence in found.interface:
        console.print(escape(sentence))
    console.print(f"[dim]{found.kept} nodes are as they were[/]")


def _operators(kind: str, changes: Sequence[Change]) -> str:
    if kind not in ("removed", "added"):
        return ""
    counts = Counter(node.op_type for change in changes for node in (*change.before, *change.after))
    return f" [dim]({', '.join(f'{n} {name}' for name, n in counts.most_common(8))})[/]"


def _line(change: Change) -> str:
    def side(types: Sequence[str]) -> str:
        counts = Counter(types)
        return ", ".join(name if n == 1 else f"{n} {name}" for name, n in counts.items())

    before = [n.op_type for n in change.before]
    after = [n.op_type for n in change.after]
    name = (change.after or change.before)[0].name
    if change.what:
        return f"{name}: {change.what}"
    if before and after:
        return f"{name}: {side(before)} → {side(after)}"
    return f"{name} ({', '.join(before or after)})"
