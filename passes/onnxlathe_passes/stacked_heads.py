"""Projections in which every head has its query, key and value side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.model import Model
from onnxlathe.rewrite import (
    Builder,
    Bytes,
    Context,
    Pass,
    attribute,
    drop_initializer,
    is_constant,
    option,
    remove_unused,
)
from onnxlathe_passes.conditions import from_front, int64, number, producer, rank, used_once
from onnxlathe_passes.grouped_projection import reordered
from onnxlathe_passes.insert import graphs_with_weights, insert, substitute
from onnxlathe_passes.noop_views import permutation
from onnxlathe_passes.regroup import split, target
from onnxlathe_passes.weights import may_copy, tensor_of


@dataclass(frozen=True)
class _Stack:
    """A projection that is cut into heads, and each head into parts.

    Attributes:
        view: the Reshape to `[…, heads, parts, size]`, or `[…, heads, parts·size]`.
        constants: its weight, and the bias: node and input.
        cuts: what takes the parts: a Split, or Gathers.
        move: the Transpose between, if there is one.
        parts: how many there are.
        heads, size: of them.
    """

    view: ir.Node
    constants: list[tuple[ir.Node, int]]
    cuts: list[ir.Node]
    move: ir.Node | None
    parts: int
    heads: int
    size: int

    @property
    def lead(self) -> int:
        """How many axes stand before those of the heads."""
        return (rank(self.view.outputs[0]) or 0) - (2 if self.cuts[0].op_type == "Split" else 3)


@dataclass(frozen=True)
class StackedHeads(Pass):
    """Put the columns of a projection in the order of queries, keys, values, where each head has its three.

    GPT-NeoX, BLOOM and Megatron keep `[heads, 3, size]`. With the columns of the constant weight (and bias)
    in the order `[3, heads, size]` one Split along the heads takes the parts, and what follows each of
    them alike can be done before it.
    """

    name = "stacked_heads"
    group = "fuse"
    min_opset = 7
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %x = Reshape(MatMul(%a, %w), [0, 0, 12, 3, 64])
    %q = Gather(%x, 0, axis=3)                        # and k, v
    →
    %x = Reshape(MatMul(%a, %w1), [0, 0, 36, 64])     # w1: the columns of all queries, all keys, all values
    %q, %k, %v = Split(%x, axis=2)
    """

    max_copy: Bytes = option(1 << 20, "largest weight that is copied because something else uses it too")

    def run(self, model: Model, context: Context) -> int:
        changes = 0
        for graph in graphs_with_weights(model):
            for node in list(graph):
                if node.op_type != "Reshape" or node.domain != "" or node.graph is not graph:
                    continue
                found = self.stack(node, model.opset)
                if found is not None and context.permit(self.name):
                    _sort(found, model.opset, context, self.name)
                    changes += 1
        return changes

    def stack(self, view: ir.Node, opset: int) -> _Stack | None:
        """The heads that a Reshape makes, if their parts are taken as this pass can give them."""
        flat, dims = view.inputs[0], dims_of(view.outputs[0])
        before = dims_of(flat) if flat is not None else None
        if flat is None or before is None or dims is None or len(dims) <= len(before) < 2:
            return None
        if view.outputs[0].is_graph_output() or dims[: len(before) - 1] != before[:-1] or None in before:
            return None
        inner = dims[len(before) - 1 :]
        if not all(isinstance(d, int) and d > 1 for d in inner):
            return None
        if len(inner) == 3:
            heads, parts, size = inner
            cuts: list[ir.Node] | None = _gathers(view.outputs[0], len(dims) - 2, opset)
            move = None
        elif len(inner) == 2:
            move, cut = _split_of(view.outputs[0], opset)
            parts = len(cut.outputs) if cut is not None else 1
            # Two parts of each head are halves for a rotary embedding.
            cuts = [cut] if cut is not None and parts > 2 else None
            heads, size = inner[0], inner[1] // parts  # type: ignore[operator]
        else:
            return None
        constants = self.constants(flat)
        if not cuts or constants is None or not isinstance(size, int) or not isinstance(heads, int):
            return None
        if not isinstance(parts, int) or target(before, (*before[:-1], heads * parts, size)) is None:
            return None
        return _Stack(view, constants, cuts, move, parts, heads, size)

    def constants(self, flat: ir.Value) -> list[tuple[ir.Node, int]] | None:
        """The weight and the bias of a projection that nothing else needs."""
        found: list[tuple[ir.Node, int]] = []
        dims, value = dims_of(flat) or (None,), flat
        node = producer(flat, "Add", "MatMul")
        if node is not None and node.op_type == "Add" and used_once(flat):
            place = next((i for i, v in enumerate(node.inputs) if is_constant(v)), None)
            if place is None:
                return None
            sizes = dims_of(node.inputs[place]) or ()  # type: ignore[arg-type]
            if sizes[-1:] not in ((), (1,)):
                found.append((node, place))
            other = node.inputs[1 - place]
            if other is None:
                return None
            value, node = other, producer(other, "MatMul")
        if node is None or not used_once(value):
            return None
        found.append((node, 1))
        for user, index in found:
            constant = user.inputs[index]
            if constant is None or not is_constant(constant) or not may_copy(constant, self.max_copy):
                return None
            if (dims_of(constant) or (None,))[-1] != dims[-1]:
                return None
        return found


