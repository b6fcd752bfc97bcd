"""What a comparison found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from .tolerance import NORM_ATOL, Tolerance

Status = Literal["equal", "different", "partially checked", "unchecked"]


@dataclass
class Feed:
    """One set of inputs that both models were run on.

    Attributes:
        label: where it is from: ``seed 0, batch=2, seq=8`` or a file of the user's.
        shapes: of each input.
    """

    label: str
    shapes: dict[str, list[int]] = field(default_factory=dict)


@dataclass
class Comparison:
    """One output on one feed.

    Attributes:
        output: name of the output; elements of a sequence are ``name[0]``, ``name[1]``, …
        feed: index into `Verdict.feeds`.
        dtype, shape: of the original's output.
        passed: within tolerance, with the same shape, type, NaNs and infinities.
        reason: why not, as a sentence; empty when passed.
        largest: magnitude of the original's largest element, over elements finite in both.
        max_abs, mean_abs, rms_difference: of the absolute difference, over the same.
        max_rel: largest difference relative to the original's element, where that is not zero.
        rel_norm: Euclidean norm of the difference over that of the original's output.
        cosine: cosine of the angle between the two, as vectors.
        excess: largest ratio of a difference to what was allowed for it; up to 1 passes.
        nonfinite_agree: NaN and infinities are at the same places, with the same sign.
        finite: how many elements the numbers above are over.
        worst_index, expected, actual: the element with the largest excess.
        tolerance: what was allowed.
    """

    output: str
    feed: int
    dtype: str
    shape: list[int]
    passed: bool
    reason: str = ""
    largest: float = 0.0
    max_abs: float = 0.0
    mean_abs: float = 0.0
    rms_difference: float = 0.0
    max_rel: float = 0.0
    rel_norm: float = 0.0
    cosine: float = 1.0
    excess: float = 0.0
    nonfinite_agree: bool = True
    finite: int = 0
    worst_index: list[int] | None = None
    expected: float | None = None
    actual: float | None = None
    tolerance: Tolerance = field(default_factory=Tolerance)

    @property
    def telling(self) -> bool:
        """False where zeros would have passed as well, and the difference is not small beside the output itself.

        Such an output is smaller than the absolute tolerance, and that it passed says nothing.
        """
        allowed = self.tolerance
        own = allowed.rtol if allowed.norm is None else allowed.norm
        if not self.passed or self.rel_norm <= own or not math.isfinite(self.rel_norm):
            return True
        if self.largest * (1 - allowed.rtol) > allowed.atol:
            return True
        mean_square = self.rms_difference / self.rel_norm
        return allowed.norm is not None and mean_square * (1 - own) > allowed.atol * NORM_ATOL


@dataclass
class Unchecked:
    """Something that could not be compared.

    Attributes:
        output: name of the output, or empty for all of them.
        reason: why, as a sentence for the user.
        operator: the operator that stands in the way (``domain::Op``), if one does.
        node: the name of its node.
        hint: what the user could do.
    """

    output: str
    reason: str
    operator: str = ""
    node: str = ""
    hint: str = ""


@dataclass
class Verdict:
    """What a comparison of two models found.

    Attributes:
        comparisons: of every output on every feed.
        unchecked: outputs (or everything) that were not compared, and why.
        feeds: what the models were run on.
        error: why the optimized model cannot be run at all although the original can; empty if it can.
        notes: what else the reader should know (feeds that the original refused, …).
        interface: how the optimized model is called otherwise than the original, and compared all the same.
        segments: in how many segments the models were compared; 0 for whole models.
        seconds: how long it took.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    unchecked: list[Unchecked] = field(default_factory=list)
    feeds: list[Feed] = field(default_factory=list)
    error: str = ""
    notes: list[str] = field(default_factory=list)
    interface: list[str] = field(default_factory=list)
    segments: int = 0
    seconds: float = 0.0

    @property
    def status(self) -> Status:
        """``equal`` only if every output was compared and passed on every feed."""
        if self.error or any(not c.passed for c in self.comparisons):
            return "different"
        if not any(0 not in c.shape for c in self.comparisons):
            return "unchecked"  # nothing, or nothing but empty tensors
        return "partially checked" if self.unchecked else "equal"

    @property
    def failures(self) -> list[Comparison]:
        """The comparisons that did not pass, the worst first."""
        return sorted((c for c in self.comparisons if not c.passed), key=_badness, reverse=True)

    def worst(self) -> Comparison | None:
        """The comparison furthest from (or nearest to) what was allowed; None if there is none."""
        return max(self.comparisons, key=_badness, default=None)

    def summary(self) -> str:
        """One line for a person."""
        worst = self.worst()
        if self.error:
            return f"different: {self.error}"
        if self.status == "different" and worst is not None:
            feed = self.feeds[worst.feed].label if worst.feed < len(self.feeds) else ""
            return f"different: output {worst.output!r} {worst.reason} ({feed})"
        outputs = len({c.output for c in self.comparisons})
        parts: list[str] = [self.status]
        if worst is not None:
            feeds = len(self.feeds)
            parts.append(
                f"{outputs} output{'s' * (outputs != 1)} on {feeds} feed{'s' * (feeds != 1)}, "
                f"largest difference {max(c.max_abs for c in self.comparisons):.2g} "
                f"(relative {max(c.rel_norm for c in self.comparisons):.2g})"
            )
        if self.segments:
            parts.append(f"in {self.segments} segment{'s' * (self.segments != 1)}")
        if self.unchecked:
            first = self.unchecked[0]
            parts.append(f"not checked: {first.output or 'all outputs'}, {first.reason}")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON takes it; numbers that are not finite become strings (``"inf"``)."""
        worst = self.worst()
        return {
            "status": self.status,
            "summary": self.summary(),
            "worst": _jsonable(asdict(worst)) if worst is not None else None,
            **_jsonable(asdict(self)),
        }


def too_small(comparisons: Sequence[Comparison]) -> list[Unchecked]:
    """Outputs that passed on every feed, and on each only because they are smaller than the tolerance."""
    by_output: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        by_output.setdefault(comparison.output, []).append(comparison)
    found = []
    for name, those in by_output.items():
        if any(c.telling for c in those):
            continue
        largest, allowed = max(c.largest for c in those), those[0].tolerance.atol
        found.append(
            Unchecked(
                name,
                f"is smaller than the tolerance: {largest:.2g} at most, where {allowed:.2g} may differ",
                hint=f"a smaller one: --atol {name}:{largest / 100:.0e}",
            )
        )
    return found


def _badness(comparison: Comparison) -> tuple[bool, float, float]:
    excess = math.inf if math.isnan(comparison.excess) else comparison.excess
    return (not comparison.passed, excess, comparison.rel_norm)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _jsonable(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_jsonable(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
