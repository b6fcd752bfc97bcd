"""Loops and Scans of known length, written out: one copy of the body for each iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of, infer_node, known
from onnxlathe.rewrite import Builder, attribute, carry_origin, reject, require, subgraphs
from onnxlathe_passes.conditions import operand
from onnxlathe_passes.regroup import static
from onnxlathe_passes.views import unsqueeze


def iterations(node: ir.Node, opset: int) -> int:
    """How often the body of a Loop or Scan runs, in every run of the model.

    Raises:
        NoMatch: that is not known.
    """
    if node.op_type == "Scan":
        return _slices(node, opset)
    most, goes = _scalar(operand(node, 0)), _scalar(operand(node, 1))
    if goes is False or (isinstance(most, int) and most < 1):
        return 0
    require(goes is True or operand(node, 1) is None, "whether it runs is not known")
    if most == 1:
        return 1
    body = node.attributes["body"].as_graph()
    goes_on = _scalar(body.outputs[0])
    if goes_on is False and (isinstance(most, int) or operand(node, 0) is None):
        return 1
    require(goes_on is True or _source(body.outputs[0]) is body.inputs[1], "it may end early")
    if not isinstance(most, int):
        reject("how often it runs is not known")
    return most


def size(node: ir.Node) -> int:
    """How many nodes one iteration has, those of inner graphs included."""
    return _count(node.attributes["body"].as_graph())


def written_out(op: Builder, node: ir.Node, count: int) -> list[ir.Value]:
    """The outputs of a Loop or Scan after `count` iterations, as nodes of `op`.

    Raises:
        NoMatch: it has no iteration, and what it stacks is of unknown shape.
    """
    return _scan(op, node, count) if node.op_type == "Scan" else _loop(op, node, count)


def copied(
    op: Builder,
    graph: ir.Graph,
    inputs: Sequence[ir.Value],
    *,
    within: ir.Node | None = None,
    held: dict[str, ir.Value] | None = None,
) -> list[ir.Value]:
    """The nodes of a subgraph, on the given inputs, as nodes of `op`; its outputs.

    Args:
        op: takes the nodes.
        graph: the subgraph, which stays as it is.
        inputs: what stands for its inputs.
        within: the loop that it is the body of; values may then have another shape in each iteration.
        held: the constants of an earlier copy, by their names in the subgraph.
    """
    held = {} if held is None else held
    clone = graph.clone(allow_outer_scope_values=True)
    for old, new in zip(list(clone.inputs), inputs, strict=True):
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    for name in list(clone.initializers):
        value = clone.initializers.pop(name)
        if name not in held:
            assert value.const_value is not None
            held[name] = op.weight(value.const_value, name)
        value.replace_all_uses_with(held[name], replace_graph_outputs=True)
    outputs = list(clone.outputs)
    clone.outputs.clear()
    nodes = list(clone)
    clone.remove(nodes)
    for node in nodes:
        if within is not None:
            carry_origin([node, within], [node])
            _forget_shapes(node)
        node.name = None
        for output in node.outputs:
            if output.name:
                output.name = None
        if within is not None:
            infer_node(node, op.opset)
        op.nodes.append(node)
    return outputs


def _loop(op: Builder, node: ir.Node, count: int) -> list[ir.Value]:
    body = node.attributes["body"].as_graph()
    carried = _all(node.inputs[2:])
    scans: list[list[ir.Value]] = [[] for _ in range(len(node.outputs) - len(carried))]
    held: dict[str, ir.Value] = {}
    for iteration in range(count):
        inputs = [op.constant(np.int64(iteration)), op.constant(np.array(True)), *carried]
        outputs = copied(op, body, inputs, within=node, held=held)
        carried = outputs[1 : 1 + len(carried)]
        for parts, value in zip(scans, outputs[1 + len(carried) :], strict=True):
            parts.append(value)
    stacks = node.outputs[len(carried) :]
    return [
        *carried,
        *(_stacked(op, parts, 0, output) for parts, output in zip(scans, stacks, strict=True)),
    ]


def _scan(op: Builder, node: ir.Node, count: int) -> list[ir.Value]:
    body = node.attributes["body"].as_graph()
    scanned = int(node.attributes["num_scan_inputs"].as_int())
    states, inputs = _all(node.inputs[:-scanned]), _all(node.inputs[-scanned:])
    stacks = node.outputs[len(states) :]
    axes = _listed(node, "scan_input_axes", op.opset, scanned)
    backwards = _listed(node, "scan_input_directions", op.opset, scanned)
    out_axes = _listed(node, "scan_output_axes", op.opset, len(stacks))
    out_backwards = _listed(node, "scan_output_directions", op.opset, len(stacks))
    scans: list[list[ir.Value]] = [[] for _ in stacks]
    held: dict[str, ir.Value] = {}
    for iteration in range(count):
        slices = []
        for x, axis, back in zip(inputs, axes, backwards, strict=True):
            place = count - 1 - iteration if back else iteration
            slices.append(op.Gather(x, op.constant(np.int64(place)), axis=axis))
        outputs = copied(op, body, [*states, *slices], within=node, held=held)
        states = outputs[: len(states)]
        for parts, value in zip(scans, outputs[len(states) :], strict=True):
            parts.append(value)
    found = zip(scans, out_axes, out_backwards, stacks, strict=True)
    return [
        *states,
        *(_stacked(op, parts[::-1] if back else parts, axis, output) for parts, axis, back, output in found),
    ]


def _stacked(op: Builder, parts: Sequence[ir.Value], axis: int, output: ir.Value) -> ir.Value:
    """The values of all iterations, one behind the other along a new axis."""
    if not parts:
        sizes = static((dims_of(output) or (None,))[1:])
        if axis != 0 or sizes is None or output.dtype is None:
            reject("what it stacks is of unknown shape")
        return op.constant(np.zeros([0, *sizes]), output.dtype)
    rows = [unsqueeze(op, part, [axis]) for part in parts]
    made: ir.Value = op.Concat(*rows, axis=axis) if len(rows) > 1 else rows[0]
    return made


def _slices(node: ir.Node, opset: int) -> int:
    """How many slices the scanned inputs of a Scan have."""
    require(opset >= 9, "it is a Scan with a batch axis")
    scanned = int(node.attributes["num_scan_inputs"].as_int())
    axes = _listed(node, "scan_input_axes", opset, scanned)
    counts = []
    for value, axis in zip(node.inputs[-scanned:], axes, strict=True):
        dims = dims_of(value) if value is not None else None
        counts.append(dims[axis] if dims is not None and -len(dims) <= axis < len(dims) else None)
    known_ones = [count for count in counts if isinstance(count, int)]
    return known_ones[0] if known_ones else reject("how often it runs is not known")


def _listed(node: ir.Node, name: str, opset: int, count: int) -> list[int]:
    """One number for each scanned value; 0 where none is given."""
    return [int(n) for n in attribute(node, name, opset) or [0] * count]


def _scalar(value: ir.Value | None) -> Any:
    contents = known(value) if value is not None else None
    return contents.reshape(-1)[0] if contents is not None and contents.size == 1 else None


def _source(value: ir.Value) -> ir.Value:
    """What Identities and Casts of a condition pass on."""
    made = value.producer()
    while made is not None and made.op_type in ("Identity", "Cast") and made.inputs[0] is not None:
        value = made.inputs[0]
        made = value.producer()
    return value


def _all(values: Sequence[ir.Value | None]) -> list[ir.Value]:
    return [value if value is not None else reject("an operand is missing") for value in values]


def _count(graph: ir.Graph) -> int:
    return sum(1 + sum(_count(inner) for inner in subgraphs(node)) for node in graph)


def _forget_shapes(node: ir.Node) -> None:
    for value in node.outputs:
        value.shape = None
    for inner in subgraphs(node):
        for nested in inner:
            _forget_shapes(nested)
