"""Transposes of the elements of an axis, done once before the elements are taken out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.model import Model
from onnxlathe.rewrite import Builder, Context, Pass, attribute, remove_unused
from onnxlathe_passes.attention import Attention
from onnxlathe_passes.conditions import from_front, number, used_once
from onnxlathe_passes.insert import graphs_with_weights, insert, substitute
from onnxlathe_passes.noop_views import permutation

Perm = tuple[int, ...]


@dataclass(frozen=True)
class _Element:
    """Transpose(Gather(x, place)), and how its axes are ordered."""

    gather: ir.Node
    place: int
    transpose: ir.Node
    perm: Perm


class ElementsLate(Pass):
    """Transpose(Gather(x, 0)), Transpose(Gather(x, 1)) = Gather(Transpose(x), 0), Gather(Transpose(x), 1).

    So queries, keys and values that are taken out of one tensor get their heads in front together. Before opset
    23: then there is Attention, which takes the heads apart itself.
    """

    name = "elements_late"
    group = "fuse"
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %q = Transpose(Gather(%x, 0, axis=2), perm=[0, 2, 1, 3])         # x: [batch, seq, 3, heads, size]
    %k = Transpose(Gather(%x, 1, axis=2), perm=[0, 2, 3, 1])
    %v = Transpose(Gather(%x, 2, axis=2), perm=[0, 2, 1, 3])
    →
    %t = Transpose(%x, perm=[2, 0, 3, 1, 4])
    %q = Gather(%t, 0, axis=0)
    %k = Transpose(Gather(%t, 1, axis=0), perm=[0, 1, 3, 2])
    %v = Gather(%t, 2, axis=0)
    """

    def run(self, model: Model, context: Context) -> int:
        if model.opset >= Attention.min_opset:
            return 0
        return sum(self.graph(graph, model.opset, context) for graph in graphs_with_weights(model))

    def graph(self, graph: ir.Graph, opset: int, context: Context) -> int:
        """Move the Transposes of a graph."""
        groups: dict[tuple[ir.Value, int], list[_Element]] = {}
        for node in graph:
            if node.op_type != "Gather" or node.domain != "" or node.inputs[0] is None:
                continue
            dims = dims_of(node.inputs[0])
            axes = from_front([int(attribute(node, "axis", opset))], len(dims)) if dims is not None else None
            element = _element(node, opset) if axes else None
            if axes and element is not None:
                groups.setdefault((node.inputs[0], axes[0]), []).append(element)
        changes = 0
        for (x, axis), elements in groups.items():
            perm, times = Counter(element.perm for element in elements).most_common(1)[0]
            if times > 1 and context.permit(self.name):
                self.move(x, axis, elements, perm, opset, context)
                changes += 1
        return changes

    def move(
        self, x: ir.Value, axis: int, elements: list[_Element], perm: Perm, opset: int, context: Context
    ) -> None:
        """Transpose `x` as most of its elements are, with the axis of the elements in front."""
        op = Builder(opset)
        whole = op.Transpose(x, perm=[axis, *(a + (a >= axis) for a in perm)])
        pairs = []
        for element in elements:
            made = op.Gather(whole, np.array(element.place, np.int64), axis=0)
            if element.perm != perm:
                made = op.Transpose(made, perm=[perm.index(a) for a in element.perm])
            pairs.append((element.transpose.outputs[0], made))
        before = [node for element in elements for node in (element.gather, element.transpose)]
        insert(op, elements[0].gather, context)
        substitute(pairs, context)
        context.record(self.name, before, op.nodes)
        remove_unused(reversed(before))


def _element(gather: ir.Node, opset: int) -> _Element | None:
    """The one element that a Gather takes, if nothing but a Transpose reads it."""
    index, (taken,) = gather.inputs[1], gather.outputs
    place = number(index)
    if index is None or dims_of(index) != () or not isinstance(place, int) or not used_once(taken):
        return None
    (user,) = taken.consumers()
    perm = permutation(user, opset) if user.op_type == "Transpose" and user.domain == "" else None
    return None if perm is None else _Element(gather, place, user, tuple(perm))
