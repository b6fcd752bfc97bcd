"""Mending where something has to be decided first: sizes, inputs, and what is left to the caller."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from helpers import parse
from onnxlathe.cli import run
from onnxlathe.debug import Finding, Oracle, diagnose
from onnxlathe.debug.bind import bind_inputs
from onnxlathe.debug.decide import Decision, bindings, decisions, frozen_sizes
from onnxlathe.debug.fix import Mended, mend
from onnxlathe.debug.outside import left_outside
from onnxlathe.model import Model
from onnxlathe.model.interface import interface_of
from onnxlathe.target import find_target
from onnxlathe.verify import Verifier
from refused import corpus, needs_rtx


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle(find_target("rtx")) as found:
        yield found


def model_of(text: str, opset: int = 18) -> Model:
    return Model(ir.from_proto(parse(text, opset)))


def case(name: str) -> Model:
    return Model(ir.from_proto(next(c for c in corpus() if c.name == name).model()))


def mended(model: Model, oracle: Oracle, **how: Any) -> Mended:
    return mend(model, oracle, diagnose(model, oracle), **how)


def squeeze_if(condition: str, inputs: str = "float[n,c,4] x") -> Model:
    """torch.squeeze(1) as the TorchScript exporter writes it."""
    return model_of(f"""g ({inputs}) => (float[n,4] y) <int64[1] one={{1}}, int64[1] at={{1}}, float k={{1}}> {{
        [relu] r = Relu(x)
        {condition}
        [choose] v = If(flag)<then_branch = a () => (float[n,4] t) {{ [drop] t = Squeeze(r, one) }},
            else_branch = e () => (float[n,c,4] u) {{ [keep] u = Identity(r) }}>
        [add] y = Add(v, k)
    }}""")  # fmt: skip


BY_SIZE = "[shape] s = Shape(r) [size] d = Gather<axis=0>(s, at) [same] flag = Equal(d, one)"
BY_DATA = "[sum] m = ReduceSum<keepdims=0>(r) [same] flag = Greater(m, k)"


def found(model: Model, cause: str = "if-ranks", node: str = "choose", top: str = "") -> list[Finding]:
    from onnxlathe.debug.catalogue import causes

    return [Finding("build", "", "", node, top=top, cause=next(c for c in causes() if c.id == cause))]


@pytest.mark.parametrize(
    ("condition", "inputs", "expected"),
    [
        (BY_SIZE, "float[n,c,4] x", (("c",), (), False)),
        ("[same] flag = Identity(f)", "float[n,c,4] x, bool f", ((), ("f",), False)),
        (BY_DATA, "float[n,c,4] x", ((), (), True)),
    ],
)
def test_what_decides(condition: str, inputs: str, expected: tuple[Any, ...]) -> None:
    model = squeeze_if(condition, inputs)
    (decision,) = decisions(model, found(model))
    assert decision == Decision("choose", (2, 3), *expected)
    sizes = frozen_sizes(model, found(model), [decision])
    assert [s["c"] for s in sizes][:1] == ([1] if expected[0] else [])
    assert decisions(model, found(model, "squeeze-open", "drop", "choose")) == [decision]


def test_a_squeeze_leaves_no_choice() -> None:
    model = model_of("g (float[b,c,4] x) => (float[b,4] y) <int64[1] one={1}> { [drop] y = Squeeze(x, one) }")
    assert frozen_sizes(model, found(model, "squeeze-open", "drop"), []) == [{"c": 1}]
    assert frozen_sizes(model, found(model, "if-ranks", "drop"), []) == []


@needs_rtx
def test_a_condition_on_sizes_is_frozen(oracle: Oracle) -> None:
    model = squeeze_if(BY_SIZE)
    result = mended(model, oracle)
    assert result.proven
    assert interface_of(result.model.ir).sizes == {"c": 1}
    assert "If" not in {n.op_type for n in result.model.graph}
    with Verifier(model) as verifier:
        assert verifier.check(result.model).status == "equal"


@needs_rtx
def test_a_condition_that_an_input_holds_is_bound_and_compared(oracle: Oracle, tmp_path: Path) -> None:
    original = case("if_ranks")
    refused = mended(original.clone(), oracle)
    assert not refused.accepted
    assert "--bind flag=VALUE" in refused.reasons[0]
    for value, rank in (("true", 2), ("false", 3)):
        model = original.clone()
        bind_inputs(model, [f"flag={value}"])
        result = mended(model, oracle, original=original)
        assert result.proven
        with Verifier(original) as verifier:
            verdict = verifier.check(result.model)
        assert verdict.status == "equal"
        assert {len(c.shape) for c in verdict.comparisons} == {rank}


@needs_rtx
def test_a_condition_on_results_is_said(oracle: Oracle) -> None:
    result = mended(squeeze_if(BY_DATA), oracle)
    assert not result.accepted
    assert "known only at run time" in result.reasons[0]


@needs_rtx
@pytest.mark.parametrize("seed", ["", ", seed=3.0"])
def test_random_numbers_are_not_called_equal(seed: str, oracle: Oracle) -> None:
    text = f"g (float[2,4] x) => (int32[2,1] y) {{ [draw] y = Multinomial<sample_size=1{seed}>(x) }}"
    result = mended(model_of(text, 17), oracle)
    assert result.accepted
    assert not result.proven
    kept = [a for a in result.attempts if a.kept]
    assert "random operator Multinomial" in kept[-1].verdict


# What is left to the caller

TOKENS = """g (string[3] words, float[3,4] x) => (float[3,4] y, string[3] lower) {
    [lower] lower = StringNormalizer<case_change_action="LOWER", locale="C">(words)
    [ids] ids = ai.onnx.ml.LabelEncoder<keys_strings=["a","b"], values_int64s=[1,2], default_int64=0>(lower)
    [table] e = Gather(x, ids)
    [act] y = Relu(e)
}"""
LABELS = """g (float[3,4] x) => (string[3] name, float[3,4] p) {
    [act] p = Softmax(x)
    [best] i = ArgMax<axis=1, keepdims=0>(p)
    [name] name = ai.onnx.ml.LabelEncoder<keys_int64s=[0,1,2,3], values_strings=["a","b","c","d"]>(i)
}"""
MIDDLE = """g (float[3,4] x) => (float[3,4] y) {
    [one] a = Relu(x)
    [two] b = Neg(a)
    [odd] c = other.domain.Odd(b)
    [three] d = Exp(c)
    [four] y = Tanh(d)
}"""


def domains(text: str) -> Model:
    return model_of(f'<ir_version: 10, opset_import: ["" : 18, "ai.onnx.ml" : 2, "other.domain" : 1]> {text}')


def in_runtime(model: Model, feeds: dict[str, Any]) -> dict[str, Any]:
    session = ort.InferenceSession(ir.to_proto(model.ir).SerializeToString())
    names = [o.name for o in session.get_outputs()]
    fed = {i.name: feeds[i.name] for i in session.get_inputs()}
    return dict(zip(names, session.run(names, fed), strict=True))


@pytest.mark.parametrize(
    ("text", "engine", "sides"),
    [(TOKENS, ["table", "act"], "before"), (LABELS, ["act", "best"], "after")],
)
def test_the_parts_one_after_another_are_the_model(text: str, engine: list[str], sides: str) -> None:
    model = domains(text)
    parts = left_outside(model, [])
    assert parts is not None
    assert [n.name for n in parts.engine.graph] == engine
    assert (parts.before is not None, parts.after is not None) == (sides == "before", sides == "after")
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    feeds: dict[str, Any] = {"x": x, "words": np.array(["A", "b", "zebra"], dtype=object)}
    passed = dict(feeds)
    for part in (parts.before, parts.engine, parts.after):
        if part is not None:
            passed |= in_runtime(part, passed)
    for name, value in in_runtime(model, feeds).items():
        np.testing.assert_array_equal(passed[name], value)
    with Verifier(model) as verifier:
        verdict = verifier.check(parts.engine)
    assert verdict.status == "equal", verdict.summary()
    assert "left to the caller" in verdict.interface[0]


def test_an_engine_that_computes_something_else_is_still_found() -> None:
    model = domains(LABELS)
    parts = left_outside(model, [])
    assert parts is not None
    for node in parts.engine.graph:
        if node.op_type == "ArgMax":
            node.op_type = "ArgMin"
    with Verifier(model) as verifier:
        assert verifier.check(parts.engine).status == "different"


def test_what_stands_in_the_middle_takes_a_side_along() -> None:
    parts = left_outside(domains(MIDDLE), ["odd"])
    assert parts is not None
    # What follows an unknown operator has no known type, so that it cannot be the engine.
    assert [n.name for n in parts.engine.graph] == ["one", "two"]
    assert parts.after is not None
    assert [n.name for n in parts.after.graph] == ["odd", "three", "four"]


def test_nothing_is_left_for_an_engine() -> None:
    assert left_outside(domains("g (string[2] s) => (string[2] u) { [a] u = Identity(s) }"), []) is None
    assert left_outside(domains("g (float[2] s) => (float[2] u) { [a] u = Relu(s) }"), []) is None


@needs_rtx
def test_split_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(ir.to_proto(domains(TOKENS).ir), path)
    assert run(["debug", str(path), "--fix"]) == 1
    assert "--split" in capsys.readouterr().out
    assert not (tmp_path / "m.fixed.onnx").exists()
    assert run(["debug", str(path), "--fix", "--split"]) == 0
    said = capsys.readouterr().out
    assert "m.fixed.before.onnx runs before it" in said.replace("\n", "")
    assert [n.name for n in onnx.load(tmp_path / "m.fixed.before.onnx").graph.node] == ["lower", "ids"]
    assert run(["verify", str(path), str(tmp_path / "m.fixed.onnx")]) == 0


@needs_rtx
def test_a_part_that_is_refused_is_mended_in_turn(oracle: Oracle) -> None:
    text = TOKENS.replace("[act] y = Relu(e)", "[act] y = CumProd(e, ids0)")
    model = model_of(
        '<ir_version: 13, opset_import: ["" : 26, "ai.onnx.ml" : 2]> '
        + text.replace("lower) {", "lower) <int64 ids0={1}> {", 1)
    )
    result = mended(model, oracle, split=True)
    assert result.accepted
    assert result.parts is not None
    assert "split" in [a.pipeline for a in result.attempts if a.kept]
    assert result.proven
    assert interface_of(result.model.ir).outside == ["lower", "ids"]


LOOP = """g (int64 count, float[n,4] x) => (float[n,4] y, float[t,n,4] all) <float half={0.5}> {
    [loop] y, all = Loop(count, , x)<body = b (int64 i, bool go, float[n,4] s) => (bool on, float[n,4] z, float[n,4] e) {
        [keep] on = Identity(go)
        [halve] z = Mul(s, half)
        [also] e = Relu(z)
    }>
}"""  # fmt: skip


@needs_rtx
def test_a_condition_that_a_loop_leaves_out(oracle: Oracle) -> None:
    """The body reads one all the same; written down, the loop runs as often as an input says."""
    model = model_of(LOOP)
    diagnosis = diagnose(model, oracle)
    assert [(f.node, f.top, f.cause_id) for f in diagnosis.findings] == [("keep", "loop", "loop-condition")]
    done = mended(model, oracle)
    assert done.proven
    loop = next(n for n in done.model.graph if n.op_type == "Loop")
    assert loop.inputs[1] is not None
    given = model_of(
        LOOP.replace("count, , x", "count, yes, x").replace("half={0.5}", "half={0.5}, bool yes={1}")
    )
    assert diagnose(given, oracle).accepted


@needs_rtx
def test_all_nodes_that_are_refused_within_a_branch(oracle: Oracle) -> None:
    """The parser names the first; the others are asked about one by one."""
    model = model_of("""g (bool c, float[4] x, float[1,1,4,4] m) => (float[1,1,2,2] y) {
        [choose] y = If(c)<then_branch = t () => (float[1,1,2,2] a) {
                [pool] p, q = MaxPool<kernel_shape=[2,2], strides=[2,2]>(m)
                [cast] r = Cast<to=1>(q)
                [det] d = Det(m)
                [sum] s = Add(p, r)
                [out] a = Mul(s, d) },
            else_branch = f () => (float[1,1,2,2] b) {
                [fine] b = AveragePool<kernel_shape=[2,2], strides=[2,2]>(m) }>
    }""")
    diagnosis = diagnose(model, oracle)
    assert {f.node: f.top for f in diagnosis.findings} == {"pool": "choose", "det": "choose"}


@pytest.mark.parametrize(
    ("operands", "said"),
    [
        ("start, limit, step", "--bind start=VALUE --bind limit=VALUE --bind step=VALUE"),
        ("start, sum, step", ""),
    ],
)
def test_an_input_that_says_a_size_may_be_bound(operands: str, said: str) -> None:
    model = model_of(f"""g (float start, float limit, float step, float[m] x) => (float[n] y) {{
        [sum] sum = ReduceSum<keepdims=0>(x)
        [range] r = Range({operands})
        [neg] y = Neg(r) }}""")
    sentences = bindings(model, found(model, "shape-from-data", "range"))
    assert [said in s for s in sentences.values()] == ([True] if said else [])
    assert not bindings(model, found(model, "shape-from-data", "neg"))


@needs_rtx
def test_the_reason_of_a_lowering_that_declines_is_told(oracle: Oracle) -> None:
    sizes = "float[1,1,32] q, float[1,1,16] k, float[1,1,16] v, float[1,2,8,8] pk, float[1,2,8,8] pv, int32[1] e, int32 t"
    call = "com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2, sliding_window_cache=1, local_window_size=4>"
    proto = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["":18, "com.microsoft":1]>
        g ({sizes}) => (float[1,1,32] y, float[1,2,8,8] ck, float[1,2,8,8] cv) {{ y, ck, cv = {call}(q, k, v, pk, pv, e, t) }}"""
    )
    proto.graph.node[0].name = "gqa"
    done = mended(Model(ir.from_proto(proto)), oracle)
    assert not done.accepted
    assert any("GroupQueryAttention 'gqa': a cache that forgets" in reason for reason in done.reasons)
