"""Small models as text, passes over them, and ONNX Runtime on both sides."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxlathe.model import Model
from onnxlathe.pipeline import Registry, Runner, plan

Array = np.ndarray[Any, np.dtype[Any]]


def parse(text: str, opset: int = 17, weights: Mapping[str, Array] | None = None) -> onnx.ModelProto:
    """A model from the text of its graph (see onnx.parser); `weights` become initializers.

    The text is a graph, `g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }`, or a whole model.
    """
    if not text.lstrip().startswith("<"):
        text = f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}'
    model = onnx.parser.parse_model(text)
    for name, array in (weights or {}).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return model


@functools.cache
def registry() -> Registry:
    """The installed passes."""
    return Registry.standard()


def optimized(proto: onnx.ModelProto, pipeline: str) -> onnx.ModelProto:
    """The model after a pipeline, its invariants checked after every step."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    model = Model(ir.from_proto(copy))
    Runner(paranoid=True).run(model, plan(pipeline, registry()))
    result = ir.to_proto(model.ir)
    onnx.checker.check_model(result)
    return result


def operators(proto: onnx.ModelProto) -> list[str]:
    """Operators of the main graph, in order, without constants."""
    return [n.op_type for n in proto.graph.node if n.op_type != "Constant"]


def run(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """Outputs by ONNX Runtime with its optimizations off; by onnx's reference where it has no kernel."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if "NOT_IMPLEMENTED" not in str(error):
            raise
        from onnx.reference import ReferenceEvaluator

        return list(ReferenceEvaluator(proto).run(None, dict(feeds)))
    return list(session.run(None, dict(feeds)))


def assert_same(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    *feeds: Mapping[str, Array],
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    """Both models give the same outputs for each of `feeds`."""
    for feed in feeds:
        for want, got in zip(run(before, feed), run(after, feed), strict=True):
            assert want.dtype == got.dtype
            assert want.shape == got.shape
            np.testing.assert_allclose(
                got.astype(np.float64), want.astype(np.float64), rtol=rtol, atol=atol, equal_nan=True
            )


def samples(proto: onnx.ModelProto, seed: int = 0, **dims: int) -> dict[str, Array]:
    """Random contents for the inputs of a model, its symbolic dimensions bound by `dims`."""
    random = np.random.default_rng(seed)
    initialized = {t.name for t in proto.graph.initializer}
    feeds: dict[str, Array] = {}
    for value in proto.graph.input:
        if value.name in initialized:
            continue
        tensor = value.type.tensor_type
        shape = [dims[d.dim_param] if d.dim_param else d.dim_value for d in tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if dtype == np.bool_:
            feeds[value.name] = random.integers(0, 2, shape).astype(bool)
        else:
            feeds[value.name] = np.asarray(random.standard_normal(shape) * 2).astype(dtype)
    return feeds


def check(
    text: str,
    pipeline: str,
    expected: Sequence[str] | None,
    *,
    opset: int = 17,
    weights: Mapping[str, Array] | None = None,
    sizes: Sequence[Mapping[str, int]] = ({"n": 1, "m": 3}, {"n": 3, "m": 5}),
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> onnx.ModelProto:
    """Run `pipeline` over a model, check the operators left (`None`: unchanged) and the numbers."""
    before = parse(text, opset, weights)
    after = optimized(before, pipeline)
    assert operators(after) == (operators(before) if expected is None else list(expected))
    assert_same(before, after, *(samples(before, i, **s) for i, s in enumerate(sizes)), rtol=rtol, atol=atol)
    return after
