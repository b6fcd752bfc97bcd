"""The corpus of refused models, and a target whose native library misbehaves."""

from __future__ import annotations

import importlib.util
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnxlathe.target import TARGETS, TensorRT

needs_rtx = pytest.mark.skipif(not TARGETS["rtx"].available, reason="tensorrt-rtx is not installed")
posix = pytest.mark.skipif(sys.platform != "linux", reason="signals and /proc")

_PATH = Path(__file__).resolve().parent.parent / "tools" / "refused_corpus.py"


def corpus() -> list[Any]:
    """The cases of tools/refused_corpus.py."""
    module = sys.modules.get("refused_corpus")
    if module is None:
        spec = importlib.util.spec_from_file_location("refused_corpus", _PATH)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["refused_corpus"] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    return list(module.CASES)


# A stand-in for the native library: it takes everything but `Erf`, on which it does what the test is about.
_WORKER = """
    import json, os, sys, time
    def reply(**result):
        print(json.dumps({"result": result}), flush=True)

    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "hello":
            reply(version="0")
            continue
        if request["do"] == "open":
            bad = bytes([0x22, 3]) + b"Erf" in open(request["path"], "rb").read()  # NodeProto.op_type
            if bad and MISBEHAVES == "open":
                misbehave()
            reply(accepted=True, errors=[], inputs=[], outputs=[], layers=[])
        elif request["do"] == "build":
            if bad and MISBEHAVES == "build":
                misbehave()
            open(request["engine"], "wb").write(b"engine")
            reply(bytes=6, seconds=0.0, messages=[])
        else:
            reply(supported=True, partitions=[], errors=[])
"""


def misbehaving(how: str, *, at: str = "open") -> TensorRT:
    """A target whose library runs the statements `how` when it meets an Erf.

    Args:
        how: statements.
        at: `open` (the parser) or `build`.
    """
    body = textwrap.indent(textwrap.dedent(how).strip(), "    ")
    code = f"MISBEHAVES = {at!r}\ndef misbehave():\n{body}\n{textwrap.dedent(_WORKER)}"
    return replace(TARGETS["rtx"], module="onnx", command=(sys.executable, "-c", code))


def chain(operators: list[str], width: int = 8) -> onnx.ModelProto:
    """A model of unary operators, one after the other; each node is called like its operator and place."""
    nodes, value = [], "x"
    for index, operator in enumerate(operators):
        nodes.append(onnx.helper.make_node(operator, [value], [f"v{index}"], name=f"{operator}_{index}"))
        value = f"v{index}"
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "chain",
        [info("x", onnx.TensorProto.FLOAT, [2, width])],
        [info(value, onnx.TensorProto.FLOAT, [2, width])],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
