"""Splits into unequal parts that passes made."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.model import Model
from onnxlathe.rewrite import ORIGIN, Builder, Context, Pass, remove_unused
from onnxlathe_passes.insert import graphs_with_weights, insert, substitute
from onnxlathe_passes.lanes import in_blocks, split_lane

_FEW = 3
"""Splits into more parts are left alone."""


class UnevenSplit(Pass):
    """Gather the blocks that another pass cuts by a Split into two or three parts that are not equal.

    ONNX Runtime's CUDA provider copies tables to the device for such a Split in every run, and waits; on an
    H200 that takes longer than the product before it. TensorRT makes the same copies of both, and spends fewer
    layers on a Gather. Splits that the model came with stay as they are, and so do those of the last axis.
    This is the last pass of its group: the others look for Splits.
    """

    name = "uneven_split"
    group = "fuse"
    min_opset = 7
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %qk, %v = Split(%heads, [12, 4], axis=1)         # as `merge_projections` and `split_late` leave it
    →
    %qk = Gather(%heads, [0, 1, …, 11], axis=1)
    %v = Gather(%heads, [12, 13, 14, 15], axis=1)
    """

    def run(self, model: Model, context: Context) -> int:
        changes = 0
        for graph in graphs_with_weights(model):
            for node in graph:
                if node.op_type == "Split" and node.domain == "" and ORIGIN in node.metadata_props:
                    changes += self.cut(node, model.opset, context)
        return changes

    def cut(self, node: ir.Node, opset: int, context: Context) -> int:
        """Put Gathers in the place of one Split."""
        lane, x = split_lane(node, opset), node.inputs[0]
        dims = dims_of(x) if x is not None else None
        if lane is None or x is None or dims is None or len(lane.sizes) > _FEW or len(set(lane.sizes)) == 1:
            return 0
        if not in_blocks(dims, lane.axis) or not context.permit(self.name):
            return 0
        op = Builder(opset)
        pairs = []
        for output, part in zip(node.outputs, lane.parts(), strict=True):
            if output.uses() or output.is_graph_output():
                # int32: TensorRT casts other indices, in a layer of its own.
                pairs.append((output, op.Gather(x, np.arange(*part, dtype=np.int32), axis=lane.axis)))
        insert(op, node, context)
        substitute(pairs, context)
        context.record(self.name, [node], op.nodes)
        remove_unused([node])
        return 1
