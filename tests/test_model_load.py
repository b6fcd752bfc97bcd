"""Loading: weights stay on disk, what is wrong is said, what can be repaired is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxlathe import Model, ModelError, is_overridable, load, save
from onnxlathe.model import FileTensor, digest

FIXTURES = sorted((Path(__file__).parent.parent / "fixtures").glob("**/*.onnx"))
RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def value(name: str, shape: list[int | str] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape or ["n", 32])


def graph(nodes: list, inputs=("x",), outputs=("y",), initializers=(), name="g") -> onnx.GraphProto:
    arrays = [numpy_helper.from_array(a, n) if isinstance(a, np.ndarray) else a for n, a in initializers]
    return helper.make_graph(nodes, name, [value(i) for i in inputs], [value(o) for o in outputs], arrays)


def model(*args, opset: int = 17, ir_version: int = 8, **kwargs) -> onnx.ModelProto:
    made = helper.make_model(graph(*args, **kwargs), opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = ir_version
    return made


def node(op: str, inputs: list[str], outputs: list[str], name: str = "", **attributes) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, name=name, **attributes)


def big(weight: np.ndarray | None = None) -> onnx.ModelProto:
    weight = floats(32, 32) if weight is None else weight
    return model([node("MatMul", ["x", "w"], ["y"], "mm")], initializers=[("w", weight)])


@pytest.fixture
def file(tmp_path: Path) -> Callable[[onnx.ModelProto | bytes], Path]:
    def write(content: onnx.ModelProto | bytes) -> Path:
        path = tmp_path / "model.onnx"
        path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
        return path

    return write


def refused(path: Path | str, *words: str, strict: bool = False) -> ModelError:
    with pytest.raises(ModelError) as error:
        load(path, strict=strict)
    text = f"{error.value.message} {error.value.hint}"
    for word in words:
        assert word in text, f"{word!r} not in {text!r}"
    return error.value


# Weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_fixture_has_the_same_nodes_and_weights(path: Path) -> None:
    loaded, expected = load(path), onnx.load(path)
    assert not loaded.repairs
    assert [n.op_type for n in loaded.graph] == [n.op_type for n in expected.graph.node]
    assert all(n.name for n in loaded.nodes())
    for tensor in expected.graph.initializer:
        found = loaded.graph.initializers[tensor.name].const_value
        np.testing.assert_array_equal(found.numpy(), numpy_helper.to_array(tensor))
        on_disk = isinstance(found, FileTensor)
        assert on_disk or found.dtype == ir.DataType.STRING or found.nbytes < 1024
        assert not on_disk or found.external or found.nbytes >= 1024


def test_big_weights_are_on_disk_and_small_ones_in_memory(file) -> None:
    weight = floats(32, 32)
    made = model(
        [node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "b"], ["y"])],
        initializers=[("w", weight), ("b", floats(32))],
    )
    loaded = load(file(made))
    tensor = loaded.graph.initializers["w"].const_value
    assert isinstance(tensor, FileTensor)
    assert tensor.nbytes == 4096
    assert tensor.dtype == ir.DataType.FLOAT
    assert list(tensor.shape) == [32, 32]
    assert tensor.tobytes() == weight.tobytes()
    np.testing.assert_array_equal(tensor.numpy(), weight)
    np.testing.assert_array_equal(np.asarray(tensor), weight)
    assert not isinstance(loaded.graph.initializers["b"].const_value, FileTensor)


def test_reading_does_not_keep(file) -> None:
    tensor = load(file(big())).graph.initializers["w"].const_value
    assert tensor.numpy() is not tensor.numpy()
    assert not tensor.numpy().flags.writeable


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
def test_packed_typed_fields_are_lifted_too(file, dtype) -> None:
    array = RNG.standard_normal((16, 32)).astype(dtype)
    made = big()
    tensor = made.graph.initializer[0]
    tensor.CopyFrom(helper.make_tensor("w", helper.np_dtype_to_tensor_dtype(array.dtype), [16, 32], array))
    assert not tensor.HasField("raw_data")
    found = load(file(made)).graph.initializers["w"].const_value
    assert isinstance(found, FileTensor)
    np.testing.assert_array_equal(found.numpy(), array)


@pytest.mark.parametrize(
    "dtype",
    [
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e5m2,
        ml_dtypes.int4,
        ml_dtypes.uint4,
        ml_dtypes.float4_e2m1fn,
        np.float16,
        np.int8,
        np.bool_,
    ],
)
def test_element_types(file, dtype) -> None:
    array = (RNG.integers(0, 2, (51, 101))).astype(dtype)  # odd: the last byte of 4-bit types is padded
    made = big()
    made.graph.initializer[0].CopyFrom(ir.to_proto(ir.Tensor(array, name="w")))
    found = load(file(made)).graph.initializers["w"].const_value
    assert isinstance(found, FileTensor)
    assert found.numpy().dtype == array.dtype
    np.testing.assert_array_equal(found.numpy(), array)
    assert digest(found) == digest(ir.Tensor(array))


def test_weights_everywhere(file) -> None:
    """In attributes, in branches, in functions: everywhere they stay on disk."""
    arrays = {name: floats(8, 32, 32) for name in ("then", "else", "const", "function")}

    def constant(name: str, output: str) -> onnx.NodeProto:
        return node("Constant", [], [output], value=numpy_helper.from_array(arrays[name]))

    then = graph([node("Identity", ["t"], ["a"])], [], ["a"], [("t", arrays["then"])])
    other = graph([constant("else", "b")], [], ["b"])
    made = model(
        [
            constant("const", "c"),
            node("If", ["flag"], ["i"], then_branch=then, else_branch=other),
            helper.make_node("F", ["x"], ["f"], domain="local"),
            node("Sum", ["c", "i", "f"], ["y"]),
        ],
        initializers=[("flag", np.array(True))],
    )
    made.functions.append(
        helper.make_function(
            "local", "F", ["p"], ["q"], [constant("function", "k"), node("Add", ["p", "k"], ["q"])],
            [helper.make_opsetid("", 17)],
        )
    )  # fmt: skip
    made.opset_import.append(helper.make_opsetid("local", 1))
    loaded = load(file(made))
    found = [v.const_value for g in loaded.graphs() for v in g.initializers.values() if v.name != "flag"]
    found += [n.attributes["value"].as_tensor() for n in loaded.nodes() if n.op_type == "Constant"]
    assert len(found) == 4
    assert all(isinstance(tensor, FileTensor) for tensor in found)
    assert {t.tobytes() for t in found} == {a.tobytes() for a in arrays.values()}


def test_data_survive_the_deletion_of_the_file(file) -> None:
    weight = floats(32, 32)
    path = file(big(weight))
    loaded = load(path)
    path.unlink()
    np.testing.assert_array_equal(loaded.graph.initializers["w"].const_value.numpy(), weight)


def test_a_change_of_the_file_is_noticed(file) -> None:
    path = file(big())
    tensor = load(path).graph.initializers["w"].const_value
    with path.open("r+b") as stream:
        stream.write(b"\x08")
    os.utime(path, ns=(1, 1))
    with pytest.raises(ModelError, match="changed"):
        tensor.numpy()
    with pytest.raises(ModelError, match="changed"):
        list(tensor.chunks(100))


def test_truncation_after_loading_is_noticed(file) -> None:
    path = file(big())
    tensor = load(path).graph.initializers["w"].const_value
    os.truncate(path, 100)
    with pytest.raises(ModelError, match="changed"):
        tensor.tobytes()


def test_chunks_and_files(file, tmp_path) -> None:
    weight = floats(32, 32)
    tensor = load(file(big(weight))).graph.initializers["w"].const_value
    assert b"".join(bytes(part) for part in tensor.chunks(1000)) == weight.tobytes()
    assert max(len(part) for part in tensor.chunks(1000)) == 1000
    with (tmp_path / "out").open("w+b") as stream:
        tensor.tofile(stream)
        stream.flush()
        tensor.copy_to(stream.fileno(), 5000)
    data = (tmp_path / "out").read_bytes()
    assert data[:4096] == weight.tobytes() == data[5000:]


def test_copying_without_help_of_the_kernel(file, tmp_path, monkeypatch) -> None:
    def no(*_: object) -> int:
        raise OSError(18, "Invalid cross-device link")

    weight = floats(32, 32)
    tensor = load(file(big(weight))).graph.initializers["w"].const_value
    monkeypatch.setattr(os, "copy_file_range", no, raising=False)
    with (tmp_path / "out").open("w+b") as stream:
        tensor.copy_to(stream.fileno(), 10)
    assert (tmp_path / "out").read_bytes()[10:] == weight.tobytes()


# External data ----------------------------------------------------------------------------------------


def external(tmp_path: Path, weight: np.ndarray, location: str = "w.bin", **entries: int) -> Path:
    made = big(weight)
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(text))
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    (folder / "m.onnx").write_bytes(made.SerializeToString())
    return folder / "m.onnx"


@pytest.mark.parametrize("offset", [None, 0, 128, 77])
def test_external_data(tmp_path: Path, offset: int | None) -> None:
    weight = floats(32, 32)
    entries = {} if offset is None else {"offset": offset, "length": 4096}
    path = external(tmp_path, weight, **entries)
    (path.parent / "w.bin").write_bytes(bytes(offset or 0) + weight.tobytes())
    tensor = load(path).graph.initializers["w"].const_value
    assert isinstance(tensor, FileTensor)
    assert tensor.external
    np.testing.assert_array_equal(tensor.numpy(), weight)


def test_external_data_outside(tmp_path: Path) -> None:
    weight = floats(32, 32)
    (tmp_path / "secret").write_bytes(weight.tobytes())
    for location in ("../secret", str(tmp_path / "secret"), "sub/../../secret"):
        refused(external(tmp_path, weight, location), "'w'", "outside the model's folder")


def test_external_data_by_a_link_outside(tmp_path: Path) -> None:
    weight = floats(32, 32)
    (tmp_path / "secret").write_bytes(weight.tobytes())
    path = external(tmp_path, weight)
    (path.parent / "w.bin").symlink_to(tmp_path / "secret")
    refused(path, "link", "outside")
    (path.parent / "w.bin").unlink()
    (path.parent / "real.bin").write_bytes(weight.tobytes())
    (path.parent / "w.bin").symlink_to(path.parent / "real.bin")
    load(path)


def test_links_as_in_the_hugging_face_cache(tmp_path: Path) -> None:
    weight = floats(32, 32)
    path = external(tmp_path, weight)
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    path.rename(blobs / "aaa")
    (blobs / "bbb").write_bytes(weight.tobytes())
    (snapshot / "m.onnx").symlink_to(blobs / "aaa")
    (snapshot / "w.bin").symlink_to(blobs / "bbb")
    np.testing.assert_array_equal(
        load(snapshot / "m.onnx").graph.initializers["w"].const_value.numpy(), weight
    )


def test_external_data_that_do_not_fit(tmp_path: Path) -> None:
    weight = floats(32, 32)
    refused(external(tmp_path, weight), "w.bin", "no such file")
    (tmp_path / "model" / "w.bin").write_bytes(weight.tobytes())
    refused(external(tmp_path, weight, offset=1), "'w'", "1 to 4097", "has 4096 bytes")
    refused(external(tmp_path, weight, offset=10**15), "'w'", "has 4096 bytes")
    refused(external(tmp_path, weight, offset=-1, length=4096), "'w'")
    refused(external(tmp_path, weight, length=4000), "'w'", "4000", "4096")
    refused(external(tmp_path, weight, offset="many"), "'w'", "no number")  # type: ignore[arg-type]
    refused(external(tmp_path, weight, ""), "'w'", "no location")
    (tmp_path / "model" / "sub").mkdir()
    refused(external(tmp_path, weight, "sub"), "not a regular file")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "model" / "pipe")
        refused(external(tmp_path, weight, "pipe"), "not a regular file")


def test_more_data_files_than_may_be_open(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    made = model([node("Sum", [f"w{i}" for i in range(300)], ["y"])], initializers=[])
    for i in range(300):
        array = np.full(256, i, np.float32)
        (folder / f"w{i}").write_bytes(array.tobytes())
        tensor = made.graph.initializer.add(name=f"w{i}", data_type=1, dims=[256], data_location=1)
        tensor.external_data.add(key="location", value=f"w{i}")
    (folder / "m.onnx").write_bytes(made.SerializeToString())
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    loaded = load(folder / "m.onnx")
    if before:
        assert len(os.listdir("/proc/self/fd")) - before < 200
    assert [loaded.graph.initializers[f"w{i}"].const_value.numpy()[0] for i in (0, 299)] == [0, 299]
    (folder / "w299").unlink()
    (folder / "w299").write_bytes(np.zeros(256, np.float32).tobytes())
    with pytest.raises(ModelError, match=r"w299.* (replaced|changed)"):
        loaded.graph.initializers["w299"].const_value.numpy()


# What is no model -------------------------------------------------------------------------------------


def test_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "missing.onnx", "missing.onnx", "no such file")
    refused(tmp_path, "is a directory")
    (tmp_path / "some.onnx").write_bytes(b"")
    refused(tmp_path, "some.onnx")
    refused(tmp_path / "some.onnx", "empty")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        refused(tmp_path / "pipe", "not a regular file")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04" + bytes(100), "zip archive"),
        (b"\x80\x02}q\x00." + bytes(100), "pickle"),
        (b"<!DOCTYPE html><html><body>404", "HTML"),
        (b"\n <html><body>404", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "Git LFS"),
        (b'{"graph": {"node": []}}', "JSON"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(100), "TensorFlow Lite"),
        (b"ftrt" + bytes(100), "TensorRT engine"),
        (b"<ir_version: 8, opset_import: ['' : 17]>", "text form"),
        (b"ir_version: 8\ngraph {\n", "text form"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b'\x40\x00\x00\x00\x00\x00\x00\x00{"w":', "safetensors"),
        (b"\x0a\x10GraphDef-like...", "no ONNX model"),
        (b"\x00" * 100, "no ONNX model"),
        (os.urandom(1) + b"\xff" * 100, ""),
        (b"MZ\x90\x00", "no ONNX model"),
    ],
)
def test_wrong_magic(file, content: bytes, words: str) -> None:
    refused(file(content), words)


def test_a_tensor_is_no_model(file) -> None:
    refused(file(numpy_helper.from_array(floats(3)).SerializeToString()), "no")
    refused(file(onnx.ModelProto(ir_version=8).SerializeToString()), "no graph")


@pytest.mark.parametrize("kept", [0.999, 0.9, 0.5, 0.1])
def test_truncated(file, kept: float) -> None:
    data = big(floats(64, 64)).SerializeToString()
    refused(file(data[: int(len(data) * kept)]), "truncated", "bytes")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_never_gives_a_traceback(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever is done to the bytes, the result is a model or a ModelError."""
    content = bytearray(FUZZED)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["flip", "set", "cut", "drop", "repeat"]))
        if kind == "flip":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "set":
            content[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del content[at + 1 :]
        elif kind == "drop":
            del content[at : at + data.draw(st.integers(1, 20))]
        else:
            content[at:at] = content[at : at + data.draw(st.integers(1, 40))]
        if not content:
            break
    path = tmp_path / "fuzzed.onnx"
    path.write_bytes(content)
    try:
        save(load(path), tmp_path / "saved.onnx")
    except ModelError:
        return
    load(tmp_path / "saved.onnx")


def _fuzzed() -> bytes:
    branch = graph([node("Add", ["h", "s"], ["b"])], [], ["b"], [("s", floats(32))], name="branch")
    made = model(
        [
            node("MatMul", ["x", "w"], ["h"], "mm"),
            node("Cast", ["h"], ["flag"], to=9),
            node("If", ["flag"], ["i"], then_branch=branch, else_branch=branch),
            helper.make_node("F", ["i"], ["y"], domain="local", alpha=0.5, axes=[1, 2], mode="up"),
        ],
        initializers=[
            ("w", floats(16, 17)),
            ("names", numpy_helper.from_array(np.array(["a", "b"]), "names")),
        ],
    )
    made.functions.append(
        helper.make_function("local", "F", ["p"], ["q"], [node("Relu", ["p"], ["q"])], made.opset_import)
    )
    made.opset_import.append(helper.make_opsetid("local", 1))
    made.metadata_props.add(key="k", value="v")
    return made.SerializeToString()


FUZZED = _fuzzed()


# What no model may do ---------------------------------------------------------------------------------


def test_newer_than_we_know(file) -> None:
    relu = [node("Relu", ["x"], ["y"])]
    refused(file(model(relu, ir_version=onnx.IR_VERSION + 1)), "IR version", "Upgrade")
    refused(file(model(relu, opset=onnx.defs.onnx_opset_version() + 1)), "opset", "Upgrade")


def test_missing_opset(file) -> None:
    made = model([node("Relu", ["x"], ["y"])], ir_version=8)
    del made.opset_import[:]
    path = file(made)
    loaded = load(path)
    assert loaded.opset == max(row[2] for row in helper.VERSION_TABLE if row[1] <= 8)
    assert "imports no opset" in loaded.repairs[0]
    refused(path, "imports no opset", strict=True)


def test_opset_spellings(file) -> None:
    made = model([helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")])
    made.opset_import[0].domain = "ai.onnx"
    loaded = load(file(made))
    assert loaded.ir.opset_imports == {"": 17}
    assert loaded.count_operators() == {"Relu": 1}
    made.opset_import.append(helper.make_opsetid("", 18))
    refused(file(made), "17", "18")


def test_missing_custom_opset_and_ir_version(file) -> None:
    made = model([helper.make_node("Foo", ["x"], ["y"], domain="my")])
    made.ClearField("ir_version")
    loaded = load(file(made))
    assert loaded.ir.opset_imports == {"": 17, "my": 1}
    assert loaded.ir.ir_version == 8
    assert len(loaded.repairs) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.dims.append(2), ("'w'", "[32, 32, 2]", "8192", "4096")),
        (lambda t: setattr(t, "raw_data", t.raw_data[:-1]), ("'w'", "4096 bytes", "4095")),
        (lambda t: setattr(t, "raw_data", b"1234"), ("'w'", "4096 bytes", "has 4")),
        (lambda t: t.ClearField("raw_data"), ("'w'", "1024 elements", "has 0")),
        (lambda t: setattr(t, "data_type", 99), ("'w'", "99", "does not exist")),
        (lambda t: setattr(t, "data_type", 0), ("'w'", "does not exist")),
        (lambda t: setattr(t, "data_type", 11), ("'w'", "8192 bytes")),
        (lambda t: setattr(t, "data_type", 8), ("'w'", "strings")),
        (lambda t: t.dims.__setitem__(0, -32), ("'w'", "negative")),
    ],
)
def test_tensors_that_do_not_fit_their_shape(file, change, words) -> None:
    made = big()
    change(made.graph.initializer[0])
    refused(file(made), *words)


