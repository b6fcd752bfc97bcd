"""Saving: everything or nothing, weights from file to file, and never at the source's expense."""

from __future__ import annotations

import errno
import importlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxlathe import LatheError, Model, ModelError, UsageError, load, save
from onnxlathe.model import FileTensor, digest
from onnxlathe.model.protos import bodies_of, tensors_of

save_module = importlib.import_module("onnxlathe.model.save")

FIXTURES = sorted((Path(__file__).parent.parent / "fixtures").glob("**/*.onnx"))
RNG = np.random.default_rng(1)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 32])


def rich() -> onnx.ModelProto:
    """A model with something in every corner: branches, functions, attributes, annotations, metadata."""
    constant = helper.make_node(
        "Constant", [], ["k"], name="k", value=numpy_helper.from_array(floats(40, 32), "k")
    )
    then = helper.make_graph(
        [helper.make_node("Add", ["x", "t"], ["a"], name="then_add")],
        "then",
        [],
        [value("a")],
        [numpy_helper.from_array(floats(16, 32), "t")],
    )
    other = helper.make_graph(
        [constant, helper.make_node("Add", ["x", "k"], ["b"], name="else_add")], "else", [], [value("b")]
    )
    graph = helper.make_graph(
        [
            helper.make_node("If", ["flag"], ["i"], name="if", then_branch=then, else_branch=other),
            helper.make_node("F", ["i", "", "w"], ["f", ""], name="call", domain="local"),
            helper.make_node("Relu", ["f"], ["y"], name="relu", doc_string="why not"),
            helper.make_node(
                "Odd",
                ["f"],
                ["z"],
                name="odd",
                domain="custom",
                ints=[1, 2],
                floats=[0.5],
                strings=["a", "b"],
                many=[numpy_helper.from_array(floats(300), "m0"), numpy_helper.from_array(floats(3), "m1")],
            ),
        ],
        "main",
        [value("x")],
        [value("y"), value("z")],
        [
            numpy_helper.from_array(np.array(True), "flag"),
            numpy_helper.from_array(floats(32, 64), "w"),
            numpy_helper.from_array(np.array(["deep", "sea"] * 200), "words"),
            numpy_helper.from_array(floats(3), "small"),
        ],
        value_info=[value("i"), value("f")],
    )
    graph.node[2].metadata_props.add(key="origin", value="here")
    graph.metadata_props.add(key="b", value="2")
    graph.metadata_props.add(key="a", value="1")
    graph.initializer[1].metadata_props.add(key="quality", value="good")
    graph.initializer[3].metadata_props.add(key="quality", value="small")
    graph.initializer[3].doc_string = "three numbers"
    annotation = graph.quantization_annotation.add(tensor_name="f")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="small")
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(d, v) for d, v in (("", 18), ("local", 1), ("custom", 3))],
        producer_name="tests",
        doc_string="about",
    )
    model.ir_version, model.model_version = 10, 7
    body = [
        helper.make_node("Constant", [], ["c"], name="c", value=numpy_helper.from_array(floats(20, 20), "c")),
        helper.make_node("Add", ["p", "c"], ["m"], name="add"),
        helper.make_node("LeakyRelu", ["m"], ["q"], name="leaky"),
    ]
    body[2].attribute.add(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT)
    function = helper.make_function(
        "local", "F", ["p", "o", "r"], ["q"], body, [helper.make_opsetid("", 18)], ["beta"]
    )
    function.attribute_proto.append(helper.make_attribute("alpha", 0.5))
    model.functions.append(function)
    model.metadata_props.add(key="license", value="free")
    return model


def drop_empty(message) -> None:
    """An empty string says no more than none."""
    for field, content in message.ListFields():
        if content == "":
            message.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE and not isinstance(message, TensorProto):
            many = field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
            for inner in content if many else [content]:
                drop_empty(inner)


