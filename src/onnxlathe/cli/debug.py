"""`optimize debug MODEL`: why TensorRT refuses a model, the smallest model that shows it, and what mends it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxlathe.cli.options import comparison_options, plugin_option

if TYPE_CHECKING:
    import numpy as np

    from onnxlathe.api import VerifyOptions
    from onnxlathe.debug import Diagnosis, Oracle, Reduction, Workpiece
    from onnxlathe.debug.outside import Parts
    from onnxlathe.model import Model

Say = Callable[[str], None]


@click.command(short_help="Say why TensorRT refuses a model, reduce it, mend it.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", metavar="NAME", help="Whom to ask: rtx, tensorrt, or none for the static table.")
@click.option("--parse-only", is_flag=True, help="Ask the parser, and not the builder.")
@click.option("--reduce", "reducing", is_flag=True, help="Write the smallest model that shows the fault.")
@click.option("--fix", "fixing", is_flag=True, help="Try what could mend the model; save what proves right.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Where to: the folder of --reduce (MODEL.reduced), the model of --fix (MODEL.fixed.onnx).",
)
@click.option("--engine", type=click.Path(path_type=Path), help="With --fix: save the engine, too.")
@click.option("--cause", metavar="ID", help="With --reduce: which of several causes; the first if left out.")
@click.option("--check", metavar="COMMAND", help="Reduce for a command that fails; {} stands for the model.")
@click.option("--fail-regex", default="", metavar="REGEX", help="With --check: what its output says then.")
@click.option("--fail-code", "fail_codes", type=int, multiple=True, help="With --check: its exit code then.")
@click.option(
    "--passes", metavar="PIPELINE", help="Reduce for passes that make the model compute other numbers."
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Find where another model of the same interface computes other numbers.",
)
@click.option(
    "--io-types",
    type=click.Choice(["keep", "widen"]),
    default="keep",
    show_default=True,
    help="With --fix: keep types of inputs and outputs, or widen those that TensorRT does not have.",
)
@click.option(
    "--pad",
    metavar="ROWS",
    default="max",
    show_default=True,
    help="With --fix: rows of outputs that have as many as data say; `max` for the most, `none` to leave them.",
)
@click.option(
    "--split",
    is_flag=True,
    help="With --fix: leave to the caller what no engine can hold, as models before and after it.",
)
@click.option("--bind", "bound", multiple=True, metavar="INPUT=[VALUES]", help="Make an input a constant.")
@click.option("--plugins", "libraries", multiple=True, type=click.Path(), help="TensorRT plugin library.")
@plugin_option
@click.option("--memory", metavar="SIZE", help="Memory that TensorRT may take: 8GiB. 4/5 of what is free.")
@click.option(
    "--budget",
    type=click.FloatRange(0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds for the whole search.",
)
@comparison_options
@click.option("--report", type=click.Path(path_type=Path), help="Write everything as JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def debug_command(**options: Any) -> int:
    """Say whether TensorRT refuses MODEL, where, why, and what mends it.

    \b
    optimize debug model.onnx                     every refused node, by cause
    optimize debug model.onnx --reduce            the smallest model that shows it, with a script
    optimize debug model.onnx --fix               a model that is accepted, proven to be equal
    optimize debug model.onnx --check 'polygraphy run {} --trt'

    Exit code 0: not refused, or mended, or reduced; 1: refused; 2: wrong usage or bad model.
    """  # fmt: skip
    return _Job(options).run()


class _Job:
    """One run of the command; its options by name."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.source: Path = options["model"]
        self.facts: dict[str, Any] = {}
        self.notes: list[str] = []

    def run(self) -> int:
        from onnxlathe.cli.debug_options import consistent
        from onnxlathe.cli.output import progress

        options = self.options
        consistent(options)
        with progress(quiet=options["quiet"] or options["as_json"]) as say:
            say(f"loading {self.source.name}")
            if options["against"]:
                code = self._against(say)
            elif options["check"] or options["passes"]:
                code = self._reduce_for(say)
            else:
                code = self._diagnose(say)
        self._report()
        return code

    # --- refusals --------------------------------------------------------------------------------------

    def _diagnose(self, say: Say) -> int:
        from onnxlathe.debug import Oracle, Workpiece, diagnose, diagnose_by_table
        from onnxlathe.debug.ask import existing
        from onnxlathe.errors import UsageError
        from onnxlathe.target import find_target
        from onnxlathe.target.options import parse_bytes

        options = self.options
        existing(self.source)
        target = find_target(options["target"])
        if not target.available:
            diagnosis = diagnose_by_table(self.source, reason=target.reason)
            self._show(diagnosis)
            if options["fixing"] or options["reducing"]:
                mode = "--fix" if options["fixing"] else "--reduce"
                raise UsageError(f"{mode} asks TensorRT itself: {target.reason}", hint="leave it out")
            return 0 if diagnosis.accepted else 1
        model = self._model()
        memory = parse_bytes(options["memory"], "--memory") if options["memory"] else None
        with Oracle(
            target,
            build=not options["parse_only"],
            timeout=options["timeout"],
            memory=memory,
            bindings=self._verify(model).bindings,
            plugins=options["libraries"],
        ) as oracle:
            # A file that was repaired while it was loaded is asked about as it is.
            source = model if options["bound"] else self.source
            work = Workpiece(model)
            # One cause is enough for the smallest model; a named one may be the builder's.
            thorough = not options["reducing"] or bool(options["cause"])
            diagnosis = diagnose(
                source, oracle, work=work, budget=options["budget"], build_rest=thorough, progress=say
            )
            if not (options["reducing"] or options["fixing"]):
                self._show(diagnosis)
                return 0 if diagnosis.accepted else 1
            if options["fixing"]:
                self._show(diagnosis)
                return self._fix(model, oracle, diagnosis, say)
            return self._reduce(work, oracle, diagnosis, say)

    def _reduce(self, work: Workpiece, oracle: Oracle, diagnosis: Diagnosis, say: Say) -> int:
        from onnxlathe.debug import RefusedFor, reduce_model
        from onnxlathe.debug.findings import signature_of
        from onnxlathe.debug.script import write_refusal
        from onnxlathe.errors import UsageError

        groups = [f for _, f in diagnosis.groups()]
        wanted = self.options["cause"]
        if wanted:
            groups = [f for f in groups if f[0].cause_id == wanted]
            if not groups:
                have = ", ".join(f.cause_id for f in diagnosis.findings) or "none"
                raise UsageError(f"--cause {wanted}: not among the causes of this model ({have})")
        if not groups:
            self._show(diagnosis)
            return 0
        finding = groups[0][0]
        suspects = [[i] for f in groups[0] for i, n in enumerate(work.nodes) if n.name == (f.top or f.node)]
        check = RefusedFor(oracle, signature_of(finding))
        found = reduce_model(work, check, suspects=suspects, budget=self.options["budget"], progress=say)
        self._show(diagnosis)
        if found is None:
            self._say("[yellow]not reduced[/]: the fault does not show once the model is loaded and saved")
            return 1
        title = f"{finding.operator or 'the model'}: {finding.message.splitlines()[0]}"
        folder = self._folder()
        hearing = oracle.ask(found.model)
        module = oracle.target.module
        write_refusal(folder, found, hearing, title=title, module=module, version=oracle.target.version)
        self._reduced(found, folder)
        return 0

    def _fix(self, model: Model, oracle: Oracle, diagnosis: Diagnosis, say: Say) -> int:
        from rich.markup import escape

        from onnxlathe.cli.debug_text import show_mended
        from onnxlathe.cli.options import registry_with
        from onnxlathe.cli.output import out
        from onnxlathe.debug.fix import mend
        from onnxlathe.model import load, save

        options = self.options
        if diagnosis.accepted and not options["bound"]:
            self._say("there is nothing to mend: the model stays as it is")
            if options["engine"]:
                self._say(f"engine   {escape(str(oracle.write_engine(model, options['engine'])))}")
            return 0
        original = load(self.source) if options["bound"] else model
        mended = mend(
            model,
            oracle,
            diagnosis,
            original=original,
            verify=self._verify(original),
            registry=registry_with(options["plugins"]),
            io_types=options["io_types"],
            split=options["split"],
            pad="" if options["pad"] == "none" else options["pad"],
            progress=say,
        )
        output: Path | None = options["output"] or self.source.with_name(f"{self.source.stem}.fixed.onnx")
        if (mended.accepted or any(a.kept for a in mended.attempts)) and output is not None:
            save(mended.model, output)
            self._save_outside(mended.parts, output)
        else:
            output = None
        engine = None
        if mended.accepted and options["engine"] and output is not None:
            engine = oracle.write_engine(mended.model, options["engine"])
        self.facts["fix"] = mended.to_dict() | {"output": str(output) if output else None}
        if not options["quiet"] and not options["as_json"]:
            show_mended(out(), mended, output, engine, self.facts.get("outside", {}))
        return 0 if mended.accepted else 1

    def _save_outside(self, parts: Parts | None, output: Path) -> None:
        """The parts that are left to the caller, beside the engine's."""
        from onnxlathe.model import save

        for name in ("before", "after"):
            part = getattr(parts, name, None)
            if part is not None:
                path = output.with_name(f"{output.stem}.{name}.onnx")
                save(part, path)
                self.facts.setdefault("outside", {})[name] = str(path)

    # --- other faults ----------------------------------------------------------------------------------

    def _reduce_for(self, say: Say) -> int:
        from onnxlathe.cli.options import registry_with
        from onnxlathe.debug import Command, Workpiece, WrongAfter, reduce_model
        from onnxlathe.debug.script import write_model, write_numbers

        options, model = self.options, self._model()
        work = Workpiece(model)
        how = self._verify(model)
        feeds = self._first_feed(model, how)
        if options["check"]:
            check = Command(
                options["check"], options["fail_regex"], options["fail_codes"], options["timeout"]
            )
            suspects: list[list[int]] = []
        else:
            wrong = WrongAfter(options["passes"], registry_with(options["plugins"]))
            if how.tolerances is not None:
                wrong.tolerances = how.tolerances
            say("running the passes")
            suspects = _indices(work, wrong.suspects(work.model))
            check = wrong  # type: ignore[assignment]
        try:
            found = reduce_model(
                work, check, suspects=suspects, feeds=feeds, budget=options["budget"], progress=say
            )
        finally:
            check.close()
        if found is None:
            what = "the command does not fail on" if options["check"] else "no difference shows in"
            self._say(f"{what} the model; there is nothing to reduce")
            return 1
        folder = self._folder()
        if options["check"]:
            title = f"the smallest model on which this fails: {options['check']}"
            write_model(folder, found, title=title, command=options["check"])
        else:
            words = ["model.onnx", "-o", "again.onnx", "--passes", options["passes"], "--data", "inputs.npz"]
            words += [w for p in options["plugins"] for w in ("--plugin", str(Path(p).resolve()))]
            title = f"'{options['passes']}' makes this model compute other numbers"
            write_numbers(folder, found, title=title, words=words)
        self._reduced(found, folder)
        return 0

    def _against(self, say: Say) -> int:
        from onnxlathe.debug import Workpiece, find_parting
        from onnxlathe.debug.script import write_numbers
        from onnxlathe.model import load, save

        model = self._model()
        how = self._verify(model)
        say("comparing value by value")
        parting = find_parting(
            Workpiece(model),
            Workpiece(load(self.options["against"])),
            feeds=self._first_feed(model, how),
            tolerances=how.tolerances,
        )
        if parting is None:
            self._say("[green]no value that both models have differs[/]")
            return 0
        folder = self._folder()
        title = f"the first value that differs is '{parting.value}', by up to {parting.largest:.4g}"
        words = ["verify", "model.onnx", "wrong.onnx", "--data", "inputs.npz"]
        write_numbers(folder, parting.right, title=title, words=words)
        save(parting.wrong, folder / "wrong.onnx")
        self.facts["parting"] = {"value": parting.value, "largest": parting.largest}
        self._say(title)
        self._reduced(parting.right, folder)
        return 1

    # --- parts of the work -----------------------------------------------------------------------------

    def _model(self) -> Model:
        """The model, inputs bound as the user says."""
        from onnxlathe.debug.bind import bind_inputs
        from onnxlathe.model import load

        model = load(self.source)
        if self.options["bound"]:
            self.notes += bind_inputs(model, self.options["bound"])
        return model

    def _verify(self, model: Model) -> VerifyOptions:
        from onnxlathe.cli.options import verify_options

        names = ("shapes", "dims", "data", "seeds", "atol", "rtol", "timeout")
        return verify_options(model, **{n: self.options[n] for n in names}, notes=self.notes)

    def _first_feed(self, model: Model, how: VerifyOptions) -> dict[str, np.ndarray]:
        from onnxlathe.debug.checks import sample_of

        if how.feeds is not None:
            return dict(next(iter(how.feeds), {}))
        return sample_of(model, how.bindings or {})

    def _folder(self) -> Path:
        return self.options["output"] or self.source.with_name(f"{self.source.stem}.reduced")

    def _say(self, text: str) -> None:
        from onnxlathe.cli.output import out

        if not self.options["quiet"] and not self.options["as_json"]:
            out().print(text)

    def _show(self, diagnosis: Diagnosis) -> None:
        from onnxlathe.cli.output import out

        diagnosis.notes += [note for note in self.notes if note not in diagnosis.notes]
        self.facts |= diagnosis.to_dict()
        if not self.options["quiet"] and not self.options["as_json"]:
            from onnxlathe.cli.debug_text import show_diagnosis

            advise = not (self.options["reducing"] or self.options["fixing"])
            show_diagnosis(out(), diagnosis, self.source, advise=advise)

    def _reduced(self, found: Reduction, folder: Path) -> None:
        from rich.markup import escape

        from onnxlathe.report.graph_text import model_text

        self.facts["reduction"] = {
            "before": found.before, "after": found.after, "checks": found.checks,
            "seconds": round(found.seconds, 3), "frozen": list(found.frozen), "folder": str(folder),
        }  # fmt: skip
        self._say(f"\n[bold]reduced[/]  {escape(found.sentence())}")
        self._say(escape(model_text(found.model)))
        self._say(f"[bold]saved[/]    {escape(str(folder))}/")

    def _report(self) -> None:
        from onnxlathe.cli.options import write_json

        if self.options["report"]:
            write_json(self.options["report"], self.facts)
        if self.options["as_json"]:
            import msgspec

            click.echo(msgspec.json.format(msgspec.json.encode(self.facts), indent=2).decode())


def _indices(work: Workpiece, groups: list[list[str]]) -> list[list[int]]:
    """Groups of node names as indices; nodes that are not there are left out."""
    position = {n.name: i for i, n in enumerate(work.nodes)}
    found = [[position[name] for name in group if name in position] for group in groups]
    return [group for group in found if group]