def test_float_data_of_a_wrong_type(file) -> None:
    made = big()
    tensor = made.graph.initializer[0]
    tensor.CopyFrom(
        TensorProto(name="w", data_type=TensorProto.INT32, dims=[32, 32], float_data=[0.0] * 1024)
    )
    refused(file(made), "'w'", "float_data")


def test_unsorted(file) -> None:
    nodes = [
        node("Relu", ["b"], ["y"], "last"),
        node("Relu", ["a"], ["b"], "mid"),
        node("Relu", ["x"], ["a"], "first"),
    ]
    path = file(model(nodes))
    loaded = load(path)
    assert [n.name for n in loaded.graph] == ["first", "mid", "last"]
    assert "topological order" in loaded.repairs[0]
    refused(path, "topological order", strict=True)


def test_unsorted_because_of_a_branch(file) -> None:
    """A node also needs what its subgraphs take from around it."""
    branch = graph([node("Relu", ["late"], ["b"])], [], ["b"])
    nodes = [
        node("If", ["flag"], ["y"], "if", then_branch=branch, else_branch=branch),
        node("Relu", ["x"], ["late"], "late"),
    ]
    loaded = load(file(model(nodes, initializers=[("flag", np.array(True))])))
    assert [n.name for n in loaded.graph] == ["late", "if"]


