"""Indices that are computed from one integer, as the distance of two positions: looked up instead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, NodeRule, RuleSet, attribute, is_constant
from onnxlathe_passes.conditions import Array, producer, rank, uniform, used_once
from onnxlathe_passes.evaluate import evaluate
from onnxlathe_passes.intervals import OPERATORS, Interval, bounds
from onnxlathe_passes.noop_views import permutation
from onnxlathe_passes.views import unsqueeze
from onnxlathe_passes.weights import derived, tensor_of

_FEWEST = 5
"""Operators that must go away: a look-up takes up to three."""
_MANY = 64
_FARTHEST = 1 << 14
_LIMIT = 1 << 61
_LARGEST = 1 << 22  # bytes of the table
_INTEGERS = frozenset({ir.DataType.INT64, ir.DataType.INT32})


@dataclass
class _Index:
    """How an index is computed from one integer value.

    Attributes:
        source: the value.
        nodes: the operators between it and the index, in order.
        fills: the numbers that stand beside them.
    """

    source: ir.Value
    nodes: list[ir.Node]
    fills: dict[ir.Value, Array]
    opset: int

    @classmethod
    def of(cls, index: ir.Value, opset: int) -> _Index | None:
        """The one with the most operators, or `None`."""
        best: _Index | None = None
        for source in _sources(index):
            found = cls(source, [], {}, opset)
            if found.follow(index) and (best is None or len(found.nodes) > len(best.nodes)):
                best = found
        return best if best is not None and len(best.nodes) >= _FEWEST else None

    def follow(self, value: ir.Value) -> bool:
        """Whether a value depends on the source and on numbers alone."""
        if value is self.source or value in self.fills:
            return True
        number = _fill(value)
        if number is not None:
            self.fills[value] = number
            return True
        node = value.producer()
        if node is None or node.domain != "" or node.op_type not in OPERATORS or len(self.nodes) > _MANY:
            return False
        if node not in self.nodes:
            if not all(v is not None and self.follow(v) for v in node.inputs):
                return False
            self.nodes.append(node)
        return True

    def index(self, places: Array) -> Array:
        """The index where the source has some values."""
        known: dict[ir.Value, Array] = {self.source: places, **self.fills}
        for node in self.nodes:
            (known[node.outputs[0]],) = evaluate(node, [known[v] for v in node.inputs if v], self.opset)
        return known[self.nodes[-1].outputs[0]]

    def settles(self, low: int, high: int) -> int | None:
        """The index where the source is anywhere between two numbers, if it is the same everywhere."""
        known: dict[ir.Value, Interval] = {self.source: (low, high)}
        known.update((v, (a.item(), a.item())) for v, a in self.fills.items())
        for node in self.nodes:
            found = bounds(node, [known[v] for v in node.inputs if v is not None])
            if found is None:
                return None
            known[node.outputs[0]] = found
        first, last = known[self.nodes[-1].outputs[0]]
        return first if first == last else None

    def ends(self) -> tuple[int, int] | None:
        """From where to where the index changes with the source."""
        low = next((-n for n in _steps() if self.settles(-_LIMIT, -n) is not None), None)
        high = next((n for n in _steps() if self.settles(n, _LIMIT) is not None), None)
        if low is None or high is None:
            return None
        # Bounds are generous: the index may have come to rest before.
        index = self.index(np.arange(low, high + 1, dtype=np.int64).astype(_numpy(self.source)))
        first = int(np.argmax(index != index[0])) - 1
        last = len(index) - int(np.argmax(index[::-1] != index[-1]))
        return (low + first, low + last) if (index != index[0]).any() else None


def _numpy(value: ir.Value) -> Any:
    return value.dtype.numpy() if value.dtype is not None else np.int64


def _steps() -> Iterator[int]:
    number = 1
    while number <= _FARTHEST:
        yield number
        number *= 2


def _sources(index: ir.Value) -> list[ir.Value]:
    """Integers that an index may be computed from, those far away first."""
    seen: dict[ir.Value, None] = {}
    work = [index]
    while work and len(seen) < _MANY:
        value = work.pop(0)
        node = value.producer()
        if value in seen or is_constant(value):
            continue
        seen[value] = None
        if node is not None and node.domain == "" and node.op_type in OPERATORS:
            work += [v for v in node.inputs if v is not None]
    return [value for value in reversed(seen) if value is not index and value.dtype in _INTEGERS]


def _fill(value: ir.Value) -> Array | None:
    """The number that a value is everywhere, as a tensor without axes."""
    node = producer(value, "Expand", "ConstantOfShape")
    number, dtype = uniform(value), value.dtype
    if node is not None and node.op_type == "Expand":
        number = uniform(node.inputs[0])
    elif node is not None and "value" in node.attributes:
        number = node.attributes["value"].as_tensor().numpy().reshape(-1)[0].item()
    return None if number is None or dtype is None else np.array(number, dtype.numpy())


class _Lookup(NodeRule):
    """Gather(table, f(x)) = Gather(another table, x between two ends)."""

    min_opset = 12
    reach = 24
    visits = ("Gather",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        table, index = node.inputs
        dims = dims_of(table) if table is not None else None
        if table is None or index is None or dims is None or not is_constant(table) or not used_once(index):
            return None
        if attribute(node, "axis", op.opset) != 0 or index.dtype not in _INTEGERS:
            return None
        found = _Index.of(index, op.opset)
        # A source of fewer axes would have to be repeated.
        if found is None or dims_of(found.source) != dims_of(index):
            return None
        ends = found.ends()
        if ends is None:
            return None
        low, high = ends
        rows = found.index(np.arange(low, high + 1, dtype=np.int64).astype(_numpy(found.source)))
        shape = [rows.size, *(d for d in dims[1:] if isinstance(d, int))]
        count = dims[0]
        if (
            not isinstance(count, int)
            or len(shape) != len(dims)
            or (rows < -count).any()
            or (rows >= count).any()
        ):
            return None
        if int(np.prod(shape)) * 4 > _LARGEST:
            return None
        source = tensor_of(table)
        near = op.Clip(found.source, low, high)
        made = derived(op, table, shape, lambda: np.take(source.numpy(), rows, 0))
        return op.Gather(made, op.Sub(near, low) if low else near, axis=0)


class _Turned(NodeRule):
    """Transpose(Gather(table, i), the last axis to the front) = Gather(Transpose(table), i, axis=1)."""

    reach = 3
    visits = ("Transpose",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        x = node.inputs[0]
        view = producer(x, "Reshape", "Unsqueeze")
        inner = view.inputs[0] if view is not None and x is not None and used_once(x) else x
        gather = producer(inner, "Gather")
        perm, dims = permutation(node, op.opset), dims_of(x) if x is not None else None
        if gather is None or inner is None or perm is None or dims is None or not used_once(inner):
            return None
        table, index = gather.inputs
        taken = dims_of(inner)
        if table is None or index is None or taken is None or rank(table) != 2 or not is_constant(table):
            return None
        units = len(dims) - len(taken)
        if attribute(gather, "axis", op.opset) != 0 or tensor_of(table).nbytes > _LARGEST or units < 0:
            return None
        if tuple(dims) != (1,) * units + tuple(taken) or len(taken) < 3:
            return None
        if tuple(perm) != (*range(units), len(dims) - 1, *range(units, len(dims) - 1)):
            return None
        source = tensor_of(table)
        shape = [int(d) for d in reversed(source.shape.numpy())]
        turned = derived(op, table, shape, lambda: source.numpy().T)
        made = op.Gather(turned, index, axis=1)
        return unsqueeze(op, made, list(range(units))) if units else made


class TabulatedIndex(RuleSet):
    """Look up what an index that is computed from one integer would be, where it comes to rest on both sides.

    T5 puts distances of tokens into buckets, by logarithms and comparisons: a function of one number that does
    not change any more where that is large. So its biases are a table over the distances, in the order that
    attention needs.
    """

    name = "tabulate"
    group = "fuse"
    min_opset = 12
    example = """
    %a = Min(Cast(Log(Cast(Abs(%d)))), 15)                     # d: int64[seq, seq], a distance
    %y = Gather(%table, Where(Less(Abs(%d), 8), Abs(%d), %a))
    →
    %y = Gather(%table1, Sub(Clip(%d, -113, 113), -113))       # table1: a row for each distance
    """

    steps = (_Lookup(), _Turned())
