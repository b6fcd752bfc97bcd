"""A target that refuses what a test says, and both sides of a rewrite in an evaluator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxlathe.infer import infer_model
from onnxlathe.model import Model
from onnxlathe.rewrite import Context
from onnxlathe_passes.legalize import Legalize
from onnxlathe_passes.legalize.judge import Ruling
from onnxlathe_passes.legalize.run import Legalizing

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Refusing:
    """Refuses the given operators, wherever they stand, and takes everything else."""

    operators: frozenset[str]
    title: str = "a test"
    asked: list[str] = field(default_factory=list)

    def judge(self, model: ir.Model, expect: Any = None, *, build: bool = True) -> Ruling:
        found = tuple(i for i, n in enumerate(model.graph) if n.op_type in self.operators)
        self.asked.append(" ".join(n.op_type for n in model.graph))
        return Ruling(not found, not found, found, "refused" if found else "")

    def judge_file(self, path: Path, model: ir.Model) -> Ruling:
        return self.judge(model)

    def close(self) -> None:
        pass


def rewritten(
    proto: onnx.ModelProto, refuses: Callable[[ir.Model], Iterable[int]], **options: Any
) -> tuple[onnx.ModelProto, Context]:
    """The model after `legalize` for a target that refuses the nodes whose places `refuses` gives."""

    class Judge(Refusing):
        def judge(self, model: ir.Model, expect: Any = None, *, build: bool = True) -> Ruling:
            found = tuple(refuses(model))
            return Ruling(not found, not found, found, "refused" if found else "")

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    model = Model(ir.from_proto(copy))
    infer_model(model)
    context = Context.of(model.ir)
    Legalizing(Legalize(**options), model, context, Judge(frozenset())).run()
    result = ir.to_proto(model.ir)
    onnx.checker.check_model(result)
    return result, context


def single(
    op: str,
    feeds: Mapping[str, Array | None],
    outputs: Sequence[int] | Sequence[tuple[int, Sequence[int] | None]],
    *,
    constants: Sequence[str] = (),
    opset: int = 21,
    domain: str = "",
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node; `None` in `feeds` is an absent input, `constants` are initializers.

    `outputs` are element types, with a shape where one is declared; type 0 is an absent output.
    """
    helper = onnx.helper
    names = [name if array is not None else "" for name, array in feeds.items()]
    pairs = [o if isinstance(o, tuple) else (o, None) for o in outputs]
    results = [f"y{i}" if kind else "" for i, (kind, _) in enumerate(pairs)]
    node = helper.make_node(op, names, results, name="node", domain=domain, **attributes)
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in feeds.items()
        if a is not None and n not in constants
    ]
    weights = [onnx.numpy_helper.from_array(np.asarray(feeds[n]), n) for n in constants]
    declared = [helper.make_tensor_value_info(f"y{i}", k, s) for i, (k, s) in enumerate(pairs) if k]
    graph = helper.make_graph([node], "g", inputs, declared, weights)
    imports = [helper.make_opsetid("", opset)]
    if domain:
        imports.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def legalized(
    proto: onnx.ModelProto, refused: Sequence[str], **options: Any
) -> tuple[onnx.ModelProto, Context]:
    """The model after `legalize` for a target that refuses these operators."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    model = Model(ir.from_proto(copy))
    infer_model(model)
    context = Context.of(model.ir)
    Legalizing(Legalize(**options), model, context, Refusing(frozenset(refused))).run()
    result = ir.to_proto(model.ir)
    assert not {n.op_type for n in result.graph.node} & set(refused), context.notes
    return result, context


def in_reference(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """Outputs by onnx's reference evaluator."""
    from onnx.reference import ReferenceEvaluator

    with np.errstate(all="ignore"):
        return list(ReferenceEvaluator(proto).run(None, fitting(proto, feeds)))


def in_runtime(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """Outputs by ONNX Runtime, its optimizations off."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, fitting(proto, feeds)))


def fitting(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Those feeds that are inputs, in the types that the model asks for."""
    types = {v.name: v.type.tensor_type.elem_type for v in proto.graph.input}
    kinds = {n: onnx.helper.tensor_dtype_to_np_dtype(t) for n, t in types.items()}
    return {n: np.asarray(a).astype(kinds[n]) for n, a in feeds.items() if n in kinds}


def agree(found: Sequence[Array], expected: Sequence[Array], rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """The same shapes, numbers and NaNs."""
    assert len(found) == len(expected)
    for f, e in zip(found, expected, strict=True):
        f, e = np.asarray(f), np.asarray(e)
        assert f.shape == e.shape
        if e.dtype.kind in "iub":
            assert (f.astype(object) == e.astype(object)).all(), (f, e)
        else:
            np.testing.assert_allclose(f.astype(np.float64), e.astype(np.float64), rtol=rtol, atol=atol)


def same_as_before(
    proto: onnx.ModelProto,
    feeds: Mapping[str, Array | None],
    refused: Sequence[str],
    *,
    runtime: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    **options: Any,
) -> onnx.ModelProto:
    """Legalize, and compare with the original in the reference evaluator (or in ONNX Runtime)."""
    given = {n: a for n, a in feeds.items() if a is not None}
    after, _ = legalized(proto, refused, **options)
    evaluate = in_runtime if runtime else in_reference
    with np.errstate(all="ignore"):
        found, expected = in_runtime(after, given), evaluate(proto, given)
    agree(found, expected, rtol, atol)
    return after
