"""`optimize MODEL`: the main job."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxlathe.cli.build_options import engine_options
from onnxlathe.cli.options import check_writable, comparison_options, memory_option, plugin_option
from onnxlathe.cli.precision_options import precision_options
from onnxlathe.defaults import PASS_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxlathe.api import Result, VerifyOptions
    from onnxlathe.model import Model
    from onnxlathe.pipeline import Recipe, Registry, StepRecord
    from onnxlathe.target.engine import Engine, EngineRequest

# A model that this program wrote says so; its default output may be replaced without asking.
PRODUCED = "onnxlathe.pipeline"

# Where the program keeps the words of the command line, for runs of their own for each of several models.
WORDS = "onnxlathe.words"


@click.command(short_help="Optimize a model.")
@click.argument("models", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="MODEL…")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Where to save; MODEL.opt.onnx if left out."
)
@click.option("--in-place", is_flag=True, help="Save over MODEL.")
@click.option(
    "-j", "--jobs", type=click.IntRange(1), default=1, metavar="N", help="Of several models, N at a time."
)
@click.option("--again", is_flag=True, help="Of several models, also those that are done.")
@click.option(
    "--passes", metavar="PIPELINE", help="What to run: shapes,fold,fuse(-conv_bn),fixpoint(tidy) or a preset."
)
@click.option(
    "--recipe", "recipe_path", type=click.Path(path_type=Path), help="TOML file with a pipeline and options."
)
@plugin_option
@click.option("--disable", multiple=True, metavar="NAME", help="Leave out a pass or rule wherever it occurs.")
@precision_options
@comparison_options
@memory_option
@click.option("--freeze", is_flag=True, help="Write the sizes of --shape and --dim into the model.")
@click.option("--no-verify", is_flag=True, help="Do not compare the result with the original.")
@click.option(
    "--on-mismatch",
    type=click.Choice(["fail", "skip"]),
    help="A wrong pass ends the run (fail), or is left out (skip).",
)
@click.option(
    "--on-error",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="The same for a plugin's pass that raises.",
)
@click.option(
    "--pass-timeout",
    type=click.FloatRange(0),
    default=PASS_TIMEOUT,
    show_default=True,
    help="Seconds that a plugin's pass may take; 0 for no limit.",
)
@click.option(
    "--external-data/--single-file",
    default=None,
    help="Weights beside the model, or in it. As MODEL has them if left out.",
)
@click.option("--engine", type=click.Path(path_type=Path), help="Build a TensorRT engine of the result, too.")
@engine_options
@click.option(
    "--build-timeout",
    type=click.FloatRange(0, min_open=True),
    default=1800.0,
    show_default=True,
    help="Seconds that building the engine may take.",
)
@click.option("--report", type=click.Path(path_type=Path), help="Write everything as JSON.")
@click.option(
    "--stats",
    type=click.Choice(["table", "json", "none"]),
    default="table",
    show_default=True,
    help="How to show what the passes did.",
)
@click.option(
    "--print-after",
    multiple=True,
    metavar="PASS",
    help="Print the graph after a pass (or `all`, or `changed`).",
)
@click.option(
    "--dump-after", multiple=True, metavar="PASS", help="Save the model after a pass, beside the output."
)
@click.option(
    "--break-after", multiple=True, metavar="PASS", help="Open a Python shell with the model after a pass."
)
@click.option("--paranoid", is_flag=True, help="Check the graph's invariants after every pass.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("-v", "--verbose", is_flag=True, help="Print repairs and remarks of the passes as well.")
@click.pass_context
def optimize_command(
    context: click.Context, /, models: tuple[Path, ...], jobs: int, again: bool, **options: Any
) -> int:
    """Optimize MODEL, prove that it computes the same, and save it.

    \b
    optimize model.onnx --passes fold,fuse
    optimize model.onnx -o small.onnx --dim batch=4 --report report.json
    optimize model.onnx --engine model.engine --range batch=1:8:32
    optimize *.onnx -j 2 -o out/

    Exit code 0: done and nothing found to differ; 1: verification failed; 2: wrong usage or bad model.
    """
    if len(models) == 1:
        return _Job({**options, "model": models[0]}).run()
    from onnxlathe.cli.batch import run_batch
    from onnxlathe.errors import UsageError

    if options["engine"] is not None and not options["engine"].is_dir():
        raise UsageError(
            "several models need a folder for their engines", hint="give one that exists, as in --engine out/"
        )
    if options["build_log"] is not None:
        raise UsageError("--build-log is about one model", hint="optimize them in separate calls")
    if options["report"] is not None:
        raise UsageError(
            "--report is about one model", hint="manifest.json beside the results has their facts"
        )
    words = _without(context.meta.get(WORDS, []), [str(m) for m in models])
    # An engine is called like its model without the suffix.
    names = [m.stem for m in models] if options["engine"] is not None else [m.name for m in models]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UsageError(f"two models are called '{twice[0]}'", hint="optimize them in separate calls")
    return run_batch(models, options["output"], words, jobs=jobs, again=again, quiet=options["quiet"])


def _without(words: list[str], models: list[str]) -> list[str]:
    """The words of the command line that each model of a batch is run with."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in ("-o", "--output", "-j", "--jobs", "--report"):
            next(rest, None)
        elif (
            not word.startswith(("--output=", "--jobs=", "--report=", "-j", "--again")) and word not in models
        ):
            kept.append(word)
    return kept


