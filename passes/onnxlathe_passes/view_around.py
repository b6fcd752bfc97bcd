"""Views before and after an operator that does not care how its elements are arranged."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, NodeRule, is_constant, reject, require
from onnxlathe_passes.conditions import producer, rank, used_once
from onnxlathe_passes.lanes import ELEMENTWISE
from onnxlathe_passes.regroup import viewed
from onnxlathe_passes.weights import attributes_of

_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


class ViewAround(NodeRule):
    """Reshape(f(Unsqueeze(x))) = f(Reshape(x)), for elementwise f of one operand, or of one and numbers.

    Any two views are one so: Reshape, Flatten, Squeeze, Unsqueeze.
    """

    name = "view_around"
    group = "tidy"
    min_opset = 5
    reach = 2
    example = """
    %a = Unsqueeze(%positions, [0, 2])                # positions: [seq]
    %b = Cast<to=1>(%a)
    %y = Reshape(%b, [1, 1, -1, 1])
    →
    %y = Cast<to=1>(Unsqueeze(%positions, [0, 1, 3]))
    """

    visits = _VIEWS

    def visit(self, op: Builder, node: ir.Node) -> Any:
        value, after = node.inputs[0], dims_of(node.outputs[0])
        inner = value.producer() if value is not None else None
        if value is None or inner is None or inner.domain != "" or inner.op_type not in ELEMENTWISE:
            return None
        operands = [v for v in inner.inputs if v is not None and not _is_number(v)]
        source = operands[0] if len(operands) == 1 else None
        if source is None or producer(source, *_VIEWS) is None:
            return None
        require(used_once(value) and used_once(source), "something else needs what is between")
        before, made = dims_of(source), dims_of(value)
        if after is None or before is None or None in after or before != made:
            reject("a shape is not known")
        x = viewed(op, source, after)
        inputs = [x if v is source else v for v in inner.inputs]
        return op.node(inner.op_type, inputs, attributes_of(inner)).outputs[0]


def _is_number(value: ir.Value) -> bool:
    return is_constant(value) and rank(value) == 0
