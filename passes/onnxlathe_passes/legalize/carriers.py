"""Element types that TensorRT does not have, carried in types that it has.

An int16 is carried in int32, a uint64 in int64 (the same bits), a double in float, an FP8 number in float.
The carried numbers are those of the narrow type at every point: what can overflow is wrapped, what rounds is
rounded. Values change their type in place, so that no value of the narrow type remains inside the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import Names, NoMatch, graphs_of, subgraphs
from onnxlathe_passes.legalize import mini
from onnxlathe_passes.legalize.carried_ops import RULES, Carrying, by_default
from onnxlathe_passes.legalize.draft import LOWERINGS, Draft

T = ir.DataType

CARRIER: dict[ir.DataType, ir.DataType] = {
    T.INT16: T.INT32, T.UINT16: T.INT32, T.UINT8: T.INT32, T.INT8: T.INT32,
    T.INT4: T.INT32, T.UINT4: T.INT32, T.INT2: T.INT32, T.UINT2: T.INT32,
    T.UINT32: T.INT64, T.UINT64: T.INT64, T.DOUBLE: T.FLOAT,
    T.FLOAT8E4M3FN: T.FLOAT, T.FLOAT8E4M3FNUZ: T.FLOAT, T.FLOAT8E5M2: T.FLOAT, T.FLOAT8E5M2FNUZ: T.FLOAT,
    T.FLOAT8E8M0: T.FLOAT, T.FLOAT4E2M1: T.FLOAT,
}  # fmt: skip

NEVER = frozenset(
    {
        T.INT16, T.UINT16, T.UINT32, T.UINT64, T.INT2, T.UINT2,
        T.FLOAT8E4M3FNUZ, T.FLOAT8E5M2, T.FLOAT8E5M2FNUZ, T.FLOAT8E8M0,
    }
)  # fmt: skip
"""Types that TensorRT has nowhere."""

AT_THE_BORDER = frozenset({T.UINT8, T.INT8, T.DOUBLE})
"""Types that its inputs and outputs may have, beside a Cast."""

_EXPANDED_FIRST = frozenset(
    {
        "QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger", "DynamicQuantizeLinear", "CastLike",
    }
)  # fmt: skip


class Impossible(Exception):
    """The model cannot be carried; the message says why."""


@dataclass
class Carrier:
    """One change of types over a model.

    Attributes:
        model: changed in place.
        types: the types to carry.
        widen: inputs and outputs of the model may change their type.
        notes: sentences on what a caller must pass and gets now.
        retyped: inputs and outputs whose element type changed → the one that they had.
    """

    model: ir.Model
    types: frozenset[ir.DataType]
    widen: bool
    notes: list[str] = field(default_factory=list)
    retyped: dict[str, ir.DataType] = field(default_factory=dict)
    narrow: dict[ir.Value, ir.DataType] = field(default_factory=dict)

    def run(self, seeds: Iterable[ir.Value]) -> int:
        """Carry all values that are connected with `seeds` through values of these types.

        Returns:
            How many nodes changed.

        Raises:
            Impossible: an input or output would have to change its type, and may not.
        """
        self.narrow = self._component(seeds)
        if not self.narrow:
            return 0
        names = Names(self.model)
        graph = self.model.graph
        strict = [
            v
            for v in [*graph.inputs, *graph.outputs]
            if v in self.narrow and self.narrow[v] not in AT_THE_BORDER
        ]
        if strict and not self.widen:
            shown = ", ".join(f"'{v.name}' ({self.narrow[v].name.lower()})" for v in strict)
            raise Impossible(f"TensorRT has no such type for {shown}; io_types=widen lets it be another one")
        self._widened(strict)
        self._border(names)
        for value, dtype in list(self.narrow.items()):
            self._retype(value, dtype)
        changes = 0
        for inner in list(graphs_of(self.model)):
            for node in list(inner):
                if node.graph is not None and self._touches(node):
                    self._carry(node, names)
                    changes += 1
        return changes

    def _component(self, seeds: Iterable[ir.Value]) -> dict[ir.Value, ir.DataType]:
        found: dict[ir.Value, ir.DataType] = {}
        work = [v for v in seeds if v.dtype in self.types]
        while work:
            value = work.pop()
            if value in found or value.dtype not in self.types:
                continue
            found[value] = value.dtype
            nodes = [user for user, _ in value.uses()]
            producer = value.producer()
            if producer is not None:
                nodes.append(producer)
            for node in nodes:
                near = [v for v in (*node.inputs, *node.outputs) if v is not None]
                for inner in subgraphs(node):
                    near += [*inner.inputs, *inner.outputs]
                work += near
                if node.graph is not None and any(v.dtype in self.types for v in node.graph.outputs):
                    work += [v for v in node.graph.outputs if v.producer() is node]
        return found

    def _widened(self, values: list[ir.Value]) -> None:
        for value in values:
            dtype = self.narrow[value]
            wide = CARRIER[dtype]
            what = "input" if value.is_graph_input() else "output"
            bits = ", the same bits (values from 2^63 on are negative)" if dtype == T.UINT64 else ""
            self.retyped[str(value.name)] = dtype
            self.notes.append(
                f"{what} '{value.name}' is {wide.name.lower()} now rather than {dtype.name.lower()}:"
                f" the same numbers{bits}"
            )

    def _border(self, names: Names) -> None:
        """Casts where inputs and outputs keep their type."""
        graph = self.model.graph
        for value in list(graph.inputs):
            dtype = self.narrow.get(value)
            if dtype not in AT_THE_BORDER:
                continue
            cast = ir.node(
                "Cast", [value], {"to": int(CARRIER[dtype])}, name=names.node(f"{value.name}/Cast")
            )
            inside = cast.outputs[0]
            inside.name = names.value(f"{value.name}/wide")
            inside.shape, inside.type = value.shape, ir.TensorType(CARRIER[dtype])
            users = [(u, i) for u, i in value.uses() if u is not cast]
            for user, index in users:
                user.replace_input_with(index, inside)
            for i, output in enumerate(graph.outputs):
                if output is value:
                    raise Impossible(f"input '{value.name}' is an output as well (#{i})")
            if len(graph):
                graph.insert_before(graph[0], cast)
            del self.narrow[value]
            self.narrow[inside] = dtype
        for index, value in enumerate(list(graph.outputs)):
            dtype = self.narrow.get(value)
            if dtype not in AT_THE_BORDER:
                continue
            cast = ir.node("Cast", [value], {"to": int(dtype)}, name=names.node(f"{value.name}/Cast"))
            outside = cast.outputs[0]
            outside.shape, outside.type = value.shape, ir.TensorType(dtype)
            graph.outputs[index] = outside
            name = value.name or "output"
            value.name = names.value(f"{name}/wide")
            outside.name = name
            graph.append(cast)

    def _retype(self, value: ir.Value, dtype: ir.DataType) -> None:
        wide = CARRIER[dtype]
        if value.const_value is not None and value.const_value.dtype == dtype:
            value.const_value = ir.Tensor(widened(value.const_value), dtype=wide, name=value.name)
        value.type = ir.TensorType(wide)

    def _touches(self, node: ir.Node) -> bool:
        return any(v in self.narrow for v in (*node.inputs, *node.outputs) if v is not None)

    def _carry(self, node: ir.Node, names: Names) -> None:
        """Replace a node by one on carried values that computes the same numbers."""
        graph = node.graph
        assert graph is not None
        opset = self.model.graph.opset_imports.get("", 1)
        draft = Draft(opset)
        here = Carrying(
            draft,
            node,
            [self.narrow.get(v) if v is not None else None for v in node.inputs],
            [self.narrow.get(v) for v in node.outputs],
            CARRIER,
        )
        border = node.op_type == "Cast" and node.domain == ""
        if border and _is_border(node, self.narrow):
            return
        if any(True for _ in subgraphs(node)):
            return  # the values inside are carried like all others
        rule = RULES.get((node.domain, node.op_type), by_default)
        try:
            result = rule(here)
        except NoMatch as declined:
            raise Impossible(f"node '{node.name}' ({node.op_type}): {declined}") from None
        results = [result] if isinstance(result, ir.Value) else list(result)
        for old, new in zip(node.outputs, results, strict=False):
            if new is not None and old in self.narrow:
                self.narrow[new] = self.narrow[old]
        shapes = [v.shape for v in node.outputs]
        for new, shape in zip(results, shapes, strict=False):
            if new is not None and new.shape is None:
                new.shape = shape
        mini.install(draft, graph, node, results, names)


def _is_border(node: ir.Node, narrow: dict[ir.Value, ir.DataType]) -> bool:
    """A Cast between a carried value and an input or output that kept its type."""
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None
    if result in narrow and source not in narrow:
        return source.is_graph_input() and source.dtype == narrow[result]
    return (
        source in narrow
        and result not in narrow
        and result.is_graph_output()
        and result.dtype == narrow[source]
    )


def widened(tensor: ir.TensorProtocol) -> np.ndarray[Any, np.dtype[Any]]:
    """The numbers of a tensor in its carrier."""
    wide = CARRIER[tensor.dtype]
    array = tensor.numpy()
    with np.errstate(all="ignore"):
        if tensor.dtype == T.UINT64:
            return np.asarray(array).view(np.int64)
        return np.asarray(array).astype(np.float32 if wide == T.FLOAT else wide.numpy())


def expand_first(model: ir.Model, types: frozenset[ir.DataType]) -> int:
    """Write operators that carry types in a way of their own in terms of simpler ones."""
    names = Names(model)
    changes = 0
    for graph in list(graphs_of(model)):
        for node in list(graph):
            if node.domain != "com.microsoft" and (node.domain or node.op_type not in _EXPANDED_FIRST):
                continue
            if not any(v is not None and v.dtype in types for v in (*node.inputs, *node.outputs)):
                continue
            for lowering in LOWERINGS.get((node.domain, node.op_type), ()):
                try:
                    if mini.apply(lowering, model, node, names):
                        changes += 1
                        break
                except NoMatch:
                    continue
    return changes
