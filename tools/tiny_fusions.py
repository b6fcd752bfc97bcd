"""Hand-made models: operators that fuse, and their neighbours that must not."""

from __future__ import annotations

import numpy as np

from tiny_sketch import Sketch, batchnorm, mean, tiny

# --- normalisation and bias into a linear operator ----------------------------------------------------------


@tiny(13, 17)
def conv_bn(g: Sketch) -> None:
    """Conv without and with bias, each followed by BatchNormalization; the second pair is grouped."""
    x = g.input("x", ["batch", 4, 9, 9])
    y = batchnorm(g, g.op("Conv", x, g.weight(6, 4, 3, 3), pads=[1, 1, 1, 1]), 6)
    y = g.op("Conv", g.op("Relu", y), g.weight(6, 2, 3, 3), g.weight(6), group=3)
    batchnorm(g, y, 6, out="y", epsilon=1e-3)
    g.output("y", ["batch", 6, 7, 7])


@tiny(17)
def conv1d_conv3d_bn(g: Sketch) -> None:
    """Conv + BatchNormalization in one and in three spatial dimensions."""
    batchnorm(g, g.op("Conv", g.input("a", ["batch", 3, 8]), g.weight(5, 3, 3)), 5, out="y1")
    batchnorm(g, g.op("Conv", g.input("b", ["batch", 2, 4, 4, 4]), g.weight(3, 2, 2, 2, 2)), 3, out="y2")
    g.output("y1", ["batch", 5, 6])
    g.output("y2", ["batch", 3, 3, 3, 3])


@tiny(17)
def convtranspose_bn(g: Sketch) -> None:
    """ConvTranspose + BatchNormalization: output channels are the weight's second axis."""
    x = g.input("x", ["batch", 4, 5, 5])
    batchnorm(g, g.op("ConvTranspose", x, g.weight(4, 6, 2, 2), g.weight(6), strides=[2, 2]), 6, out="y")
    g.output("y", ["batch", 6, 10, 10])


@tiny(17)
def convtranspose_bn_grouped(g: Sketch) -> None:
    """ConvTranspose with groups + BatchNormalization: its output channels are group by group."""
    x = g.input("x", ["batch", 4, 5, 5])
    y = g.op("ConvTranspose", x, g.weight(4, 3, 3, 3), group=2, strides=[2, 2], output_padding=[1, 1])
    batchnorm(g, y, 6, out="y")
    g.output("y", ["batch", 6, "h", "w"])


@tiny(17)
def gemm_bn(g: Sketch) -> None:
    """Gemm + BatchNormalization, once with transB and bias, once with alpha, beta and no transposition."""
    x = g.input("x", ["batch", 8])
    y = batchnorm(g, g.op("Gemm", x, g.weight(6, 8), g.weight(6), transB=1), 6)
    batchnorm(g, g.op("Gemm", y, g.weight(6, 5), g.weight(1, 5), alpha=0.5, beta=2.0), 5, out="y")
    g.output("y", ["batch", 5])


@tiny(17)
def batchnorm_training(g: Sketch) -> None:
    """BatchNormalization in training mode uses the batch's statistics: it must not be folded into Conv."""
    y = g.op("Conv", g.input("x", [2, 3, 6, 6]), g.weight(4, 3, 3, 3))
    batchnorm(g, y, 4, out=["y", "mean", "var"], training_mode=1)
    g.output("y", [2, 4, 4, 4])


@tiny(17)
def conv_scale_bias(g: Sketch) -> None:
    """Per-channel Mul and Add, in either operand order, and a Sub and Div, after Conv."""
    y = g.op("Conv", g.input("x", ["batch", 3, 6, 6]), g.weight(4, 3, 3, 3))
    y = g.op("Mul", g.weight(1, 4, 1, 1), y)
    y = g.op("Add", y, g.weight(4, 1, 1))
    y = g.op("Conv", y, g.weight(4, 4, 1, 1), g.weight(4))
    y = g.op("Sub", y, g.weight(4, 1, 1))
    g.op("Div", y, g.weight(1, 4, 1, 1, low=1, high=2), out="y")
    g.output("y", ["batch", 4, 4, 4])


