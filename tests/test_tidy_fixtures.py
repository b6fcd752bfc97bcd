"""`tidy` on every committed model: the same outputs, whole graphs, and nothing left to do the second time."""

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from helpers import assert_same
from onnxlathe.model import Model, load
from onnxlathe.pipeline import Registry, Runner, plan

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
# What TensorRT refuses is another matter: its inputs (labels, indices) must not be drawn at random.
MODELS = sorted(p for p in FIXTURES.rglob("*.onnx") if p.parent.name != "refused")
CANNOT_RUN = {"custom_op", "bomb_constantofshape", "bomb_expand"}
INCOMPARABLE = {"random_twins", "strings"}


@cache
def registry() -> Registry:
    return Registry.standard()


def tidy(model: Model) -> None:
    Runner(paranoid=True).run(model, plan("tidy", registry()))


def feeds(proto: onnx.ModelProto, **dims: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    initialized = {t.name for t in proto.graph.initializer}
    result = {}
    for value in proto.graph.input:
        if value.name in initialized:
            continue
        tensor = value.type.tensor_type
        shape = [dims[d.dim_param] if d.dim_param else d.dim_value for d in tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if dtype == np.int64:
            ids = np.ones(shape) if "mask" in value.name else random.integers(1, 900, shape)
            result[value.name] = ids.astype(np.int64)
        elif dtype == np.object_:
            result[value.name] = np.array(["A", "b", "c", "d"][: shape[0]], dtype=object)
        else:
            result[value.name] = np.asarray(random.standard_normal(shape)).astype(dtype)
    return result


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_tidy_keeps_the_function(path: Path) -> None:
    before = onnx.load(path)
    model = load(path)
    tidy(model)
    nodes = model.count_operators()
    tidy(model)
    assert model.count_operators() == nodes
    if path.stem in CANNOT_RUN | INCOMPARABLE:
        return
    after = ir.to_proto(model.ir)
    sizes = ({"batch": 1, "seq": 7}, {"batch": 3, "seq": 5})
    assert_same(before, after, *(feeds(before, **size) for size in sizes), rtol=1e-3)
