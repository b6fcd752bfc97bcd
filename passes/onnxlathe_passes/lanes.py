"""Values side by side that together are the parts of one larger value, as a Split makes them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import Dims, constant, dims_of
from onnxlathe.rewrite import attribute, is_constant
from onnxlathe_passes.conditions import from_front
from onnxlathe_passes.regroup import static

ELEMENTWISE = frozenset(
    {
        *("Abs", "Cast", "Ceil", "Clip", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid"),
        *("HardSwish", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu"),
        *("Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh"),
        *("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Where", "Equal", "And", "Or"),
    }
)


_BLOCK = 8  # neighbouring elements


@dataclass(frozen=True)
class Lane:
    """Values that are the parts of one: part i is `values[i]`, of size `sizes[i]` along `axis`.

    A part is `None` where what follows it differs: see `Step.leftovers`.
    """

    values: tuple[ir.Value | None, ...]
    axis: int
    sizes: tuple[int, ...]

    def parts(self) -> list[tuple[int, int]]:
        """Where each part starts and ends along the axis."""
        return list(pairwise(accumulate(self.sizes, initial=0)))


def split_lane(split: ir.Node, opset: int) -> Lane | None:
    """The parts of a Split, where their sizes are known."""
    shapes = [dims_of(v) for v in split.outputs]
    if any(s is None for s in shapes) or len(split.outputs) < 2:
        return None
    axes = from_front([int(attribute(split, "axis", opset))], len(shapes[0] or ()))
    sizes = static([s[axes[0]] for s in shapes if s is not None]) if axes else None
    if sizes is None or axes is None:
        return None
    return Lane(tuple(split.outputs), axes[0], tuple(sizes))


def in_blocks(dims: Dims, axis: int) -> bool:
    """Whether parts along the axis consist of blocks that are worth a Gather, rather than being cut out."""
    return math.prod(d for d in dims[axis + 1 :] if isinstance(d, int)) >= _BLOCK


def equal_constants(a: ir.Value, b: ir.Value) -> bool:
    """Whether two small constants are the same."""
    if not (is_constant(a) and is_constant(b)) or a.dtype != b.dtype or dims_of(a) != dims_of(b):
        return False
    x, y = constant(a, max_bytes=1 << 12), constant(b, max_bytes=1 << 12)
    return x is not None and y is not None and x.shape == y.shape and bool(np.all(x == y))
