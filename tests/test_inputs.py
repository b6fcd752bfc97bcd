"""What inputs need, how the user says it, and writing it into the model."""

from __future__ import annotations

import contextlib

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import parse
from onnxlathe.errors import ModelError, UsageError
from onnxlathe.model import Model
from onnxlathe.model.shapes import (
    InputSpec,
    concrete_shape,
    evaluate,
    freeze,
    input_specs,
    parse_dim,
    parse_shape,
    resolve,
    symbols_in,
)

FLOAT = ir.DataType.FLOAT
IMAGE = InputSpec("input", FLOAT, ("batch", 3, 224, "width"))
COLON = InputSpec("input:0", FLOAT, (None, 8))
SCALAR = InputSpec("rate", FLOAT, ())


def model(text: str, opset: int = 17) -> Model:
    return Model(ir.from_proto(parse(text, opset)))


@pytest.mark.parametrize(
    "dims", ["2x3x224x64", "2,3,224,64", "[2,3,224,64]", "[2, 3, 224, 64]", "(2,3,224,64)"]
)
def test_every_spelling_of_a_shape(dims: str) -> None:
    assert parse_shape(f"input:{dims}", [IMAGE, SCALAR]) == (IMAGE, (2, 3, 224, 64))
    assert parse_shape(dims, [IMAGE])[1] == (2, 3, 224, 64)


def test_symbols_and_placeholders_are_kept() -> None:
    assert parse_shape("input:batchx3x224xwidth", [IMAGE])[1] == ("batch", 3, 224, "width")
    assert parse_shape("input:?x3x224x-1", [IMAGE])[1] == (None, 3, 224, None)
    long = InputSpec("ids", FLOAT, ("max_batch", "max_len"))
    assert parse_shape("ids:max_batchxmax_len", [long])[1] == ("max_batch", "max_len")
    assert parse_shape("ids:4xmax_len", [long])[1] == (4, "max_len")


def test_scalars_and_names_with_colons() -> None:
    assert parse_shape("rate:[]", [IMAGE, SCALAR]) == (SCALAR, ())
    assert parse_shape("input:0:4x8", [IMAGE, COLON]) == (COLON, (4, 8))
    assert resolve([COLON], shapes=["input:0:4x8"]) == {"input:0_dim_0": 4}


NAME = st.from_regex(r"[a-z][a-z0-9_.:/]{0,8}", fullmatch=True)
SIZE = st.integers(0, 10**6)


@settings(max_examples=150, deadline=None)
@given(NAME, st.lists(SIZE, max_size=6), st.sampled_from(["x", ",", ", ", "[,]", "[, ]"]))
def test_any_shape_in_any_spelling_reads_back(name: str, sizes: list[int], spelling: str) -> None:
    spec = InputSpec(name, FLOAT, tuple(f"d{i}" for i in range(len(sizes))))
    words = spelling.strip("[]").join(map(str, sizes))
    bare = spelling[0] != "[" and len(sizes) > 0
    text = f"{name}:{words}" if bare else f"{name}:[{words}]"
    found, dims = parse_shape(text, [spec, InputSpec(name + "z", FLOAT, ())])
    assert (found, dims) == (spec, tuple(sizes))
    bindings = resolve([spec], shapes=[text])
    assert concrete_shape(spec, bindings) == tuple(sizes)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    for specs in ([IMAGE, COLON, SCALAR], [IMAGE]):
        try:
            resolve(specs, shapes=[text])
        except UsageError:
            continue
    with contextlib.suppress(UsageError):
        parse_dim(text)
    evaluate(text, {"a": 1})
    symbols_in(text)


