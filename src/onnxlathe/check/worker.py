"""The child process that runs instances: `python -P -m onnxlathe.check.worker`.

Requests and answers are MessagePack behind four bytes of length. A request holds models (serialized, or the
path of a file) and feeds; the answer holds, for each runtime, what each model gave for each feed, or why it
gave nothing. Two runtimes, because each is blind somewhere: ONNX Runtime computes half precision in float32
on a CPU, and the reference evaluator does not have every operator right.
"""

from __future__ import annotations

import os
import struct
import sys
from typing import Any, BinaryIO

import msgspec
import numpy as np

Packed = tuple[str, list[int], bytes]


def pack(array: np.ndarray[Any, Any]) -> Packed:
    """An array as plain data; strings are joined by zero bytes."""
    if array.dtype.kind in "OSU":
        return "str", list(array.shape), "\0".join(map(str, array.reshape(-1).tolist())).encode()
    return array.dtype.name, list(array.shape), np.ascontiguousarray(array).tobytes()


def unpack(packed: Any) -> np.ndarray[Any, Any]:
    """The array again."""
    name, shape, data = packed
    if name == "str":
        return np.array(data.decode().split("\0") if data else [], object).reshape(shape)
    try:
        dtype = np.dtype(name)
    except TypeError:
        import ml_dtypes

        dtype = np.dtype(getattr(ml_dtypes, name))
    return np.frombuffer(data, dtype).reshape(shape)


def send(stream: BinaryIO, message: Any) -> None:
    """Write one message."""
    data = msgspec.msgpack.encode(message)
    stream.write(struct.pack("<I", len(data)) + data)
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """Read one message; `None` at the end."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    return msgspec.msgpack.decode(stream.read(struct.unpack("<I", head)[0]))


def _onnxruntime(model: bytes | str) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed)


def _reference(model: bytes | str) -> Any:
    import onnx
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    class LogSoftmax(OpRun):  # type: ignore[misc]
        """Finite where the evaluator's own, the logarithm of a Softmax, takes that of 0."""

        def _run(self, x: Any, axis: int = -1) -> Any:
            shifted = x - x.max(axis=axis, keepdims=True)
            return (shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)).astype(x.dtype),)

    evaluator = ReferenceEvaluator(
        onnx.load(model) if isinstance(model, str) else onnx.load_from_string(model), new_ops=[LogSoftmax]
    )
    return lambda feed: evaluator.run(None, feed)


_RUNTIMES = {"ONNX Runtime": _onnxruntime, "the reference evaluator": _reference}


def _outputs(runtime: str, model: bytes | str, feeds: list[dict[str, Any]]) -> dict[str, Any]:
    try:
        run = _RUNTIMES[runtime](model)
        results = []
        with np.errstate(all="ignore"):
            for feed in feeds:
                outputs = [np.asarray(v) if v is not None else np.zeros(0) for v in run(feed)]
                results.append([pack(v) for v in outputs])
        return {"outputs": results}
    except MemoryError:
        return {"error": "there is not enough memory"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:1000]}


def main() -> None:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries print
    import warnings

    import onnxruntime  # noqa: F401  imported now, while the parent draws its first instance

    from onnxlathe.verify.worker import _limit_memory

    warnings.simplefilter("ignore")
    _limit_memory()
    while (request := receive(sys.stdin.buffer)) is not None:
        feeds = [{name: unpack(p) for name, p in feed.items()} for feed in request["feeds"]]
        send(
            answers,
            {
                runtime: [_outputs(runtime, model, feeds) for model in request["models"]]
                for runtime in request["runtimes"]
            },
        )


if __name__ == "__main__":
    main()
