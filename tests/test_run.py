"""Running engines: the code that does it, with a stand-in for the engine (and on a GPU where there is one)."""

from __future__ import annotations

import ctypes
import importlib.util
import inspect
import json
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import fake_tensorrt
from fake_tensorrt import FakeTensorRT, HostCuda, host_copy
from onnxlathe.target import native_run
from onnxlathe.target.cuda import Cuda, CudaError, gpus
from onnxlathe.target.native import Trouble
from onnxlathe.target.native_run import Runner
from onnxlathe.target.run import _latency

FEED = {"x": np.arange(12, dtype=np.float32).reshape(3, 4), "k": np.array([3], np.int64)}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_run, "_WARM_UP", 0.01)
    monkeypatch.setattr(native_run, "_MEASURED", 0.02)


def test_infer() -> None:
    trt, cuda = FakeTensorRT(host_copy), HostCuda()
    runner = Runner(trt.native(), b"engine", cuda)
    outputs = runner.infer(FEED, 1)
    assert list(outputs) == ["y"]
    np.testing.assert_array_equal(outputs["y"], FEED["x"])
    assert trt.engine is not None
    assert trt.engine.contexts[0].profile == 1
    assert trt.engine.contexts[0].shapes == {"x": (3, 4)}, "a shape tensor has no shape to be set"
    runner.infer({**FEED, "x": FEED["x"][:1]}, 0)
    assert cuda.living == 2, "the memory of the first run was given back"


def test_inputs_are_converted() -> None:
    """int32 from a user where the engine wants int64, and arrays that are not contiguous."""
    runner = Runner(FakeTensorRT(host_copy).native(), b"engine", HostCuda())
    x = np.arange(12, dtype=np.float64).reshape(4, 3).T
    outputs = runner.infer({"x": x, "k": np.array([3], np.int32)}, 0)
    np.testing.assert_array_equal(outputs["y"], x.astype(np.float32))


def test_sizes_that_show_while_it_runs() -> None:
    runner = Runner(FakeTensorRT(host_copy, data_dependent=True).native(), b"engine", HostCuda())
    np.testing.assert_array_equal(runner.infer(FEED, 0)["y"], FEED["x"])
    assert runner.measure(FEED, 0, graph=True)["milliseconds"] == []


def test_measure() -> None:
    cuda = HostCuda()
    runner = Runner(FakeTensorRT(host_copy).native(), b"engine", cuda)
    plain = runner.measure(FEED, 0, graph=False)
    assert len(plain["milliseconds"]) >= 10
    assert plain["throughput"] > 0
    assert "capture" not in cuda.done
    runner.measure(FEED, 0, graph=True)
    assert cuda.done[cuda.done.index("capture") :][:3] == ["capture", "captured", "launch"]


def test_rtx_makes_graphs_itself() -> None:
    trt, cuda = FakeTensorRT(host_copy), HostCuda()
    trt.CudaGraphStrategy = type("CudaGraphStrategy", (), {"WHOLE_GRAPH_CAPTURE": "whole"})  # type: ignore[attr-defined]
    runner = Runner(trt.native(), b"engine", cuda)
    runner.engine.create_runtime_config = lambda: type("Config", (), {})()
    runner.measure(FEED, 0, graph=True)
    assert runner.engine.contexts[0].config.cuda_graph_strategy == "whole"
    assert "capture" not in cuda.done


def test_weights_are_put_into_an_engine_without_any() -> None:
    trt = FakeTensorRT(host_copy)
    runner = Runner(trt.native(), b"engine", HostCuda())
    runner.refit("model.onnx")
    assert trt.refitted == "model.onnx"
    with pytest.raises(Trouble, match="does not take the model's weights"):
        runner.refit("model.txt")


