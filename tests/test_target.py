"""Asking TensorRT in a child process: answers, refusals, and a child that dies, hangs or cannot load."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxlathe.errors import LatheError, ModelError, UsageError
from onnxlathe.target import CRASHED, TARGETS, TIMED_OUT, NoTarget, TargetError, cuda, find_target, tensorrt
from onnxlathe.target.process import gpus_here, worker_command
from onnxlathe.target.tensorrt import TensorRTSession

HAS_WHEELS = (sys.platform, platform.machine()) in {("linux", "x86_64"), ("win32", "AMD64")}
needs_rtx = pytest.mark.skipif(not HAS_WHEELS, reason="tensorrt-rtx has no wheels for this platform")
posix = pytest.mark.skipif(os.name != "posix", reason="signals")

FLOAT = TensorProto.FLOAT


def write(path: Path, nodes: list[onnx.NodeProto], *, outputs: list[str], **model: object) -> Path:
    """A model at opset 17 with an input x: float32 [b, 3]."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["b", 3])],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9, **model), path)
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write(tmp_path / "good.onnx", [helper.make_node("Relu", ["x"], ["y"], name="relu")], outputs=["y"])


@pytest.fixture
def refused(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("Unique", ["r"], ["y"], name="the_unique"),
        helper.make_node("Frobnicate", ["r"], ["z"], name="unheard_of", domain="local"),
    ]
    return write(tmp_path / "refused.onnx", nodes, outputs=["y", "z"])


@needs_rtx
def test_accepted(good: Path) -> None:
    target = find_target("rtx")
    assert target.available
    assert target.version
    answer = target.parse(good)
    assert (answer.accepted, answer.layers, answer.errors) == (True, 1, [])
    assert target.supports(good) == []


@needs_rtx
def test_refusals_name_every_node(refused: Path) -> None:
    answer = find_target("rtx").parse(refused)
    assert not answer.accepted
    assert not answer.crashed
    assert answer.layers is None
    unique, unheard = answer.errors
    assert (unique.node, unique.index, unique.operator) == ("the_unique", 1, "Unique")
    assert unique.code == "UNSUPPORTED_NODE"
    assert (unheard.node, unheard.index, unheard.operator) == ("unheard_of", 2, "Frobnicate")
    assert "Plugin not found" in unheard.message
    assert str(unheard).startswith("node unheard_of (Frobnicate): ")


@needs_rtx
def test_supports_names_the_unsupported_nodes(refused: Path) -> None:
    assert [refusal.node for refusal in find_target("rtx").supports(refused)] == ["the_unique", "unheard_of"]


@needs_rtx
def test_nodes_behind_an_input_of_a_refused_type(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"], name="relu")], outputs=["y"])
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT16
    onnx.save(model, path)
    refusals = find_target("rtx").supports(path)
    assert any("convertDtype" in refusal.message for refusal in refusals)


@needs_rtx
def test_a_refusal_inside_a_function_says_where(tmp_path: Path) -> None:
    body = [helper.make_node("Unique", ["a"], ["b"], name="inner")]
    function = helper.make_function("local", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    call = helper.make_node("F", ["x"], ["y"], name="call", domain="local")
    path = write(tmp_path / "m.onnx", [call], outputs=["y"], functions=[function])
    (refusal,) = find_target("rtx").parse(path).errors
    assert (refusal.node, refusal.index, refusal.stack) == ("inner", 0, ("call (F)",))
    assert "[in call (F)]" in str(refusal)


@needs_rtx
def test_external_data_and_odd_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "größe 1"
    folder.mkdir()
    path = write(folder / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], outputs=["y"])
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 3), np.float32), "w"))
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    monkeypatch.chdir(tmp_path)
    target = find_target("rtx")
    assert target.parse(Path("größe 1/m.onnx")).accepted
    assert target.supports(Path("größe 1/m.onnx")) == []
    (folder / "w.bin").unlink()
    assert not target.parse(path).accepted


@needs_rtx
def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"not a model" * 9)
    assert "MODEL_DESERIALIZE_FAILED" in find_target("rtx").parse(path).errors[0].code


