"""ONNX Runtime's own operators taken apart, against its own kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from legalize_helpers import agree, in_runtime, legalized, same_as_before, single

F, I32, I64, U8, I8 = 1, 6, 7, 2, 3
RNG = np.random.default_rng(11)
MS = "com.microsoft"


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def check(
    op: str,
    feeds: Mapping[str, Any],
    outputs: list[Any],
    constants: tuple[str, ...] = (),
    atol: float = 2e-5,
    **attributes: Any,
) -> None:
    proto = single(op, feeds, outputs, constants=constants, domain=MS, **attributes)
    same_as_before(proto, feeds, [op], runtime=True, rtol=1e-4, atol=atol)


@pytest.mark.parametrize(
    "flags", [{}, {"transA": 1}, {"transB": 1, "alpha": 0.25}, {"transA": 1, "transB": 1}]
)
def test_fused_matmul(flags: dict[str, Any]) -> None:
    a = f32(2, 4, 3) if flags.get("transA") else f32(2, 3, 4)
    b = f32(2, 5, 4) if flags.get("transB") else f32(2, 4, 5)
    check("FusedMatMul", {"a": a, "b": b}, [F], **flags)


@pytest.mark.parametrize("shape", [(2, 8), (2, 3, 4)])
def test_gelus(shape: tuple[int, ...]) -> None:
    x, bias = f32(*shape) * 3, f32(shape[-1])
    check("Gelu", {"x": x}, [F])
    check("BiasGelu", {"x": x, "b": bias}, [F])
    check("FastGelu", {"x": x, "b": bias}, [F])
    check("FastGelu", {"x": x}, [F])
    check("QuickGelu", {"x": x}, [F], alpha=1.5)


@pytest.mark.parametrize("extra", [False, True])
def test_skip_layer_normalization(extra: bool) -> None:
    feeds = {
        "x": f32(2, 3, 8),
        "skip": f32(2, 3, 8),
        "g": f32(8),
        "beta": f32(8) if extra else None,
        "b": f32(8),
    }
    check("SkipLayerNormalization", feeds, [F, 0, 0, F] if extra else [F], epsilon=1e-5)
    del feeds["beta"]
    check("SkipSimplifiedLayerNormalization", feeds, [F], epsilon=1e-5)


def test_embed_layer_normalization() -> None:
    feeds = {
        "ids": RNG.integers(0, 9, (2, 4)).astype(np.int32),
        "seg": RNG.integers(0, 2, (2, 4)).astype(np.int32),
        "w": f32(9, 8), "p": f32(6, 8), "s": f32(2, 8), "g": f32(8), "b": f32(8),
        "mask": np.array([[1, 1, 1, 0], [1, 1, 0, 0]], np.int32),
    }  # fmt: skip
    check("EmbedLayerNormalization", feeds, [F, I32])


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid", "Tanh"])
def test_fused_conv(activation: str) -> None:
    feeds = {"x": f32(1, 3, 6, 6), "w": f32(4, 3, 3, 3), "b": f32(4)}
    check("FusedConv", feeds, [F], activation=activation, pads=[1, 1, 1, 1])
    check("FusedConv", feeds, [F], activation="LeakyRelu", activation_params=[0.2])


def test_fused_gemm() -> None:
    check("FusedGemm", {"a": f32(2, 3), "b": f32(4, 3), "c": f32(4)}, [F], transB=1, activation="Relu")


def qparams(scale: float, zero: int, dtype: type = np.uint8) -> tuple[np.ndarray, np.ndarray]:
    return np.array(scale, np.float32), np.array(zero, dtype)


def test_quantized_elementwise() -> None:
    (a_s, a_z), (b_s, b_z), (y_s, y_z) = qparams(0.1, 120), qparams(0.05, 3), qparams(0.2, 100)
    a, b = (RNG.integers(0, 256, (2, 5)).astype(np.uint8) for _ in range(2))
    feeds = {"a": a, "as": a_s, "az": a_z, "b": b, "bs": b_s, "bz": b_z, "ys": y_s, "yz": y_z}
    check("QLinearAdd", feeds, [U8], ("as", "az", "bs", "bz", "ys", "yz"))
    unary = {"a": a, "as": a_s, "az": a_z, "ys": y_s, "yz": y_z}
    check("QLinearLeakyRelu", unary, [U8], ("as", "az", "ys", "yz"), alpha=0.1)


def test_quantized_gemm() -> None:
    feeds = {
        "a": RNG.integers(0, 256, (3, 6)).astype(np.uint8), "as": np.array(0.02, np.float32), "az": np.array(100, np.uint8),
        "b": RNG.integers(-128, 128, (6, 4)).astype(np.int8), "bs": np.array(0.03, np.float32), "bz": np.array(0, np.int8),
        "c": RNG.integers(-100, 100, (4,)).astype(np.int32),
    }  # fmt: skip
    check("QGemm", feeds, [F], ("as", "az", "b", "bs", "bz", "c"), alpha=1.0)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("quantized", [False, True])
def test_quantized_gemm_by_columns(rows: int, quantized: bool) -> None:
    """Scales of the columns where B lies the other way; one rounding, so that ties fall as they do there."""
    feeds = {
        "a": RNG.integers(0, 256, (rows, 6)).astype(np.uint8), "as": np.array(0.05, np.float32), "az": np.array(7, np.uint8),
        "b": RNG.integers(-9, 9, (4, 6)).astype(np.int8), "bs": np.array([0.1, 0.2, 0.05, 0.3], np.float32), "bz": np.zeros(4, np.int8),
        "c": RNG.integers(-100, 100, (4,)).astype(np.int32),
    }  # fmt: skip
    constants = ["as", "az", "b", "bs", "bz", "c"]
    if quantized:
        feeds |= {"ys": np.array(0.2, np.float32), "yz": np.array(3, np.uint8)}
        constants += ["ys", "yz"]
    check("QGemm", feeds, [U8 if quantized else F], tuple(constants), transB=1, alpha=0.5)


@pytest.mark.parametrize("mask", [None, "lengths", "ends and starts", "raw"])
@pytest.mark.parametrize("causal", [0, 1])
def test_attention(mask: str | None, causal: int) -> None:
    masks = {
        None: None,
        "lengths": np.array([4, 2], np.int32),
        "ends and starts": np.array([4, 4, 0, 2], np.int32),
        "raw": np.array([[1, 1, 1, 1], [1, 1, 0, 0]], np.int32),
    }
    feeds = {"x": f32(2, 4, 8), "w": f32(8, 24), "b": f32(24), "m": masks[mask]}
    check("Attention", feeds, [F], num_heads=2, unidirectional=causal)


def test_attention_with_a_past() -> None:
    feeds = {"x": f32(2, 3, 8), "w": f32(8, 24), "b": f32(24), "m": None, "past": f32(2, 2, 2, 5, 4)}
    check("Attention", feeds, [F, F], num_heads=2, unidirectional=1)


@pytest.mark.parametrize("biased", [False, True])
def test_multi_head_attention(biased: bool) -> None:
    feeds = {"q": f32(2, 3, 8), "k": f32(2, 5, 8), "v": f32(2, 5, 8), "b": f32(24) if biased else None}
    check("MultiHeadAttention", feeds, [F], num_heads=2)
    feeds |= {"m": np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)}
    check("MultiHeadAttention", feeds, [F], num_heads=2)


@pytest.mark.parametrize(("batch", "length"), [(2, 3), (1, 5)])
def test_multi_head_attention_of_packed_operands(batch: int, length: int) -> None:
    """ONNX Runtime's kernel for CPUs takes them apart only: the same numbers, packed here and not there."""
    query, key, value = (f32(batch, length, 2, 4) for _ in range(3))
    flat = {n: x.reshape(batch, length, 8) for n, x in (("q", query), ("k", key), ("v", value))}
    expected = in_runtime(single("MultiHeadAttention", flat, [F], domain=MS, num_heads=2), flat)
    packed = {"q": np.stack([query, key, value], axis=3)}
    halves = {"q": flat["q"], "k": np.stack([key, value], axis=3)}
    for feeds in (packed, halves):
        after, _ = legalized(
            single("MultiHeadAttention", feeds, [F], domain=MS, num_heads=2), ["MultiHeadAttention"]
        )
        agree(in_runtime(after, feeds), expected, 1e-4, 2e-5)


def test_multi_head_attention_of_given_heads() -> None:
    """Keys and values of another model's cache, which have their heads apart."""
    feeds = {"q": f32(2, 3, 8), "k": f32(2, 2, 5, 4), "v": f32(2, 2, 5, 4), "b": f32(24)}
    check("MultiHeadAttention", feeds, [F], num_heads=2)


@pytest.mark.parametrize("length", [1, 4])
def test_rotary_embedding_from_an_offset(length: int) -> None:
    feeds = {"x": f32(2, length, 16), "p": np.array([3], np.int64), "c": f32(10, 4), "s": f32(10, 4)}
    check("RotaryEmbedding", feeds, [F])


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("rank", [3, 4])
def test_rotary_embedding(interleaved: int, rank: int) -> None:
    x = f32(2, 3, 16) if rank == 3 else f32(2, 2, 3, 8)
    places = np.array([[0, 1, 2], [3, 4, 5]], np.int64)
    feeds = {"x": x, "p": places, "c": f32(10, 4), "s": f32(10, 4)}
    check("RotaryEmbedding", feeds, [F], interleaved=interleaved)
