"""What inference finds, leaves open, and never does: small models written out."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import numpy as np
import onnx.parser
import pytest

import onnxlathe  # noqa: F401 - before onnx_ir
from onnxlathe.infer import Dim, constant, dims_of, infer_model, infer_node, known

import onnx_ir as ir  # isort: skip

FIXTURES = Path(__file__).parent.parent / "fixtures"


def model_of(body, *, inputs="float[batch, seq, 768] x", outputs="y", opset=18, extra=""):
    """A model from the text of a graph's body; outputs are declared without types."""
    names = ", ".join(f"float {name}" for name in outputs.split())
    header = f'<ir_version: 10, opset_import: ["" : {opset}, "local" : 1]>'
    text = f"{header} g ({inputs}) => ({names}) {body} {extra}"
    proto = onnx.parser.parse_model(text)
    for output in proto.graph.output:
        output.ClearField("type")
    return ir.from_proto(proto)


def values(model):
    infer_model(model)
    return {v.name: v for node in model.graph for v in node.outputs}


def text(value):
    dims = dims_of(value)
    return None if dims is None else [str(d) for d in dims]


SHAPE_ARITHMETIC = """{
    shape = Shape(x)
    zero = Constant<value_int = 0>()
    batch = Gather<axis = 0>(shape, zero)
    one = Constant<value_int = 1>()
    seq = Gather<axis = 0>(shape, one)
    axis = Constant<value_ints = [0]>()
    b1 = Unsqueeze(batch, axis)
    s1 = Unsqueeze(seq, axis)
    heads = Constant<value_ints = [12, -1]>()
    target = Concat<axis = 0>(b1, s1, heads)
    split = Reshape(x, target)
    y = Transpose<perm = [0, 2, 1, 3]>(split)
}"""


def test_shape_arithmetic_of_attention_heads():
    found = values(model_of(SHAPE_ARITHMETIC))
    assert list(known(found["target"])) == [Dim("batch"), Dim("seq"), 12, -1]
    assert text(found["y"]) == ["batch", "12", "seq", "64"]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("[0, 0, 12, 64]", ["batch", "seq", "12", "64"]),
        ("[-1, 768]", ["batch*seq", "768"]),
        ("[0, -1]", ["batch", "768*seq"]),
        ("[-1, 0, 64]", ["12*batch", "seq", "64"]),
    ],
)
def test_reshape_with_partly_known_targets(target, expected):
    found = values(model_of(f"{{ t = Constant<value_ints = {target}>() y = Reshape(x, t) }}"))
    assert text(found["y"]) == expected


@pytest.mark.parametrize(
    ("start", "end", "step", "expected"),
    [
        (0, 2**63 - 1, 1, "seq"),
        (0, 2**31 - 1, 1, "seq"),
        (0, -1, 1, "max(0, seq - 1)"),
        (-1, 2**63 - 1, 1, "min(1, seq)"),
        (0, 4, 1, "min(4, seq)"),
        (4, 2**63 - 1, 1, "-min(4, seq) + seq"),
        (0, 2**63 - 1, 2, "(seq + 1)//2"),
        (-1, -(2**63), -1, "seq"),
    ],
)
def test_slices_of_a_symbolic_dimension(start, end, step, expected):
    body = f"""{{
        s = Constant<value_ints = [{start}]>() e = Constant<value_ints = [{end}]>()
        a = Constant<value_ints = [1]>() k = Constant<value_ints = [{step}]>()
        y = Slice(x, s, e, a, k)
    }}"""
    assert text(values(model_of(body))["y"]) == ["batch", expected, "768"]


def test_sizes_through_floats():
    body = """{
        shape = Shape<start = 1, end = 2>(x)
        f = Cast<to = 1>(shape)
        half = Constant<value_float = 0.5>()
        scaled = Mul(f, half)
        floor = Floor(scaled)
        n = Cast<to = 7>(floor)
        y = ConstantOfShape(n)
    }"""
    assert text(values(model_of(body))["y"]) == ["seq//2"]


def test_expand_against_minus_one_as_torchscript_writes_it():
    body = """{
        shape = Shape(x)
        minus = Constant<value_ints = [-1, -1, 1]>()
        ones = Constant<value_ints = [1, 1, 1]>()
        wanted = Constant<value_ints = [-1, 5, 1]>()
        same = Equal(wanted, minus)
        target = Where(same, ones, wanted)
        z = Constant<value_ints = [0]>()
        two = Constant<value_ints = [2]>()
        o = Constant<value_ints = [1]>()
        row = ReduceMax<keepdims = 1>(x, two)
        cut = Slice(row, z, o, o)
        y = Expand(cut, target)
    }"""
    found = values(model_of(body))
    assert list(known(found["target"])) == [1, 5, 1]
    assert text(found["y"]) == ["batch", "5", "1"]


