"""The program: `optimize MODEL` is the main command, its siblings are named."""

from __future__ import annotations

from typing import Any

import click

from onnxlathe import __version__
from onnxlathe.cli.build import build_command
from onnxlathe.cli.check import passes_group
from onnxlathe.cli.debug import debug_command
from onnxlathe.cli.diff import diff_command
from onnxlathe.cli.inspect import inspect_command
from onnxlathe.cli.new_pass import new_pass_command
from onnxlathe.cli.optimize import WORDS, optimize_command
from onnxlathe.cli.precision import precision_command
from onnxlathe.cli.verify import verify_command


class _App(click.Group):
    """A group whose first word may be a model instead of a command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Anything but a sibling's name is for the main command; a model called `passes` is ./passes.
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h", "--version"):
            ctx.meta[WORDS] = args
            args = ["run", *args]
        elif not args:
            args = ["--help"]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        main = self.commands["run"]
        inner = click.Context(main, info_name="optimize", max_content_width=100)
        main.format_help(inner, formatter)
        rows = [(n, c.get_short_help_str(90)) for n, c in self.commands.items() if n != "run"]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=_App, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="onnxlathe")
def app(**_: Any) -> None:
    """Optimize ONNX models for TensorRT with passes that are proven to keep the function."""


app.add_command(optimize_command, "run")
app.add_command(passes_group, "passes")
app.add_command(new_pass_command, "new-pass")
app.add_command(diff_command, "diff")
app.add_command(build_command, "build")
app.add_command(precision_command, "precision")
app.add_command(verify_command, "verify")
app.add_command(inspect_command, "inspect")
app.add_command(debug_command, "debug")
