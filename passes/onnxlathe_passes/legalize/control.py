"""Control flow: branches computed both, loops and scans of known length written out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import require
from onnxlathe_passes.legalize.draft import (
    Draft,
    contents,
    given,
    lowers,
    operand,
    rank_of,
    static_dims,
    static_or_none,
    value_of,
)

_MOST = 64  # iterations that are written out
_NODES = 4000  # and nodes that they may come to


def copied(op: Draft, graph: ir.Graph, inputs: Sequence[ir.Value]) -> list[ir.Value]:
    """The nodes of a subgraph, on the given inputs, as nodes of the draft; its outputs."""
    clone = graph.clone(allow_outer_scope_values=True)
    for old, new in zip(list(clone.inputs), inputs, strict=True):
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    outputs = list(clone.outputs)
    clone.outputs.clear()
    for name in list(clone.initializers):
        op.adopt(clone.initializers.pop(name))
    nodes = list(clone)
    clone.remove(nodes)
    for node in nodes:
        node.name = None
        for output in node.outputs:
            if output.name:
                output.name = None
        op.nodes.append(node)
    return outputs


def _unique(op: Draft, values: list[ir.Value]) -> list[ir.Value]:
    """Values that may stand for outputs: none of them an input, or twice the same."""
    seen: set[ir.Value] = set()
    found = []
    for value in values:
        if value in seen:
            value = op.Identity(value)
        seen.add(value)
        found.append(value)
    return found


@lowers("If")
def both_branches(op: Draft, node: ir.Node) -> list[ir.Value]:
    """Compute both, and choose with Where; for branches of one shape."""
    condition = given(node, 0)
    then = copied(op, node.attributes["then_branch"].as_graph(), [])
    other = copied(op, node.attributes["else_branch"].as_graph(), [])
    results = []
    for a, b in zip(then, other, strict=True):
        left, right = static_or_none(a), static_or_none(b)
        require(left is not None and left == right and None not in left, "the branches differ in shape")
        flag = condition if rank_of(condition) == 0 else op.reshape(condition, [])
        results.append(op.Where(flag, a, b))
    return results


@lowers("Loop")
def unrolled_loop(op: Draft, node: ir.Node) -> list[ir.Value | None]:
    """One copy of the body for each iteration, where their number is constant."""
    body = node.attributes["body"].as_graph()
    count = int(contents(given(node, 0)).reshape(-1)[0])
    condition = operand(node, 1)
    if condition is not None:
        require(bool(contents(condition).reshape(-1)[0]), "it does not run")
    require(0 < count <= _MOST and count * len(body) <= _NODES, "too many iterations to write out")
    going = body.outputs[0]
    source = going.producer()
    while source is not None and source.op_type == "Identity" and source.inputs[0] is not None:
        going = source.inputs[0]
        source = going.producer()
    if going is not body.inputs[1]:
        require(bool(contents(going).reshape(-1)[0]), "it may end early")
    carried: list[ir.Value] = [given(node, i) for i in range(2, len(node.inputs))]
    scans: list[list[ir.Value]] = [[] for _ in range(len(node.outputs) - len(carried))]
    for iteration in range(count):
        inputs = [op.constant(np.int64(iteration)), op.constant(np.array(True)), *carried]
        outputs = copied(op, body, inputs)
        carried = outputs[1 : 1 + len(carried)]
        for parts, value in zip(scans, outputs[1 + len(carried) :], strict=True):
            parts.append(op.Unsqueeze(value, op.ints([0])))
    stacked = [op.Concat(*parts, axis=0) if len(parts) > 1 else parts[0] for parts in scans]
    return list(_unique(op, [*carried, *stacked]))


@lowers("Scan")
def unrolled_scan(op: Draft, node: ir.Node) -> list[ir.Value | None]:
    """One copy of the body for each slice of the scanned inputs."""
    require(op.opset >= 9, "the Scan with a batch axis")
    body = node.attributes["body"].as_graph()
    scanned = int(node.attributes["num_scan_inputs"].as_int())
    states = [given(node, i) for i in range(len(node.inputs) - scanned)]
    inputs = [given(node, i) for i in range(len(node.inputs) - scanned, len(node.inputs))]
    outs = len(node.outputs) - len(states)
    axes = list(value_of(node, "scan_input_axes", op, None) or [0] * scanned)
    backwards = list(value_of(node, "scan_input_directions", op, None) or [0] * scanned)
    out_axes = list(value_of(node, "scan_output_axes", op, None) or [0] * outs)
    out_backwards = list(value_of(node, "scan_output_directions", op, None) or [0] * outs)
    count = static_dims(inputs[0])[int(axes[0])]
    require(0 < count <= _MOST and count * len(body) <= _NODES, "too many iterations to write out")
    scans: list[list[ir.Value]] = [[] for _ in range(outs)]
    for iteration in range(count):
        slices = []
        for x, axis, back in zip(inputs, axes, backwards, strict=True):
            place = count - 1 - iteration if back else iteration
            slices.append(op.Gather(x, op.constant(np.int64(place)), axis=int(axis)))
        outputs = copied(op, body, [*states, *slices])
        states = outputs[: len(states)]
        for parts, value, axis in zip(scans, outputs[len(states) :], out_axes, strict=True):
            parts.append(op.Unsqueeze(value, op.ints([int(axis)])))
    stacked = [
        op.Concat(*(reversed(parts) if back else parts), axis=int(axis))
        for parts, axis, back in zip(scans, out_axes, out_backwards, strict=True)
    ]
    return list(_unique(op, [*states, *stacked]))
