"""How the operands of an Attention are laid out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, NodeRule, RuleSet, attribute, reject, require
from onnxlathe_passes.attention import unrepeated, without_group
from onnxlathe_passes.conditions import attributes_of, from_front, producer, used_once
from onnxlathe_passes.moves import Arrangement, upwards
from onnxlathe_passes.regroup import reshaped, split, static

_HEADS_LAST = (0, 2, 1, 3)  # between [batch, seq, heads, size] and [batch, heads, seq, size]


@dataclass(frozen=True)
class _Shared(NodeRule):
    """Keys and values once for each group of heads: the operator shares them out itself."""

    min_opset = 23
    reach = 4

    visits = ("Attention",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        found = unrepeated(node.inputs[1], node.inputs[2])
        if found is None:
            return None
        require(len(node.outputs) == 1 and len(node.inputs) <= 4, "it keeps its keys for later")
        shared = [without_group(op, heads) for heads in found]
        return op.Attention(node.inputs[0], *shared, *node.inputs[3:], **attributes_of(node))


@dataclass(frozen=True)
class _Flat(NodeRule):
    """Attention on `[batch, seq, heads·size]`, as the projections give it and the next one wants it."""

    min_opset = 23
    reach = 5

    visits = ("Reshape",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        steps: list[ir.Node] = []
        for step, value in upwards(node.outputs[0]):
            steps.append(step)
            attention = producer(value, "Attention")
            if attention is not None:
                break
        else:
            return None
        before: Any = dims_of(value)
        after = dims_of(node.outputs[0])
        require(all(used_once(step.inputs[0]) for step in steps), "its result is used elsewhere")  # type: ignore[arg-type]
        if before is None or after is None or {None, 0} & {*before, *after} or len(before) != 4:
            reject("its shape is not known")
        flat_order = Arrangement(before)
        require(all(flat_order.move(step, op.opset) for step in reversed(steps)), "its heads are cut")
        joined = (before[0], before[2], before[1] * before[3])
        wanted = [part for axis in _HEADS_LAST for part in flat_order.source[axis]]
        require(after == joined and flat_order.order == wanted, "its heads are not joined")
        made: dict[ir.Node, Sequence[ir.Value]] = {}
        flat = [_flat(op, value, made) for value in attention.inputs[:3]]
        q, k = (dims_of(value) for value in attention.inputs[:2])  # type: ignore[arg-type]
        assert q is not None
        assert k is not None
        require(isinstance(q[1], int) and isinstance(k[1], int), "the number of its heads is not known")
        attributes = attributes_of(attention) | {"q_num_heads": q[1], "kv_num_heads": k[1]}
        return op.Attention(*flat, *attention.inputs[3:], **attributes)


class AttentionLayout(RuleSet):
    """Attention on `[batch, seq, heads·size]`, as projections give it, with keys that groups of heads share.

    The operator takes the heads apart itself, and repeats keys and values for as many heads as there are
    (Ainslie et al. 2023), so that no Reshape, Transpose or Expand has to.
    """

    name = "attention_layout"
    group = "fuse"
    min_opset = 23
    example = """
    %q1 = Transpose(Reshape(%q, [0, 0, 12, 64]), [0, 2, 1, 3])         # %k1 and %v1 alike
    %y = Reshape(Transpose(Attention(%q1, %k1, %v1), [0, 2, 1, 3]), [0, 0, 768])
    →
    %y = Attention<q_num_heads=12, kv_num_heads=12>(%q, %k, %v)
    """

    steps = (_Shared(), _Flat())


def _flat(op: Builder, value: ir.Value | None, made: dict[ir.Node, Sequence[ir.Value]]) -> ir.Value:
    """`[batch, heads, seq, size]` as the `[batch, seq, heads·size]` that it was made from."""
    dims: Any = dims_of(value) if value is not None else None
    if value is None or dims is None or len(dims) != 4:
        reject("an operand is not made of flat ones")
    cut = producer(value, "Split")
    if cut is not None:
        require(
            from_front([int(attribute(cut, "axis", op.opset))], 4) == [1], "it is split along another axis"
        )
        if cut not in made:
            whole = _flat(op, cut.inputs[0], made)
            sizes = static([*((dims_of(v) or (None, None))[1] for v in cut.outputs), dims[3]])
            if sizes is None:
                reject("the sizes of its parts are not known")
            made[cut] = split(op, whole, [heads * sizes[-1] for heads in sizes[:-1]], 2)
        return made[cut][value.index() or 0]
    rotated = producer(value, "RotaryEmbedding")
    if rotated is not None and used_once(value):
        if rotated not in made:
            x = _flat(op, rotated.inputs[0], made)
            attributes = attributes_of(rotated) | {"num_heads": dims[1]}
            made[rotated] = [op.RotaryEmbedding(x, *rotated.inputs[1:], **attributes)]
        return made[rotated][0]
    source = _before_moves(value, op.opset)
    if source is None:
        reject("an operand is not made of flat ones")
    return reshaped(op, source, (dims[0], dims[2], dims[1] * dims[3]))


def _before_moves(value: ir.Value, opset: int) -> ir.Value | None:
    """What Reshapes and Transposes made `[batch, heads, seq, size]` of, and has its elements by seq, then heads."""
    nodes: list[ir.Node] = []
    found = None
    for node, source in upwards(value):
        nodes.append(node)
        dims = dims_of(source)
        if dims is None or {None, 0} & set(dims):
            break
        arrangement = Arrangement(dims)
        if not all(arrangement.move(step, opset) for step in reversed(nodes)):
            break
        arrangement.axes = [arrangement.axes[axis] for axis in _HEADS_LAST]
        if arrangement.order == arrangement.original:
            found = source
    return found
