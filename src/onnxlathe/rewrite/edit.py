"""Graph edits that keep the model whole: outputs keep their names, nothing unused stays behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from onnxlathe.model import subgraphs, with_subgraphs


class Names:
    """Names that no value or node of the model has yet; subgraphs must not shadow outer values either."""

    def __init__(self, model: ir.Model) -> None:
        self._values: set[str] = set()
        self._nodes: set[str] = set()
        self._numbers: dict[str, int] = {}  # the last one that a hint got
        for graph in graphs_of(model):
            self._values.update(v.name for v in graph.inputs if v.name)
            self._values.update(graph.initializers)
            for node in graph:
                if node.name:
                    self._nodes.add(node.name)
                self._values.update(v.name for v in node.outputs if v.name)

    def value(self, hint: str) -> str:
        """A new value name, `hint` itself if it is free."""
        return self._unique(self._values, hint)

    def node(self, hint: str) -> str:
        """A new node name, `hint` itself if it is free."""
        return self._unique(self._nodes, hint)

    def release_node(self, name: str | None) -> None:
        """Let the name of a removed node be used again."""
        self._nodes.discard(name or "")

    def _unique(self, taken: set[str], hint: str) -> str:
        name = hint
        if name in taken or not name:
            # Not from 1 each time: thousands of copies of one constant ask with the same hint.
            number = self._numbers.get(hint, 0)
            while name in taken or not name:
                number += 1
                name = f"{hint}_{number}"
            self._numbers[hint] = number
        taken.add(name)
        return name


def graphs_of(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph, function bodies, and every graph nested in them."""
    yield from with_subgraphs(model.graph)
    for function in model.functions.values():
        yield from with_subgraphs(function.graph)


def replace_value(old: ir.Value, new: ir.Value, names: Names) -> ir.Node | None:
    """Let `new` stand for `old` everywhere; a graph output keeps its name and its place.

    Returns:
        An Identity that had to be made, where `old` is a graph output and `new` cannot be one itself: it
        is an input, a constant, another output, or belongs to an outer graph.
    """
    if not old.is_graph_output():
        old.replace_all_uses_with(new)
        return None
    graph = old.graph
    assert graph is not None
    producer = new.producer()
    if producer is not None and producer.graph is graph and not new.is_graph_output():
        if old.dtype is not None and new.dtype is None:
            new.type = old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        name = old.name
        old.name = None
        new.name = name
        return None
    for user, index in old.uses():
        user.replace_input_with(index, new)
    origin = old.producer()
    if origin is not None and origin.op_type == "Identity" and origin.inputs[0] is new:
        return None
    identity = ir.node("Identity", [new], name=names.node(f"{old.name}/Identity"))
    output = identity.outputs[0]
    output.type, output.shape = old.type, old.shape
    graph.append(identity)
    for i, value in enumerate(graph.outputs):
        if value is old:
            graph.outputs[i] = output
    name = old.name
    old.name = None
    output.name = name
    return identity


def is_unused(node: ir.Node) -> bool:
    """Whether nothing needs any output of the node."""
    return not any(v.is_graph_output() or is_used(v) for v in node.outputs)


def is_used(value: ir.Value) -> bool:
    """Whether some node uses the value; `uses()` would copy all uses, and a constant may have thousands."""
    return bool(value._uses)


def remove_unused(nodes: Iterable[ir.Node]) -> tuple[list[ir.Node], list[ir.Node]]:
    """Remove those of `nodes` that nothing uses, and then what only they used.

    Returns:
        The removed nodes, and the nodes left in the graph that lost a use.
    """
    work = list(nodes)
    removed: list[ir.Node] = []
    neighbours: dict[ir.Node, None] = {}
    while work:
        node = work.pop()
        if node.graph is None or not is_unused(node):
            continue
        for value in _detach(node):
            producer = value.producer()
            if producer is not None and producer.graph is not None:
                neighbours[producer] = None
                work.append(producer)
            elif value.is_initializer() and not is_used(value):
                drop_initializer(value)
        node.graph.remove(node)
        removed.append(node)
    gone = set(removed)
    return removed, [n for n in neighbours if n not in gone]


def drop_initializer(value: ir.Value) -> None:
    """Remove an initializer that nothing uses and no caller can set."""
    graph = value.graph
    if graph is not None and not value.is_graph_input() and not value.is_graph_output():
        graph.initializers.pop(value.name or "", None)


def _detach(node: ir.Node) -> list[ir.Value]:
    """Let go of everything the node, and the nodes in its subgraphs, use."""
    values: dict[ir.Value, None] = {}
    for inner in subgraphs(node):
        for nested in inner:
            for value in _detach(nested):
                values[value] = None
    for index, used in enumerate(node.inputs):
        if used is not None:
            values[used] = None
            node.replace_input_with(index, None)
    return list(values)
