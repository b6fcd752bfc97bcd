"""Projections whose columns lie as grouped-query attention reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import Dims, dims_of
from onnxlathe.model import Model, rows_of
from onnxlathe.rewrite import (
    Builder,
    Bytes,
    Context,
    Pass,
    drop_initializer,
    is_constant,
    option,
    remove_unused,
)
from onnxlathe_passes.attention import Attention
from onnxlathe_passes.conditions import Array, int64, operand, producer, rank, used_once
from onnxlathe_passes.head_axes import Part
from onnxlathe_passes.head_regions import HeadRegion
from onnxlathe_passes.insert import graphs_with_weights, insert, substitute
from onnxlathe_passes.regroup import reshaped, split, static, target
from onnxlathe_passes.views import unsqueeze
from onnxlathe_passes.weights import by_rows, derived, may_copy, tensor_of

_TO_GROUPS = (0, 2, 3, 1, 4)  # from [batch, seq, groups, times, size] to [batch, groups, times, seq, size]


@dataclass(frozen=True)
class GroupedProjection(Pass):
    """Give each group of heads the columns of its queries, its key and its value side by side.

    The columns of a constant weight (and bias) are put in another order, so that one Reshape and one
    Transpose make `[batch, groups, times + 2, seq, size]`, and what a Split takes out of that is in groups
    already: queries need no Reshape, keys and values no Unsqueeze. What is between, such as a rotary
    embedding or a normalization of each head, is done in five axes. Done where it leaves fewer nodes, and
    before opset 23: then there are RotaryEmbedding and Attention, which take the heads apart themselves.
    """

    name = "grouped_projection"
    group = "fuse"
    min_opset = 7
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %x = Transpose(Reshape(MatMul(%a, %w), [0, 0, 16, 64]), [0, 2, 1, 3])
    %q, %k, %v = Split(%x, [8, 4, 4], axis=1)
    %q1 = Reshape(%q, [0, 4, 2, -1, 64])
    %k1 = Unsqueeze(%k, [2])
    %v1 = Unsqueeze(%v, [2])
    →
    %x = Transpose(Reshape(MatMul(%a, %w1), [0, 0, 4, 4, 64]), [0, 2, 3, 1, 4])     # w1: w's columns in groups
    %q1, %k1, %v1 = Split(%x, [2, 1, 1], axis=2)
    """

    max_copy: Bytes = option(1 << 20, "largest weight that is copied because something else uses it too")

    def run(self, model: Model, context: Context) -> int:
        if model.opset >= Attention.min_opset:
            return 0
        return sum(
            _Graph(graph, model.opset, self.max_copy, context).run(self.name)
            for graph in graphs_with_weights(model)
        )


