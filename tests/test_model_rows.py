"""Weights made of weights, a few rows at a time."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxlathe
from helpers import assert_same, parse
from onnxlathe.model import FileTensor, RowTensor, load, rows, rows_of, save, transposed

TYPES = [np.float32, np.float16, np.int8, np.float64, ml_dtypes.bfloat16]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BLOCK", 4096)
    monkeypatch.setattr(rows, "_CACHED", 1024)


def weight(tmp_path: Path, shape: tuple[int, ...], dtype: type) -> tuple[FileTensor, np.ndarray]:
    """A weight in a file, at an odd offset, and what it holds."""
    array = np.random.default_rng(0).integers(-99, 99, shape).astype(dtype)
    graph = ir.Graph([], [], nodes=[], name="g", opset_imports={"": 17})
    for name, held in (("pad", np.zeros(1031, np.int8)), ("w", array)):
        graph.register_initializer(ir.Value(name=name, const_value=ir.Tensor(held)))
    ir.save(ir.Model(graph, ir_version=8), tmp_path / "w.onnx")
    tensor = load(tmp_path / "w.onnx").graph.initializers["w"].const_value
    assert isinstance(tensor, FileTensor)
    return tensor, array


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(96, 80), (3000, 7), (7, 3000), (1, 5000)])
def test_a_transpose_is_made_of_blocks(tmp_path: Path, shape: tuple[int, int], dtype: type) -> None:
    tensor, array = weight(tmp_path, shape, dtype)
    made = transposed(tensor)
    assert isinstance(made, RowTensor)
    assert tuple(made.shape.numpy()) == shape[::-1]
    assert np.array_equal(made.numpy(), array.T)
    blocks = [bytes(block) for block in made.blocks()]
    assert b"".join(blocks) == array.T.tobytes()
    assert len(blocks) > 1
    assert max(map(len, blocks)) <= max(4096, array.itemsize * shape[0])
    assert np.array_equal(transposed(made).numpy(), array)


@pytest.mark.parametrize("dtype", TYPES)
def test_only_the_rows_that_are_asked_for_are_read(tmp_path: Path, dtype: type) -> None:
    from onnxlathe.model.tensors import bytes_read

    tensor, array = weight(tmp_path, (500, 3, 4), dtype)
    before = bytes_read()
    assert np.array_equal(rows_of(tensor, 20, 30), array[20:30])
    assert bytes_read() - before == array[20:30].nbytes
    assert np.array_equal(rows_of(ir.Tensor(array), 20, 30), array[20:30])


def test_a_tensor_of_the_wrong_size_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    wrong = RowTensor(
        lambda a, b: np.zeros((b - a, 99), np.float32), dtype=ir.DataType.FLOAT, shape=ir.Shape([100, 100])
    )
    graph = ir.Graph([], [], nodes=[], name="g", opset_imports={"": 17})
    graph.register_initializer(ir.Value(name="w", const_value=wrong))
    with pytest.raises(onnxlathe.ModelError, match="should have"):
        save(onnxlathe.Model(ir.Model(graph, ir_version=8)), tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


CASES = {
    "transposes": ("t = Transpose <perm = [1, 0]> (w) y = MatMul (x, t)", "fold", 0),
    "scaled transposes": ("t = Transpose (w) u = Mul (t, k) y = MatMul (x, u)", "fold", 0),
    "transposed scalings": ("u = Mul (w, k) t = Transpose (u) y = MatMul (x, t)", "fold", 0),
    "factors by row": ("u = Mul (w, c) d = Sub (u, r) y = MatMul (x, d)", "fold", 0),
    "joined columns": ("j = Concat <axis = 1> (w, v, w) y = MatMul (x, j)", "fold", 0),
    "joined rows": ("j = Concat <axis = -2> (w, v) t = Transpose (j) y = MatMul (x, t)", "fold", 0),
    "projections": ("a = MatMul (x, w) b = MatMul (x, v) d = MatMul (x, w) y = Sum (a, b, d)", "fuse", 1),
    "a factor above": ("a = MatMul (x, w) b = Relu (a) d = MatMul (b, v) y = Mul (d, n)", "fuse", 0),
}


@pytest.mark.parametrize("name", CASES)
def test_what_passes_make_is_written_as_it_computes(tmp_path: Path, name: str) -> None:
    """The same model with its weights in the file and in memory, where nothing is in blocks."""
    body, passes, merged = CASES[name]
    rng = np.random.default_rng(1)
    proto = parse(f"g (float[3,160] x, float[160,160] w0) => (float[3,m] y) {{ {body} }}")
    del proto.graph.input[1]
    held = {
        "w": rng.standard_normal((160, 160)),
        "v": rng.standard_normal((160, 160)),
        "k": np.array([0.125]),
        "n": np.array(0.5),
        "c": rng.standard_normal((160, 1)),
        "r": rng.standard_normal((1, 160)),
    }
    for key, array in held.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), key))
    onnx.save(proto, tmp_path / "in.onnx")
    model = load(tmp_path / "in.onnx")
    onnxlathe.optimize(model, f"shapes,fold,{passes}", verify=False)
    computed = [
        v.const_value for v in model.graph.initializers.values() if isinstance(v.const_value, ir.LazyTensor)
    ]
    assert computed
    in_memory = {t.name: t.numpy() for t in computed}
    assert any(a.nbytes > 40160 for a in in_memory.values())
    save(model, tmp_path / "out.onnx")
    after = onnx.load(tmp_path / "out.onnx")
    assert_same(proto, after, {"x": rng.standard_normal((3, 160)).astype(np.float32)})
    written = {t.name: onnx.numpy_helper.to_array(t) for t in after.graph.initializer}
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        assert np.array_equal(written[str(value.name)], value.const_value.numpy())
    assert sum(node.op_type == "Split" for node in after.graph.node) == merged