def test_unsorted_inside_a_branch_and_a_function(file) -> None:
    branch = graph([node("Relu", ["m"], ["b"]), node("Relu", ["x"], ["m"])], [], ["b"])
    made = model(
        [
            node("If", ["flag"], ["i"], then_branch=branch, else_branch=branch),
            node("F", ["i"], ["y"], domain="l"),
        ],
        initializers=[("flag", np.array(True))],
    )
    body = [node("Relu", ["m"], ["q"]), node("Relu", ["p"], ["m"])]
    made.functions.append(helper.make_function("l", "F", ["p"], ["q"], body, made.opset_import))
    made.opset_import.append(helper.make_opsetid("l", 1))
    loaded = load(file(made))
    assert len(loaded.repairs) == 3
    for g in loaded.graphs():
        seen = {id(v) for v in g.inputs}
        for n in g:
            assert all(id(v) in seen or v.graph is not g or v.is_initializer() for v in n.inputs)
            seen.update(id(v) for v in n.outputs)


def test_cycle(file) -> None:
    nodes = [
        node("Relu", ["x"], ["start"], "innocent"),
        node("Add", ["start", "c"], ["a"], "one"),
        node("Relu", ["a"], ["b"], "two"),
        node("Relu", ["b"], ["c"], "three"),
        node("Relu", ["c"], ["y"], "after"),
    ]
    error = refused(file(model(nodes)), "cycle", "'one'", "'two'", "'three'")
    assert "'innocent'" not in error.message
    assert "'after'" not in error.message
    refused(file(model([node("Add", ["x", "y"], ["y"], "self")])), "cycle", "'self'")


