"""Lower one model with one other tool: `precision_peer.py TOOL MODEL OUTPUT TYPE`.

Runs in an environment that has the tool (`nvidia-modelopt`, `onnxconverter-common`) and imports nothing of
OnnxLathe. The last line of standard output is a JSON object: seconds from file to file without imports.
"""

from __future__ import annotations

import json
import sys
import time


def autocast(source: str, target: str, kind: str) -> float:
    """NVIDIA ModelOpt's AutoCast, with the inputs that it makes up and its own defaults."""
    import onnx
    from modelopt.onnx.autocast import (  # type: ignore[import-not-found,unused-ignore]
        convert_to_mixed_precision,
    )

    start = time.perf_counter()
    model = convert_to_mixed_precision(onnx_path=source, low_precision_type=kind, keep_io_types=True)
    onnx.save(model, target)
    return time.perf_counter() - start


def converter(source: str, target: str, kind: str) -> float:
    """onnxconverter-common's float16, with its own list of operators to leave alone."""
    import onnx
    from onnxconverter_common import float16  # type: ignore[import-not-found,unused-ignore]

    if kind != "fp16":
        raise SystemExit("onnxconverter-common knows float16 only")
    start = time.perf_counter()
    model = float16.convert_float_to_float16(onnx.load(source), keep_io_types=True)
    onnx.save(model, target)
    return time.perf_counter() - start


if __name__ == "__main__":
    tool, model_path, output_path, low = sys.argv[1:]
    seconds = {"autocast": autocast, "converter": converter}[tool](model_path, output_path, low)
    print(json.dumps({"seconds": seconds}))
