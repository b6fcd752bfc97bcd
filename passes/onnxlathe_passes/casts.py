"""Changes of element type that change nothing, and chains of them."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe.rewrite import Builder, NodeRule, attribute
from onnxlathe_passes.conditions import producer

T = ir.DataType

# Each integer type's smallest range of bits: [-2^bits, 2^bits), or [0, 2^bits) without a sign.
_INTEGERS = {
    T.BOOL: (0, 1),
    T.UINT4: (0, 4),
    T.UINT8: (0, 8),
    T.UINT16: (0, 16),
    T.UINT32: (0, 32),
    T.UINT64: (0, 64),
    T.INT4: (1, 3),
    T.INT8: (1, 7),
    T.INT16: (1, 15),
    T.INT32: (1, 31),
    T.INT64: (1, 63),
}
# Each floating-point type's bits of precision; integers up to 2^bits are exact.
_PRECISION = {T.BFLOAT16: 8, T.FLOAT16: 11, T.FLOAT: 24, T.DOUBLE: 53}
_WIDER = {T.BFLOAT16: (T.FLOAT, T.DOUBLE), T.FLOAT16: (T.FLOAT, T.DOUBLE), T.FLOAT: (T.DOUBLE,)}


def is_lossless(source: ir.DataType, target: ir.DataType) -> bool:
    """Whether `target` has every value of `source`, so that a Cast there and back again is nothing."""
    if source == target:
        return True
    if source in _INTEGERS and source != T.BOOL and target == T.BOOL:
        return False
    if source in _INTEGERS:
        signed, bits = _INTEGERS[source]
        if target in _INTEGERS:
            target_signed, target_bits = _INTEGERS[target]
            return signed <= target_signed and bits <= target_bits
        return bits <= _PRECISION.get(target, 0)
    return target in _WIDER.get(source, ())


def target_type(node: ir.Node, opset: int) -> ir.DataType | None:
    """The element type that a Cast makes."""
    to = attribute(node, "to", opset)
    return None if to is None else ir.DataType(to)


class NoopCast(NodeRule):
    """Cast(x) to the type that x has = x; CastLike(x, y) = Cast(x) to the type of y."""

    name = "noop_cast"
    group = "tidy"
    min_opset = 6
    reach = 1
    example = """
    %y = Cast(%x, to=FLOAT)      # x: float[batch, 8]
    →
    %x
    """

    visits = ("Cast", "CastLike")

    def visit(self, op: Builder, node: ir.Node) -> Any:
        x = node.inputs[0]
        if x is None or x.dtype is None:
            return None
        if node.op_type == "Cast":
            return x if target_type(node, op.opset) == x.dtype else None
        like = node.inputs[1].dtype if node.inputs[1] is not None else None
        if like is None:
            return None
        saturate = node.attributes.get("saturate")
        options = {} if saturate is None else {"saturate": attribute(node, "saturate", op.opset)}
        return x if like == x.dtype else op.Cast(x, to=int(like), **options)


class CastChain(NodeRule):
    """Cast(Cast(x, a), b) = Cast(x, b), where type a has every value of x's type.

    A Cast that rounds, cuts off or saturates on the way stays: float → int → float is not nothing.
    """

    name = "cast_chain"
    group = "tidy"
    min_opset = 6
    example = """
    %a = Cast(%x, to=FLOAT)        # x: float16[batch, 8]
    %y = Cast(%a, to=INT64)
    →
    %y = Cast(%x, to=INT64)
    """

    visits = ("Cast",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        inner = producer(node.inputs[0], "Cast")
        x = inner.inputs[0] if inner is not None else None
        if inner is None or x is None or x.dtype is None:
            return None
        through, to = target_type(inner, op.opset), target_type(node, op.opset)
        if through is None or to is None or not is_lossless(x.dtype, through):
            return None
        if to == x.dtype:
            return x
        options = {
            k: attribute(node, k, op.opset) for k in ("saturate", "round_mode") if k in node.attributes
        }
        return op.Cast(x, to=int(to), **options)
