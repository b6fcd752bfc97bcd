"""A constant that is put in front of every element of a batch, as the class token of a ViT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import Dims, dims_of
from onnxlathe.rewrite import Builder, NodeRule, RuleSet, attribute, is_constant
from onnxlathe_passes.conditions import FLOATS, Array, from_front, int64, producer, used_once
from onnxlathe_passes.weights import derived, tensor_of

_LARGEST = 1 << 24  # bytes of the constant that is made; positions of a large image


@dataclass(frozen=True)
class _Joined:
    """A Concat of one computed tensor and constants, repeated for the batch.

    Attributes:
        x: the computed tensor.
        axis: where they are joined.
        sizes: of the parts along the axis.
        place: which part `x` is.
        constants: the others; `None` for `x`.
        dims: of the result.
    """

    x: ir.Value
    axis: int
    sizes: tuple[int, ...]
    place: int
    constants: tuple[ir.Value | None, ...]
    dims: Dims

    @classmethod
    def of(cls, node: ir.Node, opset: int) -> _Joined | None:
        dims = dims_of(node.outputs[0])
        axes = from_front([int(attribute(node, "axis", opset))], len(dims)) if dims is not None else None
        if dims is None or axes is None or None in dims or node.outputs[0].dtype not in FLOATS:
            return None
        (axis,) = axes
        constants = [_repeated(value) for value in node.inputs]
        shapes = [dims_of(value) if value is not None else None for value in node.inputs]
        sizes = [shape[axis] if shape is not None else None for shape in shapes]
        if constants.count(None) != 1 or len(constants) < 2 or not all(isinstance(s, int) for s in sizes):
            return None
        place = constants.index(None)
        x = node.inputs[place]
        if x is None or isinstance(dims[0], int):
            return None  # nothing is repeated for a batch
        known = tuple(size for size in sizes if isinstance(size, int))
        return cls(x, axis, known, place, tuple(constants), dims)

    @property
    def pads(self) -> Array:
        """What a Pad of `x` adds on both sides, for the whole to be as large as the Concat."""
        rank = len(self.dims)
        pads = [0] * (2 * rank)
        pads[self.axis] = sum(self.sizes[: self.place])
        pads[rank + self.axis] = sum(self.sizes[self.place + 1 :])
        return int64(pads)

    def shape(self, *added: ir.Value) -> list[int] | None:
        """The shape of the constants side by side, with what is added to them; `None` if it is too large."""
        shape = [size if axis == self.axis else 1 for axis, size in enumerate(self.dims)]
        for value in (*self.constants, *added):
            dims = dims_of(value) or () if value is not None else ()
            for axis, size in enumerate(dims, start=len(shape) - len(dims)):
                if axis != self.axis and size != 1:
                    shape[axis] = size
        found = [int(size) for size in shape if isinstance(size, int)]
        return found if int(np.prod(found)) * 4 <= _LARGEST else None

    def side_by_side(self, shape: list[int]) -> Array:
        """The constants where they are in the result, and 0 where `x` is."""
        parts = []
        for size, constant in zip(self.sizes, self.constants, strict=True):
            part = [size if axis == self.axis else s for axis, s in enumerate(shape)]
            array = np.zeros((), np.float32) if constant is None else tensor_of(constant).numpy()
            parts.append(np.broadcast_to(array, part))
        return np.concatenate([p.astype(parts[self.place - 1].dtype) for p in parts], self.axis)


def _repeated(value: ir.Value | None) -> ir.Value | None:
    """The constant that a value repeats along axes where it has size 1."""
    node = producer(value, "Expand", "Tile")
    source = node.inputs[0] if node is not None else None
    if value is None or source is None or not is_constant(source):
        return None
    dims, ours = dims_of(value), dims_of(source)
    if dims is None or ours is None or None in dims or len(ours) > len(dims):
        return None
    fits = all(o in (1, d) for o, d in zip(ours[::-1], dims[::-1], strict=False))
    return source if fits else None


class _Positions(NodeRule):
    """Concat(constant, x) + positions = Pad(x) + constant."""

    min_opset = 11
    reach = 3
    visits = ("Add",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        for value, other in (node.inputs, node.inputs[::-1]):
            concat = producer(value, "Concat")
            if concat is None or value is None or other is None or not used_once(value):
                continue
            found = _Joined.of(concat, op.opset)
            if found is None or not _may_be_added(other, found.dims):
                continue
            shape = found.shape(other)
            if shape is None:
                continue

            def whole(found: _Joined = found, shape: list[int] = shape, other: ir.Value = other) -> Array:
                total: Array = found.side_by_side(shape) + tensor_of(other).numpy()
                return total

            return op.Add(op.Pad(found.x, found.pads), derived(op, other, shape, whole))
        return None


class _Alone(NodeRule):
    """Concat(constant, x + positions) = Pad(x) + constant."""

    min_opset = 11
    reach = 3
    visits = ("Concat",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        found = _Joined.of(node, op.opset)
        like = next((c for c in found.constants if c is not None), None) if found is not None else None
        if found is None or like is None or _positions_follow(node.outputs[0], found.dims):
            return None
        x, added = found.x, None
        add = producer(x, "Add")
        if add is not None and used_once(x):
            for value, other in (add.inputs, add.inputs[::-1]):
                if value is None or other is None or dims_of(value) != dims_of(x):
                    continue
                if _may_be_added(other, dims_of(x) or ()):
                    x, added = value, other
                    break
        # Without positions a Pad and an Add would take longer than the Expand of one row and the Concat.
        shape = found.shape(added) if added is not None else None
        if added is None or shape is None:
            return None

        def whole() -> Array:
            array = found.side_by_side(shape)
            start = sum(found.sizes[: found.place])
            rows = slice(start, start + found.sizes[found.place])
            array[(slice(None),) * found.axis + (rows,)] = tensor_of(added).numpy()
            return array

        return op.Add(op.Pad(x, found.pads), derived(op, like, shape, whole))


def _may_be_added(value: ir.Value, dims: Dims) -> bool:
    """Whether the value is a constant that leaves a tensor of shape `dims` that large."""
    ours = dims_of(value)
    if not is_constant(value) or ours is None or len(ours) > len(dims):
        return False
    return all(o in (1, d) for o, d in zip(ours[::-1], dims[::-1], strict=False))


def _positions_follow(value: ir.Value, dims: Dims) -> bool:
    """Whether the one reader of a value adds a constant, which is the other rule's."""
    users = value.consumers()
    if len(users) != 1 or not used_once(value) or users[0].op_type != "Add" or users[0].domain != "":
        return False
    return any(v is not None and v is not value and _may_be_added(v, dims) for v in users[0].inputs)


class PrependedConstant(RuleSet):
    """Concat(Expand(c), x) + p = Pad(x) + (c and p), for constants c and p.

    So a ViT puts its class token before the patches. The size of the batch is no longer asked for.
    """

    name = "prepended_constant"
    group = "fuse"
    min_opset = 11
    example = """
    %c = Expand(%token, Concat(Shape<end=1>(%x), [1, 768]))      # token: [1, 1, 768]
    %y = Add(Concat(%c, %x, axis=1), %positions)                 # x: [batch, 196, 768]
    →
    %y = Add(Pad(%x, [0, 1, 0, 0, 0, 0]), %c1)                   # c1: positions, the first with the token
    """

    steps = (_Positions(), _Alone())
