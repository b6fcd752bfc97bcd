"""From constraints to the nodes that they select."""

from __future__ import annotations

import fnmatch
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxlathe.errors import UsageError
from onnxlathe.model import Model
from onnxlathe.rewrite import origin, subgraphs

from .constraints import Constraint
from .types import parse_type


@dataclass
class Selection:
    """What constraints come to on a model.

    Attributes:
        nodes: type by node, and the constraint that says so.
        tensors: type by name of an input or output of the model.
        idle: constraints that select nothing.
    """

    nodes: dict[ir.Node, tuple[ir.DataType, Constraint]] = field(default_factory=dict)
    tensors: dict[str, ir.DataType] = field(default_factory=dict)
    idle: list[Constraint] = field(default_factory=list)


def operator_name(node: ir.Node) -> str:
    """`Softmax`, or `com.microsoft::Gelu`."""
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def select(model: Model, constraints: Sequence[Constraint]) -> Selection:
    """Find the nodes of every constraint; the last constraint that selects a node wins.

    Raises:
        UsageError: a constraint that is not optional selects nothing.
    """
    selection = Selection()
    if not constraints:
        return selection
    index = _Index(model)
    for constraint in constraints:
        kind, pattern = constraint.selector
        dtype = parse_type(constraint.type)
        if kind == "tensor":
            names = [v.name or "" for v in (*model.graph.inputs, *model.graph.outputs)]
            found = [n for n in names if _matcher(pattern)(n)]
            selection.tensors.update(dict.fromkeys(found, dtype))
            hits = len(found)
        else:
            nodes = index.find(kind, pattern)
            for node in nodes:
                selection.nodes[node] = (dtype, constraint)
            hits = len(nodes)
        if not hits:
            if not constraint.optional:
                raise UsageError(
                    f"constraint '{constraint}' selects nothing", hint=index.suggestion(kind, pattern)
                )
            selection.idle.append(constraint)
    return selection


def _matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a name is the pattern, or is matched by it; names may hold brackets, which are no sets here."""
    if not any(sign in pattern for sign in "*?"):
        return pattern.__eq__
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]")), re.DOTALL).match  # type: ignore[return-value]


class _Index:
    """The names of a model, each with its nodes."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.names: dict[str, dict[str, list[ir.Node]]] = {
            kind: defaultdict(list) for kind in ("node", "operator", "origin", "output")
        }
        for node in model.nodes():
            self.names["node"][node.name or ""].append(node)
            self.names["operator"][operator_name(node)].append(node)
            for name in origin(node):
                self.names["origin"][name].append(node)
            for value in node.outputs:
                self.names["output"][value.name or ""].append(node)

    def find(self, kind: str, pattern: str) -> list[ir.Node]:
        """The nodes that a selector selects, each once."""
        if kind == "between":
            first, _, last = pattern.partition("..")
            return list(self.between(first, last))
        kinds = tuple(self.names) if kind == "match" else (kind,)
        found: dict[ir.Node, None] = {}
        matches = _matcher(pattern)
        for each in kinds:
            table = self.names[each]
            if pattern in table:
                found.update(dict.fromkeys(table[pattern]))
            elif any(sign in pattern for sign in "*?"):
                for name, nodes in table.items():
                    if matches(name):
                        found.update(dict.fromkeys(nodes))
        return list(found)

    def between(self, first: str, last: str) -> Iterable[ir.Node]:
        """Nodes that depend on value `first` and that value `last` depends on, its producer included."""
        values = {v.name: v for g in self.model.graphs() for v in g.inputs}
        values.update({v.name: v for g in self.model.graphs() for v in g.initializers.values()})
        values.update({v.name: v for n in self.model.nodes() for v in n.outputs})
        for name in (first, last):
            if name not in values:
                raise UsageError(
                    f"constraint '{first}..{last}': the model has no value '{name}'",
                    hint=_nearest(name, [n for n in values if n]),
                )
        holders = {graph: node for node in self.model.nodes() for graph in subgraphs(node)}
        after = _reach([node for node, _ in values[first].uses()], lambda node: _followers(node, holders))
        producer = values[last].producer()
        before = _reach([] if producer is None else [producer], _leaders)
        return [node for node in self.model.nodes() if node in after and node in before]

    def suggestion(self, kind: str, pattern: str) -> str:
        tables = self.names.values() if kind == "match" else [self.names[kind]] if kind in self.names else []
        return _nearest(pattern, [name for table in tables for name in table if name])


def _reach(start: Iterable[ir.Node], step: Callable[[ir.Node], Iterable[ir.Node]]) -> set[ir.Node]:
    reached = set(start)
    front = list(reached)
    while front:
        for node in step(front.pop()):
            if node not in reached:
                reached.add(node)
                front.append(node)
    return reached


def _followers(node: ir.Node, holders: dict[ir.Graph, ir.Node]) -> Iterable[ir.Node]:
    for value in node.outputs:
        for user, _ in value.uses():
            yield user
    if isinstance(node.graph, ir.Graph) and node.graph in holders:
        yield holders[node.graph]


def _leaders(node: ir.Node) -> Iterable[ir.Node]:
    for value in node.inputs:
        if value is not None and (producer := value.producer()) is not None:
            yield producer
    for graph in subgraphs(node):
        for value in graph.outputs:
            if (producer := value.producer()) is not None:
                yield producer


def _nearest(name: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name.strip("*"), known, n=1, cutoff=0.5)
    listed = "`optimize inspect MODEL --text` shows the names; letters' case counts"
    return f"did you mean '{close[0]}'? {listed}" if close else listed
