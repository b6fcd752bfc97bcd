"""`--break-after PASS`: a Python shell in the middle of a pipeline."""

from __future__ import annotations

from typing import Any

from onnxlathe.model import Model
from onnxlathe.pipeline import StepRecord

_BANNER = """\
after {name}: {before} → {after} nodes, {changes} changes

  model    the model as it is now; changes to it are kept
  graph    its main graph (onnx_ir)
  record   what the pass did (record.firings, record.operators)
  text()   the graph as text; text(node) one node
  node(n)  the node called n;  value(n)  the value called n
  save(p)  save the model as it is now

Ctrl-D goes on, exit() ends the run."""


def open_shell(record: StepRecord, model: Model) -> None:
    """Let the user look around; returns when they leave with Ctrl-D, and exits when they call `exit()`."""
    import code

    banner = _BANNER.format(
        name=record.name, before=record.nodes_before, after=record.nodes_after, changes=record.changes
    )
    code.interact(banner=banner, local=surroundings(record, model), exitmsg="")


def surroundings(record: StepRecord, model: Model) -> dict[str, Any]:
    """The names that the shell offers."""
    import onnxlathe
    from onnxlathe import model as models
    from onnxlathe.infer import constant, dims_of, known

    def text(node: Any = None) -> None:
        from onnxlathe.report.graph_text import model_text, node_lines

        print(model_text(model) if node is None else "\n".join(node_lines(node)))

    def node(name: str) -> Any:
        return next((n for n in model.nodes() if n.name == name), None)

    def value(name: str) -> Any:
        for graph in model.graphs():
            for found in (
                *graph.inputs,
                *graph.initializers.values(),
                *(v for n in graph for v in n.outputs),
            ):
                if found.name == name:
                    return found
        return None

    def save(path: str) -> None:
        models.save(model, path)

    return {
        "model": model,
        "graph": model.graph,
        "record": record,
        "onnxlathe": onnxlathe,
        "text": text,
        "node": node,
        "value": value,
        "save": save,
        "dims_of": dims_of,
        "known": known,
        "constant": constant,
    }
