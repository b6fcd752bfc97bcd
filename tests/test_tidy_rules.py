"""Each rule of `tidy` alone: it fires where its identity holds, and does not where it almost does."""

import numpy as np
import pytest

from helpers import check

X = "g (float[n, 4, 6] x) => (float y)"
"""The output's rank stays unknown: what the rule says about it must be right by itself."""

FIRES = [
    # identity
    ("identity", "a = Identity(x)\n y = Relu(a)", ["Relu"]),
    ("dropout", "a = Dropout(x)\n y = Relu(a)", ["Relu"]),
    ("dropout", "a, m = Dropout(x)\n y = Relu(a)", ["Relu"]),
    (
        "dropout",
        "r = Constant<value_float=0.5>()\n t = Constant<value=bool {0}>()\n a = Dropout(x, r, t)\n y = Relu(a)",
        ["Relu"],
    ),
    ("dropout", "a, m = Dropout(x)\n b = Cast<to=1>(m)\n y = Add(a, b)", ["Dropout", "Cast", "Add"]),
    # casts
    ("noop_cast", "a = Cast<to=1>(x)\n y = Relu(a)", ["Relu"]),
    ("noop_cast", "a = CastLike(x, x)\n y = Relu(a)", ["Relu"]),
    ("noop_cast", "d = Cast<to=11>(x)\n y = CastLike(x, d)", ["Cast"]),
    ("cast_chain", "a = Cast<to=11>(x)\n y = Cast<to=6>(a)", ["Cast"]),
    ("cast_chain", "a = Cast<to=11>(x)\n b = Cast<to=1>(a)\n y = Relu(b)", ["Relu"]),
    ("cast_chain", "h = Cast<to=10>(x)\n a = Cast<to=1>(h)\n y = Cast<to=10>(a)", ["Cast"]),
    # views
    ("noop_view", "s = Constant<value_ints=[0, -1, 6]>()\n a = Reshape(x, s)\n y = Relu(a)", ["Relu"]),
    ("noop_view", "s = Shape(x)\n a = Reshape(x, s)\n y = Relu(a)", ["Relu"]),
    ("noop_view", "s = Constant<value_ints=[1, 4, 1]>()\n a = Expand(x, s)\n y = Relu(a)", ["Relu"]),
    ("noop_view", "s = Constant<value_ints=[1, 1, 1]>()\n a = Tile(x, s)\n y = Relu(a)", ["Relu"]),
    ("noop_view", "f = Flatten(x)\n a = Flatten<axis=1>(f)\n y = Relu(a)", ["Flatten", "Relu"]),
    ("noop_transpose", "a = Transpose<perm=[0, 1, 2]>(x)\n y = Relu(a)", ["Relu"]),
    (
        "noop_transpose",
        "k = Constant<value_ints=[1, 2]>()\n u = Unsqueeze(x, k)\n a = Transpose<perm=[0, 2, 1, 3, 4]>(u)\n y = Relu(a)",
        ["Unsqueeze", "Relu"],
    ),
    (
        "noop_slice",
        "s = Constant<value_ints=[0]>()\n e = Constant<value_ints=[9223372036854775807]>()\n"
        "k = Constant<value_ints=[1]>()\n a = Slice(x, s, e, k)\n y = Relu(a)",
        ["Relu"],
    ),
    (
        "noop_slice",
        "s = Constant<value_ints=[-4]>()\n e = Constant<value_ints=[4]>()\n"
        "k = Constant<value_ints=[1]>()\n a = Slice(x, s, e, k)\n y = Relu(a)",
        ["Relu"],
    ),
    ("noop_pad", "p = Constant<value_ints=[0, 0, 0, 0, 0, 0]>()\n a = Pad(x, p)\n y = Relu(a)", ["Relu"]),
    ("noop_split", "a = Split<axis=1>(x)\n y = Relu(a)", ["Relu"]),
    ("split_concat", "a, b = Split<axis=1>(x)\n y = Concat<axis=-2>(a, b)", []),
    (
        "noop_resize",
        "c = Constant<value_floats=[1.0, 1.0, 1.0]>()\n a = Resize(x, , c)\n y = Relu(a)",
        ["Relu"],
    ),
    (
        "noop_reduce",
        "k = Constant<value_ints=[1]>()\n u = Unsqueeze(x, k)\n a = ReduceMean<axes=[1]>(u)\n y = Relu(a)",
        ["Unsqueeze", "Relu"],
    ),
    (
        "noop_reduce",
        "k = Constant<value_ints=[1]>()\n u = Unsqueeze(x, k)\n y = ReduceMax<axes=[1], keepdims=0>(u)",
        ["Unsqueeze", "Squeeze"],
    ),
    # neutral elements
    ("neutral", "c = Constant<value_float=0.0>()\n a = Add(c, x)\n y = Relu(a)", ["Relu"]),
    (
        "neutral",
        "c = Constant<value_floats=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0]>()\n a = Div(x, c)\n y = Relu(a)",
        ["Relu"],
    ),
    ("neutral", "c = Constant<value_float=1.0>()\n a = Pow(x, c)\n b = Mul(c, a)\n y = Relu(b)", ["Relu"]),
    (
        "neutral",
        "t = Constant<value=bool {1}>()\n l = Less(x, x)\n a = And(l, t)\n y = Not(a)",
        ["Less", "Not"],
    ),
    ("single_operand", "a = Max(x)\n b = Min(a, a)\n y = Relu(b)", ["Relu"]),
    (
        "where_chosen",
        "t = Constant<value=bool {1}>()\n e = Exp(x)\n a = Where(t, x, e)\n y = Relu(a)",
        ["Relu"],
    ),
    (
        "where_chosen",
        "e = Exp(x)\n z = Abs(x)\n l = Less(x, e)\n k = Not(l)\n y = Where(k, e, z)",
        ["Exp", "Abs", "Less", "Where"],
    ),
    (
        "where_chosen",
        "e = Exp(x)\n l = Less(x, e)\n k = Not(l)\n a = Where(k, e, x)\n y = Where(k, a, e)",
        ["Exp", "Less", "Where", "Where"],
    ),
    ("where_chosen", "e = Exp(x)\n l = Less(x, e)\n y = Where(l, e, e)", ["Exp"]),
    # repeated
    ("idempotent", "a = Relu(x)\n b = Abs(a)\n y = Relu(b)", ["Relu"]),
    ("idempotent", "a = Floor(x)\n y = Round(a)", ["Floor"]),
    ("involution", "a = Neg(x)\n b = Neg(a)\n y = Relu(b)", ["Relu"]),
    ("involution", "a = Neg(x)\n y = Abs(a)", ["Abs"]),
    # clamps
    ("clamp_chain", "c = Constant<value_float=1.5>()\n a = Relu(x)\n y = Min(a, c)", ["Clip"]),
    (
        "clamp_chain",
        "c = Constant<value_float=1.5>()\n d = Constant<value_float=-1.0>()\n a = Clip(x, d)\n y = Clip(a, , c)",
        ["Clip"],
    ),
    ("clamp_chain", "c = Constant<value_float=-1.5>()\n a = Relu(x)\n y = Max(c, a)", ["Relu"]),
    ("clamp_chain", "c = Constant<value_float=-1.5>()\n a = Relu(x)\n y = Min(c, a)", ["Clip"]),
    (
        "clamp_chain",
        "c = Constant<value_float=0.5>()\n d = Constant<value_float=0.7>()\n a = Max(x, c)\n y = Max(d, a)",
        ["Max"],
    ),
    ("clamp_chain", "a = Clip(x)\n y = Exp(a)", ["Exp"]),
    # constants
    (
        "scale_chain",
        "c = Constant<value_float=0.5>()\n d = Constant<value_floats=[3.0, 2.0, 1.0, 4.0, 5.0, 6.0]>()\n a = Mul(c, x)\n y = Mul(a, d)",
        ["Mul"],
    ),
    (
        "scale_chain",
        "c = Constant<value_float=0.7>()\n d = Constant<value_float=3.0>()\n a = Div(x, c)\n y = Mul(d, a)",
        ["Mul"],
    ),
    (
        "scale_chain",
        "c = Constant<value_float=0.7>()\n d = Constant<value_float=3.0>()\n a = Div(x, c)\n y = Div(a, d)",
        ["Div"],
    ),
    (
        "offset_chain",
        "c = Constant<value_float=0.7>()\n d = Constant<value_float=3.0>()\n a = Sub(x, c)\n y = Add(d, a)",
        ["Add"],
    ),
    (
        "offset_chain",
        "c = Constant<value_float=0.7>()\n d = Constant<value_float=3.0>()\n a = Sub(x, c)\n y = Sub(a, d)",
        ["Sub"],
    ),
    # transposes
    ("transpose_chain", "a = Transpose<perm=[0, 2, 1]>(x)\n y = Transpose<perm=[1, 0, 2]>(a)", ["Transpose"]),
    ("transpose_chain", "a = Transpose(x)\n b = Transpose(a)\n y = Relu(b)", ["Relu"]),
    (
        "transpose_around",
        "c = Constant<value_float=0.7>()\n a = Transpose(x)\n b = Exp(a)\n d = Mul(c, b)\n y = Transpose(d)",
        ["Exp", "Mul"],
    ),
    # squeezes and reshapes
    (
        "squeeze_chain",
        "i = Constant<value_ints=[1]>()\n j = Constant<value_ints=[0, -1]>()\n a = Unsqueeze(x, i)\n y = Unsqueeze(a, j)",
        ["Unsqueeze"],
    ),
    (
        "squeeze_chain",
        "i = Constant<value_ints=[0, 2]>()\n j = Constant<value_ints=[2]>()\n a = Unsqueeze(x, i)\n y = Squeeze(a, j)",
        ["Unsqueeze"],
    ),
    (
        "squeeze_chain",
        "i = Constant<value_ints=[1]>()\n j = Constant<value_ints=[-3]>()\n a = Unsqueeze(x, i)\n b = Squeeze(a, j)\n y = Relu(b)",
        ["Relu"],
    ),
    (
        "view_chain",
        "s = Constant<value_ints=[0, -1, 3]>()\n t = Constant<value_ints=[0, 4, 6]>()\n a = Reshape(x, s)\n b = Reshape(a, t)\n y = Relu(b)",
        ["Relu"],
    ),
    ("view_chain", "i = Constant<value_ints=[1]>()\n a = Flatten(x)\n y = Unsqueeze(a, i)", ["Reshape"]),
    (
        "view_chain",
        "s = Constant<value_ints=[-1, 6]>()\n t = Constant<value_ints=[0, 3, 2]>()\n a = Reshape(x, s)\n y = Reshape(a, t)",
        ["Reshape"],
    ),
    (
        "reduce_keepdims",
        "i = Constant<value_ints=[-1]>()\n a = ReduceMean<axes=[2], keepdims=0>(x)\n y = Unsqueeze(a, i)",
        ["ReduceMean"],
    ),
    (
        "reduce_keepdims",
        "i = Constant<value_ints=[1]>()\n a = ArgMax<axis=1>(x)\n y = Squeeze(a, i)",
        ["ArgMax"],
    ),
    (
        "reduce_keepdims",
        "s = Constant<value_ints=[0, 4, 1]>()\n a = ReduceMean<axes=[2], keepdims=0>(x)\n y = Reshape(a, s)",
        ["ReduceMean"],
    ),
    (
        "reduce_keepdims",
        "s = Constant<value_ints=[0, 6]>()\n a = ArgMax<axis=1>(x)\n y = Reshape(a, s)",
        ["ArgMax"],
    ),
    (
        "reduce_chain",
        "a = ReduceMax<axes=[1], keepdims=0>(x)\n y = ReduceMax<axes=[1], keepdims=0>(a)",
        ["ReduceMax"],
    ),
    (
        "reduce_chain",
        "i = Constant<value_ints=[1]>()\n a = ReduceSum(x, i)\n y = ReduceSum(a)",
        ["ReduceSum"],
    ),
    # slices, concats, pads
    (
        "slice_chain",
        "s = Constant<value_ints=[1]>()\n e = Constant<value_ints=[-1]>()\n i = Constant<value_ints=[1]>()\n"
        "j = Constant<value_ints=[-1]>()\n a = Slice(x, s, e, i)\n y = Slice(a, s, e, j)",
        ["Slice"],
    ),
    (
        "slice_chain",
        "s = Constant<value_ints=[1]>()\n e = Constant<value_ints=[-1]>()\n f = Constant<value_ints=[2]>()\n i = Constant<value_ints=[1]>()\n"
        "a = Slice(x, s, e, i)\n y = Slice(a, s, f, i)",
        ["Slice"],
    ),
    ("concat_empty", "a = Concat<axis=1>(x)\n y = Relu(a)", ["Relu"]),
    (
        "concat_empty",
        "z = Constant<value_ints=[0]>()\n i = Constant<value_ints=[1]>()\n"
        "e = Slice(x, z, z, i)\n a = Concat<axis=-2>(e, x)\n y = Relu(a)",
        ["Relu"],
    ),
    ("concat_chain", "a = Concat<axis=1>(x, x)\n y = Concat<axis=-2>(x, a, x)", ["Concat"]),
    ("pad_chain", "p = Constant<value_ints=[0, 1, 0, 0, 0, 2]>()\n a = Pad(x, p)\n y = Pad(a, p)", ["Pad"]),
    (
        "pad_chain",
        'p = Constant<value_ints=[0, 1, 0, 0, 0, 2]>()\n a = Pad<mode="edge">(x, p)\n y = Pad<mode="edge">(a, p)',
        ["Pad"],
    ),
]


