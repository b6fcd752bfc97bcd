"""What `optimize debug` prints: is it refused, where, why, what mends it, and the command."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from onnxlathe.debug.catalogue import Cause, Remedy
from onnxlathe.debug.findings import Diagnosis, Finding
from onnxlathe.debug.fix import Mended

_NODES_SHOWN = 6
_MESSAGE_LINES = 3
_INDENT, _LABEL = 3, 10  # columns before a label, and of it


def show_diagnosis(console: Console, diagnosis: Diagnosis, source: Path, *, advise: bool = True) -> None:
    """Print the answers, in their order, one group for each cause."""
    console.print(_headline(diagnosis, source))
    for note in diagnosis.notes:
        console.print(f"[yellow]note[/]  {escape(note)}")
    for number, (cause, findings) in enumerate(diagnosis.groups(), 1):
        console.print()
        title = cause.title if cause else "a reason that the catalogue does not know"
        name = f"  [dim]({cause.id})[/]" if cause else ""
        console.print(f"[bold]{number}. {escape(title)}[/]{name}")
        _show_group(console, cause, findings, source)
    if diagnosis.unexamined:
        names = _some(diagnosis.unexamined)
        console.print(f"\n[dim]behind them, and not examined:[/] {escape(names)}")
    for cause, nodes in diagnosis.remarks:
        console.print(f"\n[yellow]remark[/]  {escape(cause.title)}: {escape(_some(nodes))}")
        _row(console, "", cause.why)
    if advise and diagnosis.findings and diagnosis.asked:
        path = shlex.quote(str(source))
        console.print(
            f"\n[bold]next[/]  optimize debug {escape(path)} --fix       tries what mends it", soft_wrap=True
        )
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


def _show_group(console: Console, cause: Cause | None, findings: Sequence[Finding], source: Path) -> None:
    first = findings[0]
    _row(console, "where", _where(first))
    for line in first.around:
        _line(console, line, "cyan" if line.startswith("→") else "dim")
    if len(findings) > 1:
        _row(console, "also", _some([f"{f.node} ({f.operator})" for f in findings[1:]]))
    _row(console, "why", cause.why if cause else "see what the target says")
    lines = [line.strip() for line in first.message.splitlines() if line.strip()][:_MESSAGE_LINES]
    if first.how != "table" or not cause:
        _row(console, "it says", "\n".join(lines), "dim")
    for number, remedy in enumerate(cause.remedies if cause else ()):
        _row(console, "mends it" if number == 0 else "or", remedy.say)
        for command in _commands(remedy, source):
            _line(console, f"    {command}")
        if remedy.python:
            _line(console, f"    at export:  {remedy.python}")
        if remedy.changes:
            _row(console, "", f"changes: {remedy.changes}")
    if cause is not None and cause.references:
        _row(console, "see", ", ".join(cause.references), "dim")


def _row(console: Console, label: str, text: str, style: str = "") -> None:
    """A label and a text beside it, wrapped."""
    width = max(40, console.width - _INDENT - _LABEL)
    lines = [w for line in text.splitlines() for w in textwrap.wrap(line, width, break_on_hyphens=False)]
    for number, line in enumerate(lines or [""]):
        head = f"[bold]{escape(f'{label:<{_LABEL}}')}[/]" if number == 0 else " " * _LABEL
        body = f"[{style}]{escape(line)}[/]" if style else escape(line)
        console.print(" " * _INDENT + head + body, soft_wrap=True)


def _line(console: Console, text: str, style: str = "") -> None:
    """A line that must stay one: a node, or a command to be copied."""
    body = f"[{style}]{escape(text)}[/]" if style else escape(text)
    console.print(" " * (_INDENT + _LABEL) + body, soft_wrap=True)


def _where(finding: Finding) -> str:
    if not finding.node:
        return "the model as a whole"
    text = f"node {finding.node!r} ({finding.operator})"
    if finding.given:
        text += ", which has no name of its own in the file"
    if finding.top:
        text += f", inside of node {finding.top!r}"
    if finding.input:
        text += f", for its input {finding.input!r}"
    if finding.origin and finding.origin != (finding.node,):
        text += f"; of the original model: {_some(list(finding.origin))}"
    found = {"cut": "it is refused alone too", "bisected": "found by cutting the model"}.get(finding.how)
    return f"{text}  [{found}]" if found else text


def _commands(remedy: Remedy, source: Path) -> list[str]:
    """The commands that apply a remedy."""
    path, option = shlex.quote(str(source)), remedy.option
    if option.startswith(("--range", "--memory-pool")):
        return [f"optimize build {path} {option}"]
    if option.startswith(("--reduce", "--timeout", "--plugins")):
        return [f"optimize debug {path} {option}"]
    if option.startswith(("--bind", "--split")):
        return [f"optimize debug {path} --fix {option}"]
    if remedy.passes or option:
        passes = f" --passes '{remedy.passes}'" if remedy.passes else ""
        return [f"optimize {path}{passes}{f' {option}' if option else ''}"]
    return []


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NODES_SHOWN])
    return shown + (f" and {len(names) - _NODES_SHOWN} more" if len(names) > _NODES_SHOWN else "")


def show_mended(
    console: Console,
    mended: Mended,
    output: Path | None,
    engine: Path | None,
    outside: Mapping[str, str],
) -> None:
    """Print what was tried, what was kept, and what is left."""
    console.print("\n[bold]mending[/]")
    for attempt in mended.attempts:
        if not attempt.kept:
            _row(console, "not kept", f"{attempt.pipeline}: {attempt.problem}", "dim")
            continue
        plural = "" if attempt.refused == 1 else "s"
        left = f"{attempt.refused} refusal{plural} left" if attempt.refused else "nothing is refused any more"
        changes = ", ".join(f"{count} × {rule}" for rule, count in list(attempt.changes.items())[:8])
        _row(console, "kept", f"{attempt.pipeline}: {left}")
        for line in filter(None, (changes, attempt.verdict)):
            _row(console, "", line, "dim")
        for note in attempt.notes:
            _row(console, "", note)
    if output is not None:
        _row(console, "saved", str(output))
        for place, path in outside.items():
            _row(console, "", f"{path} runs {place} it")
    if engine is not None:
        _row(console, "engine", str(engine))
    if mended.proven:
        console.print("[green]mended[/]: the target takes the model now")
    elif mended.accepted:
        console.print(
            "[yellow]mended, but not proven[/]: the target takes the model now; see what was not compared"
        )
    elif mended.left is not None:
        left = ", ".join(
            f"{f.node or 'the model'} ({f.cause_id})" for f in mended.left.findings[:_NODES_SHOWN]
        )
        console.print(f"[red]not mended[/]: still refused: {escape(left)}")
        for reason in mended.reasons:
            _row(console, "because", reason)
