"""A node and those beside it as text that a person can read."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir


def neighbourhood(node: ir.Node, most: int = 9) -> list[str]:
    """The node and those beside it as text, one a line; the node's line begins with an arrow."""
    from onnxlathe.report.graph_text import node_lines

    graph = node.graph
    if not isinstance(graph, ir.Graph):
        return list(node_lines(node))
    near: dict[int, ir.Node] = {id(node): node}
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None and producer.graph is graph and producer.op_type != "Constant":
            near[id(producer)] = producer
    for value in node.outputs:
        for user, _ in value.uses():
            if user.graph is graph and len(near) < most:
                near[id(user)] = user
    lines = []
    for other in _in_order(graph, near):
        text = list(node_lines(other))
        shown = text if other is node and len(text) <= 12 else text[:1]
        mark = "→ " if other is node else "  "
        lines += [f"{mark}{shown[0]}", *(f"  {line}" for line in shown[1:])]
    return lines


def _in_order(graph: ir.Graph, near: dict[int, ir.Node]) -> Iterable[ir.Node]:
    return (node for node in graph if id(node) in near)
