"""Chains of Slice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, NodeRule, attribute
from onnxlathe_passes.conditions import from_front, int64, numbers, operand, producer, rank, used_once

_INT64_MAX = 2**63 - 1


@dataclass(frozen=True)
class Cut:
    """x[start:end:step] along one axis."""

    start: int
    end: int
    step: int = 1

    def within(self, outer: Cut, size: object) -> Cut | None:
        """x[outer][self] as one cut of an axis of `size`; `None` where it cannot be told."""
        if self.step != 1 or outer.step != 1:
            return None
        first, second = outer.normal(size), self.normal(None)
        if first is None or second is None:
            return None
        start = min(first.start + second.start, _INT64_MAX)
        return Cut(start, min(first.end, first.start + second.end))

    def normal(self, size: object) -> Cut | None:
        """The same cut counted from the front."""
        start, end = self.start, self.end
        if start < 0 or end < 0:
            if not isinstance(size, int):
                return None
            start = max(start + size, 0) if start < 0 else start
            end = max(end + size, 0) if end < 0 else end
        return Cut(start, end, self.step)


def cuts(node: ir.Node, opset: int) -> dict[int, Cut] | None:
    """What a Slice takes of which axis, where that is known."""
    if opset < 10:
        starts, ends = attribute(node, "starts", opset), attribute(node, "ends", opset)
        axes, steps = attribute(node, "axes", opset), None
    else:
        starts, ends, axes, steps = (numbers(operand(node, index)) for index in range(1, 5))
        if (axes is None and operand(node, 3) is not None) or (
            steps is None and operand(node, 4) is not None
        ):
            return None
    if starts is None or ends is None:
        return None
    axes = from_front(range(len(starts)) if axes is None else axes, rank(node.inputs[0]))
    if axes is None or len(set(axes)) != len(starts):
        return None
    steps = [1] * len(starts) if steps is None else steps
    return {
        axis: Cut(start, end, step) for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)
    }


class SliceChain(NodeRule):
    """Slice(Slice(x, axis a), axis b) = Slice(x, axes a and b); x[i:j][k:l] = x[i+k : min(j, i+l)].

    On one axis, with steps of 1 and positions counted from the front.
    """

    name = "slice_chain"
    group = "tidy"
    example = """
    %a = Slice(%x, starts=[1], ends=[5], axes=[0])
    %y = Slice(%a, starts=[0], ends=[2], axes=[1])
    →
    %y = Slice(%x, starts=[1, 0], ends=[5, 2], axes=[0, 1])
    """

    visits = ("Slice",)

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        value = node.inputs[0]
        inner = producer(value, "Slice")
        if value is None or inner is None or not used_once(value):
            return None
        first, second = cuts(inner, op.opset), cuts(node, op.opset)
        x = inner.inputs[0]
        if first is None or second is None or x is None:
            return None
        dims = dims_of(x)
        joined = dict(first)
        for axis, cut in second.items():
            if axis in first:
                both = cut.within(first[axis], dims[axis] if dims is not None else None)
                if both is None:
                    return None
                cut = both
            joined[axis] = cut
        return _slice(op, x, sorted(joined.items()))


def _slice(op: Builder, x: ir.Value, parts: Iterable[tuple[int, Cut]]) -> ir.Value:
    axes, chosen = zip(*parts, strict=True)
    starts, ends = [c.start for c in chosen], [c.end for c in chosen]
    steps = [c.step for c in chosen]
    if op.opset < 10:
        return op.node("Slice", [x], {"starts": starts, "ends": ends, "axes": list(axes)}).outputs[0]
    inputs = [x, int64(starts), int64(ends), int64(axes)]
    if any(step != 1 for step in steps):
        inputs.append(int64(steps))
    return op.node("Slice", inputs).outputs[0]
