"""Chains of operators that only move elements, as few of them as will do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import onnx_ir as ir

from onnxlathe.infer import Dims, dims_of
from onnxlathe.rewrite import Builder, NodeRule
from onnxlathe_passes.conditions import int64, used_once
from onnxlathe_passes.noop_views import permutation
from onnxlathe_passes.regroup import target

MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")
_LONGEST = 8


class Arrangement:
    """Where the elements of a tensor are after some moves, in terms of parts of its axes.

    A Reshape cuts axes into parts and joins them, a Transpose carries parts along.

    Attributes:
        sizes: of the parts.
        source: the parts of each axis of the tensor, as it was.
        axes: the parts of each axis, as it is now. An axis of size 1 has none.
    """

    def __init__(self, dims: Dims) -> None:
        self.sizes: list[Any] = []
        self.source: list[list[int]] = []
        for size in dims:
            self.source.append([] if size == 1 else [len(self.sizes)])
            if size != 1:
                self.sizes.append(size)
        self.axes = [list(axis) for axis in self.source]

    def move(self, node: ir.Node, opset: int) -> bool:
        """Do what the node does; whether that could be told."""
        if node.op_type == "Transpose":
            perm = permutation(node, opset)
            if perm is None or len(perm) != len(self.axes):
                return False
            self.axes = [self.axes[axis] for axis in perm]
            return True
        dims = dims_of(node.outputs[0])
        return dims is not None and not {None, 0} & set(dims) and self.reshape(dims)

    def reshape(self, dims: Dims) -> bool:
        """Join and cut the axes so that their sizes are `dims`; whether that could be told."""
        left = [part for axis in self.axes for part in axis]
        axes: list[list[int]] = []
        for size in dims:
            axis: list[int] = []
            rest: Any = size
            while rest != 1:
                if not left:
                    return False
                part, taken = left[0], self.sizes[left[0]]
                if isinstance(taken, int) and isinstance(rest, int) and rest % taken:
                    taken = math.gcd(taken, rest)
                    if taken == 1:
                        return False
                    left[0:1] = self.cut(part, taken)
                elif rest != taken and (rest // taken) * taken != rest:
                    if (taken // rest) * rest != taken:
                        return False
                    taken = rest
                    left[0:1] = self.cut(part, taken)
                rest = 1 if rest == taken else rest // taken
                axis.append(left.pop(0))
            axes.append(axis)
        self.axes = axes
        return not left

    def cut(self, part: int, first: Any) -> list[int]:
        """Cut a part in two, the first of them of size `first`; both, in their order."""
        second = len(self.sizes)
        self.sizes.append(self.sizes[part] // first)
        self.sizes[part] = first
        for axis in self.source:
            if part in axis:
                axis.insert(axis.index(part) + 1, second)
        return [part, second]

    @property
    def order(self) -> list[int]:
        return [part for axis in self.axes for part in axis]

    @property
    def original(self) -> list[int]:
        return [part for axis in self.source for part in axis]

    def size(self, parts: Sequence[int]) -> Any:
        return math.prod((self.sizes[part] for part in parts), start=1)


@dataclass(frozen=True)
class Plan:
    """Moves that lead from one shape to another: a Reshape, a Transpose, a Reshape, each if need be."""

    first: Dims | None = None
    perm: Sequence[int] | None = None
    last: Dims | None = None

    @property
    def cost(self) -> int:
        return sum(step is not None for step in (self.first, self.perm, self.last))

    def build(self, op: Builder, x: ir.Value, before: Dims) -> ir.Value | None:
        """The moves applied to `x`; `None` where a shape cannot be written down."""
        steps: list[tuple[str, Any]] = []
        if self.first is not None:
            steps.append(("Reshape", target(before, self.first)))
            before = self.first
        if self.perm is not None:
            steps.append(("Transpose", list(self.perm)))
            before = tuple(before[axis] for axis in self.perm)
        if self.last is not None:
            steps.append(("Reshape", target(before, self.last)))
        if any(argument is None for _, argument in steps):
            return None
        for kind, argument in steps:
            x = op.Reshape(x, int64(argument)) if kind == "Reshape" else op.Transpose(x, perm=argument)
        return x


def plan(found: Arrangement, before: Dims, after: Dims) -> Plan:
    """The fewest moves that put the parts of the axes of `before` where `found` has them in `after`."""
    if found.order == found.original:
        return Plan(last=None if before == after else after)
    return min(_plans(found, before, after), key=lambda p: p.cost)


def _plans(found: Arrangement, before: Dims, after: Dims) -> Iterator[Plan]:
    order, original = found.order, found.original
    # The axes as they are, in another order; those of size 1 wherever the result has one.
    units = [axis for axis, parts in enumerate(found.source) if not parts]
    perm: list[int] = []
    for parts in found.axes:
        if parts and parts in found.source:
            perm.append(found.source.index(parts))
        elif not parts and units:
            perm.append(units.pop(0))
    if len(perm) == len(before) and sorted(perm) == list(range(len(before))):
        moved = tuple(before[axis] for axis in perm)
        if moved == after:
            yield Plan(perm=perm)
    # The axes of the result, in the order in which they are found: as heads are split, before they are moved.
    if all(_runs(parts, original) for parts in found.axes if parts):
        ranked_axes = sorted(range(len(after)), key=lambda axis: _place(found.axes, axis, original))
        first = tuple(after[axis] for axis in ranked_axes)
        yield Plan(first, [ranked_axes.index(axis) for axis in range(len(after))])
    whole = [parts for parts in found.source if parts]
    if all(_runs(parts, order) for parts in whole):
        ranked = sorted(whole, key=lambda parts: order.index(parts[0]))
        places = [found.source.index(parts) for parts in ranked]
        places += [axis for axis, parts in enumerate(found.source) if not parts]
        yield Plan(perm=places, last=after)
    blocks = _blocks(original, order)
    first = tuple(found.size(block) for block in blocks)
    ranked_blocks = sorted(range(len(blocks)), key=lambda b: order.index(blocks[b][0]))
    yield Plan(first, ranked_blocks, after)


def _place(axes: Sequence[Sequence[int]], axis: int, original: Sequence[int]) -> tuple[int, int]:
    """What to sort the axes of a result by, so that its parts are in their original order.

    An axis of size 1 stays at the front, or before the one that follows it.
    """
    following = next((parts for parts in axes[axis:] if parts), None)
    leading = not any(axes[: axis + 1])
    if leading or following is None:
        return (-1 if leading else len(original), axis)
    return (original.index(following[0]), axis)


def _runs(parts: Sequence[int], order: Sequence[int]) -> bool:
    """Whether the parts stand side by side in an order."""
    start = order.index(parts[0])
    return list(order[start : start + len(parts)]) == list(parts)


def _blocks(original: Sequence[int], order: Sequence[int]) -> list[list[int]]:
    """The parts that stay side by side, in their original order."""
    follows = dict(pairwise(order))
    blocks: list[list[int]] = []
    for part in original:
        if blocks and follows.get(blocks[-1][-1]) == part:
            blocks[-1].append(part)
        else:
            blocks.append([part])
    return blocks


def upwards(value: ir.Value) -> Iterator[tuple[ir.Node, ir.Value]]:
    """The nodes that only move elements before a value, nearest first, each with what it moves."""
    for _ in range(_LONGEST):
        node = value.producer()
        if node is None or node.domain != "" or node.op_type not in MOVES or node.inputs[0] is None:
            return
        value = node.inputs[0]
        yield node, value


def arrangement(chain: Sequence[ir.Node], x: ir.Value, opset: int) -> Arrangement | None:
    """Where the elements of `x` are after a chain of moves, given nearest to the result first."""
    dims = dims_of(x)
    if dims is None or {None, 0} & set(dims):
        return None
    found = Arrangement(dims)
    for node, after in zip(chain[::-1], [*chain[-2::-1], None], strict=True):
        if node.op_type != "Transpose" and after is not None and after.op_type != "Transpose":
            continue  # the next Reshape says all
        if not found.move(node, opset):
            return None
    return found


def _goes_on(value: ir.Value) -> bool:
    """Whether nothing but another move needs the value: the chain is looked at from its end."""
    users = value.consumers()
    return len(users) == 1 and used_once(value) and users[0].domain == "" and users[0].op_type in MOVES


class MoveChain(NodeRule):
    """Any chain of Reshape, Transpose, Squeeze, Unsqueeze = one Reshape, Transpose and Reshape, or fewer.

    So the detours of image to tokens and back cancel, also where something in between is used elsewhere.
    """

    name = "move_chain"
    group = "fuse"
    min_opset = 5
    reach = _LONGEST
    example = """
    %a = Reshape(%x, [0, 32, 4096])                     # x: [batch, 32, 64, 64]
    %b = Transpose(%a, perm=[0, 2, 1])
    %c = Reshape(%b, [0, 64, 64, 32])
    %y = Transpose(%c, perm=[0, 3, 1, 2])
    →
    %x
    """

    visits = MOVES

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        after = dims_of(node.outputs[0])
        if after is None or _goes_on(node.outputs[0]):
            return None
        chain: list[ir.Node] = []
        best: tuple[int, ir.Value, Plan, ir.Node] | None = None
        gone, alive = 0, True
        for mover, x in upwards(node.outputs[0]):
            chain.append(mover)
            gone += alive
            alive = alive and used_once(x)
            before = dims_of(x)
            found = arrangement(chain, x, op.opset)
            if before is None or found is None:
                continue
            steps = plan(found, before, after)
            # What a Transpose and a Reshape do, a Reshape and a Transpose often do as well: that is how heads
            # of attention are split, and neighbours that are moved alike are moved as one.
            swapped = (
                gone == steps.cost == 2 == len(chain) and mover.op_type == "Transpose" and not steps.last
            )
            # Two that are one are left to `tidy`: before it, neighbours of several heads may take them along.
            shorter = gone > steps.cost and (len(chain) > 2 or not steps.cost)
            if (shorter or swapped) and (best is None or gone - steps.cost > best[0]):
                best = gone - steps.cost, x, steps, mover
        if best is None:
            return None
        _, x, steps, first = best
        before = dims_of(x)
        if first.op_type == "Reshape" and steps.first == dims_of(first.outputs[0]):
            x, before, steps = (
                first.outputs[0],
                steps.first,
                replace(steps, first=None),
            )  # it is there already
        assert before is not None
        return steps.build(op, x, before)