@pytest.mark.parametrize(
    ("rule", "body", "left"), FIRES, ids=[f"{r}-{i}" for i, (r, _, _) in enumerate(FIRES)]
)
def test_fires(rule: str, body: str, left: list[str]) -> None:
    head = X
    if left and left[-1] == "ArgMax":
        head = head.replace("float y", "int64 y")
    elif left and left[-1] == "Not":
        head = head.replace("float y", "bool y")
    elif rule == "noop_cast" and left == ["Cast"]:
        head = head.replace("float y", "double y")
    elif rule == "cast_chain" and left == ["Cast"]:
        head = head.replace("float y", "int32 y" if "to=6" in body else "float16 y")
    text = f"{head} {{ {body} }}"
    if not left:
        text = text.replace("y = Concat", "q = Concat").replace("}", "\n y = Relu(q) }")
        left = ["Relu"]
    check(text, f"{rule},dead", left)


MISSES = [
    # Dropout that trains, or may
    (
        "dropout",
        "float[n, 4, 6] x, bool t",
        "r = Constant<value_float=0.0>()\n a = Dropout(x, r, t)\n y = Relu(a)",
    ),
    # casts that round, saturate or test
    ("cast_chain", "", "a = Cast<to=7>(x)\n y = Cast<to=1>(a)"),
    ("cast_chain", "", "a = Cast<to=10>(x)\n y = Cast<to=1>(a)"),
    ("cast_chain", "", "a = Cast<to=9>(x)\n y = Cast<to=1>(a)"),
    ("noop_cast", "", "a = Cast<to=10>(x)\n y = Cast<to=1>(a)"),
    # views that only look like nothing
    ("noop_view", "float[n, 4, 4] x", "s = Constant<value_ints=[4, 4, -1]>()\n y = Reshape(x, s)"),
    ("noop_view", "", "s = Constant<value_ints=[1, 1, 1, 1]>()\n y = Expand(x, s)"),
    ("noop_view", "", "s = Constant<value_ints=[3, 1, 1]>()\n y = Expand(x, s)"),
    ("noop_transpose", "float[n, 4, 4] x", "y = Transpose<perm=[0, 2, 1]>(x)"),
    ("noop_transpose", "float[1, 4, 4] x", "y = Transpose<perm=[0, 2, 1]>(x)"),
    (
        "noop_slice",
        "",
        "s = Constant<value_ints=[-1]>()\n e = Constant<value_ints=[-9223372036854775807]>()\n"
        "i = Constant<value_ints=[1]>()\n y = Slice(x, s, e, i, s)",
    ),
    (
        "noop_slice",
        "",
        "s = Constant<value_ints=[0]>()\n e = Constant<value_ints=[3]>()\n i = Constant<value_ints=[0]>()\n y = Slice(x, s, e, i)",
    ),
    ("noop_resize", "", "c = Constant<value_floats=[1.0, 1.0, 2.0]>()\n y = Resize(x, , c)"),
    ("noop_reduce", "", "y = ReduceMean<axes=[0]>(x)"),
    ("split_concat", "", "a, b = Split<axis=1>(x)\n y = Concat<axis=1>(b, a)"),
    ("split_concat", "", "a, b = Split<axis=1>(x)\n y = Concat<axis=2>(a, b)"),
    # constants that broadcast, and numbers that are not neutral on that side
    ("neutral", "", "c = Constant<value=float[1, 1, 1, 1] {0.0}>()\n y = Add(x, c)"),
    ("neutral", "float[n, 1, 6] x", "c = Constant<value=float[2, 1] {1.0, 1.0}>()\n y = Mul(x, c)"),
    ("neutral", "", "c = Constant<value_float=0.0>()\n y = Sub(c, x)"),
    ("neutral", "", "c = Constant<value_float=1.0>()\n y = Div(c, x)"),
    ("neutral", "", "c = Constant<value_float=1.0000001>()\n y = Mul(x, c)"),
    (
        "where_chosen",
        "",
        "e = Exp(x)\n l = Less(x, e)\n k = Not(l)\n a = Where(k, e, x)\n f = Cast<to=1>(k)\n y = Add(a, f)",
    ),
    (
        "where_chosen",
        "float[1, 4, 6] x, float[n, 4, 6] z",
        "t = Constant<value=bool {1}>()\n y = Where(t, x, z)",
    ),
    # orders and intervals
    ("idempotent", "", "a = Ceil(x)\n y = Relu(a)"),
    ("idempotent", "", "a = Exp(x)\n y = Exp(a)"),
    ("involution", "", "a = Neg(x)\n y = Relu(a)"),
    ("clamp_chain", "float[n, 4, 6] x, float c", "a = Relu(x)\n y = Min(a, c)"),
    (
        "clamp_chain",
        "",
        "c = Constant<value_floats=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]>()\n a = Relu(x)\n y = Min(a, c)",
    ),
    (
        "scale_chain",
        "",
        "c = Constant<value_float=0.0>()\n d = Constant<value_float=2.0>()\n a = Div(x, c)\n y = Mul(a, d)",
    ),
    (
        "scale_chain",
        "",
        "c = Constant<value_float=1e30>()\n d = Constant<value_float=1e-30>()\n a = Mul(x, c)\n y = Mul(a, d)",
    ),
    (
        "scale_chain",
        "",
        "c = Constant<value_float=2.0>()\n d = Constant<value_float=3.0>()\n a = Div(c, x)\n y = Mul(a, d)",
    ),
    ("offset_chain", "", "c = Constant<value_float=12582912.0>()\n a = Add(x, c)\n y = Sub(a, c)"),
    (
        "offset_chain",
        "",
        "c = Constant<value_float=2.0>()\n d = Constant<value_float=3.0>()\n a = Sub(c, x)\n y = Add(a, d)",
    ),
    ("scale_chain", "", "c = Constant<value_float=2.0>()\n a = Mul(x, c)\n b = Mul(a, c)\n y = Add(a, b)"),
    # transposes with something that sees the axes in between
    (
        "transpose_around",
        "",
        "a = Transpose<perm=[0, 2, 1]>(x)\n b = Softmax<axis=2>(a)\n y = Transpose<perm=[0, 2, 1]>(b)",
    ),
    (
        "transpose_around",
        "",
        "c = Constant<value_floats=[1.0, 2.0, 3.0, 4.0]>()\n a = Transpose<perm=[0, 2, 1]>(x)\n b = Mul(a, c)\n y = Transpose<perm=[0, 2, 1]>(b)",
    ),
    # a Reshape after elements have moved
    (
        "view_chain",
        "",
        "s = Constant<value_ints=[0, 4, 6]>()\n a = Transpose<perm=[0, 2, 1]>(x)\n y = Reshape(a, s)",
    ),
    (
        "reduce_keepdims",
        "",
        "i = Constant<value_ints=[0]>()\n a = ReduceMean<axes=[2], keepdims=0>(x)\n y = Unsqueeze(a, i)",
    ),
    (
        "reduce_keepdims",
        "",
        "s = Constant<value_ints=[0, 1, 4]>()\n a = ReduceMean<axes=[2], keepdims=0>(x)\n y = Reshape(a, s)",
    ),
    ("reduce_chain", "", "a = ReduceMax<axes=[1], keepdims=0>(x)\n y = ReduceMin<axes=[1], keepdims=0>(a)"),
    ("reduce_chain", "", "a = ReduceSumSquare<axes=[1]>(x)\n y = ReduceSumSquare<axes=[2]>(a)"),
    ("reduce_chain", "", "a = ReduceMax<axes=[1], keepdims=1>(x)\n y = ReduceMax<axes=[2], keepdims=0>(a)"),
    (
        "slice_chain",
        "",
        "s = Constant<value_ints=[1]>()\n e = Constant<value_ints=[9]>()\n f = Constant<value_ints=[-1]>()\n i = Constant<value_ints=[1]>()\n"
        "a = Slice(x, s, e, i)\n y = Slice(a, s, f, i)",
    ),
    ("concat_chain", "", "a = Concat<axis=1>(x, x)\n y = Concat<axis=2>(a, a)"),
    ("concat_chain", "", "a = Concat<axis=1>(x, x)\n b = Exp(a)\n y = Concat<axis=1>(a, b)"),
    (
        "pad_chain",
        "",
        "p = Constant<value_ints=[0, 1, 0, 0, 0, 2]>()\n c = Constant<value_float=1.0>()\n a = Pad(x, p, c)\n y = Pad(a, p)",
    ),
    (
        "pad_chain",
        "",
        'p = Constant<value_ints=[0, 1, 0, 0, 0, 2]>()\n a = Pad<mode="reflect">(x, p)\n y = Pad<mode="reflect">(a, p)',
    ),
    (
        "pad_chain",
        "",
        "p = Constant<value_ints=[0, -1, 0, 0, 0, 0]>()\n q = Constant<value_ints=[0, 1, 0, 0, 0, 0]>()\n a = Pad(x, p)\n y = Pad(a, q)",
    ),
]


