"""Integer tensors that count: each entry is an affine expression of its own position.

Exporters compute masks and positions from ranges. `Counters.affine(value)` says that a value is
`base + Σ slope[a]·index[a]`, with numbers or expressions over the model's dimensions, and
`Counters.truth(value)` what a comparison of such values always is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import Dims, Expr, constant, dims_of, known, lower
from onnxlathe.rewrite import attribute, is_constant
from onnxlathe_passes.conditions import Array, from_front, numbers, operand, uniform
from onnxlathe_passes.noop_views import permutation

_READ = 1 << 16
_DEEP = 40
_INTEGERS = frozenset({ir.DataType.INT64, ir.DataType.INT32})
_VIEWS = ("Unsqueeze", "Squeeze", "Reshape", "Flatten")

Parts = tuple[Any, tuple[Any, ...]]


@dataclass(frozen=True)
class Affine:
    """`base + Σ slope[a]·index[a]` for a tensor of shape `dims`; the slope of an axis of size 1 is 0."""

    base: Expr
    slope: tuple[Expr, ...]
    dims: Dims

    def counts(self, strides: Sequence[Expr]) -> bool:
        """Whether the entries count from 0 with these steps along the axes that are not of size 1."""
        wanted = [0 if size == 1 else by for by, size in zip(strides, self.dims, strict=True)]
        return self.base == 0 and list(self.slope) == wanted

    @property
    def steady(self) -> bool:
        """Whether all entries are the same."""
        return all(by == 0 for by in self.slope)

    def across(self, dims: Dims) -> tuple[Expr, ...] | None:
        """The slopes when the tensor is broadcast to `dims`.

        `None` where an axis that counts might be a single one that is repeated.
        """
        if len(dims) < len(self.dims):
            return None
        own = dims[len(dims) - len(self.dims) :]
        if any(by != 0 and size != wide for by, size, wide in zip(self.slope, self.dims, own, strict=True)):
            return None
        return (0,) * (len(dims) - len(self.dims)) + self.slope

    @property
    def row_major(self) -> bool:
        """Whether the entries are 0, 1, 2, … in the order of memory."""
        strides: list[Any] = []
        product: Any = 1
        for size in reversed(self.dims):
            strides.append(product)
            if size is None:
                return False
            product = product * size
        return self.counts(strides[::-1])


class Counters:
    """What values count, each found out once."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self._affine: dict[ir.Value, Affine | None] = {}
        self._truth: dict[ir.Value, bool | None] = {}
        self._depth = 0

    def affine(self, value: ir.Value | None) -> Affine | None:
        """The value as an affine expression of the position, if it is known to be one."""
        dims = dims_of(value) if value is not None else None
        if value is None or dims is None or value.dtype not in _INTEGERS:
            return None
        if value not in self._affine:
            self._affine[value] = None
            self._affine[value] = self._found(value, dims)
        return self._affine[value]

    def _found(self, value: ir.Value, dims: Dims) -> Affine | None:
        parts = _given(value, dims)
        node = value.producer()
        if parts is None and node is not None and node.domain == "" and self._depth < _DEEP:
            step = _STEPS.get(node.op_type)
            self._depth += 1
            parts = step(self, node, dims) if step is not None else None
            self._depth -= 1
        if parts is None or len(parts[1]) != len(dims):
            return None
        slope = tuple(0 if size == 1 else by for by, size in zip(parts[1], dims, strict=True))
        return Affine(parts[0], slope, dims)

    def truth(self, value: ir.Value | None) -> bool | None:
        """What all entries of a boolean tensor are, in every run; `None` where that is not known."""
        if value is None or value.dtype not in (ir.DataType.BOOL, None):
            return None
        if value not in self._truth:
            self._truth[value] = None
            self._depth += 1
            self._truth[value] = self._verdict(value) if self._depth < _DEEP else None
            self._depth -= 1
        return self._truth[value]

    def _verdict(self, value: ir.Value) -> bool | None:
        if is_constant(value):
            found = uniform(value)
            return found if isinstance(found, bool) else None
        node = value.producer()
        if node is None or node.domain != "":
            return None
        if node.op_type in ("Expand", "Transpose", "Identity", *_VIEWS):
            return self.truth(node.inputs[0])
        if node.op_type == "Not":
            inner = self.truth(node.inputs[0])
            return None if inner is None else not inner
        if node.op_type in ("And", "Or"):
            sides = [self.truth(v) for v in node.inputs]
            decisive = node.op_type == "Or"
            return decisive if decisive in sides else None if None in sides else not decisive
        return self._compared(node)

    def _compared(self, node: ir.Node) -> bool | None:
        """Comparisons of counters whose difference has a sign."""
        if node.op_type not in ("Equal", "GreaterOrEqual", "Greater", "LessOrEqual", "Less"):
            return None
        a, b = (self.affine(v) for v in node.inputs)
        if node.op_type.startswith("Less"):
            a, b = b, a
        whole = dims_of(node.outputs[0])
        parts = (
            _combined("Sub", a, b, whole) if a is not None and b is not None and whole is not None else None
        )
        if parts is None:
            return None
        base, slopes = parts
        if node.op_type == "Equal":
            steady = isinstance(base, int) and all(by == 0 for by in slopes)
            return base == 0 if steady else None
        least = [lower(part) for part in (base, *slopes)]
        if any(part is None or part < 0 for part in least[1:]) or least[0] is None:
            return None
        # a - b is at least its base; nothing is said of the other direction.
        return True if least[0] >= (0 if node.op_type.endswith("Equal") else 1) else None


