"""Constants in another type: what would be lost, and the conversion, which happens when the file is written.

A weight is converted once for all its consumers of that type. It is looked at before, a piece at a time,
because float16 ends at 65504 and begins at 6e-8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxlathe import FileTensor
from onnxlathe.precision import FLOAT16, type_name
from onnxlathe_passes.conditions import Array

LARGEST = 65504.0
"""The largest float16."""
MASK = 49152.0
"""What stands for a mask's "minus infinity": large enough that e^-49152 is 0, and that scores added to it do not
change it (neighbours are 32 apart), small enough that they do not push it over the edge."""

_NORMAL = 2.0**-14  # below it, float16 loses digits
_ZERO = 2.0**-25  # at and below it, float16 is 0
_OVERFLOW = 65520.0  # from it on, float16 is infinite
_SCALAR_ERROR = 2.0**-8  # relative error of a scalar that is a different number


@dataclass(frozen=True)
class Loss:
    """What float16 would make of a constant.

    Attributes:
        size: number of elements.
        largest: largest finite magnitude.
        overflows: finite elements beyond the range.
        vanishing: elements that would become 0.
        subnormal: elements that would lose digits (the vanishing included).
        mean_square: root of the mean of the squares, of what is not 0.
        scalar_error: relative error, for a single number; 0 otherwise.
    """

    size: int = 0
    largest: float = 0.0
    overflows: int = 0
    vanishing: int = 0
    subnormal: int = 0
    mean_square: float = 0.0
    scalar_error: float = 0.0

    @property
    def underflow(self) -> str:
        """Why the constant is too small for float16; empty if it is not."""
        if self.size == 1 and self.scalar_error > _SCALAR_ERROR:
            return f"{self.largest:.3g} would be off by {min(1.0, self.scalar_error):.0%}"
        if self.size > 1 and 0 < self.mean_square < _NORMAL:
            return f"its elements are about {self.mean_square:.1g}, below float16's normal range"
        return ""


def measure(tensor: ir.TensorProtocol) -> Loss:
    """What float16 would make of a float32 constant, read a piece at a time."""
    size = overflows = vanishing = subnormal = nonzero = 0
    largest = squares = scalar_error = 0.0
    with np.errstate(all="ignore"):
        for piece in _pieces(tensor):
            magnitude = np.abs(piece)
            size += magnitude.size
            top = float(magnitude.max(initial=0.0))
            if not top < _OVERFLOW:
                finite = magnitude[np.isfinite(magnitude)]
                overflows += int(np.count_nonzero(finite >= _OVERFLOW))
                top = float(finite.max(initial=0.0))
                magnitude = finite
            largest = max(largest, top)
            small = int(np.count_nonzero(magnitude < _NORMAL))
            zeros = 0
            if small:
                zeros = int(magnitude.size - np.count_nonzero(magnitude))
                subnormal += small - zeros
                vanishing += int(np.count_nonzero(magnitude <= _ZERO)) - zeros
            nonzero += magnitude.size - zeros
            squares += float(np.dot(magnitude, magnitude)) if top < 1e15 else np.inf
            if tensor.size == 1 and top and top < _OVERFLOW:
                exact = float(piece[0])
                scalar_error = abs(float(np.float16(exact)) - exact) / abs(exact)
    mean_square = (squares / nonzero) ** 0.5 if nonzero else 0.0
    return Loss(size, largest, overflows, vanishing, subnormal, mean_square, scalar_error)


def _pieces(tensor: ir.TensorProtocol) -> Iterator[Array]:
    if isinstance(tensor, FileTensor) and tensor.dtype == ir.DataType.FLOAT:
        for chunk in tensor.chunks():
            yield np.frombuffer(chunk, np.dtype("<f4"))
    else:
        yield np.asarray(tensor.numpy()).astype(np.float32).reshape(-1)


def converted(tensor: ir.TensorProtocol, dtype: ir.DataType, limit: float | None = None) -> ir.TensorProtocol:
    """A constant in another type, computed when it is asked for.

    Args:
        tensor: a floating-point tensor.
        dtype: the type wanted.
        limit: finite elements are cut off at ±`limit`; None leaves what is too large to become infinite.
    """

    def convert() -> ir.TensorProtocol:
        array = np.asarray(tensor.numpy())
        if limit is not None:
            cut = np.clip(array, -limit, limit)
            array = np.where(np.isinf(array), array, cut)
        with np.errstate(all="ignore"):
            result = array.astype(dtype.numpy())
        return ir.Tensor(np.ascontiguousarray(result).reshape(array.shape), dtype=dtype)

    kept = tensor.nbytes <= 1 << 12
    return ir.LazyTensor(convert, dtype=dtype, shape=ir.Shape(tensor.shape.numpy()), cache=kept)


class Weights:
    """Constants of the model in the types that are asked for, each made once.

    Args:
        fresh: gives a name that no value has yet.
    """

    def __init__(self, fresh: Callable[[str], str]) -> None:
        self._fresh = fresh
        self._made: dict[tuple[int, ir.DataType, float | None], ir.Value] = {}
        self._kept: list[ir.TensorProtocol] = []  # identities stay taken
        self._losses: dict[int, Loss] = {}
        self._lossy: dict[int, Loss] = {}
        self.converted = 0

    def loss(self, tensor: ir.TensorProtocol, dtype: ir.DataType) -> Loss:
        """What would be lost; nothing where the type has float32's range."""
        if dtype != FLOAT16 or tensor.dtype == FLOAT16:
            return Loss(tensor.size)
        found = self._losses.get(id(tensor))
        if found is None:
            self._kept.append(tensor)
            found = self._losses[id(tensor)] = measure(tensor)
        return found

    def get(
        self, value: ir.Value, tensor: ir.TensorProtocol, dtype: ir.DataType, limit: float | None
    ) -> ir.Value:
        """The constant `value`, which holds `tensor`, in another type: an initializer of its own graph."""
        graph = value.graph if value.producer() is None else value.producer().graph  # type: ignore[union-attr]
        assert isinstance(graph, ir.Graph)
        key = (id(tensor), dtype, limit)
        made = self._made.get(key)
        if made is None or made.graph is not graph:
            self._kept.append(tensor)
            content = converted(tensor, dtype, limit)
            made = ir.Value(
                name=self._fresh(f"{value.name}_{type_name(dtype)}"),
                shape=ir.Shape(tensor.shape.numpy()),
                type=ir.TensorType(dtype),
                const_value=content,
            )
            graph.register_initializer(made)
            self._made[key] = made
            self.converted += 1
            if dtype == FLOAT16 and id(tensor) in self._losses:
                self._lossy[id(tensor)] = self._losses[id(tensor)]
        return made

    def underflows(self) -> tuple[int, int, int]:
        """Of all that became float16: tensors with elements that vanish, such elements, all elements of those."""
        lossy = [loss for loss in self._lossy.values() if loss.vanishing]
        return len(lossy), sum(loss.vanishing for loss in lossy), sum(loss.size for loss in lossy)
