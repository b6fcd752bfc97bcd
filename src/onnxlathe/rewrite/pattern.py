"""The pattern language: what a rule looks for, written as the expression it looks like.

A pattern is built by calling operators on variables, as onnxscript's rules do it::

    def pattern(self, op, x, scale):
        return op.Mul(op.Sigmoid(op.Mul(x, const(scale))), x)

`Add`, `Mul` and the other commutative operators match in either order. A Python number stands for a
constant of one element with that value. Everything that a pattern computes on the way to its result must
be used by the pattern alone, because the rewrite removes it; `shared` lifts that for a part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

COMMUTATIVE = frozenset(
    {
        "Add", "Mul", "Max", "Min", "And", "Or", "Xor", "Equal",
        "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Sum", "Mean",
    }
)  # fmt: skip


class Pattern:
    """Anything that can stand for one value in a pattern."""

    __slots__ = ()


@dataclass(frozen=True, eq=False, slots=True)
class Var(Pattern):
    """Any value, bound to a name; the same name must meet the same value.

    Attributes:
        name: what `check` and `rewrite` call it.
        constant: it must be a constant of the model (see `onnxlathe.infer.constant`).
        optional: it may be an absent input, and is then `None`.
    """

    name: str
    constant: bool = False
    optional: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Scalar(Pattern):
    """A constant of one element that equals `value` up to the rounding of its type."""

    value: float


@dataclass(frozen=True, eq=False, slots=True)
class AttrVar:
    """An attribute's value bound to a name; `default` is what an absent attribute means."""

    name: str
    default: Any = None


@dataclass(frozen=True, eq=False, slots=True)
class NodePattern:
    """An operator applied to patterns."""

    op_type: str
    inputs: tuple[Pattern | None, ...]
    attributes: dict[str, Any]
    domain: str = ""
    num_outputs: int = 1
    shared: bool = False
    name: str = ""


@dataclass(frozen=True, eq=False, slots=True)
class Output(Pattern):
    """One output of an operator of the pattern."""

    node: NodePattern
    index: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class AnyOf(Pattern):
    """The first of several spellings that leads to a match; `tag` binds which one (its index)."""

    options: tuple[Pattern, ...]
    tag: str = ""


Operand: TypeAlias = "Pattern | float | int | None"


def const(variable: Pattern) -> Var:
    """`variable`, and it must be a constant."""
    if not isinstance(variable, Var):
        raise TypeError("const() takes a variable of the pattern")
    return Var(variable.name, constant=True, optional=variable.optional)


def optional(variable: Pattern) -> Var:
    """`variable`, or nothing where the operator's input is left out; it is then bound to `None`."""
    if not isinstance(variable, Var):
        raise TypeError("optional() takes a variable of the pattern")
    return Var(variable.name, constant=variable.constant, optional=True)


def attr(name: str, default: Any = None) -> AttrVar:
    """Bind an attribute's value to `name`. An absent one is its schema's default, else `default`."""
    return AttrVar(name, default)


def any_of(*options: Pattern, tag: str = "") -> AnyOf:
    """Alternative spellings, tried in order; `tag` names the variable that says which one matched."""
    if not options:
        raise TypeError("any_of() needs at least one pattern")
    return AnyOf(tuple(options), tag)


def shared(pattern: Pattern) -> Pattern:
    """`pattern`, whose own result may be used outside the match as well; it then stays in the graph."""
    if not isinstance(pattern, Output):
        raise TypeError("shared() takes the result of an operator")
    node = pattern.node
    return Output(
        NodePattern(
            node.op_type, node.inputs, node.attributes, node.domain, node.num_outputs, True, node.name
        ),
        pattern.index,
    )


def maybe(op_type: str, pattern: Pattern, **attributes: Any) -> AnyOf:
    """`pattern`, possibly with the unary operator `op_type` applied to it (a Cast, an Identity…)."""
    return any_of(Output(NodePattern(op_type, (pattern,), attributes)), pattern)


class PatternBuilder:
    """The `op` that a `pattern` method is given: `op.Add(x, y)`, `op.Split(x, _outputs=2)`.

    Keyword arguments are attributes. Those with an underscore in front are ours: `_outputs` (how many
    outputs the node has), `_domain`, `_name` (bind the node itself to a name).
    """

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        def build(
            *inputs: Operand, _outputs: int = 1, _domain: str = "", _name: str = "", **attributes: Any
        ) -> Output | tuple[Output, ...]:
            node = NodePattern(
                op_type,
                tuple(_operand(i) for i in inputs),
                attributes,
                domain=_domain,
                num_outputs=_outputs,
                name=_name,
            )
            if _outputs == 1:
                return Output(node)
            return tuple(Output(node, i) for i in range(_outputs))

        return build


def _operand(value: Operand) -> Pattern | None:
    if value is None or isinstance(value, Pattern):
        return value
    if isinstance(value, (int, float)):
        return Scalar(float(value))
    raise TypeError(f"a pattern's input is a value, a number or None, not {value!r}")


def roots(pattern: Pattern | Sequence[Pattern]) -> list[NodePattern]:
    """The node patterns that a match can start from (several where the top is `any_of`)."""
    if isinstance(pattern, Output):
        return [pattern.node]
    if isinstance(pattern, AnyOf):
        return [root for option in pattern.options for root in roots(option)]
    if isinstance(pattern, Pattern):
        raise TypeError("a rule's pattern must end in an operator")
    nodes = [node for part in pattern for node in roots(part)]
    if any(node is not nodes[0] for node in nodes):
        raise TypeError("a pattern with several results must take them from one operator")
    return nodes[:1]


def depth(pattern: Pattern | None) -> int:
    """How many operators lie on the longest way through the pattern."""
    if isinstance(pattern, Output):
        return 1 + max((depth(i) for i in pattern.node.inputs), default=0)
    if isinstance(pattern, AnyOf):
        return max(depth(option) for option in pattern.options)
    return 0