def test_cycle_through_a_branch(file) -> None:
    branch = graph([node("Relu", ["y"], ["b"])], [], ["b"])
    nodes = [node("If", ["flag"], ["y"], "if", then_branch=branch, else_branch=branch)]
    refused(file(model(nodes, initializers=[("flag", np.array(True))])), "cycle", "'if'")


def test_long_cycle_is_named_in_short_and_found_without_recursion(file) -> None:
    count = 20_000
    nodes = [node("Relu", [f"v{(i + 1) % count}"], [f"v{i}"], f"n{i}") for i in range(count)]
    error = refused(file(model(nodes, outputs=("v0",))), "cycle", "more")
    assert len(error.message) < 1000


def test_two_producers(file) -> None:
    nodes = [node("Relu", ["x"], ["y"], "one"), node("Abs", ["x"], ["y"], "two")]
    refused(file(model(nodes)), "'two'", "'one'", "'y'")
    refused(file(model([node("Split", ["x"], ["y", "y"], "one")])), "'one'", "'y'")
    refused(file(model([node("Relu", ["x"], ["x"], "one")], outputs=("x",))), "'one'", "input")
    made = model([node("Relu", ["x"], ["w"], "one")], outputs=("w",), initializers=[("w", floats(3))])
    refused(file(made), "'one'", "initializer", "'w'")
    refused(file(model([node("Relu", ["x"], ["y"])], inputs=("x", "x"))), "two inputs", "'x'")


