"""The wire-format walk: lifting payloads out and putting them back must change nothing."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from onnxlathe.model.protos import tensors_of
from onnxlathe.model.wire import Payload, Source, WireError, elide, placeholder, size_of, splice

MIN = 16  # small, so that random models have payloads on both sides of the threshold

names = st.text(max_size=20)


@st.composite
def tensors(draw: st.DrawFn) -> TensorProto:
    tensor = TensorProto(name=draw(names), dims=draw(st.lists(st.integers(0, 300), max_size=3)))
    kind = draw(st.sampled_from(["raw", "float", "double", "int64", "int32", "string", "external", "none"]))
    if kind == "raw":
        tensor.data_type = TensorProto.INT8
        tensor.raw_data = draw(st.binary(max_size=200))
    elif kind == "float":
        tensor.data_type = TensorProto.FLOAT
        tensor.float_data.extend(draw(st.lists(st.floats(width=32, allow_nan=False), max_size=20)))
    elif kind == "double":
        tensor.data_type = TensorProto.DOUBLE
        tensor.double_data.extend(draw(st.lists(st.floats(allow_nan=False), max_size=20)))
    elif kind == "int64":
        tensor.data_type = TensorProto.INT64
        tensor.int64_data.extend(draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20)))
    elif kind == "int32":
        tensor.data_type = TensorProto.INT32
        tensor.int32_data.extend(draw(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=20)))
    elif kind == "string":
        tensor.data_type = TensorProto.STRING
        tensor.string_data.extend(draw(st.lists(st.binary(max_size=30), max_size=5)))
    elif kind == "external":
        tensor.data_type = TensorProto.FLOAT
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=draw(names))
        tensor.raw_data = draw(st.binary(max_size=50))  # to be ignored, but kept
    tensor.doc_string = draw(names)
    return tensor


@st.composite
def graphs(draw: st.DrawFn, depth: int = 2) -> onnx.GraphProto:
    graph = onnx.GraphProto(name=draw(names))
    graph.initializer.extend(draw(st.lists(tensors(), max_size=3)))
    for _ in range(draw(st.integers(0, 3))):
        node = graph.node.add(op_type=draw(names), input=draw(st.lists(names, max_size=2)))
        for _ in range(draw(st.integers(0, 2))):
            attribute = node.attribute.add(
                name=draw(names), ints=draw(st.lists(st.integers(0, 9), max_size=9))
            )
            kind = draw(st.sampled_from(["t", "tensors", "g", "graphs", "s"]))
            if kind == "t":
                attribute.t.CopyFrom(draw(tensors()))
            elif kind == "tensors":
                attribute.tensors.extend(draw(st.lists(tensors(), max_size=2)))
            elif kind == "s":
                attribute.s = draw(st.binary(max_size=100))
            elif depth and kind == "g":
                attribute.g.CopyFrom(draw(graphs(depth=depth - 1)))
            elif depth:
                attribute.graphs.extend(draw(st.lists(graphs(depth=depth - 1), max_size=2)))
    return graph


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    model = onnx.ModelProto(ir_version=draw(st.integers(1, 2**40)), doc_string=draw(names))
    model.graph.CopyFrom(draw(graphs()))
    for _ in range(draw(st.integers(0, 2))):
        function = model.functions.add(name=draw(names))
        function.node.extend(draw(graphs(depth=1)).node)
    return model


def as_raw(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with every payload that is elided written as raw_data."""
    import numpy as np

    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in tensors_of(result):
        if tensor.data_location == TensorProto.EXTERNAL:
            continue
        for field, dtype in (("float_data", "<f4"), ("double_data", "<f8")):
            data = np.array(getattr(tensor, field), dtype=dtype).tobytes()
            if len(data) >= MIN:
                tensor.ClearField(field)
                tensor.raw_data = data
    return result


