"""What a pass may ask of the run that it is part of."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxlathe.rewrite.edit import Names

ORIGIN = "onnxlathe.origin"
"""Key in a node's `metadata_props`: JSON list of the names of the original nodes that it stands for."""


@dataclass(frozen=True, slots=True)
class Firing:
    """One change: which rule made what out of which nodes.

    Attributes:
        rule: name of the rule or pass.
        before: names of the nodes that were there before.
        after: names of the nodes that were made for them (none where values were reused).
    """

    rule: str
    before: tuple[str, ...]
    after: tuple[str, ...] = ()


@dataclass
class Context:
    """The run around a pass.

    Attributes:
        names: hands out names that the model does not have yet.
        disabled: rules and passes left out, by name (a verification blamed them, or the user did).
        spared: names of nodes that nothing may lower to a narrower type (a verification blamed them).
        limit: at most this many changes are permitted; how a wrong one is found by bisection.
        firings: what changed where, in order.
        notes: sentences for the user (what was left alone and why).
        spent: how many changes were permitted so far.
    """

    names: Names
    disabled: frozenset[str] = frozenset()
    spared: frozenset[str] = frozenset()
    limit: int | None = None
    firings: list[Firing] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    spent: int = 0

    @classmethod
    def of(cls, model: ir.Model, **options: object) -> Context:
        """A context for passes over `model`."""
        return cls(Names(model), **options)  # type: ignore[arg-type]

    def permit(self, rule: str) -> bool:
        """Whether `rule` may make one more change; ask right before each change that stands by itself.

        A pass that asks lets a wrong result be traced to the single change that caused it.
        """
        if rule in self.disabled or (self.limit is not None and self.spent >= self.limit):
            return False
        self.spent += 1
        return True

    def record(self, rule: str, before: Iterable[ir.Node], after: Iterable[ir.Node] = ()) -> None:
        """Note a change, and let the new nodes say which original nodes they stand for."""
        before, after = list(before), list(after)
        if after:
            carry_origin(before, after)
        self.firings.append(
            Firing(rule, tuple(n.name or "" for n in before), tuple(n.name or "" for n in after))
        )

    def note(self, sentence: str) -> None:
        """Tell the user something, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def fired(self) -> Counter[str]:
        """How often each rule changed something."""
        return Counter(firing.rule for firing in self.firings)


def origin(node: ir.Node) -> list[str]:
    """Names of the nodes of the original model that `node` stands for; itself where it is one of them."""
    text = node.metadata_props.get(ORIGIN)
    if text is None:
        return [node.name] if node.name else []
    try:
        names = json.loads(text)
    except ValueError:
        return [text]
    return [str(name) for name in names] if isinstance(names, list) else [str(names)]


def carry_origin(before: Iterable[ir.Node], after: Iterable[ir.Node]) -> None:
    """Write on each of `after` that it stands for all that `before` stood for.

    Other metadata (an exporter's module paths) is taken from the first node of `before`, the one whose
    result is replaced.
    """
    before = list(before)
    names = list(dict.fromkeys(name for node in before for name in origin(node)))
    text = json.dumps(names, ensure_ascii=False)
    for node in after:
        if before:
            for key, value in before[0].metadata_props.items():
                node.metadata_props.setdefault(key, value)
        node.metadata_props[ORIGIN] = text
