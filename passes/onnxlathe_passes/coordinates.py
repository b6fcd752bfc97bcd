"""Integer tensors that count: each entry is an affine expression of its own position.

Exporters compute masks and positions from ranges. `Affine.of(value)` says that a value is
`base + Σ slope[a]·index[a]`, with numbers or expressions over the model's dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import Dims, Expr, constant, dims_of, known, lower
from onnxlathe.rewrite import is_constant
from onnxlathe_passes.conditions import operand, uniform
from onnxlathe_passes.noop_views import permutation
from onnxlathe_passes.slices import cuts

_DEEP = 12
_READ = 1 << 16
_INTEGERS = frozenset({ir.DataType.INT64, ir.DataType.INT32})


@dataclass(frozen=True)
class Affine:
    """`base + Σ slope[a]·index[a]` for a tensor of shape `dims`; the slope of an axis of size 1 is 0."""

    base: Expr
    slope: tuple[Expr, ...]
    dims: Dims

    @classmethod
    def of(cls, value: ir.Value | None, opset: int, depth: int = 0) -> Affine | None:
        """What a value counts, if it does."""
        dims = dims_of(value) if value is not None else None
        if value is None or dims is None or value.dtype not in _INTEGERS or depth > _DEEP:
            return None
        found = _given(value, dims)
        node = value.producer()
        if found is None and node is not None and node.domain == "":
            found = _computed(node, dims, opset, depth + 1)
        if found is None or len(found[1]) != len(dims):
            return None
        slope = tuple(0 if size == 1 else by for by, size in zip(found[1], dims, strict=True))
        return cls(found[0], slope, dims)

    def counts(self, strides: Sequence[Expr]) -> bool:
        """Whether the entries count from 0 with these steps along the axes that are not of size 1."""
        wanted = [0 if size == 1 else by for by, size in zip(strides, self.dims, strict=True)]
        return self.base == 0 and list(self.slope) == wanted

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


Parts = tuple[Any, tuple[Any, ...]]


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
    if array is None or not array.size or array.dtype.kind not in "iu":
        return None
    base = int(array.reshape(-1)[0])
    slope = []
    expected = np.full(array.shape, base, np.int64)
    for axis, size in enumerate(array.shape):
        by = int(np.take(array, [1], axis).reshape(-1)[0]) - base if size > 1 else 0
        expected = expected + by * np.arange(size).reshape(-1, *(1,) * (array.ndim - axis - 1))
        slope.append(by)
    return (base, tuple(slope)) if bool((array == expected).all()) else None


def _computed(node: ir.Node, dims: Dims, opset: int, depth: int) -> Parts | None:
    inputs = [v for v in node.inputs if v is not None]
    if node.op_type == "Range":
        start, step = _number(operand(node, 0)), _number(operand(node, 2))
        return (start, (step,)) if isinstance(start, int) and isinstance(step, int) and step > 0 else None
    if node.op_type in ("Add", "Sub", "Mul") and len(inputs) == 2:
        a, b = (Affine.of(v, opset, depth) for v in inputs)
        return _combined(node.op_type, a, b, dims) if a is not None and b is not None else None
    inner = Affine.of(inputs[0], opset, depth) if inputs else None
    if inner is None:
        return None
    if node.op_type in ("Identity", "Cast"):
        return inner.base, inner.slope
    if node.op_type == "Expand":
        slope = inner.across(dims)
        return None if slope is None else (inner.base, slope)
    if node.op_type == "Transpose":
        perm = permutation(node, opset)
        return None if perm is None else (inner.base, tuple(inner.slope[axis] for axis in perm))
    if node.op_type in ("Unsqueeze", "Squeeze", "Reshape", "Flatten"):
        return _viewed(node, inner, dims, opset)
    if node.op_type == "Slice":
        parts = cuts(node, opset)
        if parts is None or any(cut.start < 0 or cut.step != 1 for cut in parts.values()):
            return None if not _from_start(node, opset) else (inner.base, inner.slope)
        base: Any = inner.base
        for axis, cut in parts.items():
            base = base + inner.slope[axis] * cut.start
        return base, inner.slope
    return None


def _from_start(node: ir.Node, opset: int) -> bool:
    """Whether a Slice, whose end may be computed, takes what is at the start."""
    return (
        opset >= 10
        and uniform(operand(node, 1)) == 0
        and (operand(node, 4) is None or uniform(operand(node, 4)) == 1)
    )


def _number(value: ir.Value | None) -> Any:
    contents = known(value) if value is not None else None
    return contents.reshape(-1)[0] if contents is not None and contents.size == 1 else None


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


def _viewed(node: ir.Node, inner: Affine, dims: Dims, opset: int) -> Parts | None:
    """Views that only add or remove axes of size 1."""
    long = [(size, by) for size, by in zip(inner.dims, inner.slope, strict=True) if size != 1]
    if [size for size, _ in long] != [size for size in dims if size != 1] or None in dims:
        return None
    rest = iter(long)
    return inner.base, tuple(0 if size == 1 else next(rest)[1] for size in dims)


def truth(value: ir.Value | None, opset: int, depth: int = 0) -> bool | None:
    """What all entries of a boolean tensor are, in every run; `None` where that is not known."""
    if value is None or depth > _DEEP:
        return None
    if is_constant(value):
        found = uniform(value)
        return found if isinstance(found, bool) else None
    node = value.producer()
    if node is None or node.domain != "":
        return None
    if node.op_type in ("Expand", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Identity", "Flatten"):
        return truth(node.inputs[0], opset, depth + 1)
    if node.op_type == "Not":
        inner = truth(node.inputs[0], opset, depth + 1)
        return None if inner is None else not inner
    if node.op_type in ("And", "Or"):
        sides = [truth(v, opset, depth + 1) for v in node.inputs]
        decisive = node.op_type == "Or"
        return decisive if decisive in sides else None if None in sides else not decisive
    return _compared(node, opset)


def _compared(node: ir.Node, opset: int) -> bool | None:
    """Comparisons of counters, where one side can never be less."""
    if node.op_type not in ("GreaterOrEqual", "Greater", "LessOrEqual", "Less"):
        return None
    a, b = (Affine.of(v, opset) for v in node.inputs)
    if node.op_type.startswith("Less"):
        a, b = b, a
    if a is None or b is None:
        return None
    whole = dims_of(node.outputs[0])
    parts = _combined("Sub", a, b, whole) if whole is not None else None
    if parts is None:
        return None
    least = [lower(part) for part in (parts[0], *parts[1])]
    if any(part is None or part < 0 for part in least[1:]) or least[0] is None:
        return None
    strict = node.op_type in ("Greater", "Less")
    # a - b is at least its base; nothing is said of the other direction.
    return True if least[0] >= (1 if strict else 0) else None
