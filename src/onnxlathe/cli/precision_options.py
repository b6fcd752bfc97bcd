"""The options of mixed precision, for `optimize` and `optimize precision`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from onnxlathe.pipeline import Recipe

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_WORDS = {
    "layer_precisions": "--layer-precisions",
    "layer_output_types": "--layerOutputTypes",
    "tensor_dtypes": "--tensor-dtypes",
}

_PRECISION: Sequence[Decorator] = (
    click.option(
        "--precision", "precision", metavar="TYPE", help="Compute in fp16 or bf16 where that is safe enough."
    ),
    click.option(
        "--keep", multiple=True, metavar="[TYPE:]PATTERN[,…]",
        help="Nodes by name, operator, original name or value, or FIRST..LAST: fp32:'*LayerNorm*,Softmax'.",
    ),
    click.option("--constraints", metavar="FILE", help="The same from a file, as --search writes it."),
    click.option("--keep-io-types", is_flag=True, help="Inputs and outputs keep their types."),
    click.option("--no-protect", is_flag=True, help="Lower also what is known to lose too much."),
    click.option(
        "--layer-precisions", "--layerPrecisions", "layer_precisions", multiple=True, metavar="SPEC",
        help="As trtexec and Polygraphy spelled --keep: conv1:fp16,*:fp32.",
    ),
    click.option(
        "--layer-output-types", "--layerOutputTypes", "layer_output_types", multiple=True, metavar="SPEC",
        help="The same: in a typed graph a node gives the type that it computes in.",
    ),
    click.option(
        "--tensor-dtypes", "tensor_dtypes", multiple=True, metavar="SPEC",
        help="Types of inputs and outputs, as Polygraphy spells them: image:float16.",
    ),
)  # fmt: skip


def precision_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the options that say who computes in which type."""
    for decorate in reversed(_PRECISION):
        command = decorate(command)
    return command


OPTIONS = ("precision", "keep", "constraints", "keep_io_types", "no_protect", *_WORDS)
"""Names of the options above; a recipe's table `[precision]` takes the same."""


def with_recipe(options: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The options of a command, with those that only a recipe has.

    Raises:
        UsageError: the recipe has a name that is no option, or a value that the option does not take.
    """
    from onnxlathe.cli.options import with_table

    return with_table(options, OPTIONS, recipe.precision, "precision", type="precision")


def is_asked(options: Mapping[str, Any]) -> bool:
    """Whether any option asks for mixed precision."""
    names = ("precision", "keep", "constraints", *_WORDS)
    return any(options[name] for name in names)


def precision_item(options: Mapping[str, Any], notes: list[str]) -> str:
    """The options as an element of the pipeline: `precision(type=fp16,…)`; empty where nothing is asked for.

    Args:
        options: of the command line, by name.
        notes: gets remarks on specifications for older TensorRT.

    Raises:
        UsageError: an option cannot be understood, or means nothing without `--precision`.
    """
    from onnxlathe.errors import UsageError

    if not is_asked(options):
        for name in ("keep_io_types", "no_protect"):
            if options[name]:
                raise UsageError(
                    f"--{name.replace('_', '-')} is about mixed precision",
                    hint="ask for it: --precision fp16",
                )
        return ""
    from onnxlathe.pipeline import Item
    from onnxlathe.precision import load_constraints, parse_type, type_name

    chosen: dict[str, Any] = {}
    if options["precision"]:
        chosen["type"] = type_name(parse_type(options["precision"], "--precision"))
    words = keep_words(options, notes)
    if words:
        chosen["keep"] = tuple(words)
    if options["constraints"]:
        load_constraints(options["constraints"])  # complained of before the work
        chosen["constraints"] = options["constraints"]
    if options["keep_io_types"]:
        chosen["keep_io_types"] = True
    if options["no_protect"]:
        chosen["protect"] = False
    return str(Item("precision", chosen))


AFTER = "attention,fuse,tidy"
"""What runs after mixed precision; TensorRT has kernels for Attention in half precision."""


def before(passes: str) -> str | None:
    """What runs before mixed precision where this preset is asked for; `None` for another pipeline.

    Newer operators (RMSNormalization, Gelu) keep float32 inside of themselves.
    """
    from onnxlathe.pipeline.plan import UP_TO_ATTENTION

    return {"default": UP_TO_ATTENTION, "ort": "ort"}.get(passes)


def around(lowering: str, passes: str = "default") -> str:
    """The pipeline for mixed precision; a pipeline that somebody wrote is not added to after it."""
    first = before(passes)
    return f"{passes},{lowering}" if first is None else f"{first},{lowering},{AFTER}"


def keep_words(options: Mapping[str, Any], notes: list[str]) -> list[str]:
    """The constraints of the command line, specifications for older TensorRT included, as `--keep` has them."""
    from onnxlathe.precision import parse_keep, parse_layer_precisions, parse_tensor_dtypes

    for word in options["keep"]:
        parse_keep(word)
    found = []
    for name, option in _WORDS.items():
        parse = parse_tensor_dtypes if name == "tensor_dtypes" else parse_layer_precisions
        found += [str(c) for c in parse(options[name], option, notes)]
    return [*found, *options["keep"]]
