"""Operators that compute each row of a tensor by itself, followed as far as they reach.

A *row* is what lies along the last axis; the axes before it only count rows, so that such operators may work on
any shape with as many of them. `RowRegion.of(node, …)` follows them to the moves at the borders, and says what
another shape would cost there. It plans and does not edit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxlathe.infer import Dims, dims_of
from onnxlathe.rewrite import attribute, is_constant
from onnxlathe_passes.conditions import FLOATS, from_front, numbers, producer, used_once
from onnxlathe_passes.lanes import ELEMENTWISE
from onnxlathe_passes.moves import MOVES, Arrangement, Plan, plan, upwards
from onnxlathe_passes.regroup import static, target

_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})
_ALONG = frozenset({"Softmax", "LogSoftmax", "Concat", "Split"})
_REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "ReduceMax", "ReduceMin"})
_LONGEST = 6
_FUSION = 2
_SHAPES = 8
"""More shapes than this are not tried."""


@dataclass(frozen=True)
class Border:
    """Where rows enter or leave, by moves if `chain` has any.

    Attributes:
        value: of the region: what enters it, or is made in it.
        chain: the moves, nearest to the region first.
        ends: what is at the other end of each of them.
        gone: how many nodes go away with each of them.
        users: the operators that need the value itself, if they are no moves.
    """

    value: ir.Value
    entry: bool
    chain: tuple[ir.Node, ...] = ()
    ends: tuple[ir.Value, ...] = ()
    gone: tuple[int, ...] = ()
    users: tuple[ir.Node, ...] = ()


@dataclass(frozen=True)
class Choice:
    """What to do at a border: moves that replace the first `length` of its chain."""

    border: Border
    length: int
    moves: Plan

    @property
    def gain(self) -> int:
        return (self.border.gone[self.length - 1] if self.length else 0) - self.moves.cost


@dataclass
class RowRegion:
    """Operators that compute row by row.

    Attributes:
        lead: the axes that count rows, as they are.
        nodes: them.
        made: the values that they make.
    """

    lead: Dims
    opset: int
    nodes: dict[ir.Node, None] = field(default_factory=dict)
    made: dict[ir.Value, None] = field(default_factory=dict)
    entries: dict[ir.Value, None] = field(default_factory=dict)
    borders: list[Border] = field(default_factory=list)

    @classmethod
    def of(cls, node: ir.Node, opset: int, places: Mapping[ir.Node, int]) -> RowRegion | None:
        """All operators around one that compute the same rows; `None` where it is no such operator."""
        dims = dims_of(node.outputs[0]) if node.outputs else None
        if dims is None or len(dims) < 2 or {None, 0} & set(dims) or all(size == 1 for size in dims[:-1]):
            return None
        found = cls(dims[:-1], opset)
        if operands(node, found.lead, opset) is None:
            return None
        found.grow(node, places)
        return found

    @property
    def closed(self) -> bool:
        """Whether another shape is seen at the borders alone."""
        graph = next(iter(self.nodes)).graph
        if any(user.graph is not graph for value in self.made for user in value.consumers()):
            return False
        # From itself to itself by way of a move: what the rows are is not said by one shape.
        return not any(end in self.made or end in self.entries for b in self.borders for end in b.ends)

    def grow(self, start: ir.Node, places: Mapping[ir.Node, int]) -> None:
        work = [start]
        while work:
            node = work.pop()
            if node in self.nodes:
                continue
            found = operands(node, self.lead, self.opset)
            if found is None or node not in places:
                continue
            self.nodes[node] = None
            self.made.update(dict.fromkeys(node.outputs))
            self.entries.update(dict.fromkeys(found[0]))
            work += [above for value in found[0] if (above := value.producer()) is not None]
            work += [user for value in (*found[0], *node.outputs) for user in value.consumers()]
        self.entries = {value: None for value in self.entries if value not in self.made}
        self.borders += [self.entry(value) for value in self.entries]
        self.borders += [border for value in self.made for border in self.exits(value)]

    def entry(self, value: ir.Value) -> Border:
        chain, ends, gone, count = [], [], [], 0
        alive = not value.is_graph_output() and all(user in self.nodes for user in value.consumers())
        for mover, x in upwards(value):
            count += alive
            alive = alive and used_once(x)
            chain.append(mover)
            ends.append(x)
            gone.append(count)
        return Border(value, True, tuple(chain), tuple(ends), tuple(gone))

    def exits(self, value: ir.Value) -> Iterator[Border]:
        users = [user for user in value.consumers() if user not in self.nodes]
        movers = [user for user in users if is_move(user) and user.inputs[0] is value]
        for mover in dict.fromkeys(movers):
            chain = [mover]
            while len(chain) < _LONGEST and used_once(chain[-1].outputs[0]):
                (user,) = chain[-1].outputs[0].consumers()
                if not is_move(user) or user.inputs[0] is not chain[-1].outputs[0]:
                    break
                chain.append(user)
            yield Border(
                value,
                False,
                tuple(chain),
                tuple(node.outputs[0] for node in chain),
                tuple(range(1, len(chain) + 1)),
            )
        rest = [user for user in users if user not in movers]
        if rest:
            yield Border(value, False, users=tuple(dict.fromkeys(rest)))

    # --- What another shape costs ---

    def shapes(self) -> list[Dims]:
        """Axes that count the rows at the other ends of the borders, the most frequent first."""
        found: dict[Dims, int] = {}
        for border in self.borders:
            channels = (dims_of(border.value) or (None,))[-1]
            for end in border.ends:
                dims = dims_of(end)
                if dims is None or {None, 0} & set(dims) or len(dims) < 2:
                    continue
                for axis, size in enumerate(dims):
                    if size == channels and (axis or axis == len(dims) - 1):
                        lead = (*dims[:axis], *dims[axis + 1 :])
                        found[lead] = found.get(lead, 0) + 1
        found.pop(self.lead, None)
        return sorted(found, key=lambda lead: -found[lead])[:_SHAPES]

    def choices(self, lead: Dims) -> list[Choice] | None:
        """What to do at the borders for rows to be counted by other axes; `None` where that cannot be."""
        if not self.fits(lead):
            return None
        found = []
        for border in self.borders:
            options = [self.option(border, length, lead) for length in range(len(border.chain) + 1)]
            possible = [choice for choice in options if choice is not None]
            if not possible:
                return None
            found.append(max(possible, key=lambda choice: choice.gain))
        return found

    def option(self, border: Border, length: int, lead: Dims) -> Choice | None:
        """The moves that replace some of a border's; `None` where they cannot be told."""
        dims = dims_of(border.value)
        if dims is None or (not border.entry and border.chain and not length):
            return None
        ours: Dims = (*lead, dims[-1])
        end = border.ends[length - 1] if length else border.value
        there = dims_of(end)
        if there is None or {None, 0} & set(there):
            return None
        before, after = (there, ours) if border.entry else (ours, there)
        arranged = Arrangement(before)
        chain = border.chain[:length][::-1] if border.entry else border.chain[:length]
        if not border.entry and (not chain or chain[0].op_type == "Transpose") and not arranged.reshape(dims):
            return None
        for index, node in enumerate(chain, 1):
            last = index == len(chain)
            follows = border.entry if last else chain[index].op_type != "Transpose"
            if node.op_type != "Transpose" and follows:
                continue  # the Reshape after it says where all elements go
            if not arranged.move(node, self.opset):
                return None
        if border.entry and not arranged.reshape(ours):
            return None
        moves = plan(arranged, before, after)
        return Choice(border, length, moves) if _writable(moves, before) else None

    def fits(self, lead: Dims) -> bool:
        """Whether all other operands of the operators fit rows that are counted by other axes."""
        for node in self.nodes:
            for value in self.beside(node):
                dims = dims_of(value) or ()
                if node.op_type == "MatMul":
                    fits = len(dims) <= len(lead) + 1
                elif all(size == 1 for size in dims[:-1]):
                    fits = len(dims) <= len(lead) + 1 or is_constant(value)
                else:
                    fits = on_grid(dims, self.lead, lead)
                if not fits:
                    return False
        return True

    def lost(self, lead: Dims) -> int:
        """What fusions are worth, in nodes, that ONNX Runtime makes no more of rows counted by other axes.

        It fuses a sum that only a LayerNormalization needs with that, where they have three axes.
        """
        if len(self.lead) != 2 or len(lead) == 2:
            return 0
        sums = [x for node in self.nodes if node.op_type in _NORMS and (x := node.inputs[0]) is not None]
        return _FUSION * sum(producer(x, "Add") is not None and used_once(x) for x in sums)

    def beside(self, node: ir.Node) -> list[ir.Value]:
        """The operands of an operator that are no rows."""
        found = operands(node, self.lead, self.opset)
        return found[1] if found is not None else []


