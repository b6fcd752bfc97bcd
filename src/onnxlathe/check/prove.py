"""Holding a pass to its word: it must compute the same, come to rest, and leave the interface alone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxlathe.check.compare import Difference, compare, serialized
from onnxlathe.check.process import Workers
from onnxlathe.check.sketch import SIZES, Impossible
from onnxlathe.errors import LatheError, PassError, UsageError
from onnxlathe.infer import infer_model
from onnxlathe.model import Model, load
from onnxlathe.pipeline import Runner, broken_invariants, plan
from onnxlathe.pipeline.registry import Registry
from onnxlathe.pipeline.watchdog import limited
from onnxlathe.rewrite import LocalRule, Pass

_SECONDS = 10.0
"""What a pass may take for a small model before it counts as never ending."""


@dataclass
class Counterexample:
    """A model that a pass gets wrong.

    Attributes:
        kind: `different` (another result), `fails` (it raises), `broken` (the IR), `interface` (names and
            types of inputs and outputs), `restless` (not idempotent), `endless`, or `silent` (an uncounted
            change).
        problem: what is wrong, as a sentence.
        before: the model.
        after: what the pass made of it, where it made something.
        where: which inputs show it, or the file.
    """

    kind: str
    problem: str
    before: Model
    after: Model | None = None
    where: str = ""

    def text(self, *, graphs: bool = True) -> str:
        """For a person to read: what is wrong, the model, and what became of it."""
        from onnxlathe.report.graph_text import model_text

        lines = [self.problem]
        if self.where:
            lines.append(f"shown by {self.where}")
        if graphs:
            lines += ["", f"before (opset {self.before.opset}):", model_text(self.before)]
            if self.after is not None:
                lines += ["", "after:", model_text(self.after)]
        return "\n".join(lines)


@dataclass
class Proof:
    """What was found out about a pass.

    Attributes:
        name: of the pass.
        instances: models that it was tried on.
        fired: of these, how many it changed.
        compared: how many changed models were run by each runtime, before and after.
        unrunnable: changed models that no runtime could run.
        declined: why it did not fire, how often.
        counterexample: what it gets wrong.
        notes: remarks.
        seconds: time taken.
        lossy: it lowers the precision, so that numbers are not compared.
        inert: it provides facts about a model (`gives`) and need not change any.
    """

    name: str
    instances: int = 0
    fired: int = 0
    compared: Counter[str] = field(default_factory=Counter)
    unrunnable: int = 0
    declined: Counter[str] = field(default_factory=Counter)
    counterexample: Counterexample | None = None
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    inert: bool = False
    lossy: bool = False

    @property
    def status(self) -> str:
        """`fails`, `never fired`, `not run`, `changes nothing` or `holds`."""
        if self.counterexample is not None:
            return "fails"
        if not self.fired:
            return "changes nothing" if self.inert else "never fired"
        return "holds" if self.compared or self.lossy else "not run"

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against it, and something for it."""
        return self.status in ("holds", "changes nothing")

    def to_dict(self) -> dict[str, Any]:
        """As plain data for a report."""
        found = self.counterexample
        return {
            "name": self.name,
            "status": self.status,
            "instances": self.instances,
            "fired": self.fired,
            "compared": dict(self.compared),
            "unrunnable": self.unrunnable,
            "declined": dict(self.declined.most_common()),
            "counterexample": {"kind": found.kind, "text": found.text()} if found else None,
            "notes": self.notes,
            "seconds": round(self.seconds, 3),
        }


class _Found(Exception):
    """Ends a draw with a counterexample; hypothesis then looks for a smaller one."""

    def __init__(self, example: Counterexample) -> None:
        super().__init__(example.problem)
        self.example = example


class _Stop(BaseException):
    """Ends the search at once: not an `Exception`, or hypothesis would go on."""

    def __init__(self, example: Counterexample) -> None:
        super().__init__(example.problem)
        self.example = example