def test_what_nothing_produces(file) -> None:
    refused(file(model([node("Relu", ["encoder_out1"], ["y"], "one")])), "'one'", "'encoder_out1'")
    near = [node("Relu", ["x"], ["encoder_out"]), node("Relu", ["encoder_out1"], ["y"], "one")]
    refused(file(model(near)), "there is a 'encoder_out'")
    refused(file(model([node("Relu", ["x"], ["y"])], outputs=("y", "z"))), "output 'z'")
    branch = graph([node("Relu", ["ghost"], ["b"], "inner")], [], ["b"])
    nodes = [node("If", ["flag"], ["y"], "if", then_branch=branch, else_branch=branch)]
    refused(file(model(nodes, initializers=[("flag", np.array(True))])), "'inner'", "'ghost'")
    made = model([node("F", ["x"], ["y"], domain="l")])
    made.opset_import.append(helper.make_opsetid("l", 1))
    made.functions.append(
        helper.make_function("l", "F", ["p"], ["q"], [node("Relu", ["x"], ["q"], "in")], made.opset_import)
    )
    refused(file(made), "'in'", "'x'")
    made.functions[0].node[0].input[0] = "p"
    made.functions[0].output[0] = "r"
    refused(file(made), "'F'", "'r'")


def test_functions_must_be_distinct_and_not_recursive(file) -> None:
    made = model([node("F", ["x"], ["y"], domain="l")])
    made.opset_import.append(helper.make_opsetid("l", 1))
    body = [node("G", ["p"], ["q"], domain="l")]
    made.functions.append(helper.make_function("l", "F", ["p"], ["q"], body, made.opset_import))
    body = [node("F", ["p"], ["q"], domain="l")]
    made.functions.append(helper.make_function("l", "G", ["p"], ["q"], body, made.opset_import))
    refused(file(made), "cycle", "'F'", "'G'")
    made.functions[1].name = "F"
    refused(file(made), "'F'", "twice")


