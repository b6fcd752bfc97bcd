"""Resize with constant sizes as one product with a constant matrix for each axis: exact for every mode.

Row `i` of an axis's matrix holds the weights of the inputs that output `i` is made of. Antialiasing,
`half_pixel_symmetric`, `exclude_outside` and crops change nothing but these numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import require
from onnxlathe_passes.legalize.draft import (
    FLOATS,
    Draft,
    contents,
    element_type,
    extent,
    given,
    lowers,
    operand,
    rank_of,
    static_dims,
    static_or_none,
    value_of,
)

T = ir.DataType
Array = np.ndarray[Any, np.dtype[Any]]
_LARGEST = 1 << 24  # entries of a matrix


@dataclass(frozen=True)
class Axis:
    """How one axis is resized."""

    size: int
    out: int
    scale: float
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class Method:
    """A Resize node's attributes."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    outside: bool
    antialias: bool

    def source(self, i: int, axis: Axis) -> float:
        """The input coordinate of output `i`."""
        scale, size, out = axis.scale, axis.size, axis.out
        if self.coordinates == "asymmetric":
            return i / scale
        if self.coordinates == "align_corners":
            length = scale * size
            return 0.0 if length == 1 else i * (size - 1) / (length - 1)
        if self.coordinates == "pytorch_half_pixel":
            return (i + 0.5) / scale - 0.5 if scale * size > 1 else -0.5
        if self.coordinates == "tf_half_pixel_for_nn":
            return (i + 0.5) / scale
        if self.coordinates == "tf_crop_and_resize":
            if out > 1:
                return axis.start * (size - 1) + i * (axis.end - axis.start) * (size - 1) / (out - 1)
            return 0.5 * (axis.start + axis.end) * (size - 1)
        if self.coordinates == "half_pixel_symmetric":
            adjusted = out / (scale * size)
            return size / 2 * (1 - adjusted) + (i + 0.5) / scale - 0.5
        return (i + 0.5) / scale - 0.5

    def weights(self, axis: Axis) -> tuple[Array, Array]:
        """The matrix, and which outputs lie outside of the input (for `tf_crop_and_resize`)."""
        matrix = np.zeros((axis.out, axis.size))
        outside = np.zeros(axis.out, dtype=bool)
        for i in range(axis.out):
            x = self.source(i, axis)
            if self.coordinates == "tf_crop_and_resize" and not 0 <= x <= axis.size - 1:
                outside[i] = True
                continue
            if self.mode == "nearest":
                matrix[i, min(max(self._nearest(x), 0), axis.size - 1)] = 1.0
                continue
            places, weights = self._taps(x, axis.scale)
            if self.outside:
                weights = np.where((places < 0) | (places >= axis.size), 0.0, weights)
                weights = weights / weights.sum()
            np.add.at(matrix[i], np.clip(places, 0, axis.size - 1), weights)
        return matrix, outside

    def _nearest(self, x: float) -> int:
        if self.nearest == "round_prefer_ceil":
            return math.floor(x + 0.5)
        if self.nearest == "floor":
            return math.floor(x)
        if self.nearest == "ceil":
            return math.ceil(x)
        return math.ceil(x - 0.5)

    def _taps(self, x: float, scale: float) -> tuple[Array, Array]:
        """Input places (which may lie outside) and their weights."""
        stretch = min(scale, 1.0) if self.antialias else 1.0
        radius = (1.0 if self.mode == "linear" else 2.0) / stretch
        if self.antialias:
            low, high = math.floor(x - radius) + 1, math.ceil(x + radius) - 1
            places = np.arange(low, high + 1)
        else:
            reach = 1 if self.mode == "linear" else 2
            places = np.arange(math.floor(x) - reach + 1, math.floor(x) + reach + 1)
        distance = np.abs(places - x) * stretch
        weights = self._kernel(distance)
        if self.antialias:
            weights = weights / weights.sum()
        return places, weights

    def _kernel(self, t: Array) -> Array:
        if self.mode == "linear":
            return np.asarray(np.maximum(0.0, 1.0 - t))
        a = self.cubic
        near = (a + 2) * t**3 - (a + 3) * t**2 + 1
        far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
        return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@lowers("Resize", "Upsample")
