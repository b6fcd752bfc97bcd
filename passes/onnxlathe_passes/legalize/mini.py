"""Cutting one node out of a model, and putting what stands for it back in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import known
from onnxlathe.rewrite import Names, drop_initializer, replace_value, subgraphs
from onnxlathe_passes.legalize.draft import Draft, Lowering

_KNOWN_TYPES = (int, float, bool, np.generic)


def operands_of(node: ir.Node) -> list[ir.Value]:
    """What a node reads, itself or from within its subgraphs; each value once."""
    return list(dict.fromkeys(v for v in (*node.inputs, *captured(node)) if v is not None))


def cut(node: ir.Node, opsets: dict[str, int], ir_version: int) -> ir.Model:
    """A model of `node` alone: what is constant is an initializer, all else an input.

    The k-th of `operands_of(node)` is called `i{k}` there, the k-th output `o{k}` and the node `n`, so that
    equal nodes give equal models.
    """
    values: dict[ir.Value, ir.Value] = {}
    inputs: list[ir.Value] = []
    initializers: list[ir.Value] = []
    for position, value in enumerate(operands_of(node)):
        tensor = fixed(value)
        made = ir.Value(name=f"i{position}", type=value.type, shape=value.shape, const_value=tensor)
        if tensor is not None:
            made.shape = ir.Shape(int(d) for d in tensor.shape.numpy())
            made.type = ir.TensorType(tensor.dtype)
            initializers.append(made)
        else:
            inputs.append(made)
        values[value] = made
    copy = ir.Node(
        node.domain,
        node.op_type,
        [None if v is None else values[v] for v in node.inputs],
        [_attribute_copy(a, values.__getitem__) for a in node.attributes.values()],
        overload=node.overload,
        num_outputs=len(node.outputs),
        name="n",
    )
    outputs = []
    for position, (mine, theirs) in enumerate(zip(copy.outputs, node.outputs, strict=True)):
        mine.type, mine.shape = theirs.type, theirs.shape
        mine.name = ""
        if theirs.name and (theirs.uses() or theirs.is_graph_output()):
            mine.name = f"o{position}"
            outputs.append(mine)
    graph = ir.Graph(
        inputs, outputs, nodes=[copy], initializers=initializers, name="node", opset_imports=opsets
    )
    return ir.Model(graph, ir_version=ir_version)


def _attribute_copy(attribute: ir.Attr, operand: Callable[[ir.Value], ir.Value]) -> ir.Attr:
    """An attribute for the cut node; a graph in it reads operands of the cut instead of outer values."""
    if attribute.type != ir.AttributeType.GRAPH or attribute.is_ref():
        return attribute
    clone = attribute.as_graph().clone(allow_outer_scope_values=True)
    inner = {v for g in _nested(clone) for v in (*g.inputs, *g.initializers.values())}
    inner |= {v for g in _nested(clone) for n in g for v in n.outputs}
    for graph in _nested(clone):
        for node in graph:
            for index, value in enumerate(node.inputs):
                if value is not None and value not in inner:
                    node.replace_input_with(index, operand(value))
        for index, value in enumerate(graph.outputs):
            if value not in inner:  # an outer value handed through needs a node
                identity = ir.node("Identity", [operand(value)], name="")
                identity.outputs[0].type, identity.outputs[0].shape = value.type, value.shape
                identity.outputs[0].name = f"{value.name}/through"
                graph.append(identity)
                graph.outputs[index] = identity.outputs[0]
    return ir.AttrGraph(attribute.name, clone)


def _nested(graph: ir.Graph) -> Iterator[ir.Graph]:
    yield graph
    for node in graph:
        for inner in subgraphs(node):
            yield from _nested(inner)


def fixed(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor that a value always is: an initializer nobody can set, a Constant, or known entries."""
    if value.const_value is not None and not value.is_graph_input():
        return value.const_value
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant" and producer.domain == "":
        attribute = producer.attributes.get("value")
        if attribute is not None and not attribute.is_ref():
            tensor: ir.TensorProtocol = attribute.as_tensor()
            return tensor
    if value.is_graph_input() and value.graph is not None and value.producer() is None:
        return None
    entries = known(value)
    if entries is None or value.dtype is None or not all(isinstance(e, _KNOWN_TYPES) for e in entries.flat):
        return None
    return ir.Tensor(
        np.asarray(entries.tolist(), dtype=value.dtype.numpy()).reshape(entries.shape), dtype=value.dtype
    )


def only_node(model: ir.Model) -> ir.Node:
    """The node of a model that `cut` made."""
    (node,) = model.graph
    return node


