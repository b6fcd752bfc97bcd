"""Sizes that are known as expressions: which value already holds them, and how to say them without computing.

Exporters compute the same sizes again for every layer. Two integer tensors whose contents are the same
expressions over the inputs' dimensions are equal in every run, whatever computed them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of, infer_node, known
from onnxlathe.rewrite import Names, attribute

Contents = np.ndarray[Any, np.dtype[np.object_]]


class Extents:
    """Values that hold known sizes, for one graph and what it can see of outer graphs.

    Attributes:
        held: the first value that holds given contents, by type, shape and contents.
        sources: a value whose dimensions, from `start` to `end`, are given expressions.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.held: dict[tuple[Any, ...], ir.Value] = {}
        self.sources: dict[tuple[Any, ...], tuple[ir.Value, int, int]] = {}
        for value in graph.inputs:
            self.add_source(value)

    def inside(self, graph: ir.Graph) -> Extents:
        """What a subgraph sees: all that was known up to the node that holds it."""
        inner = Extents(graph)
        inner.held = {**self.held}
        inner.sources = {**inner.sources, **self.sources}
        return inner

    def add_source(self, value: ir.Value) -> None:
        """Remember that the dimensions of `value` can be asked for."""
        dims = dims_of(value)
        if dims is None or len(dims) > 8 or not isinstance(value.type, ir.TensorType):
            return
        for start in range(len(dims)):
            for end in range(start + 1, len(dims) + 1):
                part = dims[start:end]
                if None not in part and (part not in self.sources or not _is_there(self.sources[part][0])):
                    self.sources[part] = (value, start, end)

    def value(self, node: ir.Node, contents: Contents) -> ir.Value | None:
        """An earlier value with the same contents, element type and shape as the node's output."""
        other = self.held.get(_key(node.outputs[0], contents))
        if other is None or other is node.outputs[0]:
            return None
        return other if _is_there(other) else None

    def as_shape(self, node: ir.Node, contents: Contents, opset: int, names: Names) -> ir.Node | None:
        """A Shape node that gives `contents` directly, where they are dimensions of some earlier value.

        Shape takes a range of dimensions since opset 15.
        """
        if node.op_type == "Shape" or contents.ndim != 1 or node.outputs[0].dtype != ir.DataType.INT64:
            return None
        source = self.sources.get(tuple(contents.tolist()))
        if source is None:
            return None
        value, start, end = source
        if not _is_there(value):
            del self.sources[tuple(contents.tolist())]
            return None
        rank = len(dims_of(value) or ())
        whole = (start, end) == (0, rank)
        if not whole and opset < 15:
            return None
        attributes = {} if whole else {"start": start, "end": end}
        made = ir.node("Shape", [value], attributes, name=names.node(f"{node.name}/Shape"))
        made.outputs[0].name = names.value(f"{node.name}/Shape_output")
        infer_node(made, opset)
        return made

    def learn(self, node: ir.Node, contents: Contents) -> None:
        """Remember that the node's output holds `contents`."""
        key = _key(node.outputs[0], contents)
        if key not in self.held or not _is_there(self.held[key]):
            self.held[key] = node.outputs[0]
        if node.op_type == "Shape" and node.inputs[0] is not None:
            self.add_source(node.inputs[0])


def _is_there(value: ir.Value) -> bool:
    """Whether the node that produces the value has not been removed meanwhile."""
    producer = value.producer()
    return producer is None or producer.graph is not None


def _key(value: ir.Value, contents: Contents) -> tuple[Any, ...]:
    return (value.dtype, contents.shape, *contents.flat)


def constant_target(node: ir.Node) -> list[int] | None:
    """The second input of a Reshape or Expand as numbers, if it is computed but need not be.

    A dimension of a Reshape that is that of its input at the same place is written 0, one more may be -1.
    A dimension of an Expand that its input already has is written 1.
    """
    if node.op_type not in ("Reshape", "Expand") or len(node.inputs) < 2:
        return None
    data, shape = node.inputs[0], node.inputs[1]
    if data is None or shape is None or shape.producer() is None:
        return None
    contents, dims = known(shape), dims_of(data)
    if contents is None or dims is None or contents.ndim != 1:
        return None
    wanted = contents.tolist()
    if node.op_type == "Expand":
        return _expand_target(wanted, list(dims))
    if attribute(node, "allowzero", 14) or 0 in dims:
        return None
    return _reshape_target(wanted, list(dims))


def _reshape_target(wanted: list[Any], dims: list[Any]) -> list[int] | None:
    target: list[int] = []
    implied = -1 in wanted
    for axis, size in enumerate(wanted):
        if isinstance(size, int):
            target.append(size)
        elif size is not None and axis < len(dims) and dims[axis] == size:
            target.append(0)
        elif not implied:
            # The one dimension that follows from the others.
            implied = True
            target.append(-1)
        else:
            return None
    return None if -1 in target and 0 in wanted and None in dims else target


def _expand_target(wanted: list[Any], dims: list[Any]) -> list[int] | None:
    dims = [1] * (len(wanted) - len(dims)) + dims
    target: list[int] = []
    for size, there in zip(wanted[::-1], dims[::-1], strict=False):
        if isinstance(size, int):
            target.append(size)
        elif size is not None and size == there:
            target.append(1)
        else:
            return None
    return target[::-1]