@pytest.mark.parametrize(
    ("rule", "inputs", "body"), MISSES, ids=[f"{r}-{i}" for i, (r, _, _) in enumerate(MISSES)]
)
def test_does_not_fire(rule: str, inputs: str, body: str) -> None:
    inputs = inputs or "float[n, 4, 6] x"
    check(f"g ({inputs}) => (float y) {{ {body} }}", rule, None)


def test_integers_multiply_exactly() -> None:
    text = "g (int32[n] x) => (int32[n] y) { a = Mul(x, c)\n b = Mul(a, d)\n e = Sub(b, c)\n y = Add(e, d) }"
    weights = {"c": np.int32(123457), "d": np.int32(7654321)}
    check(text, "scale_chain,offset_chain,dead", ["Mul", "Add"], weights=weights)


def test_integer_division_rounds_in_between() -> None:
    text = "g (int32[n] x) => (int32[n] y) { a = Div(x, c)\n y = Mul(a, c) }"
    check(text, "scale_chain", None, weights={"c": np.int32(2)})


def test_older_spellings() -> None:
    text = """g (float[n, 4, 6] x) => (float y) {
        a = Unsqueeze<axes=[1]>(x)
        b = Unsqueeze<axes=[0]>(a)
        c = Squeeze<axes=[2]>(b)
        d = Slice<starts=[1], ends=[3], axes=[2]>(c)
        e = Slice<starts=[0], ends=[1], axes=[3]>(d)
        f = Clip<min=0.0>(e)
        h = Clip<max=1.0>(f)
        i = Pad<pads=[0, 0, 0, 0, 0, 0, 0, 0]>(h)
        j = ReduceSum<axes=[2], keepdims=0>(i)
        y = Unsqueeze<axes=[2]>(j)
    }"""
    check(text, "tidy", ["Unsqueeze", "Slice", "Clip", "ReduceSum"], opset=9)


