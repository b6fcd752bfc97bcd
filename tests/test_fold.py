"""Constant folding: what disappears, what must stay, and that the numbers are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import assert_same, check, operators, optimized, parse, samples
from onnxlathe import load, optimize
from onnxlathe.model import Model
from onnxlathe.pipeline import Registry, Runner, plan

FIXTURES = Path(__file__).parent.parent / "fixtures"


def test_shape_chain_becomes_a_constant_target() -> None:
    after = check(
        """
        g (float[n, m, 12] x) => (float[n, m, 3, 4] y) {
          s = Shape(x)
          zero = Constant<value_int = 0>()  one = Constant<value_int = 1>()
          b = Gather(s, zero)  q = Gather(s, one)
          axes = Constant<value_ints = [0]>()
          b1 = Unsqueeze(b, axes)  q1 = Unsqueeze(q, axes)
          rest = Constant<value_ints = [3, 4]>()
          t = Concat<axis = 0>(b1, q1, rest)
          y = Reshape(x, t)
        }
        """,
        "fold",
        ["Reshape"],
    )
    target = onnx.numpy_helper.to_array(after.graph.initializer[0])
    assert target.tolist() == [0, 0, 3, 4]


def test_a_product_of_dimensions_is_implied() -> None:
    after = check(
        """
        g (float[n, m, 12] x) => (float[k, 12] y) {
          s = Shape(x)
          zero = Constant<value_int = 0>()  one = Constant<value_int = 1>()
          b = Gather(s, zero)  q = Gather(s, one)
          p = Mul(b, q)
          axes = Constant<value_ints = [0]>()
          p1 = Unsqueeze(p, axes)
          rest = Constant<value_ints = [12]>()
          t = Concat<axis = 0>(p1, rest)
          y = Reshape(x, t)
        }
        """,
        "fold",
        ["Reshape"],
    )
    assert onnx.numpy_helper.to_array(after.graph.initializer[0]).tolist() == [-1, 12]


def test_two_unknown_dimensions_are_computed_but_only_once() -> None:
    body = """
          s{i} = Shape(x)
          p{i} = Gather<axis = 0>(s{i}, picks)
          y{i} = Expand(z, p{i})
    """
    text = (
        "g (float[n, 2, m] x, float z) => (float[n, m] y0, float[n, m] y1) <int64[2] picks = {0, 2}> {"
        + body.format(i=0)
        + body.format(i=1)
        + "}"
    )
    check(text, "fold,tidy(dead)", ["Shape", "Gather", "Expand", "Expand"])


def test_sizes_that_are_dimensions_of_an_input_come_from_one_shape() -> None:
    check(
        """
        g (float[n, m] x, float z) => (float[n, m] y) <int64 zero = {0}, int64 one = {1}, int64[1] axes = {0}> {
          s = Shape(x)
          b = Gather(s, zero)  q = Gather(s, one)
          b1 = Unsqueeze(b, axes)  q1 = Unsqueeze(q, axes)
          t = Concat<axis = 0>(b1, q1)
          y = Expand(z, t)
        }
        """,
        "fold",
        ["Shape", "Expand"],
    )


@pytest.mark.parametrize("name", ["bomb_constantofshape", "bomb_expand"])
def test_a_bomb_is_left_in_the_graph(name: str) -> None:
    (path,) = (FIXTURES / "tiny").glob(f"{name}*.onnx")
    model = load(path)
    result = optimize(model, "shapes,fold", verify=False)
    sizes = [v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None]
    assert sum(sizes) < 1 << 20
    assert any("left to be computed" in note for step in result.steps for note in step.notes)


def test_the_limit_is_an_option() -> None:
    text = """
    g (float[n] x) => (float[n] y) <int64[1] shape = {1000}> {
      c = ConstantOfShape(shape)  s = ReduceSum<keepdims = 0>(c)  y = Add(x, s)
    }
    """
    check(text, "fold(max_bytes=4000)", ["Add"])
    check(text, "fold(max_bytes=3999)", None)


def test_random_and_quantizing_operators_stay() -> None:
    proto = parse(
        """
        g (float[n] x) => (float[n] y) <float s = {0.5}, int8 z = {0}, float[1] w = {3}> {
          r = RandomNormal<shape = [1]>()
          q = QuantizeLinear(w, s, z)  d = DequantizeLinear(q, s, z)
          a = Add(x, r)  y = Mul(a, d)
        }
        """
    )
    assert operators(optimized(proto, "fold")) == operators(proto)
    assert "DequantizeLinear" not in operators(optimized(proto, "fold(quantized=true)"))


def test_an_initializer_that_the_caller_may_set_is_no_constant() -> None:
    proto = parse("g (float[n] x, float[1] w) => (float[n] y) { v = Neg(w) y = Add(x, v) }")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(1, np.float32), "w"))
    assert operators(optimized(proto, "fold")) == ["Neg", "Add"]


IF = """
g (float[n] x) => (float[n] y{more}) <bool c = {{{value}}}> {{
  a = Relu(x)
  y = If (c) <
    then_branch = t () => (float[n] p) {{ q = Neg(a) p = Exp(q) }},
    else_branch = e () => (float[n] p) {{ q = Abs(a) p = Sqrt(q) }}
  >
  {extra}
}}
"""


@pytest.mark.parametrize(("value", "left"), [("1", ["Relu", "Neg", "Exp"]), ("0", ["Relu", "Abs", "Sqrt"])])
def test_if_on_a_constant_becomes_its_branch(value: str, left: list[str]) -> None:
    check(IF.format(value=value, more="", extra=""), "fold", left)


def test_names_in_sibling_branches_do_not_collide() -> None:
    second = IF.format(value="1", more="", extra="").split("a = Relu(x)")[1].rsplit("}", 1)[0]
    extra = second.replace("y = If", "z = If").replace("{more}", "")
    text = IF.format(value="1", more=", float[n] z", extra=extra)
    check(text, "fold", ["Relu", "Neg", "Exp", "Neg", "Exp"])


def test_a_branch_may_return_a_value_of_the_outer_graph() -> None:
    proto = parse(
        """
        g (float[n] x) => (float[n] y) <bool c = {1}> {
          a = Relu(x)
          b = If (c) <
            then_branch = t () => (float[n] p) { p = Identity(a) },
            else_branch = e () => (float[n] p) { p = Neg(a) }
          >
          y = Exp(b)
        }
        """
    )
    after = optimized(proto, "fold,tidy")
    assert operators(after) == ["Relu", "Exp"]
    assert_same(proto, after, samples(proto, n=3))


def test_folding_inside_loops_and_functions() -> None:
    proto = parse(
        """
        <ir_version: 10, opset_import: ["" : 17, "local" : 1]>
        g (float[n] x, int64 times) => (float[n] y) <bool go = {1}> {
          z = Loop (times, go, x) <
            body = b (int64 i, bool c, float[n] v) => (bool d, float[n] w) {
              d = Identity(c)
              k = Constant<value_float = 2.0>()  k2 = Mul(k, k)
              w = Add(v, k2)
            }
          >
          y = local.half(z)
        }
        <domain: "local", opset_import: ["" : 17]>
        half (a) => (b) { k = Constant<value_float = 4.0>() s = Sqrt(k) b = Div(a, s) }
        """
    )
    after = optimized(proto, "fold")
    loop = next(n for n in after.graph.node if n.op_type == "Loop")
    assert "Mul" not in {n.op_type for n in loop.attribute[0].g.node}
    assert [n.op_type for n in after.functions[0].node] == ["Constant", "Div"]
    for times in (0, 3):
        assert_same(proto, after, {"x": np.float32([1, 2]), "times": np.array(times, np.int64)})


def test_large_weights_are_not_computed_before_they_are_written() -> None:
    weights = {"w": np.random.default_rng(0).standard_normal((300, 200)).astype(np.float32)}
    text = "g (float[n, 300] x) => (float[n, 200] y) { t = Transpose<perm=[1,0]>(w) u = Transpose<perm=[1,0]>(t) y = MatMul(x, u) }"
    proto = parse(text, weights=weights)
    model = Model(ir.from_proto(proto))
    Runner(paranoid=True).run(model, plan("fold", Registry.standard()))
    (held,) = [v.const_value for v in model.graph.initializers.values()]
    assert isinstance(held, ir.LazyTensor)
    assert_same(proto, ir.to_proto(model.ir), samples(proto, n=2))


def test_folding_is_finished_after_one_run() -> None:
    for path in sorted(FIXTURES.glob("*_ts17.onnx")):
        model = load(path)
        optimize(model, "shapes,fold", verify=False)
        again = optimize(model, "shapes,fold", verify=False)
        assert again.steps[-1].changes == 0, path.name


UNARY = [
    "Abs",
    "Neg",
    "Exp",
    "Sqrt",
    "Ceil",
    "Floor",
    "Sign",
    "Reciprocal",
    "Relu",
    "Tanh",
    "Sigmoid",
    "Round",
]
BINARY = ["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min"]


@st.composite
def constant_graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """A few operators on constants of random types and shapes that broadcast."""
    dtype = draw(st.sampled_from([np.float32, np.float64, np.int32, np.int64]))
    whole = np.issubdtype(dtype, np.integer)
    element = st.integers(-5, 5) if whole else st.sampled_from([-2.5, -1.0, -0.5, 0.5, 1.0, 1.5, 3.0])
    rank = draw(st.integers(0, 3))
    shape = [draw(st.integers(1, 3)) for _ in range(rank)]

    def array() -> np.ndarray:  # type: ignore[type-arg]
        dims = [d if draw(st.booleans()) else 1 for d in shape]
        size = int(np.prod(dims))
        return np.array(draw(st.lists(element, min_size=size, max_size=size)), dtype).reshape(dims)

    weights = {"a": array(), "b": array()}
    nodes = []
    for i in range(draw(st.integers(1, 4))):
        known = ["a", "b", *(f"t{j}" for j in range(i))]
        if draw(st.booleans()):
            op = draw(st.sampled_from(["Abs", "Neg", "Sign"] if whole else UNARY))
            nodes.append(f"t{i} = {op}({draw(st.sampled_from(known))})")
        else:
            op = draw(st.sampled_from(["Add", "Sub", "Mul", "Max", "Min"] if whole else BINARY))
            nodes.append(f"t{i} = {op}({draw(st.sampled_from(known))}, {draw(st.sampled_from(known))})")
    name = {"float32": "float", "float64": "double"}.get(np.dtype(dtype).name, np.dtype(dtype).name)
    last = f"t{len(nodes) - 1}"
    dims = ",".join(f"k{i}" for i in range(max(rank, 1)))
    return parse(
        f"g ({name}[n] x) => ({name}[{dims}] y) {{ {' '.join(nodes)} y = Add(x, {last}) }}", 17, weights
    )


@given(constant_graphs(), st.integers(0, 3))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_folded_computes_the_same(proto: onnx.ModelProto, seed: int) -> None:
    after = optimized(proto, "fold")
    assert operators(after) == ["Add"]
    assert_same(proto, after, samples(proto, seed, n=1))


@st.composite
def slices(draw: st.DrawFn) -> onnx.ModelProto:
    rank = draw(st.integers(1, 3))
    shape = [draw(st.integers(1, 5)) for _ in range(rank)]
    axes = draw(
        st.lists(st.integers(-rank, rank - 1), min_size=1, max_size=rank, unique_by=lambda a: a % rank)
    )
    bound = st.integers(-7, 7) | st.sampled_from([2**63 - 1, -(2**63)])
    starts, ends = ([draw(bound) for _ in axes] for _ in range(2))
    steps = [draw(st.sampled_from([-3, -2, -1, 1, 2, 3])) for _ in axes]
    # ONNX Runtime does not clamp this one as the specification says.
    ends = [-(2**63) if step < 0 and end == 2**63 - 1 else end for end, step in zip(ends, steps, strict=True)]
    weights = {
        "w": np.arange(np.prod(shape), dtype=np.float32).reshape(shape),
        "starts": np.array(starts, np.int64),
        "ends": np.array(ends, np.int64),
        "axes": np.array(axes, np.int64),
        "steps": np.array(steps, np.int64),
    }
    body = "s = Slice(w, starts, ends, axes, steps) r = ReduceSum<keepdims=0>(s) z = Shape(s) y = Add(x, r)"
    signature = (
        f"g (float[n] x) => (float[n] y, float[{','.join(f'k{i}' for i in range(rank))}] s, int64[{rank}] z)"
    )
    return parse(f"{signature} {{ {body} }}", 17, weights)


@given(slices())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_slices_with_all_kinds_of_bounds(proto: onnx.ModelProto) -> None:
    after = optimized(proto, "fold")
    assert "Slice" not in operators(after)
    assert_same(proto, after, samples(proto, n=2))


def test_sequences_of_known_length_become_tensors() -> None:
    text = """
    g (float[n, 6] x) => (float[n, 2] y, float[n, 2] z, float[n, 4] w, int64 l)
    <int64 two = {2}, int64 first = {0}, int64 last = {-1}> {
      s = SplitToSequence<axis = 1>(x, two)
      y = SequenceAt(s, first)  z = SequenceAt(s, last)
      t = SequenceConstruct(y, z)
      w = ConcatFromSequence<axis = 1>(t)
      l = SequenceLength(s)
    }
    """
    after = check(text, "fold,tidy", ["Split", "Concat", "Identity"])
    assert after.graph.node[0].output[0] == "y"


def test_a_large_constant_of_sizes_that_turn_up_while_folding() -> None:
    """Positions of a ViT, resized to a grid whose sides are square roots: shapes are not known before."""
    text = """
        g (float[n, 256, 128] x) => (float[n, 256, 128] y) {
          zero = Constant<value_int = 0>()  axis = Constant<value_ints = [0]>()
          side0 = Sqrt(count)  side1 = Cast<to = 7>(side0)  side = Unsqueeze(side1, axis)
          t = Concat<axis = 0>(side, side, rest)
          grid = Reshape(table, t)  turned = Transpose<perm = [1, 0, 2]>(grid)
          back = Constant<value_ints = [256, 128]>()
          p = Reshape(turned, back)
          y = Add(x, p)
        }
        """
    table = np.arange(256 * 128, dtype=np.float32).reshape(256, 128)
    weights = {"table": table, "count": np.array(256, np.float32), "rest": np.array([128])}
    check(text, "fold", ["Add"], weights=weights)


def test_what_a_branch_leaves_behind_is_folded_too() -> None:
    """The branch is an Identity of a table; what is read from it is constant after the If has gone."""
    text = """
        g (float[n, 3] x) => (float[n, 3] y) {
          s = Shape(table)  zero = Constant<value_int = 0>()  n0 = Gather(s, zero)  c = Equal(n0, zero)
          t = If (c) <then_branch = a () => (float[5, 3] p) { p = Abs(table) },
                      else_branch = b () => (float[5, 3] q) { q = Identity(table) }>
          i = Constant<value_int = 2>()  row = Gather(t, i)  z = Add(x, row)  y = Relu(z)
        }
        """
    table = np.arange(15, dtype=np.float32).reshape(5, 3)
    check(text, "fold", ["Add", "Relu"], weights={"table": table})
