"""Rules: local rewrites, tried where they can match.

A `Rule` is a pattern, a condition and a replacement; a `NodeRule` looks at one operator and says what its
outputs should be instead. Both are passes, and several of them run together in one worklist.
"""

from __future__ import annotations

import functools
import inspect
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import onnx_ir as ir

from onnxlathe.model import Model
from onnxlathe.rewrite.builder import Builder
from onnxlathe.rewrite.context import Context
from onnxlathe.rewrite.guard import NodeGuard, node_guard
from onnxlathe.rewrite.match import Match, NoMatch, match_node
from onnxlathe.rewrite.passes import Pass
from onnxlathe.rewrite.pattern import AnyOf, NodePattern, Output, Pattern, PatternBuilder, Var, depth, roots


def require(condition: object, reason: str) -> None:
    """Go on only if `condition` holds; otherwise the rule does not fire, for this `reason`."""
    if not condition:
        raise NoMatch(reason)


def reject(reason: str) -> NoReturn:
    """The rule does not fire, for this `reason`."""
    raise NoMatch(reason)


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of a rule at one node.

    Attributes:
        outputs: the values that replace the root's outputs, in order; `None` where the rule declined.
            An entry is `None` where the root's output is not used.
        matched: the nodes of the match.
        reason: why the rule declined.
    """

    outputs: tuple[ir.Value | None, ...] | None
    matched: tuple[ir.Node, ...] = ()
    reason: str = ""


_DECLINED = Attempt(None)


class LocalRule(Pass):
    """What `Rule` and `NodeRule` share: a place in the worklist driver."""

    needs: ClassVar[frozenset[str]] = frozenset({"shapes"})
    keeps: ClassVar[frozenset[str]] = frozenset({"shapes"})

    reach: ClassVar[int] = 2
    """How many operators upwards of its root the rule looks."""

    @abstractmethod
    def operators(self) -> Sequence[tuple[str, str]]:
        """Domain and type of the operators that the rule may start at."""

    @abstractmethod
    def attempt(self, node: ir.Node, op: Builder) -> Attempt:
        """Try the rule at `node`; new nodes are made with `op`."""

    def run(self, model: Model, context: Context) -> int:
        from onnxlathe.rewrite.driver import drive

        return drive(model, [self], context)


class Rule(LocalRule):
    """A pattern, a condition, a replacement.

    `pattern(self, op, x, …)` is given one variable for each of its parameters and returns the expression to
    look for. `check(self, …)` and `rewrite(self, op, …)` ask for what the pattern bound by naming it in
    their parameters (and for the whole `match`); a parameter with a default may be unbound. `check` declines
    by `require(…, "reason")`, or by returning `False` or a reason.
    """

    @abstractmethod
    def pattern(self, *args: Any, **kwargs: Any) -> Any:
        """The expression to look for."""

    def check(self, *args: Any, **kwargs: Any) -> Any:
        """The condition under which the identity holds."""
        return True

    @abstractmethod
    def rewrite(self, *args: Any, **kwargs: Any) -> Any:
        """The value (or values) that replace the pattern's result."""

    def operators(self) -> Sequence[tuple[str, str]]:
        return tuple(dict.fromkeys((p.domain, p.op_type) for p, _ in self.alternatives))

    @functools.cached_property
    def _built(self) -> Any:
        names = list(inspect.signature(self.pattern).parameters)[1:]
        return self.pattern(PatternBuilder(), *(Var(name) for name in names))

    @functools.cached_property
    def alternatives(self) -> list[tuple[NodePattern, dict[str, int]]]:
        """The node patterns to start from, each with the tags of the `any_of`s above it."""
        return _tagged(self._built)

    @functools.cached_property
    def depth(self) -> int:
        """Operators on the longest way through the pattern."""
        parts = self._built if isinstance(self._built, (tuple, list)) else [self._built]
        return max(depth(part) for part in parts)

    @functools.cached_property
    def _starts(self) -> dict[tuple[str, str], list[tuple[NodePattern, dict[str, int], NodeGuard | None]]]:
        """The `alternatives` by operator, each with its guard."""
        starts: dict[tuple[str, str], list[tuple[NodePattern, dict[str, int], NodeGuard | None]]] = {}
        for pattern, tags in self.alternatives:
            entry = (pattern, tags, node_guard(pattern))
            starts.setdefault((pattern.domain, pattern.op_type), []).append(entry)
        return starts

    def attempt(self, node: ir.Node, op: Builder) -> Attempt:
        starts = self._starts.get((node.domain, node.op_type), ())
        possible = [start for start in starts if start[2] is None or start[2](node)]
        return self._match(possible, node, op) if possible else _DECLINED

    def _match(
        self,
        starts: Sequence[tuple[NodePattern, dict[str, int], NodeGuard | None]],
        node: ir.Node,
        op: Builder,
    ) -> Attempt:
        reason = ""
        outcome: list[Any] = []

        def accept(match: Match) -> bool:
            nonlocal reason
            try:
                verdict = _call(self.check, match)
                if verdict is False or isinstance(verdict, str):
                    reason = verdict or "its condition does not hold"
                    return False
                mark = op.mark()
                replacement = _call(self.rewrite, match, op)
                if replacement is None:
                    op.rewind(mark)
                    reason = "it declined"
                    return False
            except NoMatch as declined:
                op.rewind(0)
                reason = str(declined)
                return False
            outcome.append(replacement)
            return True

        for pattern, tags, _ in starts:
            match = match_node(pattern, node, op.opset, accept, lambda m, t=tags: m.bindings.update(t))  # type: ignore[misc]
            if outcome:
                return Attempt(_outputs(node, outcome[0]), tuple(match.nodes))
            reason = match.reason or reason
        return Attempt(None, reason=reason)


