"""ONNX's own operator models through TensorRT: raw, and after `legalize`.

    python tools/conformance.py                       # all 1,884 models
    python tools/conformance.py --slice 1/8 --bind    # every eighth; inputs may be bound, outputs padded

A model counts where the target's parser takes it, an engine is built, and the (rewritten) model gives the
suite's own expected outputs in ONNX Runtime or in the reference evaluator, at the suite's own tolerance.
Inputs whose type was widened are fed the same numbers in the wider type. Where the network has shape inputs
(the builder then asks for an optimization profile), the profile is made from the suite's sample. Of outputs that
were padded, because their size depends on data, the real rows are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")
TIMEOUT = 240.0  # seconds for one model with all its attempts
SHAPE_VALUES = 64  # integer inputs up to this size may be what decides on shapes


def cases() -> dict[str, Any]:
    """The suite's node models by name."""
    from onnx.backend.test.case.node import collect_testcases

    return {case.name: case for case in collect_testcases(None) if case.model is not None}


# One model, in a worker process.


class Bench:
    """Judges raw and rewritten models."""

    def __init__(self, save: Path | None) -> None:
        from onnxlathe.target import find_target
        from onnxlathe_passes.legalize.judge import TargetJudge

        target = find_target()
        if not target.available:
            raise SystemExit(f"conformance needs a target: {target.reason}")
        self.judge = TargetJudge(target, None)  # type: ignore[arg-type]
        self.save = save

    def examine(self, case: Any, modes: list[str]) -> dict[str, Any]:
        """All columns for one case."""
        import onnx_ir as ir

        row: dict[str, Any] = {
            "name": case.name,
            "operator": operator_of(case),
            "expanded": "expanded" in case.name,
        }
        expect = expectation(case)
        raw = ir.from_proto(case.model)
        plain = self.judge.without_profile(raw)  # as other tools were measured
        ruling = plain if plain.accepted else self.judge.judge(raw, expect)
        row["raw"] = {"parsed": plain.parsed, "built": plain.accepted, "message": plain.message}
        row["profile"] = {
            "parsed": ruling.parsed,
            "built": ruling.accepted,
            "equal": None,
            "message": ruling.message,
        }
        if ruling.accepted:
            row["profile"]["equal"], row["profile"]["why"] = equal(case.model, case)
        for mode in modes:
            good = row.get("legalize") if mode == "bind" else row["profile"]
            if good and good["built"] and good["equal"]:
                row[mode] = {**good, "how": good.get("how", [])}
                continue
            row[mode] = self.legalized(case, expect, binding=mode == "bind")
        return row

    def legalized(self, case: Any, expect: dict[str, Any], *, binding: bool) -> dict[str, Any]:
        """Parsed, built and equal after `legalize`; the first choice of bound inputs that gives all three.

        Outputs may be padded then, too.
        """
        best: dict[str, Any] = {"parsed": False, "built": False, "equal": None, "message": "nothing to bind"}
        sized = any(node.op_type in SIZED for node in case.model.graph.node)
        for bound in [*([()] if sized else []), *bindings(case)] if binding else [()]:
            found = self.once(case, expect, bound, pad="max" if binding else "")
            found["bound"] = list(bound)
            if (found["built"], bool(found["equal"])) >= (best["built"], bool(best["equal"])):
                best = found
            if found["built"] and found["equal"]:
                break
        return best

    def once(
        self, case: Any, expect: dict[str, Any], bound: tuple[str, ...], *, pad: str = ""
    ) -> dict[str, Any]:
        import onnx_ir as ir

        import onnxlathe
        from onnxlathe.infer import infer_model
        from onnxlathe.model.interface import interface_of
        from onnxlathe.model.padded import unpadded
        from onnxlathe.rewrite import Context
        from onnxlathe_passes.legalize import Legalize
        from onnxlathe_passes.legalize.run import Legalizing

        started = time.perf_counter()
        feeds = samples(case)
        as_text = lambda names: "; ".join(f"{n}={feeds[n].tolist()!r}" for n in names)  # noqa: E731
        expect = {k: v for k, v in expect.items() if k not in bound}
        options = Legalize(
            io_types="widen",
            pad=pad,
            bind=as_text(bound),
            expect=as_text([n for n, v in expect.items() if "values" in v]),
            cache="none",
        )
        try:
            model = onnxlathe.Model(ir.from_proto(case.model))
            infer_model(model)
            context = Context.of(model.ir)
            Legalizing(options, model, context, self.judge).run()
            proto = ir.to_proto(model.ir)
        except Exception as error:
            import traceback

            return {
                "parsed": False, "built": False, "equal": None, "how": [],
                "message": f"legalize raised {type(error).__name__}: {error}",
                "trace": traceback.format_exc()[-1500:],
            }  # fmt: skip
        ruling = self.judge.judge(model.ir, expect)
        found = {
            "parsed": ruling.parsed, "built": ruling.accepted, "equal": None,
            "message": ruling.message, "how": context.notes,
        }  # fmt: skip
        if ruling.accepted:
            unpadded(model.graph, interface_of(model.ir).padded)
            found["equal"], found["why"] = equal(ir.to_proto(model.ir), case)
        if self.save is not None:
            folder = self.save / ("bound" if bound else "kept")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{case.name}.onnx").write_bytes(proto.SerializeToString())
        found["seconds"] = round(time.perf_counter() - started, 2)
        return found


