"""What is done to every part of a Split alike, done once before it.

The parts of a Split, and what is computed from them by equal operators, are *lanes*: values side by side
that together are the parts of one larger value. `Lanes.of(split, …)` follows the parts as far as all go the
same way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import Dims, constant, dims_of
from onnxlathe.rewrite import attribute, is_constant
from onnxlathe_passes.conditions import from_front, operand, rank
from onnxlathe_passes.noop_views import permutation
from onnxlathe_passes.regroup import static

ELEMENTWISE = frozenset(
    {
        *("Abs", "Cast", "Ceil", "Clip", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid"),
        *("HardSwish", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu"),
        *("Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh"),
        *("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Where", "Equal", "And", "Or"),
    }
)


_BLOCK = 8  # neighbouring elements


@dataclass(frozen=True)
class Lane:
    """Values that are the parts of one: part i is `values[i]`, of size `sizes[i]` along `axis`.

    A part is `None` where what follows it differs: see `Step.leftovers`.
    """

    values: tuple[ir.Value | None, ...]
    axis: int
    sizes: tuple[int, ...]

    def parts(self) -> list[tuple[int, int]]:
        """Where each part starts and ends along the axis."""
        return list(pairwise(accumulate(self.sizes, initial=0)))


@dataclass(frozen=True)
class Step:
    """Equal operators, one for each lane.

    Attributes:
        nodes: them, in the order of the parts.
        outputs: the lanes that they make.
        leftovers: for Transposes: the results that need one more, by part, and its permutation.
    """

    nodes: tuple[ir.Node, ...]
    outputs: tuple[Lane, ...]
    leftovers: tuple[tuple[int, ir.Value, tuple[int, ...]], ...] = ()


@dataclass
class Lanes:
    """How far some parts of a Split go the same way.

    Attributes:
        split: the Split.
        parts: which of its parts, all or a run of neighbours.
        steps: what is done to them, in order.
    """

    split: ir.Node
    parts: range
    opset: int
    steps: list[Step] = field(default_factory=list)
    lane_of: dict[ir.Value, tuple[Lane, int]] = field(default_factory=dict)
    taken: set[ir.Node] = field(default_factory=set)

    @classmethod
    def of(cls, split: ir.Node, parts: range, opset: int) -> Lanes | None:
        """Follow the parts; `None` where the sizes of the Split are not known."""
        found = cls(split, parts, opset)
        first = split_lane(split, opset)
        if first is None:
            return None
        chosen = slice(parts.start, parts.stop)
        found.grow(Lane(first.values[chosen], first.axis, first.sizes[chosen]))
        return found

    @property
    def first(self) -> Lane:
        return self.lane_of[self.split.outputs[self.parts.start]][0]

    def grow(self, start: Lane) -> None:
        """Find all steps, each lane's users in turn."""
        work = [start]
        self.learn(start)
        while work:
            lane = work[0]
            step = next(self.steps_from(lane), None)
            if step is None:
                work.pop(0)
                continue
            self.steps.append(step)
            self.taken.update(step.nodes)
            for output in step.outputs:
                self.learn(output)
                work.append(output)

    def learn(self, lane: Lane) -> None:
        for index, value in enumerate(lane.values):
            if value is not None:
                self.lane_of[value] = (lane, index)

    def steps_from(self, lane: Lane) -> Iterator[Step]:
        """Operators that read the lane's first part and have their like at all others."""
        if None in lane.values:
            return
        head = lane.values[0]
        assert head is not None
        graph = self.split.graph
        for node in dict.fromkeys(head.consumers()):
            if node in self.taken or node.graph is not graph or node.domain != "":
                continue
            nodes = [node]
            for value in lane.values[1:]:
                assert value is not None
                like = next(
                    (
                        n
                        for n in value.consumers()
                        if n not in self.taken and n not in nodes and self.alike(node, n)
                    ),
                    None,
                )
                if like is None or like.graph is not graph:
                    break
                nodes.append(like)
            if len(nodes) < len(lane.values):
                continue
            outputs = self.made(tuple(nodes))
            if outputs is not None:
                yield outputs

    def alike(self, a: ir.Node, b: ir.Node) -> bool:
        """Whether two operators do the same, each with the parts of its own lane."""
        if (a.op_type, a.domain) != (b.op_type, b.domain) or len(a.inputs) != len(b.inputs):
            return False
        if len(a.outputs) != len(b.outputs):
            return False
        if a.op_type != "Transpose" and not self.same_attributes(a, b):
            return False
        if a.op_type == "Reshape":
            return True
        for mine, other in zip(a.inputs, b.inputs, strict=True):
            if mine is None or other is None:
                if mine is not other:
                    return False
                continue
            lanes = self.lane_of.get(mine), self.lane_of.get(other)
            if lanes[0] is not None and lanes[1] is not None:
                if lanes[0][0] is not lanes[1][0]:
                    return False
            elif mine is not other and not equal_constants(mine, other):
                return False
        return True

    def same_attributes(self, a: ir.Node, b: ir.Node) -> bool:
        names = {*a.attributes, *b.attributes}
        return all(attribute(a, n, self.opset) == attribute(b, n, self.opset) for n in names)

    def made(self, nodes: tuple[ir.Node, ...]) -> Step | None:
        """The step that the nodes are, if the joint value can go through it."""
        lanes: list[Lane | None] = []
        for index, value in enumerate(nodes[0].inputs):
            found = self.lane_of.get(value) if value is not None else None
            lanes.append(found[0] if found is not None else None)
            if found is not None:
                mine = [self.lane_of.get(v) if (v := n.inputs[index]) is not None else None for n in nodes]
                # Part i of one operator must meet part i of the others.
                if any(m is None or m[0] is not found[0] or m[1] != i for i, m in enumerate(mine)):
                    return None
        if any(output.is_graph_output() for node in nodes for output in node.outputs):
            return None
        step = _STEPS.get(nodes[0].op_type)
        if step is None:
            step = _elementwise if nodes[0].op_type in ELEMENTWISE else None
        return step(self, nodes, lanes) if step is not None else None

    def exits(self) -> list[Lane]:
        """The lanes that something outside of the steps reads, the first lane excepted."""
        return [lane for step in self.steps for lane in step.outputs if step.leftovers or self.leaves(lane)]

    def leaves(self, lane: Lane) -> bool:
        """Whether something else than the steps reads a part of the lane."""
        return any(
            v is not None and (v.is_graph_output() or any(u not in self.taken for u in v.consumers()))
            for v in lane.values
        )

    def gain(self) -> int:
        """How many nodes fewer there are when the steps are done once."""
        width = len(self.parts)
        whole = width == len(self.split.outputs)
        saved = (width - 1) * len(self.steps) - len(self.exits())
        saved -= sum(len(step.leftovers) for step in self.steps)
        # The Split itself goes where all parts go; a Split of the rest stays.
        stays = self.leaves(self.first)
        if whole:
            return saved + (0 if stays else 1)
        return saved - (1 if stays else 0)


