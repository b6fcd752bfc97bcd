"""A mixed model as a float32 model that rounds where the mixed one would.

ONNX Runtime has few float16 kernels for CPUs. It runs the rest in float32 and drops the Casts in between, so
a float16 model looks better there than it is, and a bfloat16 one does not run at all. Here every operator
computes in float32 from rounded operands and its result is rounded, to infinity where it does not fit: what a
GPU does whose kernels accumulate in float32. (Kernels that TensorRT fuses round less often: this is the
cautious side.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import infer_model
from onnxlathe.model import Model
from onnxlathe.rewrite.edit import Names

from .types import FLOAT32, LOW_TYPES

EXACT_OPERATORS = frozenset(
    {
        "Compress", "Concat", "Constant", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather",
        "GatherElements", "GatherND", "Identity", "If", "Loop", "Max", "MaxPool", "GlobalMaxPool", "Min", "Neg",
        "Abs", "Pad", "Relu", "Reshape", "ReverseSequence", "Scan", "ScatterElements", "ScatterND", "Shape",
        "Sign", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze",
        "Where", "ReduceMax", "ReduceMin", "CenterCropPad", "Unique",
    }
)  # fmt: skip
"""Operators whose results are among their operands, so that rounding them again changes nothing."""


def round_trip(array: np.ndarray, dtype: ir.DataType) -> np.ndarray:
    """A float32 array rounded to `dtype` and back; infinite where it does not fit."""
    with np.errstate(all="ignore"):
        rounded: np.ndarray = np.asarray(array).astype(dtype.numpy()).astype(np.float32)
    return rounded


def has_low_types(model: Model) -> bool:
    """Whether any value of the model is float16 or bfloat16."""
    return any(
        v.dtype in LOW_TYPES for g in model.graphs() for v in (*g.inputs, *g.initializers.values())
    ) or any(v.dtype in LOW_TYPES for n in model.nodes() for v in n.outputs)


def emulate(model: Model, *, keep: Collection[str] = ()) -> Model:
    """A float32 model that computes what `model` would on a GPU.

    Args:
        model: a model with float16 and bfloat16 values whose types are known; it is not changed.
        keep: inputs and outputs of the model whose type stays; all others become float32.

    Returns:
        A new model that shares the weights.
    """
    copy = model.clone()
    if copy.ir.functions:
        from onnx_ir.passes.common import InlinePass

        InlinePass()(copy.ir)
    if any(v.dtype is None for n in copy.nodes() for v in n.outputs if v.name):
        infer_model(copy)
    names = Names(copy.ir)
    outer = copy.graph
    for graph in list(copy.graphs()):
        for value in list(graph.initializers.values()):
            _widen_weight(value)
        for value in list(graph.inputs):
            if value.dtype in LOW_TYPES:
                _widen_input(value, graph, names, interface=graph is outer, kept=value.name in keep)
        for node in list(graph):
            _widen_node(node, names)
    for index, value in enumerate(model.graph.outputs):
        if value.dtype in LOW_TYPES and value.name in keep:
            _narrow_output(copy.graph, index, value.dtype, names)
    return copy


def _float_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    def widen() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(tensor.numpy().astype(np.float32)))

    return ir.LazyTensor(widen, dtype=FLOAT32, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name)


def _widen_weight(value: ir.Value) -> None:
    if value.const_value is not None and value.const_value.dtype in LOW_TYPES:
        value.const_value = _float_tensor(value.const_value)
        value.type = ir.TensorType(FLOAT32)


def _cast(value: ir.Value, to: ir.DataType, names: Names, hint: str) -> ir.Node:
    node = ir.node("Cast", [value], {"to": int(to)}, name=names.node(hint))
    node.outputs[0].name = names.value(hint)
    node.outputs[0].type = ir.TensorType(to)
    node.outputs[0].shape = value.shape
    return node


def _insert_rounding(
    value: ir.Value, dtype: ir.DataType, names: Names, insert: Callable[[list[ir.Node]], None]
) -> None:
    """Let everything that uses `value` see it rounded; what a node made gives its name to the rounded value."""
    users = list(value.uses())
    down = _cast(value, dtype, names, f"{value.name}/rounded")
    up = _cast(down.outputs[0], FLOAT32, names, f"{value.name}/widened")
    insert([down, up])
    result = up.outputs[0]
    for user, index in users:
        user.replace_input_with(index, result)
    if value.is_graph_output():
        graph = value.graph
        assert graph is not None
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = result
    if value.producer() is not None:
        name, value.name = value.name, None
        value.name, result.name = names.value(f"{name}/exact"), name


def _widen_input(value: ir.Value, graph: ir.Graph, names: Names, *, interface: bool, kept: bool) -> None:
    dtype = value.dtype
    assert dtype is not None

    def at_start(nodes: list[ir.Node]) -> None:
        first = next(iter(graph), None)
        if first is None:
            graph.extend(nodes)
        else:
            graph.insert_before(first, nodes)

    if interface and kept:
        users = list(value.uses())
        up = _cast(value, FLOAT32, names, f"{value.name}/widened")
        at_start([up])
        for user, index in users:
            user.replace_input_with(index, up.outputs[0])
        return
    value.type = ir.TensorType(FLOAT32)
    if interface:
        _insert_rounding(value, dtype, names, at_start)


def _widen_node(node: ir.Node, names: Names) -> None:
    graph = node.graph
    assert graph is not None
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in LOW_TYPES:
            node.attributes[name] = ir.AttrTensor(name, _float_tensor(attribute.as_tensor()))
        elif name == "dtype" and attribute.value in map(int, LOW_TYPES):
            node.attributes[name] = ir.AttrInt64(name, int(FLOAT32))
    is_cast = node.op_type == "Cast" and node.domain == ""
    if is_cast and ir.DataType(node.attributes["to"].as_int()) in LOW_TYPES:
        node.attributes["to"] = ir.AttrInt64("to", int(FLOAT32))
    for value in list(node.outputs):
        dtype = value.dtype
        if dtype not in LOW_TYPES or dtype is None:
            continue
        value.type = ir.TensorType(FLOAT32)
        if node.domain == "" and node.op_type in EXACT_OPERATORS:
            continue
        _insert_rounding(value, dtype, names, lambda nodes: graph.insert_after(node, nodes))


def _narrow_output(graph: ir.Graph, index: int, dtype: ir.DataType, names: Names) -> None:
    value = graph.outputs[index]
    down = _cast(value, dtype, names, f"{value.name}/narrowed")
    graph.append(down)
    graph.outputs[index] = down.outputs[0]
    name, value.name = value.name, None
    value.name, down.outputs[0].name = names.value(f"{name}/wide"), name


__all__ = ["EXACT_OPERATORS", "emulate", "has_low_types", "round_trip"]
