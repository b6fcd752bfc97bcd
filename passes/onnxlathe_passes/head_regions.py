"""The heads of a projection, followed to where those that share a key stand side by side.

`HeadRegion.of(flat, …)` starts at `[batch, seq, heads·size]` and follows Splits, Reshapes, Transposes, rotary
embeddings and normalizations until every head has arrived in `[batch, groups, times, seq, size]`. It plans and
does not edit.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import Dims, dims_of
from onnxlathe.rewrite import NoMatch, attribute, reject, require
from onnxlathe_passes.conditions import from_front, numbers, operand, rank, small_constant
from onnxlathe_passes.head_axes import ORDERS, Goal, Layout, Part
from onnxlathe_passes.lanes import ELEMENTWISE
from onnxlathe_passes.noop_views import permutation
from onnxlathe_passes.regroup import static, target

MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
_REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "ReduceMax"})
_NORMS = frozenset({"RMSNormalization", "LayerNormalization"})
_MANY = 128
"""More operators than lie between a projection and its attention."""


@dataclass
class HeadRegion:
    """What is done to the heads of `flat`.

    Attributes:
        flat: all heads, `[batch, seq, heads·size]`.
        layout: its sizes.
        parts: the values up to the goals.
        steps: the operators that compute with them or cut them, in the order of the graph.
        moves: those that only move them, the goals' own included.
        goals: where they end.
        groups: how many groups there are.
        runs: cuts of the heads, each into `groups` equal groups: `(start, stop)`.
    """

    flat: ir.Value
    layout: Layout
    opset: int
    parts: dict[ir.Value, Part] = field(default_factory=dict)
    steps: list[ir.Node] = field(default_factory=list)
    moves: list[ir.Node] = field(default_factory=list)
    goals: dict[ir.Value, Goal] = field(default_factory=dict)
    groups: int = 0
    runs: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def of(cls, flat: ir.Value, opset: int, places: Mapping[ir.Node, int]) -> HeadRegion | None:
        """Follow the heads.

        Args:
            flat: where they are side by side.
            opset: of the graph.
            places: where the nodes of the graph stand in it.

        Returns:
            What is done to them; `None` where they do not all end in groups, or something else needs them.
        """
        dims = dims_of(flat)
        size = _head_size(flat)
        if dims is None or len(dims) != 3 or None in dims or size is None or flat.is_graph_output():
            return None
        if not isinstance(dims[2], int) or dims[2] % size:
            return None
        found = cls(flat, Layout(dims[0], dims[1], dims[2] // size, size), opset)
        try:
            found.follow(places)
            found.settle()
        except NoMatch:
            return None
        return found

    def follow(self, places: Mapping[ir.Node, int]) -> None:
        """Take all operators that read the heads, in the order of the graph."""
        queue: list[tuple[int, ir.Node]] = []
        seen: set[ir.Node] = set()

        def learn(value: ir.Value, part: Part) -> None:
            require(not value.is_graph_output(), "an output of the graph needs it")
            self.parts[value] = part
            for user in value.consumers():
                if user not in seen:
                    seen.add(user)
                    require(user in places and len(seen) <= _MANY, "it is used in another graph")
                    heapq.heappush(queue, (places[user], user))

        heads, size = self.layout.heads, self.layout.size
        learn(self.flat, Part(0, heads, size, self.layout.axes("b", "s", "hd", count=heads, size=size)))
        while queue:
            _, node = heapq.heappop(queue)
            require(node.domain == "", "another domain's operator needs it")
            if node.op_type in MOVES:
                self.moves.append(node)
                part = self.moved(node)
                goal = self.layout.goal(node.outputs[0], part)
                if goal is not None:
                    require(not goal.value.is_graph_output(), "an output of the graph needs it")
                    self.goals[goal.value] = goal
                else:
                    learn(node.outputs[0], part)
                continue
            self.steps.append(node)
            for value, part in zip(node.outputs, self.taken(node), strict=True):
                learn(value, part)

    def settle(self) -> None:
        """Find the groups, and the runs of heads that have them."""
        found = {goal.groups for goal in self.goals.values()}
        require(len(found) == 1, "its heads do not end in the same number of groups")
        (self.groups,) = found
        cuts = sorted({cut for part in self.parts.values() for cut in (part.start, part.stop)})
        self.runs = list(pairwise(cuts))
        require(all((b - a) % self.groups == 0 for a, b in self.runs), "some heads have no group")
        whole = set(self.runs)
        require(
            all((goal.part.start, goal.part.stop) in whole for goal in self.goals.values()),
            "what ends in groups is cut elsewhere",
        )

    @property
    def order(self) -> list[int]:
        """The heads in the order in which those of a group stand side by side."""
        return [
            head
            for group in range(self.groups)
            for start, stop in self.runs
            for head in _share(start, stop, group, self.groups)
        ]

    @property
    def grouped(self) -> Dims:
        """`flat` with its heads in groups: batch, seq, groups, heads of a group, size."""
        it = self.layout
        return (it.batch, it.seq, self.groups, it.heads // self.groups, it.size)

    def slots(self, part: Part) -> int:
        """How many heads of a part each group has."""
        return part.count // self.groups

    def moved(self, node: ir.Node) -> Part:
        """Where a Reshape or Transpose puts the heads."""
        value, dims = node.inputs[0], dims_of(node.outputs[0])
        require(value in self.parts and dims is not None and None not in dims, "it is not known where")
        assert value is not None
        assert dims is not None
        part = self.parts[value]
        require(all(v is value or v not in self.parts for v in node.inputs), "it is a shape as well")
        if node.op_type == "Transpose":
            perm = permutation(node, self.opset)
            require(perm is not None and len(perm) == len(part.axes), "it is not known where")
            return replace(part, axes=tuple(part.axes[axis] for axis in perm or ()))
        return self.layout.reshaped(part, dims)

    # --- What is done to them ---

    def taken(self, node: ir.Node) -> Iterator[Part]:
        """The heads in the outputs of an operator.

        Raises:
            NoMatch: it mixes heads, or cannot be done to heads in groups.
        """
        if node.op_type == "Split":
            yield from self.cut(node)
            return
        part = self.common(node)
        place = self.layout.at(part)
        made, dims = dims_of(node.outputs[0]), dims_of(next(v for v in node.inputs if v in self.parts))
        require(made is not None and dims is not None and len(made) == 4, "its shape is not known")
        assert made is not None
        assert dims is not None
        require(made[:3] == dims[:3] and isinstance(made[3], int), "it becomes larger")
        if node.op_type in ELEMENTWISE:
            for value in node.inputs:
                if value is not None and value not in self.parts:
                    self.beside(value, place, part)
        elif node.op_type == "Concat":
            require(
                self.last_axis(node) and all(v in self.parts for v in node.inputs), "it joins other things"
            )
        elif node.op_type == "Slice":
            require(self.opset >= 10, "its axes are attributes")
            self.only_last(operand(node, 3))
        elif node.op_type in _REDUCTIONS:
            require(attribute(node, "keepdims", self.opset), "it drops an axis")
            given = attribute(node, "axes", self.opset)
            self.only_last(operand(node, 1), given)
        elif node.op_type in _NORMS:
            require(self.last_axis(node) and len(node.outputs) == 1, "it normalizes over heads")
            require(all(v is None or v not in self.parts for v in node.inputs[1:]), "its scale is a head")
            require(
                all(v is None or (rank(v) or 0) == 1 for v in node.inputs[1:]), "its scale is not a vector"
            )
        else:
            reject(f"{node.op_type} needs it")
        size: Any = made[3]
        yield replace(part, size=size, axes=self.layout.axes(*ORDERS[place], count=part.count, size=size))

    def common(self, node: ir.Node) -> Part:
        """The heads that an operator reads."""
        found = [self.parts[v] for v in node.inputs if v in self.parts]
        places = {(part.start, part.stop, self.layout.at(part)) for part in found}
        require(len(places) == 1 and len(node.outputs) == 1, "it combines other heads")
        return found[0]

    def cut(self, node: ir.Node) -> Iterator[Part]:
        """The heads in the parts of a Split."""
        whole = node.inputs[0]
        require(whole in self.parts and operand(node, 1) not in self.parts, "it is cut by its own contents")
        assert whole is not None
        part = self.parts[whole]
        shapes = [dims_of(value) for value in node.outputs]
        axes = from_front([int(attribute(node, "axis", self.opset))], len(part.axes))
        require(axes is not None and all(shapes), "its sizes are not known")
        assert axes is not None
        (axis,) = axes
        sizes = static([shape[axis] for shape in shapes if shape is not None])
        if sizes is None:
            reject("its sizes are not known")
        if len(part.axes) == 3:
            require(axis == 2 and part.size == self.layout.size, "it is cut along another axis")
            require(
                part.axes == self.layout.axes("b", "s", "hd", count=part.count, size=part.size), "it is moved"
            )
            require(all(size and size % part.size == 0 for size in sizes), "it is cut within heads")
            order: Sequence[str] = ("b", "s", "hd")
            counts = [size // part.size for size in sizes]
        else:
            place = self.layout.at(part)
            order = ORDERS[place]
            require(all(sizes), "it is cut into nothing")
            if axis == 3:
                for size in sizes:
                    yield replace(part, size=size, axes=self.layout.axes(*order, count=part.count, size=size))
                return
            require(axis == place, "it is cut along another axis")
            counts = sizes
        start = part.start
        for count in counts:
            axes_now = self.layout.axes(*order, count=count, size=part.size)
            yield Part(start, start + count, part.size, axes_now)
            start += count

    def along_heads(self, node: ir.Node) -> bool:
        """Whether a Split of the region cuts between heads."""
        whole = self.parts[node.inputs[0]]  # type: ignore[index]
        return any(self.parts[value].count != whole.count for value in node.outputs)

    def last_axis(self, node: ir.Node) -> bool:
        return from_front([int(attribute(node, "axis", self.opset))], 4) == [3]

    def only_last(self, axes: ir.Value | None, given: Sequence[int] | None = None) -> None:
        found = numbers(axes) if axes is not None else given
        require(found is not None and from_front(found, 4) == [3], "it is not along the channels")

    def beside(self, value: ir.Value, place: int, part: Part) -> Dims | None:
        """The shape that an operand of the heads needs beside groups; `None` where it fits as it is.

        What a constant has for each head goes where the head goes: see `each`.

        Raises:
            NoMatch: it differs between heads and is no constant, or cannot be given that shape.
        """
        dims = dims_of(value)
        require(dims is not None and None not in dims and len(dims) <= 4, "an operand's shape is not known")
        assert dims is not None
        padded = (*(1,) * (4 - len(dims)), *dims)
        if padded[place] != 1:
            require(padded[place] == part.count, "an operand is not one for each head")
            require(small_constant(value) is not None, "an operand that differs between heads is computed")
            return None
        batch, seq, size = (padded[axis] for axis in range(4) if axis != place)
        # Operands of four axes get five, as TensorRT makes several layers of every operand of lower rank.
        if len(dims) < 4 and batch == 1 and (place == 1 or seq == 1):
            return None
        wanted: Dims = (batch, 1, 1, seq, size)
        require(target(dims, wanted) is not None, "an operand's shape cannot be written down")
        return wanted

    def each(self, value: ir.Value | None, place: int, part: Part) -> Any:
        """A constant that differs between heads, for heads in groups; `None` if it does not."""
        array = small_constant(value)
        if array is None or array.ndim + place < 4 or array.ndim > 4 or part.count == 1:
            return None
        array = array.reshape((1,) * (4 - array.ndim) + array.shape)
        if array.shape[place] == 1:
            return None
        heads = [head - part.start for head in self.order if part.start <= head < part.stop]
        array = np.moveaxis(array, place, 1)[:, heads]
        array = array.reshape(array.shape[0], self.groups, -1, *array.shape[2:])
        same = (array == array[:, :1]).all()
        return array[:, :1] if same else array

    def views(self) -> Iterator[tuple[ir.Value, Dims]]:
        """The operands that need another shape, and which."""
        for node in self.steps:
            if node.op_type in ELEMENTWISE:
                part = self.common(node)
                for value in node.inputs:
                    if value is None or value in self.parts:
                        continue
                    wanted = self.beside(value, self.layout.at(part), part)
                    if wanted is not None:
                        yield value, wanted


def _share(start: int, stop: int, group: int, groups: int) -> range:
    times = (stop - start) // groups
    return range(start + group * times, start + (group + 1) * times)


def _head_size(flat: ir.Value) -> int | None:
    """The size of a head, as the first Reshape of the heads, or of some of them, tells it."""
    for user in flat.consumers():
        values = user.outputs if user.op_type == "Split" and user.domain == "" else [flat]
        for value in values:
            for view in value.consumers():
                dims = dims_of(view.outputs[0]) if view.op_type == "Reshape" and view.domain == "" else None
                sizes = [d for d in dims or () if d != 1]
                if dims is not None and len(dims) >= 4 and sizes and isinstance(sizes[-1], int):
                    return sizes[-1]
    return None
