"""Soundness of inference: whatever it claims must be true of what runs compute.

Real exports run in ONNX Runtime with every intermediate value as an output, at several sizes (also 1, where
broadcasting guesses would be caught), and the ONNX conformance suite says what each operator's outputs are.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxlathe  # noqa: F401 - before onnx_ir
from onnxlathe.infer import Dim, dims_of, infer_model, known
from onnxlathe.infer.values import is_fresh

import onnx_ir as ir  # isort: skip

FIXTURES = Path(__file__).parent.parent / "fixtures"


def evaluate(entry, bindings):
    """An entry's number under bindings; made-up names that are not bound yet give None."""
    if not isinstance(entry, Dim):
        return entry
    if any(name not in bindings for name in entry.symbols):
        return None
    return entry.substitute(bindings)


def check_dims(where, dims, real, bindings):
    assert len(dims) == len(real), f"{where}: {dims} but really {real}"
    for dim, size in zip(dims, real, strict=True):
        if isinstance(dim, Dim) and dim.is_symbol:
            bindings.setdefault(str(dim), size)  # a made-up name means one size in all of the run
        number = evaluate(dim, bindings)
        assert number is None or number == size, f"{where}: {[str(d) for d in dims]} but really {real}"


def check_content(where, content, real, bindings):
    assert content.shape == real.shape, f"{where}: content of shape {content.shape}, really {real.shape}"
    for entry, number in zip(content.reshape(-1), real.reshape(-1), strict=True):
        claim = evaluate(entry, bindings)
        if claim is None:
            continue
        if isinstance(claim, float) and math.isnan(claim):
            assert np.isnan(number)
        else:
            assert claim == number, f"{where}: content {content} but really {real}"


def check_values(values, results, bindings):
    """Checks claims about values against real arrays by name; returns how many, and how many are certain."""
    total = certain = 0
    for value in values:
        if value.name not in results:
            continue
        real = results[value.name]
        if isinstance(real, np.ndarray) and not isinstance(value.type, ir.OptionalType):
            dims = dims_of(value)
            total += 1
            if dims is not None:
                check_dims(value.name, dims, real.shape, bindings)
                certain += not any(d is None or is_fresh(d) for d in dims)
            content = known(value)
            if content is not None:
                check_content(value.name, content, real, bindings)
            if value.type is not None and value.dtype != ir.DataType.STRING:
                assert isinstance(value.type, ir.TensorType), f"{value.name}: {value.type}"
                kind = np.dtype(value.dtype.numpy())
                assert kind == real.dtype or real.dtype.kind == "V", f"{value.name}: {kind}, {real.dtype}"
        elif isinstance(real, list) and value.shape is not None:
            assert isinstance(value.type, ir.SequenceType | ir.OptionalType), value.type
            for element in real:
                for dim, size in zip(value.shape, element.shape, strict=True):
                    if isinstance(dim, int):
                        assert dim == size, f"{value.name}: element {value.shape}, really {element.shape}"
    return total, certain


# Real exports.


def sample(value, sizes, rng):
    shape = []
    for dim in value.type.tensor_type.shape.dim:
        shape.append(sizes.get(dim.dim_param, 2) if dim.dim_param else dim.dim_value)
    kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if kind == np.bool_:
        return np.ones(shape, kind)
    if np.issubdtype(kind, np.integer):
        return np.ones(shape, kind) if "mask" in value.name else rng.integers(1, 3, shape).astype(kind)
    return rng.standard_normal(shape).astype(kind)


SIZES = [
    {"batch": 2, "seq": 5},
    {"batch": 3, "seq": 4},
    {"batch": 1, "seq": 1},
]


def real_models():
    tiny = (
        p for p in (FIXTURES / "tiny").glob("*.onnx") if not p.stem.startswith("bomb")
    )  # gigabytes to run
    return sorted(FIXTURES.glob("*.onnx")) + sorted(tiny)


