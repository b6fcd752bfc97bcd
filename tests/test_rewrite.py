"""Patterns, the worklist driver, and what a rewrite leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from helpers import assert_same, operators, parse, samples
from onnxlathe.errors import PassError
from onnxlathe.model import Model, load
from onnxlathe.pipeline import Budget, Registry, Runner, broken_invariants, plan
from onnxlathe.rewrite import (
    Builder,
    NodeRule,
    Pass,
    Rule,
    any_of,
    attr,
    const,
    make_pass,
    maybe,
    option,
    optional,
    origin,
    require,
    shared,
)


@dataclass(frozen=True)
class DoubleNegation(Rule):
    """Neg(Neg(x)) is x."""

    name = "double_negation"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Neg(op.Neg(x))

    def rewrite(self, op: Any, x: Any) -> Any:
        return x


def apply(
    text: str | onnx.ModelProto, *rules: Pass, opset: int = 17, **options: Any
) -> tuple[onnx.ModelProto, Runner]:
    proto = parse(text, opset) if isinstance(text, str) else text
    model = Model(ir.from_proto(proto))
    runner = Runner(paranoid=True, **options)
    runner.run(model, plan(list(rules), Registry()))
    assert not broken_invariants(model)
    return ir.to_proto(model.ir), runner


def test_a_graph_output_keeps_its_name_when_its_producer_goes() -> None:
    before = parse("g (float[n] x) => (float[n] y) { a = Relu(x) b = Neg(a) y = Neg(b) }")
    after, _ = apply(before, DoubleNegation())
    assert operators(after) == ["Relu"]
    assert after.graph.node[0].output[0] == "y"
    assert_same(before, after, samples(before, n=4))


def test_an_input_that_becomes_an_output_passes_through_an_identity() -> None:
    before = parse("g (float[n] x) => (float[n] y) { b = Neg(x) y = Neg(b) }")
    after, _ = apply(before, DoubleNegation())
    assert operators(after) == ["Identity"]
    assert_same(before, after, samples(before, n=4))


def test_two_outputs_may_end_in_the_same_value() -> None:
    body = "a = Relu(x) b = Neg(a) y = Neg(b) c = Neg(a) z = Neg(c)"
    before = parse(f"g (float[n] x) => (float[n] y, float[n] z) {{ {body} }}")
    after, _ = apply(before, DoubleNegation())
    assert sorted(operators(after)) == ["Identity", "Relu"]
    assert_same(before, after, samples(before, n=4))


@pytest.mark.parametrize(
    "text",
    [
        "g (float[n] x) => (float[n] y, float[n] b) { a = Relu(x) b = Neg(a) y = Neg(b) }",
        "g (float[n] x) => (float[n] y, float[n] z) { a = Relu(x) b = Neg(a) y = Neg(b) z = Exp(b) }",
    ],
    ids=["is an output", "has another use"],
)
def test_an_inner_value_that_is_needed_elsewhere_prevents_a_match(text: str) -> None:
    _, runner = apply(text, DoubleNegation())
    assert runner.records[-1].changes == 0


@dataclass(frozen=True)
class SharedExp(Rule):
    """Log(Exp(x)) is x, even if Exp(x) is used elsewhere."""

    name = "shared_exp"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Log(shared(op.Exp(x)))

    def rewrite(self, op: Any, x: Any) -> Any:
        return x


def test_a_shared_part_may_be_used_elsewhere_and_stays() -> None:
    before = parse("g (float[n] x) => (float[n] y, float[n] e) { e = Exp(x) l = Log(e) y = Relu(l) }")
    after, _ = apply(before, SharedExp())
    assert sorted(operators(after)) == ["Exp", "Relu"]
    assert_same(before, after, samples(before, n=3))


def test_nested_matches_come_to_the_end_in_one_run() -> None:
    text = (
        "g (float[n] x) => (float[n] y) { a = Relu(x) "
        + " ".join(f"v{i} = Neg({'a' if i == 0 else f'v{i - 1}'})" for i in range(11))
        + " y = Neg(v10) }"
    )
    after, runner = apply(text, DoubleNegation())
    assert operators(after) == ["Relu"]
    assert runner.records[-1].changes == 6


SUBGRAPHS = """
g (float[n] x, bool c) => (float[n] y) {
  y = If (c) <
    then_branch = t () => (float[n] p) { q = Neg(x) r = Neg(q) p = Abs(r) },
    else_branch = e () => (float[n] s) { u = Neg(x) s = Neg(u) }
  >
}
"""


def test_branches_are_rewritten_and_keep_their_outputs() -> None:
    before = parse(SUBGRAPHS)
    after, _ = apply(before, DoubleNegation())
    branches = [[n.op_type for n in a.g.node] for a in after.graph.node[0].attribute]
    assert sorted(branches) == [["Abs"], ["Identity"]]
    for seed in range(4):
        assert_same(before, after, samples(before, seed, n=3))


FUNCTION = """
<ir_version: 10, opset_import: ["" : 17, "local" : 1]>
g (float[n] x) => (float[n] y) { y = local.twice(x) }
<domain: "local", opset_import: ["" : 17]>
twice (a) => (b) { c = Neg(a) d = Neg(c) b = Mul(d, d) }
"""


def test_function_bodies_are_rewritten() -> None:
    before = parse(FUNCTION)
    after, _ = apply(before, DoubleNegation())
    assert [n.op_type for n in after.functions[0].node] == ["Mul"]
    assert_same(before, after, samples(before, n=3))


@dataclass(frozen=True)
class HalfSum(Rule):
    """(x + y)·½ becomes the mean of both."""

    name = "half_sum"

    def pattern(self, op: Any, x: Any, y: Any) -> Any:
        return op.Mul(0.5, op.Add(x, y))

    def rewrite(self, op: Any, x: Any, y: Any) -> Any:
        return op.Mean(x, y)


@pytest.mark.parametrize("product", ["Mul(h, s)", "Mul(s, h)"])
@pytest.mark.parametrize("half", ["float h = {0.5}", "float[1] h = {0.5}"])
def test_commutative_inputs_and_numbers(product: str, half: str) -> None:
    text = f"g (float[n] a, float[n] b) => (float[n] y) <{half}> {{ s = Add(a, b) y = {product} }}"
    before = parse(text)
    after, _ = apply(before, HalfSum())
    assert operators(after) == ["Mean"]
    assert_same(before, after, samples(before, n=3))


def test_a_number_of_higher_rank_is_not_that_number() -> None:
    signature = "g (float[n] a, float[n] b) => (float[m, k, n] y)"
    text = f"{signature} <float[1,1,1] h = {{0.5}}> {{ s = Add(a, b) y = Mul(h, s) }}"
    _, runner = apply(text, HalfSum())
    assert runner.records[-1].changes == 0


def test_another_number_does_not_match() -> None:
    text = "g (float[n] a, float[n] b) => (float[n] y) <float h = {0.5001}> { s = Add(a, b) y = Mul(h, s) }"
    _, runner = apply(text, HalfSum())
    assert runner.records[-1].changes == 0


@dataclass(frozen=True)
class Everything(Rule):
    """Alternatives, attributes, constants, optional inputs and wrappers in one pattern."""

    name = "everything"
    seen: Any = option(None, "where the bindings go")

    def pattern(self, op: Any, x: Any, low: Any, high: Any, w: Any) -> Any:
        clipped = op.Clip(maybe("Relu", op.Transpose(x, perm=attr("perm"))), low, optional(high))
        return any_of(op.Mul(clipped, const(w)), op.Add(clipped, const(w)), tag="which")

    def check(self, x: Any, high: Any, w: Any, perm: Any, which: int, match: Any) -> None:
        require(perm is not None, "no permutation")
        self.seen.append((which, high is None, tuple(perm), len(match.nodes)))

    def rewrite(self, op: Any, x: Any) -> Any:
        return None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("t = Transpose<perm=[1,0]>(x) c = Clip(t, z) y = Mul(w, c)", (0, True, (1, 0), 3)),
        ("t = Transpose<perm=[1,0]>(x) r = Relu(t) c = Clip(r, z, o) y = Add(c, w)", (1, False, (1, 0), 4)),
    ],
)
def test_alternatives_attributes_and_optional_inputs(body: str, expected: tuple[Any, ...]) -> None:
    seen: list[Any] = []
    apply(
        "g (float[n, m] x) => (float[m, n] y) "
        f"<float z = {{0}}, float o = {{1}}, float w = {{3}}> {{ {body} }}",
        Everything(seen=seen),
    )
    assert expected in seen


def test_new_nodes_say_what_they_stand_for() -> None:
    text = "g (float[n] a, float[n] b) => (float[n] y) <float h = {0.5}> { s = Add(a, b) y = Mul(h, s) }"
    proto = parse(text)
    for node, name in zip(proto.graph.node, ("the sum", "the half"), strict=True):
        node.name = name
    model = Model(ir.from_proto(proto))
    runner = Runner()
    runner.run(model, plan([HalfSum()], Registry()))
    (mean,) = model.graph
    assert sorted(origin(mean)) == ["the half", "the sum"]
    assert mean.name == "the half"
    firing = runner.records[-1].firings[0]
    assert set(firing.before) == {"the half", "the sum"}
    assert firing.after == ("the half",)
    again = Model(ir.from_proto(ir.to_proto(model.ir)))
    assert sorted(origin(again.graph[0])) == ["the half", "the sum"]


def test_a_budget_stops_after_so_many_changes() -> None:
    body = "a = Neg(x) b = Neg(a) c = Relu(b) d = Neg(c) e = Neg(d) y = Exp(e)"
    text = f"g (float[n] x) => (float[n] y) {{ {body} }}"
    for changes in (0, 1, 2):
        _, runner = apply(text, DoubleNegation(), budget=Budget(1, changes))
        assert runner.records[-1].changes == changes
        assert runner.records[-1].permits == changes


@dataclass(frozen=True)
class FlipFlop(NodeRule):
    """Neg becomes Abs becomes Neg."""

    name = "flip_flop"
    visits = ("Neg", "Abs")

    def visit(self, op: Any, node: ir.Node) -> Any:
        return op.Abs(node.inputs[0]) if node.op_type == "Neg" else op.Neg(node.inputs[0])


@dataclass(frozen=True)
class Raises(NodeRule):
    """Raises."""

    name = "raises"
    visits = ("Neg",)

    def visit(self, op: Any, node: ir.Node) -> Any:
        op.Abs(node.inputs[0])
        raise ZeroDivisionError("by me")


@dataclass(frozen=True)
class WrongType(NodeRule):
    """Changes the element type."""

    name = "wrong_type"
    visits = ("Neg",)

    def visit(self, op: Any, node: ir.Node) -> Any:
        return op.Cast(node.inputs[0], to=ir.DataType.FLOAT16)


@dataclass(frozen=True)
class WrongShape(NodeRule):
    """Changes the shape."""

    name = "wrong_shape"
    visits = ("Neg",)

    def visit(self, op: Any, node: ir.Node) -> Any:
        return op.Unsqueeze(node.inputs[0], op.constant([0]))


@make_pass("breaks_the_order")
def breaks_the_order(model: Model, context: Any) -> int:
    """Puts a node before what it needs."""
    last = model.graph[-1]
    model.graph.remove(last)
    model.graph.insert_before(model.graph[0], last)
    return 1


@make_pass("raises_inside")
def raises_inside(model: Model, context: Any) -> int:
    """Raises after it has done harm."""
    model.graph.remove(model.graph[-1])
    return [][1]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (FlipFlop(), "does not come to rest"),
        (Raises(), "'raises' failed at node .*ZeroDivisionError: by me"),
        (WrongType(), "element type"),
        (WrongShape(), "changes the shape"),
        (breaks_the_order(), "not defined before"),
        (raises_inside(), r"'raises_inside' failed: IndexError.*test_rewrite\.py:\d+"),
    ],
    ids=lambda v: getattr(v, "name", ""),
)
def test_a_faulty_pass_is_named_and_does_no_harm(rule: Pass, message: str) -> None:
    proto = parse("g (float[2] x) => (float[2] y) { a = Neg(x) y = Relu(a) }")
    model = Model(ir.from_proto(proto))
    with pytest.raises(PassError, match=message):
        Runner().run(model, plan([rule], Registry()))
    assert ir.to_proto(model.ir).graph.node == ir.to_proto(ir.from_proto(proto)).graph.node


def test_a_faulty_plugin_may_be_skipped() -> None:
    proto = parse("g (float[2] x) => (float[2] y) { a = Neg(x) b = Neg(a) y = Relu(b) }")
    model = Model(ir.from_proto(proto))
    runner = Runner(on_error="skip")
    runner.run(model, plan([Raises(), DoubleNegation()], Registry()))
    assert [n.op_type for n in model.graph] == ["Relu"]
    assert "ZeroDivisionError" in next(r.skipped for r in runner.records if r.skipped)


def test_a_function_becomes_a_pass_with_options() -> None:
    @make_pass("rename")
    def rename(model: Model, context: Any, *, prefix: str = "x_", times: int = 1) -> int:
        """Put a prefix before node names.

        More words.
        """
        for node in model.graph:
            node.name = prefix * times + (node.name or "")
        return len(model.graph)

    assert rename.summary() == "Put a prefix before node names."
    assert {n: o.default for n, o in rename.options().items()} == {"prefix": "x_", "times": 1}
    registry = Registry()
    registry.add(rename, "here")
    proto = parse("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    proto.graph.node[0].name = "n"
    model = Model(ir.from_proto(proto))
    Runner().run(model, plan("rename(prefix=a,times=3)", registry))
    assert model.graph[0].name == "aaan"


def test_a_pass_that_never_ends_is_ended_and_named() -> None:
    @make_pass("endless")
    def endless(model: Model, context: Any) -> int:
        """Loops."""
        while True:
            pass

    proto = parse("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    model = Model(ir.from_proto(proto))
    with pytest.raises(PassError, match=r"'endless' did not end within 0\.2 seconds.*test_rewrite\.py:\d+"):
        Runner(pass_timeout=0.2).run(model, plan([endless()], Registry()))
    runner = Runner(pass_timeout=0.2, on_error="skip")
    runner.run(model, plan([endless(), DoubleNegation()], Registry()))
    assert "did not end" in runner.records[0].skipped


@pytest.mark.parametrize("name", ["bert_ts17", "llama_dyn20", "resnet_ts13", "vit_dyn18", "tiny/*"])
def test_a_guard_turns_away_only_what_does_not_match(name: str) -> None:
    """Where a rule's guard says no, the matcher, asked all the same, says no as well."""
    rules: list[Rule] = []
    for entry in Registry.standard().all():
        found = entry.cls()
        rules += [r for r in getattr(found, "steps", (found,)) if isinstance(r, Rule)]
    assert len(rules) > 20
    turned_away = matched = 0
    for path in sorted((Path(__file__).parents[1] / "fixtures").glob(f"{name}.onnx")):
        model = load(path)
        Runner().run(model, plan("shapes,fold", Registry.standard()))
        for node in list(model.nodes()):
            for rule in rules:
                for start in rule._starts.get((node.domain, node.op_type), ()):
                    guard = start[2]
                    op = Builder(max(model.opset, 1))
                    attempt = rule._match([start], node, op)
                    op.rewind(0)
                    if guard is not None and not guard(node):
                        turned_away += 1
                        assert attempt.outputs is None, (rule.name, node.name, path.name)
                    matched += attempt.outputs is not None
    assert turned_away
    assert matched
