"""What became of a model: which nodes were removed, fused, expanded, changed and added.

Nodes are matched by provenance: a node says which original nodes it stands for. Models of other tools say
nothing; there a node that produces a value of the same name is the same node.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxlathe.model import Model
from onnxlathe.rewrite import origin
from onnxlathe.rewrite.context import ORIGIN


@dataclass(frozen=True)
class Change:
    """What some nodes of the first model became in the second.

    Attributes:
        before: nodes of the first model.
        after: nodes of the second.
        what: how a changed node differs.
    """

    before: tuple[ir.Node, ...]
    after: tuple[ir.Node, ...]
    what: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "before": [{"name": n.name, "operator": operator(n)} for n in self.before],
            "after": [{"name": n.name, "operator": operator(n)} for n in self.after],
            "what": self.what,
        }


@dataclass
class Difference:
    """How a second model differs from a first.

    Attributes:
        kept: how many nodes are as they were.
        changed: one node became one other.
        fused: several nodes became fewer.
        expanded: one node became several.
        removed: nodes that nothing stands for any more.
        added: nodes that stand for none.
        weights: names of constants of the main graph that were added, removed or have another type or shape.
        interface: what changed of inputs, outputs and operator sets, as sentences.
    """

    kept: int = 0
    changed: list[Change] = field(default_factory=list)
    fused: list[Change] = field(default_factory=list)
    expanded: list[Change] = field(default_factory=list)
    removed: list[Change] = field(default_factory=list)
    added: list[Change] = field(default_factory=list)
    weights: dict[str, list[str]] = field(default_factory=dict)
    interface: list[str] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether the models are the same."""
        lists = (self.changed, self.fused, self.expanded, self.removed, self.added, self.interface)
        return not any(lists) and not any(self.weights.values())

    def to_dict(self) -> dict[str, Any]:
        """As plain data for a report."""
        kinds = ("changed", "fused", "expanded", "removed", "added")
        lists = {kind: [change.to_dict() for change in getattr(self, kind)] for kind in kinds}
        return {"kept": self.kept, **lists, "weights": self.weights, "interface": self.interface}


def difference(first: Model, second: Model) -> Difference:
    """Compare two models by their structure; no number of a weight is read."""
    found = Difference()
    sources = {n.name: n for n in first.nodes() if n.name}
    producers = {v.name: n for n in first.nodes() for v in n.outputs if v.name}
    stands: dict[tuple[ir.Node, ...], list[ir.Node]] = {}
    for node in second.nodes():
        stands.setdefault(_origins(node, sources, producers), []).append(node)
    used = {node for nodes in stands for node in nodes}
    for before, after in stands.items():
        if not before:
            found.added += [Change((), (node,)) for node in after]
        elif len(before) == len(after) == 1:
            what = how_changed(before[0], after[0])
            if what:
                found.changed.append(Change(before, tuple(after), what))
            else:
                found.kept += 1
        elif len(before) == 1:
            found.expanded.append(Change(before, tuple(after)))
        else:
            found.fused.append(Change(before, tuple(after)))
    found.removed = [Change((node,), ()) for node in first.nodes() if node not in used]
    found.weights = _weights(first, second)
    found.interface = _interface(first, second)
    return found


def operator(node: ir.Node) -> str:
    """`Add` or `domain::Op`."""
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _origins(
    node: ir.Node, sources: dict[str, ir.Node], producers: dict[str, ir.Node]
) -> tuple[ir.Node, ...]:
    if ORIGIN in node.metadata_props:
        found = [sources[name] for name in origin(node) if name in sources]
        if found:
            order = {n: i for i, n in enumerate(dict.fromkeys(found))}
            return tuple(order)
    for value in node.outputs:
        if value.name and value.name in producers:
            return (producers[value.name],)
    twin = sources.get(node.name or "")
    return (twin,) if twin is not None and twin.op_type == node.op_type else ()


def how_changed(before: ir.Node, after: ir.Node) -> str:
    """How one node differs from another, in a few words; empty where it does not."""
    if operator(before) != operator(after):
        return f"{operator(before)} → {operator(after)}"
    words = []
    old, new = _plain(before), _plain(after)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            words.append(f"{name}: {old.get(name, 'absent')} → {new.get(name, 'absent')}")
    if len(before.inputs) != len(after.inputs):
        words.append(f"{len(before.inputs)} → {len(after.inputs)} inputs")
    elif [v and v.name for v in before.inputs] != [v and v.name for v in after.inputs]:
        words.append("other inputs")
    return ", ".join(words)


def _plain(node: ir.Node) -> dict[str, str]:
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    found = {}
    for attribute in node.attributes.values():
        if attribute.is_ref() or attribute.type in graphs:
            continue
        if attribute.type == ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            found[attribute.name] = f"{tensor.dtype.name.lower()}{list(tensor.shape)}"
        elif isinstance(attribute.value, (list, tuple)):
            found[attribute.name] = str(list(attribute.value))
        else:
            found[attribute.name] = str(attribute.value)
    return found


def _weights(first: Model, second: Model) -> dict[str, list[str]]:
    old, new = first.graph.initializers, second.graph.initializers

    def kind(value: ir.Value) -> tuple[Any, ...]:
        tensor = value.const_value
        return () if tensor is None else (tensor.dtype, *tensor.shape.numpy())

    return {
        "removed": sorted(old.keys() - new.keys()),
        "added": sorted(new.keys() - old.keys()),
        "changed": sorted(name for name in old.keys() & new.keys() if kind(old[name]) != kind(new[name])),
    }


def _interface(first: Model, second: Model) -> list[str]:
    from onnxlathe.report.graph_text import kind

    sentences = []
    for what in ("inputs", "outputs"):
        old = {v.name or "": kind(v) for v in getattr(first.graph, what)}
        new = {v.name or "": kind(v) for v in getattr(second.graph, what)}
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                change = f"{old.get(name, 'absent')} → {new.get(name, 'absent')}"
                sentences.append(f"{what[:-1]} {name}: {change}")
    if dict(first.ir.opset_imports) != dict(second.ir.opset_imports):
        for domain in sorted({*first.ir.opset_imports, *second.ir.opset_imports}):
            versions = [m.ir.opset_imports.get(domain, "absent") for m in (first, second)]
            if versions[0] != versions[1]:
                sentences.append(f"opset {domain or 'ai.onnx'}: {versions[0]} → {versions[1]}")
    return sentences