SIZED = ("Compress", "NonMaxSuppression", "NonZero", "Unique")
"""Operators whose result has a size that data decide."""


def operator_of(case: Any) -> str:
    """The operator that a model of the suite is about."""
    name = re.sub(r"_expanded.*$", "", case.name)
    origin = PLAIN.get(name)
    model = origin.model if origin is not None else case.model
    return str(model.graph.node[0].op_type if len(model.graph.node) == 1 or origin is not None else name)


PLAIN: dict[str, Any] = {}


def samples(case: Any) -> dict[str, Any]:
    """The suite's inputs by name."""
    return {v.name: _array(x) for v, x in zip(case.model.graph.input, case.data_sets[0][0], strict=False)}


def _array(value: Any) -> Any:
    """The suite holds some element types as protobuf messages."""
    import onnx

    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def expectation(case: Any) -> dict[str, Any]:
    """Shapes of the sample, and the contents of small integer inputs."""
    import numpy as np

    found: dict[str, Any] = {}
    for name, value in samples(case).items():
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "iufb":
            found[name] = {"shape": list(value.shape)}
            if value.size <= SHAPE_VALUES and value.dtype.kind in "iub":
                found[name]["values"] = value.reshape(-1).astype(np.int64).tolist()
            elif value.size <= 8 and value.dtype == np.float32 and np.isfinite(value).all():
                found[name]["values"] = value.reshape(-1).tolist()
    return found


# Operands that decide on shapes or on the kernel: what a user would make a constant of the engine.
OPERANDS: dict[str, tuple[int, ...]] = {
    operator: places
    for places, operators in {
        (0,): "ConstantOfShape BlackmanWindow HannWindow HammingWindow If",
        (0, 1): "Loop",
        (0, 1, 2): "Range",
        (0, 1, 2, 3, 4): "MelWeightMatrix",
        (
            1,
        ): "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp "
        "ReduceSumSquare Squeeze Unsqueeze Upsample Tile Expand Reshape TopK CumSum CumProd Split SplitToSequence "
        "CenterCropPad AffineGrid Compress BitShift Trilu Gather SequenceAt ArrayFeatureExtractor",
        (1, 2): "OneHot DFT Col2Im Clip QuantizeLinear DequantizeLinear Dropout",
        (1, 2, 3): "Resize Pad STFT MatMulInteger ConvInteger",
        (1, 2, 3, 4): "Slice",
        (1, 2, 3, 4, 5, 6, 7): "QLinearMatMul",
        (1, 2, 3, 4, 5, 6, 7, 8): "QLinearConv",
        (2,): "MaxUnpool SequenceInsert TensorScatter",
        (2, 3, 4): "NonMaxSuppression",
        (6,): "Attention",
    }.items()
    for operator in operators.split()
}


