"""What is the same in every iteration of a loop, computed before it."""

from __future__ import annotations

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.model import Model
from onnxlathe.rewrite import Context, Names, NoMatch, Pass, is_constant, subgraphs
from onnxlathe_passes.conditions import FLOATS
from onnxlathe_passes.cse import is_deterministic, pure_functions
from onnxlathe_passes.insert import graphs_with_weights
from onnxlathe_passes.lanes import ELEMENTWISE
from onnxlathe_passes.loops import iterations

_SAFE = ELEMENTWISE | {
    *("Conv", "Concat", "Expand", "Gemm", "LayerNormalization", "MatMul", "Pad", "Reshape", "Shape", "Slice"),
    *("Softmax", "Squeeze", "Transpose", "Unsqueeze"),
}
"""Operators that cannot fail once their shapes fit: the loop may run never."""


class LoopInvariant(Pass):
    """Compute before a Loop or Scan what its body computes alike in every iteration.

    What could fail, as a Gather may, moves only out of a loop that certainly runs.
    """

    name = "loop_invariant"
    group = "tidy"
    min_opset = 7
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %y = Loop(%n, %c, %x) { %k = MatMul(%memory, %w);  %v = Add(%v, %k);  %c, %v }
    →
    %k = MatMul(%memory, %w)
    %y = Loop(%n, %c, %x) { %v = Add(%v, %k);  %c, %v }
    """

    def run(self, model: Model, context: Context) -> int:
        pure = pure_functions(model)
        changes = 0
        # Inner graphs come after those around them: what leaves an inner loop may leave the outer one, too.
        for graph in reversed(list(graphs_with_weights(model))):
            for node in [n for n in graph if n.op_type in ("Loop", "Scan") and n.domain == ""]:
                changes += self.loop(node, model.opset, pure, context)
        return changes

    def loop(self, node: ir.Node, opset: int, pure: frozenset[tuple[str, str, str]], context: Context) -> int:
        """Take out of one loop what is the same in all iterations."""
        body, changes = node.attributes["body"].as_graph(), 0
        runs = _runs(node, opset)
        for inner in list(body):
            if any(subgraphs(inner)) or not is_deterministic(inner, pure) or not _varies_not(inner, body):
                continue
            if not (runs or _is_safe(inner)) or any(v.is_graph_output() for v in inner.outputs):
                continue
            if not context.permit(self.name):
                return changes
            _move(inner, node, context.names)
            context.record(self.name, [inner])
            changes += 1
        return changes


def _runs(node: ir.Node, opset: int) -> bool:
    """Whether the loop certainly runs."""
    try:
        return iterations(node, opset) > 0
    except NoMatch:
        return False


def _varies_not(node: ir.Node, body: ir.Graph) -> bool:
    """Whether the operands come from around the body, other than constants; not all of them are constant."""
    values = [value for value in node.inputs if value is not None]
    outer = [value for value in values if value.graph is not body]
    constants = [value for value in values if value.is_initializer() and value.graph is body]
    return len(outer) + len(constants) == len(values) and any(not is_constant(value) for value in outer)


def _is_safe(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type not in _SAFE:
        return False
    if node.op_type in ("Div", "Pow") and node.inputs[0] is not None and node.inputs[0].dtype not in FLOATS:
        return False
    shapes = [dims_of(value) for value in (*node.inputs, *node.outputs) if value is not None]
    return all(dims is not None and None not in dims for dims in shapes)


def _move(node: ir.Node, loop: ir.Node, names: Names) -> None:
    """Put a node of the body, and the constants that it needs, before the loop."""
    graph = loop.graph
    assert graph is not None
    body = node.graph
    assert body is not None
    for value in dict.fromkeys(v for v in node.inputs if v is not None and v.graph is body):
        # Others in the body may use the constant; from around it they see it as well.
        del body.initializers[value.name or ""]
        value.name = names.value(value.name or "const")
        graph.register_initializer(value)
    body.remove(node)
    node.name = names.node(node.name or node.op_type)
    for output in node.outputs:
        output.name = names.value(output.name or node.op_type)
    graph.insert_before(loop, node)
