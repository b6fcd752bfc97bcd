"""Rules of matrix products, convolutions, pooling and normalization."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxlathe.infer.context import NodeContext, broadcast, broadcast_dim, rule
from onnxlathe.infer.dims import DimLike, Dims, ceil_div, floor_div, minimum

INT64, INT32 = ir.DataType.INT64, ir.DataType.INT32


def matmul_dims(a: Dims | None, b: Dims | None) -> Dims | None:
    """The shape of a matrix product as numpy's ``matmul`` gives it; None when a rank is unknown."""
    if not a or not b:
        return None
    if len(a) == 1 and len(b) == 1:
        return ()
    if len(a) == 1:
        return (*b[:-2], b[-1])
    if len(b) == 1:
        return a[:-1]
    batch = broadcast(a[:-2], b[:-2])
    return None if batch is None else (*batch, a[-2], b[-1])


@rule("MatMul MatMulInteger QLinearMatMul")
def matmul(n: NodeContext) -> None:
    """Matrix product; the quantized forms have other operands between, and other result types."""
    op = n.node.op_type
    if op == "QLinearMatMul":
        n.out(0, n.dtype(7), matmul_dims(n.dims(0), n.dims(3)))
    else:
        n.out(0, INT32 if op == "MatMulInteger" else n.dtype(0), matmul_dims(n.dims(0), n.dims(1)))


@rule("Gemm")
def gemm(n: NodeContext) -> None:
    """``(M, N)``, each from its operand, transposed or not."""
    a, b = n.dims(0), n.dims(1)
    rows: DimLike = None
    columns: DimLike = None
    if a is not None and len(a) == 2:
        rows = a[1] if n.attr("transA", 0) else a[0]
    if b is not None and len(b) == 2:
        columns = b[0] if n.attr("transB", 0) else b[1]
    n.out(0, n.dtype(0), (rows, columns))


@rule("Einsum")
def einsum(n: NodeContext) -> None:
    """Each letter of the output has the size that it has in the operands (1 is broadcast)."""
    equation = n.attr("equation", "").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    dtype = n.dtype(0)
    sizes: dict[str, DimLike] = {}
    dots: Dims = ()
    for i, term in enumerate(terms):
        dims = n.dims(i)
        if dims is None:
            n.out(0, dtype)
            return
        before, ellipsis, after = term.partition("...")
        extra = len(dims) - len(before) - len(after)
        if extra < 0 or (extra and not ellipsis):
            n.out(0, dtype)
            return
        if ellipsis:
            dots = broadcast(dots, dims[len(before) : len(before) + extra]) or ()
        letters = [*zip(before, dims, strict=False), *zip(after, dims[len(before) + extra :], strict=True)]
        for letter, size in letters:
            sizes[letter] = size if sizes.get(letter) is None else broadcast_dim(sizes[letter], size)
    if not arrow:
        counted = [c for c in left if c.isalpha()]
        right = ("..." if "..." in left else "") + "".join(
            sorted(c for c in set(counted) if counted.count(c) == 1)
        )
    before, ellipsis, after = right.partition("...")
    middle = dots if ellipsis else ()
    n.out(0, dtype, (*[sizes.get(c) for c in before], *middle, *[sizes.get(c) for c in after]))


def window_dim(
    dim: DimLike,
    kernel: DimLike,
    stride: int,
    dilation: int,
    pads: int,
    auto_pad: str,
    ceil: bool = False,
    pad_before: int = 0,
) -> DimLike:
    """The size along one spatial axis after sliding a window over it.

    Args:
        dim, kernel: sizes of the input and of the window.
        pads: padding before and after, together.
        auto_pad: the operator's attribute.
        ceil: round up, but never start a window in the padding at the end (pooling).
        pad_before: the padding before (used with ``ceil``).
    """
    if dim is None:
        return None
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        return ceil_div(dim, stride)
    if kernel is None:
        return None
    total = dim if auto_pad == "VALID" else dim + pads
    room = total - ((kernel - 1) * dilation + 1)
    if not ceil:
        return floor_div(room, stride) + 1
    count = ceil_div(room, stride) + 1
    limit = floor_div(dim + (0 if auto_pad == "VALID" else pad_before) - 1, stride) + 1
    return minimum(count, limit)


