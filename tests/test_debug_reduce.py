"""Reduction to the smallest model, and what a crash, a hang and a flood of memory come to."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxlathe.debug import (
    Command,
    Oracle,
    RefusedFor,
    Workpiece,
    WrongAfter,
    diagnose,
    find_parting,
    reduce_model,
)
from onnxlathe.debug.findings import signature_of
from onnxlathe.debug.locate import signature
from onnxlathe.debug.script import write_refusal
from onnxlathe.errors import UsageError
from onnxlathe.model import load
from onnxlathe.pipeline import Registry
from onnxlathe.rewrite import Rule, const
from onnxlathe.target import find_target
from refused import chain, corpus, misbehaving, needs_rtx, posix

PYTHON = shutil.which(sys.executable) or sys.executable


def large(planted: str, count: int = 3000, place: int = 1871) -> onnx.ModelProto:
    """A model of `count` nodes; at `place` there is a refusal (`refusal`) or what a wrong rule matches."""
    random = np.random.default_rng(0)
    nodes: list[Any] = []
    weights = [
        numpy_helper.from_array(np.float32(0.5), "half"),
        numpy_helper.from_array(np.zeros((1, 16), np.float32), "zeros"),
        numpy_helper.from_array(np.ones(16, np.uint8), "bits"),
    ]
    value = skip = "x"
    kinds = ("Tanh", "Add", "Mul", "Transpose", "Sigmoid", "Sub", "Relu", "MatMul")
    for i in range(count):
        out, kind = f"v{i}", kinds[i % 8]
        if i == place and planted == "refusal":
            nodes.append(
                helper.make_node("BitShift", ["bits", "bits"], ["s"], name="planted", direction="LEFT")
            )
            nodes.append(helper.make_node("Cast", ["s"], ["f"], name="to_float", to=TensorProto.FLOAT))
            nodes.append(helper.make_node("Add", [value, "f"], [out], name=f"n{i}"))
        elif i == place:
            nodes.append(helper.make_node("Identity", [value], ["same"], name="planted"))
            nodes.append(helper.make_node("Add", ["same", "zeros"], [out], name="add_zero"))
        elif kind == "Add":
            nodes.append(helper.make_node("Add", [value, skip], [out], name=f"n{i}"))
            skip = out
        elif kind in ("Mul", "Sub"):
            nodes.append(helper.make_node(kind, [value, "half"], [out], name=f"n{i}"))
        elif kind == "MatMul" and i % 64 == 7:
            weights.append(
                numpy_helper.from_array((random.standard_normal((16, 16)) / 4).astype(np.float32), f"w{i}")
            )
            nodes.append(helper.make_node("MatMul", [value, f"w{i}"], [out], name=f"n{i}"))
        else:
            nodes.append(helper.make_node("Tanh" if kind == "MatMul" else kind, [value], [out], name=f"n{i}"))
        value = out
    info = helper.make_tensor_value_info
    ends = [info("x", TensorProto.FLOAT, [16, 16])], [info(value, TensorProto.FLOAT, [16, 16])]
    graph = helper.make_graph(nodes, "large", *ends, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def work_of(model: onnx.ModelProto, tmp_path: Path) -> Workpiece:
    onnx.save(model, tmp_path / "m.onnx")
    return Workpiece(load(tmp_path / "m.onnx"))


class WrongZero(Rule):
    """x + 0 = x + x: wrong on purpose."""

    name = "wrong_zero"

    def pattern(self, op: Any, x: Any, zeros: Any) -> Any:
        return op.Add(op.Identity(x), const(zeros))

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Add(x, x)


@pytest.fixture
def rtx() -> Iterator[Oracle]:
    with Oracle(find_target("rtx")) as found:
        yield found


@pytest.fixture
def parser() -> Iterator[Oracle]:
    with Oracle(find_target("rtx"), build=False) as found:
        yield found


@needs_rtx
def test_a_planted_refusal_in_3000_nodes(parser: Oracle, tmp_path: Path) -> None:
    started = time.perf_counter()
    work = work_of(large("refusal"), tmp_path)
    diagnosis = diagnose(tmp_path / "m.onnx", parser, work=work)
    (finding,) = diagnosis.findings
    assert (finding.node, finding.cause_id) == ("planted", "bitwise")
    assert diagnosis.runs == diagnosis.nodes - 1
    hearing = parser.ask(tmp_path / "m.onnx", build=False)
    found = reduce_model(
        work,
        RefusedFor(parser, signature(hearing.complaints[0])),
        suspects=[[work.holder(work.find("planted"))]],
    )
    assert found is not None
    assert found.after == 1
    assert [n.name for n in found.model.graph] == ["planted"]
    assert time.perf_counter() - started < 60


@needs_rtx
def test_to_reduce_a_refusal_of_the_parser_nothing_large_is_built(tmp_path: Path) -> None:
    asked: list[bool | None] = []

    class Recording(Oracle):
        def ask(self, model: Any, *, build: bool | None = None, timeout: float | None = None) -> Any:
            asked.append(build)
            return super().ask(model, build=build, timeout=timeout)

    work = work_of(large("refusal"), tmp_path)
    with Recording(find_target("rtx")) as oracle:
        diagnosis = diagnose(tmp_path / "m.onnx", oracle, work=work, build_rest=False)
    assert [f.node for f in diagnosis.findings] == ["planted"]
    assert asked[0] is None, "the whole model is asked about as it is: the parser refuses it first"
    assert asked[1:]
    assert not any(asked[1:])
    assert any("builder was not asked" in note for note in diagnosis.notes)


@needs_rtx
def test_bisection_needs_no_suspects(rtx: Oracle, tmp_path: Path) -> None:
    work = work_of(large("refusal", 400, 333), tmp_path)
    hearing = rtx.ask(tmp_path / "m.onnx", build=False)
    found = reduce_model(work, RefusedFor(rtx, signature(hearing.complaints[0])))
    assert found is not None
    assert (found.before, found.after) == (402, 1)
    assert found.checks < 60


def test_a_planted_numeric_error_in_3000_nodes(tmp_path: Path) -> None:
    started = time.perf_counter()
    work = work_of(large("numeric"), tmp_path)
    registry = Registry.standard()
    registry.add(WrongZero, "test")
    check = WrongAfter("wrong_zero", registry)
    groups = [[work.holder(work.find(name)) for name in group] for group in check.suspects(work.model)]
    found = reduce_model(work, check, suspects=groups)
    check.close()
    assert found is not None
    assert found.after <= 2
    assert {n.name for n in found.model.graph} == {"planted", "add_zero"}
    assert set(found.feeds) == {v.name for v in found.model.graph.inputs}, (
        "inputs are frozen to recorded values"
    )
    assert time.perf_counter() - started < 60


def test_where_two_models_part(tmp_path: Path) -> None:
    right, wrong = (
        chain(["Relu", "Tanh", "Sigmoid", "Neg", "Exp"]),
        chain(["Relu", "Tanh", "Sigmoid", "Abs", "Exp"]),
    )
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    found = find_parting(work_of(right, tmp_path / "a"), work_of(wrong, tmp_path / "b"))
    assert found is not None
    assert found.value == "v3"
    assert [n.op_type for n in found.right.model.graph] == ["Neg"]
    assert [n.op_type for n in found.wrong.graph] == ["Abs"]
    assert list(found.right.feeds) == ["v2"]
    assert find_parting(work_of(right, tmp_path / "a"), work_of(right, tmp_path / "b")) is None


def test_a_command_of_the_users(tmp_path: Path) -> None:
    script = tmp_path / "check.py"
    script.write_text(
        "import sys\n"
        "data = open(sys.argv[1], 'rb').read()\n"
        "both = b'Erf' in data and b'Neg' in data\n"
        "print('both are there' if both else 'fine')\n"
        "sys.exit(3 if both else 0)\n"
    )
    operators = ["Relu", "Erf", "Tanh", "Sigmoid", "Neg", "Exp"]
    for check in (
        Command(f"{PYTHON} {script} {{}}"),
        Command(f"{PYTHON} {script}", fail_regex="both are there"),
        Command(f"{PYTHON} {script} {{}}", fail_codes=[3]),
    ):
        found = reduce_model(work_of(chain(operators), tmp_path), check)
        check.close()
        assert found is not None
        assert [n.op_type for n in found.model.graph] == ["Erf", "Neg"]
    other = Command(f"{PYTHON} {script} {{}}", fail_codes=[4])
    assert reduce_model(work_of(chain(operators), tmp_path), other) is None
    with pytest.raises(UsageError, match="no such program"):
        Command("no-such-program-at-all {}")


@needs_rtx
def test_the_script_reproduces_the_refusal(rtx: Oracle, tmp_path: Path) -> None:
    for name, words in (("unique", "the parser"), ("if_ranks", "the builder")):
        case = next(c for c in corpus() if c.name == name)
        work = work_of(case.model(), tmp_path)
        (finding,) = diagnose(tmp_path / "m.onnx", rtx, work=work).findings
        hearing = rtx.ask(tmp_path / "m.onnx")
        index = work.holder(work.find(finding.node))
        found = reduce_model(work, RefusedFor(rtx, signature(hearing.complaints[0])), suspects=[[index]])
        assert found is not None
        assert found.after == 1
        folder = write_refusal(
            tmp_path / name,
            found,
            rtx.ask(found.model),
            title="it's refused",
            module="tensorrt_rtx",
            version="1",
        )
        done = subprocess.run(
            [PYTHON, str(folder / "reproduce.py")], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert f"REFUSED by {words}" in done.stdout
        assert "onnxlathe" not in (folder / "reproduce.py").read_text()


@needs_rtx
def test_values_are_frozen_where_the_fault_needs_them(rtx: Oracle, tmp_path: Path) -> None:
    """K is computed: as an input it would be any number, and TensorRT would take it."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18]>
        g (float[1,8000] x) => (float[1,n] v, int64[1,n] i) <int64[1] thousand = {1000}, int64[1] four = {4}> {
            [relu] r = Relu(x)
            [count] k = Mul(thousand, four)
            [topk] v, i = TopK<axis=1>(r, k)
        }"""
    )
    work = work_of(model, tmp_path)
    diagnosis = diagnose(tmp_path / "m.onnx", rtx, work=work)
    assert [(f.node, f.cause_id) for f in diagnosis.findings] == [("topk", "topk-large")]
    check = RefusedFor(rtx, signature_of(diagnosis.findings[0]))
    found = reduce_model(work, check, suspects=[[work.holder(work.find("topk"))]])
    assert found is not None
    assert found.after == 1
    assert found.frozen == ("k",)
    assert found.model.graph.initializers["k"].const_value.numpy().tolist() == [4000]


# --- a library that does not come back ---------------------------------------------------------------------

FATAL = {
    "segfault": ("os.kill(os.getpid(), 11)", "native-crash"),
    "abort": ("os.abort()", "native-crash"),
    "exit": ("os._exit(3)", "native-crash"),
    "hang": ("time.sleep(600)", "native-hang"),
    "memory": (
        "hoard = []\nwhile True: hoard.append(bytearray(b'x') * (1 << 24)); time.sleep(0.01)",
        "native-memory",
    ),
}


@posix
@pytest.mark.parametrize("kind", FATAL)
def test_a_library_that_dies_is_survived(kind: str, tmp_path: Path) -> None:
    how, cause = FATAL[kind]
    work = work_of(chain(["Relu", "Tanh", "Erf", "Neg", "Exp"]), tmp_path)
    timeout = 1.5 if kind == "hang" else 60.0
    with Oracle(misbehaving(how), timeout=timeout, memory=600 << 20) as oracle:
        diagnosis = diagnose(tmp_path / "m.onnx", oracle, work=work)
        (finding,) = diagnosis.findings
        assert (finding.node, finding.operator, finding.cause_id) == ("Erf_2", "Erf", cause)
        assert finding.how in ("cut", "bisected")
        assert (diagnosis.nodes, diagnosis.runs) == (5, 4)
        if kind == "segfault":
            found = reduce_model(work, RefusedFor(oracle, ("parse", finding.code)))
            assert found is not None
            assert [n.op_type for n in found.model.graph] == ["Erf"]


@posix
def test_a_builder_that_dies_is_survived(tmp_path: Path) -> None:
    work = work_of(chain(["Relu", "Erf", "Exp"]), tmp_path)
    with Oracle(misbehaving("os.kill(os.getpid(), 11)", at="build")) as oracle:
        (finding,) = diagnose(tmp_path / "m.onnx", oracle, work=work).findings
        assert (finding.node, finding.stage, finding.cause_id) == ("Erf_1", "build", "native-crash")


@needs_rtx
def test_an_empty_shape_tensor_is_heard_out(rtx: Oracle, tmp_path: Path) -> None:
    """A part that is cut at a list of no sizes: no profile can say so, which is a refusal and no end of it all."""
    text = """<ir_version: 10, opset_import: ["" : 17]>
    g (float[n, 4] x, int64[0] none) => (float[k] y) {
        flat = Reshape(x, all) size = Shape(flat) whole = Concat<axis=0>(none, size) y = Expand(flat, whole) }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "all"))
    path = tmp_path / "empty.onnx"
    onnx.save(model, path)
    answer = rtx.ask(path)
    assert not answer.accepted
    assert all("inconsistent with other inputs" not in complaint.message for complaint in answer.complaints)
