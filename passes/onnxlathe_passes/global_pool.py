"""Pooling with one window for all."""

from __future__ import annotations

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, NodeRule, attribute, require

_GLOBAL = {"AveragePool": "GlobalAveragePool", "MaxPool": "GlobalMaxPool"}


class GlobalPool(NodeRule):
    """AveragePool, or MaxPool, with one window over all of the image = GlobalAveragePool, GlobalMaxPool.

    A window that is larger than the image, as models have it that round the output's size up, TensorRT
    refuses.
    """

    name = "global_pool"
    group = "fuse"
    reach = 1
    example = """
    %y = AveragePool<kernel_shape=[7, 7]>(%x)       # x: [batch, 512, 7, 7]
    →
    %y = GlobalAveragePool(%x)
    """

    visits = ("AveragePool", "MaxPool")

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        x = node.inputs[0]
        before, after = dims_of(x) if x is not None else None, dims_of(node.outputs[0])
        kernel = attribute(node, "kernel_shape", op.opset)
        if x is None or before is None or after is None or kernel is None or len(before) < 3:
            return None
        require(len(node.outputs) == 1, "its indices are asked for")
        require(all(d == 1 for d in after[2:]), "it has more than one window")
        require(
            all(isinstance(d, int) and k >= d for d, k in zip(before[2:], kernel, strict=True)),
            "its window does not cover the image",
        )
        pads = attribute(node, "pads", op.opset)
        require(not pads or not any(pads), "it pads")
        require(attribute(node, "auto_pad", op.opset) in ("NOTSET", "VALID"), "its padding is automatic")
        dilations = (
            attribute(node, "dilations", op.opset) if node.op_type == "MaxPool" or op.opset >= 19 else None
        )
        require(not dilations or set(dilations) == {1}, "its window has gaps")
        made: ir.Value = op.node(_GLOBAL[node.op_type], [x]).outputs[0]
        return made
