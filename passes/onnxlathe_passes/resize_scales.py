"""Sizes of a Resize that are computed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, NodeRule, attribute, is_constant, require
from onnxlathe_passes.conditions import operand
from onnxlathe_passes.weights import attributes_of


class ResizeScales(NodeRule):
    """Resize(x, sizes=Concat(batch, channels, 64, 64)) = Resize(x, scales=[1, 1, 2, 2]).

    Where all sizes that change are known. Scales are what an operator computes from the sizes by itself.
    """

    name = "resize_scales"
    group = "fuse"
    min_opset = 11
    reach = 1
    example = """
    %s = Concat(Shape<end=2>(%x), [64, 64])
    %y = Resize(%x, sizes=%s)                       # x: [batch, 8, 32, 32]
    →
    %y = Resize(%x, scales=[1, 1, 2, 2])
    """

    visits = ("Resize",)

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        x, sizes = node.inputs[0], operand(node, 3)
        before, after = dims_of(x) if x is not None else None, dims_of(node.outputs[0])
        if x is None or sizes is None or is_constant(sizes) or before is None or after is None:
            return None
        require(
            attribute(node, "coordinate_transformation_mode", op.opset) != "tf_crop_and_resize",
            "it crops as well",
        )
        policy = attribute(node, "keep_aspect_ratio_policy", op.opset) if op.opset >= 18 else None
        axes = attribute(node, "axes", op.opset) if op.opset >= 18 else None
        require(policy in (None, "stretch") and not axes, "it keeps the ratio of its sides, or names axes")
        scales = []
        for old, new in zip(before, after, strict=True):
            require(old is not None and new is not None, "its sizes are not known")
            if old == new:
                scales.append(np.float32(1))
                continue
            require(isinstance(old, int) and isinstance(new, int), "a size that changes is not a number")
            scale = np.float32(new) / np.float32(old)  # type: ignore[arg-type]
            require(np.floor(np.float32(old) * scale) == new, "its scale does not lead to its size")  # type: ignore[arg-type]
            scales.append(scale)
        inputs = [x, operand(node, 1), op.constant(np.array(scales, np.float32))]
        made: ir.Value = op.node("Resize", inputs, attributes_of(node)).outputs[0]
        return made