def windowed(n: NodeContext, dims: Dims, kernel: list[DimLike]) -> list[DimLike]:
    rank = len(dims) - 2
    strides = n.attr("strides") or (1,) * rank
    dilations = n.attr("dilations") or (1,) * rank
    pads = n.attr("pads") or (0,) * (2 * rank)
    auto_pad = n.attr("auto_pad", "NOTSET")
    ceil = bool(n.attr("ceil_mode", 0))
    return [
        window_dim(
            dims[2 + i],
            kernel[i],
            strides[i],
            dilations[i],
            pads[i] + pads[i + rank],
            auto_pad,
            ceil,
            pads[i],
        )
        for i in range(rank)
    ]


@rule("Conv ConvInteger QLinearConv DeformConv")
def conv(n: NodeContext) -> None:
    """``(N, M, spatial...)``; symbolic spatial dimensions give exact expressions."""
    op = n.node.op_type
    weight_at = 3 if op == "QLinearConv" else 1
    dims, weight = n.dims(0), n.dims(weight_at)
    dtype = INT32 if op == "ConvInteger" else n.dtype(7) if op == "QLinearConv" else n.dtype(0)
    if dims is None or len(dims) < 3:
        n.out(0, dtype, None if weight is None else (None,) * len(weight))
        return
    shape = n.attr("kernel_shape")
    if not shape:
        shape = (None,) * (len(dims) - 2) if weight is None else weight[2:]
    kernel: list[DimLike] = list(shape)
    if len(kernel) != len(dims) - 2:
        n.out(0, dtype)
        return
    n.out(0, dtype, (dims[0], None if weight is None else weight[0], *windowed(n, dims, kernel)))


@rule("ConvTranspose")
def conv_transpose(n: NodeContext) -> None:
    """``(N, M/group * group, spatial...)``."""
    dims, weight, dtype = n.dims(0), n.dims(1), n.dtype(0)
    if dims is None or weight is None or len(dims) < 3:
        n.out(0, dtype, None if dims is None else (None,) * len(dims))
        return
    rank = len(dims) - 2
    kernel = n.attr("kernel_shape") or weight[2:]
    strides = n.attr("strides") or (1,) * rank
    dilations = n.attr("dilations") or (1,) * rank
    pads = n.attr("pads") or (0,) * (2 * rank)
    extra = n.attr("output_padding") or (0,) * rank
    auto_pad = n.attr("auto_pad", "NOTSET")
    given = n.attr("output_shape")
    spatial: list[DimLike] = []
    for i in range(rank):
        dim, size = dims[2 + i], kernel[i]
        if given:
            spatial.append(given[i - rank])
        elif dim is None or size is None:
            spatial.append(None)
        elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            spatial.append(dim * strides[i])
        else:
            padding = 0 if auto_pad == "VALID" else pads[i] + pads[i + rank]
            spatial.append(strides[i] * (dim - 1) + extra[i] + ((size - 1) * dilations[i] + 1) - padding)
    channels = weight[1]
    n.out(0, dtype, (dims[0], None if channels is None else channels * n.attr("group", 1), *spatial))


@rule("AveragePool LpPool MaxPool")
def pool(n: NodeContext) -> None:
    """Windows over the spatial axes; MaxPool's second output holds indices."""
    dims, dtype = n.dims(0), n.dtype(0)
    kernel = n.attr("kernel_shape")
    if dims is None or kernel is None or len(kernel) != len(dims) - 2:
        n.out(0, dtype)
        n.out(1, INT64)
        return
    result = (dims[0], dims[1], *windowed(n, dims, list(kernel)))
    n.out(0, dtype, result)
    n.out(1, INT64, result)


@rule("GlobalAveragePool GlobalMaxPool GlobalLpPool")
def global_pool(n: NodeContext) -> None:
    """Every spatial axis becomes one."""
    dims = n.dims(0)
    n.out(0, n.dtype(0), None if dims is None else (*dims[:2], *[1] * (len(dims) - 2)))


@rule("BatchNormalization")
def batch_normalization(n: NodeContext) -> None:
    """The input's shape; in training mode also running statistics."""
    n.out(0, n.dtype(0), n.dims(0))
    for i in range(1, len(n.outputs)):
        n.out(i, n.dtype(3) or n.dtype(0), n.dims(3))


