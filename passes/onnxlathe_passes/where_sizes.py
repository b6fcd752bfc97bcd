"""Sizes that are chosen one by one."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, NodeRule, attribute
from onnxlathe_passes.conditions import Array, producer, small_constant


class WhereSizes(NodeRule):
    """Where(constant, a, Concat(…)) = Concat of what is chosen, for vectors.

    So the TorchScript exporter writes x.expand(batch, -1, -1): with a comparison of the sizes with -1.
    """

    name = "where_sizes"
    group = "tidy"
    min_opset = 9
    reach = 1
    example = """
    %s = Concat(Shape<end=1>(%x), [-1], [-1], axis=0)
    %y = Where([false, true, true], [1, 1, 1], %s)
    →
    %y = Concat(Shape<end=1>(%x), [1, 1], axis=0)
    """

    visits = ("Where",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        chosen = small_constant(node.inputs[0])
        if chosen is None or chosen.ndim != 1:
            return None
        if all(producer(value, "Concat") is None for value in node.inputs[1:]):
            return None
        first, second = (_entries(value, len(chosen), op.opset) for value in node.inputs[1:])
        if first is None or second is None:
            return None
        entries = [a if c else b for c, a, b in zip(chosen, first, second, strict=True)]
        parts: list[ir.Value | Array] = []
        for constant, run in groupby(entries, lambda entry: not isinstance(entry, ir.Value)):
            found = list(run)
            parts += [np.array(found)] if constant else found
        if len(parts) > 1:
            return op.Concat(*parts, axis=0)
        return parts[0] if isinstance(parts[0], ir.Value) else op.constant(parts[0])


def _entries(value: ir.Value | None, count: int, opset: int) -> list[Any] | None:
    """The entries of a vector of so many: numbers of its type, and vectors of one entry."""
    array = small_constant(value)
    if array is not None:
        if array.shape not in ((), (1,), (count,)):
            return None
        return list(np.broadcast_to(array, (count,)))
    node = producer(value, "Concat")
    if node is None or attribute(node, "axis", opset) not in (0, -1):
        return None
    entries: list[Any] = []
    for part in node.inputs:
        constant = small_constant(part)
        if constant is not None and constant.ndim == 1:
            entries += list(constant)
        elif part is not None and dims_of(part) == (1,):
            entries.append(part)
        else:
            return None
    return entries if len(entries) == count else None
