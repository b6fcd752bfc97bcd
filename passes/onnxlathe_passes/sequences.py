"""Sequences whose length is known are tensors; TensorRT has no sequences.

The torch.export exporter writes `chunk` and `split` as SplitToSequence and SequenceAt
(onnx/onnx-tensorrt issues 853, 863, 1044).
"""

from __future__ import annotations

import onnx_ir as ir

from onnxlathe.infer import dims_of, known
from onnxlathe.rewrite import Builder, NodeRule, attribute


class Sequences(NodeRule):
    """Replace sequences of known length by the tensors they hold.

    SequenceAt of a SplitToSequence is an output of a Split, SequenceAt of a SequenceConstruct is one of its
    inputs, ConcatFromSequence of a SequenceConstruct is a Concat, SequenceLength is a number.
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
        sequence = node.inputs[0]
        source = sequence.producer() if sequence is not None else None
        if source is None or source.domain != "":
            return None
        if node.op_type == "SequenceLength":
            count = _length(source, op.opset)
            return None if count is None else op.constant(count, ir.DataType.INT64)
        if node.op_type == "ConcatFromSequence":
            return _concat(op, node, source)
        return _element(op, node, source)


def _element(op: Builder, node: ir.Node, source: ir.Node) -> ir.Value | None:
    index = node.inputs[1]
    contents = known(index) if index is not None else None
    count = _length(source, op.opset)
    if contents is None or contents.size != 1 or count is None:
        return None
    position = contents.reshape(-1)[0]
    if not isinstance(position, int) or not -count <= position < count:
        return None
    if source.op_type == "SequenceConstruct":
        return source.inputs[position % count]
    sizes = _sizes(source, op.opset)
    if sizes is None:
        return None
    axis = attribute(source, "axis", op.opset)
    x = source.inputs[0]
    made = op.node("Split", [x, op.constant(sizes)], {"axis": axis}, outputs=count)
    part = made.outputs[position % count]
    keepdims = len(source.inputs) > 1 and source.inputs[1] is not None
    if keepdims or attribute(source, "keepdims", op.opset):
        return part
    squeezed: ir.Value = op.Squeeze(part, op.constant([axis]))
    return squeezed


def _length(source: ir.Node, opset: int) -> int | None:
    if source.op_type == "SequenceConstruct":
        return len(source.inputs)
    if source.op_type == "SplitToSequence":
        sizes = _sizes(source, opset)
        return None if sizes is None else len(sizes)
    return None


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


def _concat(op: Builder, node: ir.Node, source: ir.Node) -> ir.Value | None:
    if source.op_type != "SequenceConstruct" or any(v is None for v in source.inputs):
        return None
    axis = attribute(node, "axis", op.opset)
    parts = list(source.inputs)
    if attribute(node, "new_axis", op.opset):
        if op.opset < 13:
            return None
        parts = [op.Unsqueeze(part, op.constant([axis])) for part in parts]
    joined: ir.Value = op.Concat(*parts, axis=axis)
    return joined
