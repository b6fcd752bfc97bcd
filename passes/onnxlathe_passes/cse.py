"""Common subexpressions: what is computed twice is computed once."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import onnx_ir as ir

from onnxlathe.model import Model
from onnxlathe.rewrite import (
    COMMUTATIVE,
    Context,
    Pass,
    attribute,
    attribute_defaults,
    remove_unused,
    replace_value,
    subgraphs,
)
from onnxlathe_passes.conditions import from_front, operand, rank, uniform
from onnxlathe_passes.reductions import reduction

_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
_ALONG = frozenset(
    {
        *("Softmax", "LogSoftmax", "Hardmax", "Concat", "Split", "Gather", "GatherElements"),
        *("ArgMax", "ArgMin", "LayerNormalization", "RMSNormalization"),
    }
)
"""Operators with an axis of their first input."""
_READ = 1024
"""Tensors in attributes up to so many bytes are compared by content."""

Key = tuple[Hashable, ...]


class CommonSubexpressions(Pass):
    """Compute what two nodes compute alike only once.

    Nodes are alike where operator, attributes (those left out mean their defaults) and inputs are the same;
    the order of a commutative operator's inputs does not matter, nor does the end from which axes are
    counted. A node in a subgraph may also be replaced by one that is computed around it. Random operators
    are never alike, nor are operators that are unknown.
    """

    name = "cse"
    group = "tidy"
    keeps = frozenset({"shapes"})
    example = """
    %a = Add(%x, %b)
    %c = Add(%b, %x)
    %y = Mul(%a, %c)
    →
    %a = Add(%x, %b)
    %y = Mul(%a, %a)
    """

    def run(self, model: Model, context: Context) -> int:
        pure = pure_functions(model)
        changes = _Search(self.name, context, model.opset, pure).graph(model.graph, [])
        for function in model.ir.functions.values():
            opset = function.opset_imports.get("", model.opset)
            changes += _Search(self.name, context, opset, pure).graph(function.graph, [])
        return changes


class _Search:
    def __init__(
        self, name: str, context: Context, opset: int, pure: frozenset[tuple[str, str, str]]
    ) -> None:
        self.name = name
        self.context = context
        self.opset = opset
        self.pure = pure

    def graph(self, graph: ir.Graph, scopes: list[dict[Key, ir.Node]]) -> int:
        """Replace what is alike in `graph`; `scopes` holds what the graphs around it have computed so far."""
        changes = 0
        seen: dict[Key, ir.Node] = {}
        scopes = [*scopes, seen]
        for node in graph:
            for inner in subgraphs(node):
                changes += self.graph(inner, scopes)
            key = key_of(node, self.opset, self.pure, node.inputs)
            if key is None:
                continue
            kept = next((scope[key] for scope in scopes if key in scope), None)
            if kept is None:
                seen[key] = node
            elif self.share(kept, node):
                changes += 1
        return changes

    def share(self, kept: ir.Node, node: ir.Node) -> bool:
        """Let the outputs of `kept` stand for those of `node`."""
        pairs = []
        for index, output in enumerate(node.outputs):
            if output.is_graph_output() and node.op_type == "Identity":
                return False  # it is there because it cannot be another's second name
            if output.uses() or output.is_graph_output():
                if index >= len(kept.outputs) or not kept.outputs[index].name:
                    return False
                pairs.append((output, kept.outputs[index]))
        if not pairs or not self.context.permit(self.name):
            return False
        made = []
        for old, new in pairs:
            _learn(new, old)
            identity = replace_value(old, new, self.context.names)
            if identity is not None:
                made.append(identity)
        self.context.record(self.name, [kept, node], [kept, *made])
        remove_unused([node])
        return True


def key_of(
    node: ir.Node, opset: int, pure: frozenset[tuple[str, str, str]], inputs: Sequence[Hashable]
) -> Key | None:
    """Equal for two nodes that compute the same; `None` where that cannot be told.

    Args:
        node: any node.
        opset: version of its default operator set.
        pure: the model-local functions that are deterministic.
        inputs: what its inputs are, the same object for the same value; `None` for one that is left out.
    """
    if not is_deterministic(node, pure) or not node.outputs:
        return None
    defaults = attribute_defaults(node.op_type, node.domain, opset)
    attributes, given = [], list(inputs)
    places = _places(node, opset)
    if places is not None:
        attributes.append(("axis", places))
        if node.op_type.startswith("Reduce"):
            del given[1:]
    for name, held in node.attributes.items():
        if places is not None and name in ("axis", "axes"):
            continue
        content = _content(held)
        if content is None:
            return None
        if held.is_ref() or name not in defaults or defaults[name] != _plain(held.value):
            attributes.append((name, content))
    while given and given[-1] is None:
        given.pop()
    if node.op_type in COMMUTATIVE and node.domain == "":
        given.sort(key=id)
    # The number of its outputs is part of what a Split means.
    parts = len(node.outputs) if node.op_type == "Split" or node.domain != "" else 0
    return (node.domain, node.op_type, node.overload, parts, *given, *sorted(attributes, key=_name))


def _places(node: ir.Node, opset: int) -> Hashable | None:
    """The axes of an operator, counted from the front; `None` where it has none or they are not known."""
    if node.domain != "" or any(held.is_ref() for held in node.attributes.values()):
        return None
    if node.op_type.startswith("Reduce"):
        what = reduction(node, opset)
        return tuple(what.axes) if what is not None else None
    if node.op_type not in _ALONG:
        return None
    axes = from_front([int(attribute(node, "axis", opset))], rank(node.inputs[0]))
    return tuple(axes) if axes is not None else None


def is_deterministic(node: ir.Node, pure: frozenset[tuple[str, str, str]]) -> bool:
    """Whether the node computes the same each time it is given the same inputs.

    Args:
        node: any node.
        pure: the model-local functions of which that is known.
    """
    if any(True for _ in subgraphs(node)):
        return False
    if node.domain != "":
        return (node.domain, node.op_type, node.overload) in pure or node.domain == "ai.onnx.ml"
    if node.op_type == "Dropout":
        training = operand(node, 2)
        return training is None or uniform(training) is False
    return node.op_type not in _RANDOM


def pure_functions(model: Model) -> frozenset[tuple[str, str, str]]:
    """The model-local functions that are deterministic throughout."""
    bodies = {(f.domain, f.name, f.overload): list(_nodes(f.graph)) for f in model.ir.functions.values()}
    pure: frozenset[tuple[str, str, str]] = frozenset()
    for _ in bodies:
        more = {key for key, nodes in bodies.items() if all(is_deterministic(n, pure) for n in nodes)}
        if more == pure:
            break
        pure = frozenset(more)
    return pure


def _nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph:
        yield node
        for inner in subgraphs(node):
            yield from _nodes(inner)


def _name(attribute: tuple[str, Hashable]) -> str:
    return attribute[0]


def _content(attribute: ir.Attr) -> Hashable:
    """An attribute's value as something that can be compared; `None` where that is too much work."""
    if attribute.is_ref():
        return ("ref", attribute.ref_attr_name)
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        if tensor.dtype == ir.DataType.STRING or tensor.nbytes > _READ:
            return id(tensor)
        return (int(tensor.dtype), tuple(tensor.shape.numpy()), tensor.tobytes())
    value = attribute.value
    if isinstance(value, (int, float, str, bytes)):
        return (int(attribute.type), value)
    if isinstance(value, (list, tuple)) and all(isinstance(v, (int, float, str, bytes)) for v in value):
        return (int(attribute.type), *value)
    return None


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _learn(kept: ir.Value, other: ir.Value) -> None:
    """Keep what only the other one of two equal values knew."""
    if kept.type is None:
        kept.type = other.type
    if kept.shape is None:
        kept.shape = other.shape
