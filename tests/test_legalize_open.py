"""Lowerings of operators some of whose dimensions are open: what they need to know, and nothing more."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from legalize_helpers import Array, agree, in_runtime, legalized, rewritten

RNG = np.random.default_rng(0)


def f32(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def parsed(graph: str, opset: int = 18) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> g {graph}')


def same(proto: onnx.ModelProto, operator: str, *feeds: dict[str, Array]) -> None:
    """One rewritten model gives what the original does, for every size."""
    after, _ = legalized(proto, [operator])
    for one in feeds:
        agree(in_runtime(after, one), in_runtime(proto, one))


def stays(proto: onnx.ModelProto, operator: str) -> None:
    """No rewrite fits."""
    after, _ = rewritten(proto, lambda m: [i for i, n in enumerate(m.graph) if n.op_type == operator])
    assert operator in {n.op_type for n in after.graph.node}


def test_max_pool_of_any_batch() -> None:
    proto = parsed(
        "(float[b,3,9,8] x) => (float[b,3,h,w] y, int64[b,3,h,w] i)"
        "{ y, i = MaxPool<kernel_shape=[3,2],dilations=[2,1],pads=[1,0,1,1],strides=[2,1]>(x) }"
    )
    same(proto, "MaxPool", {"x": f32(1, 3, 9, 8)}, {"x": f32(4, 3, 9, 8)})
    line = parsed(
        "(float[b,2,12] x) => (float[b,2,n] y, int64[b,2,n] i) { y, i = MaxPool<kernel_shape=[3]>(x) }"
    )
    same(line, "MaxPool", {"x": f32(1, 2, 12)}, {"x": f32(3, 2, 12)})


def test_average_pool_of_any_batch() -> None:
    proto = parsed(
        "(float[b,c,7] x) => (float[b,c,n] y) { y = AveragePool<kernel_shape=[3],dilations=[2]>(x) }", 19
    )
    same(proto, "AveragePool", {"x": f32(1, 2, 7)}, {"x": f32(3, 5, 7)})


def test_indices_of_open_planes_stay() -> None:
    for shape in ("b,c,12", "2,c,12", "b,2,l"):
        stays(
            parsed(
                f"(float[{shape}] x) => (float[p,q,r] y, int64[p,q,r] i)"
                "{ y, i = MaxPool<kernel_shape=[3]>(x) }"
            ),
            "MaxPool",
        )


@pytest.mark.parametrize("reduction", ["add", "mul", "max", "min"])
def test_scatters_of_any_number_of_updates(reduction: str) -> None:
    rows = parsed(
        f"(float[3,4,2] x, int64[n,2] i, float[n,2] u) => (float[3,4,2] y)"
        f'{{ y = ScatterND<reduction="{reduction}">(x, i, u) }}'
    )
    columns = parsed(
        f"(float[B,5] x, int64[B,n] i, float[B,n] u) => (float[B,5] y)"
        f'{{ y = ScatterElements<reduction="{reduction}",axis=1>(x, i, u) }}'
    )
    for count in (0, 1, 7):
        i = np.stack([RNG.integers(-3, 3, count), RNG.integers(-4, 4, count)], -1)
        same(rows, "ScatterND", {"x": f32(3, 4, 2), "i": i, "u": f32(count, 2)})
        i = RNG.integers(-5, 5, (2, count))
        same(columns, "ScatterElements", {"x": f32(2, 5), "i": i, "u": f32(2, count)})


def test_scatters_of_what_must_be_known_stay() -> None:
    stays(
        parsed("(float[4,2] x, int64[n,1] i, float[n,2] u) => (float[4,2] y) { y = ScatterND(x, i, u) }"),
        "ScatterND",
    )
    stays(
        parsed(
            "(float[4,C] x, int64[n,1] i, float[n,C] u) => (float[4,C] y)"
            '{ y = ScatterND<reduction="add">(x, i, u) }'
        ),
        "ScatterND",
    )
    stays(
        parsed(
            "(float[B,5] x, int64[C,n] i, float[C,n] u) => (float[B,5] y)"
            '{ y = ScatterElements<reduction="add",axis=1>(x, i, u) }'
        ),
        "ScatterElements",
    )


@pytest.mark.parametrize("depth", [16, 600])
def test_matmul_integer_of_any_rows(depth: int) -> None:
    """What quantize_dynamic makes of a Linear layer for any batch and length."""
    proto = parsed(
        f"(uint8[b,s,{depth}] x, uint8 z, int8[{depth},3] w) => (int32[b,s,3] y) {{ y = MatMulInteger(x, w, z) }}"
    )
    line = parsed(f"(uint8[b,{depth}] x, int8[{depth}] w) => (int32[b] y) {{ y = MatMulInteger(x, w) }}")
    w = RNG.integers(-128, 128, (depth, 3)).astype(np.int8)
    for shape in ((1, 4), (3, 2)):
        x = RNG.integers(200, 256, (*shape, depth)).astype(np.uint8)
        same(proto, "MatMulInteger", {"x": x, "z": np.array(7, np.uint8), "w": w})
        after, _ = legalized(line, ["MatMulInteger"])
        (found,) = in_runtime(after, {"x": x[0], "w": w[:, 0]})
        assert (found == x[0].astype(np.int64) @ w[:, 0].astype(np.int64)).all()


def test_matmul_integer_of_unknown_depth_stays() -> None:
    stays(
        parsed("(uint8[2,k] x, int8[k,3] w) => (int32[2,3] y) { y = MatMulInteger(x, w) }"), "MatMulInteger"
    )


def test_resize_of_any_batch() -> None:
    proto = parsed(
        "(float[b,c,16,12] x) => (float[b,c,8,9] y) <float[4] s = {1.0, 1.0, 0.5, 0.75}>"
        '{ y = Resize<mode="linear",antialias=1>(x, , s) }'
    )
    same(proto, "Resize", {"x": f32(1, 3, 16, 12)}, {"x": f32(4, 2, 16, 12)})
    axes = parsed(
        "(float[b,3,16,12] x) => (float[b,3,7,5] y) <int64[2] s = {7, 5}>"
        '{ y = Resize<mode="cubic",antialias=1,axes=[2,3]>(x, , , s) }'
    )
    same(axes, "Resize", {"x": f32(1, 3, 16, 12)}, {"x": f32(4, 3, 16, 12)})
    for scales in ("1.0, 1.0, 0.5, 0.5", "2.0, 1.0, 1.0, 1.0"):
        stays(
            parsed(
                f"(float[b,3,h,12] x) => (float[p,3,q,6] y) <float[4] s = {{{scales}}}>"
                '{ y = Resize<mode="linear",antialias=1>(x, , s) }'
            ),
            "Resize",
        )


@pytest.mark.parametrize(
    ("operator", "graph", "shape"),
    [
        ("Det", "(float[b,3,3] x) => (float[b] y) { y = Det(x) }", (3, 3)),
        (
            "Col2Im",
            "(float[b,8,9] x) => (float[b,2,4,4] y) <int64[2] im = {4,4}, int64[2] bl = {2,2}>"
            "{ y = Col2Im(x, im, bl) }",
            (8, 9),
        ),
        ("DFT", "(float[b,16,1] x) => (float[b,9,2] y) { y = DFT<axis=1,onesided=1>(x) }", (16, 1)),
        ("DFT", "(float[b,9,2] x) => (float[b,9,2] y) { y = DFT<axis=1,inverse=1>(x) }", (9, 2)),
        (
            "STFT",
            "(float[b,64,1] x) => (float[b,f,9,2] y) <int64 step = {8}, int64 length = {16}>"
            "{ y = STFT(x, step, , length) }",
            (64, 1),
        ),
    ],
)
def test_matrices_of_any_batch(operator: str, graph: str, shape: tuple[int, ...]) -> None:
    feeds = [{"x": f32(n, *shape)} for n in (1, 5)]
    proto = parsed(graph)
    after, _ = legalized(proto, [operator])
    for one in feeds:
        agree(in_runtime(after, one), in_runtime(proto, one), rtol=1e-4, atol=1e-5)


def test_transforms_of_open_length_stay() -> None:
    stays(parsed("(float[2,n,1] x) => (float[2,m,2] y) { y = DFT<axis=1,onesided=1>(x) }"), "DFT")
    stays(parsed("(float[b,n,n] x) => (float[b] y) { y = Det(x) }"), "Det")


@pytest.mark.parametrize("reduction", ["add", "max"])
def test_scatters_into_any_number_of_rows(reduction: str) -> None:
    rows = parsed(
        "(float[B,4] x, int64[n,1] i, float[n,4] u) => (float[B,4] y)"
        f'{{ y = ScatterND<reduction="{reduction}">(x, i, u) }}'
    )
    cells = parsed(
        "(float[B,3,2] x, int64[n,2] i, float[n,2] u) => (float[B,3,2] y)"
        f'{{ y = ScatterND<reduction="{reduction}">(x, i, u) }}'
    )
    for size, count in ((1, 4), (5, 9), (3, 0)):
        i = RNG.integers(-size, size, (count, 1))
        same(rows, "ScatterND", {"x": f32(size, 4), "i": i, "u": f32(count, 4)})
        both = np.concatenate([i, RNG.integers(-3, 3, (count, 1))], -1)
        same(cells, "ScatterND", {"x": f32(size, 3, 2), "i": both, "u": f32(count, 2)})


def test_unpooling_of_any_batch() -> None:
    pool = "MaxPool<kernel_shape=[2,2],strides=[2,2]>(x)"
    back = "MaxUnpool<kernel_shape=[2,2],strides=[2,2]>"
    proto = parsed(f"(float[b,2,8,6] x) => (float[b,2,8,6] y) {{ v, i = {pool} y = {back}(v, i) }}")
    same(proto, "MaxUnpool", {"x": f32(1, 2, 8, 6)}, {"x": f32(4, 2, 8, 6)})
    stays(
        parsed(
            "(float[b,2,4,4] v, int64[b,2,4,4] i) => (float[b,2,9,9] y) <int64[4] size = {1,2,9,9}>"
            f"{{ y = {back}(v, i, size) }}"
        ),
        "MaxUnpool",
    )


@pytest.mark.parametrize(
    "attributes",
    [
        "kernel_shape=[3,3],dilations=[2,2],pads=[2,2,2,2]",
        "kernel_shape=[3,2],dilations=[2,1],strides=[2,3],pads=[1,0,0,1]",
        'kernel_shape=[2,1],dilations=[3,1],auto_pad="VALID"',
    ],
)
@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_max_pool_of_any_size(attributes: str, kind: str) -> None:
    proto = parsed(f"({kind}[b,2,h,w] x) => ({kind}[b,2,p,q] y) {{ y = MaxPool<{attributes}>(x) }}")
    dtype = np.float32 if kind == "float" else np.uint8
    for shape in ((1, 2, 7, 9), (3, 2, 12, 6)):
        x = (RNG.standard_normal(shape) * 50 - (100 if kind == "float" else -128)).clip(-300, 255)
        same(proto, "MaxPool", {"x": x.astype(dtype)})


def test_pooling_whose_padding_follows_from_an_open_size_stays() -> None:
    for attributes in ('auto_pad="SAME_UPPER"', "ceil_mode=1"):
        stays(
            parsed(
                "(float[1,2,h,w] x) => (float[1,2,p,q] y)"
                f"{{ y = MaxPool<kernel_shape=[2,2],strides=[2,2],{attributes}>(x) }}"
            ),
            "MaxPool",
        )


def test_resize_to_sizes_that_hold_an_open_batch() -> None:
    """What torch exports for F.interpolate(antialias=True) of any batch."""
    head = "<int64[2] hw = {8,6}, int64[1] a = {0}, int64[1] e = {2}> { s = Shape(x) p = Slice(s, a, e) n = Concat<axis=0>(p, hw)"
    tail = 'y = Resize<mode="linear",antialias=1>(x, , , n) }'
    proto = parsed(f"(float[b,3,16,12] x) => (float[b,3,8,6] y) {head} {tail}")
    same(proto, "Resize", {"x": f32(1, 3, 16, 12)}, {"x": f32(4, 3, 16, 12)})
    stays(parsed(f"(float[b,3,h,12] x) => (float[b,3,8,6] y) {head} {tail}"), "Resize")


def test_dynamic_quantization_of_zeros() -> None:
    proto = parsed("(float[n] x) => (uint8[n] y, float s, uint8 z) { y, s, z = DynamicQuantizeLinear(x) }")
    numbers = ([0.0, 0.0, 0.0], [1.0, 1.0], [-2.0], [0.0, -0.5, 3.0])
    same(proto, "DynamicQuantizeLinear", *({"x": np.array(x, np.float32)} for x in numbers))


def test_dynamic_quantized_product_of_any_rows() -> None:
    proto = parsed(
        "(float[b,s,12] x, int8[12,4] w, float[4] ws, float[4] c) => (float[b,s,4] y)"
        "{ y = com.microsoft.DynamicQuantizeMatMul(x, w, ws, , c) }"
    )
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    rest = {"w": RNG.integers(-99, 99, (12, 4)).astype(np.int8), "ws": np.abs(f32(4)), "c": f32(4)}
    after, _ = legalized(proto, ["DynamicQuantizeMatMul", "DynamicQuantizeLinear"])
    for x in (f32(1, 5, 12), f32(3, 2, 12), np.zeros((2, 1, 12), np.float32)):
        agree(in_runtime(after, rest | {"x": x}), in_runtime(proto, rest | {"x": x}), 1e-4, 1e-4)


@pytest.mark.parametrize("reduction", ["add", "mul", "max", "min"])
def test_scatters_into_any_number_of_places(reduction: str) -> None:
    """Messages along the edges of a graph, whose nodes are not counted yet."""
    proto = parsed(
        "(float[n,2] x, int64[e,2] i, float[e,2] u) => (float[n,2] y)"
        f'{{ y = ScatterElements<reduction="{reduction}">(x, i, u) }}'
    )
    for n, e in ((1, 3), (5, 9), (6, 0)):
        i = RNG.integers(-n, n, (e, 2))
        same(proto, "ScatterElements", {"x": f32(n, 2), "i": i, "u": f32(e, 2)})


@pytest.mark.parametrize("inverse", [0, 1])
@pytest.mark.parametrize("parts", [1, 2])
def test_fourier_transform_of_any_length(parts: int, inverse: int) -> None:
    proto = parsed(
        f"(float[b,n,3,{parts}] x, int64 a) => (float[b,n,3,2] y) {{ y = DFT<inverse={inverse}>(x, , a) }}",
        20,
    )
    proto.graph.input.pop()
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1, np.int64), "a"))
    after, _ = legalized(proto, ["DFT"])
    for n in (1, 7, 96):
        x = f32(2, n, 3, parts)
        whole = x[..., 0] + 1j * x[..., 1] if parts == 2 else x[..., 0].astype(np.complex128)
        exact = np.fft.ifft(whole, axis=1) if inverse else np.fft.fft(whole, axis=1)
        agree(in_runtime(after, {"x": x}), [np.stack([exact.real, exact.imag], -1)], atol=2e-5)


def test_half_a_transform_of_unknown_length_stays() -> None:
    proto = parsed("(float[b,n,1] x, int64 a) => (float[b,m,2] y) { y = DFT<onesided=1>(x, , a) }", 20)
    proto.graph.input.pop()
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1, np.int64), "a"))
    stays(proto, "DFT")