def split_lane(split: ir.Node, opset: int) -> Lane | None:
    """The parts of a Split, where their sizes are known."""
    shapes = [dims_of(v) for v in split.outputs]
    if any(s is None for s in shapes) or len(split.outputs) < 2:
        return None
    axes = from_front([int(attribute(split, "axis", opset))], len(shapes[0] or ()))
    sizes = static([s[axes[0]] for s in shapes if s is not None]) if axes else None
    if sizes is None or axes is None:
        return None
    return Lane(tuple(split.outputs), axes[0], tuple(sizes))


def in_blocks(dims: Dims, axis: int) -> bool:
    """Whether parts along the axis consist of blocks that are worth a Gather, rather than being cut out."""
    return math.prod(d for d in dims[axis + 1 :] if isinstance(d, int)) >= _BLOCK


def equal_constants(a: ir.Value, b: ir.Value) -> bool:
    """Whether two small constants are the same."""
    if not (is_constant(a) and is_constant(b)) or a.dtype != b.dtype or dims_of(a) != dims_of(b):
        return False
    x, y = constant(a, max_bytes=1 << 12), constant(b, max_bytes=1 << 12)
    return x is not None and y is not None and x.shape == y.shape and bool(np.all(x == y))


def _lane(nodes: Sequence[ir.Node], index: int, axis: int, sizes: tuple[int, ...]) -> Lane:
    return Lane(tuple(node.outputs[index] for node in nodes), axis, sizes)


