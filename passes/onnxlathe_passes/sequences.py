"""Sequences whose length is known are tensors; TensorRT has no sequences.

The torch.export exporter writes `chunk` and `split` as SplitToSequence and SequenceAt
(onnx/onnx-tensorrt issues 853, 863, 1044).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import onnx_ir as ir

from onnxlathe.infer import dims_of, known
from onnxlathe.rewrite import Builder, NodeRule, attribute

Element = Callable[[], ir.Value]


class Sequences(NodeRule):
    """Replace sequences of known length by the tensors they hold.

    SequenceAt of a SplitToSequence is an output of a Split, SequenceAt of a SequenceConstruct is one of its
    inputs, ConcatFromSequence is a Concat, SequenceLength is a number. What SequenceInsert and SequenceErase
    do in between is followed.
    """

    name = "sequences"
    group = "tidy"
    visits = ("SequenceAt", "ConcatFromSequence", "SequenceLength")
    reach = 2
    example = """
    %s = SplitToSequence(%x, [64, 64, 64]) {axis=2}
    %q = SequenceAt(%s, 0)
    →
    %q, _, _ = Split(%x, [64, 64, 64]) {axis=2}
    """

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        count = _length(node.inputs[0], op.opset)
        if count is None:
            return None
        if node.op_type == "SequenceLength":
            return op.constant(count, ir.DataType.INT64)
        if node.op_type == "ConcatFromSequence":
            return _concat(op, node)
        place = _within(node.inputs[1], count, count)
        return None if place is None else _elements(op, node.inputs[0])[place]()


def _length(sequence: ir.Value | None, opset: int) -> int | None:
    """How many tensors a sequence holds; `None` where that, or which they are, is not known."""
    source = sequence.producer() if sequence is not None else None
    if source is None or source.domain != "":
        return None
    match source.op_type:
        case "SequenceEmpty":
            return 0
        case "SequenceConstruct":
            return None if None in source.inputs else len(source.inputs)
        case "SplitToSequence":
            sizes = _sizes(source, opset)
            return None if sizes is None else len(sizes)
        case "Identity":
            return _length(source.inputs[0], opset)
        case "SequenceInsert" | "SequenceErase" as kind:
            count = _length(source.inputs[0], opset)
            if count is None or _changed_at(source, count) is None:
                return None
            return count + 1 if kind == "SequenceInsert" else count - 1
    return None


def _elements(op: Builder, sequence: ir.Value | None) -> list[Element]:
    """The tensors of a sequence whose length is known; nodes are made for those that are taken."""
    source = sequence.producer() if sequence is not None else None
    assert source is not None
    match source.op_type:
        case "SequenceEmpty":
            return []
        case "SequenceConstruct":
            return [partial(_itself, v) for v in source.inputs if v is not None]
        case "SplitToSequence":
            return _split(op, source)
    found = _elements(op, source.inputs[0])
    if source.op_type == "Identity":
        return found
    place = _changed_at(source, len(found))
    assert place is not None
    if source.op_type == "SequenceErase":
        return found[:place] + found[place + 1 :]
    tensor = source.inputs[1]
    assert tensor is not None
    return [*found[:place], partial(_itself, tensor), *found[place:]]


def _itself(value: ir.Value) -> ir.Value:
    return value


def _changed_at(source: ir.Node, count: int) -> int | None:
    """Where a SequenceInsert puts its tensor, or which one a SequenceErase takes out."""
    inserts = source.op_type == "SequenceInsert"
    operands = list(source.inputs)[2 if inserts else 1 :]
    if not operands or operands[0] is None:
        return count if inserts else count - 1 if count else None
    return _within(operands[0], count, count + 1 if inserts else count)


def _within(index: ir.Value | None, count: int, end: int) -> int | None:
    """A position that is constant; a negative one counts from the end of the sequence."""
    contents = known(index) if index is not None else None
    if contents is None or contents.size != 1:
        return None
    position = contents.reshape(-1)[0]
    if not isinstance(position, int) or not -count <= position < end:
        return None
    return position + count if position < 0 else position


def _split(op: Builder, source: ir.Node) -> list[Element]:
    """The parts of a SplitToSequence as outputs of one Split."""
    axis, sizes = attribute(source, "axis", op.opset), _sizes(source, op.opset)
    assert sizes is not None
    split = source.inputs[1] if len(source.inputs) > 1 else None
    keepdims = split is not None or attribute(source, "keepdims", op.opset)

    @cache
    def parts() -> Sequence[ir.Value]:
        made = op.node("Split", [source.inputs[0], op.constant(sizes)], {"axis": axis}, outputs=len(sizes))
        return made.outputs

    def part(index: int) -> ir.Value:
        found = parts()[index]
        return found if keepdims else op.Squeeze(found, op.constant([axis]))

    return [partial(part, index) for index in range(len(sizes))]


def _sizes(source: ir.Node, opset: int) -> list[int] | None:
    """How long each part of a SplitToSequence is along its axis. Split takes sizes as an input since 13."""
    x = source.inputs[0]
    dims = dims_of(x) if x is not None else None
    if dims is None or opset < 13:
        return None
    split = source.inputs[1] if len(source.inputs) > 1 else None
    total = dims[attribute(source, "axis", opset)]
    if split is None:
        return [1] * total if isinstance(total, int) and 0 < total <= 64 else None
    contents = known(split)
    if contents is None or not all(isinstance(size, int) for size in contents.flat):
        return None
    if contents.ndim == 1:
        return [int(size) for size in contents.flat]
    size = int(contents.reshape(-1)[0])
    if not isinstance(total, int) or size < 1 or total < 1:
        return None
    return [min(size, total - start) for start in range(0, total, size)]


def _concat(op: Builder, node: ir.Node) -> ir.Value | None:
    axis, stacks = attribute(node, "axis", op.opset), attribute(node, "new_axis", op.opset)
    if stacks and op.opset < 13:
        return None  # Unsqueeze takes its axes as an input since then
    parts = [element() for element in _elements(op, node.inputs[0])]
    if not parts:
        return None
    if stacks:
        parts = [op.Unsqueeze(part, op.constant([axis])) for part in parts]
    joined: ir.Value = op.Concat(*parts, axis=axis)
    return joined
