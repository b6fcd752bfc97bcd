"""What no engine can hold is left to the caller: a model in three parts, the middle one for the engine.

Strings, sequences as inputs or outputs, operators of unknown plugins: where such nodes stand at the border of a
model, the rest of it is an engine. The parts before and after it are models of their own, for ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxlathe.infer import infer_model
from onnxlathe.model import Model
from onnxlathe.model.interface import note_change
from onnxlathe.rewrite import subgraphs


@dataclass(frozen=True)
class Parts:
    """A model in up to three parts, called one after another; values pass between them by name.

    Attributes:
        engine: what the target gets.
        before, after: what runs elsewhere; None where there is nothing.
    """

    engine: Model
    before: Model | None
    after: Model | None


def left_outside(model: Model, refused: Iterable[str]) -> Parts | None:
    """Cut the model so that none of some nodes is in the engine.

    Args:
        model: the model; left as it is.
        refused: names of nodes of the main graph.

    Returns:
        The parts; None where the nodes stand in the middle, or nothing would be left for an engine.
    """
    whole = model.clone()
    infer_model(whole)
    graph = whole.graph
    nodes = [n for n in graph if n.op_type != "Constant"]
    wanted = set(refused)
    out = [n for n in nodes if n.name in wanted or any(_foreign(v) for v in _values(n))]
    if not out:
        return None
    for before, after in _sides(nodes, out):
        rest = [n for n in nodes if n not in before and n not in after]
        engine = _part(whole, rest) if rest and not before & after else None
        if engine is None or any(_foreign(v) for v in (*engine.graph.inputs, *engine.graph.outputs)):
            continue
        note_change(engine.ir, outside=[_mark(n) for n in nodes if n in before or n in after])
        sides = [_part(whole, [n for n in nodes if n in side]) if side else None for side in (before, after)]
        return Parts(engine, sides[0], sides[1])
    return None


def _sides(nodes: list[ir.Node], out: list[ir.Node]) -> Iterator[tuple[set[ir.Node], set[ir.Node]]]:
    """Each node goes out together with what it needs, or with what needs it: whichever is less; else all alike."""
    parents: dict[ir.Node, list[ir.Node]] = {}
    children: dict[ir.Node, list[ir.Node]] = {n: [] for n in nodes}
    for node in nodes:
        near = [v.producer() for v in _values(node) if v is not None]
        parents[node] = [p for p in near if p is not None and p is not node and p in children]
        for parent in parents[node]:
            children[parent].append(node)
    above = {n: _reached(n, parents) for n in out}
    below = {n: _reached(n, children) for n in out}
    before: set[ir.Node] = set()
    after: set[ir.Node] = set()
    for node in out:
        if node in before or node in after:
            continue
        if len(above[node]) <= len(below[node]):
            before |= above[node]
        else:
            after |= below[node]
    yield before, after
    yield set(), set[ir.Node]().union(*(below[n] for n in out))
    yield set[ir.Node]().union(*(above[n] for n in out)), set()


def _reached(node: ir.Node, near: Mapping[ir.Node, list[ir.Node]]) -> set[ir.Node]:
    """The node and all that its neighbours lead to."""
    found, work = {node}, [node]
    while work:
        fresh = [n for n in near[work.pop()] if n not in found]
        found.update(fresh)
        work += fresh
    return found


def _part(model: Model, kept: list[ir.Node]) -> Model | None:
    """A model of some nodes of the main graph: what they read is its input, what others read its output."""
    inside = {_mark(n) for n in kept}
    made = {str(v.name) for n in kept for v in n.outputs if v.name}
    order = {str(v.name): None for v in model.graph.inputs}
    copy = model.clone()
    graph = copy.graph
    outputs = [str(v.name) for v in graph.outputs if v.name in made]
    through = {v.name for v in graph.outputs}
    read: dict[str, None] = {}
    for node in graph:
        if node.op_type == "Constant":
            continue
        for value in _values(node):
            if value is None or not value.name or value in node.outputs:
                continue
            producer = value.producer()
            if _mark(node) in inside:
                outer = value.is_graph_input() or (producer is not None and producer.op_type != "Constant")
                if outer and value.name not in made and _belongs(value, graph):
                    read[str(value.name)] = None
            elif value.name in made and value.name not in through:
                outputs.append(str(value.name))
    inputs = [n for n in order if n in read] + [n for n in read if n not in order]
    values = {str(v.name): v for v in (*graph.inputs, *(v for n in graph for v in n.outputs))}
    graph.outputs.clear()
    graph.outputs.extend(values[n] for n in dict.fromkeys(outputs))
    fresh = []
    for name in inputs:
        old = values[name]
        if old.is_graph_input():
            fresh.append(old)
            continue
        new = ir.Value(name=name, type=old.type, shape=old.shape)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name = None
        fresh.append(new)
    graph.inputs.clear()
    graph.inputs.extend(fresh)
    gone = [n for n in graph if n.op_type != "Constant" and _mark(n) not in inside]
    for node in gone:
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)
    graph.remove(gone)
    _forget(graph)
    if not graph.outputs or any(v.type is None for v in graph.inputs):
        return None
    return copy


def _forget(graph: ir.Graph) -> None:
    """Constants that nobody reads."""
    for node in [n for n in graph if n.op_type == "Constant"]:
        if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            graph.remove(node)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def _belongs(value: ir.Value, graph: ir.Graph) -> bool:
    """Whether a value is one of the main graph, rather than of a graph in it."""
    producer = value.producer()
    return producer.graph is graph if producer is not None else value in graph.inputs


def _values(node: ir.Node) -> list[ir.Value | None]:
    """What a node reads and makes, and what is read and made in its graphs."""
    found: list[ir.Value | None] = [*node.inputs, *node.outputs]
    for graph in subgraphs(node):
        for inner in graph:
            found += _values(inner)
        found += list(graph.outputs)
    return found


def _foreign(value: ir.Value | None) -> bool:
    """No tensor of numbers: strings, sequences, optionals and maps."""
    if value is None or (value.type is None and not value.name):
        return False
    if value.dtype == ir.DataType.STRING:
        return True
    return value.type is not None and not isinstance(value.type, ir.TensorType)


def _mark(node: ir.Node) -> str:
    """What a node is known by: the name of its first output."""
    return next((str(v.name) for v in node.outputs if v.name), "")
