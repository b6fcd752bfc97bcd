"""One slice of a tensor whose axes were only reordered to take it."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, NodeRule, attribute
from onnxlathe_passes.conditions import number, producer, used_once
from onnxlathe_passes.noop_views import permutation


class GatherMoved(NodeRule):
    """Gather(Transpose(x), i, axis) = Gather(x, i, another axis), where the other axes keep their order.

    The last state of a recurrent network is taken so, from a result whose batch was moved to the front.
    """

    name = "gather_moved"
    group = "fuse"
    example = """
    %t = Transpose(%x, perm=[1, 0, 2])              # x: [seq, batch, 64]
    %y = Gather(%t, -1, axis=1)
    →
    %y = Gather(%x, -1, axis=0)
    """

    visits = ("Gather",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        value, index = node.inputs
        moved = producer(value, "Transpose")
        if value is None or index is None or moved is None or not used_once(value):
            return None
        perm = permutation(moved, op.opset)
        if perm is None or number(index) is None or dims_of(index) != ():
            return None
        axis = int(attribute(node, "axis", op.opset)) % len(perm)
        rest = [place for at, place in enumerate(perm) if at != axis]
        if rest != sorted(rest):
            return None
        return op.Gather(moved.inputs[0], index, axis=perm[axis])
