"""How long ONNX Runtime takes: `python -m onnxlathe.target.ort_latency MODEL FEED.npz PROVIDER`.

A process of its own, since it may crash. One JSON object on stdout: `milliseconds` of each run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_WARM_UP, _MEASURED, _FEWEST, _MOST = 3, 2.0, 5, 300


def latency(model: Path, feed: Path, provider: str, *, timeout: float) -> list[float]:
    """Milliseconds of single runs of a model on a feed; none where it cannot be run by `provider`."""
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-P", "-m", __name__, str(model), str(feed), provider]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=timeout, env=os.environ | {"PYTHONPATH": path}
        )
        found: list[float] = json.loads(done.stdout)["milliseconds"]
        return found
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError):
        return []


def _main(model: str, feed: str, provider: str) -> dict[str, Any]:
    import onnxruntime as ort

    from onnxlathe.verify import store

    if provider not in ort.get_available_providers():
        return {"milliseconds": []}
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model, options, providers=[provider])
    if session.get_providers()[0] != provider:  # it fell back
        return {"milliseconds": []}
    with store.Stored(Path(feed)) as stored:
        inputs = dict(stored)
    for _ in range(_WARM_UP):
        session.run(None, inputs)
    milliseconds: list[float] = []
    end = time.perf_counter() + _MEASURED
    while len(milliseconds) < _MOST and (len(milliseconds) < _FEWEST or time.perf_counter() < end):
        started = time.perf_counter()
        session.run(None, inputs)
        milliseconds.append((time.perf_counter() - started) * 1000)
    return {"milliseconds": milliseconds}


if __name__ == "__main__":
    print(json.dumps(_main(*sys.argv[1:4])))
