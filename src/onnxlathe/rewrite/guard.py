"""A quick look before matching: can this node be the root of a pattern at all?

A guard compares the operators of a pattern's first levels with those of the graph and binds nothing. It may let
through what the matcher then rejects, never the other way around. Nearly all nodes at which a rule is tried
are no match, and the guard says so in a fraction of the matcher's time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from onnxlathe.rewrite.match import is_constant
from onnxlathe.rewrite.pattern import COMMUTATIVE, AnyOf, NodePattern, Output, Pattern, Scalar, Var

NodeGuard = Callable[[ir.Node], bool]
ValueGuard = Callable[[ir.Value | None], bool]

_LEVELS = 3  # below that, failures are rare and every level doubles the work


def node_guard(pattern: NodePattern, levels: int = _LEVELS) -> NodeGuard | None:
    """What a node of the pattern's operator must fulfil besides; None where there is nothing to ask."""
    guards = [_value_guard(operand, levels - 1) for operand in pattern.inputs]
    asked = [(index, guard) for index, guard in enumerate(guards) if guard is not None]
    if not asked:
        return None
    if pattern.op_type not in COMMUTATIVE or pattern.domain or len(guards) == 1:
        return lambda node: _in_order(asked, node.inputs)
    if len(guards) == 2:
        first, second = guards
        return lambda node: _either_way(first, second, node.inputs)
    return lambda node: all(any(guard(value) for value in node.inputs) for _, guard in asked)


def _in_order(asked: Sequence[tuple[int, ValueGuard]], inputs: Sequence[ir.Value | None]) -> bool:
    count = len(inputs)
    return all(guard(inputs[index] if index < count else None) for index, guard in asked)


def _either_way(
    first: ValueGuard | None, second: ValueGuard | None, inputs: Sequence[ir.Value | None]
) -> bool:
    if len(inputs) != 2:
        return True
    a, b = inputs
    if (first is None or first(a)) and (second is None or second(b)):
        return True
    return (first is None or first(b)) and (second is None or second(a))


def _value_guard(pattern: Pattern | None, levels: int) -> ValueGuard | None:
    if isinstance(pattern, Var):
        if not pattern.constant:
            return None
        optional = pattern.optional
        return lambda value: optional if value is None else is_constant(value)
    if isinstance(pattern, Scalar):
        return is_constant
    if isinstance(pattern, AnyOf):
        options = [_value_guard(option, levels) for option in pattern.options]
        known = [guard for guard in options if guard is not None]
        return (lambda value: any(guard(value) for guard in known)) if len(known) == len(options) else None
    if isinstance(pattern, Output):
        return _producer_guard(pattern.node, levels)
    return None


def _producer_guard(pattern: NodePattern, levels: int) -> ValueGuard:
    op_type, domain = pattern.op_type, pattern.domain
    inner = node_guard(pattern, levels) if levels > 0 else None

    def guard(value: ir.Value | None) -> bool:
        producer = value.producer() if value is not None else None
        if producer is None or producer.op_type != op_type or producer.domain != domain:
            return False
        return inner is None or inner(producer)

    return guard
