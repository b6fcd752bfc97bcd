"""Rules of ONNX Runtime's own operators, as far as models bring them along."""

from __future__ import annotations

import onnx_ir as ir

from onnxlathe.infer.context import NodeContext, broadcast, rule
from onnxlathe.infer.dims import DimLike, Dims, floor_div
from onnxlathe.infer.ops_nn import conv, gemm, matmul_dims

MICROSOFT = "com.microsoft"


@rule("BiasGelu BiasSoftmax FastGelu Gelu QuickGelu GroupNorm RotaryEmbedding", domain=MICROSOFT)
@rule("SimplifiedLayerNormalization FusedGelu")
def like_first(n: NodeContext) -> None:
    """The first input's shape and type."""
    n.out(0, n.dtype(0), n.dims(0))


@rule("SkipLayerNormalization SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(n: NodeContext) -> None:
    """The normalized sum; the sum itself is the fourth output."""
    n.out(0, n.dtype(0), n.dims(0))
    n.out(3, n.dtype(0), n.dims(0))


@rule("QuantizeLinear", domain=MICROSOFT)
def quantize(n: NodeContext) -> None:
    """The zero point's type."""
    n.out(0, n.dtype(2) if n.has(2) else ir.DataType.UINT8, n.dims(0))


@rule("DequantizeLinear", domain=MICROSOFT)
def dequantize(n: NodeContext) -> None:
    """The scale's type."""
    n.out(0, n.dtype(1), n.dims(0))


@rule("QLinearAdd QLinearMul", domain=MICROSOFT)
def quantized_binary(n: NodeContext) -> None:
    """Operands at 0 and 3, broadcast."""
    n.out(0, n.dtype(0), broadcast(n.dims(0), n.dims(3)))


@rule("QLinearSigmoid QLinearLeakyRelu QLinearSoftmax", domain=MICROSOFT)
def quantized_unary(n: NodeContext) -> None:
    """The first input's shape and type."""
    n.out(0, n.dtype(0), n.dims(0))


@rule("FusedMatMul", domain=MICROSOFT)
def fused_matmul(n: NodeContext) -> None:
    """A product of operands whose last two axes may be transposed."""
    a, b = n.dims(0), n.dims(1)
    if n.attr("transBatchA", 0) or n.attr("transBatchB", 0):
        n.out(0, n.dtype(0))
        return
    if a is not None and len(a) > 1 and n.attr("transA", 0):
        a = (*a[:-2], a[-1], a[-2])
    if b is not None and len(b) > 1 and n.attr("transB", 0):
        b = (*b[:-2], b[-1], b[-2])
    n.out(0, n.dtype(0), matmul_dims(a, b))


@rule("MatMulNBits", domain=MICROSOFT)
def matmul_n_bits(n: NodeContext) -> None:
    """``(..., N)``, with N an attribute."""
    dims = n.dims(0)
    n.out(0, n.dtype(0), None if dims is None else (*dims[:-1], n.attr("N")))


@rule("FusedConv", domain=MICROSOFT)
def fused_conv(n: NodeContext) -> None:
    """As Conv."""
    conv(n)


@rule("FusedGemm", domain=MICROSOFT)
def fused_gemm(n: NodeContext) -> None:
    """As Gemm."""
    gemm(n)


@rule("Attention", domain=MICROSOFT)
def packed_attention(n: NodeContext) -> None:
    """Input ``(B, S, C)`` and packed weights ``(C, 3*H)`` give ``(B, S, H)``."""
    dims, weight = n.dims(0), n.dims(1)
    sizes = n.attr("qkv_hidden_sizes")
    hidden: DimLike = None
    if sizes:
        hidden = sizes[2]
    elif weight is not None and len(weight) == 2 and weight[1] is not None:
        hidden = floor_div(weight[1], 3)
    n.out(0, n.dtype(0), None if dims is None else (*dims[:-1], hidden))


@rule("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(n: NodeContext) -> None:
    """``(B, S, hidden of the value)``."""
    query, value = n.dims(0), n.dims(2)
    result: Dims | None = None
    if query is not None and len(query) == 3:
        if value is not None and len(value) == 3:
            result = (query[0], query[1], value[2])
        elif value is None and not n.has(1):
            result = None  # packed
    n.out(0, n.dtype(0), result)


@rule("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention(n: NodeContext) -> None:
    """The query's shape where key and value are not packed into it."""
    n.out(0, n.dtype(0), n.dims(0) if n.has(1) else None)


@rule("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(n: NodeContext) -> None:
    """``(B, S, hidden)`` from token ids and the word embedding."""
    ids, table = n.dims(0), n.dims(2)
    if ids is not None and table is not None:
        n.out(0, n.dtype(2), (*ids, table[-1]))
