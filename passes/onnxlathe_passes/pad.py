"""Padding into the convolution or pooling that follows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of, known
from onnxlathe.rewrite import (
    Builder,
    Pattern,
    PatternBuilder,
    Rule,
    any_of,
    attr,
    attribute,
    optional,
    reject,
    require,
    scalar_value,
)
from onnxlathe_passes.weights import attributes_of


class PadInto(Rule):
    """Let a Conv, AveragePool or MaxPool do the padding that a Pad does before it.

    Zeros before Conv; zeros before an AveragePool that counts its padding; -∞ before MaxPool.
    """

    name = "pad"
    group = "fuse"
    min_opset = 2
    example = """
    %p = Pad(%x, [0, 0, 1, 1, 0, 0, 1, 1])
    %y = Conv<pads=[0, 0, 0, 0]>(%p, %w)
    →
    %y = Conv<pads=[1, 1, 1, 1]>(%x, %w)
    """

    def pattern(
        self,
        op: PatternBuilder,
        x: Pattern,
        pads: Pattern,
        value: Pattern,
        axes: Pattern,
        w: Pattern,
        b: Pattern,
    ) -> Any:
        padded = op.Pad(
            x,
            optional(pads),
            optional(value),
            optional(axes),
            mode="constant",
            pads=attr("pads_attribute"),
            value=attr("value_attribute"),
        )
        return any_of(
            op.Conv(padded, w, optional(b), _name="node"),
            op.AveragePool(padded, _name="node"),
            op.MaxPool(padded, _name="node"),
        )

    def rewrite(
        self,
        op: Builder,
        node: ir.Node,
        x: ir.Value,
        pads: ir.Value | None,
        value: ir.Value | None,
        axes: ir.Value | None,
        pads_attribute: Sequence[int] | None,
        value_attribute: float | None,
    ) -> Any:
        rank = len(dims_of(x) or ())
        require(rank > 2, "the rank of its input is not known")
        before, after = _amounts(pads, pads_attribute, axes, rank)
        filled = (value_attribute or 0.0) if value is None else scalar_value(value)
        require(
            not any((*before[:2], *after[:2])) and min((*before, *after)) >= 0,
            "it pads the batch or the channels, or cuts something off",
        )
        own = _own_pads(node, rank - 2, op.opset)
        total = [a + b for a, b in zip((*before[2:], *after[2:]), own, strict=True)]
        attributes = attributes_of(node, "auto_pad", "pads")
        if node.op_type == "Conv":
            require(filled == 0, "it does not pad with zeros")
        else:
            kernel = attribute(node, "kernel_shape", op.opset)
            require(
                all(p < k for p, k in zip(total, (*kernel, *kernel), strict=True)), "it pads whole windows"
            )
            require(not attribute(node, "ceil_mode", op.opset), "it rounds its output's size up")
            if node.op_type == "MaxPool":
                require(filled == -np.inf, "it does not pad with -∞")
                require(len(node.outputs) == 1 or not node.outputs[1].uses(), "its indices count the padding")
                require(
                    len(node.outputs) == 1 or not node.outputs[1].is_graph_output(),
                    "its indices are an output",
                )
            else:
                counts = attribute(node, "count_include_pad", op.opset)
                require(filled == 0 and (counts or not any(own)), "it does not count padding in the average")
                require(op.opset >= 7, "its padding cannot be counted in the average")
                attributes["count_include_pad"] = 1
        return op.node(node.op_type, [x, *node.inputs[1:]], {**attributes, "pads": total}).outputs[0]


def _amounts(
    pads: ir.Value | None, attribute: Sequence[int] | None, axes: ir.Value | None, rank: int
) -> tuple[list[int], list[int]]:
    """What a Pad adds at the beginning and at the end of each axis."""
    if pads is not None:
        attribute = _integers(pads)
    chosen = list(range(rank)) if axes is None else [a % rank for a in _integers(axes)]
    if attribute is None or len(attribute) != 2 * len(chosen):
        reject("its amounts are not known")
    before, after = [0] * rank, [0] * rank
    for place, axis in enumerate(chosen):
        before[axis], after[axis] = attribute[place], attribute[place + len(chosen)]
    return before, after


def _integers(value: ir.Value) -> list[int]:
    found = known(value)
    entries = [] if found is None else list(found.reshape(-1))
    if found is None or not all(isinstance(e, int) for e in entries):
        reject(f"{value.name} is not constant")
    return entries


def _own_pads(node: ir.Node, spatial: int, opset: int) -> list[int]:
    """The padding that the operator does already."""
    mode = attribute(node, "auto_pad", opset)
    require(mode in ("NOTSET", "VALID", None), "its own padding depends on the input's size")
    own = attribute(node, "pads", opset)
    return [0] * (2 * spatial) if mode == "VALID" or own is None else list(own)
