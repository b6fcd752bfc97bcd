"""Mixed precision, placed in the graph."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from onnxlathe import Model
from onnxlathe.infer import infer_model
from onnxlathe.precision import (
    BFLOAT16,
    FLOAT32,
    LOWERED,
    Constraint,
    load_constraints,
    parse_keep,
    parse_type,
    select,
    type_name,
)
from onnxlathe.rewrite import Context, Pass, option
from onnxlathe_passes.opset import Opset
from onnxlathe_passes.precision_apply import Applier
from onnxlathe_passes.precision_cut import Unit, choose
from onnxlathe_passes.precision_plan import Plan, Planner
from onnxlathe_passes.precision_scale import rescale
from onnxlathe_passes.precision_spell import spell_out
from onnxlathe_passes.precision_weights import Weights

REASON = "onnxlathe.precision"
"""Key in a node's `metadata_props`: the type it was given, and why, where somebody or something said so."""

_QUANTIZED_OPSET = 19
_BFLOAT16_OPSET = 22
"""Since this version nearly all operators take bfloat16."""


@dataclass(frozen=True)
class Precision(Pass):
    """Let a float32 model compute in float16 or bfloat16, with Casts where both types meet.

    Operators that leave float16's range, or sum up what is rounded, stay in float32; so do constants that
    float16 cannot hold. What is said with `keep` or in a file of constraints counts more than that. Casts
    are as few as the choice allows: operators that only move or combine values take the type of their
    surroundings. Weights are converted when the model is saved.
    """

    name = "precision"
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    lowers_precision = True
    example = """
    %a = MatMul(%x, %w)           # x, w: float32
    %y = Softmax(%a)
    →
    %h = Cast(%x, to=FLOAT16)
    %a = MatMul(%h, %w_float16)
    %b = Cast(%a, to=FLOAT)
    %y = Softmax(%b)              # with keep_io_types: the output is float32, and Softmax gains from it
    """

    type: str = option("", "the default type: fp16 or bf16; fp16 if nobody says anything")
    keep: tuple[str, ...] = option((), 'constraints as words: ["fp32:*LayerNorm*,Softmax"]')
    constraints: str = option("", "file of constraints, TOML or JSON")
    keep_io_types: bool = option(False, "inputs and outputs of the model stay as they are")
    protect: bool = option(True, "keep in float32 what is known to lose too much")

    def run(self, model: Model, context: Context) -> int:
        rules: list[Constraint] = []
        kind = self.type
        if self.constraints:
            file = load_constraints(self.constraints)
            rules += file.keep
            kind = kind or file.type
        for word in self.keep:
            rules += parse_keep(word, "keep")
        low = parse_type(kind or "fp16", "type")
        self._prepare(model, context, {low, *(parse_type(r.type) for r in rules)})
        selection = select(model, rules)
        for rule in selection.idle:
            context.note(f"constraint '{rule}' selects nothing")
        if low == FLOAT32 and not any(dtype != FLOAT32 for dtype, _ in selection.nodes.values()):
            context.note("nothing is lowered: the type is float32, and no constraint names another")
            return 0
        weights = Weights(context.names.value)
        spell_out(model, low, selection, context)
        if self.protect:
            rescale(model, low, selection, weights, context)
        planner = Planner(
            model, low, selection, weights, context, keep_io=self.keep_io_types, protect=self.protect
        )
        plan = planner.build()
        choose(plan.all_units, list(plan.signals.values()), low)
        applier = Applier(model, plan, weights, context)
        applier.run()
        for node in applier.lowered:
            context.record(self.name, [node])
        if applier.lowered:
            model.ir.metadata_props[LOWERED] = type_name(low)
        _explain(plan, applier, weights, low, context)
        return len(applier.lowered) + len(applier.casts)

    def _prepare(self, model: Model, context: Context, types: Iterable[ir.DataType]) -> None:
        wanted, why = 0, ""
        if BFLOAT16 in types:
            wanted, why = _BFLOAT16_OPSET, "most operators take bfloat16 since 22"
        elif any(n.op_type in ("QuantizeLinear", "DequantizeLinear") and not n.domain for n in model.nodes()):
            # Otherwise Casts would stand between DequantizeLinear and what TensorRT fuses it with.
            wanted, why = _QUANTIZED_OPSET, "quantizing from and to float16 goes since 19"
        if model.opset < wanted:
            old = model.opset
            Opset(version=wanted).run(model, context)
            if model.opset != old:
                context.note(f"opset raised from {old} to {model.opset}: {why}")
        if model.ir.functions:
            from onnx_ir.passes.common import InlinePass

            InlinePass()(model.ir)
            infer_model(model)
            context.note("functions of the model were inlined: one body may be needed in two types")


def _explain(plan: Plan, applier: Applier, weights: Weights, low: ir.DataType, context: Context) -> None:
    """Write the reasons on the nodes, and sum them up for the user."""
    reasons: Counter[tuple[str, str]] = Counter()
    free = 0
    for node, unit in plan.units.items():
        if node.graph is None:
            continue
        node.metadata_props.pop(REASON, None)
        if unit.type == low:
            continue
        if unit.reason:
            node.metadata_props[REASON] = json.dumps([type_name(unit.type), unit.reason], ensure_ascii=False)
            reasons[_shortened(unit), node.op_type] += 1
        else:
            free += 1
    total = sum(1 for unit in plan.units.values() if unit.type == low)
    context.note(
        f"{total} nodes compute in {type_name(low)}, {len(plan.units) - total} in another type; "
        f"{len(applier.casts)} Casts placed"
        + (f", {applier.absorbed} of the model's own not needed any more" if applier.absorbed else "")
    )
    by_reason: dict[str, list[str]] = {}
    for (reason, operator), count in reasons.most_common():
        by_reason.setdefault(reason, []).append(f"{count} {operator}")
    for reason, operators in by_reason.items():
        context.note(f"{', '.join(operators)}: {reason}")
    if free:
        context.note(f"{free} more in float32 because that saves Casts")
    if plan.limits:
        names = sorted({node.name or node.op_type for node, _ in plan.limits})
        context.note(
            f"constants beyond ±65504 cut off in {len(plan.limits)} masks and bounds ({', '.join(names[:3])}"
            f"{', …' if len(names) > 3 else ''})"
        )
    tensors, vanishing, size = weights.underflows()
    if vanishing:
        context.note(
            f"{vanishing} of {size} elements in {tensors} constants are below float16's 6e-8 and become 0"
        )


def _shortened(unit: Unit) -> str:
    kind = type_name(unit.type)
    return f"{kind}, {unit.reason}"
