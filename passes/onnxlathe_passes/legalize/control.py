"""Control flow: branches computed both, loops and scans of known length written out."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import require
from onnxlathe_passes.legalize.draft import Draft, given, lowers, operand, rank_of, static_or_none
from onnxlathe_passes.loops import copied, iterations, size, written_out

_MOST = 64  # iterations that are written out
_NODES = 4000  # and nodes that they may come to


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
def loop_with_condition(op: Draft, node: ir.Node) -> list[ir.Value] | None:
    """The condition that was left out, written down: TensorRT's parser does not give it to the body otherwise."""
    if operand(node, 1) is not None:
        return None
    body = node.attributes["body"].as_graph().clone(allow_outer_scope_values=True)
    inputs = [operand(node, 0), op.constant(np.array(True)), *node.inputs[2:]]
    return list(op.node("Loop", inputs, {"body": body}, outputs=len(node.outputs)).outputs)


@lowers("Loop", "Scan")
def unrolled(op: Draft, node: ir.Node) -> list[ir.Value | None]:
    """One copy of the body for each iteration, where their number is known."""
    count = iterations(node, op.opset)
    require(0 < count <= _MOST and count * size(node) <= _NODES, "too many iterations to write out, or none")
    return list(_unique(op, written_out(op, node, count)))
