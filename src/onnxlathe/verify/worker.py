"""The child process that runs models: `python -m onnxlathe.verify.worker`.

Native code can crash and hang; here it does so alone. Requests come in on standard input and answers go out
on standard output, one JSON object a line; tensors travel through files (see `store`). One model is open at a
time::

    {"do": "open", "model": PATH, "threads": 2}          → {"inputs": […], "outputs": […]}; and `instead`: why
                                                           onnx's evaluator is used rather than ONNX Runtime
    {"do": "run", "feed": PATH, "save": PATH}            → {"outputs": {…}, "bases": {…}, "blank": […]}
    {"do": "compare", "feed": PATH, "expected": PATH, "index": 0, "tolerances": {output: {…}}}
                                                         → {"comparisons": […]}
    {"do": "close"}                                      → {}

A request that fails is answered by {"error": {kind, message, operator, node}}; for the kinds see `classify`.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from onnxlathe.defaults import WEIGHTS_LIST

from . import metrics, store
from .tolerance import EXACT, Tolerance
from .verdict import Comparison

# Element types that numpy lacks, by ONNX Runtime's name for them: (number in onnx.TensorProto, ml_dtypes).
_EXOTIC = {
    "bfloat16": (16, "bfloat16"),
    "float8e4m3fn": (17, "float8_e4m3fn"),
    "float8e4m3fnuz": (18, "float8_e4m3fnuz"),
    "float8e5m2": (19, "float8_e5m2"),
    "float8e5m2fnuz": (20, "float8_e5m2fnuz"),
}


_SMALL_FILE = 16 << 20  # bytes that onnx's evaluator is bothered with


def classify(message: str) -> dict[str, str]:
    """What kind of failure an ONNX Runtime message tells of, and which operator and node it names.

    Kinds: ``unsupported`` (no such operator or no kernel for its types), ``version`` (IR version or opset too
    new), ``memory``, ``invalid`` (everything else: the model or its inputs are at fault).
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", message).strip()
    short = re.sub(r"/\S*onnxruntime_src/\S+?:\d+ .*?\)(?= [A-Z]) ", "", text)
    short = re.sub(r"\w+: \[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed:", "", short)
    found = {"kind": "invalid", "message": short[:2000], "operator": "", "node": ""}
    if match := re.search(r"error: ([\w.\-]*):(\w+)\(-?\d*\) is not a registered function/op", text):
        domain, operator = match.groups()
        return found | {"kind": "unsupported", "operator": f"{domain}::{operator}" if domain else operator}
    if match := re.search(
        r"Could not find an implementation for ([\w.:]+)\(\d+\) node with name '(.*?)'", text
    ):
        operator, node = match.groups()
        domain, _, name = operator.rpartition(".") if "." in operator else operator.rpartition(":")
        found |= {"operator": f"{domain.rstrip(':')}::{name}" if domain else name, "node": node}
        return found | {"kind": "unsupported"}
    if match := re.search(r"Non-zero status code returned while running (\S+) node\. Name:'(.*?)'", text):
        found |= {"operator": match[1], "node": match[2]}
    if "NOT_IMPLEMENTED" in text or "NotImplemented" in text:
        return found | {"kind": "unsupported"}
    if "Unsupported model IR version" in text or "only *guarantees* support" in text:
        return found | {"kind": "version"}
    if "bad_alloc" in text or "Failed to allocate memory" in text or "MemoryError" in text:
        return found | {"kind": "memory"}
    return found