def normal(proto: onnx.ModelProto, *, names: bool = True) -> onnx.ModelProto:
    """The same model with everything that may differ without meaning put into one form."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    drop_empty(result)
    for tensor in tensors_of(result):
        if tensor.data_type != TensorProto.STRING:
            array = numpy_helper.to_array(tensor)
            fresh = ir.to_proto(ir.Tensor(array, dtype=ir.DataType(tensor.data_type)))
            for entry in tensor.metadata_props:
                fresh.metadata_props.append(entry)
            fresh.name, fresh.doc_string = tensor.name, tensor.doc_string
            tensor.CopyFrom(fresh)
    for body in bodies_of(result):
        body.metadata_props.sort(key=lambda entry: entry.key)
        if isinstance(body, onnx.GraphProto):
            body.value_info.sort(key=lambda info: info.name)
            for info in [*body.input, *body.output, *body.value_info]:
                info.metadata_props.sort(key=lambda entry: entry.key)
            if body is not result.graph:
                del body.value_info[:]
        for node in body.node:
            node.metadata_props.sort(key=lambda entry: entry.key)
            if not names:
                node.ClearField("name")
            while node.output and not node.output[-1]:
                node.output.pop()  # an output that nobody wants
    result.graph.name = result.graph.name or "main_graph"
    return result


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.onnx"
    path.write_bytes(rich().SerializeToString())
    return path


def listing(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def weights(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def arrays(model: Model) -> Iterator[bytes]:
    for graph in model.graphs():
        for initializer in graph.initializers.values():
            if initializer.const_value.dtype != ir.DataType.STRING:
                yield initializer.const_value.tobytes()


# What is written --------------------------------------------------------------------------------------


@pytest.mark.parametrize("external", [None, True])
@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_fixtures_round_trip(path: Path, external: bool | None, tmp_path: Path) -> None:
    save(load(path), tmp_path / "out.onnx", external=external)
    one, two = normal(onnx.load(path), names=False), normal(onnx.load(tmp_path / "out.onnx"), names=False)
    for field in ("node", "initializer", "input", "output", "quantization_annotation"):
        assert list(getattr(one.graph, field)) == list(getattr(two.graph, field)), field
    for proto in (one, two):  # these were compared, and value_info may differ
        proto.ClearField("graph")
    assert one == two
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


@pytest.mark.parametrize("external", [False, True])
def test_nothing_is_lost(source: Path, tmp_path: Path, external: bool) -> None:
    loaded = load(source)
    assert not loaded.repairs
    out = tmp_path / "out.onnx"
    save(loaded, out, external=external)
    before, after = normal(onnx.load(source)), normal(onnx.load(out))
    described = {info.name for info in before.graph.value_info}
    # onnx_ir describes initializers as well; that says nothing new
    extra = [info for info in after.graph.value_info if info.name not in described]
    assert {info.name for info in extra} <= {t.name for t in after.graph.initializer}
    for info in extra:
        after.graph.value_info.remove(info)
    assert str(before) == str(after)
    if external:
        assert {p.name for p in tmp_path.iterdir()} == {"source.onnx", "out.onnx", "out.onnx.data"}


def test_equal_models_give_equal_bytes(source: Path, tmp_path: Path) -> None:
    for external in (False, True):
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir(exist_ok=True)
            save(load(source), tmp_path / folder / "m.onnx", external=external)
        assert listing(tmp_path / "a") == listing(tmp_path / "b")


def test_saving_twice_changes_nothing(source: Path, tmp_path: Path) -> None:
    save(load(source), tmp_path / "one.onnx")
    save(load(tmp_path / "one.onnx"), tmp_path / "two.onnx")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_the_model_is_not_changed_by_saving(source: Path, tmp_path: Path) -> None:
    loaded = load(source)
    before = [(id(v.const_value), v.name) for g in loaded.graphs() for v in g.initializers.values()]
    save(loaded, tmp_path / "out.onnx", external=True)
    assert before == [(id(v.const_value), v.name) for g in loaded.graphs() for v in g.initializers.values()]


def test_weights_made_in_memory(tmp_path: Path, source: Path) -> None:
    loaded = load(source)
    made = {
        "numpy": floats(100, 100),
        "view": floats(100, 100).T,
        "big_endian": floats(50, 50).astype(">f4").astype(np.float32),
        "bfloat16": floats(64, 64).astype(ml_dtypes.bfloat16),
        "int4": RNG.integers(-8, 8, (61, 61)).astype(ml_dtypes.int4),
        "scalar": np.array(3.0, np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }
    for name, array in made.items():
        tensor = ir.Tensor(array, name="another name")
        loaded.graph.initializers[name] = ir.Value(name=name, const_value=tensor)
    lazy = ir.LazyTensor(
        lambda: ir.Tensor(floats(32, 32) * 0 + 5), dtype=ir.DataType.FLOAT, shape=ir.Shape([32, 32])
    )
    loaded.graph.initializers["lazy"] = ir.Value(name="lazy", const_value=lazy)
    for external in (False, True):
        save(loaded, tmp_path / "out.onnx", external=external)
        found = load(tmp_path / "out.onnx").graph.initializers
        for name, array in made.items():
            assert found[name].const_value.numpy().dtype == array.dtype
            np.testing.assert_array_equal(found[name].const_value.numpy(), array)
        assert (found["lazy"].const_value.numpy() == 5).all()


def test_renamed_initializers(source: Path, tmp_path: Path) -> None:
    loaded = load(source)
    loaded.graph.initializers["w"].name = "renamed"
    loaded.graph.initializers["small"].name = "renamed too"
    save(loaded, tmp_path / "out.onnx")
    assert {"renamed", "renamed too"} <= weights(tmp_path / "out.onnx").keys()


def test_types_that_the_ir_has_not(tmp_path: Path) -> None:
    node = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[1, 2])
    made = helper.make_model(
        helper.make_graph([node], "g", [value("x")], [onnx.ValueInfoProto(name="y")]),
        opset_imports=[helper.make_opsetid("", 15), helper.make_opsetid("ai.onnx.ml", 3)],
    )
    kind = made.graph.output[0].type.sequence_type.elem_type.map_type
    kind.key_type = TensorProto.INT64
    kind.value_type.tensor_type.elem_type = TensorProto.FLOAT
    (tmp_path / "in.onnx").write_bytes(made.SerializeToString())
    save(load(tmp_path / "in.onnx").clone(), tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx").graph.output == made.graph.output


# External data ----------------------------------------------------------------------------------------


def test_external_layout(source: Path, tmp_path: Path) -> None:
    loaded = load(source)
    loaded.graph.initializers["page"] = ir.Value(name="page", const_value=ir.Tensor(floats(200, 200)))
    save(loaded, tmp_path / "out.onnx", external=True)
    proto = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    seen = 0
    for tensor in tensors_of(proto):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        assert entries["location"] == "out.onnx.data"
        assert int(entries["offset"]) % (4096 if tensor.name == "page" else 64) == 0
        seen += 1
    assert seen == 3  # w, page, and t of the branch; attributes stay inside
    onnx.checker.check_model(str(tmp_path / "out.onnx"))


def test_external_stays_external_and_can_be_put_together(source: Path, tmp_path: Path) -> None:
    save(load(source), tmp_path / "a.onnx", external=True)
    save(load(tmp_path / "a.onnx"), tmp_path / "b.onnx")
    assert (tmp_path / "b.onnx.data").read_bytes() == (tmp_path / "a.onnx.data").read_bytes()
    save(load(tmp_path / "b.onnx"), tmp_path / "c.onnx", external=False)
    assert not (tmp_path / "c.onnx.data").exists()
    save(load(source), tmp_path / "d.onnx")
    assert (tmp_path / "c.onnx").read_bytes() == (tmp_path / "d.onnx").read_bytes()


def test_too_large_for_one_file(source: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out.onnx"
    save(load(source), out)
    size = out.stat().st_size
    monkeypatch.setattr(save_module, "MAX_SINGLE_FILE", size)
    save(load(source), out)
    assert not (tmp_path / "out.onnx.data").exists()
    monkeypatch.setattr(save_module, "MAX_SINGLE_FILE", size - 1)
    with pytest.raises(LatheError, match="one file"):
        save(load(source), out, external=False)
    save(load(source), out)
    assert (tmp_path / "out.onnx.data").exists()
    assert list(arrays(load(out))) == list(arrays(load(source)))
    smallest = out.stat().st_size
    monkeypatch.setattr(save_module, "MAX_SINGLE_FILE", smallest - 1)
    save(load(source), tmp_path / "x.onnx")  # now the weights in attributes must leave as well
    assert (tmp_path / "x.onnx").stat().st_size < smallest
    assert list(arrays(load(tmp_path / "x.onnx"))) == list(arrays(load(source)))
    monkeypatch.setattr(save_module, "MAX_SINGLE_FILE", 100)
    with pytest.raises(LatheError, match="even without its weights"):
        save(load(source), tmp_path / "y.onnx")


def test_the_data_file_of_the_old_model_lives_until_the_new_one_stands(source: Path, tmp_path: Path) -> None:
    """Same names, new contents: whenever the process dies, what is there must belong together."""
    out = tmp_path / "out.onnx"
    save(load(source), out, external=True)
    (tmp_path / "out.onnx.notes.data").write_text("mine")
    loaded = load(out)
    expected = list(arrays(loaded))
    save(loaded, out, in_place=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "out.onnx",
        "out.onnx.1.data",
        "out.onnx.notes.data",
        "source.onnx",
    ]
    assert list(arrays(loaded)) == expected == list(arrays(load(out)))
    save(load(out), out, in_place=True)
    assert (tmp_path / "out.onnx.data").exists()
    assert not (tmp_path / "out.onnx.1.data").exists()
    save(load(out), out, in_place=True, external=False)
    assert not list(tmp_path.glob("out.onnx.data"))
    assert list(arrays(load(out))) == expected


def test_data_files_of_others_are_left_alone(source: Path, tmp_path: Path) -> None:
    save(load(source), tmp_path / "a.onnx", external=True)
    shutil.copy(tmp_path / "a.onnx", tmp_path / "b.onnx")  # two models, one data file
    save(load(tmp_path / "b.onnx"), tmp_path / "b.onnx", in_place=True, external=False)
    assert list(arrays(load(tmp_path / "a.onnx"))) == list(arrays(load(source)))


# In place ---------------------------------------------------------------------------------------------


def test_over_the_source(source: Path, tmp_path: Path) -> None:
    original = source.read_bytes()
    loaded = load(source)
    link, hard, relative = tmp_path / "link.onnx", tmp_path / "hard.onnx", tmp_path / "x" / ".." / source.name
    (tmp_path / "x").mkdir()
    link.symlink_to(source)
    os.link(source, hard)
    for path in (source, link, hard, relative):
        with pytest.raises(UsageError, match="the model that was loaded") as error:
            save(loaded, path)
        assert "in-place" in error.value.hint
    assert source.read_bytes() == original
    loaded.graph.doc_string = "changed"
    save(loaded, source, in_place=True)
    assert onnx.load(source).graph.doc_string == "changed"
    assert list(arrays(loaded)) == list(arrays(load(source)))
    assert hard.read_bytes() == original
    loaded.graph.doc_string = "again"
    save(loaded, link, in_place=True)
    assert link.is_symlink()
    assert onnx.load(source).graph.doc_string == "again"


def test_over_a_file_that_holds_weights(source: Path, tmp_path: Path) -> None:
    """A model put together from others must not overwrite them either."""
    save(load(source), tmp_path / "ext.onnx", external=True)
    loaded = load(tmp_path / "ext.onnx")
    for in_place in (False, True):
        with pytest.raises(UsageError, match="data file"):
            save(loaded, tmp_path / "ext.onnx.data", in_place=in_place)
    other = load(source).clone()
    other.path = None
    with pytest.raises(UsageError):
        save(other, source)


def test_over_another_file(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    out.write_text("something else")
    out.chmod(0o640)
    save(load(source), out)
    assert out.stat().st_mode & 0o777 == 0o640
    assert list(arrays(load(out))) == list(arrays(load(source)))


# Failures ---------------------------------------------------------------------------------------------


class Broken(Exception):
    pass


def broken_model(source: Path) -> Model:
    def fail() -> ir.Tensor:
        raise Broken

    loaded = load(source)
    lazy = ir.LazyTensor(fail, dtype=ir.DataType.FLOAT, shape=ir.Shape([32, 32]))
    loaded.graph.initializers["lazy"] = ir.Value(name="lazy", const_value=lazy)
    return loaded


@pytest.mark.parametrize("external", [False, True])
def test_a_tensor_that_raises(source: Path, tmp_path: Path, external: bool) -> None:
    (tmp_path / "out.onnx").write_text("old")
    before = listing(tmp_path)
    with pytest.raises(Broken):
        save(broken_model(source), tmp_path / "out.onnx", external=external)
    assert listing(tmp_path) == before
    with pytest.raises(Broken):
        save(broken_model(source), source, in_place=True, external=external)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_rename_that_fails(source, tmp_path, monkeypatch, external, which, error) -> None:
    if which and not external:
        pytest.skip("there is only one rename")
    calls = []
    real = os.replace

    def replace(*paths: object) -> None:
        calls.append(paths)
        if len(calls) == which + 1:
            raise error
        real(*paths)  # type: ignore[arg-type]

    loaded = load(source)
    before = listing(tmp_path)
    monkeypatch.setattr(save_module.os, "replace", replace)
    with pytest.raises((LatheError, KeyboardInterrupt)):
        save(loaded, source, in_place=True, external=external)
    monkeypatch.undo()
    assert listing(tmp_path) == before
    assert list(arrays(load(source))) == list(arrays(loaded))


@pytest.mark.parametrize("external", [False, True])
def test_a_disk_that_fills_up(source, tmp_path, monkeypatch, external) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = listing(tmp_path)
    monkeypatch.setattr(save_module, "write_all", full)
    with pytest.raises(LatheError, match="No space") as error:
        save(load(source), tmp_path / "out.onnx", external=external)
    assert "full" in error.value.hint
    assert listing(tmp_path) == before


def test_a_disk_that_is_full_already(source, tmp_path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(save_module.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(LatheError, match="1000 bytes are free"):
        save(load(source), tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_where_nothing_can_be_written(source: Path, tmp_path: Path) -> None:
    loaded = load(source)
    with pytest.raises(LatheError, match="no folder"):
        save(loaded, tmp_path / "missing" / "out.onnx")
    with pytest.raises(LatheError, match="directory"):
        save(loaded, tmp_path)
    with pytest.raises(LatheError, match="no folder"):
        save(loaded, source / "out.onnx")
    with pytest.raises(LatheError):
        save(loaded, tmp_path / ("x" * 300))
    if hasattr(os, "geteuid") and os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(LatheError, match=r"[Pp]ermission"):
            save(loaded, tmp_path / "closed" / "out.onnx")


def test_permission(source, tmp_path, monkeypatch) -> None:
    def denied(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    loaded = load(source)
    monkeypatch.setattr(save_module.os, "open", denied)
    with pytest.raises(LatheError, match="Permission denied") as error:
        save(loaded, tmp_path / "out.onnx")
    assert "another folder" in error.value.hint


def test_a_source_that_changed(source: Path, tmp_path: Path) -> None:
    loaded = load(source)
    os.truncate(source, 5000)
    before = listing(tmp_path)
    with pytest.raises(ModelError, match="changed"):
        save(loaded, tmp_path / "out.onnx")
    assert listing(tmp_path) == before


def test_an_initializer_without_a_value(source: Path, tmp_path: Path) -> None:
    loaded = load(source)
    loaded.graph.initializers["w"].const_value = None
    with pytest.raises(LatheError, match="'w'"):
        save(loaded, tmp_path / "out.onnx")


def test_a_tensor_that_lies_about_its_size(source: Path, tmp_path: Path) -> None:
    loaded = load(source)
    lazy = ir.LazyTensor(lambda: ir.Tensor(floats(3)), dtype=ir.DataType.FLOAT, shape=ir.Shape([32, 32]))
    loaded.graph.initializers["liar"] = ir.Value(name="liar", const_value=lazy)
    with pytest.raises(ModelError, match=r"4096 bytes and gave 12"):
        save(loaded, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


# Files over 2 GB --------------------------------------------------------------------------------------


def test_more_than_two_gigabytes(tmp_path: Path) -> None:
    """A sparse data file: it has holes instead of bytes, so this costs nothing but a copy of metadata."""
    rows = 600_000_000
    made = helper.make_model(
        helper.make_graph(
            [helper.make_node("Gather", ["w", "i"], ["y"], name="gather")],
            "g",
            [helper.make_tensor_value_info("i", TensorProto.INT64, [1])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        )
    )
    tensor = made.graph.initializer.add(name="w", data_type=1, dims=[rows], data_location=1)
    tensor.external_data.add(key="location", value="w.bin")
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    with (tmp_path / "w.bin").open("wb") as stream:
        stream.truncate(4 * rows)
    loaded = load(tmp_path / "m.onnx")
    weight = loaded.graph.initializers["w"].const_value
    assert isinstance(weight, FileTensor)
    assert weight.nbytes == 4 * rows > 2**31
    with pytest.raises(LatheError, match="one file"):
        save(loaded, tmp_path / "out.onnx", external=False)
    weight.external = False  # as if it came from one file: the size alone must decide
    plan = save_module._plan(loaded, tmp_path / "out.onnx", None)
    assert plan.data_name == "out.onnx.data"
    assert plan.data == [(0, weight)]


def test_digest_is_the_same_on_disk_and_in_memory(source: Path) -> None:
    weight = load(source).graph.initializers["w"].const_value
    assert weight.digest() == digest(weight) == digest(ir.Tensor(weight.numpy()))
    assert digest(ir.Tensor(weight.numpy() + 1)) != weight.digest()
