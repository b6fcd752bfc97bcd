"""What `optimize debug` prints: is it refused, where, why, what mends it, and the command."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from onnxlathe.debug.catalogue import Cause, Remedy
from onnxlathe.debug.diagnosis import Diagnosis, Finding
from onnxlathe.debug.fix import Mended

_NODES_SHOWN = 6
_MESSAGE_LINES = 3


def show_diagnosis(console: Console, diagnosis: Diagnosis, source: Path) -> None:
    """Print the answers, in their order, one group for each cause."""
    console.print(_headline(diagnosis, source))
    for note in diagnosis.notes:
        console.print(f"[yellow]note[/]  {escape(note)}")
    for number, (cause, findings) in enumerate(diagnosis.groups(), 1):
        console.print()
        title = cause.title if cause else "a reason that the catalogue does not know"
        name = f"  [dim]({cause.id})[/]" if cause else ""
        console.print(f"[bold]{number}. {escape(title)}[/]{name}")
        console.print(Padding(_group(cause, findings, source), (0, 0, 0, 3)))
    if diagnosis.unexamined:
        names = _some(diagnosis.unexamined)
        console.print(f"\n[dim]behind them, and not examined:[/] {escape(names)}")
    for cause, nodes in diagnosis.remarks:
        console.print(f"\n[yellow]remark[/]  {escape(cause.title)}: {escape(_some(nodes))}")
        console.print(Padding(escape(cause.why), (0, 0, 0, 8)))
    if diagnosis.findings and diagnosis.asked:
        path = shlex.quote(str(source))
        console.print(f"\n[bold]next[/]  optimize debug {escape(path)} --fix       tries what mends it")
        if diagnosis.asked:
            console.print(
                f"      optimize debug {escape(path)} --reduce    makes the smallest model that shows it"
            )


def _headline(diagnosis: Diagnosis, source: Path) -> str:
    name = {"rtx": "TensorRT for RTX", "tensorrt": "TensorRT"}.get(diagnosis.target, diagnosis.target)
    who = f"{name} {diagnosis.version}" + ("" if diagnosis.asked else " (by table)")
    file = escape(source.name)
    if diagnosis.accepted:
        how = {True: "parses and builds", None: "parses"}.get(diagnosis.built, "accepts")
        sure = "" if diagnosis.asked else ", as far as the table knows"
        return f"[bold]{file}[/] is [green]not refused[/]: {who} {how} it{sure}"
    nodes = {f.top or f.node for f in diagnosis.findings if f.node}
    where = f"{len(nodes)} of {_nodes(diagnosis.nodes)}" if nodes else "no single node is to blame"
    causes = len(diagnosis.groups())
    stages = {"parse": "parser", "build": "builder", "file": "parser"}
    by = " and ".join(dict.fromkeys(stages[f.stage] for f in diagnosis.findings))
    return (
        f"[bold]{file}[/] is [red]refused[/] by {who}{f' ({by})' if diagnosis.asked else ''}: {where}, "
        f"for {causes} reason{'s' if causes != 1 else ''}; {_nodes(diagnosis.runs)} would run"
    )


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"


def _group(cause: Cause | None, findings: Sequence[Finding], source: Path) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    first = findings[0]
    grid.add_row("where", escape(_where(first)))
    for line in first.around:
        style = "[cyan]" if line.startswith("→") else "[dim]"
        grid.add_row("", f"{style}{escape(line)}[/]")
    if len(findings) > 1:
        others = [f"{f.node} ({f.operator})" for f in findings[1:]]
        grid.add_row("also", escape(_some(others)))
    grid.add_row("why", escape(cause.why) if cause else "[dim]see what the target says[/]")
    lines = [line.strip() for line in first.message.splitlines() if line.strip()][:_MESSAGE_LINES]
    if first.how != "table" or not cause:
        grid.add_row("it says", f"[dim]{escape(chr(10).join(lines))}[/]")
    for number, remedy in enumerate(cause.remedies if cause else ()):
        grid.add_row("mends it" if number == 0 else "or", escape(_remedy(remedy, source)))
    if cause is not None and cause.references:
        grid.add_row("see", f"[dim]{escape(', '.join(cause.references))}[/]")
    return grid


def _where(finding: Finding) -> str:
    if not finding.node:
        return "the model as a whole"
    text = f"node {finding.node!r} ({finding.operator})"
    if finding.top:
        text += f", inside of node {finding.top!r}"
    if finding.input:
        text += f", for its input {finding.input!r}"
    if finding.origin and finding.origin != (finding.node,):
        text += f"; of the original model: {_some(list(finding.origin))}"
    found = {"cut": "it is refused alone too", "bisected": "found by cutting the model"}.get(finding.how)
    return f"{text}  [{found}]" if found else text


def _remedy(remedy: Remedy, source: Path) -> str:
    lines = [remedy.say]
    path = shlex.quote(str(source))
    if remedy.passes or remedy.option.startswith(("--dim", "--shape", "--freeze", "--external")):
        passes = f" --passes '{remedy.passes}'" if remedy.passes else ""
        option = f" {remedy.option}" if remedy.option and not remedy.option.startswith("--bind") else ""
        lines.append(f"    optimize {path}{passes}{option}")
    elif remedy.option.startswith(("--range", "--memory")):
        lines.append(f"    optimize build {path} {remedy.option}")
    if remedy.option.startswith(("--bind", "--reduce", "--timeout", "--plugins")):
        fix = " --fix" if remedy.option.startswith("--bind") else ""
        lines.append(f"    optimize debug {path}{fix} {remedy.option}")
    if remedy.python:
        lines.append(f"    at export:  {remedy.python}")
    if remedy.changes:
        lines.append(f"    changes: {remedy.changes}")
    return "\n".join(lines)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NODES_SHOWN])
    return shown + (f" and {len(names) - _NODES_SHOWN} more" if len(names) > _NODES_SHOWN else "")


def show_mended(console: Console, mended: Mended, output: Path | None, engine: Path | None) -> None:
    """Print what was tried, what was kept, and what is left."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for attempt in mended.attempts:
        if attempt.kept:
            changes = ", ".join(f"{count} × {rule}" for rule, count in list(attempt.changes.items())[:8])
            left = f"{attempt.refused} refusals left" if attempt.refused else "nothing is refused any more"
            grid.add_row("[green]kept[/]", escape(f"{attempt.pipeline}: {left}"))
            grid.add_row("", f"[dim]{escape(changes)}[/]")
            grid.add_row("", f"[dim]{escape(attempt.verdict)}[/]")
            for note in attempt.notes:
                grid.add_row("", escape(note))
        else:
            grid.add_row("[dim]not kept[/]", f"[dim]{escape(f'{attempt.pipeline}: {attempt.problem}')}[/]")
    if output is not None:
        grid.add_row("saved", f"[bold]{escape(str(output))}[/]")
    if engine is not None:
        grid.add_row("engine", f"[bold]{escape(str(engine))}[/]")
    console.print("\n[bold]mending[/]")
    console.print(Padding(grid, (0, 0, 0, 3)))
    if mended.accepted:
        console.print("[green]mended[/]: the target takes the model now")
    elif mended.left is not None:
        left = ", ".join(
            f"{f.node or 'the model'} ({f.cause_id})" for f in mended.left.findings[:_NODES_SHOWN]
        )
        console.print(f"[red]not mended[/]: still refused: {escape(left)}")
