"""Edits of passes that look at more than one result at once, made as the worklist makes its own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

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


def insert(op: Builder, anchor: ir.Node, context: Context, results: Collection[ir.Value] = ()) -> None:
    """Let what `op` made enter the graph before `anchor`, with names, types and shapes.

    Args:
        op: what was made.
        anchor: a node of the graph.
        context: for names.
        results: what is to be used; constants that neither are among these nor have a use stay outside.
    """
    graph = anchor.graph
    assert graph is not None
    names = context.names
    for value in op.constants:
        if value.uses() or value in results:
            value.name = names.value(value.name or f"{anchor.name}/const")
            graph.register_initializer(value)
    for node in op.nodes:
        node.name = names.node(f"{anchor.name}/{node.op_type}")
        for output in node.outputs:
            if output.name is None:
                output.name = names.value(f"{anchor.name}/{node.op_type}_output")
        graph.insert_before(anchor, node)
        infer_node(node, op.opset)


def substitute(pairs: Iterable[tuple[ir.Value, ir.Value]], context: Context, *, rename: bool = True) -> None:
    """Let the second of each pair stand for the first, under the name that users look for.

    Args:
        pairs: old and new values.
        context: for names.
        rename: whether the new value takes the old one's name; not where it has long had its own.
    """
    for old, new in pairs:
        if old.shape is not None and (new.shape is None or new.shape.has_unknown_dim()):
            new.shape = old.shape
        name, output = old.name, old.is_graph_output()
        replace_value(old, new, context.names)
        if rename and not output and new.producer() is not None and not new.is_graph_output():
            old.name, new.name = None, name
