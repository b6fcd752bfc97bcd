"""What is computed on an axis that is several axes joined: `[batch·heads, seq, size]`.

`JoinedRegion.of(value, axis, …)` starts at a value with such an axis and takes all operators that keep it
whole, up to the Reshapes that join it and those that cut it. It plans and does not edit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxlathe.infer import Dims, dims_of
from onnxlathe.rewrite import NoMatch, attribute, is_constant, reject, require
from onnxlathe_passes.conditions import from_front, numbers, operand
from onnxlathe_passes.lanes import ELEMENTWISE
from onnxlathe_passes.moves import Arrangement
from onnxlathe_passes.noop_views import permutation

VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})
REPEATS = frozenset({"Expand", "Tile"})
POINTWISE = ELEMENTWISE | {"Greater", "Less", "GreaterOrEqual", "LessOrEqual", "IsNaN", "IsInf", "Or", "Xor"}
_ALONG = frozenset({"Softmax", "LogSoftmax", "GatherElements", "Concat", "CumSum"})
_MANY = 64
"""More operators than attention has between its Reshapes."""


def joined_parts(node: ir.Node, axis: int) -> tuple[Any, ...] | None:
    """The sizes that a view joins to an axis of its output; `None` where that axis is one of its input's."""
    source = node.inputs[0]
    before, after = dims_of(source) if source is not None else None, dims_of(node.outputs[0])
    if before is None or after is None or {None, 0} & {*before, *after}:
        return None
    found = Arrangement(before)
    if not found.reshape(after):
        return None
    parts = found.axes[axis]
    return tuple(found.sizes[part] for part in parts) if len(parts) > 1 else None


def carried(before: Dims, after: Dims, axis: int) -> int | None:
    """Where a view puts an axis that it leaves whole; `None` where it does not."""
    if {None, 0} & {*before, *after}:
        return None
    found = Arrangement(before)
    if not found.reshape(after) or len(found.source[axis]) != 1:
        return None
    places = [place for place, parts in enumerate(found.axes) if parts == found.source[axis]]
    return places[0] if places else None


