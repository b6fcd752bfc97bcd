"""Matching a pattern against the graph, upwards from one node.

Backtracking in continuation-passing style: each step is handed what remains to be matched and says whether
that succeeded, so commutative inputs and alternatives are tried until the whole, including the rule's own
`check`, holds.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxlathe.infer import constant, dims_of, schema_of
from onnxlathe.rewrite.pattern import (
    COMMUTATIVE,
    AnyOf,
    AttrVar,
    NodePattern,
    Output,
    Pattern,
    Scalar,
    Var,
)


class NoMatch(Exception):
    """Raised by a rule's `check` or `rewrite` to decline, with the reason as its message."""


@dataclass(slots=True)
class Match:
    """What a pattern was bound to.

    Attributes:
        root: the node whose outputs the rewrite replaces.
        bindings: value, node or attribute by the name that the pattern gave it.
        nodes: the matched nodes, root included; those that nothing else uses go away with a rewrite.
        reason: why the last attempt failed, for explanations.
    """

    root: ir.Node
    bindings: dict[str, Any] = field(default_factory=dict)
    nodes: dict[ir.Node, NodePattern] = field(default_factory=dict)
    reason: str = ""

    def __getitem__(self, name: str) -> Any:
        return self.bindings[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.bindings.get(name, default)


Rest = Callable[[], bool]


def match_node(
    pattern: NodePattern,
    node: ir.Node,
    opset: int,
    accept: Callable[[Match], bool],
    choose: Callable[[Match], None] | None = None,
) -> Match:
    """Match `pattern` with `node` as its root.

    Args:
        pattern: the root of the pattern.
        node: the node to start at.
        opset: version of the node's operator set, for the defaults of absent attributes.
        accept: the last word on a complete match; `False` makes the search go on.
        choose: called first, to bind what led to this root (the tag of a top-level `any_of`).

    Returns:
        The match; `bindings` is empty and `reason` says why where there is none.
    """
    found = Match(node)
    if choose is not None:
        choose(found)

    def complete() -> bool:
        problem = _used_elsewhere(found) or _grows(found)
        if problem:
            found.reason = problem
            return False
        return accept(found)

    if not _Matcher(found, opset).node(pattern, node, complete):
        found.bindings.clear()
        found.nodes.clear()
    return found


class _Matcher:
    def __init__(self, found: Match, opset: int) -> None:
        self.found = found
        self.opset = opset

    def value(self, pattern: Pattern | None, value: ir.Value | None, rest: Rest) -> bool:
        if pattern is None:
            return value is None and rest()
        if isinstance(pattern, Var):
            return self._variable(pattern, value, rest)
        if value is None:
            return False
        if isinstance(pattern, Output):
            producer = value.producer()
            if producer is None or value.index() != pattern.index:
                return False
            return self.node(pattern.node, producer, rest)
        if isinstance(pattern, AnyOf):
            return self._alternative(pattern, value, rest)
        if isinstance(pattern, Scalar):
            return is_scalar(value, pattern.value) and rest()
        raise TypeError(f"not a pattern: {pattern!r}")

    def node(self, pattern: NodePattern, node: ir.Node, rest: Rest) -> bool:
        found = self.found
        if node.op_type != pattern.op_type or node.domain != pattern.domain:
            return False
        if node in found.nodes:
            # A value used twice in the pattern is the same node pattern met again.
            return found.nodes[node] is pattern and rest()
        if pattern.num_outputs != 1 and len(node.outputs) != pattern.num_outputs:
            return False
        before = {name: found.bindings[name] for name in _names(pattern) if name in found.bindings}
        if not self._attributes(pattern, node):
            return False
        found.nodes[node] = pattern
        if pattern.name:
            found.bindings[pattern.name] = node
        for order in _orders(pattern, node):
            if self._inputs(pattern.inputs, order, rest):
                return True
        del found.nodes[node]
        # A pattern met at a second node must leave what it bound at the first.
        for name in _names(pattern):
            found.bindings.pop(name, None)
        found.bindings.update(before)
        return False

    def _inputs(
        self, patterns: tuple[Pattern | None, ...], values: Sequence[ir.Value | None], rest: Rest
    ) -> bool:
        if not patterns:
            return rest()
        return self.value(patterns[0], values[0], lambda: self._inputs(patterns[1:], values[1:], rest))

    def _variable(self, pattern: Var, value: ir.Value | None, rest: Rest) -> bool:
        bindings = self.found.bindings
        if value is None and not pattern.optional:
            return False
        if pattern.name in bindings:
            return bindings[pattern.name] is value and rest()
        if pattern.constant and value is not None and not is_constant(value):
            return False
        bindings[pattern.name] = value
        if rest():
            return True
        del bindings[pattern.name]
        return False

    def _alternative(self, pattern: AnyOf, value: ir.Value, rest: Rest) -> bool:
        bindings = self.found.bindings
        before = bindings.get(pattern.tag)
        for index, option in enumerate(pattern.options):
            if pattern.tag:
                bindings[pattern.tag] = index
            if self.value(option, value, rest):
                return True
            if before is None:
                bindings.pop(pattern.tag, None)
            else:
                bindings[pattern.tag] = before
        return False

    def _attributes(self, pattern: NodePattern, node: ir.Node) -> bool:
        """Whether the attributes agree with the pattern; bind the variables if so."""
        bound: dict[str, Any] = {}
        for name, wanted in pattern.attributes.items():
            try:
                actual = attribute(node, name, self.opset)
            except NoMatch as unknown:
                self.found.reason = str(unknown)
                return False
            if isinstance(wanted, AttrVar):
                actual = wanted.default if actual is None else actual
                if self.found.bindings.get(wanted.name, actual) != actual:
                    return False
                bound[wanted.name] = actual
            elif actual != (tuple(wanted) if isinstance(wanted, list) else wanted):
                return False
        self.found.bindings.update(bound)
        return True


def _names(pattern: NodePattern) -> list[str]:
    """What the pattern binds for a node itself: its attributes and its name."""
    names = [wanted.name for wanted in pattern.attributes.values() if isinstance(wanted, AttrVar)]
    return [*names, pattern.name] if pattern.name else names


def _orders(pattern: NodePattern, node: ir.Node) -> list[Sequence[ir.Value | None]]:
    """The ways in which the node's inputs can be laid against the pattern's."""
    inputs: Sequence[ir.Value | None] = node.inputs
    want = len(pattern.inputs)
    if len(inputs) > want:
        if any(v is not None for v in inputs[want:]):
            return []
        inputs = inputs[:want]
    elif len(inputs) < want:
        inputs = (*inputs, *[None] * (want - len(inputs)))
    if pattern.op_type in COMMUTATIVE and pattern.domain == "" and 1 < len(inputs) <= 4:
        return [list(order) for order in itertools.permutations(inputs)]
    return [inputs]


def _used_elsewhere(found: Match) -> str:
    """Why the inner nodes cannot be removed, or nothing."""
    for node, pattern in found.nodes.items():
        if node is found.root or pattern.shared:
            continue
        if node.graph is not found.root.graph:
            return f"{node.name} lies outside the subgraph of {found.root.name}"
        for output in node.outputs:
            if output.is_graph_output():
                return f"{output.name} is an output of the model"
            for user, _ in output.uses():
                if user not in found.nodes:
                    return f"{output.name} is also used by {user.name}"
    return ""


def _grows(found: Match) -> str:
    """Where a one-element constant of higher rank than its partner would add dimensions to the result.

    `x * [[[0.5]]]` is not `x * 0.5` for a vector x: rules may then drop the constant without a thought.
    """
    for node, pattern in found.nodes.items():
        if not any(isinstance(operand, Scalar) for operand in pattern.inputs):
            continue
        for value in node.inputs:
            rank = _rank(value)
            if not rank or not is_constant(value):
                continue
            others = [_rank(v) for v in node.inputs if v is not None and v is not value]
            if others and (None in others or rank > max(r for r in others if r is not None)):
                return f"{node.name} broadcasts over a constant of rank {rank}"
    return ""


def _rank(value: ir.Value | None) -> int | None:
    shape = dims_of(value) if value is not None else None
    return None if shape is None else len(shape)


def attribute(node: ir.Node, name: str, opset: int) -> Any:
    """The value of an attribute, its schema's default where it is absent, or `None`.

    Raises:
        NoMatch: the caller of the function that the node is in decides it.
    """
    found = node.attributes.get(name)
    if found is not None:
        if found.is_ref():
            raise NoMatch(f"{node.name} takes '{name}' from the caller of its function")
        return found.value
    return attribute_defaults(node.op_type, node.domain, opset).get(name)


@functools.cache
def attribute_defaults(op_type: str, domain: str, opset: int) -> Mapping[str, Any]:
    """What the absent attributes of an operator mean, by its schema; lists come as tuples."""
    import onnx

    schema = schema_of(op_type, domain, opset)
    if schema is None:
        return {}
    values = {}
    for name, spec in schema.attributes.items():
        if spec.default_value.type:
            value = onnx.helper.get_attribute_value(spec.default_value)
            if isinstance(value, bytes):
                value = value.decode()
            values[name] = tuple(value) if isinstance(value, list) else value
    return values


@functools.cache
def input_types(op_type: str, opset: int) -> tuple[frozenset[int], ...]:
    """The element types (numbers of `TensorProto.DataType`) that each input of a standard operator may have."""
    import onnx

    schema = schema_of(op_type, "", opset)
    if schema is None:
        return ()
    return tuple(
        frozenset(
            onnx.TensorProto.DataType.Value(text[7:-1].upper())
            for text in formal.types
            if text.startswith("tensor(")
        )
        for formal in schema.inputs
    )


def is_constant(value: ir.Value | None) -> bool:
    """Whether the model fixes the value: an initializer that no caller can override, or a Constant."""
    if value is None:
        return False
    if value.is_initializer():
        return not value.is_graph_input() and value.const_value is not None
    producer = value.producer()
    return producer is not None and producer.op_type == "Constant" and producer.domain == ""


# Half a unit in the last place is relative 2^-11 for float16 and 2^-8 for bfloat16; a constant that an
# exporter rounded from double may be off by a few of them.
_TOLERANCE = {ir.DataType.FLOAT16: 2e-3, ir.DataType.BFLOAT16: 1e-2}


def scalar_value(value: ir.Value | None) -> float | None:
    """The number in a constant of one element (any rank), or `None`."""
    if value is None or not is_constant(value):
        return None
    shape = dims_of(value)
    if shape is not None and any(d != 1 for d in shape):
        return None
    array = constant(value, max_bytes=64)
    if array is None or array.size != 1 or array.dtype.kind in "OSU":
        return None
    return float(array.reshape(-1)[0])


def is_scalar(value: ir.Value | None, number: float) -> bool:
    """Whether `value` is a constant of one element equal to `number`, up to its type's rounding."""
    actual = scalar_value(value)
    if actual is None or value is None:
        return False
    tolerance = _TOLERANCE.get(value.dtype, 1e-5) if value.dtype is not None else 1e-5
    return actual == number or math.isclose(actual, number, rel_tol=tolerance)
