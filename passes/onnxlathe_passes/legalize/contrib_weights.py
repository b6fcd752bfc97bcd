"""ONNX Runtime's operators on weights of a few bits (com.microsoft): MatMulNBits, GatherBlockQuantized.

Language models come with them: each block of 16 to 256 weights has a scale and a zero point. Where the zero point
leaves symmetric integers, these stay what they are, int4 or int8 behind a DequantizeLinear by blocks, for which
TensorRT has kernels; else the weights become floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import is_constant, require
from onnxlathe_passes.legalize.draft import (
    Draft,
    contents,
    element_type,
    extent,
    given,
    lowers,
    operand,
    rank_of,
    value_of,
)
from onnxlathe_passes.weights import derived, tensor_of

T = ir.DataType
Array = np.ndarray[Any, np.dtype[Any]]

BLOCKED = 21
"""Operator set since which DequantizeLinear knows blocks and int4."""


@dataclass(frozen=True)
class Packed:
    """Weights of a few bits, `[rows, columns]`, in blocks along the columns.

    Attributes:
        data: the bytes in which they lie.
        scales: one for each block.
        zeros: zero points, `[rows, blocks]`, float.
        columns, block, bits: sizes.
    """

    data: ir.TensorProtocol
    scales: ir.TensorProtocol
    zeros: Array
    columns: int
    block: int
    bits: int

    @property
    def rows(self) -> int:
        """How many there are."""
        return int(self.zeros.shape[0])

    def levels(self) -> Array:
        """The weights without their scales, float32 `[rows, columns]`."""
        wide = self.zeros.shape[1] * self.block
        numbers = unpacked(self.data.numpy().reshape(self.rows, -1), self.bits, wide)
        numbers = numbers.reshape(self.rows, -1, self.block) - self.zeros[:, :, None]
        return np.asarray(numbers.reshape(self.rows, -1)[:, : self.columns])

    def factors(self) -> Array:
        """The scales, `[rows, blocks]`."""
        factors: Array = self.scales.numpy().reshape(self.zeros.shape)
        return factors

    def floats(self) -> Array:
        """The weights as float32."""
        spread = np.repeat(self.factors().astype(np.float32), self.block, axis=1)[:, : self.columns]
        return self.levels() * spread

    def kind(self) -> ir.DataType | None:
        """The integers that have all levels, whatever the weights are; `None` where there are none."""
        if not np.array_equal(self.zeros, np.round(self.zeros)):
            return None
        low, high = -self.zeros.max(), (1 << self.bits) - 1 - self.zeros.min()
        for kind, limit in ((T.INT4, 8), (T.INT8, 128)):
            if -limit <= low and high < limit:
                return kind
        return None


def unpacked(data: Array, bits: int, count: int) -> Array:
    """Numbers that lie in bytes, low bits first, as float32: the first `count` of each row."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    values = (data.view(np.uint8)[:, :, None] >> shifts) & ((1 << bits) - 1)
    return values.reshape(data.shape[0], -1)[:, :count].astype(np.float32)


def _of_matmul(op: Draft, node: ir.Node) -> Packed:
    columns, rows = int(value_of(node, "K", op)), int(value_of(node, "N", op))
    bits, block = int(value_of(node, "bits", op, 4)), int(value_of(node, "block_size", op, 32))
    require(bits in (2, 4, 8), f"weights of {bits} bits")
    require(operand(node, 4) is None, "a list of groups")
    require(not value_of(node, "weight_prepacked", op, 0), "weights packed for one GPU")
    blocks = -(-columns // block)
    given_zeros = operand(node, 3)
    if given_zeros is None:
        zeros = np.full((rows, blocks), float(1 << (bits - 1)), np.float32)
    else:
        held = contents(given_zeros)
        if held.dtype == np.uint8:
            zeros = unpacked(held.reshape(rows, -1), bits, blocks)
        else:
            zeros = held.astype(np.float32).reshape(rows, blocks)
    data, scales = given(node, 1), given(node, 2)
    require(is_constant(data) and is_constant(scales), "its weights are no constants")
    return Packed(tensor_of(data), tensor_of(scales), zeros, columns, block, bits)


def _integers(op: Draft, node: ir.Node, weights: Packed) -> tuple[ir.Value, ir.Value]:
    """Levels and scales for DequantizeLinear, `[columns, rows]` and `[blocks, rows]`."""
    kind = weights.kind()
    require(kind is not None, "zero points that leave no symmetric integers")
    require(op.opset >= BLOCKED, "blocks of DequantizeLinear are newer than the operator set")
    assert kind is not None
    dtype: Any = ml_dtypes.int4 if kind == T.INT4 else np.int8

    def made() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(weights.levels().T.astype(dtype)), dtype=kind)

    # Computed when they are written: a large model would not fit into memory unpacked.
    shape = ir.Shape((weights.columns, weights.rows))
    levels = op.weight(ir.LazyTensor(made, dtype=kind, shape=shape))
    return levels, derived(op, given(node, 2), weights.zeros.shape[::-1], lambda: weights.factors().T)