class NodeRule(LocalRule):
    """A local rewrite written as code: given a node, what should its outputs be instead?

    `visit` returns the replacing value, a sequence with one entry per output (`None` for an unused one), or
    `None` to leave the node as it is. It must not change the graph itself. `visits` names the operators,
    with their domain in front (`com.microsoft::Gelu`) where it is not the default one.
    """

    visits: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def visit(self, op: Builder, node: ir.Node) -> ir.Value | Sequence[ir.Value | None] | None:
        """What the node's outputs should be instead, or `None`."""

    def operators(self) -> Sequence[tuple[str, str]]:
        return tuple((d, o) for d, _, o in (v.rpartition("::") for v in self.visits))

    def attempt(self, node: ir.Node, op: Builder) -> Attempt:
        try:
            replacement = self.visit(op, node)
        except NoMatch as declined:
            op.rewind(0)
            return Attempt(None, reason=str(declined))
        if replacement is None:
            op.rewind(0)
            return _DECLINED
        return Attempt(_outputs(node, replacement), (node,))


class RuleSet(LocalRule):
    """Several rules under one name, for an identity that is best said in steps.

    A normalization, say: its core, then a factor, then a summand that it can take in. To users, to the
    pipeline text and to blame it is one rule. `steps` are tried in order; each may have its own `min_opset`.
    """

    steps: ClassVar[tuple[LocalRule, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.reach = max((s.depth if isinstance(s, Rule) else s.reach for s in cls.steps), default=2)

    @functools.cached_property
    def _by_operator(self) -> dict[tuple[str, str], list[LocalRule]]:
        index: dict[tuple[str, str], list[LocalRule]] = {}
        for step in self.steps:
            for key in step.operators():
                index.setdefault(key, []).append(step)
        return index

    def operators(self) -> Sequence[tuple[str, str]]:
        return tuple(self._by_operator)

    def attempt(self, node: ir.Node, op: Builder) -> Attempt:
        reason = ""
        for step in self._by_operator[node.domain, node.op_type]:
            if step.min_opset > op.opset:
                continue
            attempt = step.attempt(node, op)
            if attempt.outputs is not None:
                return attempt
            reason = attempt.reason or reason
        return Attempt(None, reason=reason)


def _tagged(pattern: Any) -> list[tuple[NodePattern, dict[str, int]]]:
    if isinstance(pattern, AnyOf):
        return [
            (node, {**tags, **({pattern.tag: i} if pattern.tag else {})})
            for i, option in enumerate(pattern.options)
            for node, tags in _tagged(option)
        ]
    if isinstance(pattern, (Output, Pattern)):
        return [(node, {}) for node in roots(pattern)]
    return [(node, {}) for node in roots(list(pattern))]


def _outputs(node: ir.Node, replacement: Any) -> tuple[ir.Value | None, ...]:
    values = (replacement,) if isinstance(replacement, ir.Value) else tuple(replacement)
    return values + (None,) * (len(node.outputs) - len(values))


@functools.cache
def _wanted(function: Any) -> tuple[tuple[str, ...], bool]:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    names = tuple(p.name for p in parameters if p.kind is not p.VAR_KEYWORD)
    return names, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _call(method: Any, match: Match, *leading: Any) -> Any:
    """Call `check` or `rewrite` with what it asks for by name."""
    names, everything = _wanted(method.__func__)
    names = names[len(leading) :]
    values = {**match.bindings, "match": match}
    if everything:
        return method(*leading, **values)
    return method(*leading, **{name: values[name] for name in names if name in values})
