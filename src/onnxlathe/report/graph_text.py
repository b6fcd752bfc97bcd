"""A graph as text that a person can read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import constant
from onnxlathe.model import Model
from onnxlathe.rewrite import is_constant

_SHOWN = 8


def model_text(model: Model) -> str:
    """All graphs and functions of a model.

    A line a node: `%y = Conv(%x, %w) {strides=[2, 2]}  # float32[batch, 64, 112, 112]`. Small constants are
    shown in place.
    """
    lines = list(_graph(model.graph, model.graph.name or "main", ""))
    for function in model.ir.functions.values():
        lines += ["", *_graph(function.graph, f"function {function.domain}::{function.name}", "")]
    return "\n".join(lines)


def _graph(graph: ir.Graph, title: str, indent: str) -> Iterator[str]:
    yield f"{indent}{title}({', '.join(f'%{v.name}: {kind(v)}' for v in graph.inputs)})"
    for node in graph:
        yield from node_lines(node, indent + "  ")
    yield f"{indent}→ {', '.join(f'%{v.name}' for v in graph.outputs)}"


def node_lines(node: ir.Node, indent: str = "") -> Iterator[str]:
    """A node, and the graphs inside of it."""
    outputs = ", ".join(f"%{v.name}" if v.uses() or v.is_graph_output() else "_" for v in node.outputs)
    operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    inputs = ", ".join(_operand(v) for v in node.inputs)
    plain = [a for a in node.attributes.values() if a.type not in _GRAPHS]
    attributes = f" {{{', '.join(f'{a.name}={_attribute(a)}' for a in plain)}}}" if plain else ""
    kinds = ", ".join(kind(v) for v in node.outputs)
    yield f"{indent}{outputs} = {operator}({inputs}){attributes}  # {kinds}"
    for attribute in node.attributes.values():
        if attribute.type in _GRAPHS and not attribute.is_ref():
            graphs = [attribute.value] if attribute.type == ir.AttributeType.GRAPH else attribute.value
            for graph in graphs:
                yield from _graph(graph, attribute.name, indent + "  ")


_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def kind(value: ir.Value) -> str:
    """Element type and shape: `float32[batch, 64]`."""
    name = value.dtype.name.lower() if value.dtype is not None else "?"
    name = {"float": "float32", "double": "float64"}.get(name, name)
    if value.shape is None:
        return f"{name}[…]"
    return f"{name}[{', '.join('?' if _unnamed(d) else str(d) for d in value.shape)}]"


def _unnamed(dim: int | ir.SymbolicDim) -> bool:
    return isinstance(dim, ir.SymbolicDim) and dim.value is None


def _operand(value: ir.Value | None) -> str:
    if value is None:
        return "_"
    if is_constant(value):
        array = constant(value, max_bytes=_SHOWN * 16)
        if array is not None and array.size <= _SHOWN:
            return _numbers(array)
    return f"%{value.name}"


def _numbers(array: np.ndarray) -> str:  # type: ignore[type-arg,unused-ignore]
    return _short(array.tolist())


def _short(values: object) -> str:
    if isinstance(values, list):
        return f"[{', '.join(map(_short, values))}]"
    return f"{values:.6g}" if isinstance(values, float) else str(values)


def _attribute(attribute: ir.Attr) -> str:
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    value = attribute.value
    if attribute.type == ir.AttributeType.TENSOR:
        return f"<tensor {value.dtype.name.lower()}{list(value.shape)}>"
    if isinstance(value, tuple):
        return str(list(value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