def bindings(case: Any) -> list[tuple[str, ...]]:
    """Which inputs to bind, the fewest first."""
    import numpy as np

    feeds = samples(case)
    name = re.sub(r"_expanded.*$", "", case.name)
    plain = PLAIN.get(name, case)
    node = plain.model.graph.node[0]
    named = [
        node.input[i]
        for i in OPERANDS.get(node.op_type, ())
        if i < len(node.input) and node.input[i] in feeds
    ]
    first = plain.model.graph.input[0].name if plain.model.graph.input else ""
    small = [
        n
        for n, v in feeds.items()
        if n != first and isinstance(v, np.ndarray) and v.dtype.kind in "iub" and v.size <= 16 and v.ndim <= 1
    ]
    choices: list[tuple[str, ...]] = []
    for group in ([named[:1]] if named else []), ([named] if named else []), ([small] if small else []):
        for choice in group:
            if choice and tuple(choice) not in choices:
                choices.append(tuple(choice))
    return choices


# Numbers.


def equal(model: Any, case: Any) -> tuple[bool, str]:
    """Whether `model` gives the suite's expected outputs, and if not, how it fails."""
    reasons = []
    for engine in (_in_runtime, _in_reference):
        wrong = ""
        try:
            for inputs, expected in case.data_sets:
                feeds = {v.name: _array(x) for v, x in zip(case.model.graph.input, inputs, strict=False)}
                found = engine(model, _fitting(model, feeds))
                wrong = wrong or _differs(found, [_array(x) for x in expected], case)
        except Exception as error:
            wrong = f"{type(error).__name__}: {str(error)[:200]}"
        if not wrong:
            return True, ""
        reasons.append(f"{engine.__name__[4:]}: {wrong}")
    return False, "; ".join(reasons)


def _fitting(model: Any, feeds: dict[str, Any]) -> dict[str, Any]:
    """The sample in the types that the model now asks for; the same numbers."""
    import numpy as np
    import onnx

    fitting = {}
    for value in model.graph.input:
        x = feeds[value.name]
        if value.type.HasField("tensor_type") and isinstance(x, (np.ndarray, np.generic)):
            wanted = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            x = np.asarray(x)
            if x.dtype != wanted and x.dtype.kind not in "OUS":
                x = x.astype(np.float32).astype(wanted) if x.dtype.kind == "V" else x.astype(wanted)
        fitting[value.name] = x
    return fitting


