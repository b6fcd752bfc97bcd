"""What several passes ask of values: certain answers only, `None` or `False` where nothing is known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import constant, dims_of, known
from onnxlathe.rewrite import is_constant

Array = np.ndarray[Any, np.dtype[Any]]

SMALL = 1 << 16
"""Constants up to so many bytes are read to see what they contain."""
_LARGEST = 1 << 26
"""And up to so many where what they contain would make them go away."""
_DEEP = 8
_REPEATS = ("Expand", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Identity", "Tile", "Slice")

HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
FLOATS = HALVES | {ir.DataType.FLOAT, ir.DataType.DOUBLE}


def rank(value: ir.Value | None) -> int | None:
    """Number of dimensions."""
    dims = dims_of(value) if value is not None else None
    return None if dims is None else len(dims)


def same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Whether both have the same shape in every run."""
    dims = dims_of(a)
    return dims is not None and None not in dims and dims == dims_of(b)


def broadcasts_into(small: ir.Value, large: ir.Value) -> bool:
    """Whether an elementwise operator on both has a result of `large`'s shape, in every run."""
    ours, theirs = dims_of(small), dims_of(large)
    if ours is None:
        return False
    if not ours:
        return True
    if theirs is None or len(ours) > len(theirs):
        return False
    return all(d == 1 or (d is not None and d == t) for d, t in zip(ours[::-1], theirs[::-1], strict=False))


def used_once(value: ir.Value) -> bool:
    """Whether a single input of a single node needs the value, so that a rewrite can make it go away.

    That node must be in the graph that computes the value: work is not to be moved into a loop.
    """
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return False
    made_by = value.producer()
    return made_by is None or next(iter(uses)).node.graph is made_by.graph


def dying(node: ir.Node) -> list[ir.Node]:
    """The nodes that nobody needs when a node is gone, itself included."""
    gone, work = [node], [node]
    while work:
        for value in work.pop().inputs:
            above = value.producer() if value is not None else None
            if above is None or above in gone or any(o.is_graph_output() for o in above.outputs):
                continue
            if all(user in gone for output in above.outputs for user in output.consumers()):
                gone.append(above)
                work.append(above)
    return gone


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that computes the value, if it is one of these standard operators."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.domain == "" and node.op_type in op_types else None


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """An input of the node; `None` where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def attributes_of(node: ir.Node) -> dict[str, Any]:
    """The attributes that the node has, to be given to another one."""
    return {name: a.value for name, a in node.attributes.items()}


def small_constant(value: ir.Value | None, max_bytes: int = SMALL) -> Array | None:
    """The array of a constant of numbers that is not large."""
    if value is None or not is_constant(value):
        return None
    array = constant(value, max_bytes=max_bytes)
    return None if array is None or array.dtype.kind in "OSU" else array


def uniform(value: ir.Value | None) -> Any:
    """The number that all elements of a small constant equal."""
    array = small_constant(value)
    if array is None or not array.size:
        return None
    first = array.reshape(-1)[0]
    return first.item() if bool((array == first).all()) else None


def filled(value: ir.Value, depth: int = 0) -> Any:
    """The number that all entries are in every run; `None` where that is not known."""
    if is_constant(value):
        array = constant(value, max_bytes=_LARGEST)
        if array is None or not array.size or array.dtype.kind in "OSU":
            return None
        first = array.reshape(-1)[0]
        return first.item() if bool((array == first).all()) else None
    node = value.producer()
    if node is None or node.domain != "" or depth > _DEEP:
        return None
    if node.op_type == "ConstantOfShape":
        number = node.attributes.get("value")
        return 0.0 if number is None else number.as_tensor().numpy().reshape(-1)[0].item()
    if node.op_type in _REPEATS and node.inputs[0] is not None:
        return filled(node.inputs[0], depth + 1)
    return None


def number(value: ir.Value | None) -> Any:
    """The number in a constant of one element, exactly."""
    array = small_constant(value)
    return array.reshape(-1)[0].item() if array is not None and array.size == 1 else None


def numbers(value: ir.Value | None) -> list[int] | None:
    """The integers in a tensor whose contents are known."""
    contents = known(value) if value is not None else None
    if contents is None:
        return None
    entries: list[Any] = contents.reshape(-1).tolist()
    return entries if all(type(entry) is int for entry in entries) else None


def from_front(axes: Iterable[int], of_rank: int | None) -> list[int] | None:
    """Axes counted from the front; `None` where a negative one meets an unknown rank, or one is too large."""
    result = []
    for axis in axes:
        if axis < 0:
            if of_rank is None:
                return None
            axis += of_rank
        if axis < 0 or (of_rank is not None and axis >= of_rank):
            return None
        result.append(axis)
    return result


def int64(values: Sequence[int]) -> Array:
    """A vector of indices, as shapes, axes and pads are given."""
    return np.array(values, np.int64)
