"""The model as everything else sees it: an `onnx_ir.Model`, and where its bytes lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir

LOWERED = "onnxlathe.precision"
"""Key in a model's `metadata_props`: the type that it was lowered to on purpose."""


@dataclass
class Model:
    """An ONNX model whose weights stay on disk until somebody asks for one.

    Attributes:
        ir: the graph, its functions and metadata; weights from disk are `FileTensor`.
        path: the file it was loaded from, None for a model made in memory.
        repairs: what `load` repaired, as sentences for the user.
    """

    ir: onnx_ir.Model
    path: Path | None = None
    repairs: list[str] = field(default_factory=list)

    @property
    def graph(self) -> onnx_ir.Graph:
        """The main graph."""
        return self.ir.graph

    @property
    def opset(self) -> int:
        """Version of the standard operator set (domain `""`) that the main graph uses; 0 if none."""
        return self.ir.opset_imports.get("", 0)

    def graphs(self) -> Iterator[onnx_ir.Graph]:
        """The main graph, every subgraph nested in it, every function body, and the subgraphs of those."""
        yield from with_subgraphs(self.ir.graph)
        for function in self.ir.functions.values():
            yield from with_subgraphs(function.graph)

    def nodes(self) -> Iterator[onnx_ir.Node]:
        """The nodes of all `graphs`."""
        for graph in self.graphs():
            yield from graph

    def count_nodes(self) -> int:
        """How many nodes there are in all graphs."""
        return sum(len(graph) for graph in self.graphs())

    def count_operators(self) -> dict[str, int]:
        """How many nodes of each operator, the most frequent first; keys are `Add` or `domain::Op`."""
        counts = Counter[tuple[str, str]]()
        _count(self.ir.graph, counts)
        for function in self.ir.functions.values():
            _count(function.graph, counts)
        named = {f"{domain}::{op}" if domain else op: count for (domain, op), count in counts.items()}
        return dict(sorted(named.items(), key=lambda item: (-item[1], item[0])))

    def clone(self) -> Model:
        """A copy of the structure that may be changed independently; weight tensors are shared."""
        return Model(self.ir.clone(), path=self.path, repairs=list(self.repairs))


_GRAPH, _GRAPHS = onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS


def with_subgraphs(graph: onnx_ir.Graph) -> Iterator[onnx_ir.Graph]:
    """A graph and all graphs nested in it, each before the graphs inside of it."""
    yield graph
    for node in graph:
        for inner in subgraphs(node):
            yield from with_subgraphs(inner)


def _count(graph: onnx_ir.Graph, counts: Counter[tuple[str, str]]) -> None:
    nodes = list(graph)
    counts.update([(node.domain, node.op_type) for node in nodes])
    for node in nodes:
        for inner in subgraphs(node):
            _count(inner, counts)


def subgraphs(node: onnx_ir.Node) -> Sequence[onnx_ir.Graph]:
    """The graphs in a node's attributes (branches of If, bodies of Loop and Scan)."""
    # `data` is the plain dict inside: this is asked of every node many times, and nearly all have no graph.
    attributes = node.attributes.data
    if not attributes:
        return ()
    found: list[onnx_ir.Graph] = []
    for attribute in attributes.values():
        if attribute.type is _GRAPH and not attribute.is_ref():
            found.append(attribute.as_graph())
        elif attribute.type is _GRAPHS and not attribute.is_ref():
            found.extend(attribute.as_graphs())
    return found


def is_overridable(value: onnx_ir.Value) -> bool:
    """Whether an initializer is only a default that the caller of the model may replace.

    An initializer that is also a graph input is *not* a constant: folding or fusing it would freeze what
    the user is free to feed. (Models of IR version 3 and older list every initializer as an input; the
    specification makes no exception for them.)
    """
    return value.is_initializer() and value.is_graph_input()
