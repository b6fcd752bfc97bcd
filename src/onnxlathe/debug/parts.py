"""Cutting a model: any set of its nodes as a model of its own.

Values that come from outside of the set become inputs with the types that inference found, or constants where
they are frozen to recorded values. What nobody in the set uses any more becomes an output.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import infer_model, known
from onnxlathe.model import Model
from onnxlathe.rewrite import is_constant, subgraphs

_SMALL = 64  # elements: a value that may be a shape, axes, pads


class UncutError(ValueError):
    """A part cannot be made: a value at its border has no known type."""


@dataclass
class Workpiece:
    """A model whose nodes can be cut out.

    Args:
        model: the model; types and shapes are inferred in a copy of it.

    Attributes:
        model: the copy.
        graph: the graph to cut in, the main graph unless `inside` made this.
        nodes: its nodes in order, without constants, which come along wherever they are used.
        recorded: what values hold on a sample, as far as somebody recorded it.
        given: names of nodes that have none, or one that is taken, in the file.
    """

    model: Model
    graph: ir.Graph = field(init=False)
    nodes: list[ir.Node] = field(init=False)
    recorded: dict[str, np.ndarray] = field(default_factory=dict)
    given: frozenset[str] = field(init=False)
    position: dict[int, int] = field(init=False)
    _holders: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.model = self.model.clone()
        infer_model(self.model)
        for value in (v for node in self.model.nodes() for v in node.outputs):
            if value.type is None:  # a shape without a type cannot be written
                value.shape = None
        self.given = name_nodes(self.model)
        self._cut_in(self.model.graph)

    def _cut_in(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.nodes = [n for n in graph if n.op_type != "Constant" or n.domain]
        self.position = {id(node): i for i, node in enumerate(self.nodes)}
        self._holders = {id(n): i for i, top in enumerate(self.nodes) for n in within(top)}

    def inside(self, graph: ir.Graph) -> Workpiece:
        """The same model, to cut in a graph within one of its nodes."""
        other = object.__new__(Workpiece)
        other.model, other.recorded, other.given = self.model, self.recorded, self.given
        other._cut_in(graph)
        return other

    def find(self, name: str) -> ir.Node | None:
        """The node of that name, in whatever graph."""
        return next((n for n in self.model.nodes() if n.name == name), None)

    def holder(self, node: ir.Node) -> int | None:
        """Index of the node of `graph` that is, or contains, `node`."""
        return self._holders.get(id(node))

    # --- parts -----------------------------------------------------------------------------------------

    def part(
        self,
        keep: Iterable[int],
        *,
        frozen: Mapping[str, np.ndarray] | None = None,
        outputs: Collection[str] = (),
    ) -> Model:
        """The nodes at these indices as a model.

        Args:
            keep: indices into `nodes`.
            frozen: contents of values at the border that shall be constants rather than inputs.
            outputs: values that shall be outputs although they are used in the part.

        Raises:
            UncutError: a value at the border has no known type.
        """
        kept = set(keep)
        chosen = [self.nodes[i] for i in sorted(kept)]
        inside = {id(node) for node in chosen}
        constants: dict[int, ir.Value] = {}
        border: dict[int, ir.Value] = {}
        makers: dict[int, ir.Node] = {}
        for node in chosen:
            for value in needs(node):
                producer = value.producer()
                if producer is not None and id(producer) in inside:
                    continue
                if producer is not None and producer.op_type == "Constant" and not producer.domain:
                    if producer.graph is self.graph:
                        makers[id(producer)] = producer
                    else:  # of an outer graph
                        border[id(value)] = value
                elif value.is_initializer() and value.graph is self.graph:
                    constants[id(value)] = value
                else:
                    border[id(value)] = value
        for value in border.values():
            if not (value.is_graph_input() and value.graph is self.model.graph):
                _check_type(value)
        leaves = [
            v
            for node in chosen
            for v in node.outputs
            if v.name and (v.name in outputs or v.is_graph_output() or not self._used_in(v, kept))
        ]
        # A value with no type can leave unused, as long as the part has another output.
        typed = [v for v in leaves if v.uses() or v.is_graph_output()] or leaves
        view = ir.GraphView(
            list(border.values()),
            typed,
            nodes=[*makers.values(), *chosen],
            initializers=list(constants.values()),
            opset_imports=self.model.graph.opset_imports,
            name="part",
        )
        graph = view.clone()
        for value in list(graph.inputs):
            array = (frozen or {}).get(value.name or "")
            if array is None:
                array = _outer_constant(next(v for v in border.values() if v.name == value.name))
            if array is not None:
                graph.inputs.remove(value)
                value.const_value = ir.tensor(np.asarray(array), name=value.name)
                value.type = ir.TensorType(value.const_value.dtype)
                value.shape = ir.Shape(value.const_value.shape.numpy())
                graph.initializers.add(value)
        used = {(n.domain, n.op_type) for n in _all(graph)}
        functions = self.model.ir.functions
        made = ir.Model(
            graph,
            ir_version=self.model.ir.ir_version,
            functions=[f.clone() for f in functions.values()] if _calls(used, functions) else [],
        )
        made.opset_imports.update(self.model.ir.opset_imports)
        return Model(made)

    def _used_in(self, value: ir.Value, kept: set[int]) -> bool:
        return any(self._holders.get(id(user)) in kept for user, _ in value.uses())

    def border(self, keep: Iterable[int]) -> list[ir.Value]:
        """The values that the nodes at these indices need from outside, constants excluded."""
        chosen = [self.nodes[i] for i in sorted(set(keep))]
        inside = {id(node) for node in chosen}
        values: dict[int, ir.Value] = {}
        for node in chosen:
            for value in needs(node):
                producer = value.producer()
                if not (producer is not None and id(producer) in inside) and not is_constant(value):
                    values[id(value)] = value
        return list(values.values())

    def freezable(self, keep: Iterable[int]) -> dict[str, np.ndarray]:
        """Contents of the small values at the border of a part: what inference or a recording knows."""
        found: dict[str, np.ndarray] = {}
        for value in self.border(keep):
            if value.is_graph_input() and value.graph is self.model.graph:
                continue
            array = self.recorded.get(value.name or "")
            if array is None:
                array = _whole(value)
            if array is not None and array.size <= _SMALL:
                found[value.name or ""] = array
        return found

    def around(self, index: int, steps: int, *, down: bool = True) -> set[int]:
        """Indices of the nodes within some steps of a node, upwards and downwards."""
        found, edge = {index}, {index}
        for _ in range(steps):
            reached: set[int] = set()
            for i in edge:
                for value in needs(self.nodes[i]):
                    producer = value.producer()
                    if producer is not None and id(producer) in self.position:
                        reached.add(self.position[id(producer)])
                if down:
                    for value in self.nodes[i].outputs:
                        for user, _ in value.uses():
                            if id(user) in self.position:
                                reached.add(self.position[id(user)])
            edge = reached - found
            found |= reached
        return found

    def upstream(self, index: int) -> set[int]:
        """Indices of the node and of all that it depends on."""
        found, work = {index}, [index]
        while work:
            for value in needs(self.nodes[work.pop()]):
                producer = value.producer()
                if producer is not None and id(producer) in self.position:
                    i = self.position[id(producer)]
                    if i not in found:
                        found.add(i)
                        work.append(i)
        return found

    def examinable(self, without: Collection[int]) -> set[int]:
        """Nodes of which a part can be made when some are left out.

        A node whose input would come from a removed one, but has no known tensor type, is left out too.
        """
        gone = set(without)
        for index, node in enumerate(self.nodes):
            if index in gone:
                continue
            for value in needs(node):
                producer = value.producer()
                if producer is None or self.position.get(id(producer)) not in gone:
                    continue
                if not has_type(value):
                    gone.add(index)
                    break
        return set(range(len(self.nodes))) - gone


def needs(node: ir.Node) -> list[ir.Value]:
    """What a node uses from the graph it is in, or from outer ones: also what the graphs inside it use."""
    values = [v for v in node.inputs if v is not None]
    for inner in subgraphs(node):
        own = {id(v) for v in inner.inputs} | {id(v) for v in inner.initializers.values()}
        own |= {id(v) for n in inner for v in n.outputs}
        values += [v for n in inner for v in needs(n) if id(v) not in own]
        values += [v for v in inner.outputs if id(v) not in own]
    return values


def has_type(value: ir.Value) -> bool:
    """Whether the value is a tensor of known type and rank, and can be the input of a model."""
    return isinstance(value.type, ir.TensorType) and value.dtype is not None and value.shape is not None


def name_nodes(model: Model) -> frozenset[str]:
    """Give every node without a name of its own one, as errors could not be traced to it otherwise.

    Returns:
        The names that were given.
    """
    taken: set[str] = set()
    given: set[str] = set()
    for number, node in enumerate(model.nodes()):
        if not node.name or node.name in taken:
            name = f"{node.op_type}_{number}"
            while name in taken:
                name += "_"
            node.name = name
            given.add(name)
        taken.add(node.name)
    return frozenset(given)


def _check_type(value: ir.Value) -> None:
    if not has_type(value) and _outer_constant(value) is None:
        raise UncutError(f"value {value.name!r} has no known type to be an input with")


def _outer_constant(value: ir.Value) -> np.ndarray | None:
    """Contents of a constant that lies in a graph around the one that is cut in."""
    producer = value.producer()
    if value.is_initializer() and not value.is_graph_input() and value.const_value is not None:
        return value.const_value.numpy()
    if producer is not None and producer.op_type == "Constant" and not producer.domain:
        from onnxlathe.infer import constant

        return constant(value, max_bytes=1 << 24)
    return None


def _whole(value: ir.Value) -> np.ndarray | None:
    content = known(value)
    if content is None or value.dtype is None:
        return None
    flat = np.asarray(content, object)
    entries = flat.reshape(-1).tolist()
    if any(not isinstance(e, int | float | bool) for e in entries):  # unknown or symbolic
        return None
    return np.asarray(entries).reshape(flat.shape).astype(value.dtype.numpy())


def within(node: ir.Node) -> Iterable[ir.Node]:
    """The node, and all nodes of its subgraphs."""
    yield node
    for inner in subgraphs(node):
        for nested in inner:
            yield from within(nested)


def around(top: ir.Node, node: ir.Node) -> tuple[ir.Node, ...]:
    """The nodes in whose subgraphs `node` stands, up to `top`, the nearest first; nothing for `top` itself."""
    for inner in subgraphs(top):
        for nested in inner:
            if nested is node:
                return (top,)
            found = around(nested, node)
            if found:
                return (*found, top)
    return ()


def graphs_within(node: ir.Node) -> Iterable[ir.Graph]:
    """The subgraphs of a node, and those of the nodes in them."""
    for inner in subgraphs(node):
        yield inner
        for nested in inner:
            yield from graphs_within(nested)


def _all(graph: ir.Graph) -> Iterable[ir.Node]:
    for node in graph:
        yield from within(node)


def _calls(used: set[tuple[str, str]], functions: Mapping[tuple[str, str, str], ir.Function]) -> bool:
    return any((domain, name) in used for domain, name, _ in functions)
