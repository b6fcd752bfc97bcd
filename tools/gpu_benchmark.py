#!/usr/bin/env python3
"""Latency on a GPU, in ONNX Runtime's CUDA provider, of models as they were before and after optimizers.

    tools/gpu_benchmark.py pack FOLDER MODEL=VARIANT.onnx…   graphs without their large weights, a file each
    tools/gpu_benchmark.py time FOLDER [--json OUT]          times what `pack` made; needs onnxruntime-gpu

The two steps may be on two machines: a graph without weights is some hundred kilobytes, and what weights
contain does not matter to how long a kernel takes. `time` fills them with numbers of the same mean and
standard deviation. Inputs and outputs lie on the device; the variants of a model take turns, so that all see
the same clocks; what is printed is the median over all turns.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

KEPT = 16 << 10  # bytes; smaller tensors travel as they are


def pack(source: Path, target: Path) -> None:
    """Write a model without its large weights, and what is to be known of them."""
    model = onnx.load(source)
    stubs = {}
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) < KEPT or _dull(tensor.raw_data):
            continue
        kind = tensor.data_type
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind != "f" and kind != TensorProto.BFLOAT16:
            continue
        wide = array.astype(np.float32)
        stubs[tensor.name] = {"mean": float(wide.mean()), "std": float(wide.std())}
        tensor.ClearField("raw_data")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(gzip.compress(model.SerializeToString(), 6))
    target.with_suffix(".json").write_text(json.dumps(stubs))


def _dull(data: bytes) -> bool:
    """Whether the data compress to a twentieth: a mask, whose extremes no drawn numbers could stand for."""
    sample = data[: 1 << 20]
    return len(zlib.compress(sample, 1)) * 20 < len(sample)


def unpack(path: Path) -> onnx.ModelProto:
    """The model with weights drawn anew."""
    model = onnx.load_from_string(gzip.decompress(path.read_bytes()))
    stubs = json.loads(path.with_suffix(".json").read_text())
    random = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if tensor.name in stubs:
            stub = stubs[tensor.name]
            size = int(np.prod(tensor.dims))
            drawn = random.standard_normal(size, np.float32) * stub["std"] + stub["mean"]
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            tensor.raw_data = drawn.astype(dtype).tobytes()
    return model


def feeds(model: onnx.ModelProto, sizes: dict[str, int]) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs of the wanted sizes: tokens, a mask of ones, noise."""
    random = np.random.default_rng(0)
    made: dict[str, np.ndarray[Any, Any]] = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [d.dim_value or sizes[d.dim_param] for d in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if "mask" in value.name:
            made[value.name] = np.ones(shape, dtype)
        elif dtype.kind in "iu":
            made[value.name] = random.integers(1, 900, shape).astype(dtype)
        else:
            made[value.name] = random.standard_normal(shape).astype(dtype)
    return made


class Timed:
    """A session of ONNX Runtime with everything on the device."""

    def __init__(self, path: Path, sizes: dict[str, int]) -> None:
        import onnxruntime as ort

        model = unpack(path)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        optimized = path.with_suffix(".ort.onnx")
        options.optimized_model_filepath = str(optimized)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        given = feeds(model, sizes)
        providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        self.session = ort.InferenceSession(model.SerializeToString(), options, providers=providers)
        graph = onnx.load(optimized, load_external_data=False).graph
        self.operators = Counter(node.op_type for node in graph.node)
        optimized.unlink()
        (path.parent / "weights").unlink(missing_ok=True)
        self.binding = self.session.io_binding()
        self.held = [ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0) for array in given.values()]
        for name, value in zip(given, self.held, strict=True):
            self.binding.bind_ortvalue_input(name, value)
        for output in self.session.get_outputs():
            self.binding.bind_output(output.name, "cuda", 0)
        self.seconds: list[float] = []
        self.run(15)
        self.seconds.clear()

    def run(self, times: int) -> None:
        """Run so often, and remember how long each run took."""
        for _ in range(times):
            start = time.perf_counter()
            self.session.run_with_iobinding(self.binding)
            self.binding.synchronize_outputs()
            self.seconds.append(time.perf_counter() - start)


def time_model(folder: Path, sizes: dict[str, int], rounds: int, runs: int) -> dict[str, Any]:
    """The variants of one model, in turns."""
    sessions: dict[str, Timed] = {}
    results: dict[str, Any] = {}
    for path in sorted(folder.glob("*.gz")):
        try:
            sessions[path.stem] = Timed(path, sizes)
        except Exception as problem:  # what one variant cannot do is part of the answer
            results[path.stem] = {"error": str(problem)[:400]}
    for _ in range(rounds):
        for timed in sessions.values():
            timed.run(runs)
    for name, timed in sessions.items():
        results[name] = {
            "ms": round(1e3 * statistics.median(timed.seconds), 4),
            "ms_p10": round(1e3 * float(np.quantile(timed.seconds, 0.1)), 4),
            "ms_p99": round(1e3 * float(np.quantile(timed.seconds, 0.99)), 4),
            "operators": dict(timed.operators.most_common()),
        }
    return results


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("folder", type=Path)
    packing.add_argument("models", nargs="+", metavar="MODEL/VARIANT=FILE.onnx")
    timing = commands.add_parser("time")
    timing.add_argument("folder", type=Path)
    timing.add_argument("--only", nargs="*", default=[])
    timing.add_argument("--dim", nargs="*", default=["batch=8", "seq=128"], metavar="NAME=SIZE")
    timing.add_argument("--rounds", type=int, default=6)
    timing.add_argument("--runs", type=int, default=30)
    timing.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "pack":
        for entry in arguments.models:
            name, _, path = entry.partition("=")
            pack(Path(path), arguments.folder / f"{name}.gz")
        return 0
    import onnxruntime as ort

    sizes = {name: int(size) for name, _, size in (entry.partition("=") for entry in arguments.dim)}
    results: dict[str, Any] = {"onnxruntime": ort.__version__, "providers": ort.get_available_providers()}
    for folder in sorted(p for p in arguments.folder.iterdir() if p.is_dir()):
        if arguments.only and folder.name not in arguments.only:
            continue
        results[folder.name] = time_model(folder, sizes, arguments.rounds, arguments.runs)
        for variant, found in results[folder.name].items():
            said = found.get("error") or f"{found['ms']:8.3f} ms  p99 {found['ms_p99']:8.3f}"
            print(f"{folder.name:16} {variant:28} {said}", flush=True)
            if "operators" in found:
                print(" " * 18, " ".join(f"{n}·{c}" for n, c in list(found["operators"].items())[:14]))
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
