"""Optimizing a model: run the pipeline, prove the result, and name what is to blame if it is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onnxlathe.defaults import PASS_TIMEOUT
from onnxlathe.errors import UsageError, VerificationError
from onnxlathe.model import Model, load
from onnxlathe.pipeline import Budget, Item, Pipeline, Registry, Runner, StepRecord, plan
from onnxlathe.rewrite import Pass

if TYPE_CHECKING:
    import numpy as np

    from onnxlathe.verify import Tolerances, Verdict
    from onnxlathe.verify.blame import Culprit

PipelineLike = str | Pass | Sequence[Item | Pass | type[Pass]]

_MAX_CULPRITS = 20
_MAX_SPARED = 8
"""So many nodes are kept from being lowered, one after the other; a search finds more of them in less time."""


@dataclass(frozen=True)
class Census:
    """What a model is made of.

    Attributes:
        nodes: in all graphs, subgraphs and functions.
        operators: nodes by operator, the most frequent first.
        weight_bytes: of all initializers.
        opset: version of the default operator set.
    """

    nodes: int
    operators: dict[str, int]
    weight_bytes: int
    opset: int

    @classmethod
    def of(cls, model: Model) -> Census:
        """Count."""
        operators = model.count_operators()
        weights = sum(
            value.const_value.nbytes
            for graph in model.graphs()
            for value in graph.initializers.values()
            if value.const_value is not None
        )
        return cls(sum(operators.values()), operators, weights, model.opset)

    def to_dict(self) -> dict[str, Any]:
        """As plain data for a report."""
        return {
            "nodes": self.nodes,
            "operators": self.operators,
            "weight_bytes": self.weight_bytes,
            "opset": self.opset,
        }


@dataclass
class Result:
    """What became of a model.

    Attributes:
        model: the optimized model.
        pipeline: what was run, as text.
        steps: what each step did.
        before: what the model was made of.
        after: what it is made of now.
        verdict: what the comparison with the original found; `None` where it was not asked for.
        culprits: changes that were blamed and left out (`on_mismatch="skip"`), or that are to blame.
        reproducer: folder that shows the fault, where one was written.
    """

    model: Model
    pipeline: str
    steps: list[StepRecord] = field(default_factory=list)
    before: Census | None = None
    after: Census | None = None
    verdict: Verdict | None = None
    culprits: list[Culprit] = field(default_factory=list)
    reproducer: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain data for a report."""
        return {
            "pipeline": self.pipeline,
            "before": self.before.to_dict() if self.before else None,
            "after": self.after.to_dict() if self.after else None,
            "steps": [step.to_dict() for step in self.steps],
            "verdict": self.verdict.to_dict() if self.verdict else None,
            "culprits": [culprit.to_dict() for culprit in self.culprits],
            "reproducer": str(self.reproducer) if self.reproducer else None,
            "repairs": self.model.repairs,
        }


