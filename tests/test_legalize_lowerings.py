"""Every lowering computes what the operator computes: several shapes, and the edges."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from legalize_helpers import agree, in_reference, in_runtime, legalized, rewritten, same_as_before, single

F, F16, I32, I64, B, U8, I8 = 1, 10, 6, 7, 9, 2, 3
RNG = np.random.default_rng(7)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


REDUCTIONS = ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare"]


@pytest.mark.parametrize("kind", REDUCTIONS)
@pytest.mark.parametrize(
    ("shape", "axes"), [((2, 3, 4), [1]), ((2, 3, 4), [-1, 0]), ((3, 2), [0, 1]), ((5,), [-1])]
)
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reductions_over_axes_given_at_run_time(
    kind: str, shape: tuple[int, ...], axes: list[int], keepdims: int
) -> None:
    feeds = {"x": np.abs(f32(*shape)) + 0.1, "axes": np.array(axes, dtype=np.int64)}
    rank = len(shape) if keepdims else len(shape) - len(axes)
    declared = [(F, [f"d{i}" for i in range(rank)])]
    proto = single(f"Reduce{kind}", feeds, declared, keepdims=keepdims)
    after, _ = legalized_once(proto, f"Reduce{kind}")
    agree(in_runtime(after, feeds), in_reference(proto, feeds))


def legalized_once(proto: onnx.ModelProto, operator: str) -> tuple[onnx.ModelProto, object]:
    """For a target that takes the operator with constant operands, and of numbers, only."""

    def variable(node: ir.Node) -> bool:
        return any(v is not None and v.const_value is None for v in node.inputs[1:])

    def refuses(model: ir.Model) -> list[int]:
        mine = [(i, n) for i, n in enumerate(model.graph) if n.op_type == operator]
        return [i for i, n in mine if variable(n) or n.inputs[0].dtype == ir.DataType.BOOL]

    after, context = rewritten(proto, refuses)
    assert context.firings, context.notes
    return after, context


def test_reductions_of_nothing_have_their_neutral_element() -> None:
    for kind, value in {"Sum": 0.0, "Prod": 1.0, "Max": -np.inf, "Min": np.inf, "LogSum": -np.inf}.items():
        feeds = {"x": np.zeros((2, 0, 3), np.float32), "axes": np.array([1], np.int64)}
        proto = single(f"Reduce{kind}", feeds, [(F, [2, 1, 3])], keepdims=1)
        after, _ = legalized_once(proto, f"Reduce{kind}")
        assert (in_runtime(after, feeds)[0] == value).all()


@pytest.mark.parametrize("kind", ["Max", "Min"])
def test_reductions_of_booleans(kind: str) -> None:
    feeds = {"x": np.array([[True, False], [False, False], [True, True]]), "axes": np.array([1], np.int64)}
    proto = single(f"Reduce{kind}", feeds, [B], constants=["axes"], keepdims=0)
    after, _ = legalized_once(proto, f"Reduce{kind}")
    agree(in_runtime(after, feeds), in_reference(proto, feeds))


@pytest.mark.parametrize("axes", [[0], [-1], [1, 3], [-4, 1]])
def test_unsqueeze_and_squeeze_at_run_time(axes: list[int]) -> None:
    feeds = {"x": f32(2, 3), "axes": np.array(axes, np.int64)}
    same_as_before(
        single("Unsqueeze", feeds, [(F, [f"d{i}" for i in range(2 + len(axes))])]), feeds, ["Unsqueeze"]
    )
    back = {"x": np.expand_dims(f32(2, 3), tuple(axes)), "axes": np.array(axes, np.int64)}
    same_as_before(single("Squeeze", back, [(F, ["a", "b"])]), back, ["Squeeze"])


POOLS = [
    {"kernel_shape": [2, 2], "dilations": [2, 2]},
    {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1], "dilations": [1, 2]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1},
]


@pytest.mark.parametrize("attributes", POOLS)
@pytest.mark.parametrize("shape", [(1, 2, 7, 8), (2, 1, 6, 5)])
def test_max_pool(attributes: dict[str, object], shape: tuple[int, ...]) -> None:
    feeds = {"x": f32(*shape)}
    same_as_before(single("MaxPool", feeds, [F], **attributes), feeds, ["MaxPool"], runtime=True)
    if not attributes.get("ceil_mode"):
        same_as_before(single("MaxPool", feeds, [F, I64], **attributes), feeds, ["MaxPool"], runtime=True)


def test_max_pool_of_negative_numbers_ignores_padding() -> None:
    feeds = {"x": -np.abs(f32(1, 1, 4, 4)) - 1}
    proto = single("MaxPool", feeds, [F], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    same_as_before(proto, feeds, ["MaxPool"], runtime=True)


def test_max_pool_ties_give_the_first_index() -> None:
    feeds = {"x": np.zeros((1, 2, 4, 4), np.float32)}
    proto = single("MaxPool", feeds, [F, I64], kernel_shape=[2, 2], strides=[2, 2])
    same_as_before(proto, feeds, ["MaxPool"], runtime=True)


@pytest.mark.parametrize("attributes", POOLS)
@pytest.mark.parametrize("include", [0, 1])
def test_average_pool(attributes: dict[str, object], include: int) -> None:
    feeds = {"x": f32(1, 2, 7, 9)}
    proto = single("AveragePool", feeds, [F], count_include_pad=include, **attributes)
    same_as_before(proto, feeds, ["AveragePool"], runtime=not (include and attributes.get("ceil_mode")))


@pytest.mark.parametrize("p", [1, 2, 3])
def test_lp_pool(p: int) -> None:
    feeds = {"x": f32(1, 2, 7, 6)}
    proto = single("LpPool", feeds, [F], p=p, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 0])
    same_as_before(proto, feeds, ["LpPool"], runtime=True)


def test_max_unpool() -> None:
    x = f32(1, 2, 4, 6)
    pooled = in_runtime(single("MaxPool", {"x": x}, [F, I64], kernel_shape=[2, 2], strides=[2, 2]), {"x": x})
    feeds = {"x": pooled[0], "i": pooled[1]}
    proto = single("MaxUnpool", feeds, [F], kernel_shape=[2, 2], strides=[2, 2])
    same_as_before(proto, feeds, ["MaxUnpool"], runtime=True)


RESIZES = [
    {"mode": "linear", "antialias": 1},
    {"mode": "cubic", "antialias": 1, "exclude_outside": 1},
    {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1},
    {"mode": "cubic", "coordinate_transformation_mode": "align_corners"},
    {"mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"},
    {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
    {"mode": "linear", "coordinate_transformation_mode": "asymmetric"},
    {"mode": "nearest", "nearest_mode": "ceil", "coordinate_transformation_mode": "asymmetric"},
    {"mode": "nearest", "nearest_mode": "round_prefer_ceil"},
    {"mode": "nearest", "nearest_mode": "round_prefer_floor"},
    {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "align_corners"},
]


@pytest.mark.parametrize("attributes", RESIZES)
@pytest.mark.parametrize("sizes", [[1, 2, 3, 4], [1, 2, 9, 11], [1, 2, 6, 3]])
def test_resize(attributes: dict[str, object], sizes: list[int]) -> None:
    feeds = {"x": f32(1, 2, 6, 8), "roi": None, "scales": None, "sizes": np.array(sizes, np.int64)}
    proto = single("Resize", feeds, [F], constants=["sizes"], **attributes)
    same_as_before(proto, feeds, ["Resize"], atol=1e-5)


@pytest.mark.parametrize("scale", [0.6, 0.8, 1.7, 2.0])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize_by_scales_on_some_axes(scale: float, mode: str) -> None:
    feeds = {"x": f32(1, 1, 5, 7), "roi": None, "scales": np.array([scale, 1.3], np.float32)}
    proto = single("Resize", feeds, [F], constants=["scales"], mode=mode, axes=[3, 2])
    same_as_before(proto, feeds, ["Resize"], atol=1e-5)


def test_resize_crops_and_fills() -> None:
    feeds = {
        "x": f32(1, 1, 4, 4),
        "roi": np.array([0, 0, 0.4, 0.6, 1, 1, 1.2, 1.7], np.float32),
        "scales": None,
        "sizes": np.array([1, 1, 3, 3], np.int64),
    }
    options = {
        "mode": "linear",
        "coordinate_transformation_mode": "tf_crop_and_resize",
        "extrapolation_value": 10.0,
    }
    same_as_before(
        single("Resize", feeds, [F], constants=["roi", "sizes"], **options), feeds, ["Resize"], atol=1e-5
    )


def test_nearest_resize_moves_nan_and_infinity_unharmed() -> None:
    feeds = {
        "x": np.array([[[[np.nan, np.inf, 1.0]]]], np.float32),
        "roi": None,
        "s": np.array([1, 1, 1, 2], np.float32),
    }
    same_as_before(
        single("Resize", feeds, [F], constants=["s"], mode="nearest"), feeds, ["Resize"], runtime=True
    )


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
@pytest.mark.parametrize(("shape", "axis"), [((4, 3), 0), ((4, 3), 1), ((2, 3, 5), -2)])
def test_scatter_elements_where_updates_meet(reduction: str, shape: tuple[int, ...], axis: int) -> None:
    size = shape[axis]
    moved = tuple(n if i == axis % len(shape) else max(1, n - 1) for i, n in enumerate(shape))
    indices = RNG.integers(-size, size, moved)
    feeds = {"x": f32(*shape), "i": indices, "u": f32(*moved)}
    proto = single("ScatterElements", feeds, [F], reduction=reduction, axis=axis)
    same_as_before(proto, feeds, ["ScatterElements"], runtime=True)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
@pytest.mark.parametrize(("shape", "depth"), [((4,), 1), ((4, 3), 1), ((3, 4, 2), 2)])
def test_scatter_nd_where_updates_meet(reduction: str, shape: tuple[int, ...], depth: int) -> None:
    indices = np.stack([RNG.integers(0, shape[k], (6,)) for k in range(depth)], -1)
    indices[0] = indices[1] = indices[2]
    feeds = {"x": f32(*shape), "i": indices, "u": f32(6, *shape[depth:])}
    same_as_before(single("ScatterND", feeds, [F], reduction=reduction), feeds, ["ScatterND"], runtime=True)


def test_more_updates_than_places() -> None:
    """TensorRT takes as many indices as there are places; the last one that meets a place stays."""
    feeds = {"x": f32(4, 3), "i": RNG.integers(-4, 4, (9, 2)), "u": f32(9, 2)}
    same_as_before(single("ScatterElements", feeds, [F], axis=0), feeds, ["ScatterElements"], runtime=True)


def test_scatter_add_does_not_spread_nan() -> None:
    feeds = {
        "x": np.zeros(3, np.float32),
        "i": np.array([[0], [2]]),
        "u": np.array([np.nan, np.inf], np.float32),
    }
    same_as_before(single("ScatterND", feeds, [F], reduction="add"), feeds, ["ScatterND"], runtime=True)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_bit_shift(dtype: type, direction: str) -> None:
    info = np.iinfo(dtype)
    x = np.array([1, -1, info.min, info.max, 5, -7, 0, 12345], dtype)
    y = np.array([0, 1, info.bits - 1, 3, info.bits - 2, 2, 40, 5], dtype)
    feeds = {"x": x, "y": np.minimum(y, info.bits - 1).astype(dtype)}
    proto = single(
        "BitShift",
        feeds,
        [onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))],
        direction=direction,
        opset=11,
    )
    after, _ = legalized(proto, ["BitShift"])
    shift = np.left_shift if direction == "LEFT" else np.right_shift
    agree(in_runtime(after, feeds), [shift(feeds["x"], feeds["y"])])


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("op", ["BitwiseAnd", "BitwiseOr", "BitwiseXor"])
def test_bitwise(dtype: type, op: str) -> None:
    info = np.iinfo(dtype)
    x = np.array([[1, -1, info.min], [info.max, 5, 0]], dtype)
    feeds = {"x": x, "y": np.array([info.min, 12345, -98765], dtype)}
    same_as_before(single(op, feeds, [onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))]), feeds, [op])


def test_bitwise_not() -> None:
    feeds = {"x": np.array([0, -1, 2**31 - 1, -(2**31)], np.int32)}
    same_as_before(single("BitwiseNot", feeds, [I32]), feeds, ["BitwiseNot"])


def test_float_mod_has_the_divisors_sign() -> None:
    x = np.array([5.3, -5.3, 5.3, -5.3, 0.0, -0.0, np.nan, 1.0, -1.0, 6.0], np.float32)
    y = np.array([2.0, 2.0, -2.0, -2.0, 3.0, 3.0, 1.0, np.inf, np.inf, 3.0], np.float32)
    proto = single("Mod", {"x": x, "y": y}, [F], fmod=0)

    def refuses(model: ir.Model) -> list[int]:
        return [
            i for i, n in enumerate(model.graph) if n.op_type == "Mod" and not n.attributes["fmod"].as_int()
        ]

    after, _ = rewritten(proto, refuses)
    with np.errstate(all="ignore"):
        expected = np.mod(x, y)
    found = in_reference(after, {"x": x, "y": y})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (np.signbit(found) == np.signbit(expected))[~np.isnan(expected)].all()


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 2, 3)])
@pytest.mark.parametrize(("exclusive", "reverse"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_cum_prod(shape: tuple[int, ...], exclusive: int, reverse: int) -> None:
    x = f32(*shape)
    for axis in range(-len(shape), len(shape)):
        feeds = {"x": x, "axis": np.array(axis, np.int64)}
        proto = single("CumProd", feeds, [F], opset=26, exclusive=exclusive, reverse=reverse)
        after, _ = legalized(proto, ["CumProd"])
        agree(in_reference(after, feeds), in_reference(proto, feeds))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_det(size: int) -> None:
    feeds = {"x": f32(2, size, size)}
    same_as_before(single("Det", feeds, [F]), feeds, ["Det"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "attributes", [{}, {"strides": [2, 1]}, {"dilations": [1, 2]}, {"pads": [1, 0, 1, 2]}]
)
def test_col2im(attributes: dict[str, list[int]]) -> None:
    image, block = [6, 7], [2, 3]
    pads, strides = attributes.get("pads", [0] * 4), attributes.get("strides", [1, 1])
    dilations = attributes.get("dilations", [1, 1])
    count = [
        (image[i] + pads[i] + pads[i + 2] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1
        for i in range(2)
    ]
    feeds = {
        "x": f32(2, 3 * 6, count[0] * count[1]),
        "image": np.array(image, np.int64),
        "block": np.array(block, np.int64),
    }
    proto = single("Col2Im", feeds, [F], constants=["image", "block"], **attributes)
    same_as_before(proto, feeds, ["Col2Im"], runtime=True)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_one_hot(axis: int) -> None:
    feeds = {
        "i": np.array([[0, -1], [2, 5]], np.int64),
        "depth": np.array(4, np.int64),
        "values": np.array([-2.0, 3.0], np.float32),
    }
    same_as_before(single("OneHot", feeds, [F], axis=axis), feeds, ["OneHot"], runtime=True)


@pytest.mark.parametrize(("inverse", "onesided", "parts"), [(0, 0, 1), (0, 0, 2), (1, 0, 2), (0, 1, 1)])
@pytest.mark.parametrize("axis", [1, 2, -2])
def test_dft(inverse: int, onesided: int, parts: int, axis: int) -> None:
    feeds = {"x": f32(2, 5, 6, parts), "n": None, "axis": np.array(axis, np.int64)}
    proto = single("DFT", feeds, [F], constants=["axis"], inverse=inverse, onesided=onesided)
    same_as_before(proto, feeds, ["DFT"], atol=1e-4)


@pytest.mark.parametrize("length", [4, 9])
def test_dft_cuts_and_pads(length: int) -> None:
    feeds = {"x": f32(1, 6, 1), "n": np.array(length, np.int64)}
    same_as_before(single("DFT", feeds, [F], constants=["n"], opset=17, axis=1), feeds, ["DFT"], atol=1e-4)


def test_stft() -> None:
    feeds = {"x": f32(2, 64, 1), "step": np.array(8, np.int64), "w": np.hanning(16).astype(np.float32)}
    proto = single("STFT", feeds, [F], constants=["step"], onesided=1)
    same_as_before(proto, feeds, ["STFT"], atol=1e-4)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_compress_by_a_constant(axis: int | None) -> None:
    feeds = {"x": f32(3, 2), "c": np.array([True, False, True][: 2 if axis == 1 else 3])}
    attributes = {} if axis is None else {"axis": axis}
    same_as_before(single("Compress", feeds, [F], constants=["c"], **attributes), feeds, ["Compress"])


def test_vectors_times_matrices() -> None:
    for a, b in (((3,), (3,)), ((3,), (2, 3, 4)), ((2, 4, 3), (3,))):
        feeds = {"a": f32(*a), "b": f32(*b)}
        proto = single("MatMul", feeds, [F])
        after, _ = rewritten(
            proto,
            lambda m: [
                i
                for i, n in enumerate(m.graph)
                if n.op_type == "MatMul" and min(len(v.shape) for v in n.inputs) < 2
            ],
        )
        agree(in_runtime(after, feeds), in_runtime(proto, feeds))


def test_celu_and_clip() -> None:
    feeds = {"x": np.array([-100.0, -1.0, -0.0, 0.5, 3.0], np.float32)}
    same_as_before(single("Celu", feeds, [F], alpha=2.0), feeds, ["Celu"], runtime=True)
    ints = {"x": np.array([-9, 3, 9], np.int8), "low": np.array(-2, np.int8), "high": np.array(5, np.int8)}
    same_as_before(single("Clip", ints, [I8]), ints, ["Clip"], runtime=True)


def test_batch_normalization_of_its_own_batch() -> None:
    feeds = {"x": f32(3, 2, 4, 5), **{n: np.abs(f32(2)) for n in ("s", "b", "m", "v")}}
    proto = single("BatchNormalization", feeds, [F, F, F], training_mode=1, momentum=0.8)
    same_as_before(proto, feeds, ["BatchNormalization"], atol=1e-5)


def test_idle_dropout() -> None:
    feeds = {"x": f32(2, 3), "r": np.array(0.5, np.float32), "t": np.array(False)}
    same_as_before(single("Dropout", feeds, [F, B], constants=["t"]), feeds, ["Dropout"], runtime=True)


def test_tensor_scatter() -> None:
    for mode, start in (("linear", [1, 2]), ("circular", [3, 1])):
        feeds = {"c": f32(2, 2, 4, 3), "u": f32(2, 2, 2, 3), "s": np.array(start, np.int64)}
        proto = single("TensorScatter", feeds, [F], opset=24, mode=mode)
        after, _ = legalized(proto, ["TensorScatter"])
        agree(in_reference(after, feeds), in_reference(proto, feeds))


@pytest.mark.parametrize("op", ["LayerNormalization", "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"])
def test_function_bodies_of_the_schema(op: str) -> None:
    if op == "LayerNormalization":
        feeds = {"x": f32(2, 3, 4), "s": f32(4), "b": f32(4)}
        proto = single(op, feeds, [F, F, F], axis=-1)
    else:
        feeds = {"x": f32(3, 5, 2), "t": np.array([[0, 4], [2, -1], [1, 1]], np.int64), "w": np.abs(f32(5))}
        proto = single(op, feeds, [F], ignore_index=-1, reduction="mean")
    same_as_before(
        proto, feeds, ["LayerNormalization", "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"]
    )


@pytest.mark.parametrize("mode", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize("samples", [0, 1, 2, 3])
def test_roi_align(mode: str, samples: int) -> None:
    rois = np.array([[0, 0, 7, 7], [1.5, 2, 4, 9], [-3, -2, 3, 2], [5, 5, 5, 5]], np.float32)
    feeds = {"x": f32(2, 3, 8, 10), "r": rois, "b": np.array([0, 1, 1, 0], np.int64)}
    proto = single(
        "RoiAlign", feeds, [F], output_height=3, output_width=2, sampling_ratio=samples, spatial_scale=0.9,
        coordinate_transformation_mode=mode,
    )  # fmt: skip
    same_as_before(proto, feeds, ["RoiAlign"], runtime=True)


@pytest.mark.parametrize("size", [[1, 1, 4, 5], [2, 3, 3, 2], [2, 1, 2, 3, 4]])
@pytest.mark.parametrize("aligned", [0, 1])
def test_affine_grid(size: list[int], aligned: int) -> None:
    rank = len(size) - 2
    feeds = {"t": f32(size[0], rank, rank + 1), "s": np.array(size, np.int64)}
    proto = single("AffineGrid", feeds, [F], constants=["s"], align_corners=aligned)
    same_as_before(proto, feeds, ["AffineGrid"])


@pytest.mark.parametrize("aligned", [0, 1])
@pytest.mark.parametrize("size", [[2, 3, 4, 5], [1, 1, 2, 3], [2, 1, 3, 2, 4]])
def test_affine_grid_of_a_size_known_at_run_time(size: list[int], aligned: int) -> None:
    spatial = len(size) - 2
    theta = f32(size[0], spatial, spatial + 1)
    feeds = {"theta": theta, "s": np.array(size)}
    proto = single("AffineGrid", feeds, [F], align_corners=aligned)
    same_as_before(proto, feeds, ["AffineGrid"], runtime=True, atol=1e-5)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("group", [1, 2])
def test_deform_conv(parts: int, group: int) -> None:
    feeds = {
        "x": f32(2, 4, 6, 7), "w": f32(4, 4 // group, 3, 2), "o": f32(2, parts * 12, 3, 6) * 2,
        "b": f32(4), "m": np.abs(f32(2, parts * 6, 3, 6)),
    }  # fmt: skip
    proto = single(
        "DeformConv", feeds, [F], strides=[2, 1], pads=[1, 0, 1, 0], offset_group=parts, group=group
    )
    same_as_before(proto, feeds, ["DeformConv"], atol=1e-4)


@pytest.mark.parametrize("k", [-1, 0, 2])
def test_eye_like(k: int) -> None:
    for shape in ((3, 3), (2, 5)):
        feeds = {"x": f32(*shape)}
        same_as_before(single("EyeLike", feeds, [I64], k=k, dtype=I64), feeds, ["EyeLike"], runtime=True)


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("axis", [0, 1])
def test_top_k_by_rank(largest: int, axis: int) -> None:
    feeds = {"x": RNG.integers(0, 4, (6, 5)).astype(np.float32), "k": np.array([4], np.int64)}
    proto = single("TopK", feeds, [F, I64], constants=["k"], axis=axis, largest=largest)
    same_as_before(proto, feeds, ["TopK"], runtime=True)


def test_label_encoder_of_numbers() -> None:
    feeds = {"x": np.array([5, 1, 2, 9], np.int64)}
    options = {"keys_int64s": [1, 2, 9], "values_floats": [0.5, 1.5, -2.0], "default_float": 7.0}
    proto = single("LabelEncoder", feeds, [F], domain="ai.onnx.ml", **options)
    proto.opset_import[1].version = 2
    same_as_before(proto, feeds, ["LabelEncoder"], runtime=True)


def test_multinomial_draws_classes() -> None:
    feeds = {"x": np.log(np.array([[0.05, 0.9, 0.05]], np.float32))}
    after, _ = legalized(single("Multinomial", feeds, [I32], sample_size=500), ["Multinomial"])
    drawn = in_runtime(after, feeds)[0]
    assert drawn.shape == (1, 500)
    assert 400 < (drawn == 1).sum() < 490
