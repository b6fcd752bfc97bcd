"""What an operator makes of all numbers between two, as bounds of its results.

Enough of interval arithmetic to see that a computed index does not grow any more: integers are exact, floating
point is widened by more than float32 rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir

_LIMIT = 1 << 63
_SLACK = 1e-5
_INTEGERS = frozenset({ir.DataType.INT64, ir.DataType.INT32})
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE})

Interval = tuple[Any, Any]
"""The lowest and the highest value; of truth values, 0 and 1."""
_ANY: Interval = (-_LIMIT, _LIMIT - 1)
"""What an integer can be that was too large for its type."""


def bounds(node: ir.Node, inputs: Sequence[Interval]) -> Interval | None:
    """Bounds of the one output of an elementwise operator; `None` where they are not known.

    Args:
        node: its inputs and its output have element types.
        inputs: bounds of its inputs.
    """
    step = _STEPS.get(node.op_type)
    dtype = node.outputs[0].dtype
    if step is None or dtype is None or len(node.outputs) != 1:
        return None
    try:
        found = _cast(node, *inputs) if node.op_type == "Cast" else step(*inputs)
        if node.op_type == "Div" and dtype in _INTEGERS:
            found = _truncated(*inputs)
    except (ArithmeticError, ValueError, TypeError):
        return None
    if found is None or any(isinstance(end, float) and math.isnan(end) for end in found):
        return None
    low, high = found
    if dtype in _FLOATS:
        return low - abs(low) * _SLACK - _SLACK, high + abs(high) * _SLACK + _SLACK
    if dtype in _INTEGERS:
        return (low, high) if low >= -_LIMIT and high < _LIMIT else _ANY
    return (low, high) if dtype == ir.DataType.BOOL else None


def _ends(f: Callable[[Any, Any], Any]) -> Callable[[Interval, Interval], Interval]:
    """An operation whose extremes lie at the ends of its operands."""

    def step(a: Interval, b: Interval) -> Interval:
        found = [f(x, y) for x in a for y in b]
        return min(found), max(found)

    return step


def _growing(f: Callable[[Any], Any]) -> Callable[[Interval], Interval]:
    return lambda a: (f(a[0]), f(a[1]))


def _divided(a: Interval, b: Interval) -> Interval | None:
    return None if b[0] <= 0 <= b[1] else _ends(lambda x, y: x / y)(a, b)


def _truncated(a: Interval, b: Interval) -> Interval | None:
    """Quotients of integers, rounded towards 0."""
    if b[0] <= 0 <= b[1]:
        return None
    return _ends(lambda x, y: abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1))(a, b)


def _absolute(a: Interval) -> Interval:
    ends = (abs(a[0]), abs(a[1]))
    return (0 if a[0] <= 0 <= a[1] else min(ends)), max(ends)


def _less(a: Interval, b: Interval) -> Interval:
    return int(a[1] < b[0]), int(a[0] < b[1])


def _less_or_equal(a: Interval, b: Interval) -> Interval:
    return int(a[1] <= b[0]), int(a[0] <= b[1])


def _equal(a: Interval, b: Interval) -> Interval:
    return int(a[0] == a[1] == b[0] == b[1]), int(a[0] <= b[1] and b[0] <= a[1])


def _where(c: Interval, a: Interval, b: Interval) -> Interval:
    if c[0] == c[1]:
        return a if c[0] else b
    return min(a[0], b[0]), max(a[1], b[1])


def _sign(x: Any) -> int:
    return int(x > 0) - int(x < 0)


def _logarithm(x: Any) -> float:
    return math.log(x) if x > 0 else -math.inf  # below 0 too: what is widened may be a 0


def _cast(node: ir.Node, a: Interval) -> Interval | None:
    source = node.inputs[0].dtype if node.inputs[0] is not None else None
    to = node.outputs[0].dtype
    if to == ir.DataType.BOOL:
        return int(not a[0] <= 0 <= a[1]), int(a != (0, 0))
    if to in _INTEGERS:
        return (math.trunc(a[0]), math.trunc(a[1])) if all(map(math.isfinite, a)) else _ANY
    return a if source in _INTEGERS | _FLOATS | {ir.DataType.BOOL} else None


def _joined(f: Callable[[Any, Any], Any]) -> Callable[..., Interval]:
    """Min and Max, of any number of operands."""

    def step(*inputs: Interval) -> Interval:
        low, high = inputs[0]
        for a, b in inputs[1:]:
            low, high = f(low, a), f(high, b)
        return low, high

    return step


_STEPS: dict[str, Callable[..., Interval | None]] = {
    "Cast": lambda a: a,
    "Neg": lambda a: (-a[1], -a[0]),
    "Abs": _absolute,
    "Sign": _growing(_sign),
    "Relu": _growing(lambda x: max(x, 0)),
    "Log": _growing(_logarithm),
    "Sqrt": _growing(lambda x: math.sqrt(max(x, 0))),
    "Floor": _growing(math.floor),
    "Ceil": _growing(math.ceil),
    "Add": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "Sub": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "Mul": _ends(lambda x, y: x * y),
    "Div": _divided,
    "Min": _joined(min),
    "Max": _joined(max),
    "Clip": lambda a, low=(-_LIMIT, -_LIMIT), high=(_LIMIT, _LIMIT): (
        min(max(a[0], low[0]), high[0]),
        min(max(a[1], low[1]), high[1]),
    ),
    "Less": _less,
    "Greater": lambda a, b: _less(b, a),
    "LessOrEqual": _less_or_equal,
    "GreaterOrEqual": lambda a, b: _less_or_equal(b, a),
    "Equal": _equal,
    "Not": lambda a: (1 - a[1], 1 - a[0]),
    "And": _joined(min),
    "Or": _joined(max),
    "Where": _where,
}
OPERATORS = frozenset(_STEPS)