class Mismatch(VerificationError):
    """The optimized model differs from the original; `result` holds all that is known."""

    def __init__(self, message: str, result: Result, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.result = result


@dataclass
class VerifyOptions:
    """How to compare with the original; the fields are arguments of `onnxlathe.verify.Verifier`."""

    feeds: Iterable[Mapping[str, np.ndarray]] | None = None
    seeds: Sequence[int] = (0, 1)
    bindings: Mapping[str, int] | None = None
    tolerances: Tolerances | None = None
    timeout: float = 300.0
    memory: int | None = None


def optimize(
    model: Model | str | os.PathLike[str],
    passes: PipelineLike = "default",
    *,
    verify: bool | VerifyOptions = True,
    on_mismatch: Literal["fail", "skip"] = "fail",
    original: Model | Path | None = None,
    registry: Registry | None = None,
    named: Mapping[str, str] | None = None,
    disabled: Iterable[str] = (),
    paranoid: bool = False,
    on_error: Literal["fail", "skip"] = "fail",
    pass_timeout: float = PASS_TIMEOUT,
    reproducer: Path | None = None,
    plugins: Sequence[str] = (),
    before_step: Callable[[str], None] | None = None,
    after_step: Callable[[StepRecord, Model], None] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Result:
    """Run a pipeline over a model and prove that it still computes the same.

    Args:
        model: a model, changed in place, or a file to load.
        passes: the pipeline: text, passes, or both in a list.
        verify: compare with the original afterwards; options for that.
        on_mismatch: `fail` raises and restores the model; `skip` runs the pipeline again without the culprit:
            without the rule, or, where lowering a node's precision is to blame, with that node as it was.
        original: the truth to compare with, where it is not `model` as given.
        registry: the passes that names refer to; all installed ones if left out.
        named: further named pipelines.
        disabled: passes and rules to leave out.
        paranoid: check the IR's invariants after every step.
        on_error: `skip` goes on without a plugin's pass that fails.
        pass_timeout: seconds that a plugin's pass may take; 0 for no limit.
        reproducer: folder for a reproducer, written where the verification fails.
        plugins: what `registry` got from `--plugin`; a reproducer needs them too.
        before_step: called with the name of each step.
        after_step: called with the record of each step and the model.
        progress: called with what the verification is doing.

    Returns:
        The result; its `verdict.status` says how much could be checked.

    Raises:
        Mismatch: the optimized model is wrong; `model` is as it was given.
        UsageError: the pipeline cannot be understood.
        PassError: a pass failed.
        ModelError: the file cannot be loaded.
    """
    if not isinstance(model, Model):
        model = load(Path(model))
    if on_mismatch not in ("fail", "skip"):
        raise UsageError(f"on_mismatch is 'fail' or 'skip', not '{on_mismatch}'")
    registry = registry or Registry.standard()
    resolved = plan(passes, registry, named)
    result = Result(model, str(resolved), before=Census.of(model))
    run = _Run(resolved, frozenset(disabled), paranoid, on_error, pass_timeout)
    hooks = _Hooks(before_step, after_step)
    if not verify:
        result.steps = run(model, hooks=hooks).records
        result.after = Census.of(model)
        return result
    pristine = model.clone()
    options = verify if isinstance(verify, VerifyOptions) else VerifyOptions()
    from onnxlathe.verify import Verifier

    with Verifier(
        original if original is not None else pristine,
        feeds=options.feeds,
        seeds=options.seeds,
        bindings=options.bindings,
        tolerances=options.tolerances,
        timeout=options.timeout,
        memory=options.memory,
        progress=progress,
    ) as verifier:
        try:
            lowering = frozenset(p.name for p in resolved.passes() if p.lowers_precision)
            if lowering:
                # Everything else has to be right to float32's precision; what is lowered, to the lower one's.
                exact = _Run(resolved, run.disabled | lowering, paranoid, on_error, pass_timeout)
                _proven(
                    result, exact, pristine, verifier, on_mismatch, reproducer, plugins, _Hooks(None, None)
                )
                run.disabled |= exact.disabled - lowering
                model.ir = pristine.clone().ir
            return _proven(result, run, pristine, verifier, on_mismatch, reproducer, plugins, hooks)
        except BaseException:
            model.ir = pristine.ir
            raise


@dataclass(frozen=True)
class _Hooks:
    """What the caller wants to be told."""

    before: Callable[[str], None] | None
    after: Callable[[StepRecord, Model], None] | None


@dataclass
class _Run:
    """One pipeline, ready to be run any number of times."""

    pipeline: Pipeline
    disabled: frozenset[str]
    paranoid: bool
    on_error: str
    pass_timeout: float
    spared: frozenset[str] = frozenset()

    def __call__(
        self,
        model: Model,
        budget: Budget | None = None,
        hooks: _Hooks | None = None,
    ) -> Runner:
        runner = Runner(
            disabled=self.disabled,
            spared=self.spared,
            budget=budget or Budget(),
            paranoid=self.paranoid,
            on_error=self.on_error,
            pass_timeout=self.pass_timeout,
            before=hooks.before if hooks else None,
            after=hooks.after if hooks else None,
        )
        runner.run(model, self.pipeline)
        return runner


def _proven(
    result: Result,
    run: _Run,
    pristine: Model,
    verifier: Any,
    on_mismatch: str,
    reproducer: Path | None,
    plugins: Sequence[str],
    hooks: _Hooks,
) -> Result:
    """Run, compare, and as long as a culprit is found and may be left out, run again without it."""
    from onnxlathe.verify.blame import find_culprit
    from onnxlathe.verify.reproduce import write_reproducer

    model = result.model
    while True:
        runner = run(model, hooks=hooks)
        result.steps = runner.records
        result.after = Census.of(model)
        result.verdict = verifier.check(model)
        if result.verdict.status != "different":
            return result

        def attempt(budget: Budget) -> tuple[Model, list[StepRecord]]:
            fresh = pristine.clone()
            return fresh, run(fresh, budget).records

        culprit = find_culprit(attempt, verifier.suspicion(model), runner.units)
        if culprit is not None:
            result.culprits.append(culprit)
        if culprit is None or on_mismatch == "fail" or len(result.culprits) > _MAX_CULPRITS:
            if culprit is not None and reproducer is not None:
                result.reproducer = write_reproducer(reproducer, culprit, attempt, verifier, plugins)
            raise Mismatch(
                "the optimized model differs from the original: "
                + (culprit.sentence() if culprit else "no single step of the pipeline is to blame"),
                result,
                hint=_advice(culprit, run.pipeline),
            )
        result.culprits[-1] = replace(culprit, remedy=_leave_out(culprit, run))
        model.ir = pristine.clone().ir


def _lowers(culprit: Culprit, pipeline: Pipeline) -> bool:
    return any(p.name == culprit.rule and p.lowers_precision for p in pipeline.passes())


def _leave_out(culprit: Culprit, run: _Run) -> str:
    """Let the next run go without what is to blame; says what that means, where it is not the whole rule."""
    if not _lowers(culprit, run.pipeline):
        run.disabled |= {culprit.rule}
        return ""
    blamed = frozenset(culprit.before) - run.spared - {""}
    if blamed and len(run.spared) < _MAX_SPARED:
        run.spared |= blamed
        return "it stays in float32"
    run.disabled |= {culprit.rule}
    return (
        f"with {len(run.spared)} kept in float32 it is still wrong, so nothing is lowered: "
        "let `optimize precision MODEL --search` find what must be kept"
    )


def _advice(culprit: Culprit | None, pipeline: Pipeline) -> str:
    """What to do about a culprit."""
    if culprit is None:
        return ""
    if _lowers(culprit, pipeline):
        return "keep that node in float32 (--keep), or let `optimize precision MODEL --search` find all such"
    return "leave the culprit out with --on-mismatch skip"