def test_newer_spellings() -> None:
    text = """g (float[n, 4, 6] x) => (float y) {
        i = Constant<value_ints=[1]>()
        p = Constant<value_ints=[1, 2]>()
        a = ReduceMean<keepdims=0>(x, i)
        b = Unsqueeze(a, i)
        c = Split<axis=0, num_outputs=1>(b)
        d = Pad(c, p, , i)
        y = Pad(d, p, , i)
    }"""
    check(text, "tidy", ["ReduceMean", "Pad"], opset=18)


IN_IF = """g (float[n, 4] x, bool c) => (float z) {
    y = If (c) <
        then_branch = t () => (float[n, 4] u) { a = Neg(x)\n b = Neg(a)\n u = Exp(b) },
        else_branch = e () => (float[n, 4] v) { d = Relu(x)\n v = Relu(d) }
    >
    z = Identity(y)
}"""


def test_inside_of_if() -> None:
    after = check(IN_IF, "tidy", ["If"])
    then_branch, else_branch = (a.g for a in after.graph.node[0].attribute)
    assert [n.op_type for n in then_branch.node] == ["Exp"]
    assert [n.op_type for n in else_branch.node] == ["Relu"]
    assert after.graph.output[0].name == "z"


def test_a_branch_that_hands_on_an_outer_value_keeps_an_identity() -> None:
    text = """g (float[n, 4] x, bool c) => (float y) {
        y = If (c) <
            then_branch = t () => (float u) { a = Neg(x)\n u = Neg(a) },
            else_branch = e () => (float v) { v = Relu(x) }
        >
    }"""
    after = check(text, "tidy", ["If"])
    branch = next(a.g for a in after.graph.node[0].attribute if a.name == "then_branch")
    assert [n.op_type for n in branch.node] == ["Identity"]


