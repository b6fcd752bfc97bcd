"""The pass as a whole: who is asked, what is said, what is bound, and a few real engines."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from helpers import parse
from legalize_helpers import Refusing, agree, in_reference, in_runtime, legalized, single
from onnxlathe import UsageError
from onnxlathe.infer import infer_model
from onnxlathe.model import Model
from onnxlathe.rewrite import Context
from onnxlathe.target import TARGETS, find_target
from onnxlathe_passes.legalize import Legalize
from onnxlathe_passes.legalize.judge import TableJudge, TargetJudge
from onnxlathe_passes.legalize.run import Legalizing

needs_target = pytest.mark.skipif(not find_target().available, reason="no TensorRT is installed")


def run(proto: onnx.ModelProto, tmp: Path, **options: str) -> tuple[onnx.ModelProto, Context, int]:
    model = Model(ir.from_proto(proto))
    infer_model(model)
    context = Context.of(model.ir)
    changes = Legalize(cache=str(tmp), **options).run(model, context)
    return ir.to_proto(model.ir), context, changes


def test_what_is_taken_is_left_alone() -> None:
    proto = parse("g (float[2] x) => (float[2] y) { a = Relu(x) y = Neg(a) }")
    after, context = legalized(proto, ["LpPool"])
    assert [n.op_type for n in after.graph.node] == ["Relu", "Neg"]
    assert not context.firings


def test_only_the_refused_node_changes_and_says_whom_it_stands_for() -> None:
    proto = parse("g (float[2,3] x) => (float[2,3] z) { a = Relu(x) b = Celu<alpha=2.0>(a) z = Neg(b) }")
    proto.graph.node[1].name = "theirs"
    after, context = legalized(proto, ["Celu"])
    assert after.graph.node[0].op_type == "Relu"
    assert after.graph.node[-1].op_type == "Neg"
    assert [f.before for f in context.firings] == [("theirs",)]
    assert any("theirs" in m.value for n in after.graph.node for m in n.metadata_props)


def test_equal_nodes_are_solved_once() -> None:
    body = "".join(f" v{i + 1} = Celu<alpha=2.0>(v{i})" for i in range(6))
    proto = parse(f"g (float[2,3] v0) => (float[2,3] v6) {{{body} }}")
    model = Model(ir.from_proto(proto))
    infer_model(model)
    judge = Refusing(frozenset(["Celu"]))
    Legalizing(Legalize(), model, Context.of(model.ir), judge).run()
    assert sum("Exp" in text and text.count("Exp") == 1 for text in judge.asked) <= 2


def test_refused_nodes_in_a_branch() -> None:
    proto = parse(
        """g (bool c, float[3] x) => (float[3] y) {
            y = If (c) <then_branch = t () => (float[3] a) { a = Celu<alpha=2.0>(x) },
                        else_branch = e () => (float[3] b) { b = Neg(x) }>
        }"""
    )
    model = Model(ir.from_proto(proto))
    infer_model(model)

    class Inside(Refusing):
        def judge(self, model: ir.Model, expect: object = None, *, build: bool = True):
            from onnxlathe.rewrite import graphs_of
            from onnxlathe_passes.legalize.judge import Ruling

            bad = any(n.op_type == "Celu" for g in graphs_of(model) for n in g)
            return Ruling(not bad, not bad, (0,) if bad else ())

    Legalizing(Legalize(), model, Context.of(model.ir), Inside(frozenset())).run()
    after = ir.to_proto(model.ir)
    for flag in (True, False):
        feeds = {"c": np.array(flag), "x": np.array([-1.0, 0.0, 2.0], np.float32)}
        agree(in_runtime(after, feeds), in_runtime(proto, feeds))


LOOP = """g (float[2] x) => (float[2] s, float[N,2] all) <int64 n = {4}, bool go = {1}> {
    s, all = Loop (n, go, x) <body = b (int64 i, bool c, float[2] v) => (bool d, float[2] w, float[2] o) {
        d = Identity(c) f = Cast<to=1>(i) w = Add(v, f) o = Mul(w, x)
    }>
}"""


def test_a_loop_of_known_length_is_written_out() -> None:
    proto = parse(LOOP)
    after, _ = legalized(proto, ["Loop"])
    feeds = {"x": np.array([0.5, -2.0], np.float32)}
    agree(in_runtime(after, feeds), in_runtime(proto, feeds))


def test_a_scan_is_written_out() -> None:
    proto = parse(
        """g (float[2] s0, float[3,2] xs) => (float[2] s, float[3,2] ys) {
            s, ys = Scan <num_scan_inputs=1, scan_input_directions=[1], body = b (float[2] a, float[2] x) => (float[2] n, float[2] y) {
                n = Add(a, x) y = Mul(n, x)
            }> (s0, xs)
        }"""
    )
    feeds = {"s0": np.ones(2, np.float32), "xs": np.arange(6, dtype=np.float32).reshape(3, 2)}
    after, _ = legalized(proto, ["Scan"])
    agree(in_runtime(after, feeds), in_runtime(proto, feeds))


def test_an_if_of_equal_shapes_chooses_with_where() -> None:
    proto = parse(
        """g (bool c, float[3] x) => (float[3] y) {
            y = If (c) <then_branch = t () => (float[3] a) { a = Abs(x) }, else_branch = e () => (float[3] b) { b = Neg(x) }>
        }"""
    )
    after, _ = legalized(proto, ["If"])
    for flag in (True, False):
        feeds = {"c": np.array(flag), "x": np.array([-1.0, 0.0, 2.0], np.float32)}
        agree(in_runtime(after, feeds), in_runtime(proto, feeds))


def test_bound_inputs_are_constants_and_said_to_be() -> None:
    feeds = {"x": np.ones((2, 3), np.float32), "axes": np.array([1], np.int64)}
    proto = single("ReduceSum", feeds, [1], keepdims=0)
    after, context = legalized(proto, ["LpPool"], bind="axes=[1]")
    assert [v.name for v in after.graph.input] == ["x"]
    assert any("'axes' is now the constant [1]" in note for note in context.notes)
    agree(in_runtime(after, {"x": feeds["x"]}), [feeds["x"].sum(1)])


@pytest.mark.parametrize("text", ["axes", "axes=[1", "nothing=[1]", "axes=[[1]]", "axes='a'"])
def test_wrong_bindings_have_messages(text: str) -> None:
    feeds = {"x": np.ones((2, 3), np.float32), "axes": np.array([1], np.int64)}
    with pytest.raises(UsageError):
        legalized(single("ReduceSum", feeds, [1]), ["LpPool"], bind=text)


def test_wrong_io_types_have_a_message(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="io_types"):
        run(parse("g (float[2] x) => (float[2] y) { y = Relu(x) }"), tmp_path, io_types="wide")


def test_what_nobody_can_help_is_said() -> None:
    proto = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    model = Model(ir.from_proto(proto))
    context = Context.of(model.ir)
    infer_model(model)
    Legalizing(Legalize(), model, context, Refusing(frozenset(["Relu", "Max"]))).run()
    assert any("stays refused" in note for note in context.notes)


def test_the_table_knows_operators_and_types() -> None:
    judge = TableJudge.newest()
    taken = ir.from_proto(parse("g (float[2] x) => (float[2] y) { y = Relu(x) }"))
    infer_model(Model(taken))
    assert judge.judge(taken).accepted
    for proto in (
        single("Det", {"x": np.ones((2, 2), np.float32)}, [1]),
        single("Gelu", {"x": np.ones(2, np.float32)}, [1], domain="com.microsoft"),
    ):
        model = ir.from_proto(proto)
        infer_model(Model(model))
        assert not judge.judge(model).accepted


@needs_target
def test_a_real_target_takes_what_comes_out(tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((2, 3, 4)).astype(np.float32)
    feeds = {"x": x, "s": np.ones(4, np.float32), "b": np.zeros(4, np.float32)}
    proto = single("LayerNormalization", feeds, [(1, [2, 3, 4]), (1, [2, 3, 1]), (1, [2, 3, 1])], opset=17)
    after, context, changes = run(proto, tmp_path)
    assert changes
    assert "LayerNormalization" not in {n.op_type for n in after.graph.node}, context.notes
    agree(in_runtime(after, feeds), in_reference(proto, feeds))
    assert run(proto, tmp_path)[0].graph.node  # from remembered answers


@needs_target
def test_a_real_target_and_a_narrow_type(tmp_path: Path) -> None:
    x = np.array([65535, 1, 7], np.uint16)
    proto = single("Add", {"x": x, "y": x}, [(4, [3])])
    _, context, changes = run(proto, tmp_path)
    assert not changes
    assert any("io_types=widen" in note for note in context.notes)
    after, context, changes = run(proto, tmp_path, io_types="widen")
    assert changes
    assert any("now rather than uint16" in note for note in context.notes)
    wide = {"x": x.astype(np.int32), "y": x.astype(np.int32)}
    agree([in_runtime(after, wide)[0].astype(np.uint16)], [x + x])


@needs_target
@pytest.mark.parametrize("kind", ["float", "float16"])
def test_attention_that_a_build_accepts_is_left_alone(kind: str, tmp_path: Path) -> None:
    # There is no kernel for all of it in float32: `optimize --engine` and the judge let it be decomposed.
    shape = f"{kind}[1,2,4,8]"
    proto = parse(f"g ({shape} q, {shape} k, {shape} v) => ({shape} y) {{ y = Attention(q,k,v) }}", opset=23)
    after, _, changes = run(proto, tmp_path)
    assert not changes
    assert [n.op_type for n in after.graph.node] == ["Attention"]


@needs_target
def test_a_target_that_was_ended_is_started_again() -> None:
    target = find_target()
    with TargetJudge(target) as judge:  # type: ignore[arg-type]
        model = ir.from_proto(parse("g (float[2] x) => (float[2] y) { y = Relu(x) }"))
        assert judge.judge(model).accepted
        assert judge._process is not None
        judge._process.close()
        judge._memory.clear()
        assert judge.judge(model).accepted


def test_a_target_that_dies_is_an_answer_that_is_not_kept(tmp_path: Path) -> None:
    script = """
        import json, os, sys
        for line in sys.stdin:
            if json.loads(line)["do"] != "hello":
                os.abort()
            print(json.dumps({"result": {"version": "0"}}), flush=True)
    """
    command = (sys.executable, "-c", textwrap.dedent(script))
    target = replace(TARGETS["rtx"], module="onnx", command=command)
    model = ir.from_proto(parse("g (float[2] x) => (float[2] y) { y = Relu(x) }"))
    with TargetJudge(target, tmp_path) as judge:
        ruling = judge.judge(model)
        assert ruling.fatal
        assert not ruling.accepted
        assert "SIGABRT" in ruling.message
    assert not list(tmp_path.iterdir())


@needs_target
def test_a_typical_value_that_is_empty(tmp_path: Path) -> None:
    """Written as a list, [2, 0, 4] numbers are [[], []], which says nothing of the last axis."""
    proto = parse(
        "g (float[2,0,4] x, int64[1] axes) => (float[2,1,4] y) { y = ReduceMax<keepdims=1>(x, axes) }"
    )
    after, _, changes = run(proto, tmp_path, expect="x=[[], []]; axes=[1]")
    assert changes
    assert "ReduceMax" not in {node.op_type for node in after.graph.node}