REAL = """
import json, sys, tensorrt_rtx as trt
print(json.dumps({c: {n: getattr(getattr(trt, c), n, "").__doc__ if hasattr(getattr(trt, c), n) else None
    for n in names} for c, names in json.load(sys.stdin).items()}))
"""


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_the_stand_in_has_the_real_interface() -> None:
    """Every method that the stand-in plays exists in the real package and takes as many arguments."""
    played = {
        "ICudaEngine": fake_tensorrt.ICudaEngine,
        "IExecutionContext": fake_tensorrt.Context,
        "Runtime": fake_tensorrt.Runtime,
        "Refitter": fake_tensorrt.Refitter,
        "OnnxParserRefitter": fake_tensorrt.OnnxParserRefitter,
    }
    methods = {
        real: [n for n, f in vars(fake).items() if inspect.isfunction(f) and (n == "__init__" or n[0] != "_")]
        for real, fake in played.items()
    }
    methods["IExecutionContext"].remove("__init__")  # which an engine makes
    methods["ICudaEngine"].remove("__init__")
    done = subprocess.run(
        [sys.executable, "-c", REAL], input=json.dumps(methods), capture_output=True, text=True, check=True
    )
    for name, documented in json.loads(done.stdout).items():
        for method, text in documented.items():
            assert text, f"{name}.{method} is not in tensorrt_rtx"
            signatures = re.findall(
                rf"^(?:\d+\. )?{method}\(self: [^,)]+(?:, )?(.*)\) -> ", text, re.MULTILINE
            )
            taken = [len(re.findall(r"(\w+): ", signature)) for signature in signatures]
            wanted = len(inspect.signature(getattr(played[name], method)).parameters) - 1
            assert wanted in taken, f"{name}.{method} takes {signatures}"


def test_failures_have_the_librarys_words() -> None:
    def runner(**how: Any) -> Runner:
        return Runner(FakeTensorRT(host_copy, **how).native(), b"engine", HostCuda())

    with pytest.raises(Trouble, match=r"cannot be run on this GPU"):
        Runner(FakeTensorRT(host_copy).native(), b"nonsense", HostCuda())
    with pytest.raises(Trouble, match=r"does not take the shape \(3, 5\) for input 'x'"):
        runner().infer({**FEED, "x": np.zeros((3, 5), np.float32)}, 0)
    with pytest.raises(Trouble, match="no profile 5"):
        runner().infer(FEED, 5)
    with pytest.raises(Trouble, match="the engine failed"):
        runner(works=False).infer(FEED, 0)


def test_statistics() -> None:
    found = _latency("engine", "opt", [float(i) for i in range(1, 201)], 10.0)
    assert (found.median, found.p99, found.runs) == (100.5, 198.0, 200)


@pytest.mark.skipif(bool(gpus()), reason="there is a GPU")
def test_without_a_driver() -> None:
    with pytest.raises(CudaError):
        Cuda()


@pytest.mark.skipif(not gpus(), reason="no GPU")
def test_on_a_gpu() -> None:
    """The driver's interface for real: memory, streams, events and graphs, with a copy as the engine."""
    cuda = Cuda()
    assert gpus()[0].compute_capability.count(".") == 1

    def copy(to: int, source: int, nbytes: int, stream: int) -> None:
        cuda.call(
            "cuMemcpyDtoDAsync_v2",
            ctypes.c_uint64(to),
            ctypes.c_uint64(source),
            ctypes.c_size_t(nbytes),
            ctypes.c_void_p(stream),
        )

    big = {"x": np.random.default_rng(0).random((1 << 20, 4), np.float32), "k": FEED["k"]}
    runner = Runner(FakeTensorRT(copy).native(), b"engine", cuda)
    np.testing.assert_array_equal(runner.infer(big, 0)["y"], big["x"])
    for graph in (False, True):
        found = runner.measure(big, 0, graph=graph)
        assert 0 < min(found["milliseconds"]) < 100
        np.testing.assert_array_equal(runner.infer(FEED, 0)["y"], FEED["x"])
    with pytest.raises(CudaError, match="cuMemAlloc_v2"):
        cuda.allocate(1 << 50)
