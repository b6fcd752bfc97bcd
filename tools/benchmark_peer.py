"""One optimizer on one file, in this fresh process: `benchmark_peer.py NAME IN.onnx OUT.onnx RESULT.json`.

The result file gets a JSON object: `seconds` of load, optimize and save with imports excluded, `version`
of the package; or `missing`, the name of a package that is not installed. A failure is left to be seen.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

Job = Callable[[str, str], None]
"""Reads one file and writes the other."""

PIPELINE = "shapes,fold,tidy,fuse"
"""What we run against the rivals."""


def onnxlathe() -> Job:
    import onnxlathe as lathe

    load, optimize, save = (getattr(lathe, name) for name in ("load", "optimize", "save"))  # import them now

    def job(source: str, destination: str) -> None:
        model = load(Path(source))
        optimize(model, passes=PIPELINE, verify=False)
        save(model, Path(destination))

    return job


def none() -> Job:
    import onnx

    return lambda source, destination: onnx.save(onnx.load(source), destination)


def onnxsim() -> Job:
    import onnx

    sim = importlib.import_module("onnxsim")
    # check_n=0: no comparison with the original, which nobody is asked for here.
    return lambda source, destination: onnx.save(sim.simplify(onnx.load(source), check_n=0)[0], destination)


def onnxslim() -> Job:
    import onnx

    slim = importlib.import_module("onnxslim")
    return lambda source, destination: onnx.save(slim.slim(source), destination)


def onnxoptimizer() -> Job:
    import onnx

    optimizer = importlib.import_module("onnxoptimizer")

    def job(source: str, destination: str) -> None:
        passes = optimizer.get_fuse_and_elimination_passes()
        onnx.save(optimizer.optimize(onnx.load(source), passes), destination)

    return job


def onnxscript() -> Job:
    optimizer, rewriter = (
        importlib.import_module(f"onnxscript.{part}") for part in ("optimizer", "rewriter")
    )
    import onnx_ir

    def job(source: str, destination: str) -> None:
        model = onnx_ir.load(source)
        optimizer.optimize(model)
        onnx_ir.save(rewriter.rewrite(model), destination)

    return job


def ort(level: str) -> Job:
    import onnxruntime

    def job(source: str, destination: str) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        options.optimized_model_filepath = destination
        options.log_severity_level = 3
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    return job


def polygraphy() -> Job:
    import onnx
    import onnx_graphsurgeon
    from polygraphy.backend.onnx import fold_constants, save_onnx

    def job(source: str, destination: str) -> None:
        model: Any = fold_constants(onnx.load(source), allow_onnxruntime_shape_inference=True)
        graph = onnx_graphsurgeon.import_onnx(model)
        graph.cleanup().toposort()
        save_onnx(onnx_graphsurgeon.export_onnx(graph), destination)

    return job


JOBS: dict[str, tuple[str, Callable[[], Job]]] = {
    "onnxlathe": ("onnxlathe", onnxlathe),
    "onnxsim": ("onnxsim", onnxsim),
    "onnxslim": ("onnxslim", onnxslim),
    "onnxscript": ("onnxscript", onnxscript),
    "onnxoptimizer": ("onnxoptimizer", onnxoptimizer),
    "ort_basic": ("onnxruntime", lambda: ort("ORT_ENABLE_BASIC")),
    "ort_extended": ("onnxruntime", lambda: ort("ORT_ENABLE_EXTENDED")),
    "polygraphy": ("polygraphy", polygraphy),
    "none": ("onnx", none),
}
"""Name of the optimizer -> the distribution it is in, and what imports it and makes its job."""


def main() -> None:
    name, source, destination, result = sys.argv[1:]
    distribution, make = JOBS[name]
    try:
        job = make()
    except ModuleNotFoundError as error:
        Path(result).write_text(json.dumps({"missing": error.name or distribution}))
        return
    started = time.perf_counter()
    job(source, destination)
    seconds = time.perf_counter() - started
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:  # run from a source tree
        version = "unknown"
    Path(result).write_text(json.dumps({"seconds": seconds, "version": version}))


if __name__ == "__main__":
    main()