@dataclass
class JoinedRegion:
    """Operators that work beside one another for all of an axis that was joined.

    Attributes:
        parts: the sizes that were joined.
        graph: that all of it is in.
        axis: where the joined axis is, for each value that has it.
        nodes: that compute with these values.
        entries: the Reshapes that join, and Expands and Tiles that repeat something for all of the axis.
        exits: the views that cut the axis, or join it further.
        asks: Shapes of its values, which must not be needed any more.
    """

    parts: tuple[Any, ...]
    graph: ir.Graph
    opset: int
    axis: dict[ir.Value, int] = field(default_factory=dict)
    nodes: set[ir.Node] = field(default_factory=set)
    entries: dict[ir.Value, ir.Node] = field(default_factory=dict)
    exits: set[ir.Node] = field(default_factory=set)
    asks: set[ir.Node] = field(default_factory=set)
    _work: list[ir.Value] = field(default_factory=list)

    @classmethod
    def of(
        cls, value: ir.Value, axis: int, parts: tuple[Any, ...], graph: ir.Graph, opset: int
    ) -> JoinedRegion:
        """Follow the axis, up and down.

        Raises:
            NoMatch: something needs it that does not keep it whole.
        """
        found = cls(parts, graph, opset)
        found.want(value, axis)
        try:
            while found._work:
                value = found._work.pop()
                found.above(value)
                found.below(value)
        except NoMatch:
            found._work.clear()
            raise
        return found

    @property
    def size(self) -> Any:
        return math.prod(self.parts)

    def split_dims(self, value: ir.Value) -> Dims:
        """The shape of a value with the joined axis in its parts."""
        dims, axis = dims_of(value), self.axis[value]
        assert dims is not None
        return (*dims[:axis], *self.parts, *dims[axis + 1 :])

    def want(self, value: ir.Value | None, axis: int) -> None:
        """Take a value, whose axis is the joined one."""
        dims = dims_of(value) if value is not None else None
        if value is None or dims is None or None in dims:
            reject("a shape is not known")
        require(dims[axis] == self.size, "an operand has another size")
        if value in self.axis:
            require(self.axis[value] == axis, "an operand has two such axes")
            return
        require(not value.is_graph_output(), "an output of the graph needs it")
        self.axis[value] = axis
        self._work.append(value)

    # --- Up and down ---

    def above(self, value: ir.Value) -> None:
        """What makes a value."""
        node = value.producer()
        if node is None or node.graph is not self.graph or is_constant(value):
            reject("an operand comes from elsewhere")
        require(node.domain == "", "an operator of another domain makes it")
        if node in self.nodes:
            return
        axis = self.axis[value]
        if node.op_type in VIEWS:
            before, after = dims_of(node.inputs[0]) if node.inputs[0] else None, dims_of(value)
            place = carried(after, before, axis) if before is not None and after is not None else None
            if place is not None:
                self.nodes.add(node)
                self.want(node.inputs[0], place)
                return
            require(joined_parts(node, axis) == self.parts, "something else is joined")
            self.entries[value] = node
        elif node.op_type in REPEATS:
            self.entries[value] = node
        else:
            self.include(node, value)

    def below(self, value: ir.Value) -> None:
        """What needs a value."""
        for user, index in value.uses():
            require(user.graph is self.graph, "another graph needs it")
            require(user.domain == "", "an operator of another domain needs it")
            if user in self.nodes:
                continue
            if user.op_type == "Shape":
                self.asks.add(user)
            elif user.op_type in REPEATS and index == 1:
                reject("it is a shape")
            elif user.op_type in VIEWS:
                require(index == 0, "it is a shape")
                before, after = dims_of(value), dims_of(user.outputs[0])
                place = None
                if before is not None and after is not None:
                    place = carried(before, after, self.axis[value])
                if place is None:
                    self.exits.add(user)
                else:
                    self.nodes.add(user)
                    self.want(user.outputs[0], place)
            else:
                self.include(user, value)

    # --- Operators ---

    def include(self, node: ir.Node, value: ir.Value) -> None:
        """Take an operator that reads or makes a value: what else it reads and makes."""
        require(len(self.nodes) < _MANY, "it goes on and on")
        self.nodes.add(node)
        for other, axis in self.places(node, value):
            self.want(other, axis)

    def places(self, node: ir.Node, value: ir.Value) -> Iterator[tuple[ir.Value | None, int]]:
        """The values of an operator that have the joined axis, and where."""
        axis = self.axis[value]
        dims = dims_of(value) or ()
        made = dims_of(node.outputs[0])
        if made is None:
            reject("a shape is not known")
        if node.op_type == "Transpose":
            perm = permutation(node, self.opset)
            if perm is None:
                reject("it is not known how it is moved")
            if value is node.inputs[0]:
                yield node.outputs[0], perm.index(axis)
            else:
                yield node.inputs[0], perm[axis]
        elif node.op_type in POINTWISE:
            yield from self.broadcast(node, list(node.inputs), axis + len(made) - len(dims), len(made))
        elif node.op_type == "MatMul":
            yield from self.product(node, axis + len(made) - len(dims), made)
        elif node.op_type in _ALONG:
            require(node.op_type not in ("Softmax", "LogSoftmax") or self.opset >= 13, "it flattens")
            require(
                axis not in (from_front([self.along(node)], len(made)) or [axis]), "it runs along the axis"
            )
            yield node.outputs[0], axis
            count = 1 if node.op_type in ("Softmax", "LogSoftmax", "CumSum") else len(node.inputs)
            for other in node.inputs[:count]:
                yield other, axis
        elif node.op_type == "Split":
            require(axis not in (from_front([self.along(node)], len(made)) or [axis]), "it cuts the axis")
            for other in (node.inputs[0], *node.outputs):
                yield other, axis
        elif node.op_type == "LayerNormalization":
            require(len(node.outputs) == 1, "it gives its statistics")
            start = from_front([self.along(node)], len(made))
            require(start is not None and axis < start[0], "it normalizes along the axis")
            yield node.inputs[0], axis
            yield node.outputs[0], axis
        else:
            reject(f"{node.op_type} needs it")

    def along(self, node: ir.Node) -> int:
        """The axis that an operator works along."""
        if node.op_type == "CumSum":
            found = numbers(operand(node, 1))
            require(found is not None and len(found) == 1, "its axis is not known")
            return found[0] if found else 0
        return int(attribute(node, "axis", self.opset))

    def broadcast(
        self, node: ir.Node, inputs: list[ir.Value | None], axis: int, rank: int
    ) -> Iterator[tuple[ir.Value | None, int]]:
        """The operands that are not the same along the joined axis, and the result."""
        for other in inputs:
            dims = dims_of(other) if other is not None else ()
            if dims is None:
                reject("a shape is not known")
            place = axis - (rank - len(dims))
            if place >= 0 and dims[place] != 1:
                yield other, place
        yield node.outputs[0], axis

    def product(self, node: ir.Node, axis: int, made: Dims) -> Iterator[tuple[ir.Value | None, int]]:
        """The same of a MatMul: the axis is one of the batch, or the rows times a matrix."""
        ranks = [len(dims_of(v) or ()) if v is not None else 0 for v in node.inputs]
        require(min(ranks) >= 2, "it is a product with a vector")
        if axis < len(made) - 2:
            yield from self.broadcast(node, list(node.inputs), axis, len(made))
            return
        rows = axis == len(made) - 2 and ranks[1] == 2 and node.inputs[1] not in self.axis
        require(rows, "it multiplies along the axis")
        yield node.inputs[0], ranks[0] - 2
        yield node.outputs[0], axis
