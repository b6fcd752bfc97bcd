"""Every other pixel beside its neighbours: how Focus and patch merging are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import Dims, dims_of
from onnxlathe.rewrite import Builder, Bytes, NodeRule, attribute, is_constant, option
from onnxlathe_passes.conditions import FLOATS, Array, int64, producer, used_once
from onnxlathe_passes.regroup import target
from onnxlathe_passes.slices import Cut, cuts
from onnxlathe_passes.weights import attributes_of, derived, may_copy, tensor_of


@dataclass(frozen=True)
class Interleaved:
    """A Concat of all the offsets of strided Slices of one tensor.

    Attributes:
        x: the tensor.
        axes: which are taken in strides.
        steps: the stride along each of them.
        offsets: where each part starts along each of them, in the order of the Concat.
        axis: along which the parts stand side by side.
    """

    x: ir.Value
    axes: tuple[int, ...]
    steps: tuple[int, ...]
    offsets: tuple[tuple[int, ...], ...]
    axis: int

    @classmethod
    def of(cls, node: ir.Node | None, opset: int) -> Interleaved | None:
        """What a Concat is in these terms; `None` where it is something else."""
        if node is None or len(node.inputs) < 2:
            return None
        parts = [_strided(value, opset) for value in node.inputs]
        first = parts[0]
        if first is None:
            return None
        x, dims = first[0], dims_of(first[0])
        axes = tuple(sorted(first[1]))
        if (
            dims is None
            or not axes
            or any(p is None or p[0] is not x or set(p[1]) != set(axes) for p in parts)
        ):
            return None
        found = [p[1] for p in parts if p is not None]
        steps = tuple(found[0][axis].step for axis in axes)
        axis = int(attribute(node, "axis", opset)) % len(dims)
        for axis_, step in zip(axes, steps, strict=True):
            size = dims[axis_]
            if axis_ == axis or not isinstance(size, int) or size % step or step < 2:
                return None
            for cut in (part[axis_] for part in found):
                if cut.step != step or not 0 <= cut.start < step or cut.end < size - step + cut.start + 1:
                    return None
        offsets = tuple(tuple(part[a].start for a in axes) for part in found)
        if sorted(offsets) != list(product(*(range(step) for step in steps))):
            return None
        return cls(x, axes, steps, offsets, axis)

    def slices(self, node: ir.Node) -> int:
        """How many nodes go away with the Concat."""
        return 1 + sum(value is not None and used_once(value) for value in node.inputs)


def _strided(value: ir.Value | None, opset: int) -> tuple[ir.Value, dict[int, Cut]] | None:
    """A value as strided Slices, one or several, of another value."""
    taken: dict[int, Cut] = {}
    node = producer(value, "Slice")
    while node is not None:
        found = cuts(node, opset)
        if found is None or set(found) & set(taken) or any(cut.step < 2 for cut in found.values()):
            break
        taken |= found
        value = node.inputs[0]
        node = producer(value, "Slice")
    return (value, taken) if value is not None and taken else None


@dataclass(frozen=True)
class FocusConv(NodeRule):
    """Conv(Concat of all strided Slices of x, w) = Conv of x with a larger kernel and stride.

    The Focus of YOLO: the same sums, of the same numbers.
    """

    name = "focus_conv"
    group = "fuse"
    reach = 4
    example = """
    %a = Slice(%x, starts=[0], ends=[64], axes=[2], steps=[2])      # x: [batch, 3, 64, 64]
    %b = Slice(%x, starts=[1], ends=[64], axes=[2], steps=[2])
    %y = Conv<pads=[1, 1, 1, 1]>(Concat(%a, %b, axis=1), %w)        # w: [32, 6, 3, 3]
    →
    %y = Conv<pads=[2, 1, 2, 1], strides=[2, 1]>(%x, %w1)           # w1: [32, 3, 6, 3]
    """

    max_copy: Bytes = option(1 << 20, "largest weight that is copied because something else uses it too")

    visits = ("Conv",)

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        joined, weight = node.inputs[:2]
        found = Interleaved.of(producer(joined, "Concat"), op.opset)
        if found is None or joined is None or weight is None or not used_once(joined):
            return None
        dims = dims_of(weight)
        if found.axis != 1 or found.axes[0] < 2 or not is_constant(weight) or dims is None:
            return None
        if weight.dtype not in FLOATS or not may_copy(weight, self.max_copy):
            return None
        spatial = len(dims) - 2
        plain = attribute(node, "auto_pad", op.opset) == "NOTSET" and attribute(node, "group", op.opset) == 1
        dilations = attribute(node, "dilations", op.opset)
        if not plain or (dilations and set(dilations) != {1}):
            return None
        steps = [1] * spatial
        for axis, step in zip(found.axes, found.steps, strict=True):
            steps[axis - 2] = step
        strides = attribute(node, "strides", op.opset) or [1] * spatial
        pads = attribute(node, "pads", op.opset) or [0] * 2 * spatial
        shape = [int(d) for d in dims if isinstance(d, int)]
        kernel = [size * step for size, step in zip(shape[2:], steps, strict=True)]
        source, count = tensor_of(weight), len(found.offsets)
        whole = [shape[0], shape[1] // count, *kernel]

        def compute() -> Array:
            return _spread(source.numpy(), whole, found, steps)

        changed = {
            "kernel_shape": kernel,
            "strides": [a * b for a, b in zip(strides, steps, strict=True)],
            "pads": [a * b for a, b in zip(pads, [*steps, *steps], strict=True)],
        }
        kept = attributes_of(node, *changed)
        operands = [found.x, derived(op, weight, whole, compute), *node.inputs[2:]]
        made: ir.Value = op.node("Conv", operands, {**kept, **changed}).outputs[0]
        return made


def _spread(weight: Array, whole: Sequence[int], found: Interleaved, steps: Sequence[int]) -> Array:
    """The weight over the pixels themselves."""
    result = np.empty(whole, weight.dtype)
    channels = whole[1]
    for place, offsets in enumerate(found.offsets):
        starts = [0] * len(steps)
        for axis, offset in zip(found.axes, offsets, strict=True):
            starts[axis - 2] = offset
        pixels = tuple(slice(start, None, step) for start, step in zip(starts, steps, strict=True))
        result[(slice(None), slice(None), *pixels)] = weight[:, place * channels : (place + 1) * channels]
    return result


class SpaceToDepth(NodeRule):
    """Concat of all strided Slices of x = SpaceToDepth(x), or a Reshape, a Transpose and a Reshape.

    SpaceToDepth where the channels come first and the offsets row by row.
    """

    name = "space_to_depth"
    group = "fuse"
    min_opset = 5
    reach = 4
    example = """
    %a = Slice(%x, [0, 0], [64, 64], axes=[2, 3], steps=[2, 2])     # x: [batch, 3, 64, 64]
    %b = Slice(%x, [0, 1], [64, 64], axes=[2, 3], steps=[2, 2])
    %c = Slice(%x, [1, 0], [64, 64], axes=[2, 3], steps=[2, 2])
    %d = Slice(%x, [1, 1], [64, 64], axes=[2, 3], steps=[2, 2])
    %y = Concat(%a, %b, %c, %d, axis=1)
    →
    %y = SpaceToDepth<blocksize=2>(%x)
    """

    visits = ("Concat",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        found = Interleaved.of(node, op.opset)
        if found is None:
            return None
        dims = dims_of(found.x)
        users = list(node.outputs[0].consumers())
        if dims is None or (len(users) == 1 and users[0].op_type == "Conv" and found.axis == 1):
            return None  # which takes it in, if it can
        outer_first = next(
            (order for order in permutations(range(len(found.axes))) if _in_order(found, order)), None
        )
        if outer_first is None:
            return None
        image = found.axis == 1 and found.axes == (2, 3) and len(dims) == 4
        if image and outer_first == (0, 1) and len(set(found.steps)) == 1 and found.x.dtype in FLOATS:
            return op.SpaceToDepth(found.x, blocksize=found.steps[0])
        if found.slices(node) <= 3:
            return None
        return _moved(op, found, dims, outer_first, node)


def _in_order(found: Interleaved, order: Sequence[int]) -> bool:
    """Whether the offsets run through the axes like the digits of a number, the first of `order` slowest."""
    ranges = [range(found.steps[axis]) for axis in order]
    return [tuple(o[axis] for axis in order) for o in found.offsets] == list(product(*ranges))


def _moved(op: Builder, found: Interleaved, dims: Dims, order: Sequence[int], node: ir.Node) -> Any:
    fine: list[Any] = []
    whole, offset = {}, {}
    for axis, size in enumerate(dims):
        whole[axis] = len(fine)
        if axis in found.axes:
            step = found.steps[found.axes.index(axis)]
            assert isinstance(size, int)
            offset[axis] = len(fine) + 1
            fine += [size // step, step]
        else:
            fine.append(size)
    perm: list[int] = []
    for axis in range(len(dims)):
        if axis == found.axis:
            perm += [offset[found.axes[place]] for place in order]
        perm.append(whole[axis])
    after = dims_of(node.outputs[0])
    cut = target(dims, tuple(fine))
    joined = target(tuple(fine[axis] for axis in perm), after) if after is not None else None
    if cut is None or joined is None:
        return None
    return op.Reshape(op.Transpose(op.Reshape(found.x, int64(cut)), perm=perm), int64(joined))
