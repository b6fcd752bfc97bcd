"""What operators do to numbers that are carried in a wider type (see `carriers`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import reject, require
from onnxlathe_passes.legalize.draft import FLOATS, Draft, given, operand, value_of
from onnxlathe_passes.legalize.integers import (
    BITS,
    flipped,
    floor_div,
    is_signed,
    modulo,
    unsigned_div,
    wrap,
)
from onnxlathe_passes.legalize.minifloat import FORMATS, rounded, rounded_to_power
from onnxlathe_passes.legalize.quantize import dequantize, quantize, spread

T = ir.DataType
Result = ir.Value | Sequence[ir.Value | None]

_TYPE_ATTRIBUTES = ("to", "dtype", "output_datatype", "output_dtype", "precision")


@dataclass
class Carrying:
    """A node whose values have been retyped, and the types that they had.

    Attributes:
        op: where its replacement is made.
        node: it still has its inputs and outputs.
        ins: for each input the type that it carries, `None` where it has its own.
        outs: the same for the outputs.
        wide: carrier of each type.
    """

    op: Draft
    node: ir.Node
    ins: list[ir.DataType | None]
    outs: list[ir.DataType | None]
    wide: dict[ir.DataType, ir.DataType]

    def again(self, inputs: Sequence[ir.Value | None] | None = None) -> ir.Node:
        """The same operator on the carried values."""
        node = self.node
        made = ir.Node(
            node.domain,
            node.op_type,
            list(node.inputs if inputs is None else inputs),
            [self._attribute(a) for a in node.attributes.values()],
            num_outputs=len(node.outputs),
        )
        for old, new in zip(node.outputs, made.outputs, strict=True):
            new.type, new.shape = old.type, old.shape
            if not old.name:
                new.name = ""
        self.op.nodes.append(made)
        return made

    def _attribute(self, attribute: ir.Attr) -> ir.Attr:
        if attribute.is_ref():
            return attribute
        if attribute.name in _TYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT:
            dtype = ir.DataType(attribute.as_int()) if attribute.as_int() else None
            if dtype in self.wide and dtype in self.outs:
                return ir.AttrInt64(attribute.name, int(self.wide[dtype]))
        if attribute.type == ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            if tensor.dtype in self.wide and tensor.dtype in self.outs:
                from onnxlathe_passes.legalize.carriers import widened

                return ir.AttrTensor(
                    attribute.name, ir.Tensor(widened(tensor), dtype=self.wide[tensor.dtype])
                )
        return attribute


Rule = Callable[[Carrying], Result]
RULES: dict[tuple[str, str], Rule] = {}


def carries(*operators: str) -> Callable[[Rule], Rule]:
    """Register how operators work on carried numbers."""

    def register(function: Rule) -> Rule:
        for name in operators:
            RULES["", name] = function
        return function

    return register


def by_default(c: Carrying) -> Result:
    """An operator that moves, chooses or compares numbers needs nothing: the carrier orders them alike."""
    return list(c.again().outputs)


@carries(
    "Add", "Sub", "Mul", "Div", "Neg", "Abs", "Pow", "Sum", "MatMul", "Gemm", "CumSum", "CumProd", "ReduceSum",
    "ReduceProd", "ReduceL1", "ReduceSumSquare", "Range", "Einsum", "BitwiseNot",
)  # fmt: skip
def overflowing(c: Carrying) -> Result:
    """Arithmetic that can leave the narrow type comes back into it."""
    if c.node.op_type == "Div" and c.outs[0] == T.UINT64:
        return unsigned_div(c.op, given(c.node, 0), given(c.node, 1))
    made = c.again()
    return [_wrapped(c.op, v, d) for v, d in zip(made.outputs, c.outs, strict=True)]


def _wrapped(op: Draft, value: ir.Value, dtype: ir.DataType | None) -> ir.Value:
    return wrap(op, value, dtype) if dtype in BITS else value


@carries("Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Max", "Min", "Clip", "ReduceMax", "ReduceMin",
         "ArgMax", "ArgMin", "TopK")  # fmt: skip
def ordering(c: Carrying) -> Result:
    """Comparisons; the largest unsigned type shares its carrier with the signed one, and is shifted."""
    if T.UINT64 not in c.ins:
        return list(c.again().outputs)
    inputs = [
        v if v is None or d != T.UINT64 else flipped(c.op, v)
        for v, d in zip(c.node.inputs, c.ins, strict=True)
    ]
    made = c.again(inputs)
    return [flipped(c.op, v) if d == T.UINT64 else v for v, d in zip(made.outputs, c.outs, strict=True)]


@carries("Mod")
def mod(c: Carrying) -> Result:
    """Mod of unsigned 64-bit numbers through their quotient."""
    if c.outs[0] == T.UINT64:
        x, y = given(c.node, 0), given(c.node, 1)
        result: ir.Value = c.op.Sub(x, c.op.Mul(unsigned_div(c.op, x, y), y))
        return result
    return list(c.again().outputs)


@carries("Cast")
def cast(c: Carrying) -> Result:
    """Into a narrow type by wrapping or rounding; out of one by the carrier's own Cast."""
    return _converted(c, given(c.node, 0), c.ins[0], c.outs[0], c.node)


