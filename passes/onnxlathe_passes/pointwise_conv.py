"""Products with a matrix, channel by channel of an image."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import constant, dims_of
from onnxlathe.rewrite import Builder, NodeRule, attribute, is_constant, require
from onnxlathe_passes.conditions import FLOATS, producer, used_once
from onnxlathe_passes.moves import Arrangement, arrangement, upwards
from onnxlathe_passes.weights import derived, tensor_of


class PointwiseConv(NodeRule):
    """Transpose(MatMul(Transpose(x), w) + b) = Conv(x, w, b) of one pixel, from channels first and back.

    Reshapes that make the image a row of tokens may stand before and after the Transposes.
    """

    name = "pointwise_conv"
    group = "fuse"
    min_opset = 5
    reach = 7
    example = """
    %t = Transpose(%x, perm=[0, 2, 3, 1])           # x: [batch, 32, 64, 64]
    %m = Add(MatMul(%t, %w), %b)                    # w: [32, 256]
    %y = Transpose(%m, perm=[0, 3, 1, 2])
    →
    %y = Conv(%x, %w1, %b)                          # w1: [256, 32, 1, 1]
    """

    visits = ("Transpose", "Reshape")

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        if node.op_type == "Reshape" and (conv := producer(node.inputs[0], "Conv")) is not None:
            return _unrolled(op, conv, node)
        below = list(upwards(node.outputs[0]))[:2]
        for count in range(1, len(below) + 1):
            result = below[count - 1][1]
            product, bias = _product(result)
            if product is None:
                continue
            after = [mover for mover, _ in below[:count]]
            require(
                used_once(result) and all(used_once(m.outputs[0]) for m in after[1:]), "its parts are used"
            )
            found, out = arrangement(after, result, op.opset), dims_of(node.outputs[0])
            tokens = product.inputs[0]
            if found is None or out is None or tokens is None or len(out) < 3 or not _last_to_second(found):
                return None
            before: list[ir.Node] = []
            for mover, x in list(upwards(tokens))[:2]:
                before.append(mover)
                image, into = dims_of(x), arrangement(before, x, op.opset)
                if image is None or into is None or not _second_to_last(into):
                    continue
                if len(image) == len(out) and image[0] == out[0] and image[2:] == out[2:]:
                    return _conv(op, product, x, bias, len(out) - 2)
        return None


def _unrolled(op: Builder, conv: ir.Node, node: ir.Node) -> ir.Value | None:
    """A convolution of one pixel over an image that is made a row of pixels and back, over the image."""
    row, image = conv.inputs[0], producer(conv.inputs[0], "Reshape")
    x = image.inputs[0] if image is not None else None
    before, out = (dims_of(v) if v is not None else None for v in (x, node.outputs[0]))
    flat = dims_of(row) if row is not None else None
    if x is None or before is None or out is None or flat is None or not used_once(conv.outputs[0]):
        return None
    if len(flat) != 3 or before[:2] != flat[:2] or before[2:] != out[2:] or before[0] != out[0]:
        return None
    weight = conv.inputs[1]
    kernel = dims_of(weight) if weight is not None else None
    if (
        weight is None
        or kernel is None
        or kernel[2:] != (1,)
        or kernel[0] != out[1]
        or not is_constant(weight)
    ):
        return None
    for name, plain in (("pads", 0), ("strides", 1), ("dilations", 1)):
        if any(n != plain for n in attribute(conv, name, op.opset) or ()):
            return None
    ones = (1,) * (len(out) - 2)
    shape = tuple(d for d in kernel[:2] if isinstance(d, int))
    source = tensor_of(weight)
    whole = derived(op, weight, (*shape, *ones), lambda: source.numpy().reshape(*shape, *ones))
    group = attribute(conv, "group", op.opset)
    made: ir.Value = op.node(
        "Conv", [x, whole, *conv.inputs[2:]], {"kernel_shape": list(ones), "group": group}
    ).outputs[0]
    return made


def _product(value: ir.Value) -> tuple[ir.Node | None, ir.Value | None]:
    """The product with a constant matrix that a value is, and the constant per channel added to it."""
    bias = None
    added = producer(value, "Add")
    if added is not None:
        for one, other in (added.inputs, added.inputs[::-1]):
            if one is not None and other is not None and is_constant(other) and used_once(one):
                value, bias = one, other
                break
    product = producer(value, "MatMul")
    weight = product.inputs[1] if product is not None else None
    if weight is None or not is_constant(weight) or weight.dtype not in FLOATS:
        return None, None
    dims = dims_of(weight)
    if dims is None or len(dims) != 2:
        return None, None
    if bias is not None:
        shape = dims_of(bias)
        if shape is None or shape[-1:] != dims[1:] or any(d != 1 for d in shape[:-1]):
            return None, None
    return product, bias


def _last_to_second(found: Arrangement) -> bool:
    """Whether the last axis becomes the second, and all else stays in its order."""
    if len(found.source[-1]) != 1 or len(found.axes) < 3 or found.axes[1] != found.source[-1]:
        return False
    first = found.axes[0]
    rest = [part for axis in found.axes[2:] for part in axis]
    return found.source[0] == first and [*first, *rest] == found.original[:-1]


def _second_to_last(found: Arrangement) -> bool:
    """Whether the second axis becomes the last, and all else stays in its order."""
    if len(found.source) < 3 or len(found.source[1]) != 1 or found.axes[-1] != found.source[1]:
        return False
    rest = [part for axis in found.source[2:] for part in axis]
    return found.axes[0] == found.source[0] and found.order[:-1] == [*found.source[0], *rest]


def _conv(op: Builder, product: ir.Node, x: ir.Value, bias: ir.Value | None, spatial: int) -> ir.Value:
    weight = product.inputs[1]
    assert weight is not None
    source = tensor_of(weight)
    inputs, outputs = source.shape.numpy()
    ones = (1,) * spatial
    kernel = derived(
        op, weight, (outputs, inputs, *ones), lambda: source.numpy().T.reshape(outputs, inputs, *ones)
    )
    operands = [x, kernel]
    if bias is not None:
        numbers = constant(bias)
        require(numbers is not None, "its bias cannot be read")
        operands.append(op.constant(np.asarray(numbers).reshape(-1), bias.dtype, name=bias.name or ""))
    made: ir.Value = op.node("Conv", operands, {"kernel_shape": list(ones)}).outputs[0]
    return made
