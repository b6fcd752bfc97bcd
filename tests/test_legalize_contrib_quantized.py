"""ONNX Runtime's quantized attention, embeddings and images, and operators that ONNX has too, against its kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from legalize_helpers import agree, in_runtime, legalized, rewritten, single
from onnxlathe.infer import infer_model
from onnxlathe.model import Model
from onnxlathe.rewrite import Context
from onnxlathe.target import find_target
from onnxlathe_passes.legalize import Legalize
from onnxlathe_passes.legalize.judge import TargetJudge
from onnxlathe_passes.legalize.run import Legalizing

F, U8, I8, I32, I64 = 1, 2, 3, 6, 7
MS = "com.microsoft"
RNG = np.random.default_rng(2)
needs_target = pytest.mark.skipif(not find_target().available, reason="no TensorRT is installed")


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def u8(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape).astype(np.uint8)


def i8(*shape: int) -> np.ndarray:
    return RNG.integers(-100, 100, shape).astype(np.int8)


def number(value: float, dtype: Any = np.float32) -> np.ndarray:
    return np.array(value, dtype)


def check(
    op: str, feeds: dict[str, Any], outputs: list[Any], constants: tuple[str, ...] = (), **attributes: Any
) -> None:
    proto = single(op, feeds, outputs, constants=constants, domain=MS, **attributes)
    # The operator of ONNX that it becomes may have the same name.
    after, _ = legalized_of(proto, op)
    given = {n: a for n, a in feeds.items() if a is not None}
    assert not [n for n in after.graph.node if n.domain]
    agree(in_runtime(after, given), in_runtime(proto, given), 1e-4, 2e-5)


def legalized_of(proto: Any, op: str) -> tuple[Any, Any]:
    """As `legalized`, for a target that refuses the operator of ONNX Runtime and not that of ONNX."""
    return rewritten(
        proto, lambda model: [i for i, n in enumerate(model.graph) if n.op_type == op and n.domain == MS]
    )


@pytest.mark.parametrize(("batch", "length"), [(2, 4), (1, 7)])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("causal", [0, 1])
def test_q_attention(batch: int, length: int, mask: bool, causal: int) -> None:
    feeds = {
        "x": u8(batch, length, 8), "w": i8(8, 24), "b": f32(24), "xs": number(0.02), "ws": number(0.01),
        "m": np.full(batch, length - 1, np.int32) if mask else None,
        "xz": number(120, np.uint8), "wz": number(0, np.int8),
    }  # fmt: skip
    check("QAttention", feeds, [F], ("w", "b", "ws", "wz"), num_heads=2, unidirectional=causal)


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("length", [4, 6])
def test_q_embed_layer_normalization(segmented: bool, length: int) -> None:
    scales = {f"s{i}": number(0.01 + 0.01 * i) for i in range(5)}
    zeros = {f"z{i}": number(100 + i, np.uint8) for i in range(5)}
    feeds = {
        "ids": RNG.integers(0, 9, (2, length)).astype(np.int32),
        "seg": RNG.integers(0, 2, (2, length)).astype(np.int32) if segmented else None,
        "w": u8(9, 8), "p": u8(6, 8), "t": u8(2, 8) if segmented else None, "g": u8(8), "b": u8(8),
        "mask": np.array([[1] * length, [1] * (length - 2) + [0] * 2], np.int32), **scales, **zeros,
    }  # fmt: skip
    if not segmented:
        feeds |= {"s2": None, "z2": None}
    check("QEmbedLayerNormalization", feeds, [F, I32])


@pytest.mark.parametrize("shape", [(2, 5), (1, 3, 4)])
def test_q_linear_where(shape: tuple[int, ...]) -> None:
    feeds = {
        "c": RNG.integers(0, 2, shape).astype(bool), "x": u8(*shape), "xs": number(0.1), "xz": number(90, np.uint8),
        "y": u8(*shape), "ys": number(0.05), "yz": number(3, np.uint8), "zs": number(0.2), "zz": number(100, np.uint8),
    }  # fmt: skip
    check("QLinearWhere", feeds, [U8], ("xs", "xz", "ys", "yz", "zs", "zz"))


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("size", [5, 6])
def test_q_linear_conv(last: int, size: int) -> None:
    feeds = {
        "x": u8(1, size, size, 3) if last else u8(1, 3, size, size), "xs": number(0.02), "xz": number(120, np.uint8),
        "w": i8(4, 3, 3, 3), "ws": RNG.uniform(0.01, 0.02, 4).astype(np.float32), "wz": np.zeros(4, np.int8),
        "ys": number(0.5), "yz": number(100, np.uint8), "b": RNG.integers(-99, 99, 4).astype(np.int32),
    }  # fmt: skip
    constants = ("xs", "xz", "w", "ws", "wz", "ys", "yz", "b")
    check("QLinearConv", feeds, [U8], constants, channels_last=last, pads=[1, 1, 1, 1], strides=[2, 2])


@pytest.mark.parametrize("shape", [(1, 6, 6, 3), (2, 5, 7, 2)])
def test_nhwc_max_pool(shape: tuple[int, ...]) -> None:
    feeds = {"x": u8(*shape)}
    check("NhwcMaxPool", feeds, [U8], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize(("depth", "width"), [(64, 3), (32, 8)])
def test_matmul_of_four_bits_in_a_table(kind: int, depth: int, width: int) -> None:
    feeds = {
        "x": f32(2, depth),
        "b": u8(depth * width // 2),
        "s": RNG.uniform(0.1, 1, depth * width // 16).astype(np.float32),
    }
    check("MatMulBnb4", feeds, [F], ("b", "s"), K=depth, N=width, block_size=16, quant_type=kind)


@pytest.mark.parametrize("upper", [0, 1])
def test_what_onnx_has_by_the_same_name(upper: int) -> None:
    check("Trilu", {"x": f32(2, 4, 5), "k": number(1, np.int64)}, [F], upper=upper)
    pads = np.array([0, 1, 2, 0], np.int64)
    check("Pad", {"x": f32(2, 3), "p": pads, "v": number(0.5)[None]}, [F], mode="constant")
    check("Range", {"a": number(1), "b": number(7)}, [F])
    check("Range", {"a": number(1), "b": number(7), "d": number(2)}, [F])
    for where in (np.array([[0, 1], [1, 2]], np.int32), np.array([[1]], np.int64)):
        check("GatherND", {"x": f32(2, 3, 4), "i": where}, [F])
    for axis in (-1, 0, 1):
        check("ExpandDims", {"x": f32(2, 3), "a": number(axis, np.int32)}, [F], ("a",))


@pytest.mark.parametrize(("size", "group"), [(5, 1), (8, 2)])
@pytest.mark.parametrize("last", [False, True])
def test_conv_of_an_image_with_its_channels_last(size: int, group: int, last: bool) -> None:
    """ONNX Runtime has kernels on GPUs only: against Conv of ONNX. Weights with their channels last, or not."""
    x, w, b = f32(2, size, size, 4), f32(6, 4 // group, 3, 3), f32(6)
    attributes: dict[str, Any] = {"pads": [1, 1, 1, 1], "strides": [2, 2], "group": group}
    image = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    (expected,) = in_runtime(
        single("Conv", {"x": image, "w": w, "b": b}, [F], **attributes), {"x": image, "w": w, "b": b}
    )
    feeds = {"x": x, "w": np.ascontiguousarray(w.transpose(0, 2, 3, 1)) if last else w, "b": b}
    after, _ = legalized(
        single("NhwcConv", feeds, [F], domain=MS, kernel_shape=[3, 3], **attributes), ["NhwcConv"]
    )
    agree(in_runtime(after, feeds), [expected.transpose(0, 2, 3, 1)], 1e-4, 1e-5)


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("activation", [0, 1])
@pytest.mark.parametrize("skipped", [False, True])
@pytest.mark.parametrize(("channels", "groups"), [(8, 4), (6, 2)])
def test_group_norm(last: int, activation: int, skipped: bool, channels: int, groups: int) -> None:
    """ONNX Runtime has kernels on GPUs only: against GroupNormalization of ONNX."""
    x, gamma, beta = f32(2, 4, 3, channels), f32(channels), f32(channels)
    skip, bias = f32(2, channels), f32(channels)
    total = x + skip[:, None, None] + bias if skipped else x
    image = np.ascontiguousarray(total.transpose(0, 3, 1, 2))
    norm = single(
        "GroupNormalization", {"x": image, "g": gamma, "b": beta}, [F], num_groups=groups, epsilon=1e-3
    )
    (expected,) = in_runtime(norm, {"x": image, "g": gamma, "b": beta})
    if activation:
        expected = expected / (1 + np.exp(-expected))
    mine = x if last else np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    feeds = {"x": mine, "g": gamma, "b": beta}
    if skipped:
        feeds |= {"s": skip, "o": bias}
    op = "SkipGroupNorm" if skipped else "GroupNorm"
    attributes = {"groups": groups, "channels_last": last, "activation": activation, "epsilon": 1e-3}
    after, _ = legalized(single(op, feeds, [F, F] if skipped else [F], domain=MS, **attributes), [op])
    found = in_runtime(after, feeds)
    wanted = [expected, image][: 1 + skipped]
    agree(found, [w.transpose(0, 2, 3, 1) if last else w for w in wanted], 1e-3, 1e-4)


@needs_target
def test_the_target_takes_what_they_become() -> None:
    """Where it refuses the operator; TensorRT for RTX has importers for some."""
    bert = {
        "x": u8(2, 4, 8), "w": i8(8, 24), "b": f32(24), "xs": number(0.02), "ws": number(0.01),
        "m": np.full(2, 3, np.int32), "xz": number(120, np.uint8), "wz": number(0, np.int8),
    }  # fmt: skip
    conv = {
        "x": u8(1, 6, 6, 3), "xs": number(0.02), "xz": number(120, np.uint8), "w": i8(4, 3, 3, 3),
        "ws": RNG.uniform(0.01, 0.02, 4).astype(np.float32), "wz": np.zeros(4, np.int8),
        "ys": number(0.5), "yz": number(100, np.uint8),
    }  # fmt: skip
    cases: list[tuple[str, dict[str, Any], list[int], dict[str, Any]]] = [
        ("QAttention", bert, [F], {"num_heads": 2}),
        ("QLinearConv", conv, [U8], {"channels_last": 1}),
        ("NhwcMaxPool", {"x": u8(1, 6, 6, 3)}, [U8], {"kernel_shape": [2, 2]}),
        ("GroupNorm", {"x": f32(1, 4, 4, 8), "g": f32(8), "b": f32(8)}, [F], {"groups": 2, "activation": 1}),
        ("MatMulBnb4", {"x": f32(2, 64), "b": u8(96), "s": f32(12)}, [F],
         {"K": 64, "N": 3, "block_size": 16, "quant_type": 1}),
    ]  # fmt: skip
    with TargetJudge(find_target()) as judge:  # type: ignore[arg-type]
        for op, feeds, outputs, attributes in cases:
            constants = tuple(n for n in feeds if n not in ("x", "m"))
            proto = single(op, feeds, outputs, constants=constants, domain=MS, **attributes)
            model = Model(ir.from_proto(proto))
            infer_model(model)
            assert not judge.judge(model.ir).accepted, op
            Legalizing(Legalize(), model, Context.of(model.ir), judge).run()
            assert judge.judge(model.ir).accepted, op
