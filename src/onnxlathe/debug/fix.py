"""Mending a refused model: remedies are tried one after another, and kept where they help and prove right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxlathe.api import Result, VerifyOptions, optimize
from onnxlathe.debug.ask import Hearing, Oracle
from onnxlathe.debug.diagnosis import Diagnosis, diagnose
from onnxlathe.errors import LatheError
from onnxlathe.model import Model
from onnxlathe.model.interface import note_change
from onnxlathe.model.shapes import freeze
from onnxlathe.pipeline import Registry, plan

_FIRST = "shapes,fold,sequences,tidy"
_LAST = "legalize"
_INLINE, _FREEZE = "inline", "freeze"  # what is done here rather than by a pass


@dataclass(frozen=True)
class Attempt:
    """One remedy that was tried.

    Attributes:
        pipeline: what was run.
        kept: it helped, and the result was not found to differ.
        refused: nodes that the target refuses afterwards.
        changes: how often each rule changed something.
        notes: what the passes had to say.
        problem: why it was not kept.
        verdict: what the comparison with the model found.
    """

    pipeline: str
    kept: bool
    refused: int
    changes: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    problem: str = ""
    verdict: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain data for a report."""
        return {
            "pipeline": self.pipeline,
            "kept": self.kept,
            "refused_after": self.refused,
            "changes": self.changes,
            "notes": list(self.notes),
            "problem": self.problem,
            "verdict": self.verdict,
        }


