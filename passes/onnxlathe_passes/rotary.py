"""Rotary position embeddings as one operator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import Dims, constant, dims_of
from onnxlathe.model import Model
from onnxlathe.rewrite import Builder, Context, Pass, attribute, is_constant, remove_unused, scalar_value
from onnxlathe_passes.conditions import FLOATS, from_front, int64, producer, used_once
from onnxlathe_passes.insert import graphs_with_weights, insert, substitute
from onnxlathe_passes.rotate_half import Turned

_TABLE = 8 << 20  # bytes; larger constants are not read to compare their halves
_KEEPS_LAST_AXIS = ("Cos", "Sin", "Cast", "Identity", "Unsqueeze", "Squeeze", "Expand", "Mul")


@dataclass(frozen=True)
class Rotation:
    """x·cos + (-x₂, x₁)·sin.

    Attributes:
        x: `[batch, heads, seq, size]`.
        cos, sin: what it is multiplied with.
        parts: the nodes.
    """

    x: ir.Value
    cos: ir.Value
    sin: ir.Value
    parts: tuple[ir.Node, ...]

    @classmethod
    def all_of(cls, node: ir.Node, opset: int) -> Iterator[Rotation]:
        """The ways to read a sum as a rotation; one at most, if it is one."""
        for straight, turned in (node.inputs, node.inputs[::-1]):
            one, two = producer(straight, "Mul"), producer(turned, "Mul")
            if one is None or two is None or not used_once(straight) or not used_once(turned):  # type: ignore[arg-type]
                continue
            for x, cos in (one.inputs, one.inputs[::-1]):
                for half, sin in (two.inputs, two.inputs[::-1]):
                    joined = producer(half, "Concat")
                    if x is None or cos is None or sin is None or joined is None:
                        continue
                    found = Turned.of(joined, opset) if used_once(joined.outputs[0]) else None
                    if found is not None and found.x is x and found.lower == found.upper:
                        yield cls(x, cos, sin, (node, one, two, joined))


@dataclass
class _Tables:
    """Cosines and sines as the operator wants them, each made once for all layers."""

    made: dict[tuple[ir.Value, object], ir.Value] = field(default_factory=dict)

    def of(self, op: Builder, angles: ir.Value, x: ir.Value, dims: Dims) -> ir.Value:
        """`[batch, seq, size/2]`, of cosines or sines that are broadcast to `x` of shape `dims`."""
        key = (angles, dims[0])
        if key not in self.made:
            self.made[key] = self._make(op, angles, x, dims)
        return self.made[key]

    def _make(self, op: Builder, angles: ir.Value, x: ir.Value, dims: Dims) -> ir.Value:
        size, given = dims[3], dims_of(angles)
        assert isinstance(size, int)
        assert given is not None
        batch = given[0] if len(given) == 4 else 1
        value: ir.Value
        if is_constant(angles):
            array = constant(angles, max_bytes=_TABLE)
            assert array is not None
            array = array.reshape(-1, *array.shape[-2:])[..., : size // 2]
            value = op.constant(np.ascontiguousarray(array), angles.dtype)
        else:
            value = op.Slice(angles, int64([0]), int64([size // 2]), int64([-1]))
            if len(given) == 4:
                value = op.Squeeze(value, int64([1]))
            elif len(given) == 2:
                value = op.Unsqueeze(value, int64([0]))
        if batch == dims[0]:
            return value
        if isinstance(dims[0], int):
            value = op.Expand(value, int64([dims[0], 1, 1]))
        else:
            value = op.Expand(value, op.Concat(op.Shape(x, start=0, end=1), int64([1, 1]), axis=0))
        return value


class Rotary(Pass):
    """x·cos + (-x₂, x₁)·sin = RotaryEmbedding(x, cos, sin), x₁ and x₂ being the halves of x.

    Of cosines and sines the operator takes the first half: both halves must be the same, as constants or
    because a Concat made them (RoFormer, Su et al. 2021, as transformers' `apply_rotary_pos_emb` writes it).
    """

    name = "rotary"
    group = "fuse"
    min_opset = 23
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %a = Slice(%x, starts=[0], ends=[32], axes=[3])               # x: [batch, heads, seq, 64]
    %b = Slice(%x, starts=[32], ends=[64], axes=[3])
    %y = Add(Mul(%x, %cos), Mul(Concat(Neg(%b), %a), %sin))       # cos, sin: [batch, 1, seq, 64]
    →
    %y = RotaryEmbedding(%x, %cos[:, 0, :, :32], %sin[:, 0, :, :32])
    """

    def run(self, model: Model, context: Context) -> int:
        changes = 0
        for graph in graphs_with_weights(model):
            tables = _Tables()
            for node in graph:
                if node.op_type != "Add" or node.domain != "":
                    continue
                for rotation in Rotation.all_of(node, model.opset):
                    if _fits(rotation, model.opset) and context.permit(self.name):
                        self.fuse(node, rotation, model.opset, context, tables)
                        changes += 1
                        break
        return changes

    def fuse(self, node: ir.Node, rotation: Rotation, opset: int, context: Context, tables: _Tables) -> None:
        """Put the operator in the place of the sum."""
        dims = dims_of(rotation.x)
        assert dims is not None
        op = Builder(opset)
        cos, sin = (tables.of(op, angles, rotation.x, dims) for angles in (rotation.cos, rotation.sin))
        result = op.RotaryEmbedding(rotation.x, cos, sin)
        insert(op, node, context)
        substitute([(node.outputs[0], result)], context)
        context.record(self.name, list(rotation.parts), op.nodes)
        remove_unused([node])


def _fits(rotation: Rotation, opset: int) -> bool:
    """Whether the operator computes it: four axes, and cosines and sines that do not differ between heads."""
    dims = dims_of(rotation.x)
    if dims is None or len(dims) != 4 or None in dims or rotation.x.dtype not in FLOATS:
        return False
    for angles in (rotation.cos, rotation.sin):
        given = dims_of(angles)
        if given is None or not 2 <= len(given) <= 4 or given[-2:] != dims[-2:]:
            return False
        if any(d != 1 for d in given[-3:-2]) or (len(given) == 4 and given[0] not in (1, dims[0])):
            return False
        if not _halves_are_equal(angles, opset):
            return False
    return True


def _halves_are_equal(value: ir.Value | None, opset: int, steps: int = 12) -> bool:
    """Whether a value is the same in both halves of its last axis."""
    if value is None or steps == 0:
        return False
    if is_constant(value):
        array = constant(value, max_bytes=_TABLE)
        if array is None or not array.ndim or array.shape[-1] % 2:
            return False
        first, second = np.split(array, 2, axis=-1)
        return bool(np.array_equal(first, second))
    joined = producer(value, "Concat")
    if joined is not None:
        dims = dims_of(value)
        last = dims and from_front([int(attribute(joined, "axis", opset))], len(dims)) == [len(dims) - 1]
        return bool(last) and len(joined.inputs) == 2 and joined.inputs[0] is joined.inputs[1]
    gathered = producer(value, "Gather")
    if gathered is not None:
        return int(attribute(gathered, "axis", opset)) == 0 and _halves_are_equal(
            gathered.inputs[0], opset, steps - 1
        )
    node = producer(value, *_KEEPS_LAST_AXIS)
    if node is None or (dims_of(node.inputs[0]) or (None,))[-1] != (dims_of(value) or (0,))[-1]:  # type: ignore[arg-type]
        return False
    if node.op_type == "Mul" and scalar_value(node.inputs[1]) is None:
        return False
    return _halves_are_equal(node.inputs[0], opset, steps - 1)
