"""Values for operands that steer an operator: shapes, axes, counts, bounds, scales.

`RECIPES` maps an operand position to a function that makes a valid value for it. A recipe answers None where
it cannot tell; `INTERVALS` gives the domain of operands that are plain numbers but not any number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .meaning import int_attribute, known_dims, size_along, small_constant
from .shapes import evaluate


@dataclass(frozen=True)
class Request:
    """A value is wanted for operand `index` of `node`, of shape `shape`."""

    node: ir.Node
    index: int
    shape: tuple[int, ...]
    bindings: Mapping[str, int]
    rng: np.random.Generator

    @property
    def count(self) -> int:
        """Elements wanted."""
        return int(np.prod(self.shape, dtype=np.int64))

    def dims(self, value: ir.Value | None) -> list[int | None] | None:
        """The dimensions of a value as far as they are settled."""
        dims = known_dims(value)
        if dims is None:
            return None
        return [evaluate(d, self.bindings) if isinstance(d, str) else d for d in dims]

    def operand(self, index: int) -> ir.Value | None:
        """Operand `index` of the node, None if it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None


Recipe = Callable[[Request], "np.ndarray | float | list[int] | list[float] | None"]


def _const(value: float) -> Recipe:
    return lambda r: np.full(r.shape, value)


def _arange(r: Request) -> np.ndarray:
    return np.arange(r.count)


def _uniform(low: int, high: int) -> Recipe:
    return lambda r: r.rng.integers(low, high + 1, r.shape)


def _reshape(r: Request) -> list[int]:
    wanted, data = r.dims(r.node.outputs[0]), r.dims(r.operand(0))
    if wanted is not None and len(wanted) == r.count and sum(d is None for d in wanted) <= 1:
        return [-1 if d is None else d for d in wanted]
    if data is not None and len(data) == r.count and not int_attribute(r.node, "allowzero", 0):
        return [0] * r.count
    return [-1] + [1] * (r.count - 1) if r.count else []


def _expand(r: Request) -> list[int]:
    wanted = r.dims(r.node.outputs[0])
    if wanted is not None and len(wanted) == r.count:
        return [1 if d is None else d for d in wanted]
    return [1] * r.count


def _slice_end(r: Request) -> list[int]:
    axes = small_constant(r.operand(3))
    which = axes.reshape(-1).tolist() if axes is not None else range(r.count)
    sizes = [size_along(r.operand(0), int(a), r.bindings) for a in which]
    return [max(1, s - 1) if s is not None else 2**31 - 1 for s in sizes] or [2**31 - 1] * r.count


def _squeeze_axes(r: Request) -> list[int]:
    data = r.dims(r.operand(0)) or []
    ones = [axis for axis, size in enumerate(data) if size == 1]
    return (ones + [a for a in range(r.count) if a not in ones])[: r.count]


