"""GatherElements whose indices are the same along all other axes."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, NodeRule, attribute, reject, require
from onnxlathe_passes.conditions import from_front, producer
from onnxlathe_passes.regroup import viewed


class GatherRows(NodeRule):
    """GatherElements(x, Expand(i)) = Gather(x, i), where i is the same along all axes but that one.

    So tables of sines are read (`torch.gather` at repeated positions).
    """

    name = "gather_rows"
    group = "fuse"
    min_opset = 11
    reach = 2
    example = """
    %j = Expand(%i, [1, 16, 8])                   # i: [1, 16, 1]; x: [1, 128, 8]
    %y = GatherElements(%x, %j, axis=1)
    →
    %y = Gather(%x, Reshape(%i, [16]), axis=1)
    """

    visits = ("GatherElements",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        x, wide = node.inputs
        repeat = producer(wide, "Expand", "Tile")
        narrow = repeat.inputs[0] if repeat is not None else None
        if x is None or wide is None or narrow is None:
            return None
        table, taken, given = dims_of(x), dims_of(wide), dims_of(narrow)
        axis = from_front([int(attribute(node, "axis", op.opset))], len(taken or ()))
        if table is None or taken is None or given is None or axis is None:
            return None
        (at,) = axis
        given = (*(1,) * (len(taken) - len(given)), *given)
        if {None, 0} & {*taken, *table}:
            reject("a shape is not known")
        others = [a for a in range(len(taken)) if a != at]
        require(all(given[a] == 1 for a in others), "its indices differ along another axis")
        require(all(taken[a] == table[a] for a in others), "it takes a part of another axis")
        require(given[at] == taken[at], "one index is taken again and again")
        return op.Gather(x, viewed(op, narrow, (taken[at],)), axis=at)
