"""Whether a node has the inputs and attributes without which its operator means nothing."""

from __future__ import annotations

import functools
from typing import Any

import onnx

from onnxlathe.errors import ModelError


@functools.cache
def _needs(op_type: str, domain: str, version: int) -> tuple[int, int, frozenset[str]] | None:
    """Fewest and most inputs, and the attributes that must be there; `None` for an unknown operator."""
    try:
        schema = onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None
    required = frozenset(name for name, attribute in schema.attributes.items() if attribute.required)
    return schema.min_input, schema.max_input, required


def check_arity(node: Any, versions: dict[str, int], label: str, where: str) -> None:
    """Refuse a node of a known operator that lacks an input or attribute.

    Args:
        node: a NodeProto.
        versions: versions of the operator sets by domain.
        label, where: how messages call the node and its graph.

    Raises:
        ModelError: it has too few or too many inputs, or lacks an attribute.
    """
    version = versions.get(node.domain if node.domain != "ai.onnx" else "", 0)
    needs = _needs(node.op_type, node.domain, version) if version else None
    if needs is None:
        return
    fewest, most, required = needs
    count = len(node.input)
    if not fewest <= count <= most:
        takes = (
            str(fewest)
            if fewest == most
            else f"{fewest} to {most}"
            if most < 1 << 20
            else f"{fewest} or more"
        )
        raise ModelError(
            f"{label} of {where} has {count} inputs; {node.op_type} of opset {version} takes {takes}",
            hint="The exporter went wrong, or meant another opset; export the model again.",
        )
    if required:
        missing = required - {attribute.name for attribute in node.attribute}
        if missing:
            raise ModelError(
                f"{label} of {where} has no attribute {min(missing)!r}, which {node.op_type} needs",
                hint="The exporter went wrong, or meant another opset; export the model again.",
            )