def _converted(
    c: Carrying, x: ir.Value, source: ir.DataType | None, target: ir.DataType | None, node: ir.Node
) -> ir.Value:
    op = c.op
    final = node.outputs[0].dtype
    if target is None:
        if source == T.UINT64 and final in (T.FLOAT, T.FLOAT16, T.BFLOAT16):
            # As two halves: a negative carrier is 2^64 more.
            high = op.Cast(_logical_half(op, x), to=int(T.FLOAT))
            low = op.Cast(modulo(op, x, 2), to=int(T.FLOAT))
            assert final is not None
            return op.cast(op.Add(op.Mul(high, 2.0), low), final)
        require(final is not None, "the type to cast to is unknown")
        assert final is not None
        return op.cast(x, final)
    if source == target:
        result: ir.Value = op.Identity(x)
        return result
    wide = c.wide[target]
    if target == T.DOUBLE:
        return op.cast(x, wide) if x.dtype != wide else op.Identity(x)
    if target in FORMATS:
        saturate = bool(value_of(node, "saturate", op, 1))
        return rounded(op, op.cast(x, T.FLOAT), target, saturate)
    if target == T.FLOAT8E8M0:
        mode = value_of(node, "round_mode", op, "up")
        mode = mode.decode() if isinstance(mode, bytes) else str(mode)
        return rounded_to_power(op, op.cast(x, T.FLOAT), mode, bool(value_of(node, "saturate", op, 1)))
    require(target in BITS, f"no way to cast to {target.name}")
    if x.dtype in FLOATS and BITS[target] >= 8:
        # What a float out of range becomes is undefined; torch and ONNX Runtime on x86 wrap, and a carried
        # number has to be one of the narrow type.
        return wrap(op, op.cast(x, wide), target)
    carried = op.cast(x, T.INT64 if x.dtype == T.INT64 else wide)
    return op.cast(wrap(op, carried, target), wide) if source != target else op.Identity(carried)


def _logical_half(op: Draft, x: ir.Value) -> ir.Value:
    half = floor_div(op, x, 2)
    result: ir.Value = op.Where(op.Less(x, 0), op.Sub(half, op.like(np.int64(-(2**63)), half)), half)
    return result


@carries("CastLike")
def cast_like(c: Carrying) -> Result:
    """Cast to the type that the second operand carries."""
    return _converted(c, given(c.node, 0), c.ins[0], c.outs[0], c.node)


@carries("QuantizeLinear")
def quantize_linear(c: Carrying) -> Result:
    """Quantization in float arithmetic."""
    op, node = c.op, c.node
    target = c.outs[0]
    if target is None:
        reject("only some of a quantization's types are carried")
    x, scale = given(node, 0), given(node, 1)
    axis, block = int(value_of(node, "axis", op, 1)), int(value_of(node, "block_size", op, 0))
    zero = operand(node, 2)
    scale_ = spread(op, scale, x, axis, block)
    zero_ = None if zero is None or target in FORMATS else spread(op, zero, x, axis, block)
    if x.dtype in (T.INT32,):
        x = op.cast(x, T.FLOAT)
    levels = quantize(op, x, scale_, zero_, target, bool(value_of(node, "saturate", op, 1)))
    return op.cast(levels, c.wide[target])


@carries("DequantizeLinear")
def dequantize_linear(c: Carrying) -> Result:
    """Dequantization in float arithmetic."""
    op, node = c.op, c.node
    x, scale, zero = given(node, 0), given(node, 1), operand(node, 2)
    axis, block = int(value_of(node, "axis", op, 1)), int(value_of(node, "block_size", op, 0))
    final = node.outputs[0].dtype or scale.dtype or T.FLOAT
    scale_ = spread(op, scale, x, axis, block)
    zero_ = None if zero is None else spread(op, zero, x, axis, block)
    return dequantize(op, x, scale_, zero_, final)


@carries("BitShift")
def bit_shift(c: Carrying) -> Result:
    """A shift knows the width of what it shifts."""
    from onnxlathe_passes.legalize.bitwise import shifted

    dtype = c.outs[0]
    require(dtype in BITS, "only integers are shifted")
    assert dtype is not None
    direction = c.node.attributes["direction"].value
    right = (direction.decode() if isinstance(direction, bytes) else direction) == "RIGHT"
    return shifted(c.op, given(c.node, 0), given(c.node, 1), dtype, right)


@carries("BitCast")
def bit_cast(c: Carrying) -> Result:
    """The same bits under the other sign."""
    op, x = c.op, given(c.node, 0)
    source, target = c.ins[0] or x.dtype, c.outs[0] or c.node.outputs[0].dtype
    require(source in BITS and target in BITS, "the bits of floats cannot be had by arithmetic")
    assert source is not None
    assert target is not None
    carrier = c.wide.get(target, target)
    if BITS[target] == 64:
        same: ir.Value = op.Identity(x)
        return same
    value = op.cast(x, T.INT64) if BITS[target] == 32 else op.cast(x, T.INT32)
    if not is_signed(target):
        return op.cast(modulo(op, value, 1 << BITS[target]), carrier)
    low = -(1 << (BITS[target] - 1))
    return op.cast(op.Add(modulo(op, op.Sub(value, low), 1 << BITS[target]), low), carrier)


@carries(
    "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "Resize", "Upsample", "Relu", "MaxUnpool"
)
def in_float(c: Carrying) -> Result:
    """Operators that exist for floats only; exact up to 24 bits."""
    op = c.op
    narrow = c.outs[0]
    if narrow is None or narrow not in BITS:
        return list(c.again().outputs)
    require(BITS[narrow] <= 16, "too wide for exact float arithmetic")
    first = op.cast(given(c.node, 0), T.FLOAT)
    made = c.again([first, *c.node.inputs[1:]])
    carrier = c.wide[narrow]
    made.outputs[0].type = ir.TensorType(T.FLOAT)
    return [op.cast(made.outputs[0], carrier), *made.outputs[1:]]