def _session(path: str, threads: int) -> Any:
    """An ONNX Runtime session that runs the model as it is written: nothing fused, folded or repacked."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_prepacking", "1")
    weights = _mapped_weights(ort, Path(path + WEIGHTS_LIST))
    if weights:
        options.add_external_initializers(list(weights), list(weights.values()))
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    session.onnxlathe_weights = weights  # which the session uses and does not own
    return session


def _mapped_weights(ort: Any, listed: Path) -> dict[str, Any]:
    """The weights in a list of `onnxlathe.model.mapped`, mapped into memory."""
    weights = {}
    for weight in json.loads(listed.read_text(encoding="utf-8")) if listed.exists() else ():
        array = np.memmap(weight["path"], weight["dtype"], "r", weight["offset"], tuple(weight["shape"]))
        weights[weight["name"]] = (
            ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, weight["exotic"])
            if weight["exotic"]
            else ort.OrtValue.ortvalue_from_numpy(array)
        )
    return weights


def _runner_class() -> type:
    """Polygraphy's ONNX Runtime runner, taught tensors that numpy cannot hold, sequences and optionals."""
    import onnxruntime as ort
    from polygraphy.backend.onnxrt import OnnxrtRunner

    class Runner(OnnxrtRunner):  # type: ignore[misc]
        def infer_impl(self, feed_dict: dict[str, np.ndarray]) -> OrderedDict[str, np.ndarray]:
            types = [i.type for i in (*self.sess.get_inputs(), *self.sess.get_outputs())]
            if any(_exotic(t) for t in types):
                fed = {name: _to_ort(ort, array) for name, array in feed_dict.items()}
                values = [_from_ort(v) for v in self.sess.run_with_ort_values(None, fed)]
            else:
                values = self.sess.run(None, feed_dict)
            self.inference_time = 0.0
            flat: OrderedDict[str, np.ndarray] = OrderedDict()
            self.bases: dict[str, str] = {}  # array → the output that it is a part of
            for output, value in zip(self.sess.get_outputs(), values, strict=True):
                _flatten(output.name, value, flat)
                self.bases |= {name: output.name for name in flat if name not in self.bases}
            return flat

    return Runner


class Reference:
    """onnx's own evaluator, slow and complete: for operator sets that ONNX Runtime does not know yet.

    Args:
        path: of a model with few weights.
    """

    def __init__(self, path: str) -> None:
        import onnx
        from onnx.reference import ReferenceEvaluator

        proto = onnx.load(path)
        given = {tensor.name for tensor in proto.graph.initializer}
        self.inputs = [i.name for i in proto.graph.input if i.name not in given]
        self.outputs = [o.name for o in proto.graph.output]
        self.bases: dict[str, str] = {}
        self._evaluator = ReferenceEvaluator(proto)

    def infer(self, feed: dict[str, np.ndarray], check_inputs: bool) -> OrderedDict[str, np.ndarray]:
        flat: OrderedDict[str, np.ndarray] = OrderedDict()
        self.bases = {}
        with np.errstate(all="ignore"):
            values = self._evaluator.run(None, feed)
        for output, value in zip(self.outputs, values, strict=True):
            _flatten(output, value, flat)
            self.bases |= {name: output for name in flat if name not in self.bases}
        return flat

    def deactivate(self) -> None:
        """Nothing is held."""


def _exotic(type_: str) -> bool:
    return type_.removeprefix("tensor(").removesuffix(")") in _EXOTIC


def _to_ort(ort: Any, array: np.ndarray) -> Any:
    for number, name in _EXOTIC.values():
        if array.dtype.name == name:
            raw = array.view(np.uint16 if array.dtype.itemsize == 2 else np.uint8)
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, number)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _from_ort(value: Any) -> Any:
    if value.is_tensor() and _exotic(value.data_type()):
        import ml_dtypes

        dtype = np.dtype(getattr(ml_dtypes, _EXOTIC[value.data_type()[7:-1]][1]))
        shape = value.shape()
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return np.frombuffer(ctypes.string_at(value.data_ptr(), count), dtype).reshape(shape)
    return value.numpy()


def _flatten(name: str, value: Any, into: OrderedDict[str, np.ndarray]) -> None:
    """Sequences, maps and empty optionals as arrays under names of their own."""
    if isinstance(value, np.ndarray):
        into[name] = value
    elif isinstance(value, list):
        into[f"{name}.length"] = np.asarray(len(value))
        for i, element in enumerate(value):
            _flatten(f"{name}[{i}]", element, into)
    elif isinstance(value, dict):
        into[f"{name}.keys"] = np.array([str(k) for k in value], dtype=object)
        into[f"{name}.values"] = np.array(list(value.values()))
    elif value is None:
        into[f"{name}.is_empty"] = np.asarray(True)
    else:
        into[name] = np.asarray(value)


