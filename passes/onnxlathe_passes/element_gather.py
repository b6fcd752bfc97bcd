"""Elements of the last axis in another order: one Gather, or a constant in that order."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of, set_dims
from onnxlathe.model import Model
from onnxlathe.rewrite import Builder, Context, NoMatch, Pass, attribute, is_constant, remove_unused
from onnxlathe_passes.conditions import FLOATS, Array, dying, from_front, int64, producer, rank, used_once
from onnxlathe_passes.elements import MOVES, Elements
from onnxlathe_passes.insert import graphs_with_weights, insert, substitute
from onnxlathe_passes.regroup import viewed
from onnxlathe_passes.weights import derived, tensor_of

_SHORT = 2
"""From so many neighbours on that stay together, on average, blocks are copied faster by Slice and Concat."""
_ENDS = MOVES - {"Slice", "Split", "Gather"}
_CUTS = frozenset({"Slice", "Split", "Gather", "Concat"})
_LARGEST = 1 << 24  # bytes of a table


class ElementGather(Pass):
    """What Slices, Concats and views do to the elements of the last axis, done by one Gather.

    So neighbours are turned in pairs (the rotary embeddings of GPT-J, Cohere, GLM), with signs multiplied into
    the sine that follows; and what is done to a constant, or to a constant times one number for each row, is
    done to the constant.
    """

    name = "element_gather"
    group = "fuse"
    min_opset = 7
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %a = Unsqueeze(Neg(Slice(%x, starts=[1], ends=[64], axes=[3], steps=[2])), [-1])
    %b = Unsqueeze(Slice(%x, starts=[0], ends=[64], axes=[3], steps=[2]), [-1])
    %y = Mul(Reshape(Concat(%a, %b, axis=-1), [0, 0, 0, 64]), %sin)
    →
    %y = Mul(Gather(%x, [1, 0, 3, 2, …, 63, 62], axis=3), %sin1)         # sin1: sin·[-1, 1, -1, 1, …]
    """

    def run(self, model: Model, context: Context) -> int:
        changes = 0
        for graph in graphs_with_weights(model):
            gatherer = _Gatherer(model.opset)
            for node in list(graph):
                if node.graph is graph and node.op_type in _ENDS and node.domain == "":
                    changes += gatherer.gather(node, context, self.name)
        return changes


