"""Chains of Pad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxlathe.rewrite import Builder, NodeRule, attribute
from onnxlathe_passes.conditions import from_front, int64, number, numbers, operand, producer, rank, used_once


@dataclass(frozen=True)
class Padding:
    """What a Pad adds: before and after each axis, how, and the number that it adds."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    mode: str
    value: object


def padding(node: ir.Node, opset: int) -> Padding | None:
    """What a Pad adds, where that is known."""
    axes = rank(node.inputs[0])
    mode = attribute(node, "mode", opset)
    if opset < 11:
        pads, value = attribute(node, "pads", opset), attribute(node, "value", opset)
    else:
        pads = numbers(operand(node, 1))
        value = 0 if operand(node, 2) is None else number(operand(node, 2))
    if axes is None or pads is None or (mode == "constant" and value is None):
        return None
    chosen: list[int] | None = list(range(axes))
    if operand(node, 3) is not None:
        listed = numbers(operand(node, 3))
        chosen = None if listed is None else from_front(listed, axes)
    if chosen is None or len(pads) != 2 * len(chosen):
        return None
    before, after = [0] * axes, [0] * axes
    for index, axis in enumerate(chosen):
        before[axis], after[axis] = pads[index], pads[index + len(chosen)]
    return Padding(tuple(before), tuple(after), mode, value if mode == "constant" else None)


class PadChain(NodeRule):
    """Pad(Pad(x, p), q) = Pad(x, p + q), with the same number, or the same edge, all around.

    Pads of less than nothing, which cut off, are not joined.
    """

    name = "pad_chain"
    group = "tidy"
    min_opset = 2
    example = """
    %a = Pad(%x, [1, 0, 1, 0])
    %y = Pad(%a, [0, 2, 0, 2])
    →
    %y = Pad(%x, [1, 2, 1, 2])
    """

    visits = ("Pad",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        value = node.inputs[0]
        inner = producer(value, "Pad")
        if value is None or inner is None or not used_once(value):
            return None
        first, second = padding(inner, op.opset), padding(node, op.opset)
        if first is None or second is None or first.mode not in ("constant", "edge"):
            return None
        if (first.mode, first.value) != (second.mode, second.value):
            return None
        if min(*first.before, *first.after, *second.before, *second.after, 0) < 0:
            return None
        pads = [p + q for p, q in zip(first.before + first.after, second.before + second.after, strict=True)]
        x = inner.inputs[0]
        if op.opset < 11:
            return op.Pad(x, pads=pads, mode=first.mode, value=first.value)
        made = op.node("Pad", [x, int64(pads), *node.inputs[2:3]], {"mode": first.mode})
        return made.outputs[0]
