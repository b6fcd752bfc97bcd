"""What is done to every part of a Split alike, done once before it.

`Lanes.of(split, …)` follows the parts as far as all go the same way: what is computed from them by equal
operators are lanes again. It plans and does not edit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxlathe.rewrite import attribute
from onnxlathe_passes.lane_steps import Step, joint_step
from onnxlathe_passes.lanes import Lane, equal_constants, split_lane


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
        return joint_step(nodes, lanes, self.opset)

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