@dataclass
class _Gatherer:
    """Rewrites the ends of such chains in one graph.

    Attributes:
        signed: factors with signs, made once for all layers.
        indices: constants that Gathers have already.
    """

    opset: int
    signed: dict[tuple[ir.Value, bytes], ir.Value] = field(default_factory=dict)
    indices: dict[tuple[bytes, tuple[int, ...]], ir.Value] = field(default_factory=dict)

    def gather(self, node: ir.Node, context: Context, rule: str) -> int:
        """Rewrite what ends at a node."""
        value = node.outputs[0]
        if value.is_graph_output() or not value.consumers():
            return 0
        users = value.consumers()
        if all(user.op_type in MOVES and user.domain == "" for user in users):
            return 0
        found = Elements.of(value, self.opset)
        if found is None or found.source is value or found.dims != dims_of(value):
            return 0
        if (dims_of(found.source) or (1,))[-1] == 1:
            return 0  # what is repeated only is left to broadcasting
        gone = dying(node)
        op = Builder(self.opset)
        factor: tuple[ir.Node, int, ir.Value] | None = None
        try:
            made = self.constant(op, found, gone)
            if made is None:
                if self.all_of(found) and not any(other.op_type in _CUTS for other in gone):
                    return 0  # only moved: queries and keys are moved alike, and merged for that
                if found.index.size >= _SHORT * found.runs and not self.all_of(found):
                    return 0
                factor = self.factor(value, found) if (found.sign != 1).any() else None
                made = self.gathered(op, found, signs=factor is None)
            made = viewed(op, made, found.dims)
        except NoMatch:
            op.rewind(0)
            return 0
        count = len(op.nodes) + (factor is not None and not self.has_sign(factor, found))
        if count >= len(gone) or not context.permit(rule):
            op.rewind(0)
            return 0
        if factor is not None:
            user, index, other = factor
            self.give_sign(user, index, other, found, context)
        insert(op, node, context)
        for new in op.nodes:
            if new.op_type == "Gather" and new.inputs[0] is found.source and new.inputs[1] is not None:
                self.indices[_key(found)] = new.inputs[1]
        substitute([(value, made)], context, rename=made.producer() in op.nodes)
        context.record(rule, gone, op.nodes)
        remove_unused([node])
        return 1

    def gathered(self, op: Builder, found: Elements, signs: bool) -> ir.Value:
        """The elements, by a Gather; and their signs, where nothing else takes them."""
        dims = dims_of(found.source) or ()
        made: ir.Value = found.source
        if not self.all_of(found):
            indices = self.indices.get(_key(found), int64(found.index))  # type: ignore[arg-type]
            made = op.Gather(found.source, indices, axis=len(dims) - 1)
            set_dims(made, (*dims[:-1], *found.index.shape))
            made.type = found.source.type
        if signs and (found.sign != 1).any():
            assert found.source.dtype is not None
            made = op.Mul(made, op.constant(found.sign, found.source.dtype))
            set_dims(made, (*dims[:-1], *found.index.shape))
        return made

    def all_of(self, found: Elements) -> bool:
        """Whether the elements are those of the source, as they are there."""
        dims = dims_of(found.source) or ()
        return found.index.shape == dims[-1:] and bool((found.index == np.arange(found.index.size)).all())

    # --- Constants ---

    def constant(self, op: Builder, found: Elements, gone: list[ir.Node]) -> ir.Value | None:
        """The elements where a constant has them: times one number for each row, or in rows of a table."""
        node = producer(found.source, "Mul", "Div", "Gather")
        if node is None or found.index.ndim != 1 or found.source.dtype not in FLOATS:
            return None
        if not all(user in gone for user in found.source.consumers()):
            return None
        size = (dims_of(found.source) or ())[-1]
        if node.op_type == "Gather":
            table, rows = node.inputs
            axis = from_front([int(attribute(node, "axis", self.opset))], rank(table))
            if table is None or axis is None or axis[0] >= (rank(table) or 0) - 1:
                return None
            new = self.reordered(op, table, found)
            return None if new is None else self.again(op, node, [new, rows], found)
        for index, (table, other) in enumerate((node.inputs[::-1], tuple(node.inputs))):
            # index: of `other`, what is multiplied
            dims = dims_of(other) if other is not None else None
            if table is None or dims is None or dims[-1:] not in ((), (1,)) or dims_of(table) is None:
                continue
            if (dims_of(table) or ())[-1:] != (size,) or (node.op_type == "Div" and index):
                continue
            new = self.reordered(op, table, found)
            if new is not None:
                return self.again(op, node, [other, new] if index == 0 else [new, other], found)
        return None

    def again(self, op: Builder, node: ir.Node, inputs: list[ir.Value | None], found: Elements) -> ir.Value:
        made = op.node(node.op_type, inputs, dict(node.attributes)).outputs[0]
        lead = (dims_of(found.source) or ())[:-1]
        set_dims(made, (*lead, found.index.size))
        made.type = found.source.type
        return made

    def reordered(self, op: Builder, table: ir.Value, found: Elements) -> ir.Value | None:
        """A constant with the elements of its last axis in another order, negated where they are."""
        if not is_constant(table) or table.dtype is None:
            return None
        source = tensor_of(table)
        index, sign = found.index, found.sign
        shape = [*source.shape.numpy()[:-1], index.size]
        if np.prod(shape, dtype=np.float64) * table.dtype.itemsize > _LARGEST:
            return None

        def compute() -> Array:
            array: Array = source.numpy()[..., index]
            result: Array = array * sign.astype(array.dtype)
            return result

        return derived(op, table, shape, compute)

    # --- Signs ---

    def factor(self, value: ir.Value, found: Elements) -> tuple[ir.Node, int, ir.Value] | None:
        """The product that needs the elements, and its other operand, which can take their signs."""
        if not used_once(value):
            return None
        (user,) = value.consumers()
        if user.op_type != "Mul" or user.domain != "" or found.index.ndim != 1:
            return None
        for index, other in enumerate(user.inputs):
            dims = dims_of(other) if other is not None else None
            if other is None or other is value or dims is None:
                continue
            if dims[-1:] == found.index.shape and len(dims) <= len(found.dims):
                return user, index, other
        return None

    def has_sign(self, factor: tuple[ir.Node, int, ir.Value], found: Elements) -> bool:
        return is_constant(factor[2]) or (factor[2], found.sign.tobytes()) in self.signed

    def give_sign(
        self, user: ir.Node, index: int, other: ir.Value, found: Elements, context: Context
    ) -> None:
        """Let a product read its factor times the signs, which is made where the factor is."""
        key = other, found.sign.tobytes()
        if key not in self.signed:
            op, sign = Builder(self.opset), found.sign
            if is_constant(other):
                source = tensor_of(other)
                new = derived(op, other, source.shape.numpy(), lambda: source.numpy() * sign)
            else:
                assert other.dtype is not None
                new = op.Mul(other, op.constant(sign, other.dtype))
            user.replace_input_with(index, new)
            insert(op, _after(other.producer(), user), context)
            self.signed[key] = new
        user.replace_input_with(index, self.signed[key])


def _after(node: ir.Node | None, user: ir.Node) -> ir.Node:
    """What stands behind a node, or first in the graph of its user."""
    nodes = iter(user.graph or ())
    if node is not None and node.graph is user.graph:
        next(n for n in nodes if n is node)
    return next(nodes)


def _key(found: Elements) -> tuple[bytes, tuple[int, ...]]:
    return found.index.tobytes(), found.index.shape
