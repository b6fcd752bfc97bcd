"""Two recurrences over the same sequence, one from each end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, NodeRule, attribute, is_constant, require
from onnxlathe_passes.conditions import Array, int64, operand, producer, rank, used_once
from onnxlathe_passes.noop_views import permutation
from onnxlathe_passes.views import axes_of
from onnxlathe_passes.weights import derived, tensor_of

_OPERATORS = ("LSTM", "GRU", "RNN")
_COMMON = ("hidden_size", "clip", "input_forget", "linear_before_reset", "layout")
_EACH = ("activations", "activation_alpha", "activation_beta")


class Bidirectional(NodeRule):
    """Two recurrent operators on one sequence, forwards and in reverse, side by side = a bidirectional one.

    Where nothing else needs what either of them gives.
    """

    name = "bidirectional"
    group = "fuse"
    min_opset = 7
    reach = 4
    example = """
    %a = GRU<hidden_size=64>(%x, %w, %r, %b)
    %c = GRU<hidden_size=64, direction="reverse">(%x, %u, %s, %d)
    %y = Concat(Squeeze(%a, [1]), Squeeze(%c, [1]), axis=2)
    →
    %e = GRU<hidden_size=64, direction="bidirectional">(%x, [%w, %u], [%r, %s], [%b, %d])
    %y = Reshape(Transpose(%e, perm=[0, 2, 1, 3]), [0, 0, 128])
    """

    visits = ("Concat",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        size = rank(node.outputs[0])
        if len(node.inputs) != 2 or size != 3 or int(attribute(node, "axis", op.opset)) % 3 != 2:
            return None
        one, other = (_part(value, op.opset) for value in node.inputs)
        if one is None or other is None or one.turned != other.turned:
            return None
        both = _both(op, one.node, other.node)
        if both is None:
            return None
        hidden = int(attribute(one.node, "hidden_size", op.opset))
        order = [2, 0, 1, 3] if one.turned else [0, 2, 1, 3]
        return op.Reshape(op.Transpose(both, perm=order), int64([0, 0, 2 * hidden]))


@dataclass(frozen=True)
class _Part:
    """All states of a recurrent operator without the axis of the direction; `turned`: with the batch first."""

    node: ir.Node
    turned: bool


def _part(value: ir.Value | None, opset: int) -> _Part | None:
    turned = producer(value, "Transpose")
    if turned is not None and value is not None:
        if permutation(turned, opset) != (1, 0, 2) or not used_once(value):
            return None
        value = turned.inputs[0]
    squeezed = producer(value, "Squeeze")
    if squeezed is None or value is None or not used_once(value) or axes_of(squeezed, opset) != [1]:
        return None
    states = squeezed.inputs[0]
    made = producer(states, *_OPERATORS)
    if made is None or states is not made.outputs[0] or states is None or not used_once(states):
        return None
    if any(v.uses() or v.is_graph_output() for v in made.outputs[1:]):
        return None
    return _Part(made, turned is not None)


def _both(op: Builder, one: ir.Node, other: ir.Node) -> ir.Value | None:
    """All states of both directions, the first of them forwards; `None` where they differ too much."""
    opset = op.opset
    directions = [attribute(node, "direction", opset) for node in (one, other)]
    if one.op_type != other.op_type or directions != ["forward", "reverse"]:
        return None
    if not _same(one.inputs[0], other.inputs[0], opset):
        return None
    if any(attribute(one, name, opset) != attribute(other, name, opset) for name in _COMMON):
        return None
    if (
        operand(one, 4) is not operand(other, 4)
        or operand(one, 7) is not None
        or operand(other, 7) is not None
    ):
        return None
    attributes: dict[str, Any] = {n: attribute(one, n, opset) for n in _COMMON if n in one.attributes}
    attributes["direction"] = "bidirectional"
    for name in _EACH:
        lists = [node.attributes[name].value if name in node.attributes else None for node in (one, other)]
        if (lists[0] is None) != (lists[1] is None):
            return None
        if lists[0] is not None and lists[1] is not None:
            attributes[name] = [*lists[0], *lists[1]]
    inputs: list[ir.Value | None] = [one.inputs[0]]
    inputs += [_weights(op, [operand(node, index) for node in (one, other)]) for index in (1, 2, 3)]
    inputs.append(operand(one, 4))
    for index in (5, 6):
        states = [operand(node, index) for node in (one, other)]
        require((states[0] is None) == (states[1] is None), "only one of them has an initial state")
        inputs.append(op.Concat(*states, axis=0) if states[0] is not None else None)
    return op.node(one.op_type, inputs, attributes, outputs=1).outputs[0]


def _same(a: ir.Value | None, b: ir.Value | None, opset: int) -> bool:
    """Whether both are one value, or one value turned alike, which has not been noticed yet."""
    if a is b:
        return True
    one, other = producer(a, "Transpose"), producer(b, "Transpose")
    if one is None or other is None or one.inputs[0] is not other.inputs[0]:
        return False
    return permutation(one, opset) == permutation(other, opset)


def _weights(op: Builder, values: Sequence[ir.Value | None]) -> ir.Value | None:
    """The weights of both directions; a bias that only one has is zero for the other."""
    given = [value for value in values if value is not None]
    if not given:
        return None
    require(all(is_constant(value) for value in given), "its weights are not constant")
    dims = dims_of(given[0]) or ()
    shapes = {dims_of(value) for value in given}
    require(len(shapes) == 1 and all(isinstance(d, int) for d in dims), "their weights differ in shape")
    require(len({value.dtype for value in given}) == 1, "their weights differ in type")
    shape = [int(d) for d in dims]  # type: ignore[arg-type]
    sources = [None if value is None else tensor_of(value) for value in values]

    def compute() -> Array:
        return np.concatenate([np.zeros(shape, np.float32) if s is None else s.numpy() for s in sources])

    return derived(op, given[0], [2, *shape[1:]], compute)
