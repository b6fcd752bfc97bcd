"""Versions of operator sets: what a model or function imports, and what it must have meant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import onnx
import onnx.helper

from onnxlathe.errors import ModelError

from .protos import text

Proto = Any


def opsets_of(imports: Iterable[Proto], where: str) -> dict[str, int]:
    """Versions by domain.

    Raises:
        ModelError: two versions of a domain, or a version that the onnx package does not know.
    """
    newest = onnx.defs.onnx_opset_version()
    opsets: dict[str, int] = {}
    for entry in imports:
        domain = domain_of(entry.domain)
        if opsets.get(domain, entry.version) != entry.version:
            raise ModelError(
                f"{where} imports opsets {opsets[domain]} and {entry.version} of domain {domain!r}",
                hint="Only one version can be used; export the model again.",
            )
        if not domain and not 1 <= entry.version <= newest:
            raise ModelError(
                f"{where} uses opset {entry.version}; onnx {onnx.__version__} knows 1 to {newest}",
                hint="Upgrade the onnx package, or export for an older opset.",
            )
        opsets[domain] = entry.version
    return opsets


def versions_of(proto: Proto) -> dict[str, int]:
    """Versions of the operator sets that a model or function imports; `ai.onnx` is the default domain."""
    return {entry.domain if entry.domain != "ai.onnx" else "": entry.version for entry in proto.opset_import}


def domain_of(domain: str | bytes) -> str:
    """The domain as it is written in one way: standard operators have none."""
    return "" if domain == "ai.onnx" else text(domain, "an operator domain")


def domains_of(nodes: Sequence[Proto]) -> set[str]:
    """The domains of all operators, also in subgraphs."""
    domains = {domain_of(node.domain) for node in nodes}
    for node in nodes:
        for attribute in node.attribute:
            for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                domains |= domains_of(graph.node)
    return domains


def set_opsets(imports: Any, opsets: dict[str, int]) -> None:
    """Import these, and no others."""
    del imports[:]
    for domain, version in opsets.items():
        imports.add(domain=domain, version=version)


def default_opset(ir_version: int) -> int:
    """The newest standard opset that any onnx release with this IR version had."""
    if ir_version < 3:
        return 1  # before IR version 3 there was no opset_import, and one opset
    return max(int(row[2]) for row in onnx.helper.VERSION_TABLE if row[1] <= ir_version)


def default_ir_version(opset: int) -> int:
    """The oldest IR version whose onnx release has this opset."""
    fitting = (int(row[1]) for row in onnx.helper.VERSION_TABLE if row[2] >= opset)
    return min(fitting, default=int(onnx.IR_VERSION))