def test_inside_of_loop() -> None:
    text = """g (float[n, 4] x) => (float[n, 4] y) {
        k = Constant<value=int64 {3}>()
        t = Constant<value=bool {1}>()
        y = Loop (k, t, x) <body = b (int64 i, bool go, float[n, 4] s) => (bool on, float[n, 4] r) {
            on = Identity(go)
            a = Transpose(s)
            h = Exp(a)
            w = Tanh(h)
            r = Transpose(w)
        }>
    }"""
    after = check(text, "tidy", ["Loop"])
    body = next(a.g for a in after.graph.node[-1].attribute if a.name == "body")
    assert [n.op_type for n in body.node] == ["Identity", "Exp", "Tanh"]


FUNCTION = """<ir_version: 10, opset_import: ["" : 17, "local" : 1]>
g (float[n, 4] x) => (float[n, 4] y) { y = local.f<p = [1, 0], q = 0>(x) }
<domain: "local", opset_import: ["" : 17]>
f <p, q> (x) => (y) {
    a = Transpose<perm: ints = @p>(x)
    b = Transpose<perm = [1, 0]>(a)
    c = Relu(b)
    d = Relu(c)
    e = Concat<axis: int = @q>(d)
    h = Constant<value_float = 0.0>()
    y = Add(e, h)
}"""