@settings(max_examples=150, deadline=None)
@given(models())
def test_splice_is_the_inverse_of_elide(model: onnx.ModelProto) -> None:
    data = model.SerializeToString()
    elided = elide(Source.of(data), MIN)
    reduced = onnx.ModelProto.FromString(elided.data)
    for tensor in tensors_of(reduced):
        if tensor.data_location != TensorProto.EXTERNAL:
            assert max(len(tensor.raw_data), 4 * len(tensor.float_data), 8 * len(tensor.double_data)) < MIN
    pieces = splice(elided.data, elided.token, elided.payloads)
    written = b"".join(
        piece if isinstance(piece, bytes) else data[piece.offset : piece.offset + piece.nbytes]
        for piece in pieces
        if isinstance(piece, (bytes, Payload))
    )
    assert len(written) == size_of(pieces)
    assert onnx.ModelProto.FromString(written) == as_raw(model)


def test_windows_do_not_matter() -> None:
    """The same walk when every read goes through small windows of a file."""
    model = onnx.ModelProto(ir_version=8)
    for index in range(300):
        model.graph.initializer.add(name="w" * index, raw_data=bytes(index * 37), data_type=2)
        model.graph.node.add(op_type="Add", doc_string="x" * (index * 11))
    data = model.SerializeToString()
    reads: list[int] = []

    def read(start: int, end: int) -> bytes:
        assert 0 <= start <= end <= len(data)
        reads.append(end - start)
        return data[start:end]

    one, two = elide(Source(read, len(data))), elide(Source.of(data))
    assert one.payloads == two.payloads
    assert len(one.payloads) == 300 - 28
    assert one.data.replace(one.token.encode(), two.token.encode()) == two.data


def test_weights_are_not_read() -> None:
    model = onnx.ModelProto(ir_version=8)
    for _ in range(10):
        model.graph.initializer.add(raw_data=bytes(1 << 20), data_type=2)
    data = model.SerializeToString()
    read = 0

    def reading(start: int, end: int) -> bytes:
        nonlocal read
        read += end - start
        return data[start:end]

    elide(Source(reading, len(data)))
    assert read < 200_000


def test_a_payload_in_parts_is_left_to_protobuf() -> None:
    """A packed field may come in several parts; eliding one of them would lose the others."""
    tensor = b"\x10\x01" + 2 * (b"\x22\x80\x10" + bytes(2048))  # data_type FLOAT, float_data twice
    graph = b"\x2a" + bytes([len(tensor) & 127 | 128, len(tensor) >> 7]) + tensor
    data = b"\x3a" + bytes([len(graph) & 127 | 128, len(graph) >> 7]) + graph
    assert len(onnx.ModelProto.FromString(data).graph.initializer[0].float_data) == 1024
    elided = elide(Source.of(data))
    assert not elided.payloads
    assert elided.data == data


@pytest.mark.parametrize(
    ("data", "at"),
    [
        (b"\x3a\x05\x0a", 0),  # graph of 5 bytes, 1 there
        (b"\x08\x80\x80", 0),  # a varint that does not end
        (b"\x08\x01\x3b", 2),  # a group
        (b"\x02\x00", 0),  # field number 0
        (b"\x3a" + b"\xff" * 11, 0),  # a length of eleven bytes
        (b"\x0d\x00\x00", 0),  # a fixed32 cut off
    ],
)
def test_malformed(data: bytes, at: int) -> None:
    with pytest.raises(WireError) as error:
        elide(Source.of(data))
    assert error.value.at >= at


def test_nesting_is_bounded() -> None:
    inner = b"\x12" + b"\x88\x10" + b"x" * 2056
    for _ in range(300):  # node(1) > attribute(5) > graph(6)
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            inner = tag + _varint(len(inner)) + inner
    with pytest.raises(WireError, match="nested"):
        elide(Source.of(b"\x3a" + _varint(len(inner)) + inner))


def _varint(value: int) -> bytes:
    from onnxlathe.model.wire import varint

    return varint(value)


def test_placeholder_is_no_file_name_that_a_model_could_have() -> None:
    elided = elide(Source.of(onnx.ModelProto(ir_version=8).SerializeToString()))
    assert elided.payload("weights.bin") is None
    assert placeholder(elided.token, 7).startswith(elided.token)
