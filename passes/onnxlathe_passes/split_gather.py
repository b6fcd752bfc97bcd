"""Splits of what a Reshape has just grouped."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, NodeRule, require
from onnxlathe_passes.conditions import int64, producer, used_once
from onnxlathe_passes.lanes import split_lane
from onnxlathe_passes.noop_views import permutation
from onnxlathe_passes.regroup import static, target


class SplitGather(NodeRule):
    """Split(Transpose(Reshape(x))) into equal parts = Gather(Transpose(Reshape(x, with an axis of parts)), i).

    Where a size is dynamic, TensorRT's parser computes the parts of a Split by nine layers of shape
    arithmetic; a Gather is one layer. There are more nodes afterwards, so this is for TensorRT only.
    """

    name = "split_gather"
    min_opset = 5
    reach = 3
    example = """
    %r = Reshape(%x, [0, 0, 36, 64])                # x: [batch, seq, 2304]
    %q, %k, %v = Split(Transpose<perm=[0, 2, 1, 3]>(%r), axis=1)
    →
    %r = Reshape(%x, [0, 0, 3, 12, 64])
    %t = Transpose<perm=[2, 0, 3, 1, 4]>(%r)
    %q = Gather(%t, 0);  %k = Gather(%t, 1);  %v = Gather(%t, 2)
    """

    visits = ("Split",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        moved = node.inputs[0]
        turn = producer(moved, "Transpose")
        view = producer(turn.inputs[0] if turn is not None else moved, "Reshape")
        lane, dims = split_lane(node, op.opset), dims_of(moved) if moved is not None else None
        if view is None or lane is None or dims is None or moved is None:
            return None
        require(static(dims) is None, "its sizes are known, so that each part is one layer")
        require(len(set(lane.sizes)) == 1, "its parts are not equal")
        require(used_once(moved) and used_once(view.outputs[0]), "the whole is used elsewhere")
        perm = permutation(turn, op.opset) if turn is not None else list(range(len(dims)))
        x = view.inputs[0]
        before, after = dims_of(x) if x is not None else None, dims_of(view.outputs[0])
        if x is None or before is None or after is None or perm is None:
            return None
        axis, count = perm[lane.axis], len(lane.sizes)
        written = target(before, (*after[:axis], count, lane.sizes[0], *after[axis + 1 :]))
        if written is None:
            return None
        whole = op.Reshape(x, int64(written))
        if turn is not None:
            # The parts come first; axes after the one that was divided have moved on by one.
            whole = op.Transpose(whole, perm=[axis, *(a + (a >= axis) for a in perm)])
            axis = 0
        # int32: TensorRT casts other indices, in a layer of its own.
        return [op.Gather(whole, np.array(part, np.int32), axis=axis) for part in range(count)]
