"""Options that several commands share, and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from onnxlathe.api import VerifyOptions
    from onnxlathe.model import Model
    from onnxlathe.pipeline import Registry

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_COMPARISON: Sequence[Decorator] = (
    click.option(
        "--shape", "shapes", multiple=True, metavar="INPUT:SHAPE",
        help="Shape of an input: x:2x3x224x224, x:2,3,224,224 or x:[2,3,224,224].",
    ),
    click.option(
        "--dim", "dims", multiple=True, metavar="NAME=SIZE", help="Size of a symbolic dimension: batch=4."
    ),
    click.option(
        "--data", metavar="PATH",
        help="Your own inputs: .npz, a folder of .npy, Polygraphy JSON, or a script.py[:load_data].",
    ),
    click.option(
        "--seeds", type=click.IntRange(1), default=2, show_default=True,
        help="How many sets of inputs to make up.",
    ),
    click.option("--atol", multiple=True, metavar="[OUTPUT:]NUMBER", help="Absolute tolerance."),
    click.option("--rtol", multiple=True, metavar="[OUTPUT:]NUMBER", help="Relative tolerance."),
    click.option(
        "--timeout", type=click.FloatRange(0, min_open=True), default=300.0, show_default=True,
        help="Seconds that running a model once may take.",
    ),
)  # fmt: skip


def comparison_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the options that say how two models are compared."""
    for decorate in reversed(_COMPARISON):
        command = decorate(command)
    return command


memory_option = click.option(
    "--verify-memory",
    metavar="SIZE",
    help="Memory that the comparison may take (4GiB); larger models are compared in segments. Half of what is "
    "free if left out.",
)

plugin_option = click.option(
    "--plugin",
    "plugins",
    multiple=True,
    metavar="FILE.py|MODULE[:NAME]",
    help="Passes that are not installed.",
)


def bindings_of(model: Model, shapes: Sequence[str], dims: Sequence[str]) -> dict[str, int]:
    """Sizes of symbolic dimensions as `--shape` and `--dim` say."""
    if not shapes and not dims:
        return {}
    from onnxlathe.model.shapes import input_specs, resolve

    return resolve(input_specs(model), shapes=shapes, dims=dims)


def verify_options(
    model: Model,
    *,
    shapes: Sequence[str],
    dims: Sequence[str],
    data: str | None,
    seeds: int,
    atol: Sequence[str],
    rtol: Sequence[str],
    timeout: float,
    notes: list[str],
    verify_memory: str | None = None,
) -> VerifyOptions:
    """How to compare, from the options of the command line. Remarks on the user's data go to `notes`."""
    from onnxlathe.api import VerifyOptions
    from onnxlathe.verify import Tolerances, parse_tolerance

    feeds = None
    if data is not None:
        from onnxlathe.model.data import load_feeds
        from onnxlathe.model.shapes import input_specs

        feeds = list(load_feeds(data, input_specs(model), notes=notes))
    return VerifyOptions(
        feeds=feeds,
        seeds=tuple(range(seeds)),
        bindings=bindings_of(model, shapes, dims),
        tolerances=Tolerances(atol=parse_tolerance(atol, "--atol"), rtol=parse_tolerance(rtol, "--rtol")),
        timeout=timeout,
        memory=_size(verify_memory, "--verify-memory"),
    )


def _size(text: str | None, option: str) -> int | None:
    from onnxlathe.errors import UsageError
    from onnxlathe.pipeline.text import parse_size

    if text is None:
        return None
    try:
        return int(parse_size(text))
    except UsageError as error:
        raise UsageError(f"{option}: {error.message}", hint=error.hint) from None


def with_table(
    options: Mapping[str, Any],
    names: Iterable[str],
    table: Mapping[str, Any],
    title: str,
    **aliases: str,
) -> dict[str, Any]:
    """Options of the current command: from the command line, or else from a recipe's table.

    Args:
        options: what the command was called with, by name.
        names: of the options that the table may have.
        table: options by their names on the command line, without the dashes.
        title: name of the table.
        aliases: what the table calls some of them instead.

    Returns:
        `options`, with those of the table put in.

    Raises:
        UsageError: the table has a name that is no option, or a value that the option does not take.
    """
    from click.core import ParameterSource

    from onnxlathe.errors import UsageError
    from onnxlathe.model.shapes import nearest

    if not table:
        return dict(options)
    context, wanted = click.get_current_context(), set(names)
    known: dict[str, click.Parameter] = {}
    for parameter in context.command.params:
        if parameter.name in wanted:
            known |= {word.lstrip("-"): parameter for word in parameter.opts}
    known |= {alias: known[word] for alias, word in aliases.items()}
    merged = dict(options)
    for key, value in table.items():
        found = known.get(key) or known.get(key.replace("_", "-"))
        if found is None or found.name is None:
            raise UsageError(f"recipe: [{title}] has no option '{key}'", hint=nearest(key, known))
        if context.get_parameter_source(found.name) is ParameterSource.COMMANDLINE:
            continue
        if found.multiple and not isinstance(value, list):
            value = [value]
        try:
            merged[found.name] = found.type_cast_value(context, value)
        except click.BadParameter as error:
            raise UsageError(f"recipe: [{title}] {key}: {error.message}") from None
    return merged


def given(names: Iterable[str]) -> list[str]:
    """Those of the current command's options that its user gave, as the command line spells them."""
    from click.core import ParameterSource

    context, wanted = click.get_current_context(), set(names)
    return [
        max(parameter.opts, key=len)
        for parameter in context.command.params
        if parameter.name in wanted
        and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]


def registry_with(plugins: Sequence[str]) -> Registry:
    """All installed passes and those of `--plugin`."""
    from onnxlathe.cli.output import complain
    from onnxlathe.pipeline import Registry

    registry = Registry.standard()
    for problem in registry.problems:
        complain(problem, "the plugin's passes are not available in this run")
    for plugin in plugins:
        registry.add_plugin(plugin)
    return registry


def check_writable(path: Path, *files: Path, what: str = "the report") -> None:
    """A report (or `what`) that cannot be written is refused before the work rather than after it.

    Args:
        path: where it shall be.
        files: what it may not replace: models, engines.
        what: it, in words.

    Raises:
        LatheError: it cannot be written there.
        UsageError: it would replace one of `files`.
    """
    import os

    from onnxlathe._files import is_special, same_place
    from onnxlathe.errors import LatheError, UsageError

    folder = path.resolve().parent  # a link's target is what is replaced
    if is_special(path):
        return
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        why = "it is a folder" if path.is_dir() else f"'{folder}' is no folder that can be written to"
        raise LatheError(f"cannot write {what} '{path}': {why}", hint="name a file in another folder")
    for file in files:
        if same_place(path, file):
            raise UsageError(f"{what} '{path}' would replace '{file}'", hint="choose another name for it")


def write_json(path: Path, data: Any) -> None:
    """Write a report, all of it or nothing."""
    import msgspec

    from onnxlathe._files import write_whole
    from onnxlathe.errors import LatheError

    text = msgspec.json.format(msgspec.json.encode(data), indent=2)
    try:
        write_whole(path, text + b"\n")
    except OSError as error:
        raise LatheError(f"cannot write the report '{path}': {error.strerror}") from error
