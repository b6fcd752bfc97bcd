"""Slices that share a tensor out among them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.model import Model
from onnxlathe.rewrite import Builder, Context, NodeRule, Pass, attribute, is_constant, remove_unused
from onnxlathe_passes.conditions import int64, small_constant
from onnxlathe_passes.insert import graphs_with_weights, insert, substitute
from onnxlathe_passes.regroup import split
from onnxlathe_passes.slices import cuts


class SlicePartition(Pass):
    """Slices that cut one tensor into consecutive parts and leave nothing out = Split."""

    name = "slice_partition"
    group = "fuse"
    min_opset = 2
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %a = Slice(%x, starts=[0], ends=[3], axes=[1])      # x: [batch, 7]
    %b = Slice(%x, starts=[3], ends=[7], axes=[1])
    →
    %a, %b = Split(%x, [3, 4], axis=1)
    """

    def run(self, model: Model, context: Context) -> int:
        changes = 0
        for graph in graphs_with_weights(model):
            seen: set[ir.Value] = set()
            for node in graph:
                x = node.inputs[0] if node.op_type == "Slice" and node.domain == "" else None
                if x is not None and x not in seen:
                    seen.add(x)
                    changes += self.split(x, model.opset, context)
        return changes

    def split(self, x: ir.Value, opset: int, context: Context) -> int:
        """Put a Split in the place of the Slices of `x` that share it out, along any one axis."""
        parts: dict[int, dict[tuple[int, int], list[ir.Node]]] = {}
        dims = dims_of(x)
        slices = [node for node in x.consumers() if node.op_type == "Slice" and node.domain == ""]
        if dims is None or len(slices) < 2:
            return 0
        for node in slices:
            taken = cuts(node, opset) if node.inputs[0] is x and node.graph is slices[0].graph else None
            if taken is None or len(taken) != 1:
                continue
            ((axis, cut),) = taken.items()
            size, whole = dims[axis], cut.normal(dims[axis])
            if isinstance(size, int) and whole is not None and whole.step == 1:
                key = (min(whole.start, size), min(whole.end, size))
                parts.setdefault(axis, {}).setdefault(key, []).append(node)
        for axis, found in parts.items():
            ordered = sorted(found)
            starts, ends = zip(*ordered, strict=True)
            if (
                len(ordered) < 2
                or starts != (0, *ends[:-1])
                or ends[-1] != dims[axis]
                or starts[-1] == ends[-1]
            ):
                continue
            if not context.permit(self.name):
                return 0
            first = min((node for nodes in found.values() for node in nodes), key=_place(x))
            op = Builder(opset)
            results = split(op, x, [end - start for start, end in ordered], axis)
            insert(op, first, context)
            pairs = [
                (node.outputs[0], new)
                for key, new in zip(ordered, results, strict=True)
                for node in found[key]
            ]
            substitute(pairs, context)
            before = [node for nodes in found.values() for node in nodes]
            context.record(self.name, before, op.nodes)
            remove_unused(before)
            return 1
        return 0


class GatherSlice(NodeRule):
    """Gather(x, [2, 3, 4]) = Slice(x, 2:5), for constant indices in steps."""

    name = "gather_slice"
    group = "fuse"
    min_opset = 10
    reach = 1
    example = """
    %y = Gather(%x, [2, 3, 4], axis=1)
    →
    %y = Slice(%x, starts=[2], ends=[5], axes=[1])
    """

    visits = ("Gather",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        x, indices = node.inputs
        dims, found = dims_of(x) if x is not None else None, small_constant(indices)
        if x is None or dims is None or is_constant(x) or found is None or found.ndim != 1 or found.size < 2:
            return None
        axis = int(attribute(node, "axis", op.opset)) % len(dims)
        size, places = dims[axis], [int(i) for i in found]
        steps = {b - a for a, b in pairwise(places)}
        if not isinstance(size, int) or len(steps) != 1 or min(steps) < 1 or places[0] < 0:
            return None
        (step,) = steps
        inputs = [x, int64([places[0]]), int64([places[-1] + 1]), int64([axis])]
        return op.node("Slice", inputs if step == 1 else [*inputs, int64([step])]).outputs[0]


def _place(x: ir.Value) -> Callable[[ir.Node], int]:
    """Where nodes of one graph stand in it."""
    graph = next(iter(x.consumers())).graph
    assert graph is not None
    places = {node: place for place, node in enumerate(graph)}
    return lambda node: places[node]
