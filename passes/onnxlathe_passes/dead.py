"""What nothing needs: nodes, initializers, outputs, functions, operator sets."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxlathe.model import Model
from onnxlathe.rewrite import Context, Pass, drop_initializer, graphs_of, is_unused, remove_unused, subgraphs


class Dead(Pass):
    """Remove nodes, initializers, functions and operator sets that nothing needs.

    Inputs of the model stay, used or not, and so do initializers that are such inputs. Optional outputs at
    the end of a node's list are left off where nothing reads them (the indices of a MaxPool, a mask).
    """

    name = "dead"
    group = "tidy"
    keeps = frozenset({"shapes"})
    example = """
    %a = Relu(%x)
    %b = Exp(%x)
    return %a
    →
    %a = Relu(%x)
    return %a
    """

    def run(self, model: Model, context: Context) -> int:
        search = _Search(self.name, context)
        search.functions(model)
        search.graph(model.graph)
        for function in model.ir.functions.values():
            search.graph(function.graph)
        search.operator_sets(model)
        return search.changes


class _Search:
    def __init__(self, name: str, context: Context) -> None:
        self.name = name
        self.context = context
        self.changes = 0

    def permitted(self) -> bool:
        if not self.context.permit(self.name):
            return False
        self.changes += 1
        return True

    def graph(self, graph: ir.Graph) -> None:
        """Remove backwards: a node is met after everything that could use it, so once is enough."""
        for node in reversed(graph):
            if is_dead(node):
                if self.permitted():
                    removed, _ = remove_unused([node])
                    self.context.record(self.name, removed)
                continue
            for inner in subgraphs(node):
                self.graph(inner)
            self.outputs(node)
        for value in list(graph.initializers.values()):
            idle = not value.uses() and not value.is_graph_input() and not value.is_graph_output()
            if idle and self.permitted():
                drop_initializer(value)
                self.context.record(self.name, [])

    def outputs(self, node: ir.Node) -> None:
        """Leave off the optional outputs at the end that nothing reads."""
        needed = len(node.outputs)
        while needed and not _is_needed(node.outputs[needed - 1]):
            needed -= 1
        needed = max(needed, _required_outputs(node))
        if needed < len(node.outputs) and self.permitted():
            node.resize_outputs(needed)
            self.context.record(self.name, [node], [node])

    def functions(self, model: Model) -> None:
        """Remove the functions that no call leads to."""
        reached: set[ir.OperatorIdentifier] = set()
        front = list(_calls(model.graph, model))
        while front:
            identifier = front.pop()
            if identifier not in reached:
                reached.add(identifier)
                front.extend(_calls(model.ir.functions[identifier].graph, model))
        for identifier in [i for i in model.ir.functions if i not in reached]:
            if self.permitted():
                del model.ir.functions[identifier]
                self.context.record(self.name, [])

    def operator_sets(self, model: Model) -> None:
        """Import no operator set that no node is of; the standard one always."""
        used = {"", *(node.domain for graph in graphs_of(model.ir) for node in graph)}
        for imports in (model.ir.opset_imports, *(f.opset_imports for f in model.ir.functions.values())):
            for domain in [d for d in imports if d not in used]:
                if self.permitted():
                    del imports[domain]
                    self.context.record(self.name, [])


def is_dead(node: ir.Node) -> bool:
    """Whether nothing needs the node; one without outputs is there for something else."""
    return bool(node.outputs) and is_unused(node)


def _is_needed(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


# Operators whose outputs after the first may be left off. (Not BatchNormalization: up to opset 13 the number
# of its outputs says whether it trains.)
_OPTIONAL_OUTPUTS = frozenset({"Dropout", "MaxPool", "LayerNormalization", "LSTM", "GRU", "RNN", "Unique"})


def _required_outputs(node: ir.Node) -> int:
    return 1 if node.domain == "" and node.op_type in _OPTIONAL_OUTPUTS else len(node.outputs)


def _calls(graph: ir.Graph, model: Model) -> Iterator[ir.OperatorIdentifier]:
    """The model-local functions that nodes of the graph, and of those inside of it, call."""
    for node in graph:
        identifier = node.op_identifier()
        if identifier in model.ir.functions:
            yield identifier
        for inner in subgraphs(node):
            yield from _calls(inner, model)
