"""Rotary embeddings: the half that is turned around and negated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.model import Model
from onnxlathe.rewrite import Builder, Context, Pass, attribute, is_constant, remove_unused
from onnxlathe_passes.conditions import FLOATS, from_front, producer, used_once
from onnxlathe_passes.insert import graphs_with_weights, insert, substitute
from onnxlathe_passes.lanes import split_lane
from onnxlathe_passes.regroup import split
from onnxlathe_passes.slices import cuts
from onnxlathe_passes.weights import derived, tensor_of


@dataclass(frozen=True)
class Half:
    """x[…, start:end]."""

    x: ir.Value
    start: int
    end: int

    @classmethod
    def of(cls, value: ir.Value | None, opset: int) -> Half | None:
        """What part of the last axis of what a value is, by Slice or by Split."""
        node = producer(value, "Slice", "Split")
        x = node.inputs[0] if node is not None else None
        dims = dims_of(x) if x is not None else None
        if node is None or value is None or x is None or not dims or not isinstance(dims[-1], int):
            return None
        if node.op_type == "Slice":
            parts = cuts(node, opset)
            cut = parts.get(len(dims) - 1) if parts is not None and len(parts) == 1 else None
            cut = cut.normal(dims[-1]) if cut is not None and cut.step == 1 else None
            return None if cut is None else cls(x, min(cut.start, dims[-1]), min(cut.end, dims[-1]))
        lane = split_lane(node, opset)
        if lane is None or lane.axis != len(dims) - 1:
            return None
        return cls(x, *lane.parts()[value.index() or 0])


@dataclass(frozen=True)
class Turned:
    """Concat(-x₂, x₁) along the last axis: x turned by half.

    Attributes:
        x: what is turned.
        lower, upper: sizes of x₁ and x₂.
        negated: the Neg.
    """

    x: ir.Value
    lower: int
    upper: int
    negated: ir.Node

    @classmethod
    def of(cls, joined: ir.Node, opset: int) -> Turned | None:
        """What a Concat turns, if nothing else reads the negated part."""
        dims = dims_of(joined.outputs[0])
        negated = producer(joined.inputs[0], "Neg") if len(joined.inputs) == 2 else None
        if negated is None or not dims or not used_once(negated.outputs[0]):
            return None
        if from_front([int(attribute(joined, "axis", opset))], len(dims)) != [len(dims) - 1]:
            return None
        second, first = Half.of(negated.inputs[0], opset), Half.of(joined.inputs[1], opset)
        if first is None or second is None or first.x is not second.x:
            return None
        if first.start or first.end != second.start or second.end != dims[-1]:
            return None
        return cls(first.x, first.end, second.end - second.start, negated)


class RotateHalf(Pass):
    """Concat(-x₂, x₁)·sin = Concat(x₂, x₁)·(-sin for the first half, sin for the second).

    x₁ and x₂ are what a Split cuts x into. The sine of all layers is the same, so that its sign is
    changed once.
    """

    name = "rotate_half"
    group = "fuse"
    min_opset = 10
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %a = Slice(%x, starts=[0], ends=[32], axes=[3])
    %b = Slice(%x, starts=[32], ends=[64], axes=[3])
    %y = Mul(Concat(Neg(%b), %a), %sin)
    →
    %a, %b = Split(%x, [32, 32], axis=3)
    %y = Mul(Concat(%b, %a), %sin1)             # sin1: sin·[-1, …, -1, 1, …, 1]
    """

    def run(self, model: Model, context: Context) -> int:
        changes = 0
        for graph in graphs_with_weights(model):
            signed: dict[tuple[ir.Value, int], ir.Value] = {}
            for node in graph:
                if node.op_type == "Mul" and node.domain == "":
                    changes += self.turn(node, model.opset, context, signed)
        return changes

    def turn(
        self, node: ir.Node, opset: int, context: Context, signed: dict[tuple[ir.Value, int], ir.Value]
    ) -> int:
        """Rewrite one product with a sine."""
        for turned, sine in (node.inputs, node.inputs[::-1]):
            joined = producer(turned, "Concat")
            if joined is None or sine is None or turned is None or not used_once(turned):
                continue
            found = Turned.of(joined, opset) if turned.dtype in FLOATS else None
            dims, sizes = dims_of(turned), dims_of(sine)
            if found is None or dims is None or sizes is None:
                continue
            # A sine that is the same for all places, or is itself made larger, cannot carry the signs.
            if sizes[-1:] != dims[-1:] or len(sizes) > len(dims) or not context.permit(self.name):
                continue
            op = Builder(opset)
            if (sine, found.upper) not in signed:
                signed[sine, found.upper] = _signed(op, sine, found.upper)
            one, two = split(op, found.x, [found.lower, found.upper], len(dims) - 1)
            result = op.Mul(op.Concat(two, one, axis=len(dims) - 1), signed[sine, found.upper])
            insert(op, node, context)
            substitute([(node.outputs[0], result)], context)
            context.record(self.name, [node, joined, found.negated], op.nodes)
            remove_unused([node])
            return 1
        return 0


def _signed(op: Builder, sine: ir.Value, upper: int) -> ir.Value:
    """The sine, negative at its first `upper` places."""
    signs = np.ones((dims_of(sine) or ())[-1], np.float64)  # type: ignore[arg-type]
    signs[:upper] = -1
    if not is_constant(sine):
        assert sine.dtype is not None
        product: ir.Value = op.Mul(sine, op.constant(signs, sine.dtype))
        return product
    source = tensor_of(sine)
    return derived(op, sine, source.shape.numpy(), lambda: source.numpy() * signs)
