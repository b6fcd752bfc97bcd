"""Convolutions whose result is cut."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, NodeRule, attribute, require
from onnxlathe_passes.conditions import producer, used_once
from onnxlathe_passes.regroup import static
from onnxlathe_passes.slices import Cut, cuts
from onnxlathe_passes.weights import attributes_of

_INT64_MAX = 2**63 - 1


class ConvCrop(NodeRule):
    """Slice(Conv(x)) = Conv(x) with less padding, where what is cut off saw the padding.

    So are causal convolutions written: padded on both sides, and cut at the end.
    """

    name = "conv_crop"
    group = "fuse"
    example = """
    %c = Conv<pads=[3, 3]>(%x, %w)                  # x: [batch, 64, 100], w: [64, 64, 4]
    %y = Slice(%c, starts=[0], ends=[-3], axes=[2])
    →
    %y = Conv<pads=[3, 0]>(%x, %w)
    """

    visits = ("Slice",)

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        value = node.inputs[0]
        conv = producer(value, "Conv")
        if value is None or conv is None or not used_once(value):
            return None
        taken, dims = cuts(node, op.opset), dims_of(value)
        if taken is None or dims is None or min(taken) < 2:
            return None
        require(attribute(conv, "auto_pad", op.opset) == "NOTSET", "its padding is automatic")
        spatial = len(dims) - 2
        pads = list(attribute(conv, "pads", op.opset) or [0] * 2 * spatial)
        strides = attribute(conv, "strides", op.opset) or [1] * spatial
        less = _cropped(taken, dims, spatial)
        require(less is not None, "what it cuts off is not known")
        assert less is not None
        for axis, (front, back) in less.items():
            pads[axis] -= front * strides[axis]
            pads[axis + spatial] -= back * strides[axis]
        require(min(pads) >= 0, "it cuts off more than the padding")
        reach = _reach(conv, op.opset)
        for axis in less:
            # A result that is shorter than what is cut off would be empty; a Conv cannot say so. It is not where
            # the new one is as long as what it reads.
            enough = reach is not None and pads[axis] + pads[axis + spatial] >= reach[axis]
            require(
                isinstance(dims[axis + 2], int) or (enough and strides[axis] == 1),
                "of a short input nothing may be left",
            )
        made: ir.Value = op.node(
            "Conv", conv.inputs, attributes_of(conv, "pads", "auto_pad") | {"pads": pads}
        ).outputs[0]
        return made


def _reach(conv: ir.Node, opset: int) -> list[int] | None:
    """By how much each axis of a Conv without padding and strides is shorter than that of its input."""
    kernel = attribute(conv, "kernel_shape", opset)
    if kernel is None:
        weight = dims_of(conv.inputs[1]) if conv.inputs[1] is not None else None
        kernel = static(weight[2:]) if weight is not None else None
    if kernel is None:
        return None
    dilations = attribute(conv, "dilations", opset) or [1] * len(kernel)
    return [dilation * (size - 1) for size, dilation in zip(kernel, dilations, strict=True)]


def _cropped(
    taken: Mapping[int, Cut], dims: tuple[object, ...], spatial: int
) -> dict[int, tuple[int, int]] | None:
    """How many positions are cut off at the front and at the back of which spatial axis."""
    found = {}
    for axis, cut in taken.items():
        size = dims[axis]
        if cut.step != 1:
            return None
        if isinstance(size, int):
            whole = cut.normal(size)
            if whole is None or not whole.start < min(whole.end, size):
                return None
            found[axis - 2] = (whole.start, size - min(whole.end, size))
        elif cut.start >= 0 and (cut.end < 0 or cut.end == _INT64_MAX):
            found[axis - 2] = (cut.start, -cut.end if cut.end < 0 else 0)
        else:
            return None
    return found if all(0 <= axis < spatial for axis in found) else None