def _given(value: ir.Value, dims: Dims) -> Parts | None:
    """What is known without looking at what computes it."""
    contents = known(value)
    if contents is not None and contents.size:
        first = contents.reshape(-1)[0]
        if (
            first is not None
            and not isinstance(first, (float, bool))
            and all(e == first for e in contents.flat)
        ):
            return first, (0,) * len(dims)
    if not is_constant(value):
        return None
    array = constant(value, max_bytes=_READ)
    return None if array is None else counted(array)


def counted(array: Array) -> Parts | None:
    """Base and slopes of an array of integers, if its entries are affine expressions of their position."""
    if not array.size or array.dtype.kind not in "iu":
        return None
    base = int(array.reshape(-1)[0])
    slope = []
    expected = np.full(array.shape, base, np.int64)
    for axis, size in enumerate(array.shape):
        by = int(np.take(array, [1], axis).reshape(-1)[0]) - base if size > 1 else 0
        expected = expected + by * np.arange(size).reshape(-1, *(1,) * (array.ndim - axis - 1))
        slope.append(by)
    return (base, tuple(slope)) if bool((array == expected).all()) else None


def _range(counters: Counters, node: ir.Node, dims: Dims) -> Parts | None:
    start, step = (_number(operand(node, index)) for index in (0, 2))
    return (start, (step,)) if isinstance(start, int) and isinstance(step, int) and step > 0 else None


def _number(value: ir.Value | None) -> Any:
    contents = known(value) if value is not None else None
    return contents.reshape(-1)[0] if contents is not None and contents.size == 1 else None


def _arithmetic(counters: Counters, node: ir.Node, dims: Dims) -> Parts | None:
    a, b = (counters.affine(v) for v in node.inputs)
    return _combined(node.op_type, a, b, dims) if a is not None and b is not None else None


def _combined(kind: str, a: Affine, b: Affine, dims: Dims) -> Parts | None:
    x, y = a.across(dims), b.across(dims)
    if x is None or y is None:
        return None
    if kind == "Add":
        return a.base + b.base, tuple(i + j for i, j in zip(x, y, strict=True))
    if kind == "Sub":
        return a.base - b.base, tuple(i - j for i, j in zip(x, y, strict=True))
    if any(step != 0 for step in x) and any(step != 0 for step in y):
        return None
    steps = tuple(i * b.base + a.base * j for i, j in zip(x, y, strict=True))
    return a.base * b.base, steps


def _cast(counters: Counters, node: ir.Node, dims: Dims) -> Parts | None:
    x = node.inputs[0]
    if x is not None and x.dtype == ir.DataType.BOOL:
        verdict = counters.truth(x)
        return None if verdict is None else (int(verdict), (0,) * len(dims))
    inner = counters.affine(x)
    return None if inner is None else (inner.base, inner.slope)


def _expand(counters: Counters, node: ir.Node, dims: Dims) -> Parts | None:
    inner = counters.affine(node.inputs[0])
    slope = inner.across(dims) if inner is not None else None
    return None if inner is None or slope is None else (inner.base, slope)


def _transpose(counters: Counters, node: ir.Node, dims: Dims) -> Parts | None:
    inner, perm = counters.affine(node.inputs[0]), permutation(node, counters.opset)
    return None if inner is None or perm is None else (inner.base, tuple(inner.slope[axis] for axis in perm))


