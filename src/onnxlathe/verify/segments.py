"""A model as a row of segments, cut where few values pass from one to the next.

Between the layers of most networks only one or a few values are alive. There a model can be stopped and, later and
in another process, gone on with.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxlathe.infer import infer_model
from onnxlathe.model import Model, subgraphs

_STRETCHES = 64  # of the original; in each, the narrowest places are recorded
_WIDEST = 24  # values that may be alive at a place where a model is cut


@dataclass(frozen=True)
class Segment:
    """Nodes `first` up to `last` of a chain, and the bytes of the weights that they use."""

    first: int
    last: int
    nbytes: int


class Chain:
    """The nodes of a main graph in their order.

    Args:
        model: types are inferred in a copy of it.

    Attributes:
        nodes: without constants, which come along wherever they are used.
    """

    def __init__(self, model: Model) -> None:
        self.model = model.clone()
        infer_model(self.model)
        self.nodes = [n for n in self.model.graph if n.op_type != "Constant" or n.domain]
        made = {id(v) for node in self.nodes for v in node.outputs}
        self._needs = [[v for v in needs(node) if id(v) in made] for node in self.nodes]
        self._last = {id(v): i for i, values in enumerate(self._needs) for v in values}

    def alive(self) -> Iterator[tuple[int, dict[int, ir.Value]]]:
        """For each place between two nodes, the values that pass it; the dict is changed afterwards."""
        ending: dict[int, list[int]] = {}
        for key, index in self._last.items():
            ending.setdefault(index, []).append(key)
        values: dict[int, ir.Value] = {}
        for index, node in enumerate(self.nodes[:-1]):
            for value in node.outputs:
                if self._last.get(id(value), -1) > index:
                    values[id(value)] = value
            for key in ending.get(index, ()):
                values.pop(key, None)
            yield index + 1, values

    def between(self, before: Collection[str], behind: Collection[str]) -> Segment:
        """The nodes that come after all of `before` is made, up to where all of `behind` is.

        From the beginning, or to the end, where these are empty or this model has no such values.
        """
        made = {v.name: i + 1 for i, node in enumerate(self.nodes) for v in node.outputs}
        first = max((made.get(name, 0) for name in before), default=0)
        last = max((made.get(name, len(self.nodes)) for name in behind), default=len(self.nodes))
        return Segment(min(first, last - 1), last, 0)

    def narrow(self) -> set[str]:
        """Names of the values that are alive at the narrowest places of each stretch."""
        counts = [(place, len(values)) for place, values in self.alive() if _few_tensors(values)]
        chosen: set[int] = set()
        length = max(len(self.nodes) // _STRETCHES, 16)
        stretches: dict[int, list[tuple[int, int]]] = {}
        for place, count in counts:
            stretches.setdefault(place // length, []).append((place, count))
        for stretch in stretches.values():
            least = min(count for _, count in stretch)
            chosen.update(place for place, count in stretch if count == least)
        return {v.name or "" for place, values in self.alive() if place in chosen for v in values.values()}

    def segments(self, budget: int) -> list[Segment]:
        """The whole chain in segments that use at most `budget` bytes of weights.

        A segment is larger where a single node has larger weights, or where there is no place to cut.
        """
        widths = {place: len(values) for place, values in self.alive() if _few_tensors(values)}
        found: list[Segment] = []
        first = 0
        while (cut := self._cut(first, budget, widths)) is not None:
            found.append(cut)
            first = cut.last
        nbytes = sum(_weights(self.nodes[first:]).values())
        return [*found, Segment(first, len(self.nodes), nbytes)]

    def _cut(self, first: int, budget: int, widths: Mapping[int, int]) -> Segment | None:
        """The segment that begins at `first`, if it has to end before the last node."""
        cuts: list[tuple[int, int]] = []  # places, with the bytes of the weights up to there
        held: dict[int, int] = {}
        total = 0
        for index in range(first, len(self.nodes)):
            if index in widths and index > first:
                cuts.append((index, total))
            for key, nbytes in _weights([self.nodes[index]]).items():
                if key not in held:
                    held[key] = nbytes
                    total += nbytes
            if total > budget and cuts:
                # As late as possible, but rather where little is alive.
                late = [c for c in cuts if 2 * c[1] >= cuts[-1][1]]
                place, nbytes = min(late, key=lambda c: (widths[c[0]], -c[0]))
                return Segment(first, place, nbytes)
        return None

    def part(
        self, segment: Segment, wanted: Collection[str] = (), given: Collection[str] | None = None
    ) -> Model:
        """A segment as a model: what it needs from before are inputs.

        Outputs are what is alive behind it, outputs of the model, and what is `wanted` and made in it.

        Args:
            segment: which nodes.
            wanted: names of further outputs.
            given: names of the values that can be inputs; what makes the others comes along. All, if None.
        """
        chosen = self.nodes[segment.first : segment.last]
        if given is not None:
            chosen = self._with_makers(segment, given)
        inside = {id(v) for node in chosen for v in node.outputs}
        inputs: dict[int, ir.Value] = {}
        weights: dict[int, ir.Value] = {}
        constants: dict[int, ir.Node] = {}
        for node in chosen:
            for value in needs(node):
                producer = value.producer()
                if id(value) in inside:
                    continue
                if producer is not None and producer.op_type == "Constant" and not producer.domain:
                    constants[id(producer)] = producer
                elif value.is_initializer() and not value.is_graph_input():
                    weights[id(value)] = value
                else:
                    inputs[id(value)] = value
                    if value.is_initializer():
                        weights[id(value)] = value
        outputs = [
            v
            for node in chosen
            for v in node.outputs
            if v.name
            and (v.name in wanted or v.is_graph_output() or self._last.get(id(v), -1) >= segment.last)
            and (given is None or v.name in given or v.is_graph_output())
        ]
        view = ir.GraphView(
            list(inputs.values()),
            outputs,
            nodes=[*constants.values(), *chosen],
            initializers=list(weights.values()),
            opset_imports=self.model.graph.opset_imports,
            name="segment",
        )
        functions = [f.clone() for f in self.model.ir.functions.values()]
        made = ir.Model(view.clone(), ir_version=self.model.ir.ir_version, functions=functions)
        made.opset_imports.update(self.model.ir.opset_imports)
        return Model(made)

    def _with_makers(self, segment: Segment, given: Collection[str]) -> list[ir.Node]:
        """The segment's nodes, and before them those that make what is not given."""
        maker = {id(v): i for i, node in enumerate(self.nodes) for v in node.outputs}
        chosen = set(range(segment.first, segment.last))
        work = list(chosen)
        while work:
            for value in self._needs[work.pop()]:
                index = maker[id(value)]
                if index not in chosen and not (index < segment.first and value.name in given):
                    chosen.add(index)
                    work.append(index)
        return [self.nodes[i] for i in sorted(chosen)]


def needs(node: ir.Node) -> list[ir.Value]:
    """What a node uses from the graph it is in: its inputs, and what graphs inside it use from outside."""
    values = [v for v in node.inputs if v is not None]
    for inner in subgraphs(node):
        own = {id(v) for v in (*inner.inputs, *inner.initializers.values())}
        own |= {id(v) for n in inner for v in n.outputs}
        values += [v for n in inner for v in needs(n) if id(v) not in own]
        values += [v for v in inner.outputs if id(v) not in own]
    return values


def _weights(nodes: Iterable[ir.Node]) -> dict[int, int]:
    """Bytes of each weight that the nodes use."""
    return {
        id(v): v.const_value.nbytes
        for node in nodes
        for v in needs(node)
        if v.const_value is not None and v.is_initializer()
    }


def _few_tensors(values: dict[int, ir.Value]) -> bool:
    """Whether these are few, and tensors of known type, which can be inputs of a model."""
    return len(values) <= _WIDEST and all(
        isinstance(v.type, ir.TensorType) and v.dtype is not None and v.name for v in values.values()
    )
