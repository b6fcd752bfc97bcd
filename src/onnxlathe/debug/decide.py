"""What an engine needs to know first: sizes that may be frozen, or contents that only a caller has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxlathe.debug.findings import Finding
from onnxlathe.infer import constant, dims_of, infer_model, known
from onnxlathe.model import Model
from onnxlathe.model.samples import default_bindings
from onnxlathe.model.shapes import symbols_in

IF_RANKS, SQUEEZE_OPEN = "if-ranks", "squeeze-open"
"""Causes of the catalogue that this is about."""


@dataclass(frozen=True)
class Decision:
    """What chooses between two branches of different rank.

    Attributes:
        node: the If.
        ranks: of what the branches give.
        sizes: open dimensions that the condition depends on.
        inputs: inputs on whose contents it depends.
        computed: it depends on more than that: results of the network.
    """

    node: str
    ranks: tuple[int, int] | None
    sizes: tuple[str, ...]
    inputs: tuple[str, ...]
    computed: bool = False

    def sentence(self) -> str:
        """Why there is no engine for both branches, and what there is."""
        ranks = f"ranks {self.ranks[0]} and {self.ranks[1]}" if self.ranks else "different ranks"
        no_engine = f"the branches of '{self.node}' give {ranks}, and an engine has one rank for each tensor"
        if self.inputs and not self.computed:
            names = ", ".join(f"'{n}'" for n in self.inputs)
            binds = " ".join(f"--bind {n}=VALUE" for n in self.inputs)
            return f"{no_engine}; {names} chooses: {binds} makes an engine for one of them"
        if self.computed:
            return f"{no_engine}; which one is known only at run time: choose between two engines outside"
        return f"{no_engine}; the sizes {', '.join(self.sizes)} choose: freeze them with --dim and --freeze"


def decisions(model: Model, findings: Sequence[Finding]) -> list[Decision]:
    """What decides about those Ifs whose branches differ in rank, among or around the findings."""
    names = {f.node for f in findings if f.cause_id == IF_RANKS} | {f.top for f in findings if f.top}
    if not names:
        return []
    copy = model.clone()
    infer_model(copy)
    nodes = [n for n in copy.graph if n.op_type == "If" and n.name in names]
    return [d for d in map(_decision, nodes) if d.ranks is not None]


def frozen_sizes(
    model: Model, findings: Sequence[Finding], decided: Sequence[Decision]
) -> list[dict[str, int]]:
    """Sizes to freeze so that every condition is known; none where sizes do not decide.

    One comes first: `squeeze` of an open dimension is what most of these conditions are about. A Squeeze outside
    of branches leaves no choice: no other size runs.
    """
    forced = dict.fromkeys(_squeezed(model, findings), 1)
    symbols = dict.fromkeys(s for d in decided for s in d.sizes)
    if any(d.inputs or d.computed for d in decided):
        symbols = {}
    usual = default_bindings(model, 0)
    wanted = [dict.fromkeys(symbols, 1) | forced, {s: max(2, usual.get(s, 2)) for s in symbols} | forced]
    return [w for i, w in enumerate(wanted) if w and w not in wanted[:i]]


def _squeezed(model: Model, findings: Sequence[Finding]) -> Iterator[str]:
    """The open dimensions that refused Squeezes of the main graph drop."""
    names = {f.node for f in findings if f.cause_id == SQUEEZE_OPEN and not f.top}
    if not names:
        return
    copy = model.clone()
    infer_model(copy)
    for node in copy.graph:
        if node.name not in names or node.inputs[0] is None:
            continue
        dims = dims_of(node.inputs[0]) or ()
        axes = constant(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
        given = node.attributes.get("axes")
        places = axes.reshape(-1).tolist() if axes is not None else list(given.as_ints()) if given else []
        for place in places:
            if -len(dims) <= place < len(dims) and not isinstance(dims[place], int):
                yield from symbols_in(str(dims[place]))


def _decision(node: ir.Node) -> Decision:
    ranks = None
    pairs = zip(*(a.as_graph().outputs for a in node.attributes.values()), strict=True)
    for then, other in pairs:
        left, right = dims_of(then), dims_of(other)
        if left is not None and right is not None and len(left) != len(right):
            ranks = len(left), len(right)
    sizes: dict[str, None] = {}
    inputs: dict[str, None] = {}
    computed = False
    for kind, name in _roots(node.inputs[0]):
        if kind == "size":
            sizes[name] = None
        elif kind == "input":
            inputs[name] = None
        else:
            computed = True
    return Decision(node.name or "", ranks, tuple(sizes), tuple(inputs), computed)


_SIZES: dict[str, tuple[int, ...]] = {
    "Range": (0, 1, 2), "ConstantOfShape": (0,), "Slice": (1, 2, 3, 4), "Pad": (1, 3), "Resize": (1, 2, 3),
    **dict.fromkeys(("Expand", "Tile", "Reshape", "TopK", "OneHot", "Squeeze", "Unsqueeze", "Split"), (1,)),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "CumSum"), (1,)),
}  # fmt: skip
"""By operator the operands that say how large a result is, or along which axes it is computed."""


def bindings(model: Model, findings: Sequence[Finding]) -> dict[str, str]:
    """Refused nodes that would run if inputs were constants: by name, a sentence with the options for that."""
    names = {f.node for f in findings if not f.top}
    if not any(n.op_type in _SIZES and n.name in names for n in model.graph):
        return {}
    copy = model.clone()
    infer_model(copy)
    found = {}
    for node in copy.graph:
        if node.name not in names or node.domain:
            continue
        operands = [node.inputs[i] for i in _SIZES.get(node.op_type, ()) if i < len(node.inputs)]
        roots = [root for operand in operands for root in _roots(operand)]
        inputs = list(dict.fromkeys(name for kind, name in roots if kind == "input"))
        if not inputs or any(kind == "computed" for kind, _ in roots):
            continue
        shown = ", ".join(f"'{n}'" for n in inputs)
        binds = " ".join(f"--bind {n}=VALUE" for n in inputs)
        found[node.name or ""] = (
            f"'{node.name}' has to know {shown} beforehand, by sizes or axes: {binds} makes an engine for one value"
        )
    return found


_SMALL = 1024  # elements of an input that somebody may bind


def _roots(condition: ir.Value | None) -> Iterator[tuple[str, str]]:
    """Where a condition comes from: (`size`, symbol), (`input`, name) or (`computed`, operator)."""
    seen: set[ir.Value] = set()
    work = [condition]
    while work:
        value = work.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        if value.const_value is not None and not value.is_graph_input():
            continue
        entries = known(value)
        if entries is not None and all(e is not None for e in entries.flat):
            yield from (("size", s) for e in entries.flat for s in getattr(e, "symbols", ()))
            continue
        producer = value.producer()
        if producer is None:
            dims = dims_of(value) or ()
            small = value.is_graph_input() and all(isinstance(d, int) for d in dims)
            count = 1
            for d in dims:
                count *= d if isinstance(d, int) else _SMALL
            yield ("input" if small and count <= _SMALL else "computed"), str(value.name)
        elif producer.op_type in ("Shape", "Size"):
            operand = producer.inputs[0]
            extents = dims_of(operand) if operand is not None else None
            if extents is None:
                yield "computed", producer.op_type
            for d in extents or ():
                yield from (("size", s) for s in (symbols_in(str(d)) if not isinstance(d, int) else ()))
        else:
            work += producer.inputs