def test_node_names(file) -> None:
    branch = graph([node("Relu", ["x"], ["b"], "twin"), node("Abs", ["x"], ["unused"])], [], ["b"])
    nodes = [
        node("Relu", ["x"], ["a"], "twin"),
        node("Abs", ["a"], ["c"]),
        node("If", ["flag"], ["i"], then_branch=branch, else_branch=branch),
        node("Add", ["c", "i"], ["y"], "twin"),
    ]
    loaded = load(file(model(nodes, initializers=[("flag", np.array(True))])))
    found = [n.name for n in loaded.nodes()]
    assert len(set(found)) == len(found) == loaded.count_nodes() == 8
    assert found[0] == "twin"
    assert found[1] == "Abs_1"
    assert len(loaded.repairs) == 1
    assert "'twin' to 'twin_" in loaded.repairs[0]


def test_initializers_given_twice(file) -> None:
    weight = floats(32, 32)
    for array in (weight, weight[0]):  # on disk, and in memory
        made = model([node("Add", ["x", "w"], ["y"])], initializers=[("w", array), ("w", array.copy())])
        path = file(made)
        loaded = load(path)
        assert "twice" in loaded.repairs[0]
        np.testing.assert_array_equal(loaded.graph.initializers["w"].const_value.numpy(), array)
        refused(path, "twice", strict=True)
        changed = array.copy()
        changed.reshape(-1)[-1] += 1
        made = model([node("Add", ["x", "w"], ["y"])], initializers=[("w", array), ("w", changed)])
        refused(file(made), "two different initializers", "'w'")


def test_initializer_without_a_name(file) -> None:
    loaded = load(file(model([node("Relu", ["x"], ["y"])], initializers=[("", floats(3))])))
    assert not loaded.graph.initializers
    assert "no name" in loaded.repairs[0]


def test_initializers_that_are_inputs_are_only_defaults(file) -> None:
    made = model(
        [node("MatMul", ["x", "w"], ["y"])],
        inputs=("x", "w"),
        initializers=[("w", floats(32, 32))],
        ir_version=3,
    )
    loaded = load(file(made))
    assert [v.name for v in loaded.graph.inputs] == ["x", "w"]
    weight = loaded.graph.initializers["w"]
    assert weight is loaded.graph.inputs[1]
    assert is_overridable(weight)
    assert isinstance(weight.const_value, FileTensor)
    assert not is_overridable(load(file(big())).graph.initializers["w"])
    assert not is_overridable(loaded.graph.inputs[0])


