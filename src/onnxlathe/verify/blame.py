"""Which change made the model wrong.

Bisection as in LLVM's `-opt-bisect-limit`: the pipeline is deterministic, so running it again with fewer
steps, and then with fewer changes in the last step, finds the first change after which the model computes
something else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxlathe._bisection import smallest
from onnxlathe.model import Model
from onnxlathe.pipeline import Budget, StepRecord
from onnxlathe.rewrite import Firing

Attempt = Callable[[Budget], tuple[Model, Sequence[StepRecord]]]


@dataclass(frozen=True)
class Culprit:
    """The change that a verification blames.

    Attributes:
        rule: name of the pass or rule; what to leave out.
        step: the step of the pipeline that it ran in.
        before: names of the nodes that it replaced; empty where only the pass is known.
        after: names of the nodes that it made.
        right: how much of the pipeline still computes the original's function.
        wrong: how much of it no longer does; one change more.
        remedy: what was done about it, where the run went on.
    """

    rule: str
    step: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    right: Budget = field(default_factory=Budget)
    wrong: Budget = field(default_factory=Budget)
    remedy: str = ""

    def sentence(self) -> str:
        """What happened, for the user."""
        pass_ = f"'{self.rule}'" + (f" (in '{self.step}')" if self.step != self.rule else "")
        if not self.before:
            return f"the pass {pass_} changes what the model computes"
        return f"{pass_} changes what the model computes at node {_some(self.before)}"

    def to_dict(self) -> dict[str, Any]:
        """As plain data for a report."""
        return {
            "rule": self.rule,
            "step": self.step,
            "before": list(self.before),
            "after": list(self.after),
            "sentence": self.sentence(),
            "remedy": self.remedy,
        }


def _some(names: Sequence[str]) -> str:
    """The node whose result was replaced, and how many were replaced with it."""
    others = len(names) - 1
    return f"'{names[0]}'" + (f" and {others} before it" if others else "")


def find_culprit(attempt: Attempt, is_wrong: Callable[[Model], bool], units: int) -> Culprit | None:
    """Find the first change after which the model is wrong.

    Args:
        attempt: runs the pipeline over a fresh copy of the original within a budget.
        is_wrong: whether a model differs from the original.
        units: how many units the whole pipeline ran, after which the model is wrong.

    Returns:
        The culprit, or `None` where no step makes a difference (the original does not agree with itself).
    """

    def wrong(budget: Budget) -> bool:
        return is_wrong(attempt(budget)[0])

    if units < 1 or wrong(Budget(units=0)):
        return None
    unit = smallest(lambda n: wrong(Budget(units=n)), units)
    _, records = attempt(Budget(units=unit))
    record = records[-1]
    whole = Culprit(
        record.passes[0] if len(record.passes) == 1 else record.name,
        record.name,
        right=Budget(units=unit - 1),
        wrong=Budget(units=unit),
    )
    if record.permits < 1 or wrong(Budget(unit, 0)):
        return whole
    change = smallest(lambda n: wrong(Budget(unit, n)), record.permits)
    _, records = attempt(Budget(unit, change))
    firings: list[Firing] = records[-1].firings
    if not firings:
        return whole
    last = firings[-1]
    return Culprit(
        last.rule,
        record.name,
        last.before,
        last.after,
        right=Budget(unit, change - 1),
        wrong=Budget(unit, change),
    )
