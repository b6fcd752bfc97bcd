"""Rows of a table at the positions that are cut out of a constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import Builder, Bytes, NodeRule, attribute, is_constant, option, reject, require
from onnxlathe_passes.conditions import (
    from_front,
    int64,
    numbers,
    operand,
    producer,
    rank,
    small_constant,
    used_once,
)
from onnxlathe_passes.weights import derived, may_copy, tensor_of


@dataclass(frozen=True)
class TableSlice(NodeRule):
    """Gather(table, Slice(i)) = Slice(Gather(table, i)), and what is gathered from a constant is one.

    Embeddings of positions are taken so: `position_ids[:, :seq]` of a buffer that counts.
    """

    name = "table_slice"
    group = "fuse"
    min_opset = 10
    reach = 1
    example = """
    %i = Slice([[0, 1, …, 511]], [0], %seq, axes=[1])
    %y = Gather(%table, %i)                                  # table: [512, 64]
    →
    %y = Slice(%table1, [0], %seq, axes=[1])                 # table1: [1, 512, 64]
    """

    max_copy: Bytes = option(1 << 20, "largest table that is copied because something else uses it too")

    visits = ("Gather",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        table, taken = node.inputs
        cut = producer(taken, "Slice")
        if table is None or taken is None or cut is None or not is_constant(table):
            return None
        indices = small_constant(cut.inputs[0])
        axis = from_front([int(attribute(node, "axis", op.opset))], rank(table))
        if indices is None or axis is None:
            return None
        given = operand(cut, 3)
        axes = from_front(numbers(given) or [], indices.ndim) if given is not None else None
        if not axes:
            reject("it is not known along which axes the positions are cut")
        require(used_once(taken), "the positions are used elsewhere")
        require(may_copy(table, self.max_copy), "the table is used elsewhere and large")
        source, place = tensor_of(table), axis[0]
        shape = source.shape.numpy()
        size = shape[place]
        require(indices.size <= size, "it would become larger")
        require(bool(((indices >= -size) & (indices < size)).all()), "a position is outside of the table")
        rows = derived(
            op,
            table,
            [*shape[:place], *indices.shape, *shape[place + 1 :]],
            lambda: np.take(source.numpy(), indices, place),
        )
        moved = int64([axis + place for axis in axes])
        return op.Slice(rows, cut.inputs[1], cut.inputs[2], moved, operand(cut, 4))
