"""Make the table that `optimize debug` answers from where no TensorRT is installed.

    python tools/make_support_table.py [--target rtx] [-o src/onnxlathe/debug/support/rtx-1.7.json]

The real parser and builder are asked about every node model of onnx.backend.test, and about the same models with
their floats turned into each other type that the operator's schema allows.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto

from onnxlathe.debug.ask import Hearing, Oracle
from onnxlathe.debug.table import Entry, SupportTable
from onnxlathe.target import find_target

TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float64": TensorProto.DOUBLE,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
    "bool": TensorProto.BOOL,
}
NAMES = {number: name for name, number in TYPES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--target", default="rtx")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--limit", type=int, default=0, help="ask about so many models only (for a try)")
    options = parser.parse_args()
    target = find_target(options.target)
    short = ".".join(target.version.split(".")[:2])
    output = options.output or Path(f"src/onnxlathe/debug/support/{options.target}-{short}.json")
    answers: dict[tuple[str, str], list[Hearing]] = defaultdict(list)
    count, started = 0, time.time()
    scratch = output.with_suffix(".onnx")
    with Oracle(target, timeout=30) as oracle:
        for operator, kind, model in models():
            onnx.save(model, scratch)
            answers[operator, kind].append(oracle.ask(scratch))
            count += 1
            if count % 200 == 0:
                print(f"{count} models, {time.time() - started:.0f} s", file=sys.stderr, flush=True)
            if options.limit and count >= options.limit:
                break
    scratch.unlink()
    operators: dict[str, dict[str, Entry]] = defaultdict(dict)
    for (operator, kind), hearings in sorted(answers.items()):
        operators[operator][kind] = entry(hearings)
    made = SupportTable(options.target, target.version, onnx.__version__, count, dict(operators))
    output.parent.mkdir(exist_ok=True)
    output.write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n")
    print(f"{output}: {len(operators)} operators from {count} models", file=sys.stderr)


def models() -> Iterator[tuple[str, str, onnx.ModelProto]]:
    """Operator, type of its first input, and a model: the suite's, and those with other types."""
    from onnx.backend.test.case.node import collect_testcases

    retyped: dict[str, int] = defaultdict(int)
    for case in collect_testcases(None):
        # The suite gives axes, shapes and pads as inputs; users have them as constants.
        model = case.model
        if len(model.graph.node) != 1:
            continue
        node = model.graph.node[0]
        operator = f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        kind = first_type(model)
        yield operator, kind, model
        bound = with_constants(model, case)
        if bound is not None:
            yield operator, kind, bound
        model = bound or model
        lean = with_one_output(model)
        if lean is not None:
            yield operator, kind, lean
        model = lean or model
        if kind == "float32" and retyped[operator] < 2:
            retyped[operator] += 1
            for name in TYPES:
                other = retype(model, name)
                if other is not None:
                    yield operator, name, other


def with_constants(model: onnx.ModelProto, case: Any) -> onnx.ModelProto | None:
    """The model with its inputs of small integers, but for the first, as constants; None where it has none."""
    if not case.data_sets:
        return None
    inputs = case.data_sets[0][0]
    other = onnx.ModelProto()
    other.CopyFrom(model)
    found = False
    for value, array in list(zip(model.graph.input, inputs, strict=False))[1:]:
        operand = isinstance(array, np.ndarray | np.generic) and np.asarray(array).dtype.kind in "iub"
        if not operand or np.asarray(array).ndim > 1 or np.asarray(array).size > 16:
            continue
        index = next(i for i, v in enumerate(other.graph.input) if v.name == value.name)
        del other.graph.input[index]
        other.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), value.name))
        found = True
    return other if found else None


def with_one_output(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The model without its optional outputs; None where it has none."""
    node = model.graph.node[0]
    schema = onnx.defs.get_schema(node.op_type, max(o.version for o in model.opset_import), node.domain)
    if len(node.output) < 2 or schema.min_output > 1:
        return None
    other = onnx.ModelProto()
    other.CopyFrom(model)
    del other.graph.node[0].output[1:]
    kept = [v for v in other.graph.output if v.name == node.output[0]]
    del other.graph.output[:]
    other.graph.output.extend(kept)
    return other if kept else None


def first_type(model: onnx.ModelProto) -> str:
    """Type of the first input of the node that is there."""
    kinds = {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
    for name in model.graph.node[0].input:
        if name in kinds:
            return NAMES.get(kinds[name], TensorProto.DataType.Name(kinds[name]).lower())
    return ""


def retype(model: onnx.ModelProto, name: str) -> onnx.ModelProto | None:
    """The model with another type in place of float32; None where ONNX does not allow that."""
    if name == "float32":
        return None
    other = onnx.ModelProto()
    other.CopyFrom(model)
    if any(tensor.data_type == TensorProto.FLOAT for tensor in other.graph.initializer):
        return None
    for value in (*other.graph.input, *other.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TYPES[name]
    try:
        onnx.checker.check_model(other, full_check=True)
    except Exception:
        return None
    return other


def entry(hearings: list[Hearing]) -> Entry:
    """What all the answers about one operator and type come to."""
    refused = [h for h in hearings if not h.accepted]
    if not refused:
        return Entry("yes")
    complaint = refused[0].complaints[0]
    message = re.sub(r"\s+", " ", complaint.message).strip()[:200]
    return Entry("no" if len(refused) == len(hearings) else "depends", message, complaint.stage)


if __name__ == "__main__":
    main()
