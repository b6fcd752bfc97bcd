"""A Transpose between two Reshapes."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe.infer import Dims, dims_of
from onnxlathe.rewrite import Builder, NodeRule, require
from onnxlathe_passes.conditions import int64, producer, used_once
from onnxlathe_passes.noop_views import permutation
from onnxlathe_passes.regroup import groups, reshaped, target


class ViewTranspose(NodeRule):
    """Reshape(Transpose(Reshape(x))) = Transpose(Reshape(x)), or Transpose(x), of more axes.

    The last Reshape must split what the Transpose has moved, axis by axis, or the first one join what it
    moves; so the attention of torch.export comes back from its detour over `[batch·heads, seq, size]`.
    """

    name = "view_transpose"
    group = "fuse"
    min_opset = 5
    reach = 3
    example = """
    %a = Reshape(%x, [-1, 16, 64])          # x: [batch, 12, 16, 64]
    %b = Transpose(%a, perm=[0, 2, 1])
    %y = Reshape(%b, [-1, 12, 64, 16])      # y: [batch, 12, 64, 16]
    →
    %y = Transpose(%x, perm=[0, 1, 3, 2])
    """

    visits = ("Reshape",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        transpose = producer(node.inputs[0], "Transpose")
        first = producer(transpose.inputs[0], "Reshape") if transpose is not None else None
        if transpose is None or first is None:
            return None
        require(
            used_once(first.outputs[0]) and used_once(transpose.outputs[0]), "its parts are used elsewhere"
        )
        x, perm = first.inputs[0], permutation(transpose, op.opset)
        before = dims_of(x) if x is not None else None
        joined, moved = dims_of(first.outputs[0]), dims_of(transpose.outputs[0])
        after = dims_of(node.outputs[0])
        if x is None or before is None or perm is None or joined is None or moved is None or after is None:
            return None
        parts = groups(after, moved)
        if parts is not None:
            # The axes of the result in the order in which x has them, and where they go from there.
            source = [axis for place in range(len(perm)) for axis in parts[perm.index(place)]]
            x = reshaped(op, x, tuple(after[axis] for axis in source))
            return _transpose(op, x, [source.index(axis) for axis in range(len(after))])
        parts = groups(before, joined)
        require(parts is not None, "its Reshapes cut across axes")
        assert parts is not None
        order = [axis for place in perm for axis in parts[place]]
        return _last(op, _transpose(op, x, order), tuple(before[axis] for axis in order), after)


def _transpose(op: Builder, x: ir.Value, perm: list[int]) -> ir.Value:
    made: ir.Value = x if perm == sorted(perm) else op.Transpose(x, perm=perm)
    return made


def _last(op: Builder, x: ir.Value, before: Dims, after: Dims) -> ir.Value:
    """`x`, a new value of shape `before`, reshaped as the last Reshape does it."""
    written = target(before, after)
    require(written is not None, "its result's shape cannot be written down")
    assert written is not None
    made: ir.Value = op.Reshape(x, int64(written))
    return made
