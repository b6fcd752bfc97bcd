"""Finding the nodes that must stay in a wider type for a tolerance to be met.

The model runs in both types. Nodes are ranked by the error that they introduce, the worst are kept in
float32 until the outputs are right, and delta debugging takes away what was not needed. Every trial is the
pass `precision` with constraints and what follows it, judged on the whole model: what is found is what the pass
does later.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import onnx_ir as ir

from onnxlathe._files import write_whole
from onnxlathe.errors import LatheError, UsageError, VerificationError
from onnxlathe.model import Model
from onnxlathe.pipeline import Item, Registry, Runner, plan

from .constraints import Constraint, Constraints, dump_constraints
from .ddmin import ddmin
from .emulate import emulate
from .probe import NodeError, compare, groups, largest_of, low_nodes, shadows
from .types import FLOAT32, type_name

if TYPE_CHECKING:
    from onnxlathe.verify import Verdict, Verifier


@dataclass(frozen=True)
class SearchOptions:
    """What to search for.

    Attributes:
        type: the type to lower to, `float16` or `bfloat16`.
        base: constraints that hold anyway.
        keep_io_types, protect: options of the pass `precision`.
        error: largest relative error (of the Euclidean norm) allowed in any output; None: the tolerances of
            the verification.
        wider: also try this low type for the nodes found, before float32: `bfloat16` or nothing.
        max_trials: stop after so many trials, with the best found.
        after: what runs after the pass `precision` in the model that is delivered, as text of a pipeline.
    """

    type: str = "float16"
    base: tuple[Constraint, ...] = ()
    keep_io_types: bool = False
    protect: bool = True
    error: float | None = None
    wider: str = ""
    max_trials: int = 200
    after: str = ""


@dataclass
class Trial:
    """One mixed model that was run.

    Attributes:
        kept: nodes kept out of the low type, by name, each with its type.
        passed: whether all outputs were within the tolerance.
        error: largest relative error of an output; infinite where it has NaN or infinities of its own.
        seconds: what it took.
    """

    kept: dict[str, str]
    passed: bool
    error: float
    seconds: float = 0.0


@dataclass
class SearchResult:
    """What was found.

    Attributes:
        constraints: the file to write.
        before: the trial with nothing kept.
        after: the trial with what was found.
        ranking: nodes by the error that they introduce, the worst first.
        trials: how many mixed models were run, and how many of them in an earlier, interrupted search.
        resumed: see `trials`.
        complete: whether every node found was shown to be needed.
        remarks: outputs by which the last model that was run could not be judged, and why.
    """

    constraints: Constraints
    before: Trial
    after: Trial
    ranking: list[NodeError] = field(default_factory=list)
    trials: int = 0
    resumed: int = 0
    complete: bool = True
    remarks: list[str] = field(default_factory=list)


class Search:
    """One search.

    Args:
        model: the float32 model as it is before `precision`, types and shapes known; it is not changed.
        verifier: holds the original and the feeds.
        options: what to search for.
        registry: has the pass `precision`.
        state: file that trials are remembered in; an interrupted search goes on from there.
        identity: what `state` belongs to (a hash of model, pipeline and data).
        say: called with a sentence about each trial.
    """

    def __init__(
        self,
        model: Model,
        verifier: Verifier,
        options: SearchOptions,
        registry: Registry,
        *,
        state: Path | None = None,
        identity: str = "",
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.model, self.verifier, self.options, self.registry = model, verifier, options, registry
        self.say = say or (lambda _: None)
        self._folder = tempfile.TemporaryDirectory(prefix="onnxlathe-precision-")
        self._state = _State(state, identity)
        self._number = 0
        self._new = 0
        self.exhausted = False
        self.remarks: list[str] = []

    def run(self) -> SearchResult:
        """Search.

        Raises:
            VerificationError: the tolerance is missed even in float32.
            LatheError: the model cannot be run.
        """
        options = self.options
        first = self.trial({})
        result = SearchResult(self.constraints({}), first, first)
        if not first.passed:
            ranking = self.rank()
            result.ranking = ranking
            kept = self.grow(ranking)
            kept = ddmin(kept, self.works)
            result.complete = not self.exhausted
            chosen = dict.fromkeys(kept, type_name(FLOAT32))
            if options.wider:
                chosen = self.narrow(chosen)
            result.after = self.trial(chosen)
            result.constraints = self.constraints(chosen, {e.name: e for e in ranking})
        result.remarks = self.remarks
        result.trials, result.resumed = self._state.count, self._state.count - self._new
        result.constraints.search.update(
            error_before=_number(first.error),
            error_after=_number(result.after.error),
            allowed=options.error if options.error is not None else "tolerances of the verification",
            trials=result.trials,
            minimal=result.complete,
        )
        return result

    # --- Trials --------------------------------------------------------------------------------------------

    def mixed(self, kept: Mapping[str, str]) -> Model:
        """The model with constraints applied, by the pass itself."""
        self._number += 1
        path = Path(self._folder.name) / f"constraints{self._number}.json"
        dump_constraints(self.constraints(kept), path)
        item = Item(
            "precision",
            {
                "type": self.options.type,
                "constraints": str(path),
                "keep_io_types": self.options.keep_io_types,
                "protect": self.options.protect,
            },
        )
        model = self.model.clone()
        Runner().run(model, plan([item], self.registry))
        path.unlink()
        return model

    def delivered(self, kept: Mapping[str, str]) -> Model:
        """The model as it would be delivered: what follows the pass may compute in another way (Attention)."""
        model = self.mixed(kept)
        if self.options.after:
            Runner().run(model, plan(self.options.after, self.registry))
        return model

    def trial(self, kept: Mapping[str, str]) -> Trial:
        """Run the model with some nodes kept, unless that is known already."""
        known = self._state.get(kept)
        if known is not None:
            return known
        started = time.perf_counter()
        verdict = self.verifier.check(self.delivered(kept))
        self.remarks = [f"output {u.output!r} {u.reason}" for u in verdict.unchecked if u.output]
        trial = self.judge(verdict, dict(kept))
        trial.seconds = round(time.perf_counter() - started, 3)
        self._state.add(trial)
        self._new += 1
        self.say(
            f"{len(kept)} nodes kept: error {_shown(trial.error)}, {'enough' if trial.passed else 'not enough'}"
        )
        return trial

    def judge(self, verdict: Verdict, kept: dict[str, str]) -> Trial:
        """A verdict as a trial."""
        if verdict.error:
            raise LatheError(f"the mixed model cannot be run: {verdict.error}")
        if not verdict.comparisons:
            reasons = "; ".join(u.reason for u in verdict.unchecked) or "nothing could be compared"
            raise LatheError(f"the search has nothing to go by: {reasons}")
        error = max(c.rel_norm if c.nonfinite_agree else math.inf for c in verdict.comparisons)
        if self.options.error is not None:
            passed = error <= self.options.error and all(c.nonfinite_agree for c in verdict.comparisons)
        else:
            passed = all(c.passed for c in verdict.comparisons)
        return Trial(kept, passed, error)

    def works(self, names: Sequence[str]) -> bool | None:
        """Whether keeping these nodes in float32 is enough; None where no more trials are allowed."""
        kept = dict.fromkeys(names, type_name(FLOAT32))
        if self._state.get(kept) is None and self._new >= self.options.max_trials:
            self.exhausted = True
            return None
        return self.trial(kept).passed

    # --- The search ----------------------------------------------------------------------------------------

    def rank(self) -> list[NodeError]:
        """All nodes that would be lowered, those with the largest errors first."""
        mixed = self.mixed({})
        types = low_nodes(mixed)
        errors = {n.name: NodeError(n.name, n.op_type) for n in mixed.graph if n.name in types and n.name}
        probe, twins = shadows(self.model, types)
        emulated = emulate(mixed)
        for feed in range(min(2, self.verifier.feed_count)):
            self.say(f"measuring {len(types)} nodes on feed {feed + 1}")
            for error in self._measure(probe, twins, emulated, types, feed):
                errors[error.name].worst(error)
        order = {name: number for number, name in enumerate(errors)}
        return sorted(errors.values(), key=lambda e: (-e.score, order[e.name]))

    def _measure(
        self,
        probe: Model,
        twins: Mapping[str, str],
        emulated: Model,
        types: Mapping[str, ir.DataType],
        feed: int,
    ) -> Iterable[NodeError]:
        there = {v.name for n in emulated.graph for v in n.outputs}
        gathered: dict[str, float] = {}
        chosen = [n for n in self.model.graph if n.name in types]
        for batch in groups(chosen):
            outputs = [v.name for n in batch for v in n.outputs if v.name in twins and v.name]
            operands = [
                v.name
                for n in batch
                for v in n.inputs
                if v is not None and v.name and v.dtype == FLOAT32 and not v.is_initializer()
            ]
            wanted = list(dict.fromkeys([*outputs, *operands, *(twins[name] for name in outputs)]))
            exact = self.verifier.record(probe, wanted, feed)
            lowered = self.verifier.record(emulated, [n for n in outputs if n in there], feed)
            for node in batch:
                error = NodeError(node.name or "", node.op_type)
                before = 0.0
                for value in node.inputs:
                    if value is not None:
                        before = max(before, gathered.get(value.name or "", 0.0))
                for value in node.outputs:
                    name = value.name or ""
                    if name not in twins:
                        continue
                    own, lost, vanished = compare(exact[name], exact[twins[name]])
                    error.own, error.vanishing = max(error.own, own), max(error.vanishing, vanished)
                    broken = lost
                    if name in lowered:
                        all_in_all, broken, _ = compare(exact[name], lowered[name])
                        gathered[name] = all_in_all = math.inf if broken else all_in_all
                        error.gathered = max(error.gathered, all_in_all)
                    # A mask that the pass cuts off is infinite in the twin only.
                    error.overflows += lost if broken else 0
                seen = [
                    exact[v.name] for v in (*node.inputs, *node.outputs) if v is not None and v.name in exact
                ]
                error.largest = largest_of(seen)
                error.jump = max(0.0, error.gathered - before) if math.isfinite(before) else 0.0
                yield error

    def grow(self, ranking: Sequence[NodeError]) -> list[str]:
        """The worst nodes, as many as it takes.

        Raises:
            VerificationError: all of them are not enough.
        """
        names = [error.name for error in ranking]
        certain = sum(1 for error in ranking if math.isinf(error.score))
        sizes = [certain] if certain else []
        size = max(1, certain)
        while size < len(names):
            sizes.append(size)
            size *= 2
        for count in dict.fromkeys([*sizes, len(names)]):
            answer = self.works(names[:count])
            if answer is None:
                break
            if answer:
                return names[:count]
        raise VerificationError(
            "the tolerance is not met even with every node in float32"
            if not self.exhausted
            else f"no set was found within {self.options.max_trials} trials",
            hint="allow a larger error (--error), or give inputs that are like the real ones (--data)",
        )

    def narrow(self, kept: Mapping[str, str]) -> dict[str, str]:
        """Give nodes the other low type where that is enough, all at once or one by one."""
        # In float32 a kept node draws its neighbours along where that saves Casts; here they are named.
        drawn = low_nodes(self.mixed({})).keys() - low_nodes(self.mixed(kept)).keys()
        for names in (list(kept), sorted(drawn | kept.keys())):
            attempt = dict.fromkeys(names, self.options.wider)
            if names and self.trial(attempt).passed:
                return attempt
        chosen = dict(kept)
        for name in list(kept):
            if self._new >= self.options.max_trials:
                break
            attempt = {**chosen, name: self.options.wider}
            if self.trial(attempt).passed:
                chosen = attempt
        return chosen

    def constraints(
        self, kept: Mapping[str, str], errors: Mapping[str, NodeError] | None = None
    ) -> Constraints:
        """The base constraints and those of a set of nodes."""
        found = list(self.options.base)
        for name, kind in kept.items():
            error = (errors or {}).get(name)
            found.append(
                Constraint(
                    type=kind,
                    node=name,
                    reason=error.reason if error is not None else "",
                    statistic=error.statistic() if error is not None else {},
                )
            )
        return Constraints(type=self.options.type, keep=found)

    def close(self) -> None:
        """Remove temporary files."""
        self._folder.cleanup()


class _State:
    """Trials that were run, in memory and in a file."""

    def __init__(self, path: Path | None, identity: str) -> None:
        self.path, self.identity = path, identity
        self._trials: dict[str, Trial] = {}
        if path is not None and path.exists():
            try:
                data = json.loads(path.read_text())
                if data.get("identity") == identity:
                    for entry in data["trials"]:
                        trial = msgspec.convert({**entry, "error": float(entry["error"])}, Trial)
                        self._trials[self._key(trial.kept)] = trial
            except (ValueError, KeyError, TypeError, OSError, msgspec.ValidationError) as error:
                raise UsageError(
                    f"'{path}' is not the state of a search: {error}", hint="remove it to start anew"
                ) from None

    @property
    def count(self) -> int:
        return len(self._trials)

    @staticmethod
    def _key(kept: Mapping[str, str]) -> str:
        return hashlib.sha256(json.dumps(sorted(kept.items())).encode()).hexdigest()

    def get(self, kept: Mapping[str, str]) -> Trial | None:
        return self._trials.get(self._key(kept))

    def add(self, trial: Trial) -> None:
        self._trials[self._key(trial.kept)] = trial
        if self.path is None:
            return
        data: dict[str, Any] = {
            "identity": self.identity,
            "trials": [{**asdict(t), "error": repr(t.error)} for t in self._trials.values()],
        }
        try:
            write_whole(self.path, json.dumps(data).encode())
        except OSError as error:
            raise LatheError(f"cannot write '{self.path}': {error.strerror}") from error


def _number(error: float) -> float:
    return float(f"{error:.4g}")


def _shown(error: float) -> str:
    return "NaN or infinity" if math.isinf(error) else f"{error:.2e}"


__all__ = ["Search", "SearchOptions", "SearchResult", "Trial"]
