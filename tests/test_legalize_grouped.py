"""GroupQueryAttention taken apart, against ONNX Runtime's kernel: prompts, steps, caches, windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxlathe
from language_model import Decoder
from legalize_helpers import agree, in_runtime, legalized, same_as_before, single
from onnxlathe.infer import infer_model
from onnxlathe.model import Model
from onnxlathe.model.samples import sample_inputs
from onnxlathe.target import find_target
from onnxlathe_passes.legalize import Legalize
from onnxlathe_passes.legalize.judge import TargetJudge

F = 1
RNG = np.random.default_rng(5)
OP = "GroupQueryAttention"


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def feeds_of(
    batch: int, new: int, past: int | None, heads: int, groups: int, size: int, *,
    ends: list[int] | None = None, room: int = 0, packed: bool = False, rotary: int = 0,
    bias: tuple[int, int] | None = None, sink: bool = False, places: np.ndarray | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Operands for `new` positions after `past`, of which `ends` (by row) count; a cache with `room` to spare."""
    total = (past or 0) + new
    ends = ends or [total] * batch
    width = (heads + 2 * groups) * size if packed else heads * size
    cache = None if past is None else f32(batch, groups, past + room, size)
    return {
        "query": f32(batch, new, width),
        "key": None if packed else f32(batch, new, groups * size),
        "value": None if packed else f32(batch, new, groups * size),
        "past_key": cache,
        "past_value": None if cache is None else cache + 1,
        "ends": np.array(ends, np.int32) - 1,
        "total": np.array(max(ends), np.int32),
        "cosine": f32(32, rotary) if rotary else None,
        "sine": f32(32, rotary) if rotary else None,
        "places": places,
        "bias": f32(*bias, new, max(ends)) if bias else None,
        "sink": f32(heads) if sink else None,
    }


def check(feeds: dict[str, Any], heads: int, groups: int, **attributes: Any) -> onnx.ModelProto:
    attributes |= {"num_heads": heads, "kv_num_heads": groups}
    proto = single(OP, feeds, [F, F, F], domain="com.microsoft", **attributes)
    return same_as_before(proto, feeds, [OP], runtime=True, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("heads", "groups"), [(4, 2), (6, 1), (3, 3)])
@pytest.mark.parametrize("packed", [False, True])
def test_prompt(heads: int, groups: int, packed: bool) -> None:
    check(feeds_of(2, 5, None, heads, groups, 8, packed=packed), heads, groups)
    check(feeds_of(1, 3, 0, heads, groups, 16, packed=packed, rotary=8), heads, groups, do_rotary=1)


@pytest.mark.parametrize(("batch", "new", "past"), [(1, 1, 4), (3, 1, 6), (1, 4, 3)])
@pytest.mark.parametrize("room", [0, 5])
def test_after_a_past(batch: int, new: int, past: int, room: int) -> None:
    feeds = feeds_of(batch, new, past, 4, 2, 16, room=room, rotary=8)
    check(feeds, 4, 2, do_rotary=1)
    check(feeds, 4, 2)


@pytest.mark.parametrize("room", [0, 3])
def test_rows_of_different_length(room: int) -> None:
    check(feeds_of(3, 1, 6, 4, 2, 16, ends=[7, 3, 5], room=room, rotary=8), 4, 2, do_rotary=1)
    prompt = feeds_of(2, 5, 0, 4, 2, 8, ends=[5, 3])
    check(prompt, 4, 2)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("rotary", [8, 16])
def test_rotation_of_all_or_a_part(interleaved: int, rotary: int) -> None:
    feeds = feeds_of(2, 1, 5, 4, 2, 32, rotary=rotary)
    check(feeds, 4, 2, do_rotary=1, rotary_interleaved=interleaved)


def test_given_positions() -> None:
    """Of a step as they are; of a prompt the first number alone, as ONNX Runtime has it."""
    step = feeds_of(2, 1, 5, 4, 2, 16, rotary=8, places=np.array([[9], [2]]))
    check(step, 4, 2, do_rotary=1)
    prompt = feeds_of(1, 3, 0, 4, 2, 16, rotary=8, places=np.array([[4, 9, 1]]))
    check(prompt, 4, 2, do_rotary=1)
    check({**prompt, "past_key": None, "past_value": None}, 4, 2, do_rotary=1)


@pytest.mark.parametrize(("past", "new"), [(0, 7), (6, 1), (4, 3)])
@pytest.mark.parametrize("window", [1, 3, 20])
def test_window(past: int, new: int, window: int) -> None:
    check(feeds_of(1, new, past, 4, 2, 8), 4, 2, local_window_size=window)


