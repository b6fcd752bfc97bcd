"""An If whose branches give different ranks: what follows it is done in both branches, until the ranks agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from onnxlathe.infer import dims_of, infer_node
from onnxlathe.rewrite import Names, subgraphs

_MOST = 256  # nodes that are written twice

Pair = tuple[ir.Value, ir.Value]


def differ_in_rank(node: ir.Node) -> list[int]:
    """The outputs of an If for which its branches give different ranks."""
    then, other = _branches(node)
    found = []
    for index, (a, b) in enumerate(zip(then.outputs, other.outputs, strict=True)):
        left, right = dims_of(a), dims_of(b)
        if left is not None and right is not None and len(left) != len(right):
            found.append(index)
    return found


def sink(model: ir.Model, node: ir.Node, names: Names, permit: Callable[[], bool]) -> list[ir.Node] | None:
    """Move what follows an If into its branches, in place.

    Args:
        model: the model; its values have types and shapes.
        node: the If, in the main graph.
        names: for what is made.
        permit: asked once, before anything changes.

    Returns:
        The nodes that moved; None where that does not lead to equal ranks: a value of two ranks is an output of
        the model, or is used where it cannot be followed.
    """
    host = node.graph
    assert isinstance(host, ir.Graph)
    then, other = _branches(node)
    opset = model.graph.opset_imports.get("", 1)
    pairs: dict[ir.Value, Pair] = {
        node.outputs[i]: (then.outputs[i], other.outputs[i]) for i in range(len(then.outputs))
    }
    mixed = {node.outputs[i] for i in differ_in_rank(node)}
    moved: list[ir.Node] = []
    copies: tuple[list[ir.Node], list[ir.Node]] = ([], [])
    after: set[ir.Value] = set()  # what stays outside and needs something of the If
    behind = False
    for current in list(host):
        if current is node:
            behind = True
            continue
        used = {v for v in _read(current) if v is not None} if behind else set()
        if not used & mixed:
            if used & (after | pairs.keys()):
                after.update(current.outputs)
            continue
        if used & after or any(True for _ in subgraphs(current)) or len(moved) == _MOST:
            _abandon(copies)
            return None
        moved.append(current)
        both = []
        for side in (0, 1):
            copy = ir.Node(
                current.domain,
                current.op_type,
                [pairs[v][side] if v in pairs else v for v in current.inputs],
                list(current.attributes.values()),
                overload=current.overload,
                num_outputs=len(current.outputs),
            )
            infer_node(copy, opset)
            copies[side].append(copy)
            both.append(copy)
        for index, value in enumerate(current.outputs):
            a, b = both[0].outputs[index], both[1].outputs[index]
            pairs[value] = a, b
            left, right = dims_of(a), dims_of(b)
            if not value.name or (not value.uses() and not value.is_graph_output()):
                continue
            if left is None or right is None:
                _abandon(copies)
                return None
            if len(left) != len(right):
                mixed.add(value)
    if any(v.is_graph_output() for v in mixed) or not moved or not permit():
        _abandon(copies)
        return None
    inside = set(moved)
    kept = [
        v
        for v in pairs
        if v not in mixed and (v.is_graph_output() or any(u not in inside for u, _ in v.uses()))
    ]
    _rebuild(host, node, moved, copies, {v: pairs[v] for v in kept}, names)
    return moved


def _rebuild(
    host: ir.Graph,
    node: ir.Node,
    moved: Sequence[ir.Node],
    copies: tuple[list[ir.Node], list[ir.Node]],
    kept: dict[ir.Value, Pair],
    names: Names,
) -> None:
    """The If with the copies in its branches, instead of the If and the nodes."""
    for side, (graph, nodes) in enumerate(zip(_branches(node), copies, strict=True)):
        for copy, model_of in zip(nodes, moved, strict=True):
            copy.name = names.node(f"{model_of.name or model_of.op_type}/{('then', 'else')[side]}")
            for value in copy.outputs:
                value.name = names.value(f"{copy.name}/out")
            graph.append(copy)
        graph.outputs.clear()
        for index, pair in enumerate(kept.values()):
            graph.outputs.append(_own(graph, pair[side], names, index))
    made = ir.Node(
        node.domain,
        node.op_type,
        list(node.inputs),
        list(node.attributes.values()),
        num_outputs=len(kept),
        name=node.name,
    )
    for old, new in zip(kept, made.outputs, strict=True):
        new.type, new.shape = old.type, old.shape
        name, old.name = old.name, None
        new.name = name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    host.insert_after([node, *moved][-1], made)
    for gone in reversed([node, *moved]):
        for index in range(len(gone.inputs)):
            gone.replace_input_with(index, None)
    for gone in (*reversed(moved), node):
        host.remove(gone)
    host.sort()


def _own(graph: ir.Graph, value: ir.Value, names: Names, index: int) -> ir.Value:
    """A value that the graph may give: made in it, and given once."""
    producer = value.producer()
    if producer is not None and producer.graph is graph and all(v is not value for v in graph.outputs):
        return value
    identity = ir.node("Identity", [value], name=names.node(f"{graph.name or 'branch'}/Identity"))
    identity.outputs[0].name = names.value(f"{identity.name}/out{index}")
    identity.outputs[0].type, identity.outputs[0].shape = value.type, value.shape
    graph.append(identity)
    return identity.outputs[0]


def _abandon(copies: tuple[list[ir.Node], list[ir.Node]]) -> None:
    """Copies that nobody wants must not count as users of anything."""
    for nodes in copies:
        for copy in nodes:
            for index in range(len(copy.inputs)):
                copy.replace_input_with(index, None)


def _branches(node: ir.Node) -> tuple[ir.Graph, ir.Graph]:
    return node.attributes["then_branch"].as_graph(), node.attributes["else_branch"].as_graph()


def _read(node: ir.Node) -> list[ir.Value | None]:
    """What a node reads, also inside of its graphs."""
    found = list(node.inputs)
    for graph in subgraphs(node):
        for inner in graph:
            found += _read(inner)
        found += list(graph.outputs)
    return found
