"""Why a rule does not fire: where its pattern almost matched, and what stopped it.

The matcher itself only says yes or no, fast. This one runs when somebody asks: the same search, which
remembers how far it came and what was in the way there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxlathe.model import Model
from onnxlathe.rewrite.builder import Builder
from onnxlathe.rewrite.match import (
    Match,
    NoMatch,
    Rest,
    _grows,
    _Matcher,
    _orders,
    _used_elsewhere,
    attribute,
    is_constant,
    is_scalar,
    scalar_value,
)
from onnxlathe.rewrite.pattern import AnyOf, AttrVar, NodePattern, Output, Pattern, Scalar, Var
from onnxlathe.rewrite.rule import LocalRule, Rule, RuleSet, _call


@dataclass(frozen=True)
class NearMiss:
    """A place where a rule almost fired.

    Attributes:
        rule: name of the rule.
        root: the node that the pattern was laid at.
        nodes: the nodes that fitted, root first.
        reason: what stopped it; empty where it fires.
        complete: the whole pattern fitted, and a condition of the rule did not hold.
        fires: nothing stopped it: it would fire here.
    """

    rule: str
    root: ir.Node
    nodes: tuple[ir.Node, ...]
    reason: str
    complete: bool = False
    fires: bool = False


def near_misses(rule: LocalRule, model: Model) -> list[NearMiss]:
    """Where `rule` almost fires in `model`, the nearest first.

    The model's types and shapes must have been inferred. Rules without a pattern only say what they declined
    with a reason.
    """
    found: list[NearMiss] = []
    scopes = [(model.graph, model.opset)]
    scopes += [(f.graph, f.opset_imports.get("", model.opset)) for f in model.ir.functions.values()]
    keys = set(rule.operators())
    for graph, opset in scopes:
        for node in graph.all_nodes():
            if (node.domain, node.op_type) in keys:
                miss = explain(rule, node, opset)
                if miss is not None:
                    found.append(miss)
    found.sort(key=lambda miss: (-miss.fires, -miss.complete, -len(miss.nodes)))
    # A part of what came further is no news.
    told: list[NearMiss] = []
    for miss in found:
        inside = any(set(miss.nodes) < set(other.nodes) for other in told)
        if miss.complete or not inside:
            told.append(miss)
    return told


def explain(rule: LocalRule, node: ir.Node, opset: int) -> NearMiss | None:
    """What stops `rule` at `node`; `None` where not even the second operator fits, or it gives no reason."""
    best: _Tracer | None = None
    fires = False
    for step in _patterns(rule, node):
        for pattern, tags in step.alternatives:
            if (pattern.op_type, pattern.domain) != (node.op_type, node.domain):
                continue
            tracer = _Tracer(Match(node), opset)
            tracer.found.bindings.update(tags)
            done = tracer.run(step, pattern, node)
            if best is None or done or tracer.score > best.score:
                best, fires = tracer, done
            if done:
                break
    if best is not None:
        nodes = tuple(best.deepest) or (node,)
        if fires and opset < rule.min_opset:
            reason = f"it needs opset {rule.min_opset}, and the model has {opset}"
            return NearMiss(rule.name, node, nodes, reason, complete=True)
        reason = "" if fires else best.reason
        if fires or best.stage or (len(nodes) > 1 and reason):
            return NearMiss(rule.name, node, nodes, reason, complete=best.stage > 0 or fires, fires=fires)
        return None
    return _without_pattern(rule, node, opset)


def _patterns(rule: LocalRule, node: ir.Node) -> Iterator[Rule]:
    steps: Sequence[LocalRule] = rule.steps if isinstance(rule, RuleSet) else (rule,)
    for step in steps:
        if isinstance(step, RuleSet):
            yield from _patterns(step, node)
        elif isinstance(step, Rule):
            yield step


def _without_pattern(rule: LocalRule, node: ir.Node, opset: int) -> NearMiss | None:
    op = Builder(opset)
    attempt = rule.attempt(node, op)
    op.rewind(0)
    if attempt.outputs is not None:
        changes = any(a is not b for a, b in zip(attempt.outputs, node.outputs, strict=True))
        reason = ""
        if opset < rule.min_opset:
            changes, reason = False, f"it needs opset {rule.min_opset}, and the model has {opset}"
        return NearMiss(rule.name, node, (node,), reason, complete=True, fires=changes)
    return NearMiss(rule.name, node, (node,), attempt.reason, complete=True) if attempt.reason else None


class _Tracer(_Matcher):
    """The matcher, with a memory of how far it came."""

    def __init__(self, found: Match, opset: int) -> None:
        super().__init__(found, opset)
        self.deepest: list[ir.Node] = []
        self.reason = ""
        self.stage = 0

    @property
    def score(self) -> tuple[int, int]:
        return self.stage, len(self.deepest)

    def run(self, rule: Rule, pattern: NodePattern, node: ir.Node) -> bool:
        found = self.found

        def complete() -> bool:
            problem = _used_elsewhere(found)
            if not problem:
                problem = _grows(found)
            if problem:
                self.note(problem, stage=1)
                return False
            op = Builder(self.opset)
            try:
                verdict = _call(rule.check, found)
                if verdict is False or isinstance(verdict, str):
                    self.note(verdict or "its condition does not hold", stage=2)
                    return False
                if _call(rule.rewrite, found, op) is None:
                    self.note("it declined", stage=2)
                    return False
            except NoMatch as declined:
                self.note(str(declined), stage=2)
                return False
            finally:
                op.rewind(0)
            self.deepest = list(found.nodes)
            return True

        return self.node(pattern, node, complete)

    def note(self, reason: str, stage: int = 0) -> None:
        """Remember `reason` if nothing was further along."""
        if (stage, len(self.found.nodes)) > self.score or not self.reason:
            self.deepest, self.reason, self.stage = list(self.found.nodes), reason, stage

    def value(self, pattern: Pattern | None, value: ir.Value | None, rest: Rest) -> bool:
        problem = self.mismatch(pattern, value)
        if problem:
            self.note(problem)
            return False
        return super().value(pattern, value, rest)

    def node(self, pattern: NodePattern, node: ir.Node, rest: Rest) -> bool:
        problem = self.node_mismatch(pattern, node)
        if problem:
            self.note(problem)
            return False
        return super().node(pattern, node, rest)

    def mismatch(self, pattern: Pattern | None, value: ir.Value | None) -> str:
        """What is wrong with `value` itself, not with what computes it."""
        if isinstance(pattern, AnyOf):
            return ""
        if pattern is None:
            return f"{_name(value)} should be left out" if value is not None else ""
        if isinstance(pattern, Var):
            return self._variable_mismatch(pattern, value)
        if value is None:
            return f"an input is left out where the pattern has {_wanted(pattern)}"
        if isinstance(pattern, Scalar) and not is_scalar(value, pattern.value):
            actual = scalar_value(value)
            what = f"{actual:.7g}" if actual is not None else _kind(value)
            return f"{_name(value)} is {what} rather than the constant {pattern.value:.7g}"
        if isinstance(pattern, Output):
            producer = value.producer()
            if producer is None:
                return f"{_name(value)} is {_kind(value)} rather than the result of {_wanted(pattern)}"
            if value.index() != pattern.index:
                return f"{_name(value)} is another output of {producer.name} than the pattern has"
        return ""

    def _variable_mismatch(self, pattern: Var, value: ir.Value | None) -> str:
        if value is None:
            return "" if pattern.optional else f"the input '{pattern.name}' of the pattern is left out"
        bound = self.found.bindings.get(pattern.name, value)
        if bound is not value:
            return f"'{pattern.name}' is {_name(bound)} in one place and {_name(value)} in another"
        if pattern.constant and not is_constant(value):
            return f"{_name(value)} ('{pattern.name}') is not a constant"
        return ""

    def node_mismatch(self, pattern: NodePattern, node: ir.Node) -> str:
        """What is wrong with the operator `node`."""
        if (node.op_type, node.domain) != (pattern.op_type, pattern.domain):
            return f"{node.name} is {_operator(node)} rather than {pattern.op_type}"
        if pattern.num_outputs != 1 and len(node.outputs) != pattern.num_outputs:
            return f"{node.name} has {len(node.outputs)} outputs rather than {pattern.num_outputs}"
        if node in self.found.nodes and self.found.nodes[node] is not pattern:
            return f"{node.name} would have to be two operators of the pattern"
        if not _orders(pattern, node):
            return f"{node.name} has {len(node.inputs)} inputs rather than {len(pattern.inputs)}"
        for name, wanted in pattern.attributes.items():
            actual: Any = attribute(node, name, self.opset)
            if isinstance(wanted, AttrVar):
                actual = wanted.default if actual is None else actual
                expected = self.found.bindings.get(wanted.name, actual)
            else:
                expected = tuple(wanted) if isinstance(wanted, list) else wanted
            if expected != actual:
                return f"{node.name} has {name}={actual} rather than {expected}"
        return ""


def _operator(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _wanted(pattern: Pattern) -> str:
    if isinstance(pattern, Output):
        return pattern.node.op_type
    return f"the constant {pattern.value:.7g}" if isinstance(pattern, Scalar) else "something"


def _name(value: Any) -> str:
    return f"%{value.name}" if isinstance(value, ir.Value) else "nothing" if value is None else str(value)


def _kind(value: ir.Value) -> str:
    if is_constant(value):
        return "a constant of several elements" if scalar_value(value) is None else "a constant"
    if value.is_graph_input():
        return "an input of the graph"
    producer = value.producer()
    return f"the result of {_operator(producer)}" if producer is not None else "from outside the graph"