@tiny(17)
def conv_bias_not_per_channel(g: Sketch) -> None:
    """An Add after Conv that varies along width, and one that widens the batch: no bias can hold them."""
    y = g.op("Conv", g.input("x", [1, 3, 6, 6]), g.weight(4, 3, 3, 3))
    y = g.op("Add", y, g.weight(4))
    g.op("Add", y, g.weight(2, 4, 1, 1), out="y")
    g.output("y", [2, 4, 4, 4])


@tiny(17)
def matmul_add(g: Sketch) -> None:
    """MatMul + Add: two-dimensional (a Gemm), three-dimensional, and with an Add that is not a bias."""
    x = g.input("x", ["batch", 8])
    y = g.op("Relu", g.op("Add", g.op("MatMul", x, g.weight(8, 6)), g.weight(6)))
    y = g.op("Add", g.weight(1, 5), g.op("MatMul", y, g.weight(6, 5)))
    g.op("Add", y, g.weight(1), out="y")
    z = g.input("z", ["batch", "seq", 8])
    z = g.op("Add", g.op("MatMul", z, g.weight(8, 6)), g.weight(6))
    g.op("Add", g.op("MatMul", z, g.weight(6, 4)), g.weight(3, 1, 1, 4), out="w")
    g.output("y", ["batch", 5])
    g.output("w", [3, "batch", "seq", 4])


@tiny(13, 18)
def pad_conv(g: Sketch) -> None:
    """Zero Pad before Conv (fusable), a Pad with another value, and a reflecting one (not fusable)."""
    y = g.op("Pad", g.input("x", ["batch", 3, 6, 6]), g.const([0, 0, 1, 2, 0, 0, 0, 1], np.int64))
    y = g.op("Conv", y, g.weight(4, 3, 3, 3), pads=[1, 0, 0, 0])
    y = g.op("Pad", y, g.const([0, 0, 1, 1, 0, 0, 1, 1], np.int64), g.const(0.5))
    y = g.op("Conv", y, g.weight(4, 4, 3, 3))
    y = g.op("Pad", y, g.const([0, 0, 1, 1, 0, 0, 1, 1], np.int64), mode="reflect")
    g.op("Conv", y, g.weight(2, 4, 3, 3), out="y")
    g.output("y", ["batch", 2, "h", "w"])


