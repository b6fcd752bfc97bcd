"""Numbers that are added, into the biases far above them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.model import Model
from onnxlathe.rewrite import (
    Builder,
    Context,
    Pass,
    attribute,
    drop_initializer,
    is_constant,
    remove_unused,
    scalar_value,
)
from onnxlathe_passes.absorb import Factor, before_reshape, places_of
from onnxlathe_passes.conditions import FLOATS, Array, from_front, operand
from onnxlathe_passes.insert import graphs_with_weights, insert, substitute
from onnxlathe_passes.noop_views import permutation
from onnxlathe_passes.regroup import static
from onnxlathe_passes.weights import numbers

_LARGEST = 16.0
"""A larger number may be there to round."""
_FAR = 16
_SMALL = 1 << 18  # elements of a bias
_MOVES = frozenset(
    {"Identity", "Reshape", "Transpose", "Split", "Gather", "Slice", "Unsqueeze", "Squeeze", "Flatten"}
)


class FoldOffset(Pass):
    """Add a number to the bias from which its operand comes, through whatever only moves elements.

    So 1 + scale, as adaptive normalizations have it (Peebles & Xie 2023, "Scalable Diffusion Models with
    Transformers"), is part of the projection that makes all scales and shifts.
    """

    name = "fold_offset"
    group = "fuse"
    min_opset = 7
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %shift, %scale = Split(Gemm(%c, %w, %b), axis=1)
    %y = Add(%scale, 1)
    →
    %shift, %y = Split(Gemm(%c, %w, %b1), axis=1)               # b1: b, and b + 1 for the scales
    """

    def run(self, model: Model, context: Context) -> int:
        changes = 0
        for graph in graphs_with_weights(model):
            for node in list(graph):
                if node.op_type in ("Add", "Sub") and node.domain == "" and node.graph is graph:
                    changes += self.fold(node, model.opset, context)
        return changes

    def fold(self, node: ir.Node, opset: int, context: Context) -> int:
        """Fold one addition, if it can be."""
        for index in (0, 1) if node.op_type == "Add" else (0,):
            x, constant = node.inputs[index], node.inputs[1 - index]
            number = scalar_value(constant)
            if x is None or constant is None or number is None or is_constant(x) or x.dtype not in FLOATS:
                continue
            dims = dims_of(x)
            if dims is None or len(dims_of(constant) or ()) > len(dims) or abs(number) > _LARGEST:
                continue
            signed = number if node.op_type == "Add" else -number
            found = bias_above(x, Factor(np.array(float(signed))), node, opset)
            if found is None or not context.permit(self.name):
                continue
            found.apply(opset, context)
            substitute([(node.outputs[0], x)], context)
            context.record(self.name, [node, found.node], [found.node])
            remove_unused([node])
            return 1
        return 0


@dataclass(frozen=True)
class Bias:
    """An input of a node to which an array is to be added; it may be left out so far."""

    node: ir.Node
    place: int
    added: Array

    def apply(self, opset: int, context: Context) -> None:
        op, old = Builder(opset), operand(self.node, self.place)
        whole = self.added if old is None else numbers(old) + self.added
        dtype = self.node.outputs[0].dtype
        assert dtype is not None
        new = op.constant(whole, dtype, name=(old and old.name) or f"{self.node.name}/bias")
        if len(self.node.inputs) <= self.place:
            self.node.resize_inputs(self.place + 1)
        self.node.replace_input_with(self.place, new)
        insert(op, self.node, context)
        if old is not None and old.is_initializer() and not old.uses():
            drop_initializer(old)


def bias_above(value: ir.Value, offset: Factor, by: ir.Node, opset: int) -> Bias | None:
    """The bias above a value that can take an offset in, with nothing else than `by` seeing it.

    Args:
        value: what is to be larger.
        offset: by how much: one number, or one for each place along an axis.
        by: the only node that will read the sum.
        opset: of the graph.
    """
    for _ in range(_FAR):
        node = value.producer()
        others = [user for user in value.consumers() if user is not by]
        if node is None or node.domain != "" or node.graph is not by.graph or value.is_graph_output():
            return None
        apart = places_of(by, opset) if others else None
        if others and (apart is None or not all(_disjoint(by, user, opset) for user in others)):
            return None
        if node.op_type not in _MOVES:
            return _taken(node, value, offset, opset)
        above, whole = _above(node, value, offset, opset), node.inputs[0]
        if above is None or whole is None:
            return None
        value, offset, by = whole, above, node
    return None


def _disjoint(one: ir.Node, other: ir.Node, opset: int) -> bool:
    """Whether two operators take different elements along the same axis of the same value."""
    ours, theirs = places_of(one, opset), places_of(other, opset)
    same = one.inputs[0] is other.inputs[0] and other.inputs[0] not in other.inputs[1:]
    return (
        same
        and ours is not None
        and theirs is not None
        and ours[0] == theirs[0]
        and not set(ours[1]) & set(theirs[1])
    )


def _above(node: ir.Node, value: ir.Value, offset: Factor, opset: int) -> Factor | None:
    """What the input of an operator that moves elements carries for its output to carry an offset."""
    whole = node.inputs[0]
    before, after = (dims_of(whole) if whole is not None else None), dims_of(value)
    if before is None or after is None:
        return None
    if node.op_type == "Transpose":
        perm = permutation(node, opset)
        if perm is None:
            return None
        return offset if offset.axis is None else Factor(offset.numbers, perm[offset.axis])
    if node.op_type == "Split":
        axes = from_front([int(attribute(node, "axis", opset))], len(before))
        sizes = static([(dims_of(part) or ())[axes[0]] for part in node.outputs]) if axes else None
        if not axes or sizes is None or offset.axis not in (None, axes[0]):
            return None
        parts = [np.zeros(size) for size in sizes]
        parts[value.index() or 0] += offset.numbers
        return Factor(np.concatenate(parts), axes[0])
    if node.op_type in ("Gather", "Slice"):
        found = places_of(node, opset)
        if found is None or (offset.axis is not None and not (found[2] and offset.axis == found[0])):
            return None
        axis, places, _ = found
        size = before[axis]
        spread = np.zeros(size if isinstance(size, int) else 0)
        spread[places] = offset.numbers
        return Factor(spread, axis)
    return before_reshape(node, offset)


def _taken(node: ir.Node, value: ir.Value, offset: Factor, opset: int) -> Bias | None:
    """The bias of an operator, if an offset can be part of it."""
    dims = dims_of(value)
    if dims is None:
        return None
    if node.op_type in ("Add", "Sub"):
        return _summand(node, dims, offset)
    if node.op_type not in ("Gemm", "Conv") or offset.axis not in (None, 1):
        return None
    weight, old, channels = node.inputs[1], operand(node, 2), dims[1]
    if weight is None or not is_constant(weight) or not isinstance(channels, int):
        return None
    if node.op_type == "Gemm" and attribute(node, "beta", opset) != 1:
        return None
    if old is not None and (not is_constant(old) or dims_of(old) not in ((channels,), (1, channels))):
        return None
    return Bias(node, 2, np.broadcast_to(offset.numbers, (channels,)))


def _summand(node: ir.Node, dims: tuple[object, ...], offset: Factor) -> Bias | None:
    """The constant that is added, where it is as large as the offset along the axis."""
    for place in (1, 0) if node.op_type == "Add" else (1,):
        constant = node.inputs[place]
        if constant is None or not is_constant(constant):
            continue
        shape = dims_of(constant) or ()
        size = static(shape)
        added = offset.against(len(dims), shape)
        if size is None or added is None or np.prod(size, dtype=np.int64) > _SMALL:
            return None
        return Bias(node, place, added if node.op_type == "Add" else -added)
    return None
