"""Models in segments: the same verdicts as of whole ones, in the memory of one segment."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxlathe
from helpers import parse
from onnxlathe.defaults import WEIGHTS_LIST
from onnxlathe.model import Model, load
from onnxlathe.model.mapped import save_mapped
from onnxlathe.verify import Verifier, memory, session, suspicion
from onnxlathe.verify.piecewise import weight_bytes
from onnxlathe.verify.runtime import RuntimeProcess
from onnxlathe.verify.segments import Chain
from onnxlathe.verify.store import Stored, write

FIXTURES = Path(__file__).parent.parent / "fixtures"
NAMES = ["bert_ts17", "llama_dyn20", "resnet_ts13", "unet_dyn18", "lstm_ts14", "gpt2_ts17"]


@pytest.fixture(scope="module")
def runtime() -> Iterator[RuntimeProcess]:
    process = RuntimeProcess(threads=1, timeout=60)
    yield process
    process.stop()


@pytest.fixture(autouse=True)
def one_child(runtime: RuntimeProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "RuntimeProcess", lambda **_: runtime)
    monkeypatch.setattr(runtime, "stop", lambda: None)


@pytest.mark.parametrize("name", NAMES)
def test_segments_are_the_whole_model_within_the_budget(name: str) -> None:
    model = load(FIXTURES / f"{name}.onnx")
    chain = Chain(model)
    budget = weight_bytes(model) // 5
    segments = chain.segments(budget)
    assert len(segments) > 2
    assert segments[0].first == 0
    assert segments[-1].last == len(chain.nodes)
    assert all(a.last == b.first for a, b in itertools.pairwise(segments))
    places = {place for place, _ in chain.alive()}
    for segment in segments:
        part = chain.part(segment)
        weights = sum(v.const_value.nbytes for v in part.graph.initializers.values())  # type: ignore[union-attr]
        assert weights == segment.nbytes
        assert weights <= budget or not places & set(range(segment.first + 1, segment.last))


@pytest.mark.parametrize("name", NAMES)
def test_the_verdict_of_segments_is_that_of_whole_models(name: str, tmp_path: Path) -> None:
    source = FIXTURES / f"{name}.onnx"
    model = load(source)
    onnxlathe.optimize(model, "default", verify=False)
    with Verifier(source, memory=weight_bytes(model) // 2) as verifier:
        parts = verifier.check(model)
    with Verifier(source) as verifier:
        whole = verifier.check(model)
    assert parts.status == whole.status == "equal"
    assert parts.segments > 2
    assert whole.segments == 0
    assert f"in {parts.segments} segments" in parts.summary()
    assert [(c.output, c.feed, c.shape) for c in parts.comparisons] == [
        (c.output, c.feed, c.shape) for c in whole.comparisons
    ]
    assert [c.max_abs for c in parts.comparisons] == pytest.approx(
        [c.max_abs for c in whole.comparisons], rel=1
    )


@pytest.mark.parametrize(
    "damaged", ["layer.0.attention.self.value", "layer.1.intermediate.dense", "pooler.dense"]
)
def test_a_wrong_segment_is_found_and_asked_alone(damaged: str) -> None:
    source = FIXTURES / "bert_ts17.onnx"

    def candidate(passes: str, *, right: bool = True) -> Model:
        model = load(source)
        onnxlathe.optimize(model, "shapes", verify=False)
        weight = next(v for n, v in model.graph.initializers.items() if f"{damaged}.bias" in n)
        if not right:
            assert weight.const_value is not None
            weight.const_value = ir.Tensor(weight.const_value.numpy() + np.float32(0.5))
        onnxlathe.optimize(model, passes, verify=False)
        return model

    wrong = candidate("default", right=False)
    with Verifier(source, memory=30_000) as verifier:
        verdict = verifier.check(wrong)
        assert verdict.status == "different"
        suspicion = verifier.suspicion(wrong)
        seen: list[str] = []
        verifier.check = lambda _: seen.append("whole")  # type: ignore[method-assign,assignment,return-value,func-returns-value]
        for passes in ("shapes", "shapes,fold", "shapes,fold,tidy", "default"):
            assert not suspicion(candidate(passes))
            assert suspicion(candidate(passes, right=False))
        assert not seen


@pytest.mark.parametrize("divide", [False, True])
def test_blame_finds_the_same_culprit(divide: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where the whole models fit, and only the suspect segment is run again and again."""
    from onnxlathe.pipeline import Registry

    monkeypatch.setattr(suspicion, "_WORTH_DIVIDING", 0 if divide else 1 << 60)
    registry = Registry.standard()
    registry.add_plugin(str(Path(__file__).parent / "plugins" / "wrong_gelu.py"))
    name = next(e.name for e in registry.all() if "wrong_gelu" in e.origin)
    model = load(FIXTURES / "bert_ts17.onnx")
    with pytest.raises(onnxlathe.Mismatch) as caught:
        onnxlathe.optimize(model, f"shapes,fold,tidy,{name},fuse", registry=registry)
    (culprit,) = caught.value.result.culprits
    assert culprit.rule == name
    assert culprit.before


