"""How a model is called otherwise than the model that it was made from.

What changes inputs or outputs says so here. It is kept in the model's metadata, so that a comparison, now or of the
saved file, can call both models alike (`as_called`), and say in what they differ.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir

from .model import Model
from .padded import Padding, unpadded

INTERFACE = "onnxlathe.interface"
"""Key of the metadata."""


class Interface(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The differences.

    Attributes:
        types: input or output → the element type that it had (`INT16`).
        bound: input that is a constant now → its value, as nested lists.
        sizes: open dimension → the one size that it has now.
        outside: first outputs of those nodes of the original that are no longer in the model: its caller does what
            they do. What goes between them and the model are inputs and outputs now.
        padded: output that had as many rows as data say → how it is padded now.
    """

    types: dict[str, str] = {}
    bound: dict[str, Any] = {}
    sizes: dict[str, int] = {}
    outside: list[str] = []
    padded: dict[str, Padding] = {}

    def __bool__(self) -> bool:
        return bool(self.types or self.bound or self.sizes or self.outside or self.padded)

    def since(self, before: Interface) -> Interface:
        """What is here and was not there before."""
        return Interface(
            {n: t for n, t in self.types.items() if n not in before.types},
            {n: v for n, v in self.bound.items() if n not in before.bound},
            {n: s for n, s in self.sizes.items() if n not in before.sizes},
            [n for n in self.outside if n not in before.outside],
            {n: p for n, p in self.padded.items() if n not in before.padded},
        )

    def sentences(self) -> list[str]:
        """How the models are compared all the same, for the user."""
        said = [
            f"'{name}' was {kind.lower()} and has another element type now: compared through Casts"
            for name, kind in self.types.items()
        ]
        said += [
            f"input '{name}' is the constant {_shown(value)} now: compared for that value"
            for name, value in self.bound.items()
        ]
        if self.sizes:
            sizes = ", ".join(f"{n}={s}" for n, s in self.sizes.items())
            said.append(f"the model takes one size only now ({sizes}): compared for that")
        if self.outside:
            nodes = ", ".join(f"'{n}'" for n in self.outside[:6]) + (", …" if len(self.outside) > 6 else "")
            said.append(f"left to the caller: what gives {nodes}; compared with that put back")
        said += [
            f"output '{name}' is padded to {p.rows} on axis {p.axis} now: compared up to '{p.count}'"
            for name, p in self.padded.items()
        ]
        return said


def interface_of(model: ir.Model) -> Interface:
    """What the model says of itself; nothing where it says nothing that can be read."""
    text = model.metadata_props.get(INTERFACE)
    if not text:
        return Interface()
    try:
        return msgspec.json.decode(text, type=Interface)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Interface()


def note_change(
    model: ir.Model,
    *,
    types: dict[str, ir.DataType] | None = None,
    bound: dict[str, np.ndarray] | None = None,
    sizes: dict[str, int] | None = None,
    outside: list[str] | None = None,
    padded: dict[str, Padding] | None = None,
) -> None:
    """Add to what the model says of itself; the first word on a name stays.

    Args:
        model: the model, already changed.
        types: element types that inputs and outputs had.
        bound: values of inputs that are constants now.
        sizes: of dimensions that were open.
        outside: first outputs of nodes that are the caller's now.
        padded: outputs that are padded now.
    """
    known = interface_of(model)
    known.types = {n: t.name for n, t in (types or {}).items()} | known.types
    known.bound = {n: np.asarray(v).tolist() for n, v in (bound or {}).items()} | known.bound
    known.sizes = (sizes or {}) | known.sizes
    known.outside = list(dict.fromkeys([*known.outside, *(outside or [])]))
    known.padded = (padded or {}) | known.padded
    model.metadata_props[INTERFACE] = msgspec.json.encode(known).decode()


def bind_input(model: ir.Model, value: ir.Value, array: np.ndarray) -> None:
    """Make an input of the main graph a constant, and say so.

    Args:
        model: changed in place.
        value: the input.
        array: its contents, in its element type and of a shape that fits.
    """
    model.graph.inputs.remove(value)
    value.const_value = ir.Tensor(array, dtype=value.dtype, name=value.name)
    value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)
    model.graph.register_initializer(value)
    note_change(model, bound={str(value.name): array})