@pytest.mark.parametrize(
    ("shapes", "dims", "says"),
    [
        (["inptu:1x3x224x2"], [], "no input is called 'inptu'"),
        (["input:1x3x225x2"], [], "dimension 2 of input 'input' is 224, not 225"),
        (["input:1x3x224"], [], "3 dimensions for an input of rank 4"),
        (["input:1x3x!x2"], [], "is not a dimension"),
        (["input:Nx3x224xwidth"], [], "dimension 0 of input 'input' is batch, not N"),
        (["input:1x3x224x2"], ["batch=2"], "dimension 'batch' cannot be 2 (--dim batch=2) and 1"),
        ([], ["bathc=2"], "no input has a dimension 'bathc'"),
        ([], ["batch=-2"], "not a dimension and a size"),
        ([], ["batch=two"], "not a dimension and a size"),
        (["input"], [], "the shape is missing"),
        (["1x3x224x2"], [], "which input is meant?"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(shapes: list[str], dims: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve([IMAGE, SCALAR], shapes=shapes, dims=dims)
    assert says in caught.value.message


def test_nearest_names_are_suggested() -> None:
    with pytest.raises(UsageError) as caught:
        resolve([IMAGE], dims=["bathc=2"])
    assert "'batch'" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        resolve([IMAGE], shapes=["inptu:1x3x224x2"])
    assert "'input'" in caught.value.hint


def test_one_symbol_has_one_size_over_inputs_and_expressions() -> None:
    past = InputSpec("past", FLOAT, ("batch", "past"))
    mask = InputSpec("mask", FLOAT, ("batch", "past + seq"))
    ids = InputSpec("ids", FLOAT, ("batch", "seq"))
    specs = [past, mask, ids]
    assert resolve(specs, shapes=["past:2x5", "ids:2x3"]) == {"batch": 2, "past": 5, "seq": 3}
    assert concrete_shape(mask, {"batch": 2, "past": 5, "seq": 3}) == (2, 8)
    with pytest.raises(UsageError, match="'batch' cannot be 2"):
        resolve(specs, shapes=["past:2x5", "ids:3x3"])
    with pytest.raises(UsageError, match=r"'past \+ seq' comes out as 8"):
        resolve(specs, shapes=["past:2x5", "ids:2x3", "mask:2,9"])
    with pytest.raises(UsageError) as caught:
        concrete_shape(ids, {"batch": 2})
    assert "--dim seq=SIZE" in caught.value.hint


def test_expressions() -> None:
    assert evaluate("2*h + w//3 - 1", {"h": 4, "w": 7}) == 9
    assert evaluate("max(a, 3)", {"a": 1}) == 3
    assert evaluate("a + b", {"a": 1}) is None
    assert evaluate("batch-size", {"batch-size": 4}) == 4
    assert evaluate("__import__('os')", {}) is None
    assert evaluate("a // b", {"a": 1, "b": 0}) is None
    assert symbols_in("past + seq") == {"past", "seq"}


def test_defaults_are_not_inputs_and_sequences_are_refused() -> None:
    text = "g (float[n, 4] x, float[4] w = {1, 2, 3, 4}) => (float[n, 4] y) { y = Add(x, w) }"
    assert [str(s) for s in input_specs(model(text))] == ["x: FLOAT [n, 4]"]
    with pytest.raises(ModelError, match="'s' is a sequence"):
        input_specs(model("g (seq(float[n]) s) => (int64 y) { y = SequenceLength(s) }"))


def test_freezing_leaves_no_stale_symbol() -> None:
    frozen = model(
        "g (float[n, s] x, float[n, m] z) => (float[two_n, s] y, float[n, q] r)"
        "{ y = Concat<axis=0>(x, x)  r = Concat<axis=1>(x, z) }"
    )
    y = frozen.graph.outputs[0]
    y.shape = ir.Shape(["2*n", "s"])
    frozen.graph.outputs[1].shape = ir.Shape(["n", "m + s"])
    assert freeze(frozen, {"n": 3, "s": 5}) == 3
    assert [str(v.shape) for v in frozen.graph.inputs] == ["[3,5]", "[3,m]"]
    assert str(y.shape) == "[6,5]"
    text = str(frozen.graph.outputs[1].shape[1])
    assert evaluate(text, {"m": 2}) == 7


def test_freezing_unnamed_dimensions() -> None:
    frozen = model("g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }")
    frozen.graph.inputs[0].shape = ir.Shape([None, 4])
    assert resolve(input_specs(frozen), dims=["x_dim_0=2"]) == {"x_dim_0": 2}
    assert freeze(frozen, {"x_dim_0": 2}) == 1
    assert str(frozen.graph.inputs[0].shape) == "[2,4]"
