"""Reshapes around operators that do not care how their rows are counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import Dims, dims_of, set_dims
from onnxlathe.model import Model
from onnxlathe.rewrite import Builder, Context, Pass, attribute, remove_unused
from onnxlathe_passes.attention import Attention
from onnxlathe_passes.conditions import Array, from_front, int64, rank
from onnxlathe_passes.insert import graphs_with_weights, insert, substitute
from onnxlathe_passes.row_regions import Choice, RowRegion
from onnxlathe_passes.weights import derived, tensor_of


class RowViews(Pass):
    """Let what is computed row by row work on the shape that needs the fewest Reshapes around it.

    MatMul with a matrix, normalizations over the last axis and elementwise operators do the same to
    `[batch, 49, 96]` as to `[batch, 7, 7, 96]`. So tokens may stay the image that a convolution or a cut into
    windows needs. Before opset 23: then there is Attention, which takes the heads of three axes apart itself.
    """

    name = "row_views"
    group = "fuse"
    min_opset = 13
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %a = Reshape(%x, [0, 49, 96])              # x: [batch, 7, 7, 96]
    %b = MatMul(%a, %w)
    %y = Reshape(%b, [0, 49, 3, 32])
    →
    %b = MatMul(%x, %w)
    %y = Reshape(%b, [0, 49, 3, 32])
    """

    def run(self, model: Model, context: Context) -> int:
        if model.opset >= Attention.min_opset:
            return 0
        return sum(_Graph(graph, model.opset, context).run(self.name) for graph in graphs_with_weights(model))


def _joins(choices: list[Choice], opset: int) -> bool:
    """Whether rows go right into a Concat that puts rows side by side: what makes them can be joined there."""
    for choice in choices:
        border = choice.border
        if border.entry or choice.moves.cost or not choice.length:
            continue
        end = border.ends[choice.length - 1]
        users = end.consumers()
        if len(users) != 1 or users[0].op_type != "Concat" or users[0].domain != "":
            continue
        axes = from_front([int(attribute(users[0], "axis", opset))], rank(end))
        if axes != [(rank(end) or 0) - 1] and len(users[0].inputs) > 1:
            return True
    return False


@dataclass
class _Graph:
    """One graph, being rewritten."""

    graph: ir.Graph
    opset: int
    context: Context

    def run(self, rule: str) -> int:
        nodes = list(self.graph)
        self.places = {node: place for place, node in enumerate(nodes)}
        seen: set[ir.Node] = set()
        changes = 0
        for node in nodes:
            if node in seen or node.graph is not self.graph:
                continue
            region = RowRegion.of(node, self.opset, self.places)
            if region is None:
                continue
            seen.update(region.nodes)
            best: tuple[int, Dims, list[Choice]] | None = None
            for lead in region.shapes() if region.closed else ():
                choices = region.choices(lead)
                gain = sum(choice.gain for choice in choices or ()) - region.lost(lead)
                least = best[0] if best is not None else -_joins(choices or [], self.opset)
                if choices is not None and gain > least:
                    best = gain, lead, choices
            if best is not None and self.context.permit(rule):
                self.change(region, best[1], best[2], rule)
                changes += 1
        return changes

    def change(self, region: RowRegion, lead: Dims, choices: list[Choice], rule: str) -> None:
        """Count the rows of a region by other axes."""
        nodes = sorted(region.nodes, key=self.places.__getitem__)
        before, made = list(nodes), []
        beside = {node: region.beside(node) for node in nodes}
        for choice in choices:
            if choice.border.entry:
                made += self.enter(choice, lead, nodes)
                before += choice.border.chain[: choice.length]
        for node in nodes:
            self.turn(node, beside[node], region.lead, lead)
        for choice in choices:
            if not choice.border.entry:
                made += self.leave(choice)
                before += choice.border.chain[: choice.length]
        self.context.record(rule, before, made)
        remove_unused([node for choice in choices for node in choice.border.chain])

    def enter(self, choice: Choice, lead: Dims, nodes: list[ir.Node]) -> list[ir.Node]:
        """Rows that come in, moved to where they are wanted."""
        border, op = choice.border, Builder(self.opset)
        source = border.ends[choice.length - 1] if choice.length else border.value
        value = choice.moves.build(op, source, dims_of(source) or ())
        assert value is not None
        users = [node for node in nodes if border.value in node.inputs]
        insert(op, border.chain[0] if choice.length else users[0], self.context)
        if op.nodes:
            set_dims(value, (*lead, (dims_of(border.value) or ())[-1]))
        for user in users:
            for index, given in enumerate(user.inputs):
                if given is border.value:
                    user.replace_input_with(index, value)
        return op.nodes

    def turn(self, node: ir.Node, beside: list[ir.Value], old: Dims, lead: Dims) -> None:
        """Let an operator work on other axes."""
        op = Builder(self.opset)
        for value in beside:
            shape = _for_rows(value, node, lead)
            if shape is not None:
                made = _reshaped(op, value, old, shape)
                for index in (i for i, given in enumerate(node.inputs) if given is value):
                    node.replace_input_with(index, made)
        if "axis" in node.attributes:
            node.attributes["axis"] = ir.AttrInt64("axis", -1)
        if "axes" in node.attributes:
            node.attributes["axes"] = ir.AttrInt64s("axes", [-1])
        elif node.op_type.startswith("Reduce"):
            node.replace_input_with(1, op.constant(int64([-1])))
        insert(op, node, self.context)
        for output in node.outputs:
            set_dims(output, (*lead, (dims_of(output) or ())[-1]))

    def leave(self, choice: Choice) -> list[ir.Node]:
        """Rows that go out, moved to where others want them."""
        border, op = choice.border, Builder(self.opset)
        value = choice.moves.build(op, border.value, dims_of(border.value) or ())
        assert value is not None
        if choice.length:
            insert(op, border.chain[choice.length - 1], self.context)
            substitute([(border.ends[choice.length - 1], value)], self.context, rename=bool(op.nodes))
            return op.nodes
        insert(op, min(border.users, key=self.places.__getitem__), self.context)
        for user in border.users:
            for index, given in enumerate(user.inputs):
                if given is border.value:
                    user.replace_input_with(index, value)
        return op.nodes


def _for_rows(value: ir.Value, node: ir.Node, other: Dims) -> list[int] | None:
    """The shape that a constant needs beside rows counted by other axes; `None` if its own will do."""
    dims = dims_of(value) or ()
    known = [size for size in (*dims, *other[1:]) if isinstance(size, int)]
    if all(size == 1 for size in dims[:-1]) or node.op_type == "MatMul":
        return known[len(dims) - len(other) - 1 : len(dims)] if len(dims) > len(other) + 1 else None
    return [1, *known[len(dims) :], known[len(dims) - 1]]


def _reshaped(op: Builder, value: ir.Value, lead: Dims, shape: list[int]) -> ir.Value:
    """A constant in another shape; one that differs between rows is written out for all of them."""
    source = tensor_of(value)
    rows = [1, *(size for size in lead[1:] if isinstance(size, int)), shape[-1]]

    def compute() -> Array:
        array = source.numpy()
        if array.size != np.prod(shape):
            array = np.broadcast_to(array, rows)
        return array.reshape(shape)

    return derived(op, value, shape, compute)
