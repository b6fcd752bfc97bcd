"""Handing a model to a stranger and taking it back: weights stay behind, provenance is put together again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxlathe.model import Model
from onnxlathe.rewrite import Context, graphs_of
from onnxlathe.rewrite.context import Firing

MARK = "onnxlathe-weight"
"""Location of the external data that a stranger sees in place of a weight; the offset is its number."""

_INLINE = 4096
"""Tensors up to so many bytes go along: shapes, axes and scalars, which others compute with."""


@dataclass
class Lent:
    """A model as a stranger gets it.

    Attributes:
        proto: the model; its large weights refer to data that do not exist.
        tensors: the weights, by the number in those references.
    """

    proto: Any
    tensors: list[ir.TensorProtocol] = field(default_factory=list)


def lend(model: Model, *, weights: bool = False) -> Lent:
    """The model as a `onnx.ModelProto`.

    Args:
        model: is left as it is.
        weights: send the weights along, all of them, in memory.
    """
    copy = model.ir.clone()
    lent = Lent(None)

    def placeholder(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
        if weights or tensor.nbytes <= _INLINE or tensor.dtype == ir.DataType.STRING:
            return tensor
        lent.tensors.append(tensor)
        number = len(lent.tensors) - 1
        return ir.ExternalTensor(
            MARK, number, int(tensor.nbytes), tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
        )

    for graph in graphs_of(copy):
        for name, value in graph.initializers.items():
            if value.const_value is not None:
                value.const_value = placeholder(value.const_value, name)
        for node in graph:
            for attribute in list(node.attributes.values()):
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    changed = placeholder(attribute.as_tensor(), attribute.name)
                    if changed is not attribute.value:
                        node.attributes[attribute.name] = ir.AttrTensor(attribute.name, changed)
    lent.proto = ir.to_proto(copy)
    return lent


def take_back(proto: Any, lent: Lent) -> ir.Model:
    """The model that a stranger returns, with the weights in their places.

    Weights are known by the number in their reference, whatever they are called now.
    """
    # The IR reads a tensor's numbers by name of a file; ours are looked up.
    model: ir.Model = ir.from_proto(proto)
    for graph in graphs_of(model):
        for value in graph.initializers.values():
            value.const_value = _own(value.const_value, lent)
        for node in graph:
            for attribute in list(node.attributes.values()):
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    tensor = _own(attribute.as_tensor(), lent)
                    if tensor is not attribute.value and tensor is not None:
                        node.attributes[attribute.name] = ir.AttrTensor(attribute.name, tensor)
    return model


def _own(tensor: ir.TensorProtocol | None, lent: Lent) -> ir.TensorProtocol | None:
    if isinstance(tensor, ir.ExternalTensor) and tensor.location == MARK:
        return lent.tensors[tensor.offset or 0]
    return tensor


def adopt(model: Model, returned: ir.Model, context: Context, name: str) -> int:
    """Let `model` be what a stranger made of it.

    Nodes that produce a value of the same name stand for the same original nodes; a node in place of several
    stands for all of them. What was dropped is noted.

    Args:
        model: becomes `returned`, unless nothing changed.
        returned: the stranger's result.
        context: gets the records and notes.
        name: of the pass.

    Returns:
        How many nodes and constants are new, changed or gone.
    """
    before, after = model.ir, returned
    old = {v.name: node for node in _nodes(before) for v in node.outputs if v.name}
    known = {v.name for graph in graphs_of(after) for v in (*graph.inputs, *graph.initializers.values())}
    known |= {v.name for node in _nodes(after) for v in node.outputs}
    kept: set[ir.Node] = set()
    changed: list[tuple[ir.Node, list[ir.Node]]] = []
    for node in _nodes(after):
        twin = next((old[v.name] for v in node.outputs if v.name in old), None)
        if twin is not None and _alike(node, twin):
            kept.add(twin)
            for key, text in twin.metadata_props.items():
                node.metadata_props.setdefault(key, text)
            if node.name != twin.name and not node.name:
                node.name = twin.name
        else:
            changed.append((node, [] if twin is None else _replaced(node, old, known)))
    gone = [node for node in _nodes(before) if node not in kept]
    constants = _constants_changed(before, after)
    interface = _interface(before) != _interface(after)
    if not changed and not gone and not constants and not interface:
        return 0
    accounted: set[ir.Node] = set()
    for node, sources in changed:
        accounted.update(sources)
        if sources:
            context.record(name, sources, [node])
        else:
            context.firings.append(Firing(name, (), (node.name or "",)))
    rest = [node for node in gone if node not in accounted]
    if rest:
        context.record(name, rest)
    _note_losses(before, after, context, name)
    model.ir = after
    return max(1, len(changed) + len(rest) + constants)


def _nodes(model: ir.Model) -> Iterable[ir.Node]:
    for graph in graphs_of(model):
        yield from graph


def _alike(node: ir.Node, twin: ir.Node) -> bool:
    """Whether a node came back as it was."""
    return (
        node.op_type == twin.op_type
        and node.domain == twin.domain
        and [v and v.name for v in node.inputs] == [v and v.name for v in twin.inputs]
        and _attributes(node) == _attributes(twin)
    )


def _attributes(node: ir.Node) -> dict[str, str]:
    found = {}
    for attribute in node.attributes.values():
        if attribute.is_ref() or attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            found[attribute.name] = str(attribute.type)
        elif attribute.type == ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            found[attribute.name] = f"{tensor.dtype} {list(tensor.shape)}"
        elif isinstance(attribute.value, (list, tuple)):
            found[attribute.name] = str(list(attribute.value))
        else:
            found[attribute.name] = str(attribute.value)
    return found


def _replaced(node: ir.Node, old: dict[str, ir.Node], known: set[str | None]) -> list[ir.Node]:
    """The original nodes that `node` stands for: from its outputs back to values that still exist."""
    found: dict[ir.Node, None] = {}
    work = [old[v.name] for v in node.outputs if v.name in old]
    inputs = {v.name for v in node.inputs if v is not None}
    while work:
        source = work.pop()
        if source in found:
            continue
        found[source] = None
        for value in source.inputs:
            if value is None or value.name is None or value.name in known or value.name in inputs:
                continue
            if value.name in old:
                work.append(old[value.name])
    return list(found)


def _constants_changed(before: ir.Model, after: ir.Model) -> int:
    """How many initializers of the main graph have other contents, are new or are gone."""
    old, new = before.graph.initializers, after.graph.initializers
    count = len(old.keys() ^ new.keys())
    for name in old.keys() & new.keys():
        a, b = old[name].const_value, new[name].const_value
        if a is b or a is None or b is None:
            continue
        same = a.dtype == b.dtype and list(a.shape) == list(b.shape)
        if not same or a.tobytes() != b.tobytes():
            count += 1
    return count


def _interface(model: ir.Model) -> tuple[list[str | None], list[str | None]]:
    graph = model.graph
    return [v.name for v in graph.inputs], [v.name for v in graph.outputs]


def _note_losses(before: ir.Model, after: ir.Model, context: Context, name: str) -> None:
    """Say what the stranger dropped."""
    functions = [f.name for key, f in before.functions.items() if key not in after.functions]
    if functions:
        context.note(f"{name} dropped or inlined the functions {_some(functions)}")
    metadata = [key for key in before.metadata_props if key not in after.metadata_props]
    if metadata:
        context.note(f"{name} dropped the model's metadata {_some(metadata)}")
    if before.doc_string and not after.doc_string:
        context.note(f"{name} dropped the model's description")
    if before.opset_imports.get("") != after.opset_imports.get(""):
        context.note(
            f"{name} changed the opset from {before.opset_imports.get('')} to {after.opset_imports.get('')}"
        )
    for what, old, new in zip(("inputs", "outputs"), _interface(before), _interface(after), strict=True):
        if old != new:
            context.note(f"{name} changed the model's {what} from {_some(old)} to {_some(new)}")
    names = {v.name for node in _nodes(before) for v in node.outputs}
    annotated = [n for n in _nodes(before) if n.metadata_props]
    made = {v.name: n for n in _nodes(after) for v in n.outputs}
    lost = [
        n
        for n in annotated
        if any(v.name in made and not made[v.name].metadata_props for v in n.outputs if v.name in names)
    ]
    if lost:
        context.note(f"{name} dropped the metadata of {len(lost)} nodes")


def _some(names: Iterable[Any], limit: int = 5) -> str:
    words = [f"'{n}'" for n in names]
    return ", ".join(words[:limit]) + (f" and {len(words) - limit} more" if len(words) > limit else "")
