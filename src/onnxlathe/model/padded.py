"""Outputs that were given a fixed size in the place of one that depends on data, and how a caller reads them."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import onnx_ir as ir


class Padding(msgspec.Struct, frozen=True, omit_defaults=True):
    """How an output is padded: the real rows come first, zeros (or False) fill it up.

    Attributes:
        axis: that is padded, from the front.
        rows: how many it has now: a number, or an expression of the inputs' open dimensions.
        count: name of the output, int64 [1], that says how many there are to be read.
        enough: it cannot be more than `rows`.
    """

    axis: int
    rows: str
    count: str
    enough: bool = True

    def sentence(self, output: str) -> str:
        """What a caller must know."""
        more = "" if self.enough else f"; where that is more than {self.rows}, the others are lost"
        return (
            f"output '{output}' has {self.rows} rows now (axis {self.axis}), however many the data give: the new"
            f" output '{self.count}' says how many are real, the rest are zeros{more}"
        )


def unpadded(graph: ir.Graph, padded: Mapping[str, Padding]) -> None:
    """Give the real rows and nothing else, through outputs as they were; in place.

    Args:
        graph: of a model whose outputs are padded.
        padded: by name of the output, how.
    """
    outputs = {v.name: v for v in graph.outputs}
    for name, padding in padded.items():
        value, count = outputs.get(name), outputs.get(padding.count)
        if value is None or count is None:
            continue
        value.name = f"{name}/padded"
        start, axis = (
            _constant(graph, f"{name}/{what}", n) for what, n in (("start", 0), ("axis", padding.axis))
        )
        cut = ir.node("Slice", [value, start, count, axis])
        cut.outputs[0].name, cut.outputs[0].type = name, value.type
        graph.append(cut)
        graph.outputs[[v is value for v in graph.outputs].index(True)] = cut.outputs[0]
    for value in {padding.count: outputs.get(padding.count) for padding in padded.values()}.values():
        if value is not None:
            graph.outputs.remove(value)


def _constant(graph: ir.Graph, name: str, number: int) -> ir.Value:
    tensor = ir.tensor([number], ir.DataType.INT64, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape([1]), const_value=tensor)
    graph.register_initializer(value)
    return value
