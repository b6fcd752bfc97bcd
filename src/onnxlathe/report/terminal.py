"""What the user sees at the end of a run: the answer first, one line for each finding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnxlathe.api import Census, Result
from onnxlathe.pipeline import StepRecord
from onnxlathe.verify import Verdict

_STYLE = {"equal": "green", "different": "red", "partially checked": "yellow", "unchecked": "yellow"}
_OPERATORS_SHOWN = 4


def human_size(nbytes: float) -> str:
    """Bytes as people say them, in powers of ten."""
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} GB"


def show_result(
    console: Console, result: Result, *, source: Path, output: Path | None, seconds: float
) -> None:
    """Print the summary of a run."""
    console.print(_steps(result.steps))
    before, after = result.before, result.after
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    if before is not None and after is not None:
        facts.add_row("nodes", f"{before.nodes} → {after.nodes}{_percent(before.nodes, after.nodes)}")
        facts.add_row("operators", f"{len(before.operators)} → {len(after.operators)} kinds: {_most(after)}")
        if before.opset != after.opset:
            facts.add_row("opset", f"{before.opset} → {after.opset}")
    sizes = human_size(source.stat().st_size) if source.exists() else "?"
    if output is not None and output.exists():
        sizes += f" → {human_size(output.stat().st_size)}"
    facts.add_row("file", sizes)
    wrong = result.verdict is not None and result.verdict.status == "different"
    for culprit in result.culprits:
        blamed = "[red]culprit[/]" if wrong and culprit is result.culprits[-1] else "[yellow]left out[/]"
        done = f"; {culprit.remedy}" if culprit.remedy else ""
        facts.add_row(blamed, escape(culprit.sentence() + done))
    facts.add_row("verdict", _verdict(result.verdict))
    if result.verdict is not None:
        for sentence in result.verdict.interface:
            facts.add_row("[yellow]interface[/]", escape(sentence))
        for unchecked in result.verdict.unchecked:
            hint = f" ({unchecked.hint})" if unchecked.hint else ""
            facts.add_row(
                "[yellow]not checked[/]",
                escape(f"{unchecked.output or 'all outputs'}: {unchecked.reason}{hint}"),
            )
    if result.reproducer is not None:
        facts.add_row("reproducer", escape(f"{result.reproducer}/"))
    if output is not None:
        facts.add_row("saved", f"[bold]{escape(str(output))}[/]  in {seconds:.2f} s")
    console.print(facts)


def show_notes(console: Console, result: Result) -> None:
    """Print what was repaired at loading, and what passes had to say."""
    for repair in result.model.repairs:
        console.print(f"[yellow]repaired[/] {escape(repair)}")
    for step in result.steps:
        for note in step.notes:
            console.print(f"[dim]{escape(step.name)}:[/] {escape(note)}")


def _steps(steps: list[StepRecord]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("pass", no_wrap=True)
    table.add_column("nodes", justify="right", no_wrap=True)
    table.add_column("what changed", ratio=1)
    table.add_column("time", justify="right", no_wrap=True)
    for step in _joined(steps):
        if step.skipped:
            table.add_row(escape(step.name), "", f"[dim]not run: {escape(step.skipped)}[/]", "")
            continue
        name = f"[dim]{escape(step.name)}[/]" if step.implied else escape(step.name)
        nodes = (
            f"{step.nodes_before} → {step.nodes_after}"
            if step.nodes_after != step.nodes_before
            else str(step.nodes_after)
        )
        table.add_row(name, nodes, _effect(step), _time(step.seconds))
    return table


def _joined(steps: list[StepRecord]) -> list[StepRecord]:
    """Parts of one group that ran in a row, as one step."""
    joined: list[StepRecord] = []
    for step in steps:
        word = step.name.partition(":")[0]
        last = joined[-1] if joined else None
        # A group that runs again repeats a pass.
        again = last is None or last.name != word or bool({*step.passes} & {*last.passes})
        if not again and step.skipped.startswith("needs opset"):
            continue
        if last is None or again or step.skipped or last.skipped:
            joined.append(replace(step, name=word))
            continue
        last.passes += step.passes
        last.seconds += step.seconds
        last.nodes_after = step.nodes_after
        last.firings = [*last.firings, *step.firings]
        last.changes += step.changes
        last.operators = {
            name: count
            for name in {**last.operators, **step.operators}
            if (count := last.operators.get(name, 0) + step.operators.get(name, 0))
        }
    return joined


def _effect(step: StepRecord) -> str:
    if step.implied:
        return "[dim]needed by the next pass[/]"
    fired = step.fired
    if len(step.passes) > 1 and fired:
        words = [f"{count} {name}" for name, count in fired.items()]
    else:
        gone = sorted(step.operators.items(), key=lambda item: item[1])
        words = [f"{count:+d} {name}" for name, count in gone if count < 0][:6]
        words += [f"{count:+d} {name}" for name, count in gone[::-1] if count > 0][:3]
        if not words and step.changes:
            words = [f"{step.changes} changes"]
    return escape(", ".join(words)) or "[dim]nothing[/]"


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _percent(before: int, after: int) -> str:
    return f" ({100 * (after - before) / before:+.0f} %)" if before and before != after else ""


def _most(census: Census) -> str:
    shown = [f"{count} {name}" for name, count in list(census.operators.items())[:_OPERATORS_SHOWN]]
    return escape(", ".join(shown) + (", …" if len(census.operators) > _OPERATORS_SHOWN else ""))


def _verdict(verdict: Verdict | None) -> str:
    if verdict is None:
        return "[yellow]not verified[/] (--no-verify)"
    status, _, rest = verdict.summary().partition(";")
    word, colon, reason = status.partition(":")
    style = _STYLE[verdict.status]
    return f"[{style}]{escape(word)}[/]{escape(colon + reason)}" + (f";{escape(rest)}" if rest else "")


def show_verdict(console: Console, verdict: Verdict) -> None:
    """Print a comparison output by output."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in ("output", "type", "feed"):
        table.add_column(column)
    for column in ("max abs", "max rel", "mean abs", "cosine"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for c in verdict.comparisons:
        feed = verdict.feeds[c.feed].label if c.feed < len(verdict.feeds) else str(c.feed)
        table.add_row(
            escape(c.output),
            f"{c.dtype}{c.shape}".replace("[", "\\["),
            escape(feed),
            f"{c.max_abs:.2g}",
            f"{c.max_rel:.2g}",
            f"{c.mean_abs:.2g}",
            f"{c.cosine:.6f}",
            "[green]equal[/]" if c.passed else f"[red]{escape(c.reason or 'different')}[/]",
        )
    if verdict.comparisons:
        console.print(table)
    for note in [*verdict.interface, *verdict.notes]:
        console.print(f"[dim]{escape(note)}[/]")
    for unchecked in verdict.unchecked:
        hint = f" ({unchecked.hint})" if unchecked.hint else ""
        console.print(
            f"[yellow]not checked[/] {escape(f'{unchecked.output} {unchecked.reason}{hint}'.strip())}"
        )
    console.print(_verdict(verdict))
