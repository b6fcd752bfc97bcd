"""Computed targets of Reshapes."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe.infer import dims_of, known
from onnxlathe.rewrite import Builder, NodeRule, is_constant
from onnxlathe_passes.conditions import int64, operand
from onnxlathe_passes.regroup import target
from onnxlathe_passes.views import units_between, unsqueeze


class ReshapeTarget(NodeRule):
    """Reshape(x, Concat(batch, 49, 64)) = Reshape(x, [0, 49, 64]), where x has the size at the same place.

    One size that follows from the others may be -1. Where axes of size 1 are all that is new, an Unsqueeze
    needs no sizes.
    """

    name = "reshape_target"
    group = "fuse"
    min_opset = 5
    reach = 1
    example = """
    %s = Concat(Shape<end=1>(%x), [49], [64])
    %y = Reshape(%x, %s)                    # x: [batch, 7, 7, 64]
    →
    %y = Reshape(%x, [0, 49, 64])
    """

    visits = ("Reshape",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        x, given = node.inputs[0], operand(node, 1)
        before, after = dims_of(x) if x is not None else None, dims_of(node.outputs[0])
        if x is None or given is None or is_constant(given) or before is None or after is None:
            return None
        added = units_between(x, node.outputs[0])
        if added:
            return unsqueeze(op, x, added)
        written = target(before, after)
        if written is None or (-1 in written and 0 in written and not _infers(given)):
            return None
        return op.Reshape(x, int64(written))


def _infers(given: ir.Value) -> bool:
    """Whether the target leaves a size to be inferred already: with a size of 0 that is not defined."""
    contents = known(given)
    return contents is not None and -1 in contents.reshape(-1).tolist()
