"""Chains of operators that keep the elements in their order: Reshape, Flatten, Squeeze, Unsqueeze."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from onnxlathe.infer import Dim, dims_of, known, lower
from onnxlathe.rewrite import Builder, NodeRule, attribute
from onnxlathe_passes.conditions import from_front, int64, numbers, operand, producer, rank, same_shape
from onnxlathe_passes.noop_views import moves_unit_axes_only

_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")
_MANY = 64
"""More axes than any tensor has."""


def axes_of(node: ir.Node, opset: int) -> list[int] | None:
    """The axes of a Squeeze (counted in its input) or Unsqueeze (in its output), in ascending order."""
    of = node.inputs[0] if node.op_type == "Squeeze" else node.outputs[0]
    if opset < 13:
        axes = attribute(node, "axes", opset)
        absent = axes is None
    else:
        absent = operand(node, 1) is None
        axes = None if absent else numbers(operand(node, 1))
    if absent and node.op_type == "Squeeze":
        return _unit_axes(of)
    found = None if axes is None else from_front(axes, rank(of))
    return None if found is None else sorted(found)


def _unit_axes(value: ir.Value | None) -> list[int] | None:
    """The axes of size 1, where every other one is certainly longer (or empty)."""
    dims = dims_of(value) if value is not None else None
    if dims is None or any(d is None or (isinstance(d, Dim) and (lower(d) or 0) < 2) for d in dims):
        return None
    return [axis for axis, d in enumerate(dims) if d == 1]


def squeeze(op: Builder, x: ir.Value | None, axes: Sequence[int]) -> ir.Value:
    """Squeeze as this opset spells it."""
    return _with_axes(op, "Squeeze", x, axes)


def unsqueeze(op: Builder, x: ir.Value | None, axes: Sequence[int]) -> ir.Value:
    """Unsqueeze as this opset spells it."""
    return _with_axes(op, "Unsqueeze", x, axes)


def _with_axes(op: Builder, op_type: str, x: ir.Value | None, axes: Sequence[int]) -> ir.Value:
    if op.opset < 13:
        return op.node(op_type, [x], {"axes": list(axes)}).outputs[0]
    return op.node(op_type, [x, int64(axes)]).outputs[0]


def _remaining(axes: Sequence[int], without: Sequence[int]) -> list[int]:
    """Where axes counted after a Squeeze of `without` were before it."""
    kept = [axis for axis in range(_MANY) if axis not in without]
    return [kept[axis] for axis in axes]


class SqueezeChain(NodeRule):
    """Squeeze and Unsqueeze, one after the other = one of them, or nothing.

    Unsqueeze(Squeeze(x, a), a) = Squeeze(Unsqueeze(x, a), a) = x; the axes of two of a kind are joined.
    """

    name = "squeeze_chain"
    group = "tidy"
    example = """
    %a = Unsqueeze(%x, axes=[1])
    %y = Unsqueeze(%a, axes=[2])
    →
    %y = Unsqueeze(%x, axes=[1, 2])
    """

    visits = ("Squeeze", "Unsqueeze")

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        inner = producer(node.inputs[0], "Squeeze", "Unsqueeze")
        first = axes_of(inner, op.opset) if inner is not None else None
        second = axes_of(node, op.opset)
        if inner is None or first is None or second is None:
            return None
        x = inner.inputs[0]
        if inner.op_type == node.op_type == "Squeeze":
            return squeeze(op, x, sorted([*first, *_remaining(second, first)]))
        if inner.op_type == node.op_type == "Unsqueeze":
            return unsqueeze(op, x, sorted([*second, *_remaining(first, second)]))
        if first == second:
            return x
        if inner.op_type == "Squeeze":
            return None
        # Squeeze(Unsqueeze(x)): axes that came and went, and those that only came, or only went.
        came, went = set(first) - set(second), set(second) - set(first)
        if not went:
            return unsqueeze(op, x, [axis - sum(s < axis for s in second) for axis in sorted(came)])
        if not came:
            return squeeze(op, x, [axis - sum(f < axis for f in first) for axis in sorted(went)])
        return None


class ViewChain(NodeRule):
    """Adjacent Reshape, Flatten, Squeeze, Unsqueeze = one Reshape, or nothing; so with Transposes of size 1.

    The target must be known up to dimensions that x has at the same place (0) and one that follows from
    the others (-1).
    """

    name = "view_chain"
    group = "tidy"
    min_opset = 5
    example = """
    %a = Reshape(%x, [0, -1, 4, 3])      # x: [batch, seq, 12]
    %y = Reshape(%a, [0, 0, 12])
    →
    %x
    """

    visits = _VIEWS

    def visit(self, op: Builder, node: ir.Node) -> Any:
        inner = producer(node.inputs[0], *_VIEWS)
        if inner is None or not is_view(inner, op.opset) or not is_view(node, op.opset):
            return None
        x, y = inner.inputs[0], node.outputs[0]
        if x is None:
            return None
        if same_shape(x, y):
            return x
        # Views that other operators read stay where they are; a Reshape more would be no gain.
        between = inner.outputs[0]
        if between.is_graph_output() or not all(
            i == 0 and user.op_type in _VIEWS for user, i in between.uses()
        ):
            return None
        target = _spelled(x, y, [inner, node])
        if target is None and node.op_type == "Reshape":
            target = _own_target(x, node, op.opset)
        if target:
            return op.Reshape(x, int64(target))
        added = units_between(x, y)
        if added is not None:
            return unsqueeze(op, x, added)
        if node.op_type == "Reshape" and _copies_nothing(node, op.opset):
            return op.Reshape(x, node.inputs[1])
        return None


def is_view(node: ir.Node, opset: int) -> bool:
    """Whether the node keeps the elements in their order."""
    return node.op_type != "Transpose" or moves_unit_axes_only(node, opset)


def _spelled(x: ir.Value, y: ir.Value, chain: Sequence[ir.Node]) -> list[int] | None:
    """The target of a Reshape from x to the shape of y, if it can be written down."""
    dims, ours = dims_of(y), dims_of(x) or ()
    if dims is None or 0 in dims:
        return None
    target = []
    for axis, dim in enumerate(dims):
        if isinstance(dim, int):
            target.append(dim)
        elif dim is not None and axis < len(ours) and dim == ours[axis]:
            target.append(0)
        else:
            target.append(-1)
    if target.count(-1) > 1:
        return None
    # What -1 means is undefined where a copied size is 0: not to be introduced where there was none.
    if -1 in target and 0 in target and not any(_infers(node) for node in chain):
        return None
    return target


def units_between(x: ir.Value, y: ir.Value) -> list[int] | None:
    """The axes of size 1 that y has more than x, if that is all."""
    before, after = dims_of(x), dims_of(y)
    if before is None or after is None or None in before or len(after) <= len(before):
        return None
    axes, left = [], list(before)
    for axis, size in enumerate(after):
        if left and size == left[0]:
            left.pop(0)
        elif size == 1:
            axes.append(axis)
        else:
            return None
    return None if left else axes


def _infers(node: ir.Node) -> bool:
    target = known(node.inputs[1]) if node.op_type == "Reshape" and node.inputs[1] is not None else None
    return target is not None and -1 in target.reshape(-1).tolist()


def _own_target(x: ir.Value, node: ir.Node, opset: int) -> list[int] | None:
    """The constant target of a Reshape, for another input than its own; sizes that it copies are resolved."""
    own = numbers(operand(node, 1))
    if own is None or attribute(node, "allowzero", opset):
        return None
    before = dims_of(node.inputs[0]) if node.inputs[0] is not None else None
    ours = dims_of(x) or ()
    target = []
    for axis, size in enumerate(own):
        if size == 0:
            copied = before[axis] if before is not None and axis < len(before) else None
            if copied is None or copied == 0:
                return None
            if isinstance(copied, int):
                size = copied
            elif axis >= len(ours) or ours[axis] != copied:
                return None
        target.append(size)
    return target


def _copies_nothing(node: ir.Node, opset: int) -> bool:
    """Whether a computed target means the same for whatever input."""
    target = known(node.inputs[1]) if node.inputs[1] is not None else None
    if target is None or attribute(node, "allowzero", opset):
        return False
    return all(entry is not None and entry != 0 for entry in target.reshape(-1).tolist())