@needs_rtx
def test_modules_of_the_working_directory_are_not_imported(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    assert find_target("rtx").parse(good).accepted


@needs_rtx
@posix
def test_a_killed_child_is_started_again(good: Path) -> None:
    with find_target("rtx").session() as session:
        assert isinstance(session, TensorRTSession)
        assert session.parse(good).accepted
        first = session.process.pid
        assert first is not None
        assert session.parse(good).accepted
        assert session.process.pid == first, "one process serves many questions"
        os.kill(first, signal.SIGKILL)
        answers = [session.parse(good) for _ in range(2)]
        assert answers[-1].accepted
        assert session.process.pid != first


@needs_rtx
def test_the_calling_process_loads_nothing_native(good: Path) -> None:
    code = f"""
        import sys
        from pathlib import Path
        from onnxlathe.target import find_target
        assert find_target().parse(Path({str(good)!r})).accepted
        print([name for name in sys.modules if name.startswith(("tensorrt", "onnx."))])
    """
    run = [sys.executable, "-c", textwrap.dedent(code)]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip() == "[]"


# A child written for the occasion: it greets, then does what the test is about.
GREETING = """
    import json, os, sys, time
    sys.stdin.readline(); print(json.dumps({"result": {}}), flush=True); sys.stdin.readline()
    print("native library: about to fail", file=sys.stderr, flush=True)
"""


def session_with(code: str) -> TensorRTSession:
    return TensorRTSession([sys.executable, "-c", textwrap.dedent(GREETING) + textwrap.dedent(code)])


@posix
def test_a_crash_is_an_answer_with_the_last_messages(good: Path) -> None:
    with session_with("os.kill(os.getpid(), 11)") as session:
        answer = session.parse(good)
        assert answer.crashed
        assert answer.errors[0].code == CRASHED
        assert "SIGSEGV" in answer.errors[0].message
        assert "native library: about to fail" in answer.errors[0].message
        with pytest.raises(TargetError, match="SIGSEGV") as caught:
            session.supports(good)
        assert caught.value.code == CRASHED


@posix
def test_a_kill_hints_at_memory(good: Path) -> None:
    with session_with("os.kill(os.getpid(), 9)") as session, pytest.raises(TargetError) as caught:
        session.supports(good)
    assert "memory" in caught.value.hint


def test_an_exit_is_a_crash_too(good: Path) -> None:
    with session_with("os._exit(7)") as session:
        assert "status 7" in session.parse(good).errors[0].message


def test_a_hang_ends_at_the_timeout(good: Path) -> None:
    with session_with("time.sleep(60)") as session:
        answer = session.parse(good, timeout=0.3)
        assert answer.crashed
        assert answer.errors[0].code == TIMED_OUT
        assert "0.3 s" in answer.errors[0].message
        assert session.process.pid is None, "the child that hangs was ended"


def test_an_error_of_the_worker_is_reported(good: Path) -> None:
    reply = """print(json.dumps({"error": "MemoryError: too much"}), flush=True); time.sleep(60)"""
    with session_with(reply) as session, pytest.raises(TargetError, match="too much"):
        session.parse(good)


def test_a_package_that_does_not_load_is_an_error(good: Path) -> None:
    broken = replace(TARGETS["rtx"], module="no_such_bindings", command=())
    assert not broken.available
    with pytest.raises(TargetError, match="not installed") as caught:
        broken.parse(good)
    assert "pip install" in caught.value.hint
    session = TensorRTSession(worker_command("no_such_bindings"))
    with session, pytest.raises(TargetError, match="cannot be loaded"):
        session.parse(good)


def test_a_program_that_does_not_start(good: Path, tmp_path: Path) -> None:
    with (
        TensorRTSession([str(tmp_path / "missing")]) as session,
        pytest.raises(TargetError, match="does not start"),
    ):
        session.parse(good)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    with session_with("") as session, pytest.raises(ModelError, match="empty"):
        session.parse(tmp_path / "m.onnx")


def test_a_missing_file(tmp_path: Path) -> None:
    with session_with("") as session, pytest.raises(ModelError, match="no such file"):
        session.parse(tmp_path / "nowhere.onnx")


def test_nothing_installed(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    target = find_target()
    assert isinstance(target, NoTarget)
    assert not target.available
    assert "neither TensorRT for RTX nor TensorRT" in target.reason
    with pytest.raises(LatheError) as caught:
        target.parse(good)
    assert "pip install tensorrt-rtx" in caught.value.hint
    with pytest.raises(TargetError, match="TensorRT is not installed") as caught:
        find_target("tensorrt")
    assert "onnxlathe[tensorrt]" in caught.value.hint


@pytest.mark.parametrize(
    ("gpus", "chosen"),
    [
        ([], "rtx"),
        (["8.9"], "rtx"),
        (["12.0"], "rtx"),
        (["9.0"], "tensorrt"),
        (["10.0", "8.9"], "tensorrt"),
        (["7.0"], "tensorrt"),
    ],
)
def test_the_gpu_decides_where_both_are_installed(
    gpus: list[str], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: object())
    monkeypatch.setattr(tensorrt, "gpus_here", lambda: [{"compute_capability": c} for c in gpus])
    tensorrt._rtx_runs_here.cache_clear()
    assert find_target().name == chosen
    tensorrt._rtx_runs_here.cache_clear()


def test_gpus_are_asked_for_in_another_process() -> None:
    assert [gpu["compute_capability"] for gpu in gpus_here()] == [
        gpu.compute_capability for gpu in cuda.gpus()
    ]


def test_names_of_targets() -> None:
    with pytest.raises(UsageError, match="'tensort'") as caught:
        find_target("tensort")
    assert "Did you mean tensorrt?" in caught.value.hint
    assert not find_target("none").available
