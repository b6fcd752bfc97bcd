"""Recurrences written out by hand, as the operators LSTM, GRU and RNN."""

from __future__ import annotations

from dataclasses import dataclass

from onnxlathe.model import Model
from onnxlathe.rewrite import Context, Pass, option
from onnxlathe_passes.insert import graphs_with_weights
from onnxlathe_passes.recurrence.loops import fuse_loop
from onnxlathe_passes.recurrence.unrolled import Chains


@dataclass(frozen=True)
class Recurrence(Pass):
    """LSTM, GRU or RNN for the steps of one, written one after the other or as the body of a loop over time.

    However the products of a cell are spelled. What no such operator says stays: normalization inside of a cell,
    peepholes, weights that differ from step to step, a cell state that is wanted of every step, what goes in
    depending on what came out. From three steps on, TensorRT makes fewer layers of the operator than of the
    steps. It comes first in its group, because other rewrites change how cells look.
    """

    name = "recurrence"
    group = "fuse"
    min_opset = 10
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %h, %hs = Scan(%h0, %x) { %h = Tanh(Add(MatMul(%x_t, %w), MatMul(%h, %r)));  %h, %h }
    →
    %hs, %h = RNN(%x, %wᵀ, %rᵀ, , , %h0)
    """

    least: int = option(3, "how many steps there have to be of a recurrence that is written out")

    @staticmethod
    def loops(opset: int) -> tuple[str, ...]:
        """The loops that are looked at; before operator set 9, a Scan went over the batch as well."""
        return ("Loop", "Scan") if opset >= 9 else ("Loop",)

    def run(self, model: Model, context: Context) -> int:
        changes = 0
        for graph in graphs_with_weights(model):
            for node in list(graph):
                if node.domain == "" and node.op_type in self.loops(model.opset):
                    changes += fuse_loop(node, model.opset, context, self.name)
            changes += Chains(graph, model.opset, self.least).fuse(context, self.name)
        return changes