class _Job:
    """One run of the main command; its options by name."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.source: Path = options["model"]
        self.notes: list[str] = []
        self.dumped: list[Path] = []
        self.frozen: dict[str, int] = {}
        self.engine: Engine | None = None
        self.started = time.perf_counter()

    def run(self) -> int:
        from onnxlathe.api import Mismatch, optimize
        from onnxlathe.cli.options import registry_with
        from onnxlathe.cli.output import complain, progress
        from onnxlathe.errors import LatheError, UsageError
        from onnxlathe.model import load, save

        options = self.options
        recipe = self.recipe()
        if options["no_verify"] and (options["data"] or options["atol"] or options["rtol"]):
            raise UsageError("--no-verify excludes --data, --atol and --rtol", hint="leave one of them out")
        if options["passes"] is not None and not options["passes"].strip():
            raise UsageError("--passes is empty", hint="leave it out for the default pipeline")
        if options["output"] is not None and str(options["output"]) == ".":
            raise UsageError("--output is the current folder", hint="name a file, as in -o small.onnx")
        registry = registry_with([*recipe.plugins, *options["plugins"]])
        self.check_names(registry)
        with progress(quiet=options["quiet"]) as say:
            say(f"loading {self.source.name}")
            model = load(self.source)
            output = self.output(model)
            frozen = self.freeze(model)
            request = self.engine_request(recipe, output)
            if request is not None:
                from onnxlathe.target.profiles import make_profiles

                make_profiles(model, request.wishes)  # complained of before the work
            if options["report"] is not None:
                check_writable(options["report"], self.source, output, *(request.files if request else ()))
            verify = False if options["no_verify"] else self.verify_options(model)
            try:
                result = optimize(
                    model,
                    self.pipeline(recipe),
                    verify=verify,
                    # The file is the truth, but for sizes that the user had written into the model.
                    original=None if frozen else self.source,
                    on_mismatch=options["on_mismatch"] or recipe.on_mismatch,  # type: ignore[arg-type]
                    registry=registry,
                    named=recipe.pipelines,
                    disabled=options["disable"],
                    paranoid=options["paranoid"],
                    on_error=options["on_error"],
                    pass_timeout=options["pass_timeout"],
                    reproducer=Path(f"onnxlathe-repro-{self.source.stem}"),
                    plugins=[*recipe.plugins, *options["plugins"]],
                    before_step=say,
                    after_step=self.after_step,
                    progress=say,
                )
            except Mismatch as mismatch:
                self.finish(mismatch.result, None)
                complain(mismatch.message, mismatch.hint)
                return mismatch.exit_code
            say(f"saving {output.name}")
            result.model.ir.metadata_props[PRODUCED] = result.pipeline
            save(result.model, output, in_place=options["in_place"], external=options["external_data"])
            if request is not None:
                try:
                    self.build(request, result, output, say)
                except LatheError:
                    self.finish(result, output)  # the model is there, whatever became of the engine
                    raise
        self.finish(result, output)
        return 0

    def check_names(self, registry: Registry) -> None:
        """A name that no pass has would be ignored silently."""
        from onnxlathe.errors import UsageError
        from onnxlathe.pipeline import suggestion

        known = {"--disable": [e.name for e in registry.all()]}
        known["--print-after"] = [*registry.names(), "all", "changed"]
        known["--dump-after"] = [*registry.names(), "all"]
        for option, names in known.items():
            for name in self.options[option[2:].replace("-", "_")]:
                if name not in names:
                    raise UsageError(f"{option} {name}: there is no such pass", hint=suggestion(name, names))

    def recipe(self) -> Recipe:
        from onnxlathe.cli.precision_options import with_recipe
        from onnxlathe.pipeline import Recipe, load_recipe

        path = self.options["recipe_path"]
        recipe = load_recipe(path) if path is not None else Recipe()
        for name in ("shapes", "dims", "atol", "rtol"):
            self.options[name] = self.options[name] or getattr(recipe, name)
        self.options["freeze"] = self.options["freeze"] or recipe.freeze
        self.options = with_recipe(self.options, recipe)
        return recipe

    def output(self, model: Model) -> Path:
        """Where to save; decided before the work, so that a refusal costs nothing."""
        from onnxlathe.errors import LatheError, UsageError

        chosen: Path | None = self.options["output"]
        if self.options["in_place"]:
            if chosen is not None:
                raise UsageError("--in-place and --output exclude each other", hint="leave one of them out")
            return self.source
        if chosen is not None:
            if not chosen.parent.is_dir():
                raise LatheError(f"there is no folder '{chosen.parent}'", hint="create it, or save elsewhere")
            if chosen.is_dir():
                return chosen / self.source.name
            if chosen.exists() and chosen.samefile(self.source):
                raise UsageError(
                    f"'{chosen}' is the model itself", hint="use --in-place to save over it, or another name"
                )
            return chosen
        default = self.source.with_name(f"{self.source.stem}.opt.onnx")
        if default.exists() and not _is_ours(default):
            raise UsageError(
                f"'{default}' exists and was not written by this program",
                hint="say where to save with -o, which overwrites",
            )
        return default

    def freeze(self, model: Model) -> bool:
        if not self.options["freeze"]:
            return False
        from onnxlathe.cli.options import bindings_of
        from onnxlathe.errors import UsageError
        from onnxlathe.model.shapes import freeze

        bindings = bindings_of(model, self.options["shapes"], self.options["dims"])
        if not bindings:
            raise UsageError("--freeze has nothing to freeze", hint="give sizes with --shape or --dim")
        freeze(model, bindings)
        self.frozen = bindings
        self.options["shapes"], self.options["dims"] = (), ()
        return True

    def pipeline(self, recipe: Recipe) -> str:
        """The pipeline as text."""
        from onnxlathe.cli.precision_options import around, precision_item

        text: str = self.options["passes"] or recipe.passes
        lowering = precision_item(self.options, self.notes)
        return around(lowering, text) if lowering else text

    def engine_request(self, recipe: Recipe, output: Path) -> EngineRequest | None:
        """What engine to build; everything that can be refused is refused before the work."""
        from onnxlathe.cli.build_options import OPTIONS, engine_request, with_recipe
        from onnxlathe.cli.options import given
        from onnxlathe.errors import UsageError

        path = self.options["engine"]
        if path is None:
            chosen = given(OPTIONS)
            if chosen:
                raise UsageError(f"{chosen[0]} is about an engine", hint="say where to put it: --engine FILE")
            return None
        from onnxlathe.target.build import check_engine_path

        if path.is_dir():
            path = path / f"{self.source.stem}.engine"
        check_engine_path(path, self.source, output)
        options = with_recipe(self.options, recipe)
        return engine_request(
            path, options, self.source, output, timeout=self.options["build_timeout"], fixed=self.frozen
        )

    def build(self, request: EngineRequest, result: Result, output: Path, say: Callable[[str], None]) -> None:
        """Build the engine of what was saved."""
        from onnxlathe.target.engine import brief, make_engine

        verify = None if self.options["no_verify"] else self.verify_options(result.model)
        self.engine = make_engine(
            output,
            request,
            original=None if self.options["in_place"] else self.source,
            verify=verify,
            facts={"pipeline": result.pipeline, "verdict": brief(result.verdict)},
            progress=say,
        )

    def verify_options(self, model: Model) -> VerifyOptions:
        from onnxlathe.cli.options import verify_options

        names = ("shapes", "dims", "data", "seeds", "atol", "rtol", "timeout", "verify_memory")
        return verify_options(model, **{n: self.options[n] for n in names}, notes=self.notes)

    def after_step(self, record: StepRecord, model: Model) -> None:
        group = record.name.partition(":")[0]
        names = {*record.passes, *({group} if record.ends else ())}  # a group is over with its last part
        if record.skipped:
            names -= {*record.passes} - {group}
        wanted = self.options["print_after"]
        if names & set(wanted) or "all" in wanted or ("changed" in wanted and record.changes):
            from onnxlathe.report.graph_text import model_text

            click.echo(f"# after {group if group in wanted else record.name}")
            click.echo(model_text(model))
        if names & {*self.options["dump_after"]} or "all" in self.options["dump_after"]:
            from onnxlathe.model import save

            base = self.options["output"] or self.source
            number = len(self.dumped) + 1
            path = base.with_name(f"{base.stem}.{number:02d}-{record.name.replace(':', '-')}.onnx")
            save(model, path)
            self.dumped.append(path)
        if names & {*self.options["break_after"]} or "all" in self.options["break_after"]:
            from onnxlathe.cli.shell import open_shell

            open_shell(record, model)

    def finish(self, result: Result, output: Path | None) -> None:
        """Tell the user, and write the report."""
        from onnxlathe.cli.output import out

        seconds = time.perf_counter() - self.started
        if self.options["report"] is not None:
            self.write_report(result, output, seconds)
        quiet = self.options["quiet"]
        if self.options["stats"] == "json":
            import msgspec

            steps = [step.to_dict() for step in result.steps]
            click.echo(msgspec.json.format(msgspec.json.encode(steps), indent=2).decode())
            return
        if quiet or self.options["stats"] == "none":
            return
        from rich.markup import escape

        from onnxlathe.report.terminal import show_notes, show_result

        console = out()
        show_result(console, result, source=self.source, output=output, seconds=seconds)
        if self.engine is not None:
            from onnxlathe.cli.engine_text import show_engine

            show_engine(console, self.engine)
        for path in self.dumped:
            console.print(f"dumped  {escape(str(path))}")
        for note in self.notes:
            console.print(f"[dim]{escape(note)}[/]")
        if result.model.repairs or self.options["verbose"]:
            show_notes(console, result)

    def write_report(self, result: Result, output: Path | None, seconds: float) -> None:
        from onnxlathe import __version__
        from onnxlathe.cli.options import write_json

        def file(path: Path | None) -> dict[str, Any] | None:
            if path is None or not path.exists():
                return None
            return {"path": str(path), "bytes": path.stat().st_size}

        write_json(
            self.options["report"],
            {
                "schema": 1,
                "version": __version__,
                "input": file(self.source),
                "output": file(output),
                "seconds": round(seconds, 3),
                **result.to_dict(),
                "engine": self.engine.to_dict() if self.engine else None,
            },
        )


def _is_ours(path: Path) -> bool:
    from onnxlathe.errors import LatheError
    from onnxlathe.model import load

    try:
        return PRODUCED in load(path).ir.metadata_props
    except LatheError:
        return False