@pytest.mark.parametrize("bias", [(1, 1), (2, 1), (1, 4), (2, 4)])
@pytest.mark.parametrize("room", [0, 4])
def test_bias_softcap_and_scale(bias: tuple[int, int], room: int) -> None:
    feeds = feeds_of(2, 1, 5, 4, 2, 8, bias=bias, room=room)
    check(feeds, 4, 2, softcap=2.5, scale=0.7)


@pytest.mark.parametrize("sink", [False, True])
def test_smooth_softmax(sink: bool) -> None:
    feeds = feeds_of(2, 4, None, 4, 2, 8, sink=sink)
    check(feeds, 4, 2, **({} if sink else {"smooth_softmax": 1}))


def test_norms_of_heads() -> None:
    """What newer models hold inside of the operator, which ONNX Runtime's kernel for CPUs does not do."""
    feeds = feeds_of(2, 3, None, 4, 2, 8)
    weights = {"q_norm": f32(8), "k_norm": f32(8)}
    names = [None] * 2
    full = {**feeds, "k_scale": names[0], "v_scale": names[1], **weights}
    attributes: dict[str, Any] = {"num_heads": 4, "kv_num_heads": 2}
    proto = single(OP, full, [F], domain="com.microsoft", qk_norm_epsilon=1e-3, **attributes)
    after, _ = legalized(proto, [OP])
    given = {n: a for n, a in full.items() if a is not None}

    def normed(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        heads = x.reshape(2, 3, -1, 8)
        return (heads / np.sqrt((heads**2).mean(-1, keepdims=True) + 1e-3) * weight).reshape(x.shape)

    plain = {
        **feeds,
        "query": normed(feeds["query"], weights["q_norm"]),
        "key": normed(feeds["key"], weights["k_norm"]),
    }
    expected = in_runtime(
        single(OP, plain, [F], domain="com.microsoft", **attributes),
        {n: a for n, a in plain.items() if a is not None},
    )
    agree(in_runtime(after, given), expected, 1e-4, 2e-5)


@pytest.mark.parametrize("more", [{"sliding_window_cache": 1, "local_window_size": 4}, {"causal": 0}])
def test_what_is_left_alone(more: dict[str, int]) -> None:
    feeds = feeds_of(1, 1, 4, 4, 2, 8)
    proto = single(OP, feeds, [F], domain="com.microsoft", num_heads=4, kv_num_heads=2, **more)
    with pytest.raises(AssertionError):
        legalized(proto, [OP])


@pytest.mark.skipif(not find_target().available, reason="no TensorRT is installed")
@pytest.mark.parametrize("cache", [None, 32])
def test_a_language_model_is_taken_and_equal(cache: int | None, tmp_path: Path) -> None:
    """Exported with ONNX Runtime's own operators throughout, with a cache that grows or one that is filled."""
    path = tmp_path / "decoder.onnx"
    onnx.save(Decoder(cache=cache).model(), path)
    model = onnxlathe.load(path)
    report = onnxlathe.optimize(model, [Legalize(cache=str(tmp_path))])
    assert report.verdict is not None
    assert report.verdict.status == "equal"
    operators = {node.op_type for node in model.nodes()}
    assert not operators & {"MatMulNBits", "GroupQueryAttention"}
    with TargetJudge(find_target()) as judge:  # type: ignore[arg-type]
        assert judge.judge(model.ir).accepted


def test_shapes_of_a_cache() -> None:
    """As long as it was, or as what is in it afterwards."""
    for cache, length in ((None, "max(past_sequence_length, total_sequence_length)"), (32, "32")):
        model = Model(ir.from_proto(Decoder(layers=1, cache=cache).model()))
        declared = next(v for v in model.graph.outputs if v.name == "present.0.key")
        declared.shape = None
        infer_model(model)
        dims = [str(d) for d in declared.shape or ()]
        assert dims[:2] == ["batch", "2"]
        assert dims[3] == "16"
        assert cache is None or dims[2] in (length, "max(32, total_sequence_length)")
        assert cache is not None or dims[2] == length


def test_samples_fill_the_cache() -> None:
    """Lengths that are inputs are those of the past and the new positions, or of the whole cache."""
    for after, last in ((9, 8), (6, 5)):
        feeds = feeds_of(2, 3, 6, 4, 2, 8)
        declared = (F, [2, 2, after, 8])
        attributes = {"num_heads": 4, "kv_num_heads": 2}
        proto = single(OP, feeds, [(F, None), declared, declared], domain="com.microsoft", **attributes)
        sampled = sample_inputs(Model(ir.from_proto(proto)), seed=0)
        assert sampled["ends"].tolist() == [last, last]
        assert int(sampled["total"]) == last + 1