def resize(op: Draft, node: ir.Node) -> ir.Value:
    """Y = W_h X W_w^T, an axis at a time."""
    x = given(node, 0)
    dtype = element_type(x)
    rank = rank_of(x)
    method = Method(
        _text(value_of(node, "mode", op, "nearest")),
        _text(value_of(node, "coordinate_transformation_mode", op, "half_pixel")),
        _text(value_of(node, "nearest_mode", op, "round_prefer_floor")),
        float(value_of(node, "cubic_coeff_a", op, -0.75)),
        bool(value_of(node, "exclude_outside", op, 0)),
        bool(value_of(node, "antialias", op, 0)),
    )
    axes = _axes(op, node, x, method)
    fill = float(value_of(node, "extrapolation_value", op, 0.0))
    value = x if dtype in FLOATS else op.cast(x, T.FLOAT)
    for i, axis in axes.items():
        if axis.size == axis.out and axis.scale == 1.0 and axis.start == 0.0 and axis.end == 1.0:
            continue
        require(axis.size * axis.out <= _LARGEST, "too large for a matrix of weights")
        matrix, outside = method.weights(axis)
        if method.mode == "nearest":
            # A choice, not a product: exact for NaN and infinities, too.
            value = op.Gather(value, op.ints(matrix.argmax(axis=1)), axis=i)
        elif i == rank - 1:
            value = op.MatMul(value, op.like(matrix.T, value))
        elif i == rank - 2:
            value = op.MatMul(op.like(matrix, value), value)
        else:
            order = [j for j in range(rank) if j != i] + [i]
            turned = op.MatMul(op.Transpose(value, perm=order), op.like(matrix.T, value))
            value = op.Transpose(turned, perm=[order.index(j) for j in range(rank)])
        if outside.any():
            mask = op.constant(outside.reshape([-1] + [1] * (rank - i - 1)))
            value = op.Where(mask, op.like(fill, value), value)
    if value is x:
        value = op.Identity(x)
    if dtype in FLOATS:
        return value
    return op.cast(value if method.mode == "nearest" else op.Round(value), dtype)


def _axes(op: Draft, node: ir.Node, x: ir.Value, method: Method) -> dict[int, Axis]:
    """The axes that are resized, from sizes or scales. Open ones have to stay as they are."""
    dims = static_or_none(x) or []
    rank = len(dims)
    named = value_of(node, "axes", op, None)
    which = [int(a) % rank for a in named] if named else list(range(rank))
    scales: Array | None
    sizes: Array | None
    roi: Array | None
    if node.op_type == "Upsample":
        scales, sizes, roi = contents(given(node, 1)), None, None
    else:
        scale_operand, size_operand = operand(node, 2), operand(node, 3)
        sizes = (
            contents(size_operand) if size_operand is not None and static_dims(size_operand) != [0] else None
        )
        scales = contents(scale_operand) if sizes is None and scale_operand is not None else None
        roi_operand = operand(node, 1)
        crops = method.coordinates == "tf_crop_and_resize" and roi_operand is not None
        roi = contents(roi_operand) if crops else None
    require(sizes is not None or scales is not None, "neither scales nor sizes")
    axes: dict[int, Axis] = {}
    policy = _text(value_of(node, "keep_aspect_ratio_policy", op, "stretch"))
    for k, i in enumerate(which):
        start, end = (float(roi[k]), float(roi[k + len(which)])) if roi is not None else (0.0, 1.0)
        size = dims[i]
        if not isinstance(size, int):
            stays = scales is not None and scales[k] == 1.0 and (start, end) == (0.0, 1.0)
            require(stays, "resizes an open dimension")
            continue
        if scales is not None:
            scale = float(scales[k])
            span = end - start if roi is not None else 1.0
            axes[i] = Axis(size, math.floor(size * span * scale), scale, start, end)
            continue
        assert sizes is not None
        scale = int(sizes[k]) / size
        out = int(sizes[k])
        if policy != "stretch":
            ratios = [int(s) / extent(x, j) for s, j in zip(sizes, which, strict=True)]
            scale = min(ratios) if policy == "not_larger" else max(ratios)
            out = math.floor(scale * size + 0.5)
        axes[i] = Axis(size, out, scale, start, end)
    return axes