@rule("InstanceNormalization GroupNormalization RMSNormalization")
def normalization(n: NodeContext) -> None:
    """The input's shape and type."""
    n.out(0, n.dtype(0), n.dims(0))


@rule("LayerNormalization")
def layer_normalization(n: NodeContext) -> None:
    """The input's shape; mean and inverse deviation have ones from the axis on."""
    dims = n.dims(0)
    n.out(0, n.dtype(0), dims)
    if len(n.outputs) > 1:
        axis = n.attr("axis", -1)
        rest: Dims | None = None
        if dims is not None:
            axis = axis + len(dims) if axis < 0 else axis
            rest = (*dims[:axis], *[1] * (len(dims) - axis))
        stash = ir.DataType(n.attr("stash_type", 1))
        n.out(1, stash, rest)
        n.out(2, stash, rest)


@rule("GridSample")
def grid_sample(n: NodeContext) -> None:
    """``(N, C, grid's spatial...)``."""
    dims, grid = n.dims(0), n.dims(1)
    n.out(0, n.dtype(0), None if dims is None or grid is None else (*dims[:2], *grid[1:-1]))


@rule("RoiAlign")
def roi_align(n: NodeContext) -> None:
    """``(regions, C, height, width)``."""
    dims, rois = n.dims(0), n.dims(1)
    channels = None if dims is None else dims[1]
    count = None if not rois else rois[0]
    n.out(0, n.dtype(0), (count, channels, n.attr("output_height", 1), n.attr("output_width", 1)))


@rule("MaxRoiPool")
def max_roi_pool(n: NodeContext) -> None:
    """``(regions, C, pooled...)``."""
    dims, rois = n.dims(0), n.dims(1)
    pooled = n.attr("pooled_shape", ())
    n.out(0, n.dtype(0), (None if not rois else rois[0], None if dims is None else dims[1], *pooled))


@rule("Col2Im")
def col2im(n: NodeContext) -> None:
    """``(N, C / prod(block), image...)``."""
    dims = n.dims(0)
    image, block = n.entries(1), n.numbers(2)
    if dims is None or image is None:
        n.out(0, n.dtype(0))
        return
    channels = dims[1]
    channels = floor_div(channels, math.prod(block)) if channels is not None and block else None
    n.out(0, n.dtype(0), (dims[0], channels, *image))


@rule("STFT")
def stft(n: NodeContext) -> None:
    """``(batch, frames, bins, 2)``; one-sided (the default) keeps the bins up to the middle."""
    dims = n.dims(0)
    step, length = n.scalar(1), n.scalar(3)
    if length is None and n.has(2) and (window := n.dims(2)):
        length = window[0]
    frames: DimLike = None
    signal = None if dims is None or len(dims) < 2 else dims[1]
    if signal is not None and length is not None and isinstance(step, int) and step > 0:
        frames = floor_div(signal - length, step) + 1
    bins = length if length is None or not n.attr("onesided", 1) else floor_div(length, 2) + 1
    n.out(0, n.dtype(0), (None if dims is None else dims[0], frames, bins, 2))


@rule("Det")
def det(n: NodeContext) -> None:
    """Drops the matrix axes."""
    dims = n.dims(0)
    n.out(0, n.dtype(0), None if dims is None else dims[:-2])


# Quantization.


@rule("QuantizeLinear")
def quantize_linear(n: NodeContext) -> None:
    """The zero point's type, or the attribute's, or uint8."""
    given = n.attr("output_dtype", 0)
    dtype = n.dtype(2) if n.has(2) else ir.DataType(given) if given else ir.DataType.UINT8
    n.out(0, dtype, n.dims(0))


@rule("DequantizeLinear")
def dequantize_linear(n: NodeContext) -> None:
    """The scale's type, unless the attribute says another."""
    given = n.attr("output_dtype", 0)
    n.out(0, ir.DataType(given) if given else n.dtype(1), n.dims(0))


@rule("DynamicQuantizeLinear")
def dynamic_quantize_linear(n: NodeContext) -> None:
    """The quantized tensor, its scale, and its zero point."""
    n.out(0, ir.DataType.UINT8, n.dims(0))
    n.out(1, ir.DataType.FLOAT, ())
    n.out(2, ir.DataType.UINT8, ())
