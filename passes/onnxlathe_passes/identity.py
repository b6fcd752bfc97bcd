"""Operators that hand their input on: Identity, and Dropout when nothing is being trained."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxlathe.rewrite import Builder, NodeRule
from onnxlathe_passes.conditions import operand, uniform


class Identity(NodeRule):
    """Identity(x) = x.

    One stays where an output of a graph is also an input, a constant, or a second name of another output:
    the format has no other way to say so.
    """

    name = "identity"
    group = "tidy"
    reach = 1
    example = """
    %a = Identity(%x)
    %y = Relu(%a)
    →
    %y = Relu(%x)
    """

    visits = ("Identity",)

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        return node.inputs[0]


class Dropout(NodeRule):
    """Dropout(x) = x in inference, which is what a model says that does not turn training on.

    Its second output, the mask, is computed only where something uses it.
    """

    name = "dropout"
    group = "tidy"
    min_opset = 7
    reach = 1
    example = """
    %a = Dropout(%x, 0.1)
    %y = Relu(%a)
    →
    %y = Relu(%x)
    """

    visits = ("Dropout",)

    def visit(self, op: Builder, node: ir.Node) -> Sequence[ir.Value | None] | None:
        training = operand(node, 2)
        if training is not None and uniform(training) is not False:
            return None
        result, *masks = node.outputs
        if not any(mask.uses() or mask.is_graph_output() for mask in masks):
            return [node.inputs[0]]
        # The node stays for its mask; it is done with once nothing reads its first output any more.
        if result.is_graph_output() or not result.uses():
            return None
        return [node.inputs[0], *masks]
