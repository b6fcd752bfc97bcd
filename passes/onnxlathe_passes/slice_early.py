"""Slices of what is computed from a constant or a Concat: the constant is cut instead, or one part is taken."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, NodeRule, attribute
from onnxlathe_passes.conditions import attributes_of, int64, operand, rank, small_constant, used_once
from onnxlathe_passes.lanes import ELEMENTWISE
from onnxlathe_passes.regroup import static
from onnxlathe_passes.slices import Cut, cuts
from onnxlathe_passes.views import axes_of

_BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div", "Pow"})

Cuts = Mapping[int, Cut]
"""What is taken of which axis. Axes are counted from the back, where operators that broadcast align them."""


class SliceEarly(NodeRule):
    """Slice(f(x·c)) = f(x·c[…]), Slice(f(Concat(x, y))) = f(x): nothing is computed that is then cut off.

    x is the same all along the axis that is cut; f is elementwise, and may add axes in front of it. So
    RotaryEmbedding gets cosines of half the angles, which are there twice. Where only a Squeeze follows what
    an Unsqueeze made, the Slice comes first, so that both go away.

    It is done where all that is computed from x·c, or from the Concat, is cut alike.
    """

    name = "slice_early"
    group = "fuse"
    min_opset = 10
    reach = 6
    example = """
    %a = Cos(Mul(%x, [1.0, 0.1, 1.0, 0.1]))         # x: [seq, 1]
    %y = Slice(%a, starts=[0], ends=[2], axes=[1])
    →
    %y = Cos(Mul(%x, [1.0, 0.1]))
    """

    visits = ("Slice",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        cut = _cuts(node, op.opset)
        value = node.inputs[0]
        if cut is None or value is None:
            return None
        path: list[tuple[ir.Node, int]] = []
        views = 0  # Unsqueezes that the path begins with
        while value is not None:
            maker = value.producer()
            if maker is None or maker.domain or maker.graph is not node.graph:
                break
            end = _without(op, maker, cut)
            if end is not None:
                return _again(op, path, end) if _all_alike(value, cut, op.opset) else None
            index = _passed(maker, cut, op.opset)
            if index is None or not used_once(value):
                break
            views += maker.op_type == "Unsqueeze" and views == len(path)
            path.append((maker, index))
            value = maker.inputs[index]
        users = node.outputs[0].consumers()
        if not views or not users or any(u.op_type != "Squeeze" or u.domain for u in users):
            return None
        last, index = path[views - 1]
        axes, chosen = zip(*sorted(cut.items()), strict=True)
        bounds = ([c.start for c in chosen], [c.end for c in chosen], axes, [c.step for c in chosen])
        return _again(op, path[:views], op.Slice(last.inputs[index], *map(int64, bounds)))


def _cuts(node: ir.Node, opset: int) -> Cuts | None:
    found, of_rank = cuts(node, opset), rank(node.inputs[0])
    if not found or of_rank is None or any(c.step < 1 for c in found.values()):
        return None
    return {axis - of_rank: c for axis, c in found.items()}


def _size(value: ir.Value | None, axis: int) -> Any:
    """Of an axis that is counted from the back; 1 where broadcasting adds it."""
    dims = dims_of(value) if value is not None else None
    if dims is None:
        return None
    return dims[axis] if -axis <= len(dims) else 1


def _without(op: Builder, maker: ir.Node, cut: Cuts) -> ir.Value | None:
    """The cut result of a node, if it needs no Slice."""
    if maker.op_type == "Concat" and len(cut) == 1:
        return _part(maker, *next(iter(cut.items())), op.opset)
    if maker.op_type not in _BROADCASTING:
        return None
    for index in range(2):
        array, other = small_constant(maker.inputs[index]), maker.inputs[1 - index]
        if array is None or other is None or any(-axis > array.ndim for axis in cut):
            continue
        if any(_size(other, axis) != 1 for axis in cut):
            continue
        taken = [slice(None)] * array.ndim
        for axis, c in cut.items():
            taken[axis] = slice(c.start, c.end, c.step)
        given = maker.inputs[index]
        less = op.constant(np.ascontiguousarray(array[tuple(taken)]), given.dtype if given else None)
        operands = [less, other] if index == 0 else [other, less]
        return op.node(maker.op_type, operands, attributes_of(maker)).outputs[0]
    return None


def _part(maker: ir.Node, axis: int, cut: Cut, opset: int) -> ir.Value | None:
    """The input of a Concat that a cut takes, neither more nor less of it."""
    joined = int(attribute(maker, "axis", opset))
    of_rank = rank(maker.outputs[0])
    if of_rank is None or joined % of_rank != axis % of_rank:
        return None
    sizes = static([_size(value, axis) for value in maker.inputs])
    bounds = cut.normal(sum(sizes)) if sizes is not None else None
    if sizes is None or bounds is None or bounds.step != 1:
        return None
    taken = (bounds.start, min(bounds.end, sum(sizes)))
    for value, size, end in zip(maker.inputs, sizes, accumulate(sizes), strict=True):
        if taken == (end - size, end) and size:
            return value
    return None


def _passed(maker: ir.Node, cut: Cuts, opset: int) -> int | None:
    """The input that can be cut in the place of a node's result, if its other inputs are not to be cut."""
    result = maker.outputs[0]
    if maker.op_type == "Unsqueeze":
        axes, of_rank = axes_of(maker, opset), rank(result)
        before = axes is not None and of_rank is not None and max(axes) - of_rank < min(cut)
        return 0 if before else None
    if maker.op_type not in ELEMENTWISE:
        return None
    if sum(value is not None for value in maker.inputs) == 1:
        return 0
    if maker.op_type in _BROADCASTING:
        for index in range(2):
            other = small_constant(maker.inputs[index])
            if other is None or any(_size(maker.inputs[index], axis) != 1 for axis in cut):
                continue
            cut_all = all(_size(maker.inputs[1 - index], a) == _size(result, a) is not None for a in cut)
            return 1 - index if cut_all else None
    return None


def _all_alike(value: ir.Value, cut: Cuts, opset: int) -> bool:
    """Whether whatever is computed from a value is cut in this way, so that the value goes away."""
    maker = value.producer()
    if maker is None or value.is_graph_output():
        return False
    return all(user.graph is maker.graph and _alike(user, cut, opset) for user in value.consumers())


def _alike(node: ir.Node, cut: Cuts, opset: int) -> bool:
    while node.op_type != "Slice":
        if node.domain or _passed(node, cut, opset) is None or not used_once(node.outputs[0]):
            return False
        node = next(iter(node.outputs[0].consumers()))
    return not node.domain and _cuts(node, opset) == cut


def _again(op: Builder, path: list[tuple[ir.Node, int]], value: ir.Value) -> ir.Value:
    """What the nodes of a path, the last first, make of another value."""
    for node, index in reversed(path):
        inputs = [value if i == index else operand(node, i) for i in range(len(node.inputs))]
        value = op.node(node.op_type, inputs, attributes_of(node)).outputs[0]
    return value
