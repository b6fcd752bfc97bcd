"""Mending a refused model: remedies are tried one after another, and kept where they help and prove right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onnxlathe.api import Result, VerifyOptions, optimize
from onnxlathe.debug.ask import Oracle
from onnxlathe.debug.decide import bindings, decisions, frozen_sizes
from onnxlathe.debug.diagnosis import diagnose
from onnxlathe.debug.findings import NOT_REWRITTEN, Diagnosis
from onnxlathe.debug.outside import Parts, left_outside
from onnxlathe.errors import LatheError
from onnxlathe.model import Model
from onnxlathe.model.interface import note_change
from onnxlathe.model.shapes import freeze
from onnxlathe.pipeline import Registry, plan

_FIRST = "shapes,fold,sequences,tidy"
_LAST = "legalize"
_INLINE, _FREEZE, _BIND, _SPLIT = (
    "inline",
    "freeze",
    "bind",
    "split",
)  # what is done here rather than by a pass
_SIZED = frozenset(
    {"NonZero", "Compress", "Unique", "NonMaxSuppression", "ReduceSum"}
)  # begin a size that data decide
_SEEDED = (
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)


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
        proven: all outputs were compared, and equal.
    """

    pipeline: str
    kept: bool
    refused: int
    changes: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    problem: str = ""
    verdict: str = ""
    proven: bool = False

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
            "proven": self.proven,
        }


@dataclass
class Mended:
    """What became of a refused model.

    Attributes:
        model: the model with all that helped.
        accepted: the target takes it now: parsed, and built where that was asked.
        attempts: what was tried, in order.
        left: the diagnosis of what is still refused; None where nothing is.
        reasons: why it stays so, where more can be said than the cause does.
        parts: what is left to the caller, and the engine's part that `model` was made from; None for nothing.
    """

    model: Model
    accepted: bool
    attempts: list[Attempt] = field(default_factory=list)
    left: Diagnosis | None = None
    reasons: list[str] = field(default_factory=list)
    parts: Parts | None = None

    @property
    def proven(self) -> bool:
        """The target takes the model, and it computes what the original does, as far as all outputs go."""
        kept = [a for a in self.attempts if a.kept]
        return self.accepted and (kept[-1].proven if kept else True)

    def to_dict(self) -> dict[str, Any]:
        """As plain data for a report."""
        return {
            "accepted": self.accepted,
            "attempts": [a.to_dict() for a in self.attempts],
            "proven": self.proven,
            "left": self.left.to_dict() if self.left else None,
            "reasons": self.reasons,
        }


