"""The pass: what the target refuses is rewritten until it is taken, or said to be beyond us."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxlathe import Model, UsageError
from onnxlathe.infer import infer_model
from onnxlathe.rewrite import Context, Pass, graphs_of, option
from onnxlathe.target import find_target
from onnxlathe_passes.legalize import families  # noqa: F401 - registers the lowerings
from onnxlathe_passes.legalize.carriers import CARRIER, NEVER, Carrier, Impossible, expand_first
from onnxlathe_passes.legalize.interface import bind, parse_values
from onnxlathe_passes.legalize.judge import Expectation, Judge, Ruling, TargetJudge
from onnxlathe_passes.legalize.solve import Solver, tidied
from onnxlathe_passes.opset import Opset

WRITTEN_FOR = 18
"""Our lowerings use operators as they are since this version of the operator set."""

FALLBACK = 21
"""Version for a model that has none of the standard operators."""


@dataclass(frozen=True)
class Legalize(Pass):
    """Rewrite the nodes that TensorRT refuses, and only those, into operators that it takes.

    The real parser and builder are asked (answers are remembered), and of several rewrites the first is kept
    whose result they accept: a constant for an operand that must be one, a lowering of our own, the
    operator's function body from the ONNX schema, another element type.
    """

    name = "legalize"
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %y, %mean, %inv = LayerNormalization(%x, %scale, %bias)
    →
    %mean = ReduceMean(%x, [-1]);  %d = Sub(%x, %mean);  ...
    """

    target: str = option("", "`rtx` or `tensorrt`; the best one that is installed if left out")
    io_types: str = option(
        "keep", "`keep` the types of inputs and outputs, or `widen` those that TensorRT does not have"
    )
    bind: str = option("", 'inputs that are constants of the engine: "axes=[1]; k=3"')
    expect: str = option("", "typical values of integer inputs that decide on shapes, as in `bind`")
    cache: str = option("", "folder for the target's answers; `none` forgets them when the run ends")

    def run(self, model: Model, context: Context) -> int:
        if self.io_types not in ("keep", "widen"):
            raise UsageError(
                f"pass 'legalize' has no io_types={self.io_types!r}", hint="it is `keep` or `widen`"
            )
        judge = self._judge(context)
        try:
            return _Run(self, model, context, judge).run()
        finally:
            judge.close()

    def _judge(self, context: Context) -> Judge:
        target = find_target(self.target or None)
        if not target.available:
            raise UsageError(f"pass 'legalize' has nobody to ask: {target.reason}")  # TODO table
        folder = None if self.cache == "none" else Path(self.cache) if self.cache else _cache_folder()
        return TargetJudge(target.module, f"{target.name} {target.version}", folder)  # type: ignore[attr-defined]


@dataclass
class _Run:
    options: Legalize
    model: Model
    context: Context
    judge: Judge
    changes: int = 0
    expect: Expectation = field(default_factory=dict)
    solver: Solver = field(init=False)

    def run(self) -> int:
        model, context = self.model, self.context
        bound = parse_values(self.options.bind)
        for sentence in bind(model.ir, bound):
            context.note(sentence)
            self.changes += 1
        if bound:
            tidied(model.ir)
        self.expect = _expectation(model.ir, parse_values(self.options.expect, "expect"))
        if self.judge.judge(model.ir, self.expect).accepted:
            return self.changes
        if "" not in model.ir.graph.opset_imports:  # a model of contrib operators only
            model.ir.graph.opset_imports[""] = FALLBACK
        if 0 < model.opset < WRITTEN_FOR:
            self.changes += Opset(version=WRITTEN_FOR).run(model, context)
            infer_model(model)
        self._carry(NEVER, model)
        ruling = self._settle()
        if not ruling.accepted:
            near = frozenset(
                v.dtype for n in self._refused(ruling) for v in (*n.inputs, *n.outputs) if v is not None and v.dtype
            )
            if self._carry(near & frozenset(CARRIER), model):
                ruling = self._settle()
        solver = self.solver
        if not ruling.accepted:
            for name, message in solver.unsolved.items():
                context.note(f"node '{name}' stays refused: {message}")
            if not solver.unsolved:
                context.note(f"the model stays refused: {ruling.message}")
        return self.changes

    def _settle(self) -> Ruling:
        self.solver = Solver(
            self.judge, permit=lambda: self.context.permit(self.options.name), changed=self._changed
        )
        ruling = self.solver.settle(self.model.ir, expect=self.expect, top=True)
        infer_model(self.model)
        return ruling

    def _refused(self, ruling: Ruling) -> list[ir.Node]:
        nodes = list(self.model.graph)
        return [nodes[i] for i in ruling.culprits if i < len(nodes)] or nodes

    def _carry(self, types: frozenset[ir.DataType], model: Model) -> bool:
        """Carry all values of these types in others."""
        graphs = list(graphs_of(model.ir))
        values = {v for g in graphs for v in (*g.inputs, *g.initializers.values())}
        values |= {v for g in graphs for n in g for v in n.outputs}
        seeds = [v for v in values if v.dtype in types]
        if not seeds or not self.context.permit(self.options.name):
            return False
        backup = model.ir.clone()
        changes = expand_first(model.ir, types)
        if changes:
            infer_model(model)
            graphs = list(graphs_of(model.ir))
            values = {v for g in graphs for v in (*g.inputs, *g.initializers.values())}
            values |= {v for g in graphs for n in g for v in n.outputs}
            seeds = [v for v in values if v.dtype in types]
        carrier = Carrier(model.ir, types, self.options.io_types == "widen")
        try:
            changes += carrier.run(seeds)
        except Impossible as reason:
            model.ir = backup
            self.context.note(str(reason))
            return False
        for note in carrier.notes:
            self.context.note(note)
        shown = ", ".join(sorted(t.name.lower() for t in set(carrier.narrow.values())))
        self.context.note(f"{shown}: computed in types that TensorRT has")
        self.context.record(self.options.name, [])
        self.changes += changes
        tidied(model.ir)
        return changes > 0

    def _changed(self, before: ir.Node, after: list[ir.Node], how: str) -> None:
        self.changes += 1
        self.context.record(self.options.name, [before], after)
        self.context.note(f"{before.op_type} '{before.name}': {how}")


def _expectation(model: ir.Model, values: dict[str, Any]) -> Expectation:
    import numpy as np

    found: Expectation = {}
    for value in model.graph.inputs:
        if value.name in values:
            array = np.asarray(values[value.name])
            found[value.name] = {"shape": list(array.shape), "values": array.reshape(-1).tolist()}
    return found


def _cache_folder() -> Path:
    base = os.environ.get("ONNXLATHE_CACHE") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "onnxlathe" / "legalize"
