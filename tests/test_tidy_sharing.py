"""What `tidy` shares and throws away: common subexpressions, equal weights, dead parts."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from helpers import assert_same, check, operators, optimized, parse, samples
from onnxlathe.model import Model, load
from onnxlathe.pipeline import Registry, Runner, plan
from onnxlathe.rewrite import Context, origin
from onnxlathe_passes.cse import CommonSubexpressions
from onnxlathe_passes.dedup import Dedup

# Common subexpressions.


def test_attributes_and_their_defaults_and_the_order_of_commutative_inputs() -> None:
    text = """g (float[n, 4] x, float[n, 4] z) => (float[n, 4] y) {
        a = Softmax(x)
        b = Softmax<axis=-1>(x)
        c = Add(a, z)
        d = Add(z, b)
        y = Mul(c, d)
    }"""
    check(text, "cse", ["Softmax", "Add", "Mul"])


@pytest.mark.parametrize("opset", [17, 18])
def test_axes_from_the_front_and_from_the_end(opset: int) -> None:
    last, front = ("<axes=[-1]>(x)", "<axes=[1]>(x)") if opset < 18 else ("(x, m)", "(x, p)")
    text = f"""g (float[n, 4] x) => (float[n, 4] y, float[n, 8] z) {{
        a = ReduceMean{last} b = ReduceMean{front}
        c = Add(a, b)
        d = Softmax<axis=1>(x) e = Softmax(x)
        f = Sub(d, e) y = Mul(f, c)
        z = Concat<axis=-1>(d, d) h = Concat<axis=1>(d, e) k = Exp(h)
    }}"""
    weights = {"m": np.array([-1]), "p": np.array([1])} if opset > 17 else {}
    check(
        text,
        "shapes,cse,dead",
        ["ReduceMean", "Add", "Softmax", "Sub", "Mul", "Concat"],
        opset=opset,
        weights=weights,
    )


@pytest.mark.parametrize("opset", [17, 18])
def test_other_axes_stay_apart(opset: int) -> None:
    last, front = ("<axes=[-1]>(x)", "<axes=[0]>(x)") if opset < 18 else ("(x, m)", "(x, p)")
    text = f"""g (float[n, 4] x) => (float[n, 4] y) {{
        a = ReduceMax{last} b = ReduceMax{front} c = ReduceMax(x)
        d = Add(a, b) e = Add(c, d)
        f = Softmax<axis=0>(x) h = Softmax<axis=-1>(x)
        i = Sub(f, h) y = Mul(i, e)
    }}"""
    weights = {"m": np.array([-1]), "p": np.array([0])} if opset > 17 else {}
    check(text, "shapes,cse", None, opset=opset, weights=weights)


def test_what_differs_stays_apart() -> None:
    text = """g (float[n, 4] x, float[n, 4] z) => (float[n, 4] y) {
        a = Softmax<axis=0>(x)
        b = Softmax<axis=1>(x)
        c = Sub(a, b)
        d = Sub(b, a)
        e = Pow(c, d)
        f = Clip(e, , k)
        h = Clip(e, k)
        i = Add(f, h)
        y = Add(i, z)
    }"""
    check(text, "cse", None, weights={"k": np.float32(0.3)})


def test_outputs_of_the_model() -> None:
    text = """g (float[n, 4] x) => (float[n, 4] a, float[n, 4] b, float[n, 4] c) {
        a = Relu(x)
        b = Relu(x)
        d = Exp(x)
        e = Exp(x)
        c = Add(d, e)
    }"""
    after = check(text, "cse,cse", ["Relu", "Exp", "Add", "Identity"])
    assert [o.name for o in after.graph.output] == ["a", "b", "c"]


def test_the_twin_is_an_output() -> None:
    text = "g (float[n, 4] x) => (float[n, 4] z, float[n, 4] b) { a = Relu(x)\n b = Relu(x)\n z = Neg(a) }"
    after = check(text, "cse", ["Relu", "Neg"])
    assert [o.name for o in after.graph.output] == ["z", "b"]


def test_several_outputs_some_of_them_unused() -> None:
    text = """g (float[n, 4] x) => (float[n, 2] y) {
        k = Constant<value_ints=[2]>()
        a, i = TopK(x, k)
        b, j = TopK(x, k)
        f = Cast<to=1>(j)
        h = Add(a, b)
        y = Add(h, f)
    }"""
    check(text, "cse", ["TopK", "Cast", "Add", "Add"])


def test_the_number_of_parts_is_part_of_a_split() -> None:
    text = """g (float[n, 12] x) => (float y) {
        a, b = Split<axis=1>(x)
        c, d, e = Split<axis=1>(x)
        y = Concat<axis=1>(a, c, b, d, e)
    }"""
    check(text, "cse", None)


def test_random_numbers_are_drawn_anew() -> None:
    text = """g (float[n, 4] x) => (float[n, 4] y) {
        a = RandomNormalLike(x)
        b = RandomNormalLike(x)
        y = Sub(a, b)
    }"""
    assert len(operators(optimized(parse(text), "tidy"))) == 3


def test_a_function_with_a_random_operator_is_not_shared() -> None:
    text = """<ir_version: 10, opset_import: ["" : 17, "local" : 1]>
    g (float[n, 4] x) => (float[n, 4] y) {
        a = local.noise(x)
        b = local.noise(x)
        c = local.twice(x)
        d = local.twice(x)
        e = Sub(a, b)
        f = Add(c, d)
        y = Add(e, f)
    }
    <domain: "local", opset_import: ["" : 17]> noise (x) => (y) { y = RandomNormalLike(x) }
    <domain: "local", opset_import: ["" : 17]> twice (x) => (y) { a = Add(x, x)\n b = Add(x, x)\n y = Max(a, b) }
    """
    after = optimized(parse(text), "cse")
    assert operators(after) == ["noise", "noise", "twice", "Sub", "Add", "Add"]
    assert [n.op_type for n in after.functions[1].node] == ["Add", "Max"]


def test_unknown_operators_are_not_shared() -> None:
    text = """<ir_version: 10, opset_import: ["" : 17, "custom" : 1]>
    g (float[n, 4] x) => (float[n, 4] y) { a = custom.Op(x)\n b = custom.Op(x)\n y = Sub(a, b) }"""
    assert len(operators(optimized(parse(text), "cse"))) == 3


def test_a_branch_uses_what_is_computed_around_it() -> None:
    text = """g (float[n, 4] x, bool c) => (float[n, 4] z) {
        e = Exp(x)
        y = If (c) <
            then_branch = t () => (float[n, 4] u) { a = Exp(x)\n u = Neg(a) },
            else_branch = f () => (float[n, 4] v) { b = Exp(x)\n w = Sin(x)\n h = Add(b, w)\n v = Tanh(h) }
        >
        s = Sin(x)
        m = Mul(e, s)
        z = Mul(y, m)
    }"""
    after = check(text, "cse", ["Exp", "If", "Sin", "Mul", "Mul"])
    then_branch, else_branch = (a.g for a in after.graph.node[1].attribute)
    assert [n.op_type for n in then_branch.node] == ["Neg"]
    # What comes later, or in the other branch, is not there yet.
    assert [n.op_type for n in else_branch.node] == ["Sin", "Add", "Tanh"]


def test_a_branch_whose_output_is_computed_around_it() -> None:
    text = """g (float[n, 4] x, bool c) => (float[n, 4] z) {
        e = Exp(x)
        y = If (c) <
            then_branch = t () => (float[n, 4] u) { u = Exp(x) },
            else_branch = f () => (float[n, 4] v) { v = Sin(x) }
        >
        z = Mul(y, e)
    }"""
    after = check(text, "tidy,tidy", ["Exp", "If", "Mul"])
    assert [n.op_type for n in after.graph.node[1].attribute[0].g.node] == ["Identity"]


def test_constants_in_function_bodies() -> None:
    text = """<ir_version: 10, opset_import: ["" : 17, "local" : 1]>
    g (float[n, 4] x) => (float[n, 4] y) { y = local.f(x) }
    <domain: "local", opset_import: ["" : 17]>
    f (x) => (y) {
        a = Constant<value_float=2.5>()
        b = Constant<value_float=2.5>()
        c = Mul(x, a)
        d = Mul(b, x)
        y = Add(c, d)
    }"""
    after = check(text, "cse", ["f"])
    assert [n.op_type for n in after.functions[0].node] == ["Constant", "Mul", "Add"]


def test_the_kept_node_stands_for_both_and_may_be_forbidden() -> None:
    text = "g (float[n, 4] x) => (float[n, 4] y) { a = Relu(x)\n b = Relu(x)\n y = Add(a, b) }"
    model = Model(ir.from_proto(parse(text)))
    for number, node in enumerate(model.graph):
        node.name = f"node{number}"
    assert CommonSubexpressions().run(model, Context.of(model.ir, limit=0)) == 0
    assert CommonSubexpressions().run(model, Context.of(model.ir)) == 1
    assert origin(model.graph[0]) == ["node0", "node1"]


# Equal weights.


def test_equal_weights_are_one() -> None:
    a = np.arange(8, dtype=np.float32).reshape(2, 4)
    weights = {"a": a, "b": a.copy(), "c": a.reshape(4, 2), "d": a.astype(np.int32), "e": a + 1}
    text = """g (float[n, 2] x) => (float y) {
        p = MatMul(x, a)
        q = MatMul(x, b)
        r = MatMul(x, e)
        s = Cast<to=1>(d)
        t = MatMul(x, s)
        u = Sum(p, q, r, t)
        y = MatMul(u, c)
    }"""
    after = check(text, "dedup", None, weights=weights)
    assert [t.name for t in after.graph.initializer] == ["a", "c", "d", "e"]
    after = check(text, "dedup(min_bytes=1KiB)", None, weights=weights)
    assert len(after.graph.initializer) == 5


def test_signed_zeros_and_nans_are_bytes() -> None:
    weights = {
        "a": np.float32([0.0, np.nan]),
        "b": np.float32([-0.0, np.nan]),
        "c": np.float32([0.0, np.nan]),
    }
    text = "g (float[n, 2] x) => (float[n, 2] y) { p = Add(x, a)\n q = Add(p, b)\n y = Add(q, c) }"
    after = check(text, "dedup", None, weights=weights)
    assert [t.name for t in after.graph.initializer] == ["a", "b"]


def test_what_a_caller_may_set_or_reads_is_left_alone() -> None:
    text = """g (float[n, 2] x, float[2] a) => (float[n, 2] y, float[2] c) <float[2] b = {1, 2}, float[2] c = {1, 2}> {
        p = Add(x, a)
        q = Add(p, b)
        y = Add(q, c)
    }"""
    before = parse(text, weights={"a": np.float32([1, 2])})
    after = optimized(before, "dedup")
    assert len(after.graph.initializer) == 3
    assert_same(before, after, samples(before, n=3))


def test_subgraphs_share_with_what_is_around_them() -> None:
    text = """g (float[n, 2] x, bool c) => (float[n, 2] y) <float[2] a = {1, 2}> {
        z = If (c) <
            then_branch = t () => (float[n, 2] u) <float[2] b = {1, 2}, float[2] d = {3, 4}>
                { s = Add(x, b)\n u = Mul(s, d) },
            else_branch = f () => (float[n, 2] v) <float[2] e = {3, 4}> { v = Mul(x, e) }
        >
        y = Add(z, a)
    }"""
    after = check(text, "dedup", None)
    then_branch, else_branch = (a.g for a in after.graph.node[0].attribute)
    assert [t.name for t in then_branch.initializer] == ["d"]
    assert [t.name for t in else_branch.initializer] == ["e"]


@pytest.mark.parametrize("differ_at", [None, 0, 100_000])
def test_large_weights_from_disk(tmp_path: Path, differ_at: int | None) -> None:
    a = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    b = a.copy()
    if differ_at is not None:
        b[differ_at] += 1
    text = "g (float[200000] x) => (float[200000] y) { p = Add(x, a)\n y = Add(p, b) }"
    path = tmp_path / "model.onnx"
    onnx.save(parse(text, weights={"a": a, "b": b}), path)
    model = load(path)
    Runner(paranoid=True).run(model, plan("dedup", Registry.standard()))
    assert len(model.graph.initializers) == (1 if differ_at is None else 2)


def test_weights_are_not_read_unless_two_could_be_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "g (float[n, 2] x) => (float y) { p = MatMul(x, a)\n y = MatMul(p, b) }"
    model = Model(ir.from_proto(parse(text, weights={"a": np.ones((2, 3)), "b": np.ones((3, 2))})))
    monkeypatch.setattr("onnxlathe_passes.dedup._beginning", None)
    assert Dedup().run(model, Context.of(model.ir)) == 0


# Dead parts.


def test_dead_nodes_initializers_and_subgraph_parts() -> None:
    text = """g (float[n, 4] x, bool c, float[n] unused) => (float[n, 4] y)
        <float[2] a = {1, 2}, float[1] k = {3}> {
        p = Exp(x)
        q = Sin(p)
        r = Mul(q, k)
        y = If (c) <
            then_branch = t () => (float[n, 4] u) { d = Neg(x)\n u = Abs(x) },
            else_branch = f () => (float[n, 4] v) <float[2] e = {3, 4}> { v = Relu(x) }
        >
    }"""
    after = check(text, "dead", ["If"])
    assert [i.name for i in after.graph.input] == ["x", "c", "unused"]
    assert not after.graph.initializer
    branches = [a.g for a in after.graph.node[0].attribute]
    assert [n.op_type for b in branches for n in b.node] == ["Abs", "Relu"]
    assert not branches[1].initializer


def test_functions_and_operator_sets_that_nothing_calls() -> None:
    text = """<ir_version: 10, opset_import: ["" : 17, "local" : 1, "other" : 3]>
    g (float[n, 4] x) => (float[n, 4] y) { y = local.f(x) }
    <domain: "local", opset_import: ["" : 17, "local" : 1]> f (x) => (y) { y = local.h(x) }
    <domain: "local", opset_import: ["" : 17]> h (x) => (y) { y = Relu(x) }
    <domain: "local", opset_import: ["" : 17, "local" : 1]> i (x) => (y) { y = local.j(x) }
    <domain: "local", opset_import: ["" : 17]> j (x) => (y) { y = Relu(x) }
    """
    after = check(text, "dead", ["f"])
    assert [f.name for f in after.functions] == ["f", "h"]
    assert {o.domain for o in after.opset_import} == {"", "local"}


def test_optional_outputs_are_left_off() -> None:
    text = """g (float[n, 2, 8] x) => (float y) {
        a, i = MaxPool<kernel_shape=[2]>(x)
        b, m = Dropout(a)
        y = Relu(b)
    }"""
    after = check(text, "dead", None)
    assert [len(n.output) for n in after.graph.node] == [1, 1, 1]
