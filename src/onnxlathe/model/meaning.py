"""What the graph demands of an input: where its values go, and which values make sense there.

`uses_of` follows an input forward through operators that only move values around (Cast, Reshape, Concat,
…) or shift them by constants, into nested graphs and functions, and returns every operand position where
the values arrive. `limits` turns positions that index something (embedding tables, Gather, ScatterND,
OneHot, …) into a range; `spatial_rank` tells images and audio from other numbers.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .shapes import DimSpec, dims_of_value, evaluate

_MAX_STEPS = 32  # how many operators the values of an input are followed through
_MAX_VISITED = 4000
_SMALL = 65536  # elements of a constant that is looked into

# Operator → the operands whose values come out again unchanged, if in another place or shape. None: all.
_MOVES: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys(
        ("Cast", "CastLike", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Slice", "Transpose"),
        (0,),
    ),
    **dict.fromkeys(
        ("Expand", "Tile", "Split", "Gather", "GatherElements", "GatherND", "Dropout", "Pad"), (0,)
    ),
    **dict.fromkeys(("SequenceConstruct", "Concat"), None),
    "Where": (1, 2),
    "ScatterND": (0, 2),
    "ScatterElements": (0, 2),
}
_SHIFTS = ("Add", "Sub", "Mul")


@dataclass(frozen=True)
class Use:
    """One operand position that the values of an input reach.

    Attributes:
        node: the consuming node.
        index: which operand of it.
        direct: True when nothing but moves of the whole tensor lie between (no Concat, no arithmetic).
        scale, low, high: the values arrive as ``scale * x + c`` with ``low <= c <= high``.
    """

    node: ir.Node
    index: int
    direct: bool = True
    scale: float = 1.0
    low: float = 0.0
    high: float = 0.0

    @property
    def place(self) -> tuple[str, int]:
        """Operator and operand number; operators outside the ONNX domains are written ``domain::Op``."""
        domain = self.node.domain
        name = self.node.op_type if domain in ("", "ai.onnx.ml") else f"{domain}::{self.node.op_type}"
        return name, self.index


def uses_of(value: ir.Value, functions: Mapping[tuple[str, str, str], ir.Function]) -> list[Use]:
    """Every operand position that the values of `value` reach, nearest first, within a bounded search."""
    found: list[Use] = []
    seen: set[ir.Value] = {value}
    queue: deque[tuple[ir.Value, Use | None, int]] = deque([(value, None, 0)])
    while queue and len(seen) < _MAX_VISITED:
        current, path, steps = queue.popleft()
        for node, index in current.uses():
            use = _arrive(path, node, index)
            found.append(use)
            if steps >= _MAX_STEPS:
                continue
            for onward, next_path in _leave(use, functions):
                if onward not in seen:
                    seen.add(onward)
                    queue.append((onward, next_path, steps + 1))
    return found


def _arrive(path: Use | None, node: ir.Node, index: int) -> Use:
    if path is None:
        return Use(node, index)
    return Use(node, index, path.direct, path.scale, path.low, path.high)


def _leave(use: Use, functions: Mapping[tuple[str, str, str], ir.Function]) -> Iterator[tuple[ir.Value, Use]]:
    """The values that carry what arrived at `use` further, and how it was changed on the way."""
    node, index = use.node, use.index
    function = functions.get(node.op_identifier())
    if function is not None:
        yield function.inputs[index], use
        return
    if node.op_type in ("Loop", "Scan") and node.domain == "":
        body = node.attributes["body"].as_graph()
        if index < len(body.inputs):
            yield body.inputs[index], use
        return
    if node.op_type in _MOVES and node.domain == "":
        operands = _MOVES[node.op_type]
        if operands is None or index in operands:
            direct = use.direct and node.op_type not in ("Concat", "Slice", "Split", "Gather")
            for output in node.outputs:
                yield output, Use(node, index, direct, use.scale, use.low, use.high)
    elif node.op_type in _SHIFTS and node.domain == "" and len(node.inputs) == 2:
        yield node.outputs[0], _shift(use, small_constant(node.inputs[1 - index]))


def _shift(use: Use, by: np.ndarray | None) -> Use:
    """The effect of Add, Sub or Mul with a constant; with anything else the offset is taken for zero."""
    node, index = use.node, use.index
    if by is None or by.size == 0 or by.dtype.kind not in "iuf":
        return Use(node, index, False, use.scale, use.low, use.high)
    small, large = float(by.min()), float(by.max())
    if node.op_type == "Mul":
        factor = large if small == large else 1.0
        ends = (use.low * factor, use.high * factor)
        return Use(node, index, False, use.scale * factor, min(ends), max(ends))
    if node.op_type == "Add":
        return Use(node, index, False, use.scale, use.low + small, use.high + large)
    if index == 0:  # x - c
        return Use(node, index, False, use.scale, use.low - large, use.high - small)
    return Use(node, index, False, -use.scale, small - use.high, large - use.low)  # c - x


def small_constant(value: ir.Value | None) -> np.ndarray | None:
    """The content of a small constant (initializer or Constant node), or None."""
    if value is None:
        return None
    tensor = value.const_value
    producer = value.producer()
    if tensor is None and producer is not None and producer.op_type == "Constant" and producer.domain == "":
        for name, attr in producer.attributes.items():
            if name == "value":
                tensor = attr.as_tensor()
            elif name in ("value_int", "value_float", "value_ints", "value_floats"):
                return np.asarray(attr.value)
    if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.size > _SMALL:
        return None
    array: np.ndarray = tensor.numpy()
    return array


def known_dims(value: ir.Value | None) -> tuple[DimSpec, ...] | None:
    """Dimensions of a value, also those of tables that reach their use through Cast, Transpose and such."""
    for _ in range(8):
        if value is None:
            return None
        if value.const_value is not None:
            return tuple(int(d) for d in value.const_value.shape.numpy())
        dims = dims_of_value(value)
        if dims is not None and not all(d is None for d in dims):
            return dims
        producer = value.producer()
        if producer is None:
            return dims
        if producer.op_type == "Constant" and "value" in producer.attributes:
            return tuple(int(d) for d in producer.attributes["value"].as_tensor().shape.numpy())
        if producer.op_type == "Transpose":
            inner = known_dims(producer.inputs[0])
            perm = producer.attributes.get("perm")
            if inner is None:
                return None
            order = perm.as_ints() if perm is not None else range(len(inner))[::-1]
            return tuple(inner[i] for i in order)
        if producer.op_type not in ("Identity", "Cast", "CastLike", "DequantizeLinear", "QuantizeLinear"):
            return dims
        value = producer.inputs[0]
    return None


def size_along(value: ir.Value | None, axis: int, bindings: Mapping[str, int]) -> int | None:
    """The size of one dimension of a value, evaluated under `bindings`; None if unknown."""
    dims = known_dims(value)
    if dims is None or not -len(dims) <= axis < len(dims):
        return None
    dim = dims[axis]
    return evaluate(dim, bindings) if isinstance(dim, str) else dim


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute of a node, or its default (also when it refers to a function's attribute)."""
    attr = node.attributes.get(name)
    if attr is None or attr.is_ref():
        return default
    return attr.as_int()