@pytest.mark.parametrize("path", real_models(), ids=lambda p: p.stem)
def test_claims_hold_in_onnx_runtime(path):
    import onnxruntime

    model = ir.load(path)
    notes = infer_model(model)
    values = [v for node in model.graph for v in node.outputs if v.name]
    proto = onnx.load(path)
    have = {o.name for o in proto.graph.output}
    for value in values:
        if value.name not in have:
            proto.graph.output.append(onnx.ValueInfoProto(name=value.name))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        pytest.skip(f"ONNX Runtime does not take it: {str(error)[:100]}")
    initializers = {i.name for i in proto.graph.initializer}
    inputs = [i for i in proto.graph.input if i.name not in initializers]
    names = [o.name for o in session.get_outputs()]
    ran = 0
    for sizes in SIZES:
        feed = {i.name: sample(i, sizes, np.random.default_rng(0)) for i in inputs}
        try:
            results = session.run(names, feed)
        except Exception:
            continue  # these sizes are not for this model
        ran += 1
        bindings = {}
        for value in model.graph.inputs:
            if value.name in feed:
                check_dims(value.name, dims_of(value), feed[value.name].shape, bindings)
        total, certain = check_values(values, dict(zip(names, results, strict=True)), bindings)
        if path.parent == FIXTURES:
            assert certain >= 0.99 * total, f"only {certain} of {total} values have known dimensions"
    assert ran, "no sizes could be run"
    if path.parent == FIXTURES:
        assert not [n for n in notes if "Error" in n], notes


@pytest.mark.parametrize("name", ["bert_ts17", "gpt2_dyn18", "loop", "function_local", "if_dynamic"])
def test_inference_is_idempotent(name):
    path = next(p for p in real_models() if p.stem == name)
    model = ir.load(path)
    infer_model(model)
    first = {v.name: (str(v.shape), str(v.type), str(known(v))) for n in model.graph for v in n.outputs}
    infer_model(model)
    again = {v.name: (str(v.shape), str(v.type), str(known(v))) for n in model.graph for v in n.outputs}
    assert first == again


# The conformance suite.


@cache
def conformance_cases():
    from onnx.backend.test.case.node import collect_testcases

    np.random.seed(0)
    return [case for case in collect_testcases(None) if case.model is not None]


def plain_arrays(case):
    """Inputs and outputs of a case by name where all are arrays of ordinary types; None otherwise."""
    inputs, outputs = case.data_sets[0]
    graph = case.model.graph
    if len(inputs) != len(graph.input) or len(outputs) != len(graph.output):
        return None
    arrays = {}
    for info, data in zip([*graph.input, *graph.output], [*inputs, *outputs], strict=True):
        if isinstance(data, onnx.TensorProto):
            data = onnx.numpy_helper.to_array(data)
        if isinstance(data, np.ndarray | np.generic):
            arrays[info.name] = np.asarray(data)
        elif isinstance(data, list) and all(isinstance(x, np.ndarray) for x in data):
            arrays[info.name] = list(data)
        else:
            return None
    return arrays


def variant(case, arrays, *, constants, symbolic):
    """The case's model without anything declared about its outputs.

    Args:
        constants: which inputs become initializers: "none", "small" (small integers: shapes, axes), "all".
        symbolic: whether the dimensions of the remaining inputs become symbols, each its own.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(case.model)
    graph = proto.graph
    for output in graph.output:
        output.ClearField("type")
    del graph.value_info[:]
    bindings = {}
    for info in list(graph.input):
        array = arrays[info.name]
        if isinstance(array, list) or not info.type.HasField("tensor_type"):
            continue
        small = array.dtype.kind in "ib" and array.ndim <= 1 and array.size <= 16
        if constants == "all" or (constants == "small" and (small or array.ndim == 0)):
            try:
                graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
            except Exception:
                return None
            graph.initializer[-1].data_type = info.type.tensor_type.elem_type
            graph.input.remove(info)
        elif symbolic:
            for axis, dim in enumerate(info.type.tensor_type.shape.dim):
                dim.dim_param = f"{info.name}_{axis}"
                bindings[f"{info.name}_{axis}"] = array.shape[axis]
    return proto, bindings


VARIANTS = [("none", False), ("small", False), ("small", True), ("all", False)]


@pytest.mark.parametrize(("constants", "symbolic"), VARIANTS)
def test_claims_hold_in_the_conformance_suite(constants, symbolic):
    failures = []
    unknown = Counter()
    total = certain = 0
    for case in conformance_cases():
        arrays = plain_arrays(case)
        made = None if arrays is None else variant(case, arrays, constants=constants, symbolic=symbolic)
        if made is None:
            continue
        proto, bindings = made
        model = ir.from_proto(proto)
        notes = infer_model(model)
        values = model.graph.outputs
        try:
            t, c = check_values(values, arrays, dict(bindings))
        except AssertionError as error:
            failures.append(f"{case.name}: {str(error).splitlines()[0]}")
            continue
        total += t
        certain += c
        if c < t:
            unknown[model.graph[0].op_type] += 1
        failures.extend(f"{case.name}: {n}" for n in notes if "Error" in n and "Inference" not in n)
    assert not failures, "\n".join(failures)
    if not symbolic and constants != "none":
        assert certain >= 0.9 * total, unknown.most_common()