def test_broadcasting_never_guesses():
    found = values(model_of("{ y = Add(x, z) }", inputs="float[s, 1, n] x, float[t, m, 8] z"))
    dims = dims_of(found["y"])
    assert str(dims[0]).startswith("u."), "s and t may each be 1"
    assert [str(d) for d in dims[1:]] == ["m", "8"]


def test_convolution_with_symbolic_size():
    body = "{ y = Conv<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(x, w) }"
    found = values(model_of(body, inputs="float[n, 3, h, w] x, float[8, 3, 3, 3] w"))
    assert text(found["y"]) == ["n", "8", "(h + 1)//2", "(w + 1)//2"]


LOOP = """{
    n = Constant<value_int = 3>()
    go = Constant<value = bool {1}>()
    y, z, rows = Loop(n, go, x, x) <
        body = b (int64 i, bool c, float[batch, seq, 768] a, float[batch, seq, 768] d)
        => (bool c2, float a2, float d2, float r) {
        c2 = Identity(c)
        a2 = Concat<axis = 1>(a, x)
        d2 = Relu(d)
        r = ReduceSum<keepdims = 0>(d)
    }>
}"""


def test_loop_keeps_what_no_iteration_changes():
    model = model_of(LOOP, outputs="y z rows")
    found = values(model)
    dims = dims_of(found["y"])
    assert (str(dims[0]), dims[2]) == ("batch", 768)
    assert str(dims[1]) != "seq", "the concatenated axis grows"
    assert text(found["z"]) == ["batch", "seq", "768"]
    assert text(found["rows"]) == ["3"]
    body = found["y"].producer().attributes["body"].as_graph()
    grown = next(v for node in body for v in node.outputs if v.name == "a2")
    assert dims_of(grown) == (Dim("batch"), None, 768), "in the body, one name would mean many sizes"


def test_if_knows_what_both_branches_agree_on():
    body = """{
        y = If(c) <then_branch = t () => (float p) { p = Relu(x) },
                   else_branch = e () => (float q) { q = Concat<axis = 1>(x, x) }>
    }"""
    found = values(model_of(body, inputs="bool c, float[batch, seq, 768] x"))
    dims = dims_of(found["y"])
    assert (str(dims[0]), dims[2]) == ("batch", 768)
    assert str(dims[1]).startswith("u.")


def test_function_called_at_two_shapes():
    model = model_of(
        "{ y = local.twice(x) z = local.twice(v) }",
        inputs="float[batch, 4] x, float[5, 6] v",
        outputs="y z",
        extra="""<domain: "local", opset_import: ["" : 18]> twice (a) => (b) {
            c = Relu(a) b = Concat<axis = 0>(c, c)
        }""",
    )
    found = values(model)
    assert text(found["y"]) == ["2*batch", "4"]
    assert text(found["z"]) == ["10", "6"]
    for function in model.functions.values():
        assert all(v.shape is None for node in function for v in node.outputs), "the body is shared"


def test_stale_declarations_are_noted_and_names_replaced():
    model = model_of("{ a = Relu(x) b = Relu(a) y = Relu(b) }")
    by_name = {v.name: v for node in model.graph for v in node.outputs}
    by_name["a"].shape = ir.Shape(["unk__1", 7, 768])
    by_name["b"].shape = ir.Shape(["batch", "seq"])
    notes = infer_model(model)
    assert text(by_name["a"]) == ["batch", "seq", "768"]
    assert any("'a'" in n and "axis 1" in n for n in notes)
    assert any("'b'" in n and "rank" in n for n in notes)


def test_declared_facts_beat_nothing():
    model = model_of("{ y = local.Mystery(x) }")
    output = model.graph.outputs[0]
    output.shape = ir.Shape(["batch", 4])
    infer_model(model)
    assert text(output) == ["batch", "4"]


def test_inference_node_by_node_refines():
    model = model_of("{ a = Relu(x) y = Concat<axis = 1>(a, a) }")
    infer_model(model)
    first, second = list(model.graph)
    model.graph.inputs[0].shape = ir.Shape(["batch", 128, 768])
    assert infer_node(first, 18)
    assert infer_node(second, 18)
    assert text(second.outputs[0]) == ["batch", "256", "768"]
    assert not infer_node(second, 18), "nothing new the second time"


