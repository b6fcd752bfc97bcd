"""What precedes or follows a linear operator goes into its weights, and only where it fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import Array, assert_same, check, operators, optimized, parse, samples
from onnxlathe.model import Model
from onnxlathe.rewrite import Context, drive
from onnxlathe_passes.affine import InputScale, Scale
from onnxlathe_passes.batchnorm import ConvBatchNorm

SIZES = ({"n": 1, "m": 7}, {"n": 2, "m": 9})


def rand(*shape: int, seed: int = 0, low: float = -1, high: float = 1, dtype: Any = np.float32) -> Array:
    return np.random.default_rng((seed, *shape)).uniform(low, high, shape).astype(dtype)


def statistics(channels: int, dtype: Any = np.float32) -> dict[str, Array]:
    return {
        "scale": rand(channels, seed=1, dtype=dtype),
        "shift": rand(channels, seed=2, dtype=dtype),
        "mean": rand(channels, seed=3, dtype=dtype),
        "var": rand(channels, seed=4, low=0.5, high=2, dtype=dtype),
    }


NORM = "BatchNormalization{}(z, scale, shift, mean, var)"


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[str, dict[str, Array], int, int]:
    """A Conv or ConvTranspose from x to z, its weights, its number of output channels, its spatial rank."""
    spatial = draw(st.integers(1, 3))
    group = draw(st.sampled_from([1, 1, 2, 3]))
    inputs, outputs = group * draw(st.integers(1, 2)), group * draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 3)) for _ in range(spatial)]
    transposed, biased = draw(st.booleans()), draw(st.booleans())
    shape = (inputs, outputs // group, *kernel) if transposed else (outputs, inputs // group, *kernel)
    weights = {"w": rand(*shape)} | ({"b": rand(outputs, seed=9)} if biased else {})
    kind = "ConvTranspose" if transposed else "Conv"
    dims = ", ".join(["n", str(inputs), *["m"] * spatial])
    text = f"g (float[{dims}] x) => (float[{', '.join('defgh'[: spatial + 2])}] y) {{ z = {kind}<group={group}>(x, w{', b' * biased})"
    return text, weights, outputs, spatial


@settings(max_examples=25, deadline=None)
@given(case=convolutions(), opset=st.sampled_from([9, 14, 17]), epsilon=st.sampled_from([1e-5, 1e-2]))
def test_batchnorm_into_any_convolution(
    case: tuple[str, dict[str, Array], int, int], opset: int, epsilon: float
) -> None:
    text, weights, channels, spatial = case
    kind = text.split("z = ")[1].split("<")[0]
    sizes = SIZES if spatial < 3 else ({"n": 2, "m": 4},)
    text += f" y = {NORM.format(f'<epsilon={epsilon}>')} }}"
    check(text, "fuse", [kind], opset=opset, weights=weights | statistics(channels), sizes=sizes)


@settings(max_examples=25, deadline=None)
@given(case=convolutions(), data=st.data())
def test_chains_of_scales_and_biases(
    case: tuple[str, dict[str, Array], int, int], data: st.DataObject
) -> None:
    text, weights, channels, spatial = case
    kind = text.split("z = ")[1].split("<")[0]
    value = "z"
    for index in range(data.draw(st.integers(1, 4))):
        op = data.draw(st.sampled_from(["Add", "Sub", "Mul", "Div"]))
        rank = data.draw(st.integers(0, 2))
        shape = [(), (channels, *[1] * spatial), (1, channels, *[1] * spatial)][rank]
        weights[f"c{index}"] = rand(*shape, seed=index, low=0.5, high=2)
        pair = [value, f"c{index}"]
        if op in ("Add", "Mul") and data.draw(st.booleans()):
            pair.reverse()
        text += f" v{index} = {op}({pair[0]}, {pair[1]})"
        value = f"v{index}"
    sizes = SIZES if spatial < 3 else ({"n": 2, "m": 4},)
    check(text + f" y = Identity({value}) }}", "fuse", [kind, "Identity"], weights=weights, sizes=sizes)


CONV = "g (float[n, 3, m, m] x) => (float[n, 4, p, p] y{}) {{ {} }}"
W = {"w": rand(4, 3, 3, 3)}


@pytest.mark.parametrize(
    ("body", "more"),
    [
        ("z = Conv(x, w) y = Add(z, c)", rand(7)),  # along the width (and too long for it at other sizes)
        ("z = Conv(x, w) y = Mul(z, c)", rand(2, 4, 1, 1)),  # widens the batch
        ("z = Conv(x, w) y = Add(z, c)", rand(1, 1, 4, 1, 1)),  # adds a dimension
        ("z = Conv(x, w) y = Mul(z, c)", rand(1, 4, 5, 5)),
        ("z = Conv(x, w) y = Div(c, z)", rand(4, 1, 1)),
        ("z = Conv(x, w) y = Sub(c, z)", rand(4, 1, 1)),
        ("z = Conv(x, w) y = Div(z, c)", np.zeros((), np.float32)),
        ("z = Conv(x, w) y = Pow(z, c)", np.full((), 2, np.float32)),
        ("a = Add(x, c) y = Conv(a, w)", rand(3, 1, 1)),  # padding is not shifted
        ("a = Div(c, x) y = Conv(a, w)", rand(3, 1, 1)),
        ("z = Conv(x, w) d = Relu(c) y = Add(z, d)", rand(4, 1, 1)),  # not a constant without folding
    ],
)
def test_not_one_number_per_channel(body: str, more: Array) -> None:
    before = parse(CONV.format("", body).replace("(float[n, 4, p, p] y", "(float[] y"), 17, W | {"c": more})
    assert operators(optimized(before, "fuse(-steady)")) == operators(before)


def test_result_of_the_convolution_is_used_elsewhere() -> None:
    weights = W | statistics(4) | {"c": rand(4, 1, 1)}
    for body in (f"z = Conv(x, w) y = {NORM.format('')}", "z = Conv(x, w) y = Add(z, c)"):
        check(CONV.format(", float[n, 4, p, p] z", body), "fuse", None, weights=weights, sizes=SIZES)
        more = body.replace("y =", "q =") + " y = Add(q, z)"
        check(CONV.format("", more), "fuse", None, weights=weights, sizes=SIZES)


def test_training_mode_stays() -> None:
    body = "z = Conv(x, w) y, mean2, var2 = BatchNormalization<training_mode=1>(z, scale, shift, mean, var)"
    before = parse(CONV.format("", body), 17, W | statistics(4))
    assert operators(optimized(before, "fuse")) == operators(before)


def test_weights_that_are_not_constant() -> None:
    text = "g (float[n, 3, m, m] x, float[4, 3, 3, 3] w) => (float[n, 4, p, p] y) {{ {} }}"
    check(
        text.format(f"z = Conv(x, w) y = {NORM.format('')}"), "fuse", None, weights=statistics(4), sizes=SIZES
    )
    check(
        text.format("z = Conv(x, w) y = Mul(z, c)"), "fuse", None, weights={"c": rand(4, 1, 1)}, sizes=SIZES
    )
    # A bias needs no constant weight.
    check(
        text.format("z = Conv(x, w) y = Add(z, c)"),
        "fuse",
        ["Conv"],
        weights={"c": rand(4, 1, 1)},
        sizes=SIZES,
    )


def test_weights_that_the_caller_may_replace() -> None:
    text = "g (float[n, 3, m, m] x, float[4, 3, 3, 3] w) => (float[n, 4, p, p] y) {{ z = Conv(x, w) y = {} }}"
    before = parse(text.format(NORM.format("")), 17, W | statistics(4))
    assert operators(optimized(before, "fuse")) == ["Conv", "BatchNormalization"]


def test_shared_weights_are_copied_while_small() -> None:
    text = "g (float[n, 3, m, m] x) => (float[n, 4, p, p] y, float[n, 4, p, p] u) {{ z = Conv(x, w) u = Conv(x, w) y = {} }}"
    weights = W | statistics(4)
    after = check(text.format(NORM.format("")), "fuse", ["Conv", "Conv"], weights=weights, sizes=SIZES)
    assert len([t for t in after.graph.initializer if list(t.dims) == [4, 3, 3, 3]]) == 2
    before = parse(text.format(NORM.format("")), 17, weights)
    model = Model(ir.from_proto(before))
    assert drive(model, [ConvBatchNorm(max_copy=100)], Context.of(model.ir)) == 0


def test_shared_bias_stays_with_its_other_user() -> None:
    text = "g (float[n, 3, m, m] x) => (float[n, 4, p, p] y, float[n, 4, p, p] u) {{ z = Conv(x, w, b) u = Conv(x, w, b) y = {} }}"
    weights = W | statistics(4) | {"b": rand(4)}
    check(text.format(NORM.format("")), "fuse", ["Conv", "Conv"], weights=weights, sizes=SIZES)


def test_half_precision() -> None:
    text = CONV.format("", f"z = Conv(x, w) y = {NORM.format('')}").replace("float", "float16")
    weights = {"w": rand(4, 3, 3, 3, dtype=np.float16)} | statistics(4, np.float16)
    check(text, "fuse", ["Conv"], weights=weights, sizes=SIZES, rtol=2e-2, atol=2e-2)
    # A factor far from one would push the weights out of the range where half precision is precise.
    for c, left in ((2.0, ["Conv"]), (1e-4, None)):
        text = CONV.format("", "z = Conv(x, w) y = Mul(z, c)").replace("float", "float16")
        weights = {"w": rand(4, 3, 3, 3, dtype=np.float16), "c": np.array(c, np.float16)}
        check(text, "fuse", left, weights=weights, sizes=SIZES, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("shape", [(), (1,), (3, 1, 1), (1, 3, 1, 1)])
@pytest.mark.parametrize("op", ["Mul", "Div"])
def test_factor_before_a_padded_convolution(shape: tuple[int, ...], op: str) -> None:
    body = f"a = {op}(x, c) y = Conv<pads=[1, 1, 1, 1]>(a, w, b)"
    weights = W | {"b": rand(4), "c": rand(*shape, low=0.5, high=2)}
    check(CONV.format("", body), "fuse", ["Conv"], weights=weights, sizes=SIZES)


def test_factor_before_a_product() -> None:
    for body in ("y = MatMul(a, w)", "y = Gemm(a, w)", "y = Gemm<transB=1>(a, w)"):
        w = rand(5, 4) if "transB" in body else rand(4, 5)
        for shape in ((), (4,), (1, 4)):
            text = f"g (float[n, 4] x) => (float[n, 5] y) {{ a = Mul(c, x) {body} }}"
            check(text, "fuse", [body[4:].split("(")[0].split("<")[0]], weights={"w": w, "c": rand(*shape)})
    text = "g (float[3, 4] x) => (float[3, 5] y) { a = Mul(c, x) y = MatMul(a, w) }"
    check(text, "fuse", None, weights={"w": rand(4, 5), "c": rand(3, 1)})
    text = "g (float[1, m] x) => (float[3, 5] y) { a = Mul(x, c) y = MatMul(a, w) }"
    check(text, "fuse", None, weights={"w": rand(4, 5), "c": rand(3, 4)}, sizes=({"m": 4}, {"m": 1}))
    # One input channel that the factor spreads over three.
    text = "g (float[n, 1, 5, 5] x) => (float[n, 2, 3, 3] y) { a = Mul(x, c) y = Conv(a, w) }"
    check(text, "fuse", None, weights={"w": rand(2, 3, 3, 3), "c": rand(3, 1, 1)})


@pytest.mark.parametrize(
    "attributes", ["", "<transB=1>", "<transA=1>", "<alpha=0.5, beta=2.0>", "<beta=0.0>"]
)
@pytest.mark.parametrize("bias", [None, (), (1,), (5,), (1, 5)])
def test_gemm_takes_all(attributes: str, bias: tuple[int, ...] | None) -> None:
    x = "4, n" if "transA" in attributes else "n, 4"
    weights = {"w": rand(5, 4) if "transB" in attributes else rand(4, 5), "c": rand(5), "d": rand(1, 5)}
    weights |= statistics(5) | ({} if bias is None else {"b": rand(*bias)})
    gemm = f"g (float[{x}] x) => (float[n, 5] y) {{ z = Gemm{attributes}(x, w{'' if bias is None else ', b'})"
    check(f"{gemm} y = {NORM.format('')} }}", "fuse", ["Gemm"], weights=weights)
    check(f"{gemm} u = Add(z, c) v = Mul(u, d) y = Sub(v, d) }}", "fuse", ["Gemm"], weights=weights)


def test_gemm_whose_bias_is_a_matrix() -> None:
    text = "g (float[3, 4] x) => (float[3, 5] y) { z = Gemm(x, w, b) y = Add(z, c) }"
    check(text, "fuse", None, weights={"w": rand(4, 5), "b": rand(3, 5), "c": rand(5)})
    check(text, "fuse", None, weights={"w": rand(4, 5), "b": rand(3, 1), "c": rand(5)})
    check(text, "fuse", None, weights={"w": rand(4, 5), "b": rand(5), "c": rand(3, 1)})


@pytest.mark.parametrize("bias", [(), (1,), (5,), (1, 5)])
def test_matmul_add(bias: tuple[int, ...]) -> None:
    text = "g (float[n, 4] x) => (float[n, 5] y) { z = MatMul(x, w) y = Add(b, z) }"
    check(text, "fuse", ["Gemm"], weights={"w": rand(4, 5), "b": rand(*bias)})
    check(text, "fuse", ["Gemm"], weights={"w": rand(4, 5), "b": rand(*bias)}, opset=9)


def test_matmul_add_that_is_no_gemm() -> None:
    weights = {"w": rand(4, 5), "b": rand(5)}
    check(
        "g (float[n, m, 4] x) => (float[n, m, 5] y) { z = MatMul(x, w) y = Add(z, b) }",
        "fuse",
        None,
        weights=weights,
    )
    check("g (float[4] x) => (float[5] y) { z = MatMul(x, w) y = Add(z, b) }", "fuse", None, weights=weights)
    text = "g (float[n, 4] x) => (float[3, n, 5] y) { z = MatMul(x, w) y = Add(z, b) }"
    check(text, "fuse", None, weights=weights | {"b": rand(3, 1, 5)})
    check(
        "g (float[3, 4] x) => (float[3, 5] y) { z = MatMul(x, w) y = Add(z, b) }",
        "fuse",
        None,
        weights=weights | {"b": rand(3, 1)},
    )
    check(
        "g (float[n, 4] x) => (float[n, 5] y) { z = MatMul(x, w) y = Add(z, b) }",
        "fuse",
        None,
        weights={"w": rand(4, 1), "b": rand(5)},
    )
    check(
        "g (float[n, 4] x) => (float[n, 5] y, float[n, 5] z) { z = MatMul(x, w) y = Add(z, b) }",
        "fuse",
        None,
        weights=weights,
    )
    text = "g (int32[n, 4] x) => (int32[n, 5] y) { z = MatMul(x, w) y = Add(z, b) }"
    check(
        text,
        "fuse",
        None,
        weights={"w": rand(4, 5, low=0, high=9, dtype=np.int32), "b": rand(5, low=0, high=9, dtype=np.int32)},
    )


def test_transposes_into_gemm() -> None:
    text = "g (float[4, n] x) => (float[n, 5] y) { t = Transpose<perm=[1, 0]>(x) z = MatMul(t, w) y = Add(z, b) }"
    check(text, "fuse", ["Gemm"], weights={"w": rand(4, 5), "b": rand(5)})
    text = "g (float[n, 4] x) => (float[n, 5] y) { t = Transpose(w) y = Gemm(x, t, b) }"
    check(text, "fuse", ["Gemm"], weights={"w": rand(5, 4), "b": rand(5)})
    text = "g (float[n, 4] x, float[n, 5] v) => (float[4, 5] y) { t = Transpose(x) y = MatMul(t, v) }"
    check(text, "fuse", ["Gemm"])
    text = "g (float[4, n] x) => (float[n, 5] y) { t = Transpose(x) s = Transpose(w) y = Gemm(t, s) }"
    check(text, "fuse", ["Gemm"], weights={"w": rand(5, 4)})
    text = "g (float[n, 4] x) => (float[n, 5] y, float[4, n] t) { t = Transpose(x) y = Gemm<transA=1>(t, w) }"
    check(text, "fuse", None, weights={"w": rand(4, 5)})
    text = "g (float[n, m, 4] x) => (float[n, 4, 5] y) { t = Transpose<perm=[0, 2, 1]>(x) y = MatMul(t, w) }"
    check(text, "fuse", None, weights={"w": rand(3, 5)}, sizes=({"n": 2, "m": 3},))


def test_matmul_takes_a_factor_and_a_normalization() -> None:
    text = "g (float[n, m, 4] x) => (float[n, m, 5] y) {{ z = MatMul(x, w) y = {} }}"
    for shape in ((), (5,), (1, 1, 5)):
        check(text.format("Mul(z, c)"), "fuse", ["MatMul"], weights={"w": rand(4, 5), "c": rand(*shape)})
    # Here the channels of the normalization are the rows.
    sizes = ({"n": 2, "m": 3}, {"n": 1, "m": 3})
    check(text.format(NORM.format("")), "fuse", None, weights={"w": rand(4, 5)} | statistics(3), sizes=sizes)
    text = text.replace("n, m", "n")
    check(text.format(NORM.format("")), "fuse", ["Gemm"], weights={"w": rand(4, 5)} | statistics(5))


def test_weights_are_not_computed_until_asked_for() -> None:
    text = CONV.format("", "a = Mul(x, c) z = Conv(a, w) v = Mul(z, d) y = Add(v, d)")
    model = Model(ir.from_proto(parse(text, 17, {"w": rand(4, 3, 3, 3), "c": rand(1), "d": rand(4, 1, 1)})))
    assert drive(model, [Scale(), InputScale()], Context.of(model.ir)) == 2
    weight = next(n for n in model.graph if n.op_type == "Conv").inputs[1]
    assert weight is not None
    assert isinstance(weight.const_value, ir.LazyTensor)


PAD = "g (float[n, 3, m, m] x) => (float[n, k, p, q] y) {{ z = Pad{} y = {} }}"


@st.composite
def pads(draw: st.DrawFn) -> list[int]:
    return [
        0,
        0,
        *(draw(st.integers(0, 2)) for _ in range(2)),
        0,
        0,
        *(draw(st.integers(0, 2)) for _ in range(2)),
    ]


@settings(max_examples=20, deadline=None)
@given(
    amounts=pads(),
    own=st.sampled_from(["", "pads=[1, 0, 2, 1], ", 'auto_pad="VALID", ']),
    opset=st.sampled_from([10, 13, 18]),
)
def test_pad_into_convolution(amounts: list[int], own: str, opset: int) -> None:
    padding = f"<pads={amounts}>(x)" if opset == 10 else "(x, pads)"
    text = PAD.format(padding, f"Conv<{own}strides=[2, 1]>(z, w)")
    weights = W | ({} if opset == 10 else {"pads": np.array(amounts)})
    check(text, "fuse", ["Conv"], weights=weights, opset=opset, sizes=SIZES)


def test_pad_along_named_axes() -> None:
    weights = W | {"pads": np.array([1, 2]), "zero": np.array(0, np.float32), "axes": np.array([-1])}
    check(
        PAD.format("(x, pads, zero, axes)", "Conv(z, w)"),
        "fuse",
        ["Conv"],
        weights=weights,
        opset=18,
        sizes=SIZES,
    )


@pytest.mark.parametrize(
    ("padding", "pooling", "left"),
    [
        ("(x, pads)", "AveragePool<kernel_shape=[3, 3]>(z)", ["AveragePool"]),
        (
            "(x, pads)",
            "AveragePool<kernel_shape=[3, 3], count_include_pad=1, pads=[1, 1, 0, 0]>(z)",
            ["AveragePool"],
        ),
        ("(x, pads)", "AveragePool<kernel_shape=[3, 3], pads=[1, 1, 0, 0]>(z)", None),
        ("(x, pads)", "AveragePool<kernel_shape=[3, 3], ceil_mode=1, strides=[2, 2]>(z)", None),
        ("(x, pads)", "AveragePool<kernel_shape=[1, 3]>(z)", None),
        ("(x, pads, half)", "AveragePool<kernel_shape=[3, 3]>(z)", None),
        ("(x, pads, low)", "MaxPool<kernel_shape=[3, 3], strides=[2, 2]>(z)", ["MaxPool"]),
        ("(x, pads, low)", "MaxPool<kernel_shape=[3, 3], ceil_mode=1, strides=[2, 2]>(z)", None),
        ("(x, pads)", "MaxPool<kernel_shape=[3, 3]>(z)", None),
        ("(x, pads, half)", "Conv(z, w)", None),
        ('<mode="reflect">(x, pads)', "Conv(z, w)", None),
        ('<mode="edge">(x, pads)', "Conv(z, w)", None),
        ("(x, cut)", "Conv(z, w)", None),
        ("(x, pads)", 'Conv<auto_pad="SAME_UPPER">(z, w)', None),
        ("(x, batch)", "Conv(z, w)", None),
        ("(x, pads)", "ConvTranspose(z, t)", None),
    ],
)
def test_pad_into_pooling(padding: str, pooling: str, left: list[str] | None) -> None:
    weights = W | {
        "t": rand(3, 4, 2, 2),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 0]),
        "cut": np.array([0, 0, 1, 0, 0, 0, -1, 0]),
        "batch": np.array([1, 0, 1, 0, 0, 0, 1, 0]),
        "half": np.array(0.5, np.float32),
        "low": np.array(-np.inf, np.float32),
    }
    check(PAD.format(padding, pooling), "fuse", left, weights=weights, sizes=SIZES)


def test_indices_of_a_maximum_keep_the_pad() -> None:
    text = "g (float[n, 3, m, m] x) => (float[n, 3, p, p] y, int64[n, 3, p, p] i) { z = Pad(x, pads, low) y, i = MaxPool<kernel_shape=[2, 2]>(z) }"
    weights = {"pads": np.array([0, 0, 1, 1, 0, 0, 0, 0]), "low": np.array(-np.inf, np.float32)}
    check(text, "fuse", None, weights=weights, sizes=SIZES)


BRANCH = """
g (bool b, float[n, 3, 5, 5] x) => (float[n, 4, 3, 3] y) {
  y = If (b) <
    then_branch = t () => (float[n, 4, 3, 3] ty) { tz = Conv(x, w) ty = BatchNormalization(tz, scale, shift, mean, var) },
    else_branch = e () => (float[n, 4, 3, 3] ey) { ez = Conv(x, w) ey = Mul(ez, two) }
  >
}
"""


def test_inside_branches_with_weights_from_outside() -> None:
    before = parse(BRANCH, 17, W | statistics(4) | {"two": np.array(2, np.float32)})
    after = optimized(before, "fuse")
    branches = [a.g for a in after.graph.node[0].attribute]
    assert [n.op_type for b in branches for n in b.node] == ["Conv", "Conv"]
    for b in (True, False):
        assert_same(before, after, samples(before, n=2) | {"b": np.array(b)})


FUNCTION = """
<ir_version: 10, opset_import: ["" : 17, "local" : 1]>
g (float[n, 2] x) => (float[n, 2] y) { t = local.f(x) y = local.f(t) }
<domain: "local", opset_import: ["" : 17]>
f (v) => (u) {
  w = Constant<value = float[2, 2] {0.1, 0.2, 0.3, 0.4}>() b = Constant<value = float[2] {1.0, 2.0}>()
  c = Constant<value = float {3.0}>() z = Gemm(v, w, b) m = Mul(z, c) u = Add(m, b)
}
"""


def test_inside_a_function() -> None:
    before = parse(FUNCTION)
    after = optimized(before, "fuse")
    assert [n.op_type for n in after.functions[0].node if n.op_type != "Constant"] == ["Gemm"]
    assert_same(before, after, samples(before, n=2))