@tiny(17)
def pad_pool(g: Sketch) -> None:
    """Pad before pooling: average with padding counted (fusable) and not, maximum over zeros and -inf."""
    x = g.input("x", ["batch", 3, 8, 8])
    pads = g.const([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    window = {"kernel_shape": [3, 3], "strides": [2, 2]}
    padded = g.op("Pad", x, pads)
    g.op("AveragePool", padded, count_include_pad=1, out="average_all", **window)
    g.op("AveragePool", g.op("Pad", x, pads), out="average", **window)
    g.op("MaxPool", padded, out="maximum_zero", **window)
    g.op("MaxPool", g.op("Pad", x, pads, g.const(-np.inf)), out="maximum", **window)
    for name in ("average_all", "average", "maximum_zero", "maximum"):
        g.output(name, ["batch", 3, 4, 4])


# --- activations and normalisations written out -------------------------------------------------------------


@tiny(13, 20)
def gelu_erf(g: Sketch) -> None:
    """GELU through Erf, in three spellings: x·(1+erf(x/√2))·½, (½·x)·(…), x·((…)·½)."""
    x = g.input("x", ["batch", 16])
    half, one = g.const(0.5), g.const(1.0)
    for index in range(3):
        scaled = g.op("Div", x, g.const(2**0.5)) if index != 1 else g.op("Mul", x, g.const(0.5**0.5))
        cdf = g.op("Add", g.op("Erf", scaled), one)
        if index == 0:
            g.op("Mul", g.op("Mul", x, cdf), half, out="y0")
        elif index == 1:
            g.op("Mul", cdf, g.op("Mul", half, x), out="y1")
        else:
            g.op("Mul", x, g.op("Mul", cdf, half), out="y2")
        g.output(f"y{index}", ["batch", 16])


@tiny(13, 20)
def gelu_tanh(g: Sketch) -> None:
    """GELU's tanh form, with Pow and with two Muls for the cube."""
    x = g.input("x", ["batch", 16])
    for index, cube in enumerate((g.op("Pow", x, g.const(3.0)), g.op("Mul", g.op("Mul", x, x), x))):
        inner = g.op("Add", x, g.op("Mul", g.const(0.044715), cube))
        inner = g.op("Tanh", g.op("Mul", inner, g.const((2 / np.pi) ** 0.5)))
        half = g.op("Mul", x, g.const(0.5))
        g.op("Mul", half, g.op("Add", inner, g.const(1.0)), out=f"y{index}")
        g.output(f"y{index}", ["batch", 16])


@tiny(17)
def gelu_almost(g: Sketch) -> None:
    """A GELU with a wrong constant (√3 for √2): it must stay as it is."""
    x = g.input("x", ["batch", 16])
    cdf = g.op("Add", g.op("Erf", g.op("Div", x, g.const(3**0.5))), g.const(1.0))
    g.op("Mul", g.op("Mul", x, cdf), g.const(0.5), out="y")
    g.output("y", ["batch", 16])


@tiny(13, 17, 18)
def layernorm(g: Sketch) -> None:
    """LayerNorm written out: with scale and bias over the last axis, then without over the last two."""
    x = g.input("x", ["batch", "seq", 4, 8])
    for index, axes in enumerate(([-1], [2, 3])):
        centred = g.op("Sub", x, mean(g, x, axes))
        square = g.op("Pow", centred, g.const(2.0)) if index == 0 else g.op("Mul", centred, centred)
        deviation = g.op("Sqrt", g.op("Add", mean(g, square, axes), g.const(1e-5)))
        x = g.op("Div", centred, deviation, out="" if index == 0 else "y")
        if index == 0:
            x = g.op("Add", g.op("Mul", x, g.weight(8)), g.weight(8))
    g.output("y", ["batch", "seq", 4, 8])


@tiny(17, 23)
def rmsnorm(g: Sketch) -> None:
    """RMSNorm written out: with Reciprocal(Sqrt), and with Div by Sqrt."""
    x = g.input("x", ["batch", "seq", 8])
    power = mean(g, g.op("Pow", x, g.const(2.0)), [-1])
    inverse = g.op("Reciprocal", g.op("Sqrt", g.op("Add", power, g.const(1e-6))))
    x = g.op("Mul", g.weight(8), g.op("Mul", x, inverse))
    power = mean(g, g.op("Mul", x, x), [-1])
    g.op("Mul", g.op("Div", x, g.op("Sqrt", g.op("Add", power, g.const(1e-5)))), g.weight(8), out="y")
    g.output("y", ["batch", "seq", 8])


@tiny(13, 14)
def hardswish(g: Sketch) -> None:
    """HardSwish: x·HardSigmoid(x) with alpha 1/6, and x·Clip(x+3, 0, 6)/6."""
    x = g.input("x", ["batch", 16])
    x = g.op("Mul", x, g.op("HardSigmoid", x, alpha=1 / 6, beta=0.5))
    clipped = g.op("Clip", g.op("Add", x, g.const(3.0)), g.const(0.0), g.const(6.0))
    g.op("Div", g.op("Mul", x, clipped), g.const(6.0), out="y")
    g.output("y", ["batch", 16])


@tiny(17, 18)
def mish(g: Sketch) -> None:
    """Mish: x·tanh(softplus(x)), with Softplus and with it written out."""
    x = g.input("x", ["batch", 16])
    x = g.op("Mul", x, g.op("Tanh", g.op("Softplus", x)))
    g.op("Mul", g.op("Tanh", g.op("Log", g.op("Add", g.op("Exp", x), g.const(1.0)))), x, out="y")
    g.output("y", ["batch", 16])


@tiny(17)
def softplus(g: Sketch) -> None:
    """Softplus written out: log(1 + exp(x))."""
    x = g.input("x", ["batch", 16])
    g.op("Log", g.op("Add", g.const(1.0), g.op("Exp", x)), out="y")
    g.output("y", ["batch", 16])


@tiny(17, 24)
def silu(g: Sketch) -> None:
    """SiLU: x·sigmoid(x), and Swish with beta 1.702."""
    x = g.input("x", ["batch", 16])
    x = g.op("Mul", g.op("Sigmoid", x), x)
    g.op("Mul", x, g.op("Sigmoid", g.op("Mul", x, g.const(1.702))), out="y")
    g.output("y", ["batch", 16])
