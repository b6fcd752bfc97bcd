"""The child process of `programs`: `python -P -m onnxlathe.adapters.child PASS IN OUT OPTIONS`.

Imports nothing of the workbench: what runs here is only the other program.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

_LARGE = 2_000_000_000  # bytes that one protobuf message holds


def _save(model: Any, path: str) -> None:
    import onnx

    if model.ByteSize() > _LARGE:
        onnx.save(model, path, save_as_external_data=True, location="after.onnx.data")
    else:
        onnx.save(model, path)


def onnxsim(source: str, result: str, options: dict[str, Any]) -> None:
    """onnx-simplifier."""
    import onnx
    import onnxsim as program

    model, _ = program.simplify(
        onnx.load(source),
        skip_fuse_bn=options["skip_fuse_bn"],
        skip_constant_folding=options["skip_constant_folding"],
        skip_shape_inference=options["skip_shape_inference"],
        skipped_optimizers=options["skip"] or None,
    )
    _save(model, result)


def onnxslim(source: str, result: str, options: dict[str, Any]) -> None:
    """onnxslim."""
    import onnx
    import onnxslim as program

    given: dict[str, Any] = {"no_shape_infer": options["no_shape_infer"]}
    if options["skip"]:
        given["skip_optimizations"] = options["skip"]
    if options["skip_fusions"]:
        given["skip_fusion_patterns"] = options["skip_fusions"]
    _save(program.slim(onnx.load(source), **given), result)


def onnxoptimizer(source: str, result: str, options: dict[str, Any]) -> None:
    """onnxoptimizer."""
    import onnx
    import onnxoptimizer as program

    _save(program.optimize(onnx.load(source), options["passes"] or None, options["fixed_point"]), result)


def _ort(source: str, result: str, options: dict[str, Any], level: str) -> None:
    import onnxruntime as ort

    session = ort.SessionOptions()
    session.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    session.optimized_model_filepath = result
    session.log_severity_level = 3
    ort.InferenceSession(
        source, session, providers=["CPUExecutionProvider"], disabled_optimizers=options["skip"] or None
    )


def ort_basic(source: str, result: str, options: dict[str, Any]) -> None:
    """ONNX Runtime's offline optimizer, basic."""
    _ort(source, result, options, "ORT_ENABLE_BASIC")


def ort_extended(source: str, result: str, options: dict[str, Any]) -> None:
    """ONNX Runtime's offline optimizer, extended."""
    _ort(source, result, options, "ORT_ENABLE_EXTENDED")


def surgeon(source: str, result: str, options: dict[str, Any]) -> None:
    """Polygraphy's surgeon."""
    from polygraphy.tools import main

    flags = [f"--{name.replace('_', '-')}" for name, wanted in options.items() if wanted]
    sys.argv = ["polygraphy", "surgeon", "sanitize", source, "-o", result, *flags]
    code = main()
    if code:
        sys.exit(code)


_PROGRAMS: dict[str, Callable[[str, str, dict[str, Any]], None]] = {
    p.__name__: p for p in (onnxsim, onnxslim, onnxoptimizer, ort_basic, ort_extended, surgeon)
}


if __name__ == "__main__":
    name, source, result, options = sys.argv[1:]
    _PROGRAMS[name](source, result, json.loads(options))
