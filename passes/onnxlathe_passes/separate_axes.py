"""Attention of batch and heads at once, `[batch·heads, seq, size]`, with both axes kept apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import Dims, dims_of
from onnxlathe.model import Model
from onnxlathe.rewrite import Builder, Context, NoMatch, Pass, is_constant, reject, remove_unused, require
from onnxlathe_passes.conditions import from_front, int64, numbers, operand, producer
from onnxlathe_passes.insert import graphs_with_weights, insert, substitute
from onnxlathe_passes.joined_region import POINTWISE, REPEATS, VIEWS, JoinedRegion, joined_parts
from onnxlathe_passes.noop_views import permutation
from onnxlathe_passes.regroup import reshaped, viewed
from onnxlathe_passes.weights import attributes_of, derived, tensor_of

_WIDEST = 5
"""Axes of a tensor that every kernel takes."""


class SeparateAxes(Pass):
    """Compute on [batch, heads, …] what Reshapes join to [batch·heads, …] first, and cut again afterwards.

    MatMul takes any number of axes in front. It is done where nodes go away by it: the Reshapes, and the
    arithmetic of sizes that they need.
    """

    name = "separate_axes"
    group = "fuse"
    min_opset = 13
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %a = Reshape(%q, [-1, 64, 32])                        # q: [batch, 12, 64, 32]
    %b = Reshape(%k, [-1, 32, 64])                        # k: [batch, 12, 32, 64]
    %y = Reshape(MatMul(%a, %b), [-1, 12, 64, 64])
    →
    %y = MatMul(%q, %k)
    """

    def run(self, model: Model, context: Context) -> int:
        changes = 0
        for graph in graphs_with_weights(model):
            tried: set[ir.Value] = set()
            for node in list(graph):
                if node.graph is not graph or node.op_type not in VIEWS or node.domain != "":
                    continue
                changes += self.separate(node, graph, tried, model.opset, context)
        return changes

    def separate(
        self, node: ir.Node, graph: ir.Graph, tried: set[ir.Value], opset: int, context: Context
    ) -> int:
        """Start at a Reshape that joins axes."""
        value, dims = node.outputs[0], dims_of(node.outputs[0])
        if dims is None or value in tried:
            return 0
        for axis in range(len(dims) - 1):
            parts = joined_parts(node, axis)
            if parts is None or len(dims) + len(parts) - 1 > _WIDEST:
                continue
            tried.add(value)
            try:
                region = JoinedRegion.of(value, axis, parts, graph, opset)
                tried.update(region.entries)
                made = _Made(region)
            except NoMatch:
                continue
            gone = made.gone()
            fewer = len(gone) > made.count and region.asks <= set(gone)
            if fewer and context.permit(self.name):
                made.enter(gone, self.name, context)
                return 1
            made.forget()
        return 0


