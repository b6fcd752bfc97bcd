"""An If whose condition is a constant becomes its branch."""

from __future__ import annotations

import onnx_ir as ir

from onnxlathe.infer import known
from onnxlathe.rewrite import Context, carry_origin, remove_unused, replace_value


def inline_branch(node: ir.Node, context: Context, rule: str) -> int:
    """Replace an If by the branch that its condition always takes.

    Args:
        node: an If.
        context: permission, names and records.
        rule: the name under which the change is recorded.

    Returns:
        1 if it was replaced, else 0.
    """
    condition = node.inputs[0]
    contents = known(condition) if condition is not None else None
    graph = node.graph
    if contents is None or contents.size != 1 or graph is None:
        return 0
    taken = contents.reshape(-1)[0]
    if not isinstance(taken, (bool, int)) or not context.permit(rule):
        return 0
    branch = node.attributes["then_branch" if taken else "else_branch"].as_graph()
    names = context.names
    # Sibling subgraphs may use the same names, so each name is made new for the outer graph.
    for value in list(branch.initializers.values()):
        branch.initializers.pop(value.name or "")
        value.name = names.value(value.name or "const")
        graph.register_initializer(value)
    outputs = list(branch.outputs)
    branch.outputs.clear()
    moved = list(branch)
    for inner in moved:
        branch.remove(inner)
        inner.name = names.node(inner.name or inner.op_type)
        for value in inner.outputs:
            value.name = names.value(value.name or inner.op_type)
        graph.insert_before(node, inner)
    for old, new in zip(node.outputs, outputs, strict=True):
        if old.uses() or old.is_graph_output():
            replace_value(old, new, names)
    for inner in moved:
        carry_origin([inner, node], [inner])
    context.record(rule, [node])
    remove_unused([node])
    remove_unused(moved)
    return 1
