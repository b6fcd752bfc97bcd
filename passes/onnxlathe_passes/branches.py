"""An If that comes to the same whatever its condition is, or whose condition is a constant, becomes its branch."""

from __future__ import annotations

from collections.abc import Hashable

import onnx_ir as ir

from onnxlathe.infer import known
from onnxlathe.model import Model
from onnxlathe.rewrite import Context, Names, Pass, carry_origin, remove_unused, replace_value
from onnxlathe_passes.cse import key_of, pure_functions
from onnxlathe_passes.insert import graphs_with_weights
from onnxlathe_passes.weights import tensor_of

_READ = 1 << 16  # bytes of a constant that is compared by its contents


class EqualBranches(Pass):
    """An If of which both branches compute the same = the branch, without the If.

    The branches may name and order what they compute as they like.
    """

    name = "equal_branches"
    group = "tidy"
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %y = If(%c) { %a = Mul(%x, 2);  %a } else { %b = Mul(2, %x);  %b }
    →
    %y = Mul(%x, 2)
    """

    def run(self, model: Model, context: Context) -> int:
        pure = pure_functions(model)
        changes = 0
        for graph in list(graphs_with_weights(model)):
            for node in [n for n in graph if n.op_type == "If" and n.domain == ""]:
                if node.graph is not None and _equal(node, model.opset, pure):
                    changes += _inline(node, "then_branch", context, self.name)
        return changes


def inline_branch(node: ir.Node, context: Context, rule: str, *, in_function: bool = False) -> int:
    """Replace an If by the branch that its condition always takes.

    Args:
        node: an If.
        context: permission, names and records.
        rule: the name under which the change is recorded.
        in_function: whether it stands in the body of a function, which has no initializers.

    Returns:
        1 if it was replaced, else 0.
    """
    condition = node.inputs[0]
    contents = known(condition) if condition is not None else None
    if contents is None or contents.size != 1:
        return 0
    taken = contents.reshape(-1)[0]
    if not isinstance(taken, (bool, int)):
        return 0
    return _inline(node, "then_branch" if taken else "else_branch", context, rule, in_function)


def _inline(node: ir.Node, name: str, context: Context, rule: str, in_function: bool = False) -> int:
    graph = node.graph
    if graph is None or not context.permit(rule):
        return 0
    branch = node.attributes[name].as_graph()
    names = context.names
    # Sibling subgraphs may use the same names, so each name is made new for the outer graph.
    for value in list(branch.initializers.values()):
        branch.initializers.pop(value.name or "")
        value.name = names.value(value.name or "const")
        if in_function:
            _held_by_node(value, node, names)
        else:
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


def _held_by_node(value: ir.Value, anchor: ir.Node, names: Names) -> None:
    """Put a Constant before `anchor` that stands for an initializer."""
    assert value.const_value is not None
    assert anchor.graph is not None
    holder = ir.Node("", "Constant", (), [ir.AttrTensor("value", value.const_value)], num_outputs=1)
    holder.name = names.node(f"{anchor.name}/Constant")
    output = holder.outputs[0]
    output.name, output.type, output.shape = value.name, value.type, value.shape
    anchor.graph.insert_before(anchor, holder)
    value.replace_all_uses_with(output, replace_graph_outputs=True)


def _equal(node: ir.Node, opset: int, pure: frozenset[tuple[str, str, str]]) -> bool:
    """Whether the results of both branches are computed alike from what is around them."""
    numbers: dict[Hashable, object] = {}
    results = []
    for name in ("then_branch", "else_branch"):
        graph = node.attributes[name].as_graph()
        # What a value is: itself where it belongs to a graph around, else an object of its own for each
        # way to compute it, the same for both branches.
        meaning: dict[ir.Value | None, Hashable] = {None: None}
        for value in graph.initializers.values():
            meaning[value] = numbers.setdefault(_contents(value), object())
        for inner in graph:
            key = key_of(inner, opset, pure, [meaning.get(v, v) for v in inner.inputs])
            if key is None:
                return False
            for index, output in enumerate(inner.outputs):
                meaning[output] = numbers.setdefault((key, index), object())
        results.append([meaning.get(v, v) for v in graph.outputs])
    return bool(results[0] == results[1])


def _contents(value: ir.Value) -> Hashable:
    """Equal for two constants that are the same."""
    tensor = tensor_of(value)
    if tensor.dtype == ir.DataType.STRING or tensor.nbytes > _READ:
        return id(tensor)
    return (int(tensor.dtype), tuple(tensor.shape.numpy()), tensor.tobytes())
