"""Buckets of distances are looked up; bounds of operators hold; what does not come to rest stays computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import Array, assert_same, check, operators, optimized, parse
from onnxlathe_passes.evaluate import evaluate
from onnxlathe_passes.intervals import OPERATORS, bounds

RANDOM = np.random.default_rng(8)
NUMBERS: dict[str, Any] = {
    **{f"i{n}": np.array(n) for n in (0, 1, 8, 15, 16)},
    "f8": np.array(8, np.float32),
    "c": np.array(2.885390043258667, np.float32),
    "table": RANDOM.standard_normal((32, 4)).astype(np.float32),
    "a0": np.array([0]),
    "a1": np.array([1]),
}
DISTANCES = """s = Shape(q) n0 = Gather(s, i1) r = Range(i0, n0, i1) rows = Unsqueeze(r, a1) cols = Unsqueeze(r, a0)
    d = Sub(cols, rows)"""
FAR = "f = Cast<to=1>(x) g = Div(f, f8) l = Log(g) m1 = Mul(l, c) k = Cast<to=7>(m1) far = Add(k, i8)"
BOTH = f"""{DISTANCES} right = Greater(d, i0) b = Cast<to=7>(right) b16 = Mul(b, i16) x = Abs(d) {FAR}
    v = Shape(far) most = Expand(i15, v) z = Min(far, most) near = Less(x, i8) w = Where(near, x, z)
    index = Add(b16, w)"""
LEFT = f"""{DISTANCES} v = Shape(d) none = ConstantOfShape<value=int64[1]{{0}}>(v) low = Min(d, none) x = Neg(low) {FAR}
    z = Min(far, i15) near = Less(x, i8) index = Where(near, x, z)"""
SIZES = ({"n": 1, "m": 3}, {"n": 1, "m": 150})


def feeds(**dims: int) -> dict[str, Array]:
    return {"q": np.zeros((dims["n"], dims["m"]), np.int64)}


@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize("index", [BOTH, LEFT], ids=["both sides", "one side"])
def test_buckets_are_looked_up(index: str, opset: int) -> None:
    """On both sides of where the index comes to rest, and there."""
    text = f"g (int64[n, m] q) => (float y) {{ {index} y = Gather(table, index) }}"
    before = parse(text, opset, NUMBERS)
    after = optimized(before, "shapes,fold,tabulate,dead")
    assert "Log" not in operators(after)
    assert operators(after)[-1] == "Gather"
    assert_same(before, after, *(feeds(**size) for size in SIZES))


def test_the_table_lies_as_attention_needs_it() -> None:
    text = f"""g (int64[n, m] q) => (float y) {{ {BOTH} t = Gather(table, index) u = Unsqueeze(t, a0)
        y = Transpose<perm=[0,3,1,2]>(u) }}"""
    before = parse(text, 17, NUMBERS)
    after = optimized(before, "shapes,tabulate,dead")
    assert operators(after)[-4:] == ["Clip", "Sub", "Gather", "Unsqueeze"]
    assert_same(before, after, feeds(n=1, m=3), feeds(n=1, m=130))


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        # The logarithm grows for ever.
        (f"{DISTANCES} x = Abs(d) {FAR} near = Less(x, i8) index = Where(near, x, far) y = Gather(table, index)", {}),
        # Two numbers decide.
        (f"{LEFT} two = Max(index, q) y = Gather(table, two)", {}),
        # The index is needed as well.
        (f"{LEFT} t = Gather(table, index) u = Cast<to=1>(index) w = Unsqueeze(u, am) y = Add(t, w)",
         {"am": np.array([-1])}),
        # The table is computed, or read along another axis.
        (f"{LEFT} t = Abs(table) e = Exp(t) p = Mul(e, scale) y = Gather(p, index)", {}),
        (f"{LEFT} y = Gather<axis=1>(wide, index)", {"wide": np.ones((2, 16), np.float32)}),
        # A few operators are no more than a look-up.
        (f"{DISTANCES} x = Abs(d) index = Min(x, i15) y = Gather(table, index)", {}),
        # The number itself is repeated: so would the look-up be.
        ("s = Shape(q) a = Reshape(num, a1) x = Expand(a, s) b = Abs(x) e = Neg(b) h = Max(e, i0) j = Add(h, i1)"
         " index = Min(j, i15) y = Gather(table, index)", {}),
    ],
)  # fmt: skip
def test_others_stay(body: str, constants: dict[str, Any]) -> None:
    text = f"g (int64[n, m] q, int64[1] num, float[1] scale) => (float y) {{ {body} }}"
    before = parse(text, 17, NUMBERS | constants)
    after = optimized(before, "shapes,tabulate")
    assert operators(after) == operators(before)


@pytest.mark.parametrize(
    ("shape", "perm"), [("8,4", [0, 2, 3, 1]), ("8,4", [0, 3, 2, 1]), ("8,4,2", [0, 3, 1, 2])]
)
def test_other_orders_stay(shape: str, perm: list[int]) -> None:
    sizes = [int(s) for s in shape.split(",")]
    body = "t = Gather(big, q)" + (" u = Unsqueeze(t, a0)" if len(sizes) == 2 else " u = Identity(t)")
    text = f"g (int64[n, m] q) => (float y) {{ {body} y = Transpose<perm={perm}>(u) }}"
    before = parse(text, 17, NUMBERS | {"big": np.ones(sizes, np.float32)})
    assert operators(optimized(before, "shapes,tabulate")) == operators(before)


UNARY = sorted(OPERATORS & {"Neg", "Abs", "Sign", "Relu", "Log", "Sqrt", "Floor", "Ceil", "Not", "Cast"})
BINARY = sorted(OPERATORS - {*UNARY, "Where", "Clip"})
LOGICAL = {"Not", "And", "Or"}
COMPARES = {"Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Equal", "Not", "And", "Or"}


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_bounds_hold(data: st.DataObject) -> None:
    """Whatever the operands are between their ends, the result is between the bounds."""
    op_type = data.draw(st.sampled_from([*UNARY, *BINARY, "Where", "Clip"]))
    kind = (
        ir.DataType.BOOL
        if op_type in LOGICAL
        else data.draw(st.sampled_from([ir.DataType.INT64, ir.DataType.FLOAT]))
    )
    if op_type in ("Log", "Sqrt", "Floor", "Ceil", "Relu"):
        kind = ir.DataType.FLOAT
    count = 3 if op_type in ("Where", "Clip") else 1 if op_type in UNARY else 2
    kinds = [ir.DataType.BOOL if op_type == "Where" and not place else kind for place in range(count)]
    to = data.draw(st.sampled_from([ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.BOOL]))
    result = to if op_type == "Cast" else ir.DataType.BOOL if op_type in COMPARES else kind
    inputs = [ir.Value(name=f"x{place}", type=ir.TensorType(k)) for place, k in enumerate(kinds)]
    attributes = [ir.AttrInt64("to", int(to))] if op_type == "Cast" else []
    node = ir.Node("", op_type, inputs, attributes)
    node.outputs[0].type = ir.TensorType(result)

    def number(k: ir.DataType, least: int = -60) -> Any:
        return data.draw(st.integers(0, 1) if k == ir.DataType.BOOL else st.integers(least, 60))

    ends, points = [], []
    for k in kinds:
        low, high = sorted((number(k), number(k)))
        ends.append((low, high))
        inside = np.linspace(low, high, 7) if k == ir.DataType.FLOAT else np.arange(low, high + 1)
        points.append(inside.astype(k.numpy()))
    found = bounds(node, ends)
    if found is None:
        return
    grid = np.meshgrid(*points, indexing="ij")
    (values,) = evaluate(node, list(grid), 17)
    finite = values[np.isfinite(values.astype(np.float64))].astype(np.float64)
    assert (finite >= found[0]).all()
    assert (finite <= found[1]).all()


def test_a_target_that_says_only_units() -> None:
    """[m, m] to [1, 1, m, m] has two unknown sizes, which no constant can say; an Unsqueeze can."""
    text = """g (float[m, k] x) => (float[a, b, c, d] y) {
        s = Shape(x) m0 = Gather(s, i0) k0 = Gather(s, i1) m1 = Unsqueeze(m0, a0) k1 = Unsqueeze(k0, a0)
        t = Concat<axis=0>(a1, a1, m1, k1) y = Reshape(x, t) }"""
    check(text, "shapes,reshape_target,dead", ["Unsqueeze"], weights=NUMBERS,
          sizes=({"m": 2, "k": 3}, {"m": 1, "k": 1}))  # fmt: skip


def test_a_target_that_cuts_stays() -> None:
    text = """g (float[m, k] x) => (float[a, b, c] y) {
        s = Shape(x) m0 = Gather(s, i0) k0 = Gather(s, i1) h = Div(k0, two) m1 = Unsqueeze(m0, a0)
        h1 = Unsqueeze(h, a0) t = Concat<axis=0>(m1, a2, h1) y = Reshape(x, t) }"""
    weights = NUMBERS | {"two": np.array(2), "a2": np.array([2])}
    before = parse(text, 17, weights)
    assert isinstance(before, onnx.ModelProto)
    after = optimized(before, "shapes,reshape_target")
    assert "Unsqueeze" in operators(after)
    assert operators(after)[-1] == "Reshape"
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert_same(before, after, {"x": x}, {"x": x[:1]})