def _split_sizes(r: Request) -> list[int] | None:
    total = size_along(r.operand(0), int_attribute(r.node, "axis", 0), r.bindings)
    if total is None or r.count == 0:
        return None
    return [total // r.count + (i < total % r.count) for i in range(r.count)]


def _resize_sizes(r: Request) -> list[int] | None:
    data = r.dims(r.operand(0))
    if data is None or len(data) != r.count:
        return None
    return [(d or 1) * (2 if axis > 1 else 1) for axis, d in enumerate(data)]


def _resize_scales(r: Request) -> list[float]:
    return [2.0 if axis > 1 or r.count < 3 else 1.0 for axis in range(r.count)]


def _top_k(r: Request) -> list[int]:
    size = size_along(r.operand(0), int_attribute(r.node, "axis", -1), r.bindings)
    return [max(1, min(3, size if size is not None else 1))] * r.count


def _affine_size(r: Request) -> list[int]:
    batch = size_along(r.operand(0), 0, r.bindings) or 1
    return ([batch, 3] + [4] * r.count)[: r.count]


def _boxes(r: Request) -> np.ndarray:
    corners = np.sort(r.rng.uniform(0, 8, (*r.shape[:-1], 2, 2)), axis=-2)
    return corners.reshape(*r.shape[:-1], 4) if r.shape[-1:] == (4,) else np.zeros(r.shape)


def _lengths(r: Request) -> np.ndarray | None:
    """Valid lengths up to the time dimension; the first row is full, so that all of it is used."""
    op = r.node.op_type
    if op == "ReverseSequence":
        axis = int_attribute(r.node, "time_axis", 0)
    elif op == "Attention":
        axis = 1 if len(r.dims(r.operand(1)) or ()) == 3 else 2
    else:
        axis = 1 if int_attribute(r.node, "layout", 0) else 0
    size = size_along(r.operand(1 if op == "Attention" else 0), axis, r.bindings)
    if not size:
        return None
    lengths = r.rng.integers(1, size + 1, r.shape)
    lengths.reshape(-1)[:1] = size
    return lengths


def _total(r: Request) -> list[int] | None:
    """How many positions a cache holds after a step: all of it, where it does not grow."""
    new, past = size_along(r.operand(0), 1, r.bindings), size_along(r.operand(3), 2, r.bindings)
    if new is None or (past is None and r.operand(3) is not None):
        return None
    after = r.node.outputs[1] if len(r.node.outputs) > 1 else None
    grows = size_along(after, 2, r.bindings) != past
    return [(past or 0) + (new if grows else 0)] * r.count


def _last(r: Request) -> list[int] | None:
    total = _total(r)
    return None if total is None else [t - 1 for t in total]


_SIZES = _uniform(2, 4)
_REDUCTIONS = ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")

RECIPES: dict[tuple[str, int], Recipe] = {
    ("Reshape", 1): _reshape,
    ("Expand", 1): _expand,
    ("ConstantOfShape", 0): _SIZES,
    ("CenterCropPad", 1): _SIZES,
    ("Tile", 1): _uniform(1, 2),
    ("Pad", 1): _uniform(0, 1),
    ("Pad", 3): _arange,
    ("Slice", 1): _const(0),
    ("Slice", 2): _slice_end,
    ("Slice", 3): _arange,
    ("Slice", 4): _const(1),
    ("Squeeze", 1): _squeeze_axes,
    ("Unsqueeze", 1): _arange,
    **{(f"Reduce{name}", 1): _arange for name in _REDUCTIONS},
    ("Split", 1): _split_sizes,
    ("SplitToSequence", 1): lambda r: _split_sizes(r) if r.shape else 1.0,
    ("Range", 0): _const(0),
    ("Range", 1): _const(5),
    ("Range", 2): _const(1),
    ("TopK", 1): _top_k,
    ("OneHot", 1): _const(8),
    ("Resize", 1): lambda r: np.concatenate([np.zeros(r.count // 2), np.ones(r.count - r.count // 2)]),
    ("Resize", 2): _resize_scales,
    ("Resize", 3): _resize_sizes,
    ("Upsample", 1): _resize_scales,
    ("NonMaxSuppression", 2): _const(5),
    ("NonMaxSuppression", 3): _const(0.5),
    ("NonMaxSuppression", 4): _const(0.1),
    ("RoiAlign", 1): _boxes,
    ("Clip", 1): _const(-1),
    ("Clip", 2): _const(1),
    ("Dropout", 2): _const(0),
    ("CumSum", 1): _const(0),
    ("CumProd", 1): _const(0),
    ("Trilu", 1): _const(0),
    ("Loop", 0): _const(3),
    ("Loop", 1): _const(1),
    ("ReverseSequence", 1): _lengths,
    ("LSTM", 4): _lengths,
    ("GRU", 4): _lengths,
    ("RNN", 4): _lengths,
    ("Attention", 6): _lengths,
    ("AffineGrid", 1): _affine_size,
    ("DFT", 1): _const(4),
    ("STFT", 1): _const(4),
    ("STFT", 3): _const(8),
    ("HannWindow", 0): _const(8),
    ("HammingWindow", 0): _const(8),
    ("BlackmanWindow", 0): _const(8),
    ("com.microsoft::GroupQueryAttention", 5): _last,
    ("com.microsoft::GroupQueryAttention", 6): _total,
}

_POSITIVE = (0.1, 3.0)
_SCALE = (0.01, 0.1)

INTERVALS: dict[tuple[str, int], tuple[float, float]] = {
    ("Log", 0): _POSITIVE,
    ("Sqrt", 0): _POSITIVE,
    ("Div", 1): (0.5, 3.0),
    ("Reciprocal", 0): (0.5, 3.0),
    ("Mod", 1): (1.0, 5.0),
    ("Pow", 1): (0.5, 2.0),
    ("BitShift", 1): (0, 7),
    ("BatchNormalization", 4): _POSITIVE,
    ("Acos", 0): (-0.99, 0.99),
    ("Asin", 0): (-0.99, 0.99),
    ("Atanh", 0): (-0.99, 0.99),
    ("Acosh", 0): (1.01, 4.0),
    ("GridSample", 1): (-1.0, 1.0),
    ("Bernoulli", 0): (0.0, 1.0),
    ("Dropout", 1): (0.1, 0.5),
    ("Loop", 0): (2, 3),
    ("QuantizeLinear", 1): _SCALE,
    ("DequantizeLinear", 1): _SCALE,
    **{("QLinearConv", i): _SCALE for i in (1, 4, 6)},
    **{("QLinearMatMul", i): _SCALE for i in (1, 4, 6)},
}


def interval(node: ir.Node, index: int) -> tuple[float, float] | None:
    """The domain of an operand that is a plain number, or None for any number."""
    name = (node.op_type, index) if node.domain == "" else ("", index)
    if name == ("Pow", 0):
        exponent = small_constant(node.inputs[1])
        whole = exponent is not None and bool(np.all(exponent == np.round(exponent)))
        return None if whole and exponent is not None and bool(np.all(exponent > 0)) else _POSITIVE
    return INTERVALS.get(name)
