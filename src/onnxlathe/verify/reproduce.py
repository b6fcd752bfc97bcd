"""A folder that shows a wrong change to whoever has to mend it.

It holds the smallest model on which the culprit still goes wrong, its inputs, what the culprit makes of it,
and the command that does so again.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxlathe.errors import LatheError
from onnxlathe.model import Model, save
from onnxlathe.rewrite import is_constant, subgraphs
from onnxlathe.verify.blame import Attempt, Culprit
from onnxlathe.verify.compare import Verifier
from onnxlathe.verify.verdict import Verdict

MAX_WHOLE = 256 << 20
"""Bytes of weights up to which the whole model goes into the folder where no part of it shows the fault."""


def write_reproducer(
    folder: Path,
    culprit: Culprit,
    attempt: Attempt,
    verifier: Verifier,
    plugins: Sequence[str] = (),
) -> Path:
    """Write the folder.

    Args:
        folder: where to; an existing reproducer of that name is replaced.
        culprit: the change to blame.
        attempt: runs the pipeline over a fresh copy of the original (see `blame.find_culprit`).
        verifier: holds the original and its feeds.
        plugins: what `--plugin` named; files are copied into the folder.

    Returns:
        The folder.
    """
    before, _ = attempt(culprit.right)
    wrong, _ = attempt(culprit.wrong)
    small = _smallest(before, wrong, culprit, verifier)
    with tempfile.TemporaryDirectory(prefix=".onnxlathe-", dir=folder.parent) as temporary:
        work = Path(temporary) / "repro"
        work.mkdir()
        options = [word for plugin in plugins for word in ("--plugin", _bring(plugin, work))]
        if small is not None:
            model, after, inputs, verdict = small
            save(model, work / "before.onnx", external=False)
            save(after, work / "after.onnx", external=False)
            np.savez(work / "inputs.npz", **inputs)  # type: ignore[arg-type,unused-ignore]
            what = f"{model.count_nodes()} nodes; {verdict.summary()}"
        else:
            if _nbytes(before) <= MAX_WHOLE:
                save(before, work / "before.onnx", external=False)
                save(wrong, work / "after.onnx", external=False)
            inputs = verifier.inputs()
            np.savez(work / "inputs.npz", **inputs)  # type: ignore[arg-type,unused-ignore]
            what = "the whole model: no part of it shows the fault by itself"
        words = ["--passes", culprit.rule, *options, "--data", "inputs.npz"]
        command = f"optimize before.onnx -o again.onnx {shlex.join(words)}"
        (work / "README.txt").write_text(
            f"{culprit.sentence()}.\n\n"
            f"before.onnx  right ({what})\n"
            f"after.onnx   what '{culprit.rule}' makes of it\n"
            f"inputs.npz   inputs on which the two differ\n\n"
            f"    {command}\n\n"
            f"{_versions()}\n",
            encoding="utf-8",
        )
        (work / "command.sh").write_text(f"#!/bin/sh\n{command}\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        work.rename(folder)
    return folder


def _bring(plugin: str, folder: Path) -> str:
    """The plugin as the command in the folder names it; a file comes along."""
    path, colon, name = plugin.partition(":")
    if not path.endswith(".py"):
        return plugin
    shutil.copy(path, folder)
    return Path(path).name + colon + name


def _smallest(
    before: Model, wrong: Model, culprit: Culprit, verifier: Verifier
) -> tuple[Model, Model, dict[str, np.ndarray], Verdict] | None:
    """The nodes of the culprit's change cut out of both models, if they alone show the difference."""
    nodes = [_holder(before, name) for name in culprit.before]
    chosen = list(dict.fromkeys(n for n in nodes if n is not None))
    if not chosen:
        return None
    outputs = [v for n in chosen for v in n.outputs if _leaves(v, chosen)]
    names = [v.name or "" for v in outputs]
    inputs = list(dict.fromkeys(v for n in chosen for v in _used(n, chosen)))
    if not names or not all(_find(wrong, name) for name in names):
        return None
    try:
        recorded = verifier.record(before, [v.name or "" for v in inputs])
        part = cut(before, inputs, outputs)
        twins = [_find(wrong, v.name or "") for v in inputs]
        fixed = cut(wrong, [v for v in twins if v is not None], names)
        if {v.name for v in fixed.graph.inputs} != {v.name for v in part.graph.inputs}:
            return None
        with Verifier(part, feeds=[recorded]) as small:
            verdict = small.check(fixed)
    except (LatheError, ValueError):
        return None
    return (part, fixed, recorded, verdict) if verdict.status == "different" else None


def cut(model: Model, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value | str]) -> Model:
    """The part of the main graph between some values, as a model of its own.

    Raises:
        ValueError: `inputs` do not bound what `outputs` need.
    """
    graph = ir.convenience.extract(model.graph, list(inputs), list(outputs))
    part = ir.Model(
        graph,
        ir_version=model.ir.ir_version,
        functions=[f.clone() for f in model.ir.functions.values()],
    )
    return Model(part)


def _holder(model: Model, name: str) -> ir.Node | None:
    """The node of the main graph that is, or contains, the node of that name."""
    for node in model.graph:
        if node.name == name or any(_contains(inner, name) for inner in subgraphs(node)):
            return node
    return None


def _contains(graph: ir.Graph, name: str) -> bool:
    return any(n.name == name or any(_contains(g, name) for g in subgraphs(n)) for n in graph)


def _find(model: Model, name: str) -> ir.Value | None:
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        if value.name == name:
            return value
    for node in model.graph:
        for value in node.outputs:
            if value.name == name:
                return value
    return None


def _leaves(value: ir.Value, chosen: Sequence[ir.Node]) -> bool:
    return value.is_graph_output() or any(user not in chosen for user, _ in value.uses())


def _used(node: ir.Node, chosen: Sequence[ir.Node]) -> list[ir.Value]:
    values = [v for v in node.inputs if v is not None]
    for inner in subgraphs(node):
        for nested in inner.all_nodes():
            values += [v for v in nested.inputs if v is not None and v.graph is node.graph]
    return [v for v in values if not is_constant(v) and v.producer() not in chosen]


def _nbytes(model: Model) -> int:
    return sum(
        v.const_value.nbytes
        for graph in model.graphs()
        for v in graph.initializers.values()
        if v.const_value is not None
    )


def _versions() -> str:
    import platform
    from importlib.metadata import version

    names = ("onnxlathe", "onnx", "onnx-ir", "onnxruntime", "numpy")
    return f"Python {platform.python_version()}, " + ", ".join(f"{n} {version(n)}" for n in names)
