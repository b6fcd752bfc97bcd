"""Splits as Gathers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, NodeRule, require
from onnxlathe_passes.lanes import in_blocks, split_lane
from onnxlathe_passes.regroup import static


class SplitGather(NodeRule):
    """Split(x) into parts of known sizes = Gather(x, [0, 1, …]), Gather(x, [n, n+1, …]), …

    Where another size of x is dynamic, TensorRT's parser computes the parts of a Split by nine layers of
    shape arithmetic; a Gather is one layer. The engine is the same: whole blocks are copied either way, for
    which reason a Split of the last axis stays. There are more nodes afterwards, so this is for TensorRT only.
    """

    name = "split_gather"
    min_opset = 2
    reach = 1
    example = """
    %q, %k, %v = Split(%x, axis=1)          # x: [batch, 36, seq, 64]
    →
    %q = Gather<axis=1>(%x, [0, …, 11])
    %k = Gather<axis=1>(%x, [12, …, 23])
    %v = Gather<axis=1>(%x, [24, …, 35])
    """

    visits = ("Split",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        x, lane = node.inputs[0], split_lane(node, op.opset)
        dims = dims_of(x) if x is not None else None
        if x is None or dims is None or lane is None:
            return None
        require(static(dims) is None, "its sizes are known, so that each part is one layer")
        require(in_blocks(dims, lane.axis), "its parts do not consist of blocks")
        # int32: TensorRT casts other indices, in a layer of its own.
        parts = [np.arange(a, b, dtype=np.int32) for a, b in lane.parts()]
        return [
            op.Gather(x, part, axis=lane.axis) if value.uses() or value.is_graph_output() else None
            for value, part in zip(node.outputs, parts, strict=True)
        ]