BRANCHES = """g (float[4] x, bool c) => (float[4] y) {
    a = Relu (x)
    b = Mul (a, a)
    d = Sigmoid (b)
    e = If (c) <then_branch = t () => (float[4] p) { p = Add (a, d) },
                else_branch = f () => (float[4] q) { q = Sub (b, d) }>
    h = Tanh (e)
    y = Add (h, a)
}"""


def test_values_that_only_graphs_inside_use_go_along() -> None:
    chain = Chain(Model(ir.from_proto(parse(BRANCHES))))
    alive = {place: {v.name for v in values.values()} for place, values in chain.alive()}
    assert alive == {1: {"a"}, 2: {"a", "b"}, 3: {"a", "b", "d"}, 4: {"a", "e"}, 5: {"a", "h"}}
    from onnxlathe.verify.segments import Segment

    part = chain.part(Segment(3, 4, 0))
    assert {v.name for v in part.graph.inputs} == {"a", "b", "d", "c"}
    assert [v.name for v in part.graph.outputs] == ["e"]
    alone = chain.part(Segment(3, 4, 0), given={"b", "e"})
    assert {v.name for v in alone.graph.inputs} == {"x", "b", "c"}
    assert [n.op_type for n in alone.graph] == ["Relu", "Sigmoid", "If"]


def test_weights_are_mapped_and_not_copied(tmp_path: Path, runtime: RuntimeProcess) -> None:
    rng = np.random.default_rng(0)
    proto = parse(
        "g (float[2,64] x) => (float[2,32] y, bfloat16[2,64] z) { y = MatMul (x, w) z = Add (b, c) }"
    )
    weights = {
        "w": rng.standard_normal((64, 32)).astype(np.float32),
        "b": rng.standard_normal((20, 2, 64)).astype(ml_dtypes.bfloat16)[0:1].repeat(20, 0),
        "c": np.zeros(1, ml_dtypes.bfloat16),
    }
    for name, array in weights.items():
        proto.graph.initializer.append(ir.to_proto(ir.Tensor(array, name=name)))
    proto.graph.output[1].type.tensor_type.ClearField("shape")
    del proto.graph.node[1:]
    proto.graph.node.append(onnx.helper.make_node("Identity", ["b"], ["z"]))
    onnx.save(proto, tmp_path / "in.onnx")
    model = load(tmp_path / "in.onnx")
    folder = tmp_path / "mapped"
    folder.mkdir()
    save_mapped(model, folder / "model.onnx")
    listed = json.loads((folder / f"model.onnx{WEIGHTS_LIST}").read_text())
    assert {w["name"] for w in listed} == {"w", "b"}
    assert all(w["path"] == str(tmp_path / "in.onnx") for w in listed)
    assert sum(p.stat().st_size for p in folder.iterdir()) < 4096
    x = rng.standard_normal((2, 64)).astype(np.float32)
    write(tmp_path / "feed.npz", {"x": x})
    runtime.open(folder / "model.onnx")
    runtime.run(tmp_path / "feed.npz", tmp_path / "out.npz")
    with Stored(tmp_path / "out.npz") as stored:
        np.testing.assert_allclose(stored["y"], x @ weights["w"], rtol=1e-5, atol=1e-5)
        assert np.array_equal(stored["z"].astype(np.float32), weights["b"].astype(np.float32))
    # A file that was replaced is no place to map weights from: they are written anew.
    replacement = tmp_path / "other.onnx"
    replacement.write_bytes(b"something else")
    replacement.replace(tmp_path / "in.onnx")
    again = tmp_path / "again"
    again.mkdir()
    save_mapped(model, again / "model.onnx")
    listed = json.loads((again / f"model.onnx{WEIGHTS_LIST}").read_text())
    assert {w["path"] for w in listed} == {str(again / "model.onnx.data")}
    runtime.open(again / "model.onnx")
    runtime.run(tmp_path / "feed.npz", tmp_path / "out.npz")
    with Stored(tmp_path / "out.npz") as stored:
        np.testing.assert_allclose(stored["y"], x @ weights["w"], rtol=1e-5, atol=1e-5)
    runtime.close()


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = memory.available_memory()
    assert free > 1 << 20
    group = tmp_path / "memory" / "mine"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("1000000\n")
    (group / "memory.stat").write_text("cache 5000\nrss 400000\n")
    (tmp_path / "membership").write_text("3:cpu:/\n2:memory:/mine\n")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_MEMBERSHIP", tmp_path / "membership")
    assert memory.available_memory() == 600000
    (tmp_path / "membership").write_text("0::/outside/of/the/container\n")
    (tmp_path / "memory.max").write_text("700000\n")
    assert memory.available_memory() == 700000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_memory() > 1 << 20
