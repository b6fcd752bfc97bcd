"""What must be true of a model between passes.

A pass that breaks one of these would produce a file that nobody can load; it is named right after it ran
rather than when ONNX Runtime fails three passes later.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxlathe.model import Model, subgraphs


def broken_invariants(model: Model, limit: int = 5) -> list[str]:
    """What is wrong with the IR, as sentences; empty where all is well.

    Checked: each input of a node is defined before it in its own or an outer graph; values are defined once
    and have distinct names; outputs are produced; uses and producers agree; initializers have contents;
    operator sets are imported.

    Args:
        model: any model.
        limit: stop after so many findings.
    """
    problems: list[str] = []
    scopes = [(model.graph, model.ir.opset_imports, "the main graph")]
    scopes += [(f.graph, f.opset_imports, f"function {f.name}") for f in model.ir.functions.values()]
    local = {(f.domain, f.name) for f in model.ir.functions.values()}
    for graph, opsets, where in scopes:
        _graph(graph, where, {}, set(), opsets, local, problems)
        if len(problems) >= limit:
            break
    return problems[:limit]


def _graph(
    graph: ir.Graph,
    where: str,
    outer_names: dict[str, ir.Value],
    outer: set[ir.Value],
    opsets: dict[str, int],
    local: set[tuple[str, str]],
    problems: list[str],
) -> None:
    visible = set(outer)
    names = dict(outer_names)

    def define(value: ir.Value, what: str) -> None:
        if not value.name:
            if not value.uses() and not value.is_graph_output():
                return  # an optional output that is left out
            problems.append(f"{what} in {where} has no name")
        elif names.get(value.name, value) is not value:
            problems.append(f"the name '{value.name}' is given twice in {where}")
        else:
            names[value.name] = value
        visible.add(value)

    for value in graph.inputs:
        define(value, "an input")
    for name, value in graph.initializers.items():
        define(value, "an initializer")
        if value.const_value is None:
            problems.append(f"initializer '{name}' in {where} has no contents")
    for node in graph:
        label = f"node '{node.name}' ({node.op_type})"
        if node.graph is not graph:
            problems.append(f"{label} does not know that it is in {where}")
        if node.domain not in opsets and (node.domain, node.op_type) not in local:
            problems.append(f"{label} is of domain '{node.domain}', which the model does not import")
        for index, used in enumerate(node.inputs):
            if used is None:
                continue
            if used not in visible:
                problems.append(f"{label} uses '{used.name}', which is not defined before it")
            if (node, index) not in used.uses():
                problems.append(f"'{used.name}' does not know that {label} uses it")
        for inner in subgraphs(node):
            _graph(inner, f"{label}", names, visible, opsets, local, problems)
        for value in node.outputs:
            if value.producer() is not node:
                problems.append(f"'{value.name}' does not know that {label} produces it")
            define(value, f"an output of {label}")
    for value in graph.outputs:
        if value not in visible:
            problems.append(f"output '{value.name}' of {where} is not produced")
