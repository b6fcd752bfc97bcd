"""`optimize precision MODEL`: who would compute in which type, and the search for what must not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxlathe.cli.options import check_writable, comparison_options, given, plugin_option
from onnxlathe.cli.precision_options import precision_options

if TYPE_CHECKING:
    from onnxlathe.pipeline import Recipe
    from onnxlathe.precision.search import SearchResult


_SEARCHING = ("output", "error", "wider", "max_trials", "fresh",
              "shapes", "dims", "data", "seeds", "atol", "rtol", "timeout")  # fmt: skip


@click.command(short_help="Find out which nodes must stay in float32.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--search", is_flag=True, help="Find the nodes to keep, and write them to a file.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Where the search writes constraints; MODEL.precision.toml if left out.",
)
@click.option("--passes", metavar="PIPELINE", help="What runs before; as with --precision if left out.")
@click.option(
    "--recipe",
    "recipe_path",
    type=click.Path(path_type=Path),
    help="TOML file with a pipeline and options.",
)
@click.option(
    "--error",
    type=click.FloatRange(0, min_open=True),
    metavar="NUMBER",
    help="Largest relative error of an output; the verification's tolerances if left out.",
)
@click.option("--wider", type=click.Choice(["bf16"]), help="Try this for the nodes found, before fp32.")
@click.option(
    "--max-trials",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    help="How many mixed models to run.",
)
@click.option("--fresh", is_flag=True, help="Forget the trials of an interrupted search.")
@precision_options
@plugin_option
@comparison_options
@click.option("--report", type=click.Path(path_type=Path), help="Write what was found as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def precision_command(**options: Any) -> int:
    """Show which nodes of MODEL would be lowered and which not, and why.

    \b
    optimize precision model.onnx --search --precision fp16 --data real_inputs.npz
    optimize model.onnx --precision fp16 --constraints model.precision.toml

    With --search, the model runs in both types; the smallest set of nodes that must stay in float32 for the
    outputs to be right goes to a file. What was tried is kept beside it until the search is done, so that
    it can be interrupted.

    Exit code 0: done; 1: no set was found; 2: wrong usage or bad model.
    """
    from onnxlathe.cli.precision_options import AFTER, before, with_recipe
    from onnxlathe.errors import UsageError
    from onnxlathe.pipeline import Recipe, load_recipe

    path = options["recipe_path"]
    recipe = load_recipe(path) if path is not None else Recipe()
    options = with_recipe(options, recipe)
    for name in ("shapes", "dims", "atol", "rtol"):
        options[name] = options[name] or getattr(recipe, name)
    options["plugins"] = [*recipe.plugins, *options["plugins"]]
    passes = options["passes"] or recipe.passes
    first = before(passes)
    options["passes"], options["after"] = (passes, "") if first is None else (first, AFTER)
    if not options["search"] and (searching := given(_SEARCHING)):
        raise UsageError(f"{searching[0]} is about the search", hint="ask for it: --search")
    if options["report"] is not None:
        check_writable(options["report"], options["model"])
    return _search(options, recipe) if options["search"] else _show(options, recipe)


def _show(options: dict[str, Any], recipe: Recipe) -> int:
    from rich.markup import escape

    from onnxlathe.api import optimize
    from onnxlathe.cli.options import registry_with, write_json
    from onnxlathe.cli.output import out, progress
    from onnxlathe.cli.precision_options import is_asked, precision_item
    from onnxlathe.model import load

    notes: list[str] = []
    if not is_asked(options):
        options["precision"] = "fp16"
    item = precision_item(options, notes)
    registry = registry_with(options["plugins"])
    with progress(quiet=options["quiet"]) as say:
        result = optimize(
            load(options["model"]),
            f"{options['passes']},{item}",
            verify=False,
            registry=registry,
            named=recipe.pipelines,
            before_step=say,
        )
    console = out(quiet=options["quiet"])
    found = [*notes, *result.steps[-1].notes]
    for note in found:
        console.print(escape(note))
    if options["report"] is not None:
        write_json(options["report"], {"schema": 1, "pipeline": result.pipeline, "notes": found})
    return 0


def _search(options: dict[str, Any], recipe: Recipe) -> int:
    from onnxlathe.api import optimize
    from onnxlathe.cli.options import registry_with, verify_options
    from onnxlathe.cli.output import complain, progress
    from onnxlathe.cli.precision_options import keep_words
    from onnxlathe.errors import VerificationError
    from onnxlathe.model import load
    from onnxlathe.precision import Constraints, load_constraints, parse_keep, parse_type, type_name
    from onnxlathe.precision.constraints import dump_constraints
    from onnxlathe.precision.search import Search, SearchOptions
    from onnxlathe.verify import Verifier

    source: Path = options["model"]
    notes: list[str] = []
    target = options["output"] or source.with_name(f"{source.stem}.precision.toml")
    check_writable(
        target, source, *([options["report"]] if options["report"] else []), what="the constraints"
    )
    given = load_constraints(options["constraints"]) if options["constraints"] else Constraints()
    words = keep_words(options, notes)
    how = SearchOptions(
        type=type_name(parse_type(options["precision"] or given.type or "fp16", "--precision")),
        base=(*given.keep, *(c for word in words for c in parse_keep(word))),
        keep_io_types=options["keep_io_types"],
        protect=not options["no_protect"],
        error=options["error"],
        wider=type_name(parse_type(options["wider"])) if options["wider"] else "",
        max_trials=options["max_trials"],
        after=options["after"],
    )
    registry = registry_with(options["plugins"])
    tried: list[str] = []
    with progress(quiet=options["quiet"]) as say:
        say(f"loading {source.name}")
        model = load(source)
        names = ("shapes", "dims", "data", "seeds", "atol", "rtol", "timeout")
        verify = verify_options(model, **{n: options[n] for n in names}, notes=notes)
        state = target.with_name(target.name + ".state")
        if options["fresh"]:
            state.unlink(missing_ok=True)
        optimize(
            model,
            f"{options['passes']},shapes",
            verify=False,
            registry=registry,
            named=recipe.pipelines,
            before_step=say,
        )

        def tell(sentence: str) -> None:
            tried.append(sentence)
            say(sentence)

        with Verifier(
            source,
            feeds=verify.feeds,
            seeds=verify.seeds,
            bindings=verify.bindings,
            tolerances=verify.tolerances,
            timeout=verify.timeout,
        ) as verifier:
            search = Search(
                model, verifier, how, registry, state=state, identity=_identity(source, options), say=tell
            )
            try:
                result = search.run()
            except VerificationError as error:
                complain(error.message, error.hint)
                return error.exit_code
            finally:
                search.close()
        result.constraints.search["passes"] = options["passes"]
        dump_constraints(result.constraints, target)
        state.unlink(missing_ok=True)
    _tell(result, tried, notes, target, options)
    return 0


def _identity(source: Path, options: dict[str, Any]) -> str:
    """What the remembered trials belong to: the model, and every option that trials depend on."""
    import hashlib
    import json

    state = hashlib.sha256()
    with source.open("rb") as file:
        while chunk := file.read(1 << 20):
            state.update(chunk)
    ignored = (
        "model",
        "output",
        "max_trials",
        "fresh",
        "report",
        "quiet",
        "search",
        "timeout",
        "recipe_path",
    )
    chosen = {k: str(v) for k, v in sorted(options.items()) if k not in ignored}
    state.update(json.dumps(chosen).encode())
    for name in ("data", "constraints"):
        path = Path(options[name]) if options[name] else None
        if path is not None and path.is_file():
            state.update(path.read_bytes())
    return state.hexdigest()


def _tell(
    result: SearchResult, tried: list[str], notes: list[str], target: Path, options: dict[str, Any]
) -> None:
    from rich.markup import escape

    from onnxlathe.cli.options import write_json
    from onnxlathe.cli.output import out

    if options["report"] is not None:
        from dataclasses import asdict

        import msgspec

        write_json(
            options["report"],
            {
                "schema": 1,
                "constraints": msgspec.to_builtins(result.constraints),
                "ranking": [{"node": e.name, "reason": e.reason, **e.statistic()} for e in result.ranking],
                "before": {**asdict(result.before), "error": str(result.before.error)},
                "after": {**asdict(result.after), "error": str(result.after.error)},
                "tried": tried,
                "remarks": result.remarks,
            },
        )
    console = out(quiet=options["quiet"])
    for sentence in (*notes, *tried):
        console.print(f"[dim]{escape(sentence)}[/]")
    if not result.after.kept:
        console.print("nothing needs to be kept: the tolerance is met as it is")
    for constraint in result.constraints.keep:
        if constraint.node in result.after.kept:
            operator = constraint.statistic.get("operator", "")
            console.print(escape(f"{constraint.type}  {constraint.node} ({operator}): {constraint.reason}"))
    for remark in result.remarks:
        console.print(escape(f"partially checked: {remark}"))
    if not result.complete:
        console.print("not shown to be the smallest set: --max-trials was reached")
    resumed = f", {result.resumed} of them remembered" if result.resumed else ""
    console.print(f"tried   {result.trials} mixed models{resumed}")
    console.print(f"saved   {escape(str(target))}")
