"""Branches of different ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from helpers import parse
from legalize_helpers import agree, in_runtime, rewritten
from onnxlathe.infer import infer_model
from onnxlathe.model import Model
from onnxlathe.rewrite import Names
from onnxlathe_passes.legalize.ranks import differ_in_rank, sink

SQUEEZE = """
    r = Relu(x)
    c = If(flag)<then_branch = a () => (float[b,4] t) {{ t = Squeeze(r, one) }},
        else_branch = e () => (float[b,1,4] u) {{ u = Identity(r) }}>
    {rest}
"""


def model(rest: str, outputs: str = "float[b,4] y") -> onnx.ModelProto:
    text = SQUEEZE.format(rest=rest)
    head = (
        f"g (float[b,1,4] x, bool flag, float[4] w) => ({outputs}) <int64[1] one={{1}}, int64[2] s={{-1,4}}, "
    )
    return parse(f"{head} int64[2] t2={{0,-1}}> {{ {text} }}", opset=18)


def refuses(model: ir.Model) -> list[int]:
    return [i for i, n in enumerate(model.graph) if n.op_type == "If" and differ_in_rank(n)]


def check(proto: onnx.ModelProto, *, sunk: bool) -> onnx.ModelProto:
    after, context = rewritten(proto, refuses)
    assert any("both branches" in note for note in context.notes) == sunk
    onnx.checker.check_model(after, full_check=True)
    for size in (1, 3):
        x = np.random.default_rng(size).standard_normal((size, 1, 4)).astype(np.float32)
        for flag in (True, False):
            feeds: dict[str, Any] = {"x": x, "flag": np.array(flag), "w": np.arange(4, dtype=np.float32)}
            agree(in_runtime(after, feeds), in_runtime(proto, feeds))
    return after


@pytest.mark.parametrize(
    "rest",
    [
        "y = Reshape(c, s)",
        "n = Neg(c) m = Mul(n, w) y = Reshape(m, s)",
        "n = Neg(c) m = Add(n, c) k = Exp(m) y = Reshape(k, s)",
        "q = Reshape(c, s) k = Exp(q) y = Relu(k)",
        "v = Sin(w) n = Mul(c, v) y = Reshape(n, s)",
    ],
)
def test_what_follows_moves_into_the_branches(rest: str) -> None:
    after = check(model(rest), sunk=True)
    (node,) = [n for n in after.graph.node if n.op_type == "If"]
    ranks = {len(o.type.tensor_type.shape.dim) for a in node.attribute for o in a.g.output}
    assert ranks == {2}


def test_two_outputs() -> None:
    rest = "n = Neg(c) y = Reshape(n, s) z = Reshape(c, t2)"
    check(model(rest, "float[b,4] y, float[b,4] z"), sunk=True)


def test_other_outputs_of_the_if_stay() -> None:
    proto = parse(
        """g (float[b,1,4] x, bool flag, float[4] w) => (float[b,4] y, float[4] z) <int64[1] one={1}, int64[2] s={-1,4}> {
            c, k = If(flag)<then_branch = a () => (float[b,4] t, float[4] p) { t = Squeeze(x, one) p = Neg(w) },
                else_branch = e () => (float[b,1,4] u, float[4] q) { u = Identity(x) q = Exp(w) }>
            y = Reshape(c, s)
            z = Relu(k)
        }""",
        opset=18,
    )
    check(proto, sunk=True)


@pytest.mark.parametrize(
    ("rest", "outputs"),
    [
        ("y = Relu(c)", "float y"),  # the model gives two ranks itself
        ("q = Reshape(c, s) e = Exp(q) f = Squeeze(e) y = Add(c, e)", "float y"),
    ],
)
def test_where_the_ranks_never_agree(rest: str, outputs: str) -> None:
    proto = model(rest, outputs)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    found = Model(ir.from_proto(proto))
    infer_model(found)
    (node,) = [n for n in found.graph if n.op_type == "If"]
    before = ir.to_proto(found.ir).SerializeToString()
    assert differ_in_rank(node) == [0]
    assert sink(found.ir, node, Names(found.ir), lambda: True) is None
    assert ir.to_proto(found.ir).SerializeToString() == before
    assert len(node.outputs[0].uses()) == sum("c" in n.input for n in proto.graph.node)


def test_branches_of_one_rank_are_left_alone() -> None:
    proto = parse(
        """g (float[2,4] x, bool flag) => (float[2,4] y) {
            c = If(flag)<then_branch = a () => (float[2,4] t) { t = Neg(x) },
                else_branch = e () => (float[2,4] u) { u = Exp(x) }>
            y = Relu(c)
        }"""
    )
    _, context = rewritten(proto, refuses)
    assert not context.firings
