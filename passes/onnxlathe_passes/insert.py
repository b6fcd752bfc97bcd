"""Edits of passes that look at more than one result at once, made as the worklist makes its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from onnxlathe.infer import infer_node
from onnxlathe.model import Model
from onnxlathe.rewrite import Builder, Context, replace_value, subgraphs


def graphs_with_weights(model: Model) -> Iterator[ir.Graph]:
    """The main graph and what is nested in it. Function bodies have no initializers and are left out."""
    work = [model.graph]
    while work:
        graph = work.pop()
        yield graph
        work.extend(inner for node in graph for inner in subgraphs(node))


def insert(op: Builder, anchor: ir.Node, context: Context) -> None:
    """Let what `op` made enter the graph before `anchor`, with names, types and shapes."""
    graph = anchor.graph
    assert graph is not None
    names = context.names
    for value in op.constants:
        if value.uses():
            value.name = names.value(value.name or f"{anchor.name}/const")
            graph.register_initializer(value)
    for node in op.nodes:
        node.name = names.node(f"{anchor.name}/{node.op_type}")
        for output in node.outputs:
            if output.name is None:
                output.name = names.value(f"{anchor.name}/{node.op_type}_output")
        graph.insert_before(anchor, node)
        infer_node(node, op.opset)


def substitute(pairs: Iterable[tuple[ir.Value, ir.Value]], context: Context) -> None:
    """Let the second of each pair stand for the first, under the name that users look for."""
    for old, new in pairs:
        if old.shape is not None and (new.shape is None or new.shape.has_unknown_dim()):
            new.shape = old.shape
        name, output = old.name, old.is_graph_output()
        replace_value(old, new, context.names)
        if not output and new.producer() is not None:
            old.name, new.name = None, name


def before_all(nodes: Iterable[ir.Node]) -> ir.Node:
    """Which of the nodes of one graph comes first."""
    wanted = set(nodes)
    (graph,) = {node.graph for node in wanted}
    assert graph is not None
    return next(node for node in graph if node in wanted)