@dataclass
class Mended:
    """What became of a refused model.

    Attributes:
        model: the model with all that helped.
        accepted: the target takes it now: parsed, and built where that was asked.
        attempts: what was tried, in order.
        left: the diagnosis of what is still refused; None where nothing is.
        hearing: what the target says about the model.
    """

    model: Model
    accepted: bool
    attempts: list[Attempt] = field(default_factory=list)
    left: Diagnosis | None = None
    hearing: Hearing | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain data for a report."""
        return {
            "accepted": self.accepted,
            "attempts": [a.to_dict() for a in self.attempts],
            "left": self.left.to_dict() if self.left else None,
        }


def mend(
    model: Model,
    oracle: Oracle,
    diagnosis: Diagnosis,
    *,
    verify: VerifyOptions | None = None,
    registry: Registry | None = None,
    io_types: str = "keep",
    progress: Callable[[str], None] = lambda _: None,
) -> Mended:
    """Try what could help, in the order of how little it changes.

    Args:
        model: the refused model; left as it is.
        oracle: the target.
        diagnosis: of the model.
        verify: how each remedy's result is compared with the model.
        registry: the passes there are.
        io_types: `widen` lets inputs and outputs change to types that the target has.
        progress: called with what is being done.
    """
    registry = registry or Registry.standard()
    options = verify or VerifyOptions()
    result = Mended(model.clone(), diagnosis.accepted)
    current, tried = diagnosis, set[str]()
    while not result.accepted:
        for pipeline in remedies(current, registry, io_types):
            if pipeline in tried or (pipeline.startswith(_INLINE) and not model.ir.functions):
                continue
            tried.add(pipeline)
            progress(f"trying {pipeline}")
            attempt, better, now = _try(result.model, oracle, pipeline, current, options, registry, model)
            result.attempts.append(attempt)
            if better is not None and now is not None:
                result.model, result.accepted, current = better, now.accepted, now
                break
        else:
            break
    result.left = None if result.accepted else current
    return result


def remedies(diagnosis: Diagnosis, registry: Registry, io_types: str = "keep") -> list[str]:
    """Pipelines to try, those that change least first."""
    named = [r.passes for cause, _ in diagnosis.groups() if cause for r in cause.remedies if r.passes]
    specific = dict.fromkeys(p for p in named if p not in (_LAST, "default") and not _lossy(p))
    last = _LAST if io_types == "keep" else f"{_LAST}(io_types={io_types})"
    everything = [_FIRST, *specific, last, f"{_FIRST},{last}"]
    found = [p for p in dict.fromkeys(everything) if _exists(p, registry)]
    if any(f.top for f in diagnosis.findings):
        found += [f"{_INLINE},{p}" for p in (_FIRST, last) if p in found]
    if diagnosis.only_at:
        found.append(f"{_FREEZE}({', '.join(f'{n}={s}' for n, s in diagnosis.only_at.items())})")
    return found


def _lossy(pipeline: str) -> bool:
    """Whether a remedy changes the precision, which nobody asked for."""
    return pipeline.startswith("precision")


def _exists(pipeline: str, registry: Registry) -> bool:
    try:
        plan(pipeline, registry)
    except LatheError:
        return False
    return True


def _try(
    model: Model,
    oracle: Oracle,
    pipeline: str,
    before: Diagnosis,
    options: VerifyOptions,
    registry: Registry,
    original: Model,
) -> tuple[Attempt, Model | None, Diagnosis | None]:
    """One remedy: does it help, and does the model still compute the same?"""
    candidate = model.clone()
    if pipeline.startswith(_FREEZE):
        freeze(candidate, before.only_at)
        note_change(candidate.ir, sizes=before.only_at)
        changes: dict[str, int] = {_FREEZE: 1}
        notes: tuple[str, ...] = (f"the model takes one size only now: {pipeline}",)
    else:
        passes = pipeline.removeprefix(f"{_INLINE},")
        try:
            if passes != pipeline:
                inline(candidate)
            done = optimize(candidate, passes, verify=False, registry=registry)
        except LatheError as error:
            return Attempt(pipeline, False, len(before.findings), problem=error.message), None, None
        changes, notes = _changes(done)
    if not changes:
        return Attempt(pipeline, False, len(before.findings), problem="changes nothing"), None, None
    after = diagnose(candidate, oracle)
    if not _helps(before, after):
        problem = "the target refuses as much as before"
        return Attempt(pipeline, False, len(after.findings), changes, notes, problem), None, None
    verdict, problem = _verdict(original, candidate, options)
    attempt = Attempt(pipeline, not problem, len(after.findings), changes, notes, problem, verdict)
    return attempt, (None if problem else candidate), after


def inline(model: Model) -> None:
    """Put the bodies of functions in the place of their calls."""
    from onnx_ir.passes.common import InlinePass

    InlinePass()(model.ir)


def _helps(before: Diagnosis, after: Diagnosis) -> bool:
    """Fewer refusals, or at least less of the model behind them."""
    if after.accepted:
        return True
    return _weight(after) < _weight(before)


def _weight(diagnosis: Diagnosis) -> tuple[int, int]:
    return (len(diagnosis.findings), len(diagnosis.unexamined))


def _changes(result: Result) -> tuple[dict[str, int], tuple[str, ...]]:
    changes: dict[str, int] = {}
    notes: list[str] = []
    for step in result.steps:
        for firing in step.firings:
            changes[firing.rule] = changes.get(firing.rule, 0) + 1
        if step.changes and not step.firings:
            changes[step.name] = changes.get(step.name, 0) + step.changes
        notes += step.notes
    return changes, tuple(dict.fromkeys(notes))


def _verdict(original: Model, candidate: Model, options: VerifyOptions) -> tuple[str, str]:
    """What the comparison says, and why the candidate cannot be kept (empty if it can)."""
    from onnxlathe.verify import Verifier

    with Verifier(
        original.clone(),
        feeds=options.feeds,
        seeds=options.seeds,
        bindings=options.bindings,
        tolerances=options.tolerances,
        timeout=options.timeout,
    ) as verifier:
        verdict = verifier.check(candidate)
    if verdict.status != "different":
        return verdict.summary(), ""
    return verdict.summary(), f"computes something else: {verdict.summary()}"


def changed_rules(attempts: Iterable[Attempt]) -> Sequence[str]:
    """Rules that changed something, of the remedies that were kept."""
    return list(dict.fromkeys(rule for a in attempts if a.kept for rule in a.changes))
