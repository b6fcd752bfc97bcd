"""Operators on shapes that, here, change nothing."""

from __future__ import annotations

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, NodeRule, attribute
from onnxlathe_passes.conditions import numbers, operand, producer, rank, same_shape, uniform

INDEX_END = 2**31 - 1
"""Slices that end here or later end with the axis: no axis of a tensor is longer."""


class NoopView(NodeRule):
    """Reshape, Flatten, Squeeze, Unsqueeze, Expand or Tile to the shape that x has = x.

    Shapes are compared as expressions: `[batch, 2*seq]` is itself whatever the sizes turn out to be.
    """

    name = "noop_view"
    group = "tidy"
    reach = 1
    example = """
    %y = Reshape(%x, [0, -1, 64])      # x: [batch, seq, 64]
    →
    %x
    """

    visits = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile")

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        x, y = node.inputs[0], node.outputs[0]
        if x is None:
            return None
        if node.op_type == "Tile":
            # A tensor with a size of 0 keeps its shape, however often it is repeated; it is all the same.
            repeats = numbers(operand(node, 1))
            return x if repeats is not None and all(n == 1 for n in repeats) and op.opset >= 6 else None
        if node.op_type == "Expand":
            sizes = numbers(operand(node, 1))
            if sizes is not None and all(n == 1 for n in sizes) and len(sizes) <= (rank(x) or 0):
                return x
        return x if same_shape(x, y) else None


def permutation(node: ir.Node, opset: int) -> tuple[int, ...] | None:
    """The permutation of a Transpose; without the attribute it turns the axes around."""
    perm = attribute(node, "perm", opset)
    if perm is not None:
        return tuple(perm)
    axes = rank(node.inputs[0])
    return None if axes is None else tuple(reversed(range(axes)))


def moves_unit_axes_only(node: ir.Node, opset: int) -> bool:
    """Whether a Transpose leaves the elements in their order: what it moves has size 1."""
    perm = permutation(node, opset)
    dims = dims_of(node.inputs[0]) if node.inputs[0] is not None else None
    if perm is None or dims is None or len(dims) != len(perm):
        return False
    moved = [axis for axis in perm if dims[axis] != 1]
    return moved == sorted(moved)


class NoopTranspose(NodeRule):
    """Transpose(x, [0, 1, 2, …]) = x; so is one that exchanges axes of size 1 only."""

    name = "noop_transpose"
    group = "tidy"
    reach = 1
    example = """
    %y = Transpose(%x, perm=[0, 1, 2])
    →
    %x
    """

    visits = ("Transpose",)

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        perm = permutation(node, op.opset)
        if perm is None:
            return None
        if perm == tuple(range(len(perm))):
            return node.inputs[0]
        x, y = node.inputs[0], node.outputs[0]
        return x if x is not None and same_shape(x, y) and moves_unit_axes_only(node, op.opset) else None


class NoopSlice(NodeRule):
    """Slice(x) from the first to the last element of every axis = x."""

    name = "noop_slice"
    group = "tidy"
    reach = 1
    example = """
    %y = Slice(%x, starts=[0], ends=[9223372036854775807], axes=[1])
    →
    %x
    """

    visits = ("Slice",)

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        x, y = node.inputs[0], node.outputs[0]
        if x is None:
            return None
        if op.opset < 10:
            starts, ends = attribute(node, "starts", op.opset), attribute(node, "ends", op.opset)
            steps: list[int] | None = []
        else:
            starts, ends = numbers(operand(node, 1)), numbers(operand(node, 2))
            steps = [] if operand(node, 4) is None else numbers(operand(node, 4))
        # The shape alone does not tell: a step of -1 turns an axis around.
        if steps is None or any(step != 1 for step in steps):
            return None
        whole = starts is not None and ends is not None
        whole = whole and all(s == 0 for s in starts) and all(e >= INDEX_END for e in ends)
        return x if whole or same_shape(x, y) else None


class NoopPad(NodeRule):
    """Pad(x) by nothing on all sides = x."""

    name = "noop_pad"
    group = "tidy"
    reach = 1
    example = """
    %y = Pad(%x, [0, 0, 0, 0])
    →
    %x
    """

    visits = ("Pad",)

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        if op.opset < 2:
            return None
        pads = attribute(node, "pads", op.opset) if op.opset < 11 else numbers(operand(node, 1))
        return node.inputs[0] if pads is not None and all(n == 0 for n in pads) else None


class NoopSplit(NodeRule):
    """Split(x) into one part = x."""

    name = "noop_split"
    group = "tidy"
    reach = 1
    example = """
    %y = Split(%x, axis=1, num_outputs=1)
    →
    %x
    """

    visits = ("Split",)

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        return node.inputs[0] if len(node.outputs) == 1 else None


# Where the pixels of input and output coincide at a scale of 1. `tf_crop_and_resize` reads a region of
# interest, `tf_half_pixel_for_nn` looks half a pixel further.
_ALIGNED = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")


class NoopResize(NodeRule):
    """Resize(x) by a factor of 1 = x."""

    name = "noop_resize"
    group = "tidy"
    reach = 1
    example = """
    %y = Resize(%x, scales=[1, 1, 1, 1], mode="nearest")
    →
    %x
    """

    visits = ("Resize", "Upsample")

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        x, y = node.inputs[0], node.outputs[0]
        if x is None:
            return None
        if node.op_type == "Upsample" or op.opset < 11:
            scales = attribute(node, "scales", op.opset) if op.opset < 9 else operand(node, 1)
            if isinstance(scales, ir.Value):
                return x if uniform(scales) == 1 else None
            return x if scales and all(s == 1 for s in scales) else None
        if attribute(node, "coordinate_transformation_mode", op.opset) not in _ALIGNED:
            return None
        if attribute(node, "antialias", op.opset):
            return None
        if operand(node, 3) is not None:
            policy = attribute(node, "keep_aspect_ratio_policy", op.opset)
            return x if policy in (None, "stretch") and same_shape(x, y) else None
        return x if uniform(operand(node, 2)) == 1 else None


class SplitConcat(NodeRule):
    """Concat(Split(x)) = x, where all parts come back in their order on the same axis."""

    name = "split_concat"
    group = "tidy"
    example = """
    %a, %b, %c = Split(%x, axis=-1)
    %y = Concat(%a, %b, %c, axis=-1)
    →
    %x
    """

    visits = ("Concat",)

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        split = producer(node.inputs[0], "Split")
        if split is None or len(split.outputs) != len(node.inputs):
            return None
        if any(a is not b for a, b in zip(node.inputs, split.outputs, strict=True)):
            return None
        there, back = attribute(split, "axis", op.opset), attribute(node, "axis", op.opset)
        axes = rank(split.inputs[0])
        same = there == back or (axes is not None and (there - back) % axes == 0)
        return split.inputs[0] if same else None
