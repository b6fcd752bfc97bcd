"""`optimize passes check PASS`: does a pass keep its word?"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxlathe.cli.options import plugin_option
from onnxlathe.cli.passes import passes_command

if TYPE_CHECKING:
    from rich.console import Console

    from onnxlathe.check import Proof
    from onnxlathe.pipeline import Pipeline
    from onnxlathe.rewrite import Pass


@click.command(short_help="Prove a pass on models made for it.")
@click.argument("passes", nargs=-1, required=True, metavar="PASS...")
@plugin_option
@click.option(
    "--models",
    "folders",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE|FOLDER",
    help="Models to try it on as well.",
)
@click.option(
    "--examples", type=click.IntRange(1), default=200, show_default=True, help="How many models to draw."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Another one draws others."
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds that the pass may take for one small model.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def check_command(
    passes: tuple[str, ...],
    plugins: tuple[str, ...],
    folders: tuple[Path, ...],
    examples: int,
    seed: int,
    timeout: float,
    as_json: bool,
) -> int:
    """Try each PASS on many small models, and look whether it does what a pass must do.

    \b
    optimize passes check gelu
    optimize passes check my_rule --plugin my_passes.py --examples 1000
    optimize passes check 'fold(max_bytes=1KiB)' tidy --models fixtures/

    A rule is given instances of its own pattern: of many ranks, shapes, element types, attributes, constants
    and uses. Any other pass is given random graphs of the operators that it is about. Model and result run
    in ONNX Runtime and in the reference evaluator; what differs is made as small as it can be and printed.
    The pass must also come to rest, change nothing when it is run again, and leave the names and types of
    inputs and outputs alone.

    Exit code 0: all hold; 1: one does not, or never fired; 2: wrong usage.
    """
    from onnxlathe.check import Prover
    from onnxlathe.cli.options import registry_with
    from onnxlathe.cli.output import out, progress
    from onnxlathe.pipeline import plan

    registry = registry_with(plugins)
    subjects = list(dict.fromkeys(_flat(plan(",".join(passes), registry))))
    models = list(_files(folders))
    console = out()
    proofs: list[Proof] = []
    with (
        tempfile.TemporaryDirectory(prefix="onnxlathe-check-") as folder,
        Prover(examples=examples, seed=seed, registry=registry, seconds=timeout) as prover,
    ):
        # Hypothesis would leave its notes in the current folder.
        os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", folder)
        for subject in subjects:
            with progress(quiet=as_json) as say:
                say(f"checking {subject.name}")
                proofs.append(prover.prove(subject, models))
            if not as_json:
                _show(console, proofs[-1])
    if as_json:
        import msgspec

        data = {"schema": 1, "passes": [proof.to_dict() for proof in proofs]}
        click.echo(msgspec.json.format(msgspec.json.encode(data), indent=2).decode())
    return 0 if all(proof.holds for proof in proofs) else 1


def _flat(pipeline: Pipeline) -> Iterator[Pass]:
    from onnxlathe.pipeline import Unit

    for step in pipeline.steps:
        for unit in (step,) if isinstance(step, Unit) else step.steps:
            yield from unit.passes if isinstance(unit, Unit) else ()


def _files(paths: tuple[Path, ...]) -> Iterator[Path]:
    from onnxlathe.errors import UsageError

    for path in paths:
        if path.is_dir():
            found = sorted(path.glob("*.onnx"))
            if not found:
                raise UsageError(
                    f"there is no .onnx file in '{path}'", hint="name the folder that holds them"
                )
            yield from found
        elif path.is_file():
            yield path
        else:
            raise UsageError(f"there is no file or folder '{path}'", hint="check the spelling of --models")


_STYLE = {"holds": "green", "changes nothing": "green", "fails": "red"}


def _show(console: Console, proof: Proof) -> None:
    from rich.markup import escape

    style = _STYLE.get(proof.status, "yellow")
    runs = ", ".join(f"{count} compared in {runtime}" for runtime, count in proof.compared.items())
    facts = f"fired on {proof.fired} of {proof.instances} models" + (f"; {runs}" if runs else "")
    console.print(
        f"[bold cyan]{proof.name}[/] [{style}]{proof.status}[/]  {facts}  [dim]{proof.seconds:.1f} s[/]"
    )
    if proof.unrunnable:
        console.print(f"  [yellow]{proof.unrunnable} results could not be run by any of them[/]")
    if proof.status == "never fired":
        for reason, count in proof.declined.most_common(5):
            console.print(escape(f"  {count} times: {reason}"))
    for note in proof.notes:
        console.print(f"  [dim]{escape(note)}[/]")
    if proof.counterexample is not None:
        console.print()
        for line in proof.counterexample.text().splitlines():
            console.print(escape(f"  {line}"), soft_wrap=True)
        console.print()


class _Passes(click.Group):
    """`optimize passes [NAME]` lists or explains; `check` is a word of its own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("--help", "-h")):
            args = ["show", *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        inner = click.Context(passes_command, info_name=ctx.command_path, max_content_width=100)
        passes_command.format_help(inner, formatter)
        with formatter.section("Commands"):
            formatter.write_dl([("check", check_command.get_short_help_str(90))])


@click.group(cls=_Passes, short_help="List the passes, explain one, or check one.")
def passes_group() -> None:
    """List all passes, explain one, or check one."""


passes_group.add_command(passes_command, "show")
passes_group.add_command(check_command, "check")
