"""What happened to a model, step by step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from onnxlathe.rewrite.context import Firing


@dataclass
class StepRecord:
    """One unit of a pipeline, as it was run.

    Attributes:
        name: the word of the pipeline text; `fuse:conv_bn` for one member of a group.
        passes: the passes that ran in it.
        seconds: wall time.
        nodes_before: nodes in all graphs before.
        nodes_after: nodes in all graphs after.
        operators: change in the number of nodes by operator (zero left out).
        firings: every single change, in order.
        changes: how many changes the unit made.
        permits: how many changes it asked permission for, one by one.
        weight_bytes: bytes of weights that were read for it.
        notes: what it wants to tell the user.
        implied: the runner added it because a later pass needs what it provides.
        skipped: why it was left out, where it was.
        ends: with it ends what the word of the pipeline text stands for: the whole group, where it is one.
    """

    name: str
    passes: tuple[str, ...]
    seconds: float = 0.0
    nodes_before: int = 0
    nodes_after: int = 0
    operators: dict[str, int] = field(default_factory=dict)
    firings: list[Firing] = field(default_factory=list)
    changes: int = 0
    permits: int = 0
    weight_bytes: int = 0
    notes: list[str] = field(default_factory=list)
    implied: bool = False
    skipped: str = ""
    ends: bool = True

    @property
    def fired(self) -> dict[str, int]:
        """How often each rule or pass changed something, the most frequent first."""
        return dict(Counter(firing.rule for firing in self.firings).most_common())

    def to_dict(self) -> dict[str, Any]:
        """As plain data for a report."""
        return {
            "name": self.name,
            "passes": list(self.passes),
            "seconds": round(self.seconds, 6),
            "nodes": {"before": self.nodes_before, "after": self.nodes_after},
            "operators": self.operators,
            "changes": self.changes,
            "fired": self.fired,
            "firings": [
                {"rule": f.rule, "before": list(f.before), "after": list(f.after)} for f in self.firings
            ],
            "weight_bytes": self.weight_bytes,
            "notes": self.notes,
            "implied": self.implied,
            "skipped": self.skipped,
        }


def operator_change(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """How many more (or fewer) nodes of each operator there are, zero left out."""
    names = sorted({*before, *after})
    change = {name: after.get(name, 0) - before.get(name, 0) for name in names}
    return {name: count for name, count in change.items() if count}