def apply(lowering: Lowering, model: ir.Model, node: ir.Node, names: Names) -> bool:
    """Replace `node` in `model` by what `lowering` makes of it. May raise NoMatch; then nothing has changed.

    Returns:
        False where the lowering declined.
    """
    graph = node.graph
    assert graph is not None
    draft = Draft(model.graph.opset_imports.get("", 1))
    outputs = lowering(draft, node)
    if outputs is None:
        return False
    replacements = [outputs] if isinstance(outputs, ir.Value) else list(outputs)
    install(draft, graph, node, replacements, names)
    return True


def install(
    draft: Draft, graph: ir.Graph, node: ir.Node, replacements: Sequence[ir.Value | None], names: Names
) -> list[ir.Node]:
    """Put the nodes of `draft` before `node`, let `replacements` stand for its outputs, and remove it."""
    base = node.name or node.op_type
    for value in draft.constants:
        if not value.uses() and not any(value is r for r in replacements):
            continue
        draft.release(value)
        value.name = names.value(f"{base}/const")
        graph.register_initializer(value)
    made = list(draft.nodes)
    for new in made:
        new.name = names.node(f"{base}/{new.op_type}")
        for output in new.outputs:
            if output.name is None:
                output.name = names.value(f"{new.name}/out")
        graph.insert_before(node, new)
    for old, replacement in zip(node.outputs, replacements, strict=False):
        if replacement is None:
            continue
        if replacement.dtype is None:
            replacement.type = old.type
        identity = replace_value(old, replacement, names)
        if identity is not None:
            made.append(identity)
    _leave(graph, node)
    return made


def splice(model: ir.Model, node: ir.Node, names: Names) -> list[ir.Node]:
    """Put the graph of `model` (made from a `cut` of `node`) in the place of `node`; `model` is used up."""
    host = node.graph
    assert host is not None
    inner = model.graph
    operands = {f"i{k}": v for k, v in enumerate(operands_of(node))}
    outside = {v: operands[str(v.name)] for v in inner.inputs}
    results = {str(v.name): outside.get(v, v) for v in inner.outputs}
    for value, operand in outside.items():
        value.replace_all_uses_with(operand, replace_graph_outputs=True)
    inner.outputs.clear()
    for name, value in results.items():
        # A piece that folded to a constant hands it out through an Identity, which has no place in the model.
        producer = value.producer()
        source = producer.inputs[0] if producer is not None and producer.op_type == "Identity" else None
        if (
            producer is not None
            and source is not None
            and source.is_initializer()
            and producer.graph is inner
        ):
            value.replace_all_uses_with(source)
            results[name] = source
            producer.replace_input_with(0, None)
            inner.remove(producer)
    base = node.name or node.op_type

    def renamed(name: str | None) -> str:
        return f"{base}/{str(name).removeprefix('n/')}"

    for key in list(inner.initializers):
        value = inner.initializers.pop(key)
        own = operands.get(key)
        if own is not None and own.is_initializer() and not own.is_graph_input():
            value.replace_all_uses_with(own)
            continue
        value.name = names.value(renamed(key))
        host.register_initializer(value)
    made = list(inner)
    inner.remove(made)
    for new in made:
        new.name = names.node(renamed(new.name or new.op_type))
        for output in new.outputs:
            if output.name:
                output.name = names.value(renamed(output.name))
        host.insert_before(node, new)
    for position, old in enumerate(node.outputs):
        replacement = results.get(f"o{position}")
        if not old.name or replacement is None:
            continue
        identity = replace_value(old, replacement, names)
        if identity is not None:
            made.append(identity)
    _leave(host, node)
    return made


def _leave(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a node that nothing uses any more, and the weights that only it used."""
    inputs = [v for v in dict.fromkeys(node.inputs) if v is not None]
    for index in range(len(node.inputs)):
        node.replace_input_with(index, None)
    graph.remove(node)
    for value in inputs:
        if value.is_initializer() and not value.uses():
            drop_initializer(value)


def captured(node: ir.Node) -> list[ir.Value]:
    """The values that subgraphs of `node` read from outside of it."""
    graphs = [g for inner in subgraphs(node) for g in _nested(inner)]
    own = {v for g in graphs for v in (*g.inputs, *g.initializers.values())}
    own |= {v for g in graphs for n in g for v in n.outputs}
    read = [v for g in graphs for n in g for v in n.inputs if v is not None and v not in own]
    read += [v for g in graphs for v in g.outputs if v not in own]
    return list(dict.fromkeys(read))
