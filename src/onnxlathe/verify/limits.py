"""What of a model can be checked at all, and how precisely: questions to the graph alone."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnxlathe.model import Model

from .tolerance import coarser, precision_of
from .verdict import Unchecked

_RANDOM = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
}
_QUANTIZED = {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
}


def operator_of(node: ir.Node) -> str:
    """The operator as a user knows it: ``Add``, or ``domain::Op``."""
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def random_nodes(model: Model) -> list[ir.Node]:
    """Nodes whose outputs differ from run to run: random operators without a seed, Dropout in training."""
    return [node for node in model.nodes() if _is_random(node)]


def _is_random(node: ir.Node) -> bool:
    if node.domain != "":
        return False
    if node.op_type in _RANDOM:
        return "seed" not in node.attributes
    if node.op_type == "Dropout" and "seed" not in node.attributes and len(node.inputs) > 2:
        mode = node.inputs[2]
        if mode is None:
            return False
        return mode.const_value is None or bool(mode.const_value.numpy().any())
    return False


def reached_outputs(model: Model, sources: Iterable[ir.Node]) -> dict[str, ir.Node]:
    """The outputs of the main graph that depend on any of `sources`, each with one that it depends on.

    A source inside a nested graph counts as the node that holds it, one inside a function as every call.
    """
    tainted: dict[ir.Value, ir.Node] = {}
    calls: dict[tuple[str, str, str], ir.Node] = {}
    inside: dict[ir.Node, ir.Node] = {}  # node of the main graph → the source within it
    functions = {id(f.graph): key for key, f in model.ir.functions.items()}
    for source in sources:
        holder, function = _top(source, functions)
        if function is not None:
            calls.setdefault(function, source)
        else:
            inside.setdefault(holder, source)
    changed = bool(calls)
    while changed:  # functions that call such functions
        changed = False
        for key, other in model.ir.functions.items():
            if key not in calls:
                for node in other.all_nodes() if hasattr(other, "all_nodes") else other:
                    if node.op_identifier() in calls:
                        calls[key] = calls[node.op_identifier()]
                        changed = True
                        break
    for node in model.graph:
        source_here = inside.get(node) or calls.get(node.op_identifier())
        if source_here is None:
            for value in _reads(node):
                if value in tainted:
                    source_here = tainted[value]
                    break
        if source_here is None and calls:
            for attr in node.attributes.values():
                if attr.type == ir.AttributeType.GRAPH:
                    for nested in ir.traversal.RecursiveGraphIterator(attr.as_graph()):
                        source_here = source_here or calls.get(nested.op_identifier())
        if source_here is not None:
            for output in node.outputs:
                tainted[output] = source_here
    return {o.name or "": tainted[o] for o in model.graph.outputs if o in tainted}


def _top(
    node: ir.Node, functions: dict[int, tuple[str, str, str]]
) -> tuple[ir.Node, tuple[str, str, str] | None]:
    """The node of the outermost graph that holds `node`, and the function it is in, if it is in one."""
    while True:
        graph = node.graph
        if graph is None:
            return node, None
        if id(graph) in functions:
            return node, functions[id(graph)]
        parent = getattr(graph, "parent_node", None)
        if parent is None:
            return node, functions.get(id(getattr(graph, "graph", graph)))
        node = parent


def _reads(node: ir.Node) -> Iterable[ir.Value]:
    """The values a node reads, with those that its nested graphs read from outside."""
    for value in node.inputs:
        if value is not None:
            yield value
    for attr in node.attributes.values():
        graphs: Iterable[ir.Graph] = ()
        if attr.type == ir.AttributeType.GRAPH:
            graphs = (attr.as_graph(),)
        elif attr.type == ir.AttributeType.GRAPHS:
            graphs = attr.as_graphs()
        for graph in graphs:
            yield from graph.outputs
            for nested in ir.traversal.RecursiveGraphIterator(graph):
                yield from (v for v in nested.inputs if v is not None)


def output_precisions(model: Model) -> dict[str, str]:
    """The coarsest precision (a key of `tolerance.DEFAULTS`) that each output's values went through.

    A value counts with the precision of its own type and of everything it is computed from; integers
    carry on what they were made from only out of quantizing operators.
    """
    coarsest: dict[ir.Value, str] = {}
    for value in model.graph.inputs:
        _note(coarsest, value, None)
    for node in model.graph:
        through: str | None = "quantized" if node.op_type in _QUANTIZED else None
        for value in _reads(node):
            row = coarsest.get(value)
            if row is not None:
                through = row if through is None else coarser(through, row)
        for output in node.outputs:
            _note(coarsest, output, through)
    return {o.name or "": coarsest[o] for o in model.graph.outputs if o in coarsest}


def _note(coarsest: dict[ir.Value, str], value: ir.Value, through: str | None) -> None:
    names = {ir.DataType.FLOAT: "float32", ir.DataType.DOUBLE: "float64"}
    own = precision_of(names.get(value.dtype, value.dtype.name)) if value.dtype is not None else None
    rows = [row for row in (own, through) if row is not None]
    if rows:
        coarsest[value] = rows[0] if len(rows) == 1 else coarser(*rows)


def without_outputs(model: Model, dropped: Iterable[str]) -> Model | None:
    """A copy of `model` without some outputs and what only they need; None if no output would be left."""
    dropped = set(dropped)
    if all(o.name in dropped for o in model.graph.outputs):
        return None
    copy = model.clone()
    graph = copy.graph
    for i in range(len(graph.outputs) - 1, -1, -1):
        if graph.outputs[i].name in dropped:
            graph.outputs.pop(i)
    kept = set(graph.outputs)
    for node in reversed(graph):
        if not any(o.uses() or o in kept for o in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and value not in kept and not value.is_graph_input():
            del graph.initializers[name]
    return copy


def why_random(name: str, node: ir.Node) -> Unchecked:
    """The reason not to check an output that depends on a random node."""
    return Unchecked(
        name,
        f"depends on random operator {operator_of(node)} (node {node.name!r}) that has no seed",
        operator_of(node),
        node.name or "",
    )
