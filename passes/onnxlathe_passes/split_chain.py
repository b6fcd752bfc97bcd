"""Splits of the parts of a Split."""

from __future__ import annotations

import onnx_ir as ir

from onnxlathe.model import Model
from onnxlathe.rewrite import Builder, Context, Pass, remove_unused
from onnxlathe_passes.conditions import producer, used_once
from onnxlathe_passes.insert import graphs_with_weights, insert, substitute
from onnxlathe_passes.lanes import split_lane
from onnxlathe_passes.regroup import split

_FEWEST = 4
"""Fewer parts that are not equal would become a Gather for each (see `uneven_split`)."""


class SplitChain(Pass):
    """A Split of a part of a Split, along the same axis = one Split."""

    name = "split_chain"
    group = "fuse"
    min_opset = 2
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %a, %b, %c = Split(%x, [96, 96, 3], axis=1)
    %d, %e, %f = Split(%c, [1, 1, 1], axis=1)
    →
    %a, %b, %d, %e, %f = Split(%x, [96, 96, 1, 1, 1], axis=1)
    """

    def run(self, model: Model, context: Context) -> int:
        changes = 0
        for graph in graphs_with_weights(model):
            for node in list(graph):
                if node.graph is graph and node.op_type == "Split" and node.domain == "":
                    changes += self.join(node, model.opset, context)
        return changes

    def join(self, inner: ir.Node, opset: int, context: Context) -> int:
        """Let the Split above make the parts of this one."""
        part = inner.inputs[0]
        outer = producer(part, "Split")
        if outer is None or part is None or outer.graph is not inner.graph or not used_once(part):
            return 0
        first, second, x = split_lane(outer, opset), split_lane(inner, opset), outer.inputs[0]
        if first is None or second is None or x is None or first.axis != second.axis:
            return 0
        place = part.index() or 0
        sizes = [*first.sizes[:place], *second.sizes, *first.sizes[place + 1 :]]
        if (len(sizes) < _FEWEST and len(set(sizes)) > 1) or not context.permit(self.name):
            return 0
        op = Builder(opset)
        made = split(op, x, sizes, first.axis)
        old = [*outer.outputs[:place], *inner.outputs, *outer.outputs[place + 1 :]]
        insert(op, outer, context)
        substitute(zip(old, made, strict=True), context)
        context.record(self.name, [outer, inner], op.nodes)
        remove_unused([inner, outer])
        return 1
