"""Rules of ONNX Runtime's own operators, as far as models bring them along."""

from __future__ import annotations

import onnx_ir as ir

from onnxlathe.infer.context import NodeContext, broadcast, rule
from onnxlathe.infer.dims import Dim, DimLike, Dims, floor_div, maximum
from onnxlathe.infer.ops_nn import conv, gemm, matmul_dims, windowed

MICROSOFT = "com.microsoft"


@rule("BiasGelu BiasSoftmax FastGelu Gelu QuickGelu GroupNorm RotaryEmbedding Trilu", domain=MICROSOFT)
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


@rule("QLinearWhere", domain=MICROSOFT)
def quantized_where(n: NodeContext) -> None:
    """Operands at 1 and 4, broadcast with the condition."""
    n.out(0, n.dtype(1), broadcast(n.dims(0), broadcast(n.dims(1), n.dims(4))))


@rule("SkipGroupNorm", domain=MICROSOFT)
def skip_group_norm(n: NodeContext) -> None:
    """The image's shape; the sum is the second output."""
    n.out(0, n.dtype(0), n.dims(0))
    n.out(1, n.dtype(0), n.dims(0))


@rule("QAttention", domain=MICROSOFT)
def quantized_attention(n: NodeContext) -> None:
    """``(B, S, H)`` from input ``(B, S, C)`` and weights ``(C, 3*H)``."""
    dims, weight = n.dims(0), n.dims(1)
    hidden: DimLike = None
    if weight is not None and len(weight) == 2 and weight[1] is not None:
        hidden = floor_div(weight[1], 3)
    n.out(0, n.dtype(3), None if dims is None else (*dims[:-1], hidden))


@rule("QEmbedLayerNormalization", domain=MICROSOFT)
def quantized_embed_layer_normalization(n: NodeContext) -> None:
    """``(B, S, hidden)`` from token ids and the word embedding."""
    ids, table = n.dims(0), n.dims(2)
    if ids is not None and table is not None:
        n.out(0, n.dtype(8), (*ids, table[-1]))
        n.out(1, ir.DataType.INT32, ids[:1])


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


@rule("MatMulNBits MatMulBnb4", domain=MICROSOFT)
def matmul_n_bits(n: NodeContext) -> None:
    """``(..., N)``, with N an attribute."""
    dims = n.dims(0)
    n.out(0, n.dtype(0), None if dims is None else (*dims[:-1], n.attr("N")))


@rule("FusedConv", domain=MICROSOFT)
def fused_conv(n: NodeContext) -> None:
    """As Conv."""
    conv(n)


@rule("NhwcConv", domain=MICROSOFT)
def nhwc_conv(n: NodeContext) -> None:
    """``(N, spatial..., M)`` of an image ``(N, spatial..., C)`` and weights ``(M, spatial..., C/group)``."""
    image, weights = n.dims(0), n.dims(1)
    if image is None or weights is None or len(image) != len(weights):
        n.out(0, n.dtype(0))
        return
    kernel = list(n.attr("kernel_shape") or weights[1:-1])
    spatial = windowed(n, (image[0], image[-1], *image[1:-1]), kernel)
    n.out(0, n.dtype(0), (image[0], *spatial, weights[0]))


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
    """``(B, S, heads*size)``; keys and values ``(B, groups, length of the cache, size)``."""
    query, past = n.dims(0), n.dims(3)
    heads, groups = n.attr("num_heads"), n.attr("kv_num_heads")
    if query is None or len(query) != 3 or not heads or not groups:
        n.out(0, n.dtype(0))
        return
    parts = heads if n.has(1) else heads + 2 * groups
    size = None if query[2] is None else floor_div(query[2], parts)
    n.out(0, n.dtype(0), (query[0], query[1], None if size is None else size * heads))
    length: DimLike = query[1]
    if n.has(3):
        total = n.scalar(6)
        known = isinstance(total, int | Dim) and past is not None and past[2] is not None
        length = maximum(total, past[2]) if known and past is not None else None  # type: ignore[arg-type]
    for output in (1, 2):
        n.out(output, n.dtype(3) if n.has(3) else n.dtype(0), (query[0], groups, length, size))


@rule("GatherBlockQuantized", domain=MICROSOFT)
def gather_block_quantized(n: NodeContext) -> None:
    """Rows of the table, whose bytes may hold several numbers each."""
    table, places = n.dims(0), n.dims(1)
    packed = n.dtype(0) == ir.DataType.UINT8
    if table is None or places is None or len(table) != 2 or n.attr("gather_axis", 0) not in (0, -2):
        n.out(0, n.dtype(2))
        return
    columns = table[1]
    if packed and isinstance(columns, int):
        columns = columns * 8 // n.attr("bits", 4)
    n.out(0, n.dtype(2), (*places, columns))


@rule("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(n: NodeContext) -> None:
    """``(B, S, hidden)`` from token ids and the word embedding."""
    ids, table = n.dims(0), n.dims(2)
    if ids is not None and table is not None:
        n.out(0, n.dtype(2), (*ids, table[-1]))