def _elementwise(found: Lanes, nodes: tuple[ir.Node, ...], lanes: list[Lane | None]) -> Step | None:
    wide = {(lane.axis, lane.sizes, rank(lane.values[0])) for lane in lanes if lane is not None}
    out = rank(nodes[0].outputs[0])
    if len(wide) != 1 or len(nodes[0].outputs) != 1:
        return None
    ((axis, sizes, axes),) = wide
    if axes is None or out != axes:
        return None
    for value, lane in zip(nodes[0].inputs, lanes, strict=True):
        if value is None or lane is not None:
            continue
        dims = dims_of(value)
        # What all lanes share must not vary along the axis on which they lie side by side.
        if dims is None or (axes - len(dims) <= axis and dims[axis - (axes - len(dims))] != 1):
            return None
    return Step(nodes, (_lane(nodes, 0, axis, sizes),))


def _transpose(found: Lanes, nodes: tuple[ir.Node, ...], lanes: list[Lane | None]) -> Step | None:
    (lane,) = lanes
    perms = [permutation(node, found.opset) for node in nodes]
    if lane is None or None in perms:
        return None
    known = [p for p in perms if p is not None]
    common = max(known, key=known.count)
    if known.count(common) < 2:
        return None
    values: list[ir.Value | None] = []
    leftovers = []
    for index, (node, perm) in enumerate(zip(nodes, known, strict=True)):
        if perm == common:
            values.append(node.outputs[0])
        else:
            values.append(None)
            leftovers.append((index, node.outputs[0], tuple(common.index(axis) for axis in perm)))
    return Step(nodes, (Lane(tuple(values), common.index(lane.axis), lane.sizes),), tuple(leftovers))


def _reshape(found: Lanes, nodes: tuple[ir.Node, ...], lanes: list[Lane | None]) -> Step | None:
    """[…, h·d] to […, h, d], with h another for each part."""
    lane = lanes[0]
    shapes = [dims_of(node.outputs[0]) for node in nodes]
    before = dims_of(nodes[0].inputs[0]) if nodes[0].inputs[0] is not None else None
    if lane is None or before is None or lane.axis != len(before) - 1:
        return None
    if (
        any(s is None or len(s) != len(before) + 1 or s[:-2] != before[:-1] for s in shapes)
        or None in before[:-1]
    ):
        return None
    heads = static([s[-2] for s in shapes if s is not None])
    last = {s[-1] for s in shapes if s is not None}
    if heads is None or len(last) != 1 or not isinstance(next(iter(last)), int):
        return None
    return Step(nodes, (_lane(nodes, 0, lane.axis, tuple(heads)),))


def _split(found: Lanes, nodes: tuple[ir.Node, ...], lanes: list[Lane | None]) -> Step | None:
    lane, inner = lanes[0], split_lane(nodes[0], found.opset)
    if lane is None or inner is None or inner.axis == lane.axis:
        return None
    return Step(nodes, tuple(_lane(nodes, i, lane.axis, lane.sizes) for i in range(len(nodes[0].outputs))))


def _slice(found: Lanes, nodes: tuple[ir.Node, ...], lanes: list[Lane | None]) -> Step | None:
    lane = lanes[0]
    before, after = (dims_of(v) if v is not None else None for v in (nodes[0].inputs[0], nodes[0].outputs[0]))
    axes = operand(nodes[0], 3) if found.opset >= 10 else None
    given = constant(axes) if axes is not None else None
    if lane is None or before is None or after is None or given is None:
        return None
    where = from_front([int(a) for a in np.reshape(given, -1)], len(before))
    if where is None or lane.axis in where:
        return None
    return Step(nodes, (_lane(nodes, 0, lane.axis, lane.sizes),))


def _concat(found: Lanes, nodes: tuple[ir.Node, ...], lanes: list[Lane | None]) -> Step | None:
    wide = {(lane.axis, lane.sizes) if lane is not None else None for lane in lanes}
    axes = from_front([int(attribute(nodes[0], "axis", found.opset))], rank(nodes[0].outputs[0]))
    if len(wide) != 1 or None in wide or axes is None:
        return None
    lane = lanes[0]
    if lane is None or lane.axis == axes[0]:
        return None
    return Step(nodes, (_lane(nodes, 0, lane.axis, lane.sizes),))


def _rotary(found: Lanes, nodes: tuple[ir.Node, ...], lanes: list[Lane | None]) -> Step | None:
    """Heads side by side, turned by the same angles."""
    lane = lanes[0]
    if lane is None or lane.axis != 1 or rank(lane.values[0]) != 4 or any(lanes[1:]):
        return None
    return Step(nodes, (_lane(nodes, 0, lane.axis, lane.sizes),))


_STEPS: dict[str, Any] = {
    "RotaryEmbedding": _rotary,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Split": _split,
    "Slice": _slice,
    "Concat": _concat,
}
