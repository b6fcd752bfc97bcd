"""Which layer of the target is which node of the ONNX model, and which nodes of the original."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import onnx_ir as ir

from onnxlathe.model import Model
from onnxlathe.rewrite import origin

_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=$|[\x1e,+]|\[ONNX Layer: )", re.DOTALL)


def nodes_of(metadata: str) -> list[str]:
    """The names of ONNX nodes in a layer's metadata, `[ONNX Layer: NAME]` once or several times."""
    return list(dict.fromkeys(_NODE.findall(metadata)))


def _parsers_name(node: ir.Node) -> str:
    """What the parser calls a node without a name."""
    return f"node_of_{node.outputs[0].name}" if node.outputs else ""


def layer_map(layers: Iterable[Mapping[str, str]], model: Model) -> dict[str, Any]:
    """Layers, the nodes they come from, and what those stand for.

    Args:
        layers: name, type and metadata of each, as the target gives them.
        model: the model that was handed over.

    Returns:
        `layers`: name, type and node names of each; `nodes`: operator and names of the original nodes, by
        the name of the node. A layer that the parser added by itself has no node.
    """
    mapped = [
        {"name": layer["name"], "type": layer["type"], "nodes": nodes_of(layer["metadata"])}
        for layer in layers
    ]
    named = {name for layer in mapped for name in layer["nodes"]}
    nodes: dict[str, dict[str, Any]] = {}
    for node in model.nodes():
        name = node.name if node.name in named else _parsers_name(node)
        if name in named:
            operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            nodes[name] = {"operator": operator, "original": origin(node)}
    return {"layers": mapped, "nodes": nodes}