def test_inside_of_a_function() -> None:
    after = check(FUNCTION, "tidy", ["f"])
    # What the caller decides is not known: both Transposes stay.
    assert [n.op_type for n in after.functions[0].node] == ["Transpose", "Transpose", "Relu"]


def test_outputs_of_the_model_keep_their_names() -> None:
    text = """g (float[n, 4] x) => (float a, float b, float c) {
        a = Relu(x)
        b = Relu(a)
        d = Neg(a)
        c = Neg(d)
    }"""
    after = check(text, "tidy", ["Relu", "Identity", "Identity"])
    assert [o.name for o in after.graph.output] == ["a", "b", "c"]


def test_axes_that_come_and_go_around_symbolic_ones() -> None:
    """The target of one Reshape could not be written down: 0 and -1 together do not fit an empty tensor."""
    check(
        """g (float[n, m] x) => (float[n, 1, 1, m] y) {
            i = Constant<value_ints=[1, 2, 4]>()  s = Constant<value_ints=[0, 1, 1, 0]>()
            a = Unsqueeze(x, i)  y = Reshape(a, s) }""",
        "view_chain",
        ["Unsqueeze"],
        sizes=({"n": 2, "m": 3}, {"n": 1, "m": 1}, {"n": 0, "m": 2}),
    )


def test_an_axis_that_is_cut_stays_cut() -> None:
    """What comes in between is no axis of size 1."""
    text = """g (float[n, m] x) => (float[n, 2, 1, k] y) {
            i = Constant<value_ints=[1, 2, 4]>()  s = Constant<value_ints=[0, 2, 1, -1]>()
            a = Unsqueeze(x, i)  y = Reshape(a, s) }"""
    check(text, "view_chain", ["Reshape"], sizes=({"n": 2, "m": 6}, {"n": 1, "m": 2}))
