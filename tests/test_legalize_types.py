"""Types that TensorRT lacks, carried in wider ones: overflow, rounding, order and borders."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import parse
from legalize_helpers import agree, fitting, in_reference, in_runtime, legalized, rewritten, single
from onnxlathe.rewrite import Context
from onnxlathe_passes.legalize.carriers import AT_THE_BORDER, CARRIER
from onnxlathe_passes.legalize.draft import Draft
from onnxlathe_passes.legalize.integers import unsigned_div, wrap
from onnxlathe_passes.legalize.minifloat import FORMATS, rounded

NARROW = [np.int16, np.uint16, np.uint32, np.uint64]


def kind(dtype: type) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def values(dtype: type) -> tuple[np.ndarray, np.ndarray]:
    info = np.iinfo(dtype)
    x = np.array([info.min, info.max, info.max, 7, 200, info.max // 2, 1, 0], dtype)
    y = np.array([1, 1, info.max, 3, 100, 3, info.max, 5], dtype)
    return x, y


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Mod"])
def test_integer_arithmetic_overflows_alike(dtype: type, op: str) -> None:
    x, y = values(dtype)
    proto = single(op, {"x": x, "y": y}, [kind(dtype)])
    after, context = carried(proto)
    with np.errstate(all="ignore"):
        function = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Max": np.maximum, "Min": np.minimum,
                    "Div": lambda a, b: (a // b).astype(dtype) if np.iinfo(dtype).min == 0 else np.trunc(a.astype(float) / b).astype(dtype),
                    "Mod": np.mod}[op]  # fmt: skip
        expected = function(x, y)
    # ONNX Runtime compares int64 as int32 in Max and Min.
    evaluate = in_reference if op in ("Max", "Min") else in_runtime
    found = evaluate(after, as_carried(after, {"x": x, "y": y}))[0]
    agree([found.astype(dtype)], [expected])
    assert any("now rather than" in note for note in context.notes)


def as_carried(after: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """uint64 goes into int64 by its bits."""
    return {
        n: a.view(np.int64) if a.dtype == np.uint64 else fitting(after, {n: a})[n] for n, a in feeds.items()
    }


def carried(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, Context]:
    """Legalized for a target that has these types at its border only, or not at all."""

    def refuses(model: ir.Model) -> list[int]:
        border = (*model.graph.inputs, *model.graph.outputs)
        if any(v.dtype in CARRIER and v.dtype not in AT_THE_BORDER for v in border):
            return list(range(len(model.graph)))
        return [
            i
            for i, n in enumerate(model.graph)
            if n.op_type != "Cast"
            and any(v is not None and v.dtype in CARRIER for v in (*n.inputs, *n.outputs))
        ]

    return rewritten(proto, refuses, io_types="widen")


@pytest.mark.parametrize("dtype", [*NARROW, np.uint8])
@pytest.mark.parametrize("op", ["Less", "Greater", "Equal", "LessOrEqual"])
def test_comparisons_keep_the_order(dtype: type, op: str) -> None:
    x, y = values(dtype)
    after, _ = carried(single(op, {"x": x, "y": y}, [9], opset=17))
    function = {"Less": np.less, "Greater": np.greater, "Equal": np.equal, "LessOrEqual": np.less_equal}[op]
    agree(in_runtime(after, as_carried(after, {"x": x, "y": y})), [function(x, y)])


def test_uint8_keeps_the_interface() -> None:
    x = np.array([250, 3, 128], np.uint8)
    after, _ = carried(single("Add", {"x": x, "y": x}, [2]))
    assert [v.type.tensor_type.elem_type for v in (*after.graph.input, *after.graph.output)] == [2, 2, 2]
    agree(in_runtime(after, {"x": x, "y": x}), [x + x])


def test_keep_leaves_the_interface_and_says_what_would_help() -> None:
    x = np.array([1, 2], np.uint16)
    proto = single("Add", {"x": x, "y": x}, [4])
    after, context = legalized(proto, ["Nothing"], io_types="keep")
    assert after.graph.input[0].type.tensor_type.elem_type == 4
    assert not context.firings


SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    448.0,
    464.0,
    465.0,
    57344.0,
    61440.0,
    7e4,
    1e-9,
    3e-8,
    -2e-5,
    np.inf,
    -np.inf,
    np.nan,
]


@pytest.mark.parametrize("dtype", list(FORMATS))
@settings(max_examples=25, deadline=None)
@given(numbers=st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_rounding_to_small_floats_is_that_of_ml_dtypes(dtype: ir.DataType, numbers: list[float]) -> None:
    if dtype == ir.DataType.FLOAT4E2M1:
        numbers = [n for n in numbers if np.isfinite(n)] or [0.0]
    x = np.array(numbers + ([] if dtype == ir.DataType.FLOAT4E2M1 else SPECIAL), np.float32)
    found = minifloat(dtype)(x)
    with np.errstate(all="ignore"):
        expected = x.astype(dtype.numpy()).astype(np.float32)
    np.testing.assert_array_equal(found, expected)


def minifloat(dtype: ir.DataType):
    """A function that rounds without saturation, which is what ml_dtypes does."""
    import onnxruntime as ort

    if dtype not in _SESSIONS:
        x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n"]))
        op = Draft(21)
        y = rounded(op, x, dtype, saturate=False)
        y.name = "y"
        for i, value in enumerate(op.constants):
            op.release(value)
            value.name = f"c{i}"
        graph = ir.Graph([x], [y], nodes=op.nodes, initializers=list(op.constants), opset_imports={"": 21})
        data = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
        _SESSIONS[dtype] = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda array: _SESSIONS[dtype].run(None, {"x": array})[0]


_SESSIONS: dict[ir.DataType, object] = {}


def test_infinities_saturate_where_asked() -> None:
    x = np.array([np.inf, -np.inf, 1e6, 500.0], np.float32)
    proto = single("Cast", {"x": x}, [17], to=17, saturate=1)
    after, _ = carried(proto)
    assert after.graph.output[0].type.tensor_type.elem_type == 1
    assert in_runtime(after, {"x": x})[0].tolist() == [448.0, -448.0, 448.0, 448.0]
    assert ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max == 448


@pytest.mark.parametrize("source", [np.int32, np.int64, np.float32])
@pytest.mark.parametrize("target", [np.int16, np.uint16, np.uint32])
def test_casts_wrap_around(source: type, target: type) -> None:
    x = np.array([0, 1, -1, 40000, 70000, -70000], source)
    if source is np.float32:
        x = np.array([0.0, 1.9, 3.0, 300.5], np.float32)
    after, _ = carried(single("Cast", {"x": x}, [kind(target)], to=kind(target)))
    agree([in_runtime(after, {"x": x})[0].astype(target)], [x.astype(target)])


def test_double_is_computed_in_float() -> None:
    x = np.array([1.5, -2.25, 1e-3], np.float64)
    after, _ = carried(single("Sin", {"x": x}, [11]))
    assert after.graph.input[0].type.tensor_type.elem_type == 11
    agree(in_runtime(after, {"x": x}), [np.sin(x)], rtol=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
def test_quantize_and_dequantize(dtype: type, symmetric: bool) -> None:
    info = np.iinfo(dtype)
    zero = np.array([0 if symmetric else info.max // 2 + 1], dtype)[0]
    scale = np.float32(0.25)
    x = np.array([0.0, 0.125, 0.375, -0.125, 1e6, -1e6, 3.3], np.float32)
    feeds = {"x": x, "s": np.asarray(scale), "z": np.asarray(zero)}
    proto = single("QuantizeLinear", feeds, [kind(dtype)])
    after, _ = carried(proto)
    agree([in_runtime(after, feeds)[0].astype(dtype)], in_reference(proto, feeds))
    levels = {"x": np.array([info.min, info.max, 5], dtype), "s": np.asarray(scale), "z": np.asarray(zero)}
    proto = single("DequantizeLinear", levels, [1])
    after, _ = carried(proto)
    agree(in_runtime(after, levels), in_reference(proto, levels))


@settings(max_examples=30, deadline=None)
@given(
    x=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8),
    y=st.lists(st.integers(1, 2**64 - 1), min_size=1, max_size=8),
)
def test_unsigned_division(x: list[int], y: list[int]) -> None:
    size = min(len(x), len(y))
    a, b = np.array(x[:size], np.uint64), np.array(y[:size], np.uint64)
    found = evaluate(lambda op, p, q: unsigned_div(op, p, q), a.view(np.int64), b.view(np.int64))
    assert found.view(np.uint64).tolist() == (a // b).tolist()


@settings(max_examples=30, deadline=None)
@given(x=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=8))
def test_wrapping(x: list[int]) -> None:
    array = np.array(x, np.int32)
    for dtype in (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16):
        found = evaluate(lambda op, p, _, d=dtype: wrap(op, p, d), array, array)
        assert found.tolist() == array.astype(dtype.numpy()).tolist()


def evaluate(build, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    dtype = ir.DataType.from_numpy(a.dtype)
    p, q = (ir.Value(name=n, type=ir.TensorType(dtype), shape=ir.Shape([a.size])) for n in "pq")
    op = Draft(21)
    y = build(op, p, q)
    y.name = "y"
    for i, value in enumerate(op.constants):
        op.release(value)
        value.name = f"c{i}"
    graph = ir.Graph([p, q], [y], nodes=op.nodes, initializers=list(op.constants), opset_imports={"": 21})
    return in_runtime(ir.to_proto(ir.Model(graph, ir_version=10)), {"p": a, "q": b})[0]


def test_uint8_around_128_becomes_int8_around_0() -> None:
    proto = parse(
        """g (float[4,3] x) => (float[4,2] y) <float s = {0.1}, uint8 z = {128}, float ws = {0.02}> {
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) e = DequantizeLinear(w, ws, z) y = MatMul(d, e)
        }""",
        weights={"w": np.arange(100, 106, dtype=np.uint8).reshape(3, 2)},
    )

    def refuses(model: ir.Model) -> list[int]:
        mine = [(i, n) for i, n in enumerate(model.graph) if n.op_type.endswith("tizeLinear")]
        return [i for i, n in mine if n.inputs[2].dtype == ir.DataType.UINT8]

    after, _ = rewritten(proto, refuses)
    assert [n.op_type for n in after.graph.node] == [n.op_type for n in proto.graph.node]
    feeds = {"x": np.linspace(-20, 20, 12, dtype=np.float32).reshape(4, 3)}
    agree(in_runtime(after, feeds), in_runtime(proto, feeds))


def test_int32_bias_becomes_a_float_constant() -> None:
    proto = parse(
        "g (float[3] x) => (float[3] y) <float s = {0.5}> { b = DequantizeLinear(w, s) y = Add(x, b) }",
        weights={"w": np.array([3, -4, 5], np.int32)},
    )
    after, _ = legalized(proto, ["DequantizeLinear"])
    assert [n.op_type for n in after.graph.node] == ["Add"]
    agree(in_runtime(after, {"x": np.ones(3, np.float32)}), [np.array([2.5, -1.0, 3.5], np.float32)])


@pytest.mark.parametrize("narrow", [np.int16, np.uint16])
def test_floats_out_of_range_become_numbers_of_the_narrow_type(narrow: type) -> None:
    """As torch and ONNX Runtime have it on x86; what follows must not see a number that the type lacks."""
    x = np.array([-2.7, -1.0, 0.5, 127.9, 300.5, -129.0, 32768.0, 65535.0, 65536.0, -70000.0], np.float32)
    text = f"g (float[n] x) => (int32[n] y) {{ c = Cast<to={kind(narrow)}>(x) t = Abs(c) y = Cast<to=6>(t) }}"
    after, _ = carried(parse(text))
    for part in (x, x[:3]):
        (found,) = in_runtime(after, {"x": part})
        agree([found], [np.abs(np.trunc(part).astype(np.int64).astype(narrow)).astype(np.int32)])
