"""Splits, moved down past what happens to all of their parts alike."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.model import Model
from onnxlathe.rewrite import Builder, Context, Pass, remove_unused
from onnxlathe_passes.conditions import int64
from onnxlathe_passes.insert import graphs_with_weights, insert, substitute
from onnxlathe_passes.joint_lanes import Lanes
from onnxlathe_passes.lane_steps import Step
from onnxlathe_passes.lanes import Lane
from onnxlathe_passes.regroup import split

_MANY = 8
"""More parts than that are only looked at as a whole."""


class SplitLate(Pass):
    """Do once, before a Split, what is done to each of its parts (or to some neighbours) alike.

    The heads of queries, keys and values become one Reshape and one Transpose; a rotary embedding is applied
    to queries and keys at once. Operators may take other operands as well, as long as these are the same
    for all parts and do not vary along the axis of the Split.
    """

    name = "split_late"
    group = "fuse"
    min_opset = 7
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %q, %k = Split(%x, axis=1)
    %a = Relu(%q)
    %b = Relu(%k)
    →
    %a, %b = Split(Relu(%x), axis=1)
    """

    def run(self, model: Model, context: Context) -> int:
        return sum(self.graph(graph, model.opset, context) for graph in graphs_with_weights(model))

    def graph(self, graph: ir.Graph, opset: int, context: Context) -> int:
        """Move the Splits of a graph."""
        changes = 0
        work = [node for node in graph if node.op_type == "Split" and node.domain == ""]
        places = _Places(graph)
        while work:
            node = work.pop()
            best = _best(node, opset) if node.graph is graph else None
            if best is not None and context.permit(self.name):
                work += [s for s in _Move(best, opset, context, places).apply(self.name) if s.graph is graph]
                changes += 1
        return changes


def _best(node: ir.Node, opset: int) -> Lanes | None:
    """All parts, if they have something in common; else the neighbours with the largest gain."""
    count = len(node.outputs)
    best = Lanes.of(node, range(count), opset)
    if best is None or best.gain() > 0:
        return best
    best = None
    runs = [range(a, b) for a in range(count) for b in range(a + 2, count + 1) if b - a < count]
    for run in runs if count <= _MANY else ():
        found = Lanes.of(node, run, opset)
        if found is not None and found.gain() > (best.gain() if best is not None else 0):
            best = found
    return best


class _Places:
    """Where nodes stand in their graph, kept while nodes enter it: counting anew for every move is quadratic."""

    def __init__(self, graph: ir.Graph) -> None:
        self.place: dict[ir.Node, float] = {node: float(index) for index, node in enumerate(graph)}
        self.last_before: dict[ir.Node, float] = {}

    def first(self, nodes: Sequence[ir.Node]) -> ir.Node:
        """The one that stands before the others."""
        return min(nodes, key=self.place.__getitem__)

    def entered(self, nodes: Sequence[ir.Node], anchor: ir.Node) -> None:
        """`nodes` were put right before `anchor`, after what was put there earlier."""
        here = self.place[anchor]
        low = self.last_before.get(anchor, here - 1)
        for number, node in enumerate(nodes, 1):
            self.place[node] = low + (here - low) * number / (len(nodes) + 1)
        if nodes:
            self.last_before[anchor] = self.place[nodes[-1]]


class _Move:
    """One move, being made."""

    def __init__(self, lanes: Lanes, opset: int, context: Context, places: _Places) -> None:
        self.lanes = lanes
        self.opset = opset
        self.context = context
        self.made: list[ir.Node] = []
        self.joint: dict[int, ir.Value] = {}
        self.places = places

    def apply(self, rule: str) -> list[ir.Node]:
        """Make the joint operators and Splits; return the Splits that there are now."""
        lanes = self.lanes
        before = [lanes.split, *(node for step in lanes.steps for node in step.nodes)]
        # A part that others read as well gets another value to stand for it on the way.
        self.inputs = {step.nodes[0]: tuple(step.nodes[0].inputs) for step in lanes.steps}
        self.join(lanes.first)
        exits = {id(lane) for lane in lanes.exits()}
        for step in lanes.steps:
            self.step(step, exits)
        self.context.record(rule, before, self.made)
        remove_unused(reversed(before))
        splits = [node for node in self.made if node.op_type == "Split"]
        return [*splits, lanes.split]

    def join(self, first: Lane) -> None:
        """The value whose parts the first lane is."""
        node, parts = self.lanes.split, self.lanes.parts
        whole = node.inputs[0]
        assert whole is not None
        if len(parts) == len(node.outputs):
            self.joint[id(first)] = whole
            return
        op = Builder(self.opset)
        sizes = [(dims_of(v) or ())[first.axis] for v in node.outputs]
        merged = [*sizes[: parts.start], sum(first.sizes), *sizes[parts.stop :]]
        made = split(op, whole, merged, first.axis)  # type: ignore[arg-type]
        self.joint[id(first)] = made[parts.start]
        others = [v for i, v in enumerate(node.outputs) if i not in parts]
        pairs = list(zip(others, [m for i, m in enumerate(made) if i != parts.start], strict=True))
        if self.lanes.leaves(first):
            pairs += self.parts(op, first)
        self.enter(op, node)
        substitute(pairs, self.context)

    def parts(self, op: Builder, lane: Lane) -> list[tuple[ir.Value, ir.Value]]:
        """A Split of the joint value of a lane: what it makes, and what that stands for."""
        made = split(op, self.joint[id(lane)], lane.sizes, lane.axis)
        return [(old, new) for old, new in zip(lane.values, made, strict=True) if old is not None]

    def step(self, step: Step, exits: set[int]) -> None:
        """The operator that does what those of the step do."""
        op, first = Builder(self.opset), step.nodes[0]
        inputs: list[ir.Value | None] = []
        for value in self.inputs[first]:
            found = self.lanes.lane_of.get(value) if value is not None else None
            inputs.append(value if found is None else self.joint[id(found[0])])
        attributes = dict(first.attributes)
        if first.op_type == "Reshape":
            inputs[1], attributes = op.constant(int64(step.shape)), {}
        elif first.op_type == "Transpose":
            common = next(n for n, v in zip(step.nodes, step.outputs[0].values, strict=True) if v is not None)
            attributes = dict(common.attributes)
        made = op.node(first.op_type, inputs, attributes, outputs=len(first.outputs))
        pairs: list[tuple[ir.Value, ir.Value]] = []
        for lane, output in zip(step.outputs, made.outputs, strict=True):
            self.joint[id(lane)] = output
            if id(lane) in exits:
                parts = split(op, output, lane.sizes, lane.axis)
                pairs += [(old, new) for old, new in zip(lane.values, parts, strict=True) if old is not None]
                pairs += [(old, op.Transpose(parts[i], perm=perm)) for i, old, perm in step.leftovers]
        self.enter(op, self.places.first(step.nodes))
        substitute(pairs, self.context)

    def enter(self, op: Builder, anchor: ir.Node) -> None:
        insert(op, anchor, self.context)
        self.places.entered(op.nodes, anchor)
        self.made += op.nodes
