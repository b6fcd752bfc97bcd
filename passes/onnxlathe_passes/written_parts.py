"""Scatters that together write all of an axis: what they write, side by side."""

from __future__ import annotations

import onnx_ir as ir

from onnxlathe.rewrite import Builder, NodeRule, require
from onnxlathe_passes.conditions import dying, int64
from onnxlathe_passes.regroup import viewed
from onnxlathe_passes.scatter_blocks import SCATTERS, covering, moved_from, order


class WrittenParts(NodeRule):
    """Scatters, one after the other, that together write all of an axis = Concat of what they write.

    A Gather puts the parts in their order where that is another one, as in `y[..., ::2] = a; y[..., 1::2] = b`.
    """

    name = "written_parts"
    group = "fuse"
    min_opset = 13
    reach = 8
    example = """
    %e = ScatterND(%zeros, [[0], [2], [4]], %a)          # a, b: [3, batch]
    %y = ScatterND(%e, [[1], [3], [5]], %b)
    →
    %y = Gather(Concat(%a, %b, axis=0), [0, 3, 1, 4, 2, 5], axis=0)
    """

    visits = SCATTERS

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        found = covering(node, op.opset)
        if found is None or len(found[1]) < 2:
            return None
        axis, blocks = found
        blocks = sorted(blocks, key=lambda block: block.spans[axis].start)
        parts = [viewed(op, block.updates, block.dims) for block in blocks]
        places = order(blocks)
        moved = [moved_from(part, op.opset) for part in parts]
        perm = moved[0][1]
        turned = list(perm) != sorted(perm) and all(other == perm for _, other in moved)
        if turned:
            parts, axis = [value for value, _ in moved], perm[axis]
        result: ir.Value = op.Concat(*parts, axis=axis)
        if places != sorted(places):
            result = op.Gather(result, int64(places), axis=axis)
        if turned:
            result = op.Transpose(result, perm=perm)
        require(len(op.nodes) <= len(dying(node)), "it would be more nodes")
        return result