def test_sparse_becomes_dense(file) -> None:
    dense = np.zeros((4, 5), np.float32)
    dense[1, 2], dense[3, 4] = 7, 8
    values, flat = np.array([7, 8], np.float32), np.array([7, 19], np.int64)
    pairs = np.array([[1, 2], [3, 4]], np.int64)
    sparse = [
        helper.make_sparse_tensor(
            numpy_helper.from_array(values, "w"), numpy_helper.from_array(indices, "i"), [4, 5]
        )
        for indices in (flat, pairs)
    ]
    made = model([node("Constant", [], ["c"], "constant"), node("Add", ["c", "w"], ["y"])])
    made.graph.node[0].attribute.append(helper.make_attribute("sparse_value", sparse[1]))
    made.graph.sparse_initializer.append(sparse[0])
    loaded = load(file(made))
    np.testing.assert_array_equal(loaded.graph.initializers["w"].const_value.numpy(), dense)
    np.testing.assert_array_equal(loaded.graph[0].attributes["value"].as_tensor().numpy(), dense)
    assert len(loaded.repairs) == 2
    made.graph.sparse_initializer[0].dims[0] = 3
    refused(file(made), "sparse", "'w'")
    made.graph.sparse_initializer[0].dims[0] = 2**40
    refused(file(made), "sparse", "'w'", "bytes")


def test_a_branch_that_returns_an_outer_value(file) -> None:
    branch = graph([], [], ["x"])
    nodes = [node("If", ["flag"], ["y"], "if", then_branch=branch, else_branch=branch)]
    loaded = load(file(model(nodes, initializers=[("flag", np.array(True))])))
    assert len(loaded.repairs) == 2
    for g in list(loaded.graphs())[1:]:
        assert g.outputs[0].producer().op_type == "Identity"
        assert g.outputs[0].producer().inputs[0] is loaded.graph.inputs[0]


def test_shadowed_names(file) -> None:
    """An inner value with the name of an outer one is another value."""
    inner = graph([node("Relu", ["h"], ["h2"])], [], ["h2"])
    branch = graph(
        [node("Abs", ["x"], ["h"]), node("If", ["flag"], ["b"], then_branch=inner, else_branch=inner)],
        [],
        ["b"],
    )
    made = model(
        [node("Neg", ["x"], ["h"]), node("If", ["flag"], ["i"], then_branch=branch, else_branch=branch),
         node("Add", ["h", "i"], ["y"])],
        initializers=[("flag", np.array(True))],
    )  # fmt: skip
    path = file(made)
    loaded = load(path)
    assert "names from outside" in loaded.repairs[0]
    names = [v.name for g in loaded.graphs() for n in g for v in n.outputs if n.op_type in ("Abs", "Neg")]
    assert len(set(names)) == 3
    relu = next(n for n in loaded.nodes() if n.op_type == "Relu")
    assert relu.inputs[0].producer().op_type == "Abs"
    refused(path, "names from outside", strict=True)


def test_attributes(file) -> None:
    made = model([node("Softmax", ["x"], ["y"], "s", axis=1)])
    made.graph.node[0].attribute[0].ClearField("type")
    assert load(file(made)).graph[0].attributes["axis"].value == 1
    made.graph.node[0].attribute.append(made.graph.node[0].attribute[0])
    refused(file(made), "'s'", "'axis'")
    for kind in (onnx.AttributeProto.TENSOR, onnx.AttributeProto.GRAPH):
        made = model([node("Foo", ["x"], ["y"], "s")])
        made.graph.node[0].attribute.add(name="empty", type=kind)
        refused(file(made), "'empty'", "'s'", "no value")
    made = model([node("", ["x"], ["y"], "s")])
    refused(file(made), "no operator")


def test_names_that_are_no_text(file) -> None:
    data = model([node("Relu", ["x"], ["y"], "name")]).SerializeToString().replace(b"name", b"na\xffe")
    refused(file(data), "UTF-8")


def test_training_info_is_dropped_and_said(file) -> None:
    made = big()
    made.training_info.add().algorithm.CopyFrom(big().graph)
    assert "training_info" in load(file(made)).repairs[0]


def test_types_that_the_ir_has_not(file) -> None:
    made = model([helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[1, 2])])
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    made.graph.output[0].ClearField("type")
    made.graph.output[0].type.sequence_type.elem_type.map_type.key_type = TensorProto.INT64
    assert load(file(made)).count_operators() == {"ai.onnx.ml::ZipMap": 1}


# The model --------------------------------------------------------------------------------------------