def _index_limit(use: Use, bindings: Mapping[str, int]) -> int | None:
    """How many different indices the operand position `use` can take; 0 if it is not an index at all."""
    node = use.node
    match use.place:
        case (("Gather" | "GatherElements" | "ScatterElements" | "Scatter"), 1):
            return size_along(node.inputs[0], int_attribute(node, "axis", 0), bindings)
        case (("GatherND" | "ScatterND"), 1):
            depth = size_along(node.inputs[1], -1, bindings) or 1
            first = int_attribute(node, "batch_dims", 0)
            sizes = [size_along(node.inputs[0], first + i, bindings) for i in range(depth)]
            return min((s for s in sizes if s is not None), default=None)
        case "OneHot", 0:
            depth_value = small_constant(node.inputs[1])
            return 8 if depth_value is None else int(depth_value.reshape(-1)[0])
        case (("NegativeLogLikelihoodLoss" | "SoftmaxCrossEntropyLoss"), 1):
            return size_along(node.inputs[0], 1, bindings)
        case "RoiAlign", 2:
            return size_along(node.inputs[0], 0, bindings)
        case "RotaryEmbedding", 3:
            return size_along(node.inputs[1], 0, bindings)
        case ("com.microsoft::EmbedLayerNormalization", (0 | 1)) as place:
            return size_along(node.inputs[2 if place[1] == 0 else 4], 0, bindings)
        case "com.microsoft::RotaryEmbedding", 1:
            return size_along(node.inputs[2], 0, bindings)
        case "com.microsoft::GroupQueryAttention", 9:
            return size_along(node.inputs[7], 0, bindings) if len(node.inputs) > 7 else 0
        case "com.microsoft::GatherBlockQuantized", 1:
            return size_along(node.inputs[0], 0, bindings)
        case "TensorScatter", 2:
            return 1
        case "MaxUnpool", 1:
            return 4
        case "SequenceAt", 1:
            return 1
    return 0


def limits(uses: list[Use], bindings: Mapping[str, int]) -> tuple[int, int] | None:
    """The smallest and largest integer that is a valid index at every use, or None if none is an index.

    An index into something of unknown size may only be 0, an index that is shifted on its way (position
    ids with an offset) gets a range shifted back.
    """
    low, high, found = -(2**31), 2**31 - 1, False
    for use in uses:
        limit = _index_limit(use, bindings)
        if limit == 0 or use.scale == 0:
            continue
        found = True
        ends = (-use.low / use.scale, ((limit or 1) - 1 - use.high) / use.scale)
        low, high = max(low, math.ceil(min(ends))), min(high, math.floor(max(ends)))
    if not found:
        return None
    if high >= 0:
        low = max(low, 0)  # an offset may allow negative numbers; ids are not
    return low, max(low, high)


_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Cast", "Identity", "Clip", "Relu", "Pad", "BatchNormalization"}
_ELEMENTWISE |= {
    "Unsqueeze",
    "InstanceNormalization",
    "Concat",
    "Transpose",
    "QuantizeLinear",
    "DequantizeLinear",
}
_SPATIAL = {"Conv", "ConvInteger", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "Resize", "Upsample"}
_SPATIAL |= {"QLinearConv", "GlobalAveragePool", "SpaceToDepth", "DepthToSpace", "GridSample", "DeformConv"}


def spatial_rank(value: ir.Value) -> int | None:
    """Number of spatial dimensions of the first convolution or pooling that `value` flows into, or None."""
    seen: set[ir.Value] = {value}
    queue: deque[tuple[ir.Value, int]] = deque([(value, 0)])
    while queue:
        current, steps = queue.popleft()
        for node, index in current.uses():
            if node.op_type in _SPATIAL and index == 0:
                weight = known_dims(node.inputs[1]) if node.op_type.startswith("Conv") else None
                dims = weight or known_dims(node.inputs[0])
                if dims is not None and len(dims) > 2:
                    return len(dims) - 2
            elif node.op_type in _ELEMENTWISE and steps < 16:
                queue.extend((o, steps + 1) for o in node.outputs if o not in seen)
                seen.update(node.outputs)
    return None