def as_called(model: Model, original: Model, changes: Interface) -> Model:
    """A copy of the model that can be called like the original: for comparing, not for running.

    Args:
        model: the model.
        original: what it was made from.
        changes: how it is called otherwise.
    """
    whole = model.clone()
    graph = whole.graph
    unpadded(graph, changes.padded)
    if changes.outside:
        _put_back(graph, original.graph, set(changes.outside))
    before = {v.name: v for v in (*original.graph.inputs, *original.graph.outputs)}
    for name in changes.types:
        if name in before:
            _cast(graph, name, before[name])
    for name in changes.bound:
        if name not in before or any(v.name == name for v in graph.inputs):
            continue
        own = graph.initializers.pop(name, None)
        if own is not None:
            own.name = f"{name}/bound"
            graph.register_initializer(own)
        graph.inputs.append(ir.Value(name=name, type=before[name].type, shape=before[name].shape))
    _in_order(graph, original.graph)
    return whole


def _cast(graph: ir.Graph, name: str, before: ir.Value) -> None:
    """An input or output in the element type that it had."""
    for index, value in enumerate(list(graph.inputs)):
        if value.name == name and value.dtype is not None and value.dtype != before.dtype:
            outer = ir.Value(name=name, type=before.type, shape=value.shape)
            value.name = f"{name}/widened"
            cast = ir.node("Cast", [outer], {"to": int(value.dtype)})
            value.replace_all_uses_with(cast.outputs[0], replace_graph_outputs=True)
            graph.inputs[index] = outer
            graph.insert_before(graph[0], cast) if len(graph) else graph.append(cast)
    for index, value in enumerate(list(graph.outputs)):
        if value.name == name and before.dtype is not None and value.dtype != before.dtype:
            cast = ir.node("Cast", [value], {"to": int(before.dtype)})
            cast.outputs[0].type, cast.outputs[0].shape = before.type, value.shape
            cast.outputs[0].name, value.name = name, f"{name}/widened"
            graph.append(cast)
            graph.outputs[index] = cast.outputs[0]


def _put_back(graph: ir.Graph, original: ir.Graph, names: set[str]) -> None:
    """The original's nodes of these names, between the graph and the original's inputs and outputs."""
    values = {v.name: v for v in (*graph.inputs, *graph.outputs, *graph.initializers.values())}
    fed = {v.name: v for v in graph.inputs}
    made: dict[str, ir.Value] = {}
    first = [n for n in original if any(v.name in names for v in n.outputs if v.name)]

    def found(value: ir.Value | None) -> ir.Value | None:
        if value is None:
            return None
        name = str(value.name)
        here = made.get(name) or values.get(name)
        if here is not None:
            return here
        if value.is_initializer():
            here = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
            graph.register_initializer(here)
        elif value.is_graph_input():
            here = ir.Value(name=name, type=value.type, shape=value.shape)
            graph.inputs.append(here)
        else:  # a Constant of the original
            producer = value.producer()
            assert producer is not None
            copied(producer)
            return made[name]
        values[name] = here
        return here

    def copied(node: ir.Node) -> None:
        copy = ir.Node(
            node.domain,
            node.op_type,
            [found(v) for v in node.inputs],
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
            name=node.name,
        )
        for mine, theirs in zip(copy.outputs, node.outputs, strict=True):
            mine.name, mine.type, mine.shape = theirs.name, theirs.type, theirs.shape
            made[str(theirs.name)] = mine
        ready.append(copy)

    ready: list[ir.Node] = []
    for node in first:
        copied(node)
    # What the nodes make is no input of the graph any more, and what they take no output.
    for name, value in made.items():
        own = fed.get(name)
        if own is not None:
            own.replace_all_uses_with(value, replace_graph_outputs=True)
            graph.inputs.remove(own)
            own.name = None
    graph.extend(ready)
    graph.sort()
    wanted = {v.name for v in original.outputs}
    kept = [v for v in graph.outputs if v.name in wanted]
    kept += [v for n, v in made.items() if n in wanted and v not in kept]
    graph.outputs.clear()
    graph.outputs.extend(kept)


def _in_order(graph: ir.Graph, original: ir.Graph) -> None:
    """Inputs and outputs as the original has them."""
    for mine, theirs in ((graph.inputs, original.inputs), (graph.outputs, original.outputs)):
        place = {v.name: i for i, v in enumerate(theirs)}
        order = sorted(mine, key=lambda v: place.get(v.name, len(place)))
        if order != list(mine):
            mine.clear()
            mine.extend(order)


def _shown(value: Any) -> str:
    return np.array2string(np.asarray(value), threshold=8, separator=", ").replace("\n", "")