class Worker:
    """Answers requests; holds the one open model."""

    def __init__(self) -> None:
        self._runner: Any = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """One answer for one request; never raises for what a model or its inputs do."""
        try:
            answer: dict[str, Any] = getattr(self, "do_" + request.pop("do"))(**request)
            return answer
        except MemoryError:
            return {"error": classify("MemoryError: out of memory")}
        except Exception as error:
            return {"error": classify(f"{type(error).__name__}: {error}")}

    def do_open(self, model: str, threads: int) -> dict[str, Any]:
        """Load a model."""
        self.do_close()
        runner = _runner_class()(lambda: _session(model, threads), name="onnxlathe")
        try:
            runner.activate()
        except Exception as error:
            said = classify(f"{type(error).__name__}: {error}")
            if said["kind"] != "version" or os.path.getsize(model) > _SMALL_FILE:
                raise
            try:
                self._runner = reference = Reference(model)
            except Exception:
                raise error from None
            return {"inputs": reference.inputs, "outputs": reference.outputs, "instead": [said["message"]]}
        self._runner = runner
        return {
            "inputs": [i.name for i in runner.sess.get_inputs()],
            "outputs": [o.name for o in runner.sess.get_outputs()],
        }

    def do_close(self) -> dict[str, Any]:
        """Let go of the open model."""
        if self._runner is not None:
            self._runner.deactivate()
            self._runner = None
            gc.collect()
        return {}

    def _infer(self, feed: str) -> OrderedDict[str, np.ndarray]:
        with store.Stored(Path(feed)) as stored:
            arrays = dict(stored)
        outputs: OrderedDict[str, np.ndarray] = self._runner.infer(arrays, check_inputs=False)
        return outputs

    def do_run(self, feed: str, save: str) -> dict[str, Any]:
        """Run on a feed and keep the outputs.

        The answer holds the arrays' types, the output that each is (a part) of, and which are ``blank``:
        without a single finite number.
        """
        outputs = self._infer(feed)
        store.write(Path(save), outputs)
        return {
            "outputs": {name: metrics.dtype_name(array) for name, array in outputs.items()},
            "bases": self._runner.bases,
            "blank": [name for name, array in outputs.items() if _is_blank(array)],
        }

    def do_compare(
        self, feed: str, expected: str, index: int, tolerances: dict[str, dict[str, Any]]
    ) -> dict[str, Any]:
        """Run on a feed and compare, through Polygraphy's comparator, with outputs that were kept.

        Outputs without a tolerance are not looked at.
        """
        from polygraphy.comparator import Comparator, IterationResult, RunResults

        found: list[Comparison] = []
        allowed = {name: msgspec.convert(t, Tolerance) for name, t in tolerances.items()}

        def compare(reference: Any, candidate: Any) -> OrderedDict[str, bool]:
            passed: OrderedDict[str, bool] = OrderedDict()
            for name in [n for n in stored if n in allowed]:
                if name in candidate:
                    comparison = metrics.compare(
                        name, index, reference[name], candidate[name], allowed.get(name, EXACT)
                    )
                else:
                    comparison = Comparison(name, index, "", [], False, "is missing", excess=np.inf)
                found.append(comparison)
                # Under the output's own name Polygraphy would sort it for statistics that nobody reads.
                passed[f"{name} on feed {index}"] = comparison.passed
            return passed

        with store.Stored(Path(expected)) as stored:
            runs = RunResults(
                [
                    ("original", [IterationResult({n: stored[n] for n in stored if n in allowed})]),
                    ("optimized", [IterationResult(self._infer(feed))]),
                ]
            )
            Comparator.compare_accuracy(runs, compare_func=compare)
        return {"comparisons": [msgspec.to_builtins(c) for c in found]}


def _is_blank(array: np.ndarray) -> bool:
    if array.size == 0 or array.dtype.kind not in "fcV":
        return False
    plain = array.astype(np.float32) if array.dtype.kind == "V" else array
    return not bool(np.isfinite(plain).any())


def _limit_memory() -> None:
    """Fail to allocate, which is an answer, rather than bring the machine's out-of-memory killer about."""
    try:
        import resource

        text = Path("/proc/meminfo").read_text()
        available = int(re.findall(r"MemAvailable:\s+(\d+) kB", text)[0]) * 1024
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = available * 9 // 10
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard < 0 else min(limit, hard), hard))
    except (ImportError, OSError, ValueError, IndexError):
        pass  # not Linux


def main() -> None:
    """Serve until standard input ends."""
    # Libraries print to standard output too: keep it to ourselves and give them standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    import onnxruntime  # noqa: F401  imported now, while the parent prepares inputs
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    _limit_memory()
    worker = Worker()
    for line in sys.stdin:
        answers.write(json.dumps(worker.answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