def test_overridable_initializers_are_not_constant():
    model = model_of("{ y = Reshape(x, t) }", inputs="float[2, 3] x, int64[2] t")
    target = model.graph.inputs[1]
    target.const_value = ir.tensor(np.array([3, 2]), name="t")
    model.graph.initializers["t"] = target
    found = values(model)
    assert constant(target) is None
    assert known(target) is None
    assert dims_of(found["y"]) != (3, 2)


def test_constant_nodes_in_all_their_forms():
    body = """{
        a = Constant<value_int = 7>() b = Constant<value_ints = [1, 2]>()
        c = Constant<value_float = 1.5>() d = Constant<value_floats = [1.0, 2.0]>()
        e = Constant<value = int32[2] {3, 4}>() f = Constant<value_string = "hi">()
        y = Identity(x)
    }"""
    found = values(model_of(body))
    assert constant(found["a"]).shape == ()
    assert found["a"].dtype == ir.DataType.INT64
    assert list(constant(found["b"])) == [1, 2]
    assert found["c"].dtype == ir.DataType.FLOAT
    assert text(found["d"]) == ["2"]
    assert constant(found["e"]).dtype == np.int32
    assert found["f"].dtype == ir.DataType.STRING
    assert constant(found["y"]) is None


def test_large_constants_are_not_read():
    class Untouchable(ir.Tensor):
        def numpy(self):
            raise AssertionError("read")

    model = model_of("{ y = Add(x, w) }")
    tensor = Untouchable(np.zeros((1024, 768), np.float32), name="w")
    weight = model.graph.node(0).inputs[1]
    weight = ir.Value(name="w", const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
    model.graph.initializers["w"] = weight
    model.graph.node(0).replace_input_with(1, weight)
    infer_model(model)
    assert constant(weight) is None
    assert known(weight) is None


@pytest.mark.parametrize(
    "body",
    [
        "{ y = Transpose<perm = [5, 6]>(x) }",
        "{ y = Concat<axis = 9>(x, x) }",
        "{ y = Relu() }",
        "{ y = Softmax(x, x, x) }",
        "{ y = NoSuchOperator(x) }",
        "{ y = nowhere.Conv(x) }",
        "{ t = Constant<value_ints = [0]>() y = Reshape<allowzero = 1>(x, t) }",
        "{ t = Constant<value_ints = [-1, -1]>() y = Reshape(x, t) }",
        "{ t = Constant<value_ints = [7]>() y = ReduceSum(x, t) }",
        "{ a = Constant<value_int = 0>() b = Div(a, a) y = Mod(b, a) }",
        "{ y = Gemm(x, x) }",
        '{ y = Einsum<equation = "ij->">(x) }',
        "{ y = Split(x) }",
        "{ y = If(x) }",
        "{ y = Loop(x, x) }",
        "{ y = Conv(x) }",
        "{ y = Cast(x) }",
    ],
)
def test_strange_nodes_never_raise(body):
    infer_model(model_of(body))
    infer_model(model_of(body, inputs="float x"))


@pytest.mark.parametrize("path", sorted((FIXTURES / "tiny").glob("bomb*.onnx")), ids=lambda p: p.stem)
def test_bombs_cost_nothing(path):
    model = ir.load(path)
    infer_model(ir.load(path))  # imports are not counted
    tracemalloc.start()
    start = time.perf_counter()
    infer_model(model)
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20
    assert seconds < 2


def test_contents_are_bounded():
    body = """{
        n = Constant<value_ints = [100000000]>()
        big = ConstantOfShape<value = int64[1] {1}>(n)
        zero = Constant<value_int = 0>()
        million = Constant<value_int = 1000000>()
        one = Constant<value_int = 1>()
        r = Range(zero, million, one)
        y = Add(big, one)
    }"""
    found = values(model_of(body))
    assert known(found["big"]) is None
    assert known(found["r"]) is None
    assert text(found["r"]) == ["1000000"]
    assert text(found["y"]) == ["100000000"]


def test_nested_loops_that_grow_stay_cheap():
    body = "w8 = Concat<axis = 1>(v8, v8)"
    for depth in range(8, 0, -1):
        body = f"""w{depth - 1} = Loop(n, , v{depth - 1}) <
            body = b{depth} (int64 i{depth}, bool c{depth}, float[q, r] v{depth})
            => (bool d{depth}, float w{depth}) {{ d{depth} = Identity(c{depth}) {body} }}>"""
    model = model_of(f"{{ {body} y = Relu(w0) }}", inputs="int64 n, float[batch, seq] v0")
    start = time.perf_counter()
    infer_model(model)
    assert time.perf_counter() - start < 10
    assert dims_of(model.graph.outputs[0])[0] == Dim("batch")
