"""Running a pipeline: facts that passes need are provided, every step is recorded, failures are contained."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from onnxlathe._collector import paused
from onnxlathe.defaults import PASS_TIMEOUT
from onnxlathe.errors import LatheError, PassError
from onnxlathe.infer import infer_model
from onnxlathe.model import Model
from onnxlathe.model.tensors import bytes_read
from onnxlathe.pipeline.invariants import broken_invariants
from onnxlathe.pipeline.plan import Fixpoint, Pipeline, Unit
from onnxlathe.pipeline.records import StepRecord, operator_change
from onnxlathe.pipeline.watchdog import limited
from onnxlathe.rewrite.context import Context
from onnxlathe.rewrite.driver import drive
from onnxlathe.rewrite.edit import Names

Observer = Callable[[StepRecord, Model], None]


@dataclass(frozen=True)
class Budget:
    """How much of a pipeline to run; what bisection varies.

    Attributes:
        units: run so many units and stop; `None` for all.
        changes: permit so many changes in the last of them; `None` for all.
    """

    units: int | None = None
    changes: int | None = None


@dataclass
class Runner:
    """Runs pipelines.

    Attributes:
        disabled: passes and rules to leave out, by name.
        spared: nodes that passes which lower precision leave as they are, by name.
        budget: how much to run.
        paranoid: check the IR's invariants after every unit, not only after those of plugins.
        on_error: what a failing plugin means: `fail` ends the run, `skip` goes on without it.
        pass_timeout: seconds that a plugin's pass may take; 0 for no limit.
        before: called with a unit's label when it starts.
        after: called with its record and the model when it is done.
        records: what happened, in order.
        units: how many units were run; what `Budget.units` counts.
    """

    disabled: frozenset[str] = frozenset()
    spared: frozenset[str] = frozenset()
    budget: Budget = field(default_factory=Budget)
    paranoid: bool = False
    on_error: str = "fail"
    pass_timeout: float = PASS_TIMEOUT
    before: Callable[[str], None] | None = None
    after: Observer | None = None
    records: list[StepRecord] = field(default_factory=list)
    units: int = 0
    _facts: set[str] = field(default_factory=set)
    _names: Names | None = None
    _operators: dict[str, int] | None = None

    def run(self, model: Model, pipeline: Pipeline) -> list[StepRecord]:
        """Run `pipeline` over `model` in place.

        Raises:
            PassError: a pass raised or broke the IR; the model is then as it was before a plugin's pass,
                and must be given up after one of ours.
        """
        with paused():
            for step in pipeline.steps:
                self._step(step, model)
        return self.records

    def _step(self, step: Unit | Fixpoint, model: Model) -> int:
        if isinstance(step, Unit):
            return self._unit(step, model)
        total = 0
        for _ in range(step.rounds):
            changes = sum([self._step(inner, model) for inner in step.steps])
            total += changes
            if not changes or self._exhausted:
                return total
        self.records[-1].notes.append(
            f"fixpoint stopped after {step.rounds} rounds with changes still coming"
        )
        return total

    @property
    def _exhausted(self) -> bool:
        return self.budget.units is not None and self.units >= self.budget.units

    def _unit(self, unit: Unit, model: Model) -> int:
        if self._exhausted:
            return 0
        kept = tuple(p for p in unit.passes if p.name not in self.disabled)
        if kept != unit.passes:
            unit = replace(unit, passes=kept)
        if not kept or all(p.min_opset > model.opset for p in kept):
            self.units += 1
            reason = f"needs opset {min(p.min_opset for p in kept)}" if kept else "left out"
            left_out = StepRecord(unit.name, tuple(p.name for p in kept), skipped=reason, ends=unit.ends)
            self.records.append(left_out)
            if self.after is not None and unit.ends:
                self.after(left_out, model)
            return 0
        needs = frozenset[str]().union(*(p.needs for p in unit.passes))
        if "shapes" in needs and "shapes" not in self._facts:
            started = time.perf_counter()
            count = model.count_nodes()
            infer_model(model)
            self._facts.add("shapes")
            self.records.append(
                StepRecord(
                    "shapes",
                    ("shapes",),
                    time.perf_counter() - started,
                    nodes_before=count,
                    nodes_after=count,
                    implied=True,
                )
            )
        self.units += 1
        last = self.budget.units is not None and self.units == self.budget.units
        return self._measured(unit, model, self.budget.changes if last else None)

    def _measured(self, unit: Unit, model: Model, limit: int | None) -> int:
        if self.before is not None:
            self.before(unit.label)
        operators = self._operators or model.count_operators()
        record = StepRecord(
            unit.label,
            tuple(p.name for p in unit.passes),
            nodes_before=sum(operators.values()),
            ends=unit.ends,
        )
        read = bytes_read()
        if self._names is None:
            self._names = Names(model.ir)
        context = Context(
            self._names,
            disabled=self.disabled,
            spared=self.spared,
            limit=limit,
            firings=record.firings,
        )
        started = time.perf_counter()
        try:
            record.changes = self._guarded(unit, model, context)
        except PassError as error:
            if unit.trusted or self.on_error != "skip":
                raise
            record.skipped = error.message
            record.firings.clear()
        record.seconds = time.perf_counter() - started
        record.permits = context.spent
        record.weight_bytes = bytes_read() - read
        record.notes += context.notes
        # Counting and collecting names walk the whole graph: only after what may have changed it.
        remaining = model.count_operators() if record.changes or not unit.trusted else operators
        self._operators = remaining
        if not unit.trusted:
            self._names = None
        record.nodes_after = sum(remaining.values())
        record.operators = operator_change(operators, remaining)
        self.records.append(record)
        if self.after is not None:
            self.after(record, model)
        if record.changes:
            self._facts &= frozenset.intersection(*(p.keeps for p in unit.passes))
        self._facts |= frozenset[str]().union(*(p.gives for p in unit.passes))
        return record.changes

    def _guarded(self, unit: Unit, model: Model, context: Context) -> int:
        """Run the unit; whatever a plugin does, the model before it is not lost."""
        backup: ir.Model | None = None if unit.trusted else model.ir.clone()
        try:
            with limited(0 if unit.trusted else self.pass_timeout, unit.label):
                changes = (
                    drive(model, unit.rules, context) if unit.rules else _run_single(unit, model, context)
                )
            if not isinstance(model.ir, ir.Model):
                raise PassError(f"'{unit.label}' put {model.ir!r} in the place of the model")
            if self.paranoid or not unit.trusted:
                problems = broken_invariants(model)
                if problems:
                    raise PassError(
                        f"'{unit.label}' left the model broken: {'; '.join(problems)}",
                        hint="report this to the author of the pass",
                    )
            return changes
        except PassError:
            if backup is not None:
                model.ir = backup
            raise


def _run_single(unit: Unit, model: Model, context: Context) -> int:
    (only,) = unit.passes
    try:
        changes = only.run(model, context)
        if not isinstance(changes, int):
            raise PassError(
                f"pass '{only.name}' returned {changes!r}", hint="run() returns the number of changes it made"
            )
        if changes and not context.firings:
            context.record(only.name, [])
        return changes
    except LatheError:
        raise
    except (Exception, SystemExit) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise PassError(
            f"pass '{only.name}' failed: {type(error).__name__}: {error} ({frame.filename}:{frame.lineno})",
            hint=f"leave it out, or report it to its author; `optimize passes {only.name}` says who that is",
        ) from error
