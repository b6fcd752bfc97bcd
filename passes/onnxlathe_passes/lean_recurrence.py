"""LSTM, GRU and RNN without what they do not need."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe.infer import dims_of, known
from onnxlathe.rewrite import Builder, NodeRule, attribute
from onnxlathe_passes.conditions import number, operand, producer, rank, uniform, used_once
from onnxlathe_passes.noop_views import permutation
from onnxlathe_passes.views import axes_of, squeeze

_OPERATORS = ("LSTM", "GRU", "RNN")


class LeanRecurrence(NodeRule):
    """LSTM, GRU or RNN without a bias of zeros, and without lengths where every sequence has its full length."""

    name = "lean_recurrence"
    group = "tidy"
    min_opset = 7
    reach = 1
    example = """
    %y = LSTM<hidden_size=64>(%x, %w, %r, [[0, 0, …]], [16, 16])      # x: [16, 2, 32]
    →
    %y = LSTM<hidden_size=64>(%x, %w, %r)
    """

    visits = _OPERATORS

    def visit(self, op: Builder, node: ir.Node) -> Any:
        x, bias, lengths = operand(node, 0), operand(node, 3), operand(node, 4)
        drop = set()
        if bias is not None and uniform(bias) == 0:
            drop.add(3)
        dims = dims_of(x) if x is not None else None
        time = 1 if op.opset >= 14 and attribute(node, "layout", op.opset) else 0
        if lengths is not None and dims is not None and len(dims) == 3 and dims[time] is not None:
            found = known(lengths)
            if found is not None and found.size and all(entry == dims[time] for entry in found.flat):
                drop.add(4)
        if not drop:
            return None
        inputs = [None if index in drop else value for index, value in enumerate(node.inputs)]
        made = op.node(node.op_type, inputs, dict(node.attributes), outputs=len(node.outputs))
        return [new if old.uses() or old.is_graph_output() else None
                for old, new in zip(node.outputs, made.outputs, strict=True)]  # fmt: skip


class LastState(NodeRule):
    """The state at the last position, of all states of a recurrence = the last state, which is an output.

    In the direction in which it is the last one; so does out[:, -1] become h_n.
    """

    name = "last_state"
    group = "fuse"
    min_opset = 7
    reach = 4
    example = """
    %a, %h = GRU<hidden_size=64>(%x, %w, %r, %b)
    %s = Transpose(Squeeze(%a, [1]), perm=[1, 0, 2])
    %y = Gather(%s, -1, axis=1)
    →
    %a, %h = GRU<hidden_size=64>(%x, %w, %r, %b)
    %y = Squeeze(%h, [0])
    """

    visits = ("Gather",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        value, place = node.inputs[0], number(operand(node, 1))
        dims = dims_of(value) if value is not None else None
        if value is None or dims is None or not isinstance(place, int) or rank(operand(node, 1)) != 0:
            return None
        axis = int(attribute(node, "axis", op.opset)) % len(dims)
        chain: list[ir.Node] = []
        while (
            value is not None
            and used_once(value)
            and (moved := producer(value, "Transpose", "Squeeze", "Reshape")) is not None
        ):
            chain.insert(0, moved)
            value = moved.inputs[0]
        made = producer(value, *_OPERATORS)
        if made is None or value is not made.outputs[0] or not used_once(made.outputs[0]):
            return None
        return self.of(op, made, chain, axis, (place, dims[axis]))

    def of(self, op: Builder, made: ir.Node, chain: list[ir.Node], axis: int, taken: tuple[int, Any]) -> Any:
        """The last state with the axes in the order in which the chain leaves them."""
        place, size = taken
        direction, lengths = attribute(made, "direction", op.opset), operand(made, 4)
        if lengths is not None or (op.opset >= 14 and attribute(made, "layout", op.opset)):
            return None
        first, last = place in (0, -size if isinstance(size, int) else 0), place == -1 or place + 1 == size
        if not (last if direction == "forward" else first and direction == "reverse"):
            return None
        axes = [0, 1, 2, 3]  # time, direction, batch, state
        for node in chain:
            if node.op_type != "Transpose":
                gone = axes_of(node, op.opset) if node.op_type == "Squeeze" else _dropped(node, axes)
                if gone is None or any(axes[a] != 1 for a in gone):
                    return None
                axes = [name for position, name in enumerate(axes) if position not in gone]
            else:
                perm = permutation(node, op.opset)
                if perm is None or len(perm) != len(axes):
                    return None
                axes = [axes[a] for a in perm]
        if axes.pop(axis) != 0 or axes not in ([1, 2, 3], [2, 3]):
            return None
        state = made.outputs[1] if len(made.outputs) > 1 else None
        if state is None or not state.name:
            if any(v.uses() or v.is_graph_output() for v in made.outputs[1:]):
                return None  # there would have to be a second one
            again = op.node(made.op_type, made.inputs, dict(made.attributes), outputs=2)
            state = again.outputs[1]
        return state if axes[0] == 1 else squeeze(op, state, [0])


def _dropped(node: ir.Node, axes: list[int]) -> list[int] | None:
    """The axis that a Reshape drops, where it does that to the one of the direction and nothing else."""
    before, after = dims_of(node.inputs[0]) if node.inputs[0] is not None else None, dims_of(node.outputs[0])
    if before is None or after is None or 1 not in axes:
        return None
    at = axes.index(1)
    return [at] if None not in after and before[:at] + before[at + 1 :] == after else None