class Prover:
    """Proves passes; holds the process that runs models.

    Args:
        examples: how many models to draw for each pass.
        patience: draw up to so many times as many where a pass hardly fires.
        seed: another one draws others.
        registry: where passes come from.
        seconds: how long a pass may take for one small model.
    """

    def __init__(
        self,
        *,
        examples: int = 100,
        patience: int = 5,
        seed: int = 0,
        registry: Registry | None = None,
        seconds: float = _SECONDS,
    ) -> None:
        self.examples, self.patience, self.seed, self.seconds = examples, patience, seed, seconds
        self.registry = registry or Registry()
        self.workers = Workers()

    def __enter__(self) -> Prover:
        self.workers.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.workers.stop()

    def prove(self, subject: Pass, models: Iterable[Path] = ()) -> Proof:
        """Try a pass on drawn models, and on `models`.

        Returns:
            What was found; the first counterexample, made as small as can be.

        Raises:
            UsageError: hypothesis is not installed.
        """
        proof = Proof(subject.name, inert=bool(subject.gives), lossy=subject.lowers_precision)
        if proof.lossy:
            proof.notes.append("it lowers the precision: the numbers are not compared")
        started = time.perf_counter()
        self._draw(subject, proof)
        if proof.counterexample is None:
            for path in models:
                self._file(subject, proof, path)
                if proof.counterexample is not None:
                    break
        proof.seconds = time.perf_counter() - started
        return proof

    def _draw(self, subject: Pass, proof: Proof) -> None:
        try:
            import hypothesis
            from hypothesis import strategies as st
        except ImportError as error:
            raise UsageError(
                "checking a pass needs the package hypothesis", hint="pip install 'onnxlathe[check]'"
            ) from error
        from onnxlathe.check.generate import instance

        last: list[Counterexample] = []
        remarks = len(proof.notes)

        def attempt(data: Any) -> None:
            try:
                drawn = instance(data.draw, subject)
                model = drawn.sketch.model(drawn.outputs)
                feeds = [drawn.sketch.inputs_for(sizes, i) for i, sizes in enumerate(SIZES)]
                feeds.append(drawn.sketch.inputs_for(SIZES[0], 2, scale=300.0))
            except (Impossible, ValueError, IndexError, OverflowError):
                hypothesis.reject()
            if not drawn.outputs:
                hypothesis.reject()
            try:
                self._examine(subject, proof, model, feeds, drawn=True)
            except _Found as found:
                last[:] = [found.example]
                raise
            except Impossible:
                hypothesis.reject()

        for number in range(self.patience):
            settings = hypothesis.settings(
                max_examples=self.examples,
                deadline=None,
                database=None,
                report_multiple_bugs=False,
                print_blob=False,
                verbosity=hypothesis.Verbosity.quiet,
                suppress_health_check=list(hypothesis.HealthCheck),
                phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
            )
            test: Any = settings(hypothesis.given(st.data())(attempt))
            try:
                hypothesis.seed(1000 * self.seed + number)(test)()
            except (_Found, _Stop) as found:
                proof.counterexample = last[0] if isinstance(found, _Found) else found.example
            except hypothesis.errors.Unsatisfiable:
                proof.notes.append("no valid instance could be drawn")
            except (hypothesis.errors.Flaky, hypothesis.errors.FlakyStrategyDefinition):
                proof.counterexample = last[0] if last else None
                proof.notes.append("it does not do the same every time")
            enough = proof.fired >= max(1, self.examples // 5)
            if proof.counterexample is not None or enough or len(proof.notes) > remarks or proof.inert:
                return

    def _file(self, subject: Pass, proof: Proof, path: Path) -> None:
        from onnxlathe.model.samples import sample_inputs

        try:
            model = load(path)
            feeds = [sample_inputs(model, seed=seed) for seed in (0, 1)]
        except LatheError as error:
            proof.notes.append(f"{path.name} was left out: {error.message}")
            return
        try:
            self._examine(subject, proof, model, feeds, drawn=False, file=path)
        except (_Found, _Stop) as found:
            proof.counterexample = found.example
        except Impossible:
            proof.notes.append(f"{path.name} could not be run")

    def _examine(
        self,
        subject: Pass,
        proof: Proof,
        model: Model,
        feeds: Sequence[dict[str, Any]],
        *,
        drawn: bool,
        file: Path | None = None,
    ) -> None:
        """Run the pass over one model and look at all that it promised."""
        where = f"the file {file.name}" if file is not None else ""
        original = model.clone()
        if drawn:
            infer_model(original)
        interface = _interface(model)

        def found(kind: str, problem: str, after: Model | None = None, how: str = "") -> _Found:
            return _Found(Counterexample(kind, problem, original, after, how or where))

        try:
            changes = self._apply(subject, model)
        except PassError as error:
            # A draw that no runtime takes proves nothing.
            if drawn and not self._valid(original, feeds):
                raise Impossible from error
            endless = "does not come to rest" in error.message or "did not end" in error.message
            example = found("endless" if endless else "fails", error.message)
            # A smaller model would take as long.
            raise (_Stop(example.example) if "did not end" in error.message else example) from error
        proof.instances += 1
        if not changes:
            if isinstance(subject, LocalRule):
                proof.declined.update(_reasons(subject, model))
            elif _structure(model) != _structure(original):
                raise found("silent", "it says that it changed nothing, but the model is another one", model)
            return
        problems = broken_invariants(model)
        if problems:
            if drawn and not self._valid(original, feeds):
                raise Impossible
            raise found("broken", f"the model is broken afterwards: {problems[0]}", model)
        if subject.lowers_precision:
            # It changes types and numbers, as it was asked to; the rest it must leave alone.
            if _names(_interface(model)) != _names(interface):
                raise found("interface", _changed(_names(interface), _names(_interface(model))), model)
            compared: list[str] | Difference = []
        else:
            if _interface(model) != interface:
                raise found("interface", _changed(interface, _interface(model)), model)
            compared = compare(self.workers, original, model, feeds, file)
        if isinstance(compared, Difference):
            raise found("different", compared.problem, model, compared.how or where)
        proof.fired += 1
        proof.compared.update(compared)
        if not compared and not subject.lowers_precision:
            proof.unrunnable += 1
        again = model.clone()
        try:
            more = self._apply(subject, again)
        except PassError as error:
            raise found("fails", f"run a second time: {error.message}", model) from error
        if more:
            raise found("restless", f"run a second time it makes {more} more changes", again)

    def _apply(self, subject: Pass, model: Model) -> int:
        runner = Runner(paranoid=False)
        pipeline = plan([subject], self.registry)
        with limited(self.seconds, subject.name):
            runner.run(model, pipeline)
        return sum(record.changes for record in runner.records if not record.implied)

    def _valid(self, model: Model, feeds: Sequence[dict[str, Any]]) -> bool:
        found = self.workers.run([serialized(model)], feeds[:1])
        return any(not ran[0].error for ran in found.values())


def _interface(model: Model) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Names and element types of inputs and outputs."""
    graph = model.graph
    inputs, outputs = ([(v.name or "", str(v.dtype)) for v in each] for each in (graph.inputs, graph.outputs))
    return inputs, outputs


def _structure(model: Model) -> list[tuple[Any, ...]]:
    """What a pass that changed nothing leaves alone: nodes, their operands, constants."""
    nodes = [
        (
            n.domain,
            n.op_type,
            [v and v.name for v in n.inputs],
            [v.name for v in n.outputs],
            sorted(n.attributes),
        )
        for n in model.nodes()
    ]
    return [*nodes, *(tuple(graph.initializers) for graph in model.graphs())]


def _names(interface: Any) -> Any:
    return tuple([(name, "") for name, _ in values] for values in interface)


def _changed(before: Any, after: Any) -> str:
    for what, old, new in zip(("inputs", "outputs"), before, after, strict=True):
        if old != new:
            show = [", ".join(f"{n} ({t})" if t else n for n, t in each) for each in (old, new)]
            return f"the model's {what} are {show[1]} rather than {show[0]}"
    return ""


def _reasons(subject: LocalRule, model: Model) -> Iterator[str]:
    """Why a rule declined at the nodes where it might have fired."""
    from onnxlathe.rewrite import Builder

    keys = set(subject.operators())
    for node in model.graph:
        if (node.domain, node.op_type) in keys:
            reason = subject.attempt(node, Builder(model.opset)).reason
            if reason and "'" not in reason:
                yield reason