def _gathers(value: ir.Value, axis: int, opset: int) -> list[ir.Node] | None:
    """The Gathers of one place each that are all that needs a value."""
    users = list(value.consumers())
    for user in users:
        if user.op_type != "Gather" or user.domain != "" or user.inputs[0] is not value:
            return None
        if rank(user.inputs[1]) != 0 or not isinstance(number(user.inputs[1]), int):
            return None
        if from_front([int(attribute(user, "axis", opset))], rank(value)) != [axis]:
            return None
    return users if len(users) > 1 else None


def _split_of(value: ir.Value, opset: int) -> tuple[ir.Node | None, ir.Node | None]:
    """The Transpose, if there is one, and the Split of each head into equal parts."""
    move: ir.Node | None = None
    if not used_once(value):
        return None, None
    (user,) = value.consumers()
    if user.op_type == "Transpose" and user.domain == "":
        perm = permutation(user, opset)
        if perm is None or perm[-1] != len(perm) - 1 or not used_once(user.outputs[0]):
            return None, None
        move = user
        (user,) = move.outputs[0].consumers()
    if user.op_type != "Split" or user.domain != "" or len(user.outputs) < 2:
        return None, None
    axis = from_front([int(attribute(user, "axis", opset))], rank(value))
    sizes = {(dims_of(v) or (None,))[-1] for v in user.outputs}
    if axis != [(rank(value) or 0) - 1] or len(sizes) != 1 or None in sizes:
        return None, None
    return move, user


def _sort(stack: _Stack, opset: int, context: Context, rule: str) -> None:
    """Put the columns in order, and cut along the heads."""
    made: list[ir.Node] = []
    order = [head * stack.parts + part for part in range(stack.parts) for head in range(stack.heads)]
    for node, index in stack.constants:
        value = node.inputs[index]
        assert value is not None
        op = Builder(opset)
        node.replace_input_with(index, _with_order(op, value, order, stack))
        insert(op, node, context)
        if not value.uses() and value.is_initializer():
            drop_initializer(value)
        made.append(node)
    op = Builder(opset)
    flat = stack.view.inputs[0]
    assert flat is not None
    before = dims_of(flat) or ()
    written = target(before, (*before[:-1], stack.heads * stack.parts, stack.size))
    assert written is not None
    x: ir.Value = op.Reshape(flat, int64(written))
    axis = stack.lead
    if stack.move is not None:
        perm = permutation(stack.move, opset) or ()
        x = op.Transpose(x, perm=list(perm))
        axis = perm.index(axis)
    results = split(op, x, [stack.heads] * stack.parts, axis)
    insert(op, stack.view, context)
    pairs: list[tuple[ir.Value, Any]] = []
    if stack.cuts[0].op_type == "Split":
        pairs = list(zip(stack.cuts[0].outputs, results, strict=True))
    else:
        pairs = [(cut.outputs[0], results[number(cut.inputs[1])]) for cut in stack.cuts]
    substitute(pairs, context)
    gone = [*stack.cuts, *([stack.move] if stack.move is not None else []), stack.view]
    context.record(rule, [*gone, *made], [*made, *op.nodes])
    remove_unused(reversed(gone))


def _with_order(op: Builder, value: ir.Value, order: list[int], stack: _Stack) -> ir.Value:
    assert len(order) * stack.size == tensor_of(value).shape.numpy()[-1]
    return reordered(op, value, order, stack.size)