@lowers("com.microsoft::MatMulNBits")
def matmul_of_integers(op: Draft, node: ir.Node) -> ir.Value:
    """A MatMul with weights that stay integers."""
    weights = _of_matmul(op, node)
    require(weights.columns % weights.block == 0, "a block that is not full")
    levels, scales = _integers(op, node, weights)
    return _product(op, node, op.DequantizeLinear(levels, scales, axis=0, block_size=weights.block))


@lowers("com.microsoft::MatMulNBits")
def matmul_of_floats(op: Draft, node: ir.Node) -> ir.Value:
    """A MatMul with weights that are floats now."""
    weights = _of_matmul(op, node)
    shape = (weights.columns, weights.rows)
    return _product(op, node, derived(op, given(node, 0), shape, lambda: weights.floats().T))


def _product(op: Draft, node: ir.Node, matrix: ir.Value) -> ir.Value:
    product: ir.Value = op.MatMul(given(node, 0), matrix)
    bias = operand(node, 5)
    return product if bias is None else op.Add(product, bias)


@lowers("com.microsoft::GatherBlockQuantized")
def gather_of_bytes(op: Draft, node: ir.Node) -> ir.Value:
    """Rows of a table looked up as the bytes in which they lie; only these are unpacked and scaled."""
    data, places, scales, zeros = given(node, 0), given(node, 1), given(node, 2), operand(node, 3)
    columns, bits = _table(op, node)
    block = int(value_of(node, "block_size", op, 128))
    blocks = extent(scales, -1)
    levels = _looked_up(op, data, places, bits, columns)
    factors = op.cast(op.Gather(scales, places, axis=0), T.FLOAT)
    if zeros is not None:
        points = _looked_up(op, zeros, places, bits, blocks)
    else:  # int4 lies around 8 once its bytes are read as those of uint4
        middle = 0.0 if element_type(data) == T.UINT4 else float(1 << (bits - 1))
        points = op.constant(np.float32(middle))
    rank = rank_of(places)
    wide = blocks * block
    if wide != columns:
        pads = [0] * (2 * rank + 1) + [wide - columns]
        levels = op.Pad(levels, op.ints(pads), op.constant(np.float32(0)))
    parts = op.Reshape(levels, op.ints([*[0] * rank, blocks, block]))
    if zeros is not None:
        points = op.unsqueeze(points, -1)
    real = op.Mul(op.Sub(parts, points), op.unsqueeze(factors, -1))
    result = op.Reshape(real, op.ints([*[0] * rank, wide]))
    if wide != columns:
        result = op.slice(result, -1, 0, columns)
    return op.cast(result, element_type(scales))


def _table(op: Draft, node: ir.Node) -> tuple[int, int]:
    """How many columns a table has, and how many bits its numbers; declines for what is not read here."""
    data = given(node, 0)
    require(is_constant(data), "the table is no constant")
    require(rank_of(data) == 2, "a table that is no matrix")
    axes = [int(value_of(node, k, op, d)) for k, d in (("gather_axis", 0), ("quantize_axis", 1))]
    require(axes[0] in (0, -2) and axes[1] in (1, -1), "blocks along the axis that is looked up")
    kind = element_type(data)
    require(kind in (T.UINT8, T.UINT4, T.INT4), f"a table of {kind.name.lower()}")
    if kind != T.UINT8:
        return extent(data, 1), 4
    bits = int(value_of(node, "bits", op, 4))
    require(bits in (2, 4, 8), f"numbers of {bits} bits")
    return extent(data, 1) * 8 // bits, bits


def _looked_up(op: Draft, table: ir.Value, places: ir.Value, bits: int, count: int) -> ir.Value:
    """Rows of a constant table of packed numbers as float32, `count` of each row."""
    if element_type(table) in (T.UINT4, T.INT4):
        table = _bytes_of(op, table)
    rest = op.cast(op.Gather(table, places, axis=0), T.FLOAT)
    parts: list[ir.Value] = []
    base = float(1 << bits)
    for _ in range(8 // bits - 1):
        higher = op.Floor(op.Mul(rest, op.constant(np.float32(1 / base))))
        parts.append(op.Sub(rest, op.Mul(higher, op.constant(np.float32(base)))))
        rest = higher
    parts.append(rest)
    if len(parts) == 1:
        return rest
    joined = op.Concat(*[op.unsqueeze(p, -1) for p in parts], axis=-1)
    result = op.Reshape(joined, op.ints([*[0] * rank_of(places), -1]))
    return op.slice(result, -1, 0, count)


def _bytes_of(op: Draft, table: ir.Value) -> ir.Value:
    """A table of uint4 as the bytes in which it lies; of int4 those of the numbers plus 8."""
    source, kind = tensor_of(table), element_type(table)
    rows, columns = (int(d) for d in source.shape.numpy())

    def made() -> ir.TensorProtocol:
        numbers = source.numpy().astype(np.int16) + (8 if kind == T.INT4 else 0)
        even = np.pad(numbers, ((0, 0), (0, columns % 2))).astype(np.uint8)
        return ir.Tensor(np.ascontiguousarray(even[:, ::2] | (even[:, 1::2] << 4)))

    return op.weight(ir.LazyTensor(made, dtype=T.UINT8, shape=ir.Shape((rows, -(-columns // 2)))))