def mend(
    model: Model,
    oracle: Oracle,
    diagnosis: Diagnosis,
    *,
    original: Model | None = None,
    verify: VerifyOptions | None = None,
    registry: Registry | None = None,
    io_types: str = "keep",
    pad: str = "max",
    split: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Mended:
    """Try what could help, in the order of how little it changes.

    Args:
        model: the refused model, or with bound inputs a model that is not refused; left as it is.
        oracle: the target.
        diagnosis: of the model.
        original: what the results are compared with, where it is not `model`: before inputs were bound.
        verify: how each remedy's result is compared with the model.
        registry: the passes there are.
        io_types: `widen` lets inputs and outputs change to types that the target has.
        pad: outputs whose size depends on data are padded to so many rows, `max` to the most that there can be;
            empty for never.
        split: leave to the caller what cannot be in an engine.
        progress: called with what is being done.
    """
    registry = registry or Registry.standard()
    options = verify or VerifyOptions()
    result = Mended(model.clone(), diagnosis.accepted)
    truth = original or model
    if diagnosis.accepted:
        verdict, problem, proven = _verdict(truth, model, options)
        result.attempts.append(Attempt(_BIND, not problem, 0, {}, (), problem, verdict, proven))
        result.accepted = not problem
        return result
    if not _SIZED & model.count_operators().keys():
        pad = ""
    current, tried = diagnosis, set[str]()
    decided = decisions(model, diagnosis.findings)
    sizes = frozen_sizes(model, diagnosis.findings, decided)
    while not result.accepted:
        for pipeline in remedies(current, registry, io_types, sizes, pad):
            if pipeline in tried or (pipeline.startswith(_INLINE) and not model.ir.functions):
                continue
            tried.add(pipeline)
            progress(f"trying {pipeline}")
            attempt, better, now = _try(result.model, oracle, pipeline, current, options, registry, truth)
            result.attempts.append(attempt)
            if better is not None and now is not None:
                result.model, result.accepted, current = better, now.accepted, now
                break
        else:
            break
    if not result.accepted:
        result.left = current
        still = {f.top or f.node for f in current.findings}
        result.reasons = [d.sentence() for d in decided if d.node in still]
        result.reasons += bindings(model, current.findings).values()
        said = (note for attempt in result.attempts for note in attempt.notes)
        result.reasons += dict.fromkeys(note for note in said if note.startswith(NOT_REWRITTEN))
        parts = left_outside(model, still)
        if parts is not None and split:
            progress("leaving outside what cannot be in an engine")
            how = _How(oracle, options, registry, io_types, pad, progress)
            return _split(result, parts, truth, how)
        if parts is not None:
            result.reasons.append("with --split they are left to the caller, and the rest becomes an engine")
    return result


@dataclass(frozen=True)
class _How:
    """What `mend` was called with."""

    oracle: Oracle
    options: VerifyOptions
    registry: Registry
    io_types: str
    pad: str
    progress: Callable[[str], None]


def _split(so_far: Mended, parts: Parts, truth: Model, how: _How) -> Mended:
    """Mend the engine's part alone.

    The parts outside are the model's own nodes. Where nothing here can run those, the engine's part is compared
    with what it was cut from.
    """
    diagnosis = diagnose(parts.engine, how.oracle)
    verdict, problem, proven = _verdict(truth, parts.engine, how.options)
    attempt = Attempt(_SPLIT, not problem, len(diagnosis.findings), {_SPLIT: 1}, (), problem, verdict, proven)
    so_far.attempts.append(attempt)
    if problem:
        return so_far
    rest = Mended(parts.engine, True)
    if not diagnosis.accepted:
        rest = mend(
            parts.engine,
            how.oracle,
            diagnosis,
            verify=replace(how.options, feeds=None),
            registry=how.registry,
            io_types=how.io_types,
            pad=how.pad,
            progress=how.progress,
        )
    rest.attempts = [*so_far.attempts, *rest.attempts]
    rest.parts = parts
    return rest


def remedies(
    diagnosis: Diagnosis,
    registry: Registry,
    io_types: str = "keep",
    sizes: Sequence[Mapping[str, int]] = (),
    pad: str = "",
) -> list[str]:
    """Pipelines to try, those that change least first; `sizes` are those that decide about conditions."""
    named = [r.passes for cause, _ in diagnosis.groups() if cause for r in cause.remedies if r.passes]
    specific = dict.fromkeys(p for p in named if p != "default" and not p.startswith(_LAST) and not _lossy(p))
    types = "" if io_types == "keep" else io_types
    last, padding = _legalize(io_types=types), _legalize(io_types=types, pad=pad)
    everything = [_FIRST, *specific, last, f"{_FIRST},{last}"]
    found = [p for p in dict.fromkeys(everything) if _exists(p, registry)]
    if any(f.top for f in diagnosis.findings):
        found += [f"{_INLINE},{p}" for p in (_FIRST, last) if p in found]
    if pad and _exists(padding, registry):  # another interface: only where nothing else helps
        found += [padding, f"{_FIRST},{padding}"]
    if diagnosis.only_at:
        found.append(_frozen(diagnosis.only_at))
    found += [f"{_frozen(size)},{p}" for size in sizes for p in (_FIRST, f"{_FIRST},{last}")]
    return found


def _frozen(sizes: Mapping[str, int]) -> str:
    return f"{_FREEZE}({', '.join(f'{n}={s}' for n, s in sizes.items())})"


def _legalize(**options: str) -> str:
    """The last remedy, with those of its options that are given."""
    given = ", ".join(f"{name}={value}" for name, value in options.items() if value)
    return f"{_LAST}({given})" if given else _LAST


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
    changes: dict[str, int] = {}
    notes: tuple[str, ...] = ()
    passes = pipeline.removeprefix(f"{_INLINE},")
    try:
        if passes != pipeline:
            inline(candidate)
        if passes.startswith(_FREEZE):
            text, _, passes = passes.removeprefix(f"{_FREEZE}(").partition(")")
            passes = passes.removeprefix(",")
            pairs = (pair.rpartition("=") for pair in text.split(", "))
            freeze(candidate, sizes := {name: int(size) for name, _, size in pairs})
            note_change(candidate.ir, sizes=sizes)
            changes[_FREEZE] = len(sizes)
            notes += (f"the model takes one size only now: {_frozen(sizes)}",)
        if passes:
            done = optimize(candidate, passes, verify=False, registry=registry)
            made, said = _changes(done)
            changes |= made
            notes += said
    except LatheError as error:
        return Attempt(pipeline, False, len(before.findings), problem=error.message), None, None
    if not changes:
        return Attempt(pipeline, False, len(before.findings), {}, notes, "changes nothing"), None, None
    after = diagnose(candidate, oracle)
    if not _helps(before, after):
        problem = "the target refuses as much as before"
        return Attempt(pipeline, False, len(after.findings), changes, notes, problem), None, None
    verdict, problem, proven = _verdict(original, candidate, options)
    attempt = Attempt(pipeline, not problem, len(after.findings), changes, notes, problem, verdict, proven)
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


def _verdict(original: Model, candidate: Model, options: VerifyOptions) -> tuple[str, str, bool]:
    """What the comparison says, why the candidate cannot be kept (empty if it can), whether it is proven."""
    from onnxlathe.verify import Verifier

    truth = original.clone()
    for node in truth.nodes():  # an engine draws as it likes: there is nothing to compare with
        if node.op_type in _SEEDED and not node.domain:
            node.attributes.pop("seed", None)
    with Verifier(
        truth,
        feeds=options.feeds,
        seeds=options.seeds,
        bindings=options.bindings,
        tolerances=options.tolerances,
        timeout=options.timeout,
    ) as verifier:
        verdict = verifier.check(candidate)
    said = "; ".join([verdict.summary(), *verdict.interface])
    if verdict.status != "different":
        return said, "", verdict.status == "equal"
    return said, f"computes something else: {verdict.summary()}", False
