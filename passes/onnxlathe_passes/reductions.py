"""Reductions next to each other, of nothing, and next to Squeeze and Unsqueeze."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, NodeRule, attribute
from onnxlathe_passes.conditions import FLOATS, from_front, int64, numbers, operand, producer, rank, used_once
from onnxlathe_passes.views import axes_of, squeeze

# f over some axes and then over others is f over all of them.
_NESTING = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2")
_REDUCTIONS = (*_NESTING, "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare")
# f over one element is that element.
_TRIVIAL = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")


@dataclass(frozen=True)
class Reduction:
    """The axes of a reduction, ascending and counted from the front, and whether they are kept as 1."""

    axes: list[int]
    keepdims: bool


def reduction(node: ir.Node, opset: int) -> Reduction | None:
    """What a Reduce… operator reduces, where that is known."""
    axes_of_x = rank(node.inputs[0])
    if opset < _axes_are_an_input_since(node.op_type):
        axes = attribute(node, "axes", opset)
    else:
        axes = numbers(operand(node, 1))
        if axes is None and operand(node, 1) is not None:
            return None
    if not axes:
        if axes_of_x is None:
            return None
        axes = [] if attribute(node, "noop_with_empty_axes", opset) else range(axes_of_x)
    found = from_front(axes, axes_of_x)
    return None if found is None else Reduction(sorted(found), bool(attribute(node, "keepdims", opset)))


def _axes_are_an_input_since(op_type: str) -> int:
    return 13 if op_type == "ReduceSum" else 18


def reduce(op: Builder, op_type: str, x: ir.Value | None, axes: Sequence[int], keepdims: bool) -> ir.Value:
    """A Reduce… operator as this opset spells it."""
    keep = {"keepdims": int(keepdims)}
    if op.opset < _axes_are_an_input_since(op_type):
        return op.node(op_type, [x], {"axes": list(axes), **keep}).outputs[0]
    return op.node(op_type, [x, int64(axes)], keep).outputs[0]


class ReduceChain(NodeRule):
    """ReduceSum(ReduceSum(x, a), b) = ReduceSum(x, a and b); the same for Mean, Max, Min, Prod, L1, L2."""

    name = "reduce_chain"
    group = "tidy"
    example = """
    %a = ReduceMax(%x, axes=[3], keepdims=0)
    %y = ReduceMax(%a, axes=[2], keepdims=0)
    →
    %y = ReduceMax(%x, axes=[2, 3], keepdims=0)
    """

    visits = _NESTING

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        value = node.inputs[0]
        inner = producer(value, node.op_type)
        if value is None or inner is None or not used_once(value):
            return None
        if node.op_type in ("ReduceMean", "ReduceL2") and value.dtype not in FLOATS:
            return None  # integers round in between
        first, second = reduction(inner, op.opset), reduction(node, op.opset)
        if first is None or second is None or not first.axes or not second.axes:
            return None
        if first.keepdims != second.keepdims:
            return None
        added = second.axes
        if not first.keepdims:
            total = rank(inner.inputs[0])
            if total is None:
                return None
            kept = [axis for axis in range(total) if axis not in first.axes]
            added = [kept[axis] for axis in added]
        axes = sorted({*first.axes, *added})
        return reduce(op, node.op_type, inner.inputs[0], axes, second.keepdims)


class NoopReduce(NodeRule):
    """ReduceSum(x) over axes of size 1 = x, or Squeeze(x); the same for Mean, Max, Min, Prod."""

    name = "noop_reduce"
    group = "tidy"
    reach = 1
    example = """
    %y = ReduceMean(%x, axes=[1], keepdims=0)      # x: [batch, 1, 8]
    →
    %y = Squeeze(%x, axes=[1])
    """

    visits = _TRIVIAL

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        x = node.inputs[0]
        what = reduction(node, op.opset)
        dims = dims_of(x) if x is not None else None
        if what is None or dims is None or any(dims[axis] != 1 for axis in what.axes):
            return None
        return x if what.keepdims or not what.axes else squeeze(op, x, what.axes)


class ReduceKeepdims(NodeRule):
    """Unsqueeze(Reduce(x, axes, keepdims=0), axes) = Reduce(x, axes, keepdims=1), and back with Squeeze.

    For all Reduce… operators, ArgMax and ArgMin; a Reshape may do what the Unsqueeze or the Squeeze does.
    """

    name = "reduce_keepdims"
    group = "tidy"
    example = """
    %a = ReduceMean(%x, axes=[2], keepdims=0)
    %y = Unsqueeze(%a, axes=[2])
    →
    %y = ReduceMean(%x, axes=[2], keepdims=1)
    """

    visits = ("Unsqueeze", "Squeeze", "Reshape")

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        value = node.inputs[0]
        inner = producer(value, *_REDUCTIONS, "ArgMax", "ArgMin")
        if value is None or inner is None or not used_once(value):
            return None
        if inner.op_type in ("ArgMax", "ArgMin"):
            found = from_front([attribute(inner, "axis", op.opset)], rank(inner.inputs[0]))
            what = Reduction(found, bool(attribute(inner, "keepdims", op.opset))) if found else None
        else:
            what = reduction(inner, op.opset)
        if what is None or not what.axes or not _turns(node, inner, what, op.opset):
            return None
        keep = not what.keepdims
        if inner.op_type in ("ArgMax", "ArgMin"):
            last = attribute(inner, "select_last_index", op.opset)
            options = {"axis": what.axes[0], "keepdims": int(keep), "select_last_index": last or None}
            return op.node(inner.op_type, inner.inputs[:1], options).outputs[0]
        return reduce(op, inner.op_type, inner.inputs[0], what.axes, keep)


def _turns(node: ir.Node, inner: ir.Node, what: Reduction, opset: int) -> bool:
    """Whether the view brings back the axes that a reduction dropped, or drops those that it kept."""
    if node.op_type != "Reshape":
        return (node.op_type == "Squeeze") == what.keepdims and axes_of(node, opset) == what.axes
    before = dims_of(inner.inputs[0]) if inner.inputs[0] is not None else None
    if before is None or None in before:
        return False
    if what.keepdims:
        wanted = tuple(size for axis, size in enumerate(before) if axis not in what.axes)
    else:
        wanted = tuple(1 if axis in what.axes else size for axis, size in enumerate(before))
    return dims_of(node.outputs[0]) == wanted
