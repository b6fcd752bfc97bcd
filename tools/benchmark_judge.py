"""Judge an optimized model by its original: `benchmark_judge.py ORIGINAL OPTIMIZED RESULT.json TRUTH.npz`.

The result file gets a JSON object:

- `nodes`: nodes of the main graph and all its subgraphs;
- `error`: the largest relative error |p - q| / |p| (Euclidean norms) over all outputs and two seeds, both
  models in ONNX Runtime on CPU with its own optimizations off; "inf" where shapes differ or it is not finite;
- `accepted`, `layers`, `refusal`: what TensorRT's parser says;
- `failure`: why there is no `error`, where there is none.

TRUTH.npz keeps the original's outputs from one call to the next. Inputs are random by fixed rules, or the
arrays of ORIGINAL's `.npz` neighbour, in the order of the model's inputs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx

SEEDS = (11, 12)
SIZES = {"batch": 1, "seq": 64}
OTHER_SIZE = 2

Arrays = dict[str, np.ndarray[Any, Any]]


def count_nodes(graph: onnx.GraphProto) -> int:
    """Nodes of `graph`, those of nested graphs included."""
    total = len(graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs:
                total += count_nodes(inner)
    return total


def inputs_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller must give: those without a default."""
    defaults = {initializer.name for initializer in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in defaults]


def type_of(value: onnx.ValueInfoProto) -> np.dtype[Any]:
    kind: np.dtype[Any] = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return kind


def feeds_for(model: onnx.ModelProto, seed: int) -> Arrays:
    """Normal numbers for floats, ones for masks and booleans, small positive integers (token ids) else."""
    random = np.random.default_rng(seed)
    feeds: Arrays = {}
    for value in inputs_of(model):
        kind = type_of(value)
        dims = value.type.tensor_type.shape.dim
        shape = [d.dim_value if d.dim_value > 0 else SIZES.get(d.dim_param, OTHER_SIZE) for d in dims]
        if np.issubdtype(kind, np.floating):
            feeds[value.name] = random.standard_normal(shape).astype(kind)
        elif kind == np.bool_ or "mask" in value.name:
            feeds[value.name] = np.ones(shape, kind)
        else:
            feeds[value.name] = random.integers(1, 900, shape).astype(kind)
    return feeds


def recorded_feeds(model: onnx.ModelProto, path: Path) -> Arrays:
    """The arrays saved at `path`, in the order of the inputs, in the types that `model` takes."""
    arrays = np.load(path).values()
    pairs = zip(inputs_of(model), arrays, strict=False)
    return {value.name: np.asarray(array).astype(type_of(value)) for value, array in pairs}


def run(path: Path, names: list[str], feeds: list[Arrays]) -> list[list[np.ndarray[Any, Any]]]:
    """The outputs `names` of the model at `path`, for each of the feeds."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = {
        "tensor(float)": np.float32,
        "tensor(float16)": np.float16,
        "tensor(int32)": np.int32,
        "tensor(int64)": np.int64,
    }
    types = {value.name: value.type for value in session.get_inputs()}
    results = []
    for feed in feeds:  # an optimizer may have dropped an unused input, or changed an integer type
        taken = {
            name: array.astype(kinds.get(types[name], array.dtype))
            for name, array in feed.items()
            if name in types
        }
        results.append(session.run(names, taken))
    return results


def relative_error(truth: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    if truth.shape != other.shape:
        return float("inf")
    p, q = truth.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    error = float(np.linalg.norm(p - q) / (np.linalg.norm(p) + 1e-12))
    return error if np.isfinite(error) else float("inf")


def truth_of(original: Path, model: onnx.ModelProto, kept: Path) -> list[list[np.ndarray[Any, Any]]]:
    """The original's outputs per seed, computed at the first call and read from `kept` afterwards."""
    names = [value.name for value in model.graph.output]
    if not kept.exists():
        outputs = run(original, names, feeds_of(original, model))
        arrays: dict[str, Any] = {f"{s}.{i}": y for s, ys in enumerate(outputs) for i, y in enumerate(ys)}
        np.savez(kept, **arrays)
    with np.load(kept) as saved:
        return [[saved[f"{s}.{i}"] for i in range(len(names))] for s in range(len(SEEDS))]


def feeds_of(original: Path, model: onnx.ModelProto) -> list[Arrays]:
    recorded = original.with_suffix(".npz")
    if recorded.exists():
        return [recorded_feeds(model, recorded)] * len(SEEDS)
    return [feeds_for(model, seed) for seed in SEEDS]


def judge(original: Path, optimized: Path, kept: Path) -> dict[str, Any]:
    verdict: dict[str, Any] = {}
    model = onnx.load(str(original), load_external_data=False)
    verdict["nodes"] = count_nodes(onnx.load(str(optimized), load_external_data=False).graph)
    try:
        truth = truth_of(original, model, kept)
        names = [value.name for value in model.graph.output]
        outputs = run(optimized, names, feeds_of(original, model))
        pairs = [pair for ps, qs in zip(truth, outputs, strict=True) for pair in zip(ps, qs, strict=True)]
        error = max((relative_error(p, q) for p, q in pairs), default=0.0)
        verdict["error"] = error if np.isfinite(error) else "inf"
    except Exception as error:  # ONNX Runtime raises a dozen types of its own
        verdict["failure"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return verdict


def ask_target(optimized: Path) -> dict[str, Any]:
    from onnxlathe.target import find_target

    target = find_target()
    if not target.available:
        return {"refusal": target.reason}
    answer = target.parse(optimized)
    refusal = str(answer.errors[0]).splitlines()[0][:200] if answer.errors else ""
    about = {"target": f"{target.name} {target.version}", "refusal": refusal}
    return about | {"accepted": answer.accepted, "layers": answer.layers}


def main() -> None:
    original, optimized, result, kept = map(Path, sys.argv[1:])
    verdict = judge(original, optimized, kept) | ask_target(optimized)
    result.write_text(json.dumps(verdict))


if __name__ == "__main__":
    main()
