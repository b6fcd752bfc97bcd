"""Hand-made models: control flow, functions, shapes, repetition, and what an optimizer must survive."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tiny_sketch import BOOL, FLOAT, FLOAT16, INT64, Sketch, batchnorm, mean, tiny

# --- control flow and functions -----------------------------------------------------------------------------


def fusable_branch(g: Sketch, x: str, prefix: str) -> onnx.GraphProto:
    """A body that captures `x` from outside and has Conv + BatchNormalization to fuse."""
    b = g.body(prefix)
    y = b.op("Conv", x, b.weight(4, 3, 3, 3))
    batchnorm(b, b.op("Identity", y), 4, out=f"{prefix}y")
    b.output(f"{prefix}y", ["batch", 4, 4, 4])
    return b.graph(prefix.rstrip("_"))


@tiny(17)
def if_constant(g: Sketch) -> None:
    """If on a condition that folds (a Shape compared with a number): one branch remains."""
    x = g.input("x", ["batch", 3, 6, 6])
    size = g.op("Gather", g.op("Shape", x), g.const(1, np.int64))
    branches = {f"{side}_branch": fusable_branch(g, x, f"{side}_") for side in ("then", "else")}
    g.op("Relu", g.op("If", g.op("Equal", size, g.const(3, np.int64)), **branches), out="y")
    g.output("y", ["batch", 4, 4, 4])


@tiny(17)
def if_dynamic(g: Sketch) -> None:
    """If on a graph input, both branches with something to fuse."""
    x, condition = g.input("x", ["batch", 3, 6, 6]), g.input("condition", [], BOOL)
    branches = {f"{side}_branch": fusable_branch(g, x, f"{side}_") for side in ("then", "else")}
    g.op("If", condition, out="y", **branches)
    g.output("y", ["batch", 4, 4, 4])


@tiny(17)
def loop(g: Sketch) -> None:
    """Loop with a constant trip count; GELU to fuse and a constant to fold in its body, one scan output."""
    b = g.body("body_")
    b.input("body_i", [], INT64)
    condition, state = b.input("body_condition", [], BOOL), b.input("body_state", ["batch", 8])
    half = b.op("Add", b.const(0.25), b.const(0.25))
    cdf = b.op("Add", b.op("Erf", b.op("Div", state, b.const(2**0.5))), b.const(1.0))
    y = b.op("Mul", b.op("Mul", state, cdf), half)
    b.output(b.op("Identity", condition, out="body_go"), [], BOOL)
    b.output(b.op("MatMul", y, "outer_weight", out="body_next"), ["batch", 8])
    b.output(b.op("ReduceSum", y, keepdims=0, out="body_sum"), [])
    g.const(g.random.uniform(-1, 1, (8, 8)), name="outer_weight")
    x = g.input("x", ["batch", 8])
    g.op("Loop", g.const(3, np.int64), "", x, out=["y", "sums"], body=b.graph("body"))
    g.output("y", ["batch", 8])
    g.output("sums", [3])


@tiny(17)
def scan(g: Sketch) -> None:
    """Scan over a sequence: a recurrent cell with SiLU written out in its body."""
    b = g.body("body_")
    state, x = b.input("body_state", ["batch", 8]), b.input("body_x", ["batch", 8])
    y = b.op("Add", b.op("MatMul", state, b.weight(8, 8)), x)
    y = b.op("Mul", y, b.op("Sigmoid", y))
    b.output(b.op("Identity", y, out="body_next"), ["batch", 8])
    b.output(b.op("Identity", y, out="body_y"), ["batch", 8])
    start, xs = g.input("start", ["batch", 8]), g.input("xs", ["seq", "batch", 8])
    g.op("Scan", start, xs, out=["last", "ys"], num_scan_inputs=1, body=b.graph("body"))
    g.output("last", ["batch", 8])
    g.output("ys", ["seq", "batch", 8])


@tiny(17)
def function_local(g: Sketch) -> None:
    """A model-local function with an attribute of its own, calling another, both with something to fuse."""
    g.domains["local"] = 1
    opsets = [helper.make_opsetid("", g.opset), helper.make_opsetid("local", 1)]
    swish = [
        helper.make_node("Sigmoid", ["a"], ["gate"], name="gate"),
        helper.make_node("Mul", ["a", "gate"], ["b"], name="product"),
    ]
    slope = helper.make_node("LeakyRelu", ["t"], ["d"], name="leak")
    reference = slope.attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT)
    reference.ref_attr_name = "slope"
    outer = [helper.make_node("swish", ["c"], ["t"], name="inner", domain="local"), slope]
    g.functions = [
        helper.make_function("local", "swish", ["a"], ["b"], swish, opsets[:1]),
        helper.make_function("local", "leaky_swish", ["c"], ["d"], outer, opsets, attributes=["slope"]),
    ]
    x = g.input("x", ["batch", 8])
    y = g.op("leaky_swish", x, domain="local", slope=0.3)
    g.op("leaky_swish", y, out="y", domain="local", slope=0.1)
    g.output("y", ["batch", 8])


# --- shapes, repetition, what an optimizer must not lose ----------------------------------------------------


@tiny(13, 17)
def reshape_chain(g: Sketch) -> None:
    """Split into heads and back through Shape arithmetic, as exporters write it; all of it is a Relu."""
    x = g.input("x", ["batch", "seq", 12])
    zero, one = g.const(0, np.int64), g.const(1, np.int64)
    axis = g.const([0], np.int64)

    def extent(value: str, index: str) -> str:
        return g.op("Unsqueeze", g.op("Gather", g.op("Shape", value), index), axis)

    batch, seq = extent(x, zero), extent(x, one)
    heads = g.op("Concat", batch, seq, g.const([3], np.int64), g.const([4], np.int64), axis=0)
    y = g.op("Transpose", g.op("Reshape", x, heads), perm=[0, 2, 1, 3])
    y = g.op("Transpose", g.op("Relu", y), perm=[0, 2, 1, 3])
    width = g.op("Mul", g.const([3], np.int64), g.const([4], np.int64))
    y = g.op("Reshape", y, g.op("Concat", extent(x, zero), extent(x, one), width, axis=0))
    rows = g.op("Unsqueeze", g.op("Mul", g.op("Squeeze", batch), g.op("Squeeze", seq)), axis)
    y = g.op("Reshape", y, g.op("Concat", rows, g.const([12], np.int64), axis=0))
    g.op("Reshape", y, g.op("Concat", batch, seq, g.const([-1], np.int64), axis=0), out="y")
    g.output("y", ["batch", "seq", 12])


@tiny(17)
def no_ops(g: Sketch) -> None:
    """What does nothing (Identity, Cast, Reshape, Transpose, Slice, Pad, Concat, Expand, +0, ·1, …)."""
    y = g.op("Identity", g.input("x", ["batch", 3, 4]))
    y = g.op("Cast", y, to=FLOAT)
    y = g.op("Reshape", y, g.const([0, 0, -1], np.int64))
    y = g.op("Transpose", y, perm=[0, 1, 2])
    y = g.op("Slice", y, g.const([0], np.int64), g.const([2**63 - 1], np.int64), g.const([2], np.int64))
    y = g.op("Pad", y, g.const([0] * 6, np.int64))
    y = g.op("Concat", y, axis=1)
    y = g.op("Expand", y, g.const([1, 3, 1], np.int64))
    y = g.op("Add", y, g.const(0.0))
    y = g.op("Mul", g.const([1.0]), y)
    y = g.op("Pow", y, g.const(1.0))
    y = g.op("Relu", g.op("Relu", y))
    y = g.op("Neg", g.op("Neg", y))
    y = g.op("Squeeze", g.op("Unsqueeze", y, g.const([1], np.int64)), g.const([1], np.int64))
    y = g.op("Transpose", g.op("Transpose", y, perm=[2, 0, 1]), perm=[1, 2, 0])
    y = g.op("Cast", g.op("Cast", y, to=TensorProto.DOUBLE), to=FLOAT)
    g.op("Dropout", y, out="y")
    g.output("y", ["batch", 3, 4])


@tiny(17)
def casts_that_matter(g: Sketch) -> None:
    """Cast chains that lose precision or range: float → int → float and float → float16 → float must stay."""
    x = g.input("x", ["batch", 8])
    g.op("Cast", g.op("Cast", x, to=INT64), to=FLOAT, out="truncated")
    g.op("Cast", g.op("Cast", x, to=FLOAT16), to=FLOAT, out="rounded")
    g.op("Cast", g.op("Cast", x, to=BOOL), to=FLOAT, out="nonzero")
    for name in ("truncated", "rounded", "nonzero"):
        g.output(name, ["batch", 8])


@tiny(17)
def duplicates(g: Sketch) -> None:
    """Equal nodes over equal weights under different names, and nodes that differ only in an attribute."""
    x = g.input("x", ["batch", 8])
    values = g.random.uniform(-1, 1, (8, 8))
    first = g.op("MatMul", x, g.const(values, name="w1"))
    second = g.op("MatMul", x, g.const(values, name="w2"))
    y = g.op("Add", g.op("Softmax", first, axis=-1), g.op("Softmax", second, axis=-1))
    g.op("Add", y, g.op("Softmax", second, axis=0), out="y")
    g.op("Relu", second, out="twin_a")
    g.op("Relu", first, out="twin_b")
    for name in ("y", "twin_a", "twin_b"):
        g.output(name, ["batch", 8])


@tiny(17)
def random_twins(g: Sketch) -> None:
    """Two equal random nodes are not one value, and neither is a constant."""
    x = g.input("x", ["batch", 8])
    a, b = (g.op("RandomNormal", shape=[8], seed=1.0) for _ in range(2))
    zeros = g.op("Mul", g.op("Sub", a, b), g.const(0.0))
    g.op("Add", x, zeros, out="y")
    g.output("y", ["batch", 8])


@tiny(17)
def output_used_inside(g: Sketch) -> None:
    """Graph outputs that are read inside too: a Conv before its BatchNormalization, both ends of Identity."""
    x = g.input("x", ["batch", 3, 6, 6])
    g.op("Conv", x, g.weight(4, 3, 3, 3), out="conv")
    y = g.op("Identity", batchnorm(g, "conv", 4, out="norm"), out="same")
    g.op("Relu", y, out="y")
    for name in ("conv", "norm", "same", "y"):
        g.output(name, ["batch", 4, 4, 4])


@tiny(17)
def output_is_input(g: Sketch) -> None:
    """Outputs that are an input through an Identity, an initializer, and a folded constant."""
    g.op("Identity", g.input("x", ["batch", 4]), out="y")
    g.const([1.0, 2.0], name="constant")
    g.op("Add", "constant", g.const([3.0, 4.0]), out="folded")
    g.output("y", ["batch", 4])
    g.output("constant", [2])
    g.output("folded", [2])


@tiny(13, 18)
def multiple_outputs(g: Sketch) -> None:
    """Split and TopK with outputs unused, one used twice, and one that is a graph output."""
    x = g.input("x", ["batch", 12])
    g.op("Split", x, g.const([4, 4, 4], np.int64), out=["a", "b", "c"], axis=1)
    g.op("TopK", "b", g.const([2], np.int64), out=["largest", "indices"], axis=1)
    g.op("Add", "a", "a", out="y")
    g.output("y", ["batch", 4])
    g.output("c", ["batch", 4])
    g.output("indices", ["batch", 2], INT64)


@tiny(17)
def dropout_mask(g: Sketch) -> None:
    """Dropout at inference whose mask is used: the mask is all true."""
    x = g.input("x", ["batch", 8])
    g.op("Dropout", x, g.const(0.3), out=["kept", "dropped"])
    g.op("Where", "dropped", "kept", g.const(-1.0), out="y")
    g.output("y", ["batch", 8])


@tiny(17)
def optional_inputs(g: Sketch) -> None:
    """Left-out optional inputs in the middle: Clip without minimum, Resize without roi, LSTM without bias."""
    x = g.input("x", ["batch", 2, 4, 4])
    y = g.op("Clip", x, "", g.const(0.5))
    y = g.op("Resize", y, "", g.const([1, 1, 2, 2]), mode="nearest")
    y = g.op(
        "Reshape",
        g.op("Slice", y, *[g.const([v], np.int64) for v in (0, 1, 0)]),
        g.const([8, 1, 16], np.int64),
    )
    state = g.op("ConstantOfShape", g.const([1, 1, 5], np.int64))
    lstm = [g.weight(1, 20, 16), g.weight(1, 20, 5), "", "", state, state]
    g.op("LSTM", y, *lstm, out=["", "h"], hidden_size=5)
    g.output("h", [1, 1, 5])


@tiny(17)
def initializer_inputs(g: Sketch) -> None:
    """An initializer that is also a graph input is a default, which the user may override: not a constant."""
    x = g.input("x", ["batch", 4])
    w = g.const(g.random.uniform(-1, 1, (4, 4)), name="w")
    g.input("w", [4, 4])
    g.op("MatMul", x, g.op("Add", w, w), out="y")
    g.output("y", ["batch", 4])


@tiny(17)
def nested_names(g: Sketch) -> None:
    """An If in an If, capturing across two levels, with one weight used at all three."""
    x, condition = g.input("x", ["batch", 4]), g.input("condition", [], BOOL)
    w = g.const(g.random.uniform(-1, 1, (4, 4)), name="w")

    def leaf(prefix: str, op: str) -> onnx.GraphProto:
        b = g.body(prefix)
        b.output(b.op(op, b.op("MatMul", x, w), out=f"{prefix}y"), ["batch", 4])
        return b.graph(prefix.rstrip("_"))

    b = g.body("then_")
    branches = {"then_branch": leaf("deep_then_", "Relu"), "else_branch": leaf("deep_else_", "Tanh")}
    b.output(b.op("Add", b.op("If", condition, **branches), b.op("MatMul", x, w), out="then_y"), ["batch", 4])
    y = g.op("If", condition, then_branch=b.graph("then"), else_branch=leaf("else_", "Neg"))
    g.op("MatMul", y, w, out="y")
    g.output("y", ["batch", 4])


@tiny(17)
def constants(g: Sketch) -> None:
    """Constant in each of its spellings, and a chain over them that folds to one number."""
    x = g.input("x", ["batch", 3])
    tensor = numpy_helper.from_array(np.arange(3, dtype=np.float32), "")
    y = g.op("Add", g.op("Constant", value=tensor), g.op("Constant", value_float=2.0))
    y = g.op("Mul", y, g.op("Constant", value_floats=[1.0, 2.0, 3.0]))
    scale = g.op("Range", g.op("Constant", value_int=0), g.op("Constant", value_int=3), g.const(1, np.int64))
    scale = g.op("Add", scale, g.op("Constant", value_ints=[1, 1, 1]))
    g.op("Add", x, g.op("Mul", y, g.op("Cast", scale, to=FLOAT)), out="y")
    g.output("y", ["batch", 3])


@tiny(17)
def infinities(g: Sketch) -> None:
    """-inf in a mask, and an output with NaN and Inf of its own: comparing must accept equal patterns."""
    x = g.input("x", ["batch", 4])
    masked = g.op("Where", g.const([True, True, False, False], np.bool_), x, g.const(-np.inf))
    g.op("Softmax", masked, axis=-1, out="y")
    g.op("Mul", masked, g.const([0.0, 1.0, 0.0, 1.0]), out="wild")
    g.output("y", ["batch", 4])
    g.output("wild", ["batch", 4])


@tiny(17)
def integers(g: Sketch) -> None:
    """Integer arithmetic that is not float arithmetic: Div truncates, Mod of negatives, overflow wraps."""
    x = g.input("x", ["batch", 4], INT64)
    y = g.op("Mul", g.op("Div", x, g.const(3, np.int64)), g.const(3, np.int64))
    y = g.op("Mod", g.op("Sub", y, g.const(500, np.int64)), g.const(7, np.int64))
    g.op("Add", y, g.op("Div", g.const(-7, np.int64), g.const(2, np.int64)), out="y")
    g.output("y", ["batch", 4], INT64)


@tiny(17)
def scalar_and_empty(g: Sketch) -> None:
    """A scalar input, and a tensor with no elements joined to one with some."""
    x, scale = g.input("x", ["batch", 3]), g.input("scale", [])
    empty = g.op("Reshape", g.const(np.zeros((0, 3))), g.const([0, 3], np.int64), allowzero=1)
    g.op("Mul", g.op("Concat", x, empty, axis=0), scale, out="y")
    g.output("y", ["rows", 3])


# --- hostile and unusual models -----------------------------------------------------------------------------


@tiny(17)
def bomb_constantofshape(g: Sketch) -> None:
    """A ConstantOfShape of 8 GiB of which one row is read: it must not be folded."""
    zeros = g.op("ConstantOfShape", g.const([2048, 1024, 1024], np.int64))
    row = g.op("Gather", g.op("Gather", zeros, g.const(5, np.int64)), g.const(7, np.int64))
    g.op("Add", g.input("x", ["batch", 1024]), row, out="y")
    g.output("y", ["batch", 1024])


@tiny(17)
def bomb_expand(g: Sketch) -> None:
    """A scalar expanded to 8 GiB and a Range of 8 GiB, both mostly unread: they must not be folded."""
    wide = g.op("Expand", g.const(1.5), g.const([2048, 1024, 1024], np.int64))
    row = g.op("Gather", g.op("Gather", wide, g.const(5, np.int64)), g.const(7, np.int64))
    count = g.op("Range", *[g.const(v, np.int64) for v in (0, 2**30, 1)])
    first = g.op("Cast", g.op("Gather", count, g.const(3, np.int64)), to=FLOAT)
    g.op("Add", g.input("x", ["batch", 1024]), g.op("Mul", row, first), out="y")
    g.output("y", ["batch", 1024])


@tiny(17)
def external_data(g: Sketch) -> None:
    """Conv + BatchNormalization with the weights in a file beside the model."""
    y = g.op("Conv", g.input("x", ["batch", 3, 6, 6]), g.weight(4, 3, 3, 3))
    batchnorm(g, y, 4, out="y")
    g.output("y", ["batch", 4, 4, 4])


@tiny(17)
def half_precision(g: Sketch) -> None:
    """float16 throughout: Conv + BatchNormalization, GELU, a normalisation."""
    x = g.input("x", ["batch", 3, 6, 6], FLOAT16)
    y = g.op("Conv", x, g.weight(4, 3, 3, 3, dtype=np.float16))
    statistics = [g.weight(4, low=0.5, high=1.5, dtype=np.float16) for _ in range(4)]
    y = g.op("BatchNormalization", y, *statistics)
    cdf = g.op("Erf", g.op("Div", y, g.const(2**0.5, np.float16)))
    y = g.op("Mul", y, g.op("Add", cdf, g.const(1.0, np.float16)))
    y = g.op("Mul", y, g.const(0.5, np.float16))
    centred = g.op("Sub", y, mean(g, y, [-1]))
    variance = mean(g, g.op("Mul", centred, centred), [-1])
    g.op("Div", centred, g.op("Sqrt", g.op("Add", variance, g.const(1e-5, np.float16))), out="y")
    g.output("y", ["batch", 4, 4, 4], FLOAT16)


@tiny(17)
def custom_op(g: Sketch) -> None:
    """A node of a domain nobody knows, between a fusable Conv + BatchNormalization and a foldable sum."""
    g.domains["com.example"] = 1
    y = g.op("Conv", g.input("x", ["batch", 3, 6, 6]), g.weight(4, 3, 3, 3))
    y = g.op("Mystery", batchnorm(g, y, 4), g.const([1.0, 2.0]), domain="com.example", level=3)
    g.op("Add", y, g.op("Add", g.const(1.0), g.const(2.0)), out="y")
    g.output("y")


@tiny(17)
def sequences(g: Sketch) -> None:
    """SplitToSequence, SequenceAt, SequenceConstruct and ConcatFromSequence, as exporters write a chunk."""
    x = g.input("x", ["batch", 12])
    parts = g.op("SplitToSequence", x, g.const(4, np.int64), axis=1)
    a, b, c = (g.op("SequenceAt", parts, g.const(index, np.int64)) for index in range(3))
    y = g.op("SequenceConstruct", g.op("Mul", a, b), c)
    g.op("ConcatFromSequence", y, axis=1, out="y")
    g.output("y", ["batch", 8])


@tiny(17)
def strings(g: Sketch) -> None:
    """String tensors, which no folding through float arrays survives."""
    x = g.input("x", ["batch"], TensorProto.STRING)
    words = g.op("Gather", g.op("Constant", value_strings=[b"a", b"b"]), g.const([1, 0], np.int64))
    g.op("Concat", words, x, axis=0, out="y")
    g.output("y", ["words"], TensorProto.STRING)


@tiny(17)
def quantized(g: Sketch) -> None:
    """QuantizeLinear / DequantizeLinear around a Conv whose weights are int8 per channel."""
    x = g.input("x", ["batch", 3, 6, 6])
    scale, zero = g.const(0.05), g.const(0, np.int8)
    x = g.op("DequantizeLinear", g.op("QuantizeLinear", x, scale, zero), scale, zero)
    stored = g.const(g.random.integers(-127, 128, (4, 3, 3, 3)), np.int8)
    w = g.op("DequantizeLinear", stored, g.weight(4, low=0.01, high=0.02), g.const([0] * 4, np.int8), axis=0)
    y = g.op("Relu", g.op("Conv", x, w, g.weight(4)))
    g.op("DequantizeLinear", g.op("QuantizeLinear", y, scale, zero), scale, zero, out="y")
    g.output("y", ["batch", 4, 4, 4])
