"""The guard of torch's attention against rows in which everything is masked."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import constant, dims_of
from onnxlathe.rewrite import Builder, Pattern, PatternBuilder, Rule, attribute, is_constant, require, shared
from onnxlathe_passes.conditions import producer

_LARGEST = 1 << 26  # bytes of a constant mask that is looked at
_VIEWS = ("Expand", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Identity")


class SoftmaxGuard(Rule):
    """Where(IsNaN(Softmax(x)), 0, Softmax(x)) = Softmax(x), where no row of x is masked as a whole.

    Softmax is not a number where all of a row is -∞. That cannot be where nothing is masked; where the mask
    is made of finite numbers; and where it is constant, with a finite number in every row. What is masked
    is taken to be finite: an overflow of the model's own arithmetic to ∞ or NaN then shows, and is no
    longer hidden as a 0.
    """

    name = "softmax_guard"
    group = "fuse"
    example = """
    %p = Softmax(Add(%scores, %mask))       # mask: 0 and -3.4e38
    %y = Where(IsNaN(%p), 0, %p)
    →
    %y = Softmax(Add(%scores, %mask))
    """

    def pattern(self, op: PatternBuilder, x: Pattern) -> Any:
        weights = shared(op.Softmax(x, _name="softmax"))
        return op.Where(op.IsNaN(weights), 0.0, weights)

    def rewrite(self, op: Builder, softmax: ir.Node, x: ir.Value) -> Any:
        dims, axis = dims_of(x), attribute(softmax, "axis", op.opset)
        require(op.opset >= 13 and dims is not None, "what Softmax normalizes is not known")
        assert dims is not None
        require(axis in (-1, len(dims) - 1), "its Softmax is not over the last axis")
        require(dims[-1] not in (0, None), "its rows may be empty")
        masked = producer(x, "Add")
        if masked is None:
            require(
                producer(x, "MatMul", "Mul", "Div", "Gemm") is not None, "what may be masked is not known"
            )
        else:
            operands = [v for v in masked.inputs if v is not None]
            require(
                any(_keeps_rows(mask, other) for mask, other in (operands, operands[::-1])),
                "its mask may cover a row",
            )
        return softmax.outputs[0]


def _keeps_rows(mask: ir.Value, scores: ir.Value) -> bool:
    """Whether `scores + mask` has something finite in every row, if `scores` is finite."""
    if producer(scores, "MatMul", "Mul", "Div", "Gemm") is None:
        return False
    if is_constant(mask):
        array = constant(mask, max_bytes=_LARGEST)
        if array is None or not array.size:
            return False
        array = np.asarray(array, np.float64)
        if np.isnan(array).any() or (array == np.inf).any():
            return False
        # A single column stands for all columns.
        return bool(np.isfinite(array if array.ndim == 0 else array.max(axis=-1)).all())
    return _finite(mask)


def _finite(value: ir.Value | None) -> bool:
    """Whether the value is made of finite constants by choosing among them."""
    node = value.producer() if value is not None else None
    if value is not None and is_constant(value):
        array = constant(value, max_bytes=_LARGEST)
        return array is not None and bool(np.isfinite(array.astype(np.float64)).all())
    if node is None or node.domain != "":
        return False
    if node.op_type == "Where":
        return all(_finite(choice) for choice in node.inputs[1:3])
    return node.op_type in _VIEWS and _finite(node.inputs[0])