class _Graph:
    """One graph, being rewritten."""

    def __init__(self, graph: ir.Graph, opset: int, max_copy: int, context: Context) -> None:
        self.graph = graph
        self.opset = opset
        self.max_copy = max_copy
        self.context = context
        self.nodes = list(graph)
        self.places = {node: place for place, node in enumerate(self.nodes)}
        self.views: dict[tuple[ir.Value, Dims], ir.Value] = {}

    def run(self, rule: str) -> int:
        changes = 0
        for node in self.nodes:
            if node.op_type not in ("MatMul", "Add") or node.domain != "" or node.graph is not self.graph:
                continue
            region = HeadRegion.of(node.outputs[0], self.opset, self.places)
            weights = self.weights(region) if region is not None else None
            if region is None or weights is None or self.gain(region) <= 0:
                continue
            if self.context.permit(rule):
                self.regroup(region, weights, rule)
                changes += 1
        return changes

    def gain(self, region: HeadRegion) -> int:
        """How many nodes fewer there are when all is done."""
        turned = sum(goal.turned for goal in region.goals.values())
        views = {v for v, dims in region.views() if (v, dims) not in self.views}
        # One Unsqueeze more is joined to the one that is there.
        views = {v for v in views if not is_constant(v) and producer(_unsigned(v)[0], "Unsqueeze") is None}
        return len(region.moves) - 2 - turned - len(views)

    def weights(self, region: HeadRegion) -> list[tuple[ir.Node, int]] | None:
        """The constants whose columns have to change places: node and input; `None` where they cannot."""
        heads, size = region.layout.heads, region.layout.size
        dims = dims_of(region.flat)
        if dims is None or target(dims, region.grouped) is None:
            return None
        if region.order == list(range(heads)):
            return []
        found: list[tuple[ir.Node, int]] = []
        node = producer(region.flat, "Add", "MatMul")
        if node is not None and node.op_type == "Add":
            place = next((i for i, v in enumerate(node.inputs) if is_constant(v)), None)
            if place is None:
                return None
            bias, product = node.inputs[place], node.inputs[1 - place]
            sizes = dims_of(bias) if bias is not None else None
            if sizes is None or sizes[-1:] not in ((), (1,)):
                found.append((node, place))
            node = producer(product, "MatMul") if product is not None and used_once(product) else None
        if node is None:
            return None
        found.append((node, 1))
        return found if all(self.has_columns(*constant, heads * size) for constant in found) else None

    def has_columns(self, node: ir.Node, index: int, columns: int) -> bool:
        """Whether an input is a constant that may be replaced by one with its columns in another order."""
        value = node.inputs[index]
        dims = dims_of(value) if value is not None else None
        if value is None or not is_constant(value) or not dims or dims[-1] != columns:
            return False
        return may_copy(value, self.max_copy)

    def regroup(self, region: HeadRegion, weights: Sequence[tuple[ir.Node, int]], rule: str) -> None:
        """Put groups in the place of heads."""
        made: list[ir.Node] = [self.permuted(region, *constant) for constant in weights]
        new: dict[ir.Value, ir.Value] = {}
        first = min(region.flat.consumers(), key=self.places.__getitem__)
        op = Builder(self.opset)
        grouped = reshaped(op, region.flat, region.grouped)
        new[region.flat] = op.Transpose(grouped, perm=list(_TO_GROUPS))
        made += self.enter(op, first)
        pairs: list[tuple[ir.Value, ir.Value]] = []
        old = sorted([*region.steps, *region.moves], key=self.places.__getitem__)
        for node in old:
            op = Builder(self.opset)
            result = node.outputs[0]
            if result in region.goals:
                value = new[node.inputs[0]]  # type: ignore[index]
                if region.goals[result].turned:
                    value = op.Transpose(value, perm=[0, 1, 2, 4, 3])
                pairs.append((result, value))
            elif node in region.moves:
                new[result] = new[node.inputs[0]]  # type: ignore[index]
            else:
                new.update(zip(node.outputs, self.again(op, region, node, new), strict=True))
            made += self.enter(op, node)
        substitute(pairs, self.context)
        self.context.record(rule, old, made)
        remove_unused(reversed(old))

    def enter(self, op: Builder, anchor: ir.Node) -> list[ir.Node]:
        insert(op, anchor, self.context)
        return op.nodes

    def permuted(self, region: HeadRegion, node: ir.Node, index: int) -> ir.Node:
        """Put the columns of a constant in the order of the groups."""
        value = node.inputs[index]
        assert value is not None
        op = Builder(self.opset)
        node.replace_input_with(index, reordered(op, value, region.order, region.layout.size))
        insert(op, node, self.context)
        if not value.uses() and value.is_initializer():
            drop_initializer(value)
        return node

    def again(
        self, op: Builder, region: HeadRegion, node: ir.Node, new: dict[ir.Value, ir.Value]
    ) -> Sequence[ir.Value]:
        """An operator again, for heads in groups."""
        inputs = [new.get(v, v) if v is not None else None for v in node.inputs]
        parts: list[Part] = [region.parts[v] for v in node.outputs]
        attributes = dict(node.attributes)
        if node.op_type == "Split":
            assert inputs[0] is not None
            if region.along_heads(node):
                return split(op, inputs[0], [region.slots(part) for part in parts], 2)
            return split(op, inputs[0], [part.size for part in parts], 4)
        if node.op_type == "Concat":
            made: ir.Value = op.Concat(*inputs, axis=4)
            return [made]
        if node.op_type == "Slice":
            inputs[3] = op.constant(int64([4]))
        elif node.op_type.startswith("Reduce"):
            if operand(node, 1) is not None:
                inputs[1] = op.constant(int64([-1]))
            else:
                attributes["axes"] = [-1]  # type: ignore[assignment]
        elif "axis" in attributes:
            attributes["axis"] = -1  # type: ignore[assignment]
        else:
            for index, value in enumerate(node.inputs):
                if value is not None and value not in region.parts:
                    inputs[index] = self.beside(op, region, node, value)
        return op.node(node.op_type, inputs, attributes).outputs

    def beside(self, op: Builder, region: HeadRegion, node: ir.Node, value: ir.Value) -> ir.Value:
        """What an operator on heads combines them with, for heads in groups."""
        part = region.common(node)
        each = region.each(value, region.layout.at(part), part)
        if each is not None:
            return op.constant(each, value.dtype, name=value.name or "")
        wanted = region.beside(value, region.layout.at(part), part)
        return value if wanted is None else self.view(op, value, wanted)

    def view(self, op: Builder, value: ir.Value, dims: Dims) -> ir.Value:
        """An operand in another shape, made once for all regions; a constant belongs to `op`."""
        found = self.views.get((value, dims))
        sizes = static(dims)
        if found is None and is_constant(value) and sizes is not None:
            source = tensor_of(value)
            found = derived(op, value, sizes, lambda: source.numpy().reshape(sizes))
        elif found is None:
            own = Builder(self.opset)
            sine, signs = _unsigned(value)
            adds_axis = dims_of(value) == (dims[0], *dims[2:])
            if signs is not None:
                found = own.Mul(self.view(op, sine, dims), signs)
            else:
                found = unsqueeze(own, value, [1]) if adds_axis else reshaped(own, value, dims)
            made_by = value.producer()
            place = self.places[made_by] + 1 if made_by is not None and made_by in self.places else 0
            insert(own, next(n for n in self.nodes[place:] if n.graph is self.graph), self.context)
        self.views[value, dims] = found
        return found


def _unsigned(value: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """A sine without the signs that `rotate_half` gave it, and these; so that its Unsqueeze stays one."""
    product = producer(value, "Mul")
    if product is not None:
        for source, signs in (product.inputs, product.inputs[::-1]):
            if source is None or signs is None or is_constant(source) or not is_constant(signs):
                continue
            if (rank(signs) or 0) <= 1 and dims_of(source) == dims_of(value):
                return source, signs
    return value, None


def reordered(op: Builder, value: ir.Value, heads: Sequence[int], size: int) -> ir.Value:
    """A constant with its heads, each `size` columns, in another order; read when it is written."""
    source = tensor_of(value)
    order = (np.array(heads)[:, None] * size + np.arange(size)).reshape(-1)
    shape = source.shape.numpy()
    if len(shape) == 1:
        return derived(op, value, shape, lambda: source.numpy()[order])

    def rows(start: int, stop: int) -> Array:
        return rows_of(source, start, stop)[..., order]

    return by_rows(op, value, shape, rows)
