"""Raising the version of the standard operator set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from onnxlathe import Model, UsageError
from onnxlathe.rewrite import Context, Pass, option, subgraphs
from onnxlathe_passes.attention import Attention
from onnxlathe_passes.conditions import producer
from onnxlathe_passes.gelu import Gelu
from onnxlathe_passes.mish import Mish
from onnxlathe_passes.opset_steps import OLDEST, Draft, Refused, advance, changes
from onnxlathe_passes.rmsnorm import RMSNorm

_GAINS = (
    (Mish.min_opset, {"Softplus", "Tanh"}),
    (Gelu.min_opset, {"Erf"}),
    (Gelu.min_opset, {"Tanh", "Add", "Mul"}),
)
"""From which version on operators that occur together can become one."""

_ATTENTION = (Attention.min_opset, {"Softmax", "MatMul"})

_BODIES = 18
"""The version from which on Softplus has a function body."""


@dataclass(frozen=True)
class Opset(Pass):
    """Raise the operator set, where every node keeps its meaning, so that newer operators can be used.

    LayerNormalization came with version 17, Gelu with 20, RMSNormalization and Attention with 23, Swish with
    24; TensorRT and ONNX Runtime take all of these. Each node is followed through every version of its operator:
    attributes that became inputs become constants, and where an operator means something else since some version,
    the model is raised up to there and no further.
    """

    name = "opset"
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    opset 13:  %y = ReduceMean<axes=[-1]>(%x)
    →
    opset 23:  %y = ReduceMean(%x, [-1])
    """

    version: int | None = option(
        None, "the version to raise to; the lowest that has what the model's operators can become if left out"
    )
    attention: bool = option(
        False, "as far as Attention, too, which passes of their own make; before them fewer nodes can be left"
    )

    def run(self, model: Model, context: Context) -> int:
        newest = onnx.defs.onnx_opset_version()
        if self.version is not None and not 1 <= self.version <= newest:
            raise UsageError(
                f"pass 'opset' cannot raise to version {self.version}", hint=f"the newest known is {newest}"
            )
        wanted = self.version or _gain(model, attention=self.attention)
        if wanted >= _BODIES and _overflows(model):
            context.note(
                f"opset {model.opset} stays: from {_BODIES} on ONNX Runtime's Softplus overflows in float16"
            )
            return 0
        scopes: list[tuple[ir.Graph, dict[str, int], bool]] = [(model.graph, model.ir.opset_imports, False)]
        scopes += [(f.graph, f.opset_imports, True) for f in model.ir.functions.values()]
        scopes = [s for s in scopes if 0 < s[1].get("", 0) < wanted]
        if not scopes:
            return 0
        oldest = min(imports[""] for _, imports, _ in scopes)
        if oldest < OLDEST:
            context.note(f"opset {oldest} stays: versions before {OLDEST} are too different to be raised")
            return 0
        drafts: list[Draft] = []
        stop = ""
        for version in range(wanted, oldest, -1):
            try:
                drafts = [d for graph, imports, _ in scopes for d in _plan(graph, imports[""], version)]
            except Refused as refused:
                stop = str(refused)
                continue
            break
        else:
            version = oldest
        if stop:
            context.note(f"opset {version} rather than {wanted}: {stop}")
        if version == oldest or not context.permit(self.name):
            return 0
        functions = {graph for graph, _, in_function in scopes if in_function}
        for draft in drafts:
            _commit(draft, context, functions)
            context.record(self.name, [draft.node], [draft.node])
        for _, imports, _ in scopes:
            imports[""] = max(version, imports[""])
        needed = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", version)])
        model.ir.ir_version = max(model.ir.ir_version, needed)
        return max(1, len(drafts))


def _overflows(model: Model) -> bool:
    """Whether a Softplus would be computed by its function body, log(1 + exp(x)), in half precision."""
    half = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    return any(n.op_type == "Softplus" and not n.domain and n.outputs[0].dtype in half for n in model.nodes())


def _gain(model: Model, *, attention: bool) -> int:
    """The version that has all that the model's operators can become; 0 where they gain nothing.

    Not the newest in any case: runtimes have kernels for an operator's newest version last. So ONNX Runtime's
    CUDA provider has none for MaxPool of version 22.
    """
    present = {node.op_type for node in model.nodes() if node.domain == ""}
    gains = (*_GAINS, _ATTENTION) if attention else _GAINS
    found = [version for version, together in gains if together <= present]
    if any(_is_mean_square(node) for node in model.nodes()):
        found.append(RMSNorm.min_opset)  # or LayerNormalization, which is older
    return max(found, default=0)


def _is_mean_square(node: ir.Node) -> bool:
    if node.op_type != "ReduceMean" or node.domain != "":
        return False
    square = producer(node.inputs[0], "Pow", "Mul")
    return square is not None and (square.op_type == "Pow" or square.inputs[0] is square.inputs[1])


def _plan(graph: ir.Graph, old: int, new: int) -> Iterator[Draft]:
    """The nodes that have to change, as they will be."""
    for node in graph:
        for inner in subgraphs(node):
            yield from _plan(inner, old, new)
        if node.domain != "" or not changes(node.op_type, old, new):
            continue
        draft = Draft.of(node)
        try:
            advance(draft, old, new)
        except Refused as refused:
            raise Refused(f"node '{node.name}' ({node.op_type}): {refused}") from None
        if draft.changed:
            yield draft


def _commit(draft: Draft, context: Context, functions: set[ir.Graph]) -> None:
    node = draft.node
    node.op_type = draft.op_type
    node.attributes.clear()
    node.attributes.update(draft.attributes)
    node.resize_inputs(len(draft.inputs))
    for index, value in enumerate(draft.inputs):
        if isinstance(value, np.ndarray):
            value = _constant(value, f"{node.name}/const", node, context, functions)
        node.replace_input_with(index, value)


def _constant(
    array: object, name: str, node: ir.Node, context: Context, functions: set[ir.Graph]
) -> ir.Value:
    graph = node.graph
    assert graph is not None
    tensor = ir.Tensor(np.asarray(array))
    value = ir.Value(
        name=context.names.value(name),
        shape=ir.Shape(tensor.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    if graph in functions:
        # A function body has no initializers.
        holder = ir.Node("", "Constant", (), [ir.AttrTensor("value", tensor)], outputs=[value])
        holder.name = context.names.node(f"{node.name}/Constant")
        graph.insert_before(node, holder)
    else:
        graph.register_initializer(value)
    return value