def _view(counters: Counters, node: ir.Node, dims: Dims) -> Parts | None:
    """Views that only add or remove axes of size 1."""
    inner = counters.affine(node.inputs[0])
    if inner is None or None in dims:
        return None
    long = [(size, by) for size, by in zip(inner.dims, inner.slope, strict=True) if size != 1]
    if inner.steady:
        return inner.base, (0,) * len(dims)
    if [size for size, _ in long] != [size for size in dims if size != 1]:
        return None
    rest = iter(long)
    return inner.base, tuple(0 if size == 1 else next(rest)[1] for size in dims)


def _slice(counters: Counters, node: ir.Node, dims: Dims) -> Parts | None:
    """Where a Slice ends, which may be computed, does not matter."""
    inner = counters.affine(node.inputs[0])
    if inner is None or counters.opset < 10:
        return None
    starts, axes = numbers(operand(node, 1)), numbers(operand(node, 3))
    if inner.steady:
        return inner.base, inner.slope
    if starts is None or (axes is None and operand(node, 3) is not None):
        return None
    if operand(node, 4) is not None and uniform(operand(node, 4)) != 1:
        return None
    places = from_front(range(len(starts)) if axes is None else axes, len(dims))
    if places is None or any(start < 0 for start in starts):
        return None
    base: Any = inner.base
    for axis, start in zip(places, starts, strict=True):
        base = base + inner.slope[axis] * start
    return base, inner.slope


def _concat(counters: Counters, node: ir.Node, dims: Dims) -> Parts | None:
    """Parts of which each goes on where the one before ends."""
    parts = [counters.affine(v) for v in node.inputs]
    axes = from_front([int(attribute(node, "axis", counters.opset))], len(dims))
    if axes is None or not all(parts):
        return None
    (axis,), found = axes, [part for part in parts if part is not None]
    first, second = found[0], found[min(1, len(found) - 1)]
    steps = [part.slope[axis] for part in found if part.dims[axis] != 1]
    step: Any = steps[0] if steps else second.base - first.base
    place: Any = 0
    for part in found:
        others = [by for a, by in enumerate(part.slope) if a != axis]
        if part.base != first.base + step * place or others != [
            by for a, by in enumerate(first.slope) if a != axis
        ]:
            return None
        if (part.dims[axis] != 1 and part.slope[axis] != step) or part.dims[axis] is None:
            return None
        place = place + part.dims[axis]
    return first.base, tuple(step if a == axis else by for a, by in enumerate(first.slope))


def _sum(counters: Counters, node: ir.Node, dims: Dims) -> Parts | None:
    inner = counters.affine(node.inputs[0])
    return (0, (0,) * len(dims)) if inner is not None and inner.steady and inner.base == 0 else None


def _gather(counters: Counters, node: ir.Node, dims: Dims) -> Parts | None:
    """Whatever is taken of what is the same everywhere."""
    inner = counters.affine(node.inputs[0])
    return (inner.base, (0,) * len(dims)) if inner is not None and inner.steady else None


def _gather_nd(counters: Counters, node: ir.Node, dims: Dims) -> Parts | None:
    inner = counters.affine(node.inputs[0])
    joined = node.inputs[1].producer() if node.inputs[1] is not None else None
    if inner is None or inner.steady or joined is None or joined.op_type != "Concat":
        return None if inner is None or not inner.steady else (inner.base, (0,) * len(dims))
    positions = dims_of(joined.outputs[0]) or ()
    axis = from_front([int(attribute(joined, "axis", counters.opset))], len(positions))
    if attribute(node, "batch_dims", counters.opset) or axis != [len(positions) - 1]:
        return None
    base: Any = inner.base
    slope: list[Any] = [0] * (len(positions) - 1)
    for by, value in zip(inner.slope, joined.inputs, strict=False):
        part = counters.affine(value)
        # Places counted from the end are not followed.
        least = [lower(entry) for entry in (part.base, *part.slope)] if part is not None else []
        if part is None or part.dims[-1] != 1 or any(e is None or e < 0 for e in least):
            return None
        base = base + by * part.base
        slope = [old + by * new for old, new in zip(slope, part.slope[:-1], strict=True)]
    return base, (*slope, *inner.slope[len(joined.inputs) :])


_STEPS: dict[str, Callable[[Counters, ir.Node, Dims], Parts | None]] = {
    "Range": _range,
    "Add": _arithmetic,
    "Sub": _arithmetic,
    "Mul": _arithmetic,
    "Cast": _cast,
    "Identity": _cast,
    "Expand": _expand,
    "Transpose": _transpose,
    "Slice": _slice,
    "Concat": _concat,
    "CumSum": _sum,
    "Gather": _gather,
    "GatherElements": _gather,
    "GatherND": _gather_nd,
    **dict.fromkeys(_VIEWS, _view),
}