def _in_runtime(model: Any, feeds: dict[str, Any]) -> list[Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def _in_reference(model: Any, feeds: dict[str, Any]) -> list[Any]:
    from onnx.reference import ReferenceEvaluator

    return list(ReferenceEvaluator(model).run(None, feeds))


def _differs(found: list[Any], expected: list[Any], case: Any) -> str:
    if len(found) != len(expected):
        return f"{len(found)} outputs rather than {len(expected)}"
    for i, (f, e) in enumerate(zip(found, expected, strict=True)):
        wrong = _difference(f, e, case)
        if wrong:
            return f"output {i}: {wrong}"
    return ""


def _difference(found: Any, expected: Any, case: Any) -> str:
    import numpy as np

    if isinstance(expected, (list, tuple)) or expected is None:
        if expected is None or found is None:
            return "" if found is expected else "one is none"
        if len(found) != len(expected):
            return "another length"
        return next(filter(None, (_difference(f, e, case) for f, e in zip(found, expected, strict=True))), "")
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape:
        return f"shape {found.shape} rather than {expected.shape}"
    if expected.dtype.kind in "OUS":
        return "" if np.array_equal(found, expected) else "other strings"
    if case.name.startswith(("test_bernoulli", "test_random")) and not case.name.endswith("deterministic"):
        return ""  # the suite itself only compares shapes of random results
    wide = np.complex128 if "c" in (found.dtype.kind, expected.dtype.kind) else np.float64
    if expected.dtype.kind in "iu" and found.dtype.kind in "iu":
        return "" if np.array_equal(found.astype(object), expected.astype(object)) else "other integers"
    try:
        np.testing.assert_allclose(
            found.astype(wide), expected.astype(wide), rtol=case.rtol, atol=case.atol, equal_nan=True
        )
    except AssertionError as error:
        return str(error).replace("\n", " ")[:160]
    return ""


# Workers.


def work(options: argparse.Namespace) -> None:
    """The worker: names on stdin, rows on stdout."""
    import onnxlathe  # noqa: F401

    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    suite = cases()
    PLAIN.update({n: c for n, c in suite.items() if "_expanded" not in n})
    bench = Bench(Path(options.save) if options.save else None)
    out.write("ready\n")
    out.flush()
    for line in sys.stdin:
        out.write(json.dumps(bench.examine(suite[line.strip()], modes_of(options))) + "\n")
        out.flush()


def modes_of(options: argparse.Namespace) -> list[str]:
    return [] if options.raw else ["legalize", "bind"] if options.bind else ["legalize"]


class Worker:
    """A child that examines models one by one, started again when it dies."""

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = arguments
        self.process: subprocess.Popen[str] | None = None
        self.replies: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", *self.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # The suite is ahead of ONNX Runtime's newest operator set, mostly without new meanings.
            env=os.environ | {"ALLOW_RELEASED_ONNX_OPSET_ONLY": "0"},
        )
        self.replies = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(self.process, self.replies), daemon=True).start()
        if self.replies.get(timeout=300) != "ready\n":
            raise SystemExit("the worker does not start; run with --worker to see why")

    @staticmethod
    def _read(process: subprocess.Popen[str], replies: queue.SimpleQueue[str | None]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            replies.put(line)
        replies.put(None)

    def examine(self, name: str) -> dict[str, Any]:
        if self.process is None or self.process.poll() is not None:
            self.start()
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        try:
            line = self.replies.get(timeout=TIMEOUT)
        except queue.Empty:
            line = None
            self.process.kill()
        if line is None:
            self.process.wait()
            self.process = None
            return {"name": name, "operator": name, "dead": True}
        found: dict[str, Any] = json.loads(line)
        return found


# Reports.


def counts(rows: list[dict[str, Any]], mode: str) -> Counter[str]:
    """How many are parsed, built, and good in all three columns."""
    total: Counter[str] = Counter()
    for row in rows:
        column = row.get(mode) or {}
        total["parsed"] += bool(column.get("parsed"))
        total["built"] += bool(column.get("built"))
        total["good"] += bool(column.get("built") and column.get("equal"))
    return total


def markdown(rows: list[dict[str, Any]], title: str, modes: list[str]) -> str:
    """The report."""
    lines = [f"# ONNX conformance through {title}", "", f"{len(rows)} node models.", ""]
    lines += ["| what was done first | parsed | engine built | numbers equal, too |", "|---|---|---|---|"]
    heads = {
        "raw": "nothing", "profile": "nothing, with an optimization profile for shape inputs",
        "legalize": "`legalize`, interface kept or widened",
        "bind": "`legalize`, inputs may be bound, outputs padded",
    }  # fmt: skip
    for mode in ["raw", "profile", *modes]:
        c = counts(rows, mode)
        lines.append(
            f"| {heads[mode]} | {c['parsed']} | {c['built']} | {c['good'] if mode != 'raw' else ''} |"
        )
    table: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        table[row["operator"]].append(row)
    lines += ["", "## By operator", ""]
    last = modes[-1] if modes else "profile"
    whole = sorted(
        o for o, m in table.items() if all(not reason(r, mode) for r in m for mode in modes or [last])
    )
    lines += [f"Every model in every column: {', '.join(whole)}.", ""]
    lines += ["The others:", "", "| operator | models | raw | " + " | ".join(modes) + " | why not |"]
    lines.append("|---|---|---|" + "---|" * (len(modes) + 1))
    for operator, members in sorted(table.items()):
        if operator in whole:
            continue
        raw = counts(members, "raw")["built"]
        good = [counts(members, mode)["good"] for mode in modes]
        why = Counter(verdict(row, modes) for row in members)
        del why[""]
        text = "; ".join(f"{n}× {w}" for w, n in why.most_common(3)).replace("|", "\\|")
        lines.append(f"| {operator} | {len(members)} | {raw} | {' | '.join(map(str, good))} | {text} |")
    return "\n".join(lines) + "\n"


NO_REWRITE = {
    "BitCast": "the bits of floats are not had by arithmetic",
    "DeformConv": "no rewrite for these shapes",
    "Dropout": "it drops at random: training only",
    "DFT": "within float32, but not within the suite's tolerance for zeros",
    "If": "optionals or sequences as outputs",
    "ImageDecoder": "decodes files; do it before the engine",
    "LabelEncoder": "strings",
    "RoiAlign": "the largest sample rather than the average: no rewrite",
    "SplitToSequence": "a sequence as output",
    "TfIdfVectorizer": "no rewrite",
    "TreeEnsemble": "no rewrite",
    **dict.fromkeys(SIZED, "its size depends on data, and this target has no kernel for it"),
}
"""Why there is nothing for some models of an operator."""


def verdict(row: dict[str, Any], modes: list[str]) -> str:
    """Why a model does not count in every column, for people; empty where it does."""
    first = reason(row, modes[0] if modes else "profile")
    if first and "bind" in modes and not reason(row, "bind"):
        if row["operator"] in SIZED and not row["bind"].get("bound"):
            return "its size depends on data: pad the output"
        return "operands given at run time that the target wants as constants: bind them"
    if first and not first.startswith(("numbers", "the worker")):
        ours = next((words for theirs, words in WORDS if theirs in first), "")
        return ours or NO_REWRITE.get(row["operator"], first)
    return NO_REWRITE.get(row["operator"], first) if first else ""


WORDS = [("convertDtype", "a type that nothing carries (strings, sequences, optionals)")]


def reason(row: dict[str, Any], mode: str) -> str:
    """Why a model does not count; empty where it does."""
    if row.get("dead"):
        return "the worker died"
    column = row.get(mode) or {}
    if column.get("message") == "nothing to bind":
        column = row["legalize"]
    if column.get("built") and column.get("equal"):
        return ""
    if column.get("built"):
        return "numbers: " + str(column.get("why"))[:120].replace("\n", " ")
    return " ".join(str(column.get("message")).split())[:120]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--slice", default="1/1", help="k/n: every n-th model, starting at the k-th")
    parser.add_argument("--match", default="", help="only models whose name matches this regular expression")
    parser.add_argument("--names", default="", help="file with names of models, one a line")
    parser.add_argument("--jobs", type=int, default=max(1, os.cpu_count() or 1))
    parser.add_argument("--raw", action="store_true", help="only the columns without legalize")
    parser.add_argument(
        "--bind",
        action="store_true",
        help="also with inputs bound to the sample's constants, and outputs padded",
    )
    parser.add_argument("--save", default="", help="folder for the rewritten models")
    parser.add_argument("--json", default="", help="file for all results")
    parser.add_argument("--markdown", default="", help="file for the report")
    parser.add_argument(
        "--at-least", type=int, default=0, help="fail where fewer models are good in the last mode"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    k, n = (int(x) for x in options.slice.split("/"))
    names = sorted(cases())
    if options.names:
        chosen = set(Path(options.names).read_text().split())
        names = [x for x in names if x in chosen]
    names = [x for x in names if re.search(options.match, x)][k - 1 :: n]
    passed = ["--raw"] * options.raw + ["--bind"] * options.bind
    passed += ["--save", options.save] if options.save else []
    todo: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in names:
        todo.put(name)
    rows: list[dict[str, Any]] = []

    def drain() -> None:
        worker = Worker(passed)
        while True:
            try:
                name = todo.get_nowait()
            except queue.Empty:
                break
            rows.append(worker.examine(name))
        if worker.process is not None:
            worker.process.kill()
            worker.process.wait()

    threads = [threading.Thread(target=drain) for _ in range(min(options.jobs, len(names)))]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows.sort(key=lambda row: row["name"])
    modes = modes_of(options)
    from onnxlathe.target import find_target

    target = find_target()
    title = f"{getattr(target, 'title', target.name)} {target.version}"
    report = markdown(rows, title, modes)
    if options.json:
        Path(options.json).write_text(json.dumps({"target": title, "rows": rows}, indent=1))
    if options.markdown:
        Path(options.markdown).write_text(report)
    print(report.split("## By operator")[0])
    print(f"{time.perf_counter() - started:.0f} s")
    good = counts(rows, modes[-1] if modes else "profile")["good"]
    if good < options.at_least:
        raise SystemExit(f"{good} models are good; at least {options.at_least} were wanted")


if __name__ == "__main__":
    main()