def is_move(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type in MOVES


def on_grid(dims: Dims, lead: Dims, other: Dims) -> bool:
    """Whether a constant that differs between rows can be reshaped for rows counted by other axes."""
    if lead[0] != other[0] or static(lead[1:]) is None or static(other[1:]) is None:
        return False
    return len(dims) <= len(lead) or dims[0] == 1


def operands(node: ir.Node, lead: Dims, opset: int) -> tuple[list[ir.Value], list[ir.Value]] | None:
    """The operands whose rows an operator computes one by one, and weights, biases and numbers beside them.

    `None` where the operator does something else, or where a result has other rows.
    """
    if node.domain != "" or not node.inputs or not all(_has(v, lead) for v in node.outputs):
        return None
    given = [v for v in node.inputs if v is not None]
    if node.op_type in ELEMENTWISE or node.op_type == "Concat":
        rows = [v for v in given if _has(v, lead) and not is_constant(v)]
        others = [v for v in given if v not in rows]
        fits = all(_spreads(v, lead) for v in others)
        if node.op_type == "Concat":
            fits = not others and _last(node, opset)
    else:
        rows, others = given[:1], given[1:]
        fits = rows[0] is node.inputs[0] and _has(rows[0], lead) and not is_constant(rows[0])
        if node.op_type == "MatMul":
            fits = fits and all(_matrix(v) for v in others)
        elif node.op_type in _NORMS:
            fits = fits and _last(node, opset) and len(node.outputs) == 1
            fits = fits and all(is_constant(v) and _spreads(v, ()) for v in others)
        elif node.op_type in _ALONG:
            fits, others = fits and _last(node, opset), []
        elif node.op_type in _REDUCTIONS:
            axes = numbers(others[0]) if others else attribute(node, "axes", opset)
            fits = fits and bool(attribute(node, "keepdims", opset)) and bool(axes)
            fits, others = fits and from_front(axes or (), len(lead) + 1) == [len(lead)], []
        else:
            return None
    return (rows, others) if fits and rows else None


def _has(value: ir.Value, lead: Dims) -> bool:
    """Whether the value is made of such rows, of numbers, and is no output."""
    dims = dims_of(value)
    if dims is None or len(dims) != len(lead) + 1 or dims[:-1] != lead or dims[-1] is None:
        return False
    return value.dtype in FLOATS and not value.is_graph_output()


def _spreads(value: ir.Value, lead: Dims) -> bool:
    """Whether all rows meet the same of a value, or those of a constant that `lead` counts."""
    dims = dims_of(value)
    if dims is None:
        return False
    if all(size == 1 for size in dims[:-1]):
        return not lead or len(dims) <= len(lead) + 1
    return is_constant(value) and len(dims) <= len(lead) + 1


def _matrix(value: ir.Value) -> bool:
    dims = dims_of(value)
    return dims is not None and is_constant(value) and len(dims) >= 2 and all(d == 1 for d in dims[:-2])


def _last(node: ir.Node, opset: int) -> bool:
    axes = len(dims_of(node.outputs[0]) or ())
    return from_front([int(attribute(node, "axis", opset))], axes) == [axes - 1]


def _writable(moves: Plan, before: Dims) -> bool:
    """Whether the Reshapes among some moves can be written down."""
    for step in (moves.first, moves.perm, moves.last):
        if step is None:
            continue
        if step is moves.perm:
            before = tuple(before[axis] for axis in moves.perm or ())
        elif target(before, step) is None:  # type: ignore[arg-type]
            return False
        else:
            before = tuple(step)
    return True
