"""Pooling with dilation, with other norms, with indices; and its inverse."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import reject, require
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
    static_or_none,
    value_of,
    wanted,
)

T = ir.DataType
_MOST = 128  # kernel elements that are taken apart


@dataclass(frozen=True)
class Window:
    """How a kernel moves over an input of static size; one entry per spatial axis."""

    dims: list[int]
    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begin: list[int]
    end: list[int]
    outputs: list[int]

    @classmethod
    def of(cls, node: ir.Node, op: Draft) -> Window:
        """Read a pooling node."""
        x = given(node, 0)
        dims = [extent(x, axis) for axis in range(2, rank_of(x))]
        rank = len(dims)
        kernel, strides, dilations, pads, auto = _spans(node, op, rank)
        ceil = bool(value_of(node, "ceil_mode", op, 0))
        begin, end, outputs = pads[:rank], pads[rank:], []
        for i, size in enumerate(dims):
            reach = dilations[i] * (kernel[i] - 1) + 1
            if auto in ("SAME_UPPER", "SAME_LOWER"):
                out = -(-size // strides[i])
                total = max(0, (out - 1) * strides[i] + reach - size)
                small, large = total // 2, total - total // 2
                begin[i], end[i] = (small, large) if auto == "SAME_UPPER" else (large, small)
            else:
                if auto == "VALID":
                    begin[i] = end[i] = 0
                span = size + begin[i] + end[i] - reach
                out = (-(-span // strides[i]) if ceil else span // strides[i]) + 1
                # A window that would start in the padding at the end does not count.
                if ceil and (out - 1) * strides[i] >= size + begin[i]:
                    out -= 1
            outputs.append(out)
        return cls(dims, kernel, strides, dilations, begin, end, outputs)

    def offsets(self) -> list[tuple[int, ...]]:
        """All places in the kernel."""
        return list(itertools.product(*(range(k) for k in self.kernel)))

    def starts(self, offset: Sequence[int]) -> list[np.ndarray]:
        """For each axis the input positions (negative in the padding) that a kernel place meets."""
        return [
            np.arange(self.outputs[i]) * self.strides[i] + o * self.dilations[i] - self.begin[i]
            for i, o in enumerate(offset)
        ]

    def padded(self, op: Draft, x: ir.Value, fill: float) -> ir.Value:
        """The input with as much around it as any window reaches."""
        after = [
            max(
                0,
                (self.outputs[i] - 1) * self.strides[i] + self.dilations[i] * (k - 1) + 1 - self.begin[i] - n,
            )
            for i, (k, n) in enumerate(zip(self.kernel, self.dims, strict=True))
        ]
        if not any(self.begin) and not any(after):
            return x
        pads = op.ints([0, 0, *self.begin, 0, 0, *after])
        result: ir.Value = op.Pad(x, pads, op.like(fill, x))
        return result

    def part(self, op: Draft, padded: ir.Value, offset: Sequence[int]) -> ir.Value:
        """What one kernel place sees in all windows."""
        starts = [o * d for o, d in zip(offset, self.dilations, strict=True)]
        ends = [s + (n - 1) * t + 1 for s, n, t in zip(starts, self.outputs, self.strides, strict=True)]
        axes = list(range(2, 2 + len(starts)))
        result: ir.Value = op.Slice(
            padded, op.ints(starts), op.ints(ends), op.ints(axes), op.ints(self.strides)
        )
        return result


def _spans(node: ir.Node, op: Draft, rank: int) -> tuple[list[int], list[int], list[int], list[int], str]:
    """Kernel, strides, dilations, pads (begins, then ends) and `auto_pad`, over `rank` spatial axes."""
    kernel = [int(k) for k in node.attributes["kernel_shape"].value]
    strides = [int(s) for s in value_of(node, "strides", op, [1] * rank) or [1] * rank]
    dilations = [int(d) for d in value_of(node, "dilations", op, [1] * rank) or [1] * rank]
    pads = [int(p) for p in value_of(node, "pads", op, [0] * 2 * rank) or [0] * 2 * rank]
    auto = value_of(node, "auto_pad", op, "NOTSET")
    return kernel, strides, dilations, pads, auto.decode() if isinstance(auto, bytes) else auto


@lowers("MaxPool")
def max_pool(op: Draft, node: ir.Node) -> Sequence[ir.Value | None]:
    """The largest of one slice for each place of the kernel, and where the first of these came from."""
    x = given(node, 0)
    dtype = element_type(x)
    window = Window.of(node, op)
    require(len(window.offsets()) <= _MOST, "its kernel is too large")
    data = x if dtype in FLOATS else op.cast(x, T.FLOAT)
    padded = window.padded(op, data, -math.inf)
    indices = wanted(node, 1)
    best: ir.Value | None = None
    where: ir.Value | None = None
    for offset in window.offsets():
        part = window.part(op, padded, offset)
        place = (
            op.constant(_flat(window, offset, bool(value_of(node, "storage_order", op, 0))))
            if indices
            else None
        )
        if best is None:
            best, where = part, place
            if place is not None:
                where = op.Expand(place, op.ints([1, 1, *window.outputs]))
            continue
        if place is not None:
            # NaN is the largest of all, and the first one wins.
            better = op.Or(op.Greater(part, best), op.And(op.IsNaN(part), op.Not(op.IsNaN(best))))
            where = op.Where(better, place, where)
        best = op.Max(best, part)
    assert best is not None
    if where is not None:
        where = op.Add(where, _planes(op, x, window))
    return [op.cast(best, dtype), where]


@lowers("MaxPool")
def max_pool_of_any_size(op: Draft, node: ir.Node) -> ir.Value:
    """The same for an image of open size: the slices end so far from its end as the kernel reaches."""
    x = given(node, 0)
    dtype, rank = element_type(x), rank_of(x) - 2
    kernel, strides, dilations, pads, auto = _spans(node, op, rank)
    require(
        auto in ("NOTSET", "VALID") and not value_of(node, "ceil_mode", op, 0),
        "its padding follows from the size",
    )
    require(not wanted(node, 1), "its indices follow from the size")
    require(math.prod(kernel) <= _MOST, "its kernel is too large")
    data = x if dtype in FLOATS else op.cast(x, T.FLOAT)
    if any(pads) and auto == "NOTSET":
        data = op.Pad(data, op.ints([0, 0, *pads[:rank], 0, 0, *pads[rank:]]), op.like(-math.inf, data))
    axes = op.ints(list(range(2, rank + 2)))
    parts = []
    for offset in itertools.product(*(range(k) for k in kernel)):
        starts = [o * d for o, d in zip(offset, dilations, strict=True)]
        left = [d * (k - 1) - s for d, k, s in zip(dilations, kernel, starts, strict=True)]
        ends = [-n if n else np.iinfo(np.int64).max for n in left]
        parts.append(op.Slice(data, op.ints(starts), op.ints(ends), axes, op.ints(strides)))
    best = parts[0]
    for part in parts[1:]:
        best = op.Max(best, part)
    return op.cast(best, dtype) if best is not x else op.Identity(x)


def _planes(op: Draft, x: ir.Value, window: Window) -> ir.Value:
    """Where each plane begins in the flat input; the batch may be open."""
    channels, plane, axes = extent(x, 1), int(np.prod(window.dims)), list(range(1, len(window.dims) + 1))
    first = np.arange(channels, dtype=np.int64) * plane
    batch = (static_or_none(x) or [None])[0]
    inner = op.constant(first.reshape([1, channels] + [1] * len(window.dims)))
    if isinstance(batch, int):
        number = op.constant(np.arange(batch, dtype=np.int64))
    else:
        size = op.squeeze(op.Shape(x, start=0, end=1), 0)
        number = op.Range(op.constant(np.int64(0)), size, op.constant(np.int64(1)))
    result: ir.Value = op.Add(op.unsqueeze(op.Mul(number, channels * plane), *axes, axes[-1] + 1), inner)
    return result


def _flat(window: Window, offset: Sequence[int], column_major: bool) -> np.ndarray:
    grid = np.meshgrid(*window.starts(offset), indexing="ij")
    strides = np.ones(len(window.dims), dtype=np.int64)
    order = range(1, len(window.dims)) if column_major else range(len(window.dims) - 2, -1, -1)
    for i in order:
        strides[i] = (
            strides[i - 1] * window.dims[i - 1] if column_major else strides[i + 1] * window.dims[i + 1]
        )
    flat = sum(g.astype(np.int64) * s for g, s in zip(grid, strides, strict=True))
    return np.asarray(flat)[None, None]


@lowers("AveragePool")
def average_pool(op: Draft, node: ir.Node) -> ir.Value:
    """The sum of one slice for each place of the kernel, over how many of them count."""
    x = given(node, 0)
    window = Window.of(node, op)
    require(len(window.offsets()) <= _MOST, "its kernel is too large")
    padded = window.padded(op, x, 0.0)
    include = bool(value_of(node, "count_include_pad", op, 0))
    counts = np.ones(window.outputs)
    for i in range(len(window.dims)):
        per_axis = np.zeros(window.outputs[i])
        for k in range(window.kernel[i]):
            at = np.arange(window.outputs[i]) * window.strides[i] + k * window.dilations[i] - window.begin[i]
            low, high = (-window.begin[i], window.dims[i] + window.end[i]) if include else (0, window.dims[i])
            per_axis += (at >= low) & (at < high)
        counts = counts * per_axis.reshape([-1] + [1] * (len(window.dims) - i - 1))
    total = _sum(op, [window.part(op, padded, offset) for offset in window.offsets()])
    result: ir.Value = op.Div(total, op.like(counts[None, None], x))
    return result


@lowers("LpPool")
def lp_pool(op: Draft, node: ir.Node) -> ir.Value:
    """The p-norm of one slice for each place of the kernel."""
    x = given(node, 0)
    window = Window.of(node, op)
    require(len(window.offsets()) <= _MOST, "its kernel is too large")
    p = int(value_of(node, "p", op, 2))
    powers = op.Pow(op.Abs(x), op.like(float(p), x))
    padded = window.padded(op, powers, 0.0)
    total = _sum(op, [window.part(op, padded, offset) for offset in window.offsets()])
    result: ir.Value = op.Pow(total, op.like(1.0 / p, x))
    return result


def _sum(op: Draft, parts: list[ir.Value]) -> ir.Value:
    total = parts[0]
    for part in parts[1:]:
        total = op.Add(total, part)
    return total


@lowers("MaxUnpool")
def max_unpool(op: Draft, node: ir.Node) -> ir.Value:
    """Values written to where they came from, in a plane of zeros."""
    x, indices = given(node, 0), given(node, 1)
    rank = rank_of(x) - 2
    inner = [extent(x, axis) for axis in range(1, rank + 2)]  # channels and plane; the batch may be open
    batch = (static_or_none(x) or [None])[0]
    kernel = [int(k) for k in node.attributes["kernel_shape"].value]
    strides = [int(s) for s in value_of(node, "strides", op, [1] * rank) or [1] * rank]
    pads = [int(p) for p in value_of(node, "pads", op, [0] * 2 * rank) or [0] * 2 * rank]
    image = inner[:1] + [
        (inner[i + 1] - 1) * strides[i] - pads[i] - pads[i + rank] + kernel[i] for i in range(rank)
    ]
    size = int(np.prod(image))
    if isinstance(batch, int):
        zeros = op.constant(np.zeros(batch * size, dtype=element_type(x).numpy()))
    else:
        zero = ir.Tensor(np.zeros(1, dtype=element_type(x).numpy()))
        zeros = op.ConstantOfShape(op.Mul(op.Shape(x, start=0, end=1), op.ints([size])), value=zero)
    flat = op.ScatterElements(zeros, op.reshape(indices, [-1]), op.reshape(x, [-1]), axis=0)
    result = op.reshape(flat, [batch if isinstance(batch, int) else -1, *image])
    shape = operand(node, 2)
    if shape is None:
        return result
    if not isinstance(batch, int):
        reject("an output size for an open batch")
    plain, final = [batch, *image], [int(n) for n in contents(shape)]
    if final != plain:  # the indices are those of the plain size; a larger output is filled up at the end
        require(all(f >= p for f, p in zip(final, plain, strict=True)), "an output that is cut")
        missing = [f - p for f, p in zip(final, plain, strict=True)]
        result = op.Pad(result, op.ints([0] * len(final) + missing))
    return result
