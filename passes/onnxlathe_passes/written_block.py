"""Scatters that write a block: what stays of the data, beside what was written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, NodeRule, is_constant, reject, require
from onnxlathe_passes.conditions import dying, filled, int64, producer, used_once
from onnxlathe_passes.noop_views import INDEX_END, permutation
from onnxlathe_passes.regroup import static, viewed
from onnxlathe_passes.scatter_blocks import Block, Span, covered_later, moved_from, written
from onnxlathe_passes.weights import derived, tensor_of

_MASK = 1 << 20  # entries of a constant that says what is written
_POSITIONS = 1 << 16  # bytes of constant indices that one more node is worth


class WrittenBlock(NodeRule):
    """ScatterND or ScatterElements of a block = Pad, Concat or Where, or what was written, if that is all.

    So `x[:, 1:] = y` comes back from the positions that exporters spell it with. What is written into a
    tensor of one number everywhere is padded with that number; one number, or one row, is chosen by a
    constant mask; anything else is put between what stays. Done where it leaves no more nodes, or one more
    instead of indices of over 64 KiB.
    """

    name = "written_block"
    group = "fuse"
    min_opset = 13
    reach = 8
    example = """
    %i = Concat(Expand(Unsqueeze(Range(0, %batch, 1), …)), Expand([[[1], [2], [3]]], …), axis=-1)
    %y = ScatterND(%x, %i, %u)              # x: [batch, 4], u: [batch, 3]
    →
    %y = Concat(Slice(%x, starts=[0], ends=[1], axes=[1]), %u, axis=1)
    """

    visits = ("ScatterND", "ScatterElements")

    def visit(self, op: Builder, node: ir.Node) -> ir.Value:
        require(not covered_later(node, op.opset), "the scatters after it write the rest")
        block = written(node, op.opset)
        updates = viewed(op, block.updates, block.dims)
        if all(span.whole for span in block.spans):
            return updates
        form = _form(replace(block, updates=updates))
        block, perm = _without_transposes(op, replace(block, updates=updates), form)
        result = _laid(op, block, form)
        if perm is not None:
            result = op.Transpose(result, perm=perm)
        spared = len(dying(node)) + _cancels(node, perm, op.opset) + _is_large(node.inputs[1])
        require(len(op.nodes) <= spared, "it would be more nodes")
        return result


@dataclass(frozen=True)
class _Form:
    """What the block becomes: a Pad, a Where, both, or a Concat.

    Attributes:
        kind: "pad", "choose", "pad and choose" or "join".
        number: what a Pad fills in, or what a Where chooses instead of the updates.
    """

    kind: str
    number: Any = None


def _form(block: Block) -> _Form:
    partial = block.partial
    gapless = all(span.step == 1 for span in block.spans)
    numeric = block.data.dtype not in (ir.DataType.BOOL, ir.DataType.STRING, None)
    number = filled(block.data)
    if number is not None and gapless and _pads(block.spans) is not None and numeric:
        return _Form("pad", number)
    number, maskable = filled(block.updates), _mask(block.spans, partial) is not None
    if maskable and (number is not None or all(block.spans[a].count == 1 for a in partial)):
        return _Form("choose", number)
    require(gapless, "it leaves gaps")
    inside = block.spans[partial[0]].start != 0 and block.spans[partial[0]].rest != 0
    if maskable and (len(partial) > 1 or inside) and numeric:
        return _Form("pad and choose")
    require(len(partial) == 1, "it writes in the middle of several axes")
    return _Form("join")


def _laid(op: Builder, block: Block, form: _Form) -> ir.Value:
    """The data with the block in it."""
    if form.kind == "join":
        return _joined(op, block, block.partial[0])
    if form.kind == "pad":
        return _padded(op, block, form.number)
    if form.kind == "pad and choose":
        update = _padded(op, block, 0)
    elif form.number is not None:
        update = op.constant(form.number, block.data.dtype)
    else:
        update = _repeated(block.updates)
    chosen: ir.Value = op.Where(op.constant(_mask(block.spans, block.partial)), update, block.data)
    return chosen


def _pads(spans: Sequence[Span]) -> list[int] | None:
    """How much of each axis comes before the block, and then how much after it."""
    return static([*(span.start for span in spans), *(span.rest for span in spans)])


def _padded(op: Builder, block: Block, number: Any) -> ir.Value:
    pads = _pads(block.spans)
    if pads is None:
        reject("how much is left around it is not known")
    filling = None if number == 0 else op.constant(number, block.data.dtype)
    made: ir.Value = op.Pad(block.updates, int64(pads), filling)
    return made


def _mask(spans: Sequence[Span], partial: Sequence[int]) -> Any:
    """Which places are written, as an array that broadcasts to the data; `None` where it is not constant."""
    sizes = static([spans[axis].size for axis in partial])
    starts = static([spans[axis].start for axis in partial])
    counts = static([spans[axis].count for axis in partial])
    if sizes is None or starts is None or counts is None or int(np.prod(sizes)) > _MASK:
        return None
    shape = [1] * len(spans)
    for axis, size in zip(partial, sizes, strict=True):
        shape[axis] = size
    mask = np.ones(shape, np.bool_)
    for axis, size, start, count in zip(partial, sizes, starts, counts, strict=True):
        step = spans[axis].step
        along = np.zeros(size, np.bool_)
        along[start : start + (count - 1) * step + 1 : step] = True
        mask &= along.reshape(-1, *(1,) * (len(shape) - axis - 1))
    return mask


def _joined(op: Builder, block: Block, axis: int) -> ir.Value:
    """What is before the block, the block, and what is after it."""
    span = block.spans[axis]
    parts = [block.updates]
    if span.start != 0:
        end = span.start if isinstance(span.start, int) else -(span.rest + span.count)
        require(isinstance(end, int), "where the block begins is not known")
        parts.insert(0, _part(op, block.data, axis, 0, end))
    if span.rest != 0:
        start = -span.rest if isinstance(span.rest, int) else span.start + span.count
        require(isinstance(start, int), "where the block ends is not known")
        parts.append(_part(op, block.data, axis, start, INDEX_END))
    made: ir.Value = op.Concat(*parts, axis=axis)
    return made


def _part(op: Builder, data: ir.Value, axis: int, start: int, end: int) -> ir.Value:
    if not is_constant(data):
        made: ir.Value = op.Slice(data, int64([start]), int64([end]), int64([axis]))
        return made
    source = tensor_of(data)
    place = (slice(None),) * axis + (slice(start, end),)
    shape = list(source.shape.numpy())
    shape[axis] = len(range(*slice(start, end).indices(shape[axis])))
    return derived(op, data, shape, lambda: source.numpy()[place])


# Transposes.


def _without_transposes(op: Builder, block: Block, form: _Form) -> tuple[Block, list[int] | None]:
    """The block before its operands were transposed alike, and how the result must be transposed instead."""
    values = {"data": block.data, "updates": block.updates}
    if form.kind == "pad":
        del values["data"]
    if form.kind == "choose" and form.number is not None:
        del values["updates"]
    moved = {name: moved_from(value, op.opset) for name, value in values.items() if not is_constant(value)}
    perm = next((perm for _, perm in moved.values()), None)
    if perm is None or list(perm) == sorted(perm) or any(other != perm for _, other in moved.values()):
        return block, None
    for name, value in values.items():
        values[name] = moved[name][0] if name in moved else _turned(op, value, perm)
    spans = list(block.spans)
    for place, axis in enumerate(perm):
        spans[axis] = block.spans[place]
    return replace(block, spans=tuple(spans), **values), perm


def _turned(op: Builder, value: ir.Value, perm: Sequence[int]) -> ir.Value:
    """A constant as it was before a Transpose by `perm`."""
    source = tensor_of(value)
    back = [perm.index(axis) for axis in range(len(perm))]
    shape = source.shape.numpy()
    return derived(op, value, [shape[axis] for axis in back], lambda: source.numpy().transpose(back))


def _cancels(node: ir.Node, perm: Sequence[int] | None, opset: int) -> int:
    """How many Transposes the one after the result takes with it."""
    result = node.outputs[0]
    user = next(iter(result.consumers())) if used_once(result) else None
    if perm is None or user is None or user.op_type != "Transpose":
        return 0
    back = permutation(user, opset)
    return 2 if back is not None and [perm[axis] for axis in back] == sorted(perm) else 1


def _is_large(indices: ir.Value | None) -> bool:
    """Whether the positions are a constant that is worth a node: an index for each coordinate of each element."""
    return indices is not None and is_constant(indices) and tensor_of(indices).nbytes > _POSITIONS


def _repeated(update: ir.Value) -> ir.Value:
    """What an Expand repeats: Where does that by itself."""
    node = producer(update, "Expand")
    inner = node.inputs[0] if node is not None else None
    return update if inner is None or dims_of(inner) is None else inner