def test_model(file) -> None:
    made = model([node("Relu", ["x"], ["a"]), node("Relu", ["a"], ["b"]), node("Abs", ["b"], ["y"])])
    path = file(made)
    loaded = load(str(path))
    assert loaded.path == path
    assert loaded.opset == 17
    assert loaded.count_nodes() == 3
    assert list(loaded.count_operators().items()) == [("Relu", 2), ("Abs", 1)]


def test_clone_shares_weights_and_nothing_else(file) -> None:
    loaded = load(file(big()))
    copy = loaded.clone()
    assert isinstance(copy, Model)
    assert copy.graph.initializers["w"].const_value is loaded.graph.initializers["w"].const_value
    copy.graph[0].name = "changed"
    copy.repairs.append("x")
    assert loaded.graph[0].name == "mm"
    assert not loaded.repairs


# Cost -------------------------------------------------------------------------------------------------

_CHILD = """
import sys
import onnxlathe, onnxlathe.model, onnx
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) >> 10
before = peak()
model = onnxlathe.load(sys.argv[1])
assert sum(v.const_value.nbytes for v in model.graph.initializers.values()) >= 300 << 20
if len(sys.argv) > 2:
    onnxlathe.save(model, sys.argv[2])
names = ("onnxruntime", "polygraphy", "tensorrt", "networkx", "sympy.core", "onnx.reference", "rich", "click")
assert not [name for name in names if name in sys.modules]
print(before, peak())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("saving", [False, True])
def test_memory_does_not_follow_the_weights(tmp_path: Path, saving: bool) -> None:
    path = tmp_path / "big.onnx"
    made = model([node("Sum", ["x", "a", "b", "c"], ["y"])])
    for name in "abc":
        made.graph.initializer.add(name=name, data_type=2, dims=[100 << 20], raw_data=bytes(100 << 20))
    path.write_bytes(made.SerializeToString())
    del made
    command = [sys.executable, "-c", _CHILD, str(path), *([str(tmp_path / "out.onnx")] if saving else [])]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    before, after = map(int, result.stdout.split())
    assert after < 120
    assert after - before < 20
    if saving:
        assert (tmp_path / "out.onnx").stat().st_size > 300 << 20


def test_sympy_sleeps_and_wakes() -> None:
    code = (
        "import sys, onnxlathe, onnx_ir; assert 'sympy.core' not in sys.modules;"
        "assert onnxlathe.__version__ and 'load' in dir(onnxlathe);"
        "import sympy; assert sympy.Symbol('a') + 1 - 1 == sympy.Symbol('a');"
        "assert 'sympy.core' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_text_formats_sleep_and_wake() -> None:
    code = (
        "import sys, onnxlathe, onnx; assert type(sys.modules['tarfile']).__name__ == '_LazyModule';"
        "from google.protobuf import json_format, text_format;"
        "a, b = onnx.ModelProto(ir_version=8), onnx.ModelProto();"
        "assert json_format.Parse(json_format.MessageToJson(a), b) == a;"
        "assert text_format.MessageToString(a) == 'ir_version: 8\\n';"
        "assert onnx.compose.add_prefix(a, 'p/').ir_version == 8;"
        "import tarfile; assert tarfile.TarFile"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_sympy_already_awake() -> None:
    code = "import sympy, onnxlathe, onnx_ir; assert str(onnx_ir.SymbolicDim('a') + 1)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_unknown_public_name() -> None:
    import onnxlathe

    with pytest.raises(AttributeError, match="nothing_like_that"):
        _ = onnxlathe.nothing_like_that


def test_checks_are_linear(file) -> None:
    """20,000 nodes in reverse order: quadratic work would take minutes."""
    count = 20_000
    nodes = [node("Relu", [f"v{i - 1}" if i else "x"], [f"v{i}"]) for i in reversed(range(count))]
    loaded = load(file(model(nodes, outputs=(f"v{count - 1}",))))
    assert loaded.graph[0].inputs[0].name == "x"
    assert loaded.count_nodes() == count


@pytest.mark.parametrize("shape", [(8, 16), (300, 2)])
def test_what_is_noted_of_a_constant_gives_way_to_what_it_is(tmp_path: Path, shape: tuple[int, int]) -> None:
    """ONNX Runtime's optimizer transposes weights and leaves the note of their shape; both small and large ones."""
    weight = floats(*shape)
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [value("x", ["n", shape[0]])],
            [value("y", ["n", shape[1]])], [numpy_helper.from_array(weight, "w")],
            value_info=[value("w", list(shape[::-1]))],
        ),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    onnx.save(proto, tmp_path / "m.onnx")
    held = load(tmp_path / "m.onnx").graph.initializers["w"]
    assert held.shape == ir.Shape(shape)
    assert held.dtype == ir.DataType.FLOAT