class _Made:
    """The nodes that take the place of a region.

    Attributes:
        region: that it is made for.
        builders: the nodes to stand before a node of the graph.
        new: what stands for a value of the region, with the joined axis in its parts.
        thin: those that are 1 wide there, and left to broadcasting.
        results: what stands for the outputs of the exits.
    """

    def __init__(self, region: JoinedRegion) -> None:
        self.region = region
        self.extra = len(region.parts) - 1
        self.builders: dict[ir.Node, Builder] = {}
        self.new: dict[ir.Value, ir.Value] = {}
        self.thin: set[ir.Value] = set()
        self.results: list[tuple[ir.Value, ir.Value]] = []
        entries = {node: value for value, node in region.entries.items()}
        try:
            for node in self.in_order({*entries, *region.nodes, *region.exits}):
                op = self.builders[node] = Builder(region.opset)
                if node in entries:
                    self.entry(op, node, entries[node])
                elif node in region.exits:
                    self.exit(op, node)
                else:
                    self.inner(op, node)
        except NoMatch:
            self.forget()
            raise

    def in_order(self, nodes: set[ir.Node]) -> list[ir.Node]:
        """Each after those that it needs."""
        ordered: list[ir.Node] = []
        done: set[ir.Node] = set()
        work = [(node, False) for node in nodes]
        while work:
            node, ready = work.pop()
            if ready:
                ordered.append(node)
            elif node not in done:
                done.add(node)
                work.append((node, True))
                above = (v.producer() for v in node.inputs if v is not None)
                work += [(n, False) for n in above if n is not None and n in nodes]
        return ordered

    @property
    def count(self) -> int:
        return sum(len(op.nodes) for op in self.builders.values())

    def forget(self) -> None:
        for op in reversed(self.builders.values()):
            op.rewind(0)

    def gone(self) -> list[ir.Node]:
        """The nodes that nobody needs afterwards, those of the region first."""
        it = self.region
        found = list(dict.fromkeys([*it.nodes, *it.entries.values(), *it.exits]))
        taken, work = set(found), list(found)
        while work:
            for value in work.pop().inputs:
                above = value.producer() if value is not None else None
                if above is None or above in taken or any(o.is_graph_output() for o in above.outputs):
                    continue
                if all(user in taken for output in above.outputs for user in output.consumers()):
                    taken.add(above)
                    found.append(above)
                    work.append(above)
        return found

    def enter(self, gone: Sequence[ir.Node], rule: str, context: Context) -> None:
        """Let the new nodes into the graph."""
        made = [node for op in self.builders.values() for node in op.nodes]
        for anchor, op in self.builders.items():
            insert(op, anchor, context)
        named: set[ir.Value] = set()
        for old, value in self.results:
            fresh = value.producer() in made and value not in named
            named.add(value)
            substitute([(old, value)], context, rename=fresh)
        context.record(rule, list(gone), made)
        it = self.region
        remove_unused([*it.exits, *it.nodes, *it.entries.values()])

    # --- One node after the other ---

    def entry(self, op: Builder, node: ir.Node, value: ir.Value) -> None:
        """What was joined, or repeated for all of the axis."""
        source, wanted = node.inputs[0], self.region.split_dims(value)
        assert source is not None
        if node.op_type in VIEWS:
            self.new[value] = viewed(op, source, wanted)
            return
        dims, full = dims_of(source), dims_of(value) or ()
        axis = self.region.axis[value]
        if dims is None or None in dims:
            reject("what is repeated has no known shape")
        dims = (*(1,) * (len(full) - len(dims)), *dims)
        kept = self.repeated(node, dims, axis)
        shape: Dims = (*dims[:axis], *(1,) * (len(self.region.parts) - len(kept)), *kept, *dims[axis + 1 :])
        x = self.shaped(op, source, shape)
        others = [i for i in range(len(full)) if i != axis]
        if all(dims[i] == full[i] for i in others) and self.may_be_thin(value):
            self.new[value] = x
            self.thin.add(value)
        else:
            require(node.op_type == "Expand", "it must be repeated")
            self.new[value] = op.Expand(x, self.extent(op, wanted))

    def extent(self, op: Builder, dims: Dims) -> ir.Value:
        """A shape as a tensor, from the inputs of the graph."""
        require(op.opset >= 15, "a size cannot be asked for")
        parts: list[Any] = []
        for size in dims:
            found = (
                (value, axis)
                for value in self.region.graph.inputs
                for axis, theirs in enumerate(dims_of(value) or ())
                if theirs == size
            )
            if isinstance(size, int):
                parts.append(int64([size]))
                continue
            place = next(found, None)
            if place is None:
                reject("no input has a size that is needed")
            parts.append(op.Shape(place[0], start=place[1], end=place[1] + 1))
        result: ir.Value = op.Concat(*parts, axis=0)
        return result

    def repeated(self, node: ir.Node, dims: Dims, axis: int) -> tuple[Any, ...]:
        """The parts of the axis that are there before it is repeated."""
        if dims[axis] == 1:
            return ()
        require(node.op_type == "Tile", "it is not repeated")
        parts = self.region.parts
        found = next((i for i in range(1, len(parts)) if dims[axis] == _product(parts[i:])), None)
        if found is None:
            reject("it is repeated across the parts")
        return parts[found:]

    def may_be_thin(self, value: ir.Value) -> bool:
        """Whether all that needs a value would broadcast it."""
        for user in value.consumers():
            if user.op_type == "Transpose" or (user.op_type in POINTWISE and len(user.inputs) == 1):
                if not self.may_be_thin(user.outputs[0]):
                    return False
            elif user.op_type not in POINTWISE | {"MatMul"} or not self.has_wide(user):
                return False
        return True

    def has_wide(self, node: ir.Node) -> bool:
        """Whether some other operand has all sizes of the joined axis, and of the others."""
        made = dims_of(node.outputs[0]) or ()
        upto = len(made) - 2 if node.op_type == "MatMul" else len(made)
        for value in node.inputs:
            if value is None or value not in self.region.axis or self.repeats(value):
                continue
            dims = dims_of(value) or ()
            if len(dims) == len(made) and dims[:upto] == made[:upto]:
                return True
        return False

    def repeats(self, value: ir.Value) -> bool:
        """Whether a value repeats something for all of the axis."""
        node: ir.Node | None = self.region.entries.get(value)
        while node is None or node.op_type not in REPEATS:
            node = node or value.producer()
            if node is None or node in self.region.entries.values() or len(node.inputs) != 1:
                return False
            if node.op_type not in POINTWISE | {"Transpose"}:
                return False
            source = node.inputs[0]
            if source is None:
                return False
            value, node = source, self.region.entries.get(source)
        return True

    def shaped(self, op: Builder, x: ir.Value, shape: Dims) -> ir.Value:
        """`x` in another shape; a constant at once."""
        sizes = [d for d in shape if isinstance(d, int)]
        if is_constant(x) and len(sizes) == len(shape):
            tensor = tensor_of(x)
            return derived(op, x, sizes, lambda: tensor.numpy().reshape(sizes))
        return viewed(op, x, shape)

    def outside(self, op: Builder, value: ir.Value | None, axis: int, rank: int) -> ir.Value | None:
        """An operand without the joined axis, beside those that have it in parts."""
        dims = dims_of(value) if value is not None else None
        if value is None or dims is None:
            return value
        place = axis - (rank - len(dims))
        if place <= 0 or all(d == 1 for d in dims[:place]):
            return value
        return self.shaped(op, value, (*dims[:place], *(1,) * self.extra, *dims[place:]))

    def inner(self, op: Builder, node: ir.Node) -> None:
        """The same operator for values with the axis in parts."""
        it = self.region
        output = node.outputs[0]
        axis, rank = it.axis[output], len(dims_of(output) or ())
        if node.op_type in VIEWS:
            source = node.inputs[0]
            assert source is not None
            require(source not in self.thin, "it must be repeated")
            self.new[output] = reshaped(op, self.new[source], it.split_dims(output), it.split_dims(source))
            return
        inputs = [self.new[v] if v in it.axis else self.outside(op, v, axis, rank) for v in node.inputs]
        if node.op_type not in POINTWISE | {"MatMul"}:
            inputs = [self.new[v] if v in it.axis else v for v in node.inputs]
        attributes: dict[str, Any] = attributes_of(node)
        thin = [v for v in node.inputs if v in self.thin]
        if node.op_type == "Transpose":
            perm = self.turned(node)
            if thin:
                self.thin.add(output)
                source = inputs[0]
                assert source is not None
                tensor = source.const_value
                if tensor is not None:
                    dims = [int(d) for d in tensor.shape.numpy()]
                    self.new[output] = derived(
                        op, source, [dims[i] for i in perm], lambda: tensor.numpy().transpose(perm)
                    )
                    return
            attributes = {"perm": perm}
        elif node.op_type == "CumSum":
            inputs[1] = op.constant(np.int64(self.moved(it.along(node), rank, axis)))
        elif "axis" in attributes or node.op_type in ("Softmax", "LogSoftmax", "Split", "LayerNormalization"):
            attributes["axis"] = self.moved(it.along(node), rank, axis)
        if thin and node.op_type != "Transpose":
            if len(node.inputs) == 1 and node.op_type in POINTWISE:
                self.thin.add(output)
            else:
                require(node.op_type in POINTWISE | {"MatMul"} and self.has_wide(node), "it must be repeated")
        made = op.node(node.op_type, inputs, attributes, outputs=len(node.outputs))
        for old, value in zip(node.outputs, made.outputs, strict=True):
            value.type = old.type
            if old not in self.thin and old in it.axis:
                value.shape = ir.Shape([d if isinstance(d, int) else None for d in it.split_dims(old)])
            self.new[old] = value

    def turned(self, node: ir.Node) -> list[int]:
        """The permutation of a Transpose, of the axes in parts."""
        source = node.inputs[0]
        perm = permutation(node, self.region.opset)
        assert perm is not None
        assert source is not None
        at = self.region.axis[source]
        found: list[int] = []
        for axis in perm:
            place = axis + self.extra * (axis > at)
            found += range(place, place + self.extra + 1) if axis == at else [place]
        return found

    def moved(self, along: int, rank: int, axis: int) -> int:
        """An axis of a value, where the joined one is in parts."""
        place = (from_front([along], rank) or [along])[0]
        return place + self.extra * (place > axis)

    def exit(self, op: Builder, node: ir.Node) -> None:
        """What needs the axis in other parts, or these themselves."""
        value = node.inputs[0]
        assert value is not None
        require(value not in self.thin, "it must be repeated")
        before, after = self.region.split_dims(value), dims_of(node.outputs[0])
        if after is None:
            reject("a shape is not known")
        x = self.new[value]
        mark = op.mark()
        try:
            x = reshaped(op, x, after, before)
        except NoMatch:
            op.rewind(mark)
            given = operand(node, 1) if node.op_type == "Reshape" else None
            found = numbers(given)
            own = producer(given, "Concat") if found is None else None
            require(
                given is not None and own is not None and _no_zeros(own), "its shape cannot be written down"
            )
            x = op.Reshape(x, given)
        self.results.append((node.outputs[0], x))


def _product(parts: Sequence[Any]) -> Any:
    result: Any = 1
    for part in parts:
        result = result * part
    return result


def _no_zeros(concat: ir.Node) -> bool:
    """Whether a shape that is put together copies no size of what it is for."""
    found = [numbers(value) for value in concat.inputs]
    return all(contents is None or 0 not in contents for contents in found)
