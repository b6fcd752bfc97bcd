"""What is the same for every element of the batch, computed once and now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import Dim, Dims, dims_of, known
from onnxlathe.model import Model
from onnxlathe.rewrite import Builder, Context, Pass, attribute, is_constant, remove_unused
from onnxlathe_passes.conditions import Array, dying, small_constant
from onnxlathe_passes.evaluate import evaluate
from onnxlathe_passes.insert import graphs_with_weights, insert

_LARGEST = 1 << 25
"""Bytes of a value that is computed; the mask of a large image."""
_KEPT = 1 << 22
"""Bytes of a constant that is left."""
_SIZES = (1, 2, 3)
"""What symbolic dimensions are set to. A value must be the same along them, whatever they are."""

_ROUNDING = 1e-6
_REDUCTIONS = ("L1", "L2", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
_ANY_SIZE = frozenset(
    {
        *(
            "Abs",
            "Add",
            "And",
            "Cast",
            "Ceil",
            "Clip",
            "Concat",
            "Cos",
            "CumSum",
            "Div",
            "Elu",
            "Equal",
            "Erf",
        ),
        *("Exp", "Flatten", "Floor", "Gather", "GatherElements", "Gelu", "Gemm", "Greater", "GreaterOrEqual"),
        *(
            "Identity",
            "LayerNormalization",
            "LeakyRelu",
            "Less",
            "LessOrEqual",
            "Log",
            "LogSoftmax",
            "MatMul",
        ),
        *(
            "Max",
            "Mean",
            "Min",
            "Mod",
            "Mul",
            "Neg",
            "Not",
            "Or",
            "Pow",
            "Reciprocal",
            "Relu",
            "Round",
            "ScatterND",
        ),
        *(
            "Sigmoid",
            "Sign",
            "Sin",
            "Softmax",
            "Softplus",
            "Split",
            "Sqrt",
            "Sub",
            "Sum",
            "Tanh",
            "Transpose",
        ),
        *("Where", "Xor", *(f"Reduce{kind}" for kind in _REDUCTIONS)),
    }
)
# Which operands of an operator say shapes; all others are data.
_SHAPES: dict[str, frozenset[int]] = {
    "ConstantOfShape": frozenset({0}),
    "Expand": frozenset({1}),
    "Reshape": frozenset({1}),
    "Tile": frozenset({1}),
    "Resize": frozenset({3}),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), frozenset({1})),
    "Slice": frozenset({1, 2, 3, 4}),
    **dict.fromkeys(_ANY_SIZE, frozenset()),
}
_WRITERS = frozenset({"ScatterND", "ScatterElements"})
"""What they write is understood by other passes, if it is left as the exporter spelled it."""
_BROADCASTING = frozenset(
    {
        *(
            "Add",
            "Sub",
            "Mul",
            "Div",
            "Pow",
            "And",
            "Or",
            "Xor",
            "Equal",
            "Greater",
            "GreaterOrEqual",
            "Less",
        ),
        *("LessOrEqual", "Min", "Max", "Mod", "Where"),
    }
)


class Steady(Pass):
    """Compute what varies along no symbolic dimension: masks of ones, positions, and all that follows.

    So are the first products of the queries that a detector has learned (Carion et al. 2020). What is left is a
    constant with an Expand, which goes away where broadcasting does the same.
    """

    name = "steady"
    group = "fuse"
    min_opset = 8
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %s = Concat(Shape<end=1>(%x), [64])                     # x: [batch, 64]
    %p = CumSum(ConstantOfShape<value=1>(%s), axis=1)
    %y = Add(%x, Sin(%p))
    →
    %y = Add(%x, %c)                                        # c: [1, 64]
    """

    def run(self, model: Model, context: Context) -> int:
        changes = 0
        for graph in graphs_with_weights(model):
            search = _Search(model.opset)
            for node in graph:
                search.look(node)
            for value in list(search.frontier()):
                changes += self.settle(value, search, context)
        return changes

    def settle(self, value: ir.Value, search: _Search, context: Context) -> int:
        """Put a constant in the place of a value, if that makes nodes go away."""
        node, dims = value.producer(), dims_of(value)
        if node is None or node.graph is None or dims is None:
            return 0
        if search.found[value][0].nbytes > _KEPT:
            return 0
        op = Builder(search.opset)
        constant = op.constant(search.found[value][0], value.dtype, name=value.name or "")
        lean = all(isinstance(d, int) for d in dims) or all(
            _covered(user, value) for user in value.consumers()
        )
        gain = len(dying(node))
        if not lean:
            if any(user.op_type in _WRITERS for user in value.consumers()):
                return 0
            first, last = _runs_of_symbols(dims)
            source = search.source(dims[first:last]) if first is not None else None
            if source is None or first is None:
                return 0
            of, start = source
            end = start + last - first
            extent = op.node("Shape", [of], {"start": start, "end": end}).outputs[0]
            parts = [np.array(part, np.int64) for part in (dims[:first], dims[last:])]
            target = [parts[0]] * bool(parts[0].size) + [extent] + [parts[1]] * bool(parts[1].size)
            shape = op.node("Concat", target, {"axis": 0}).outputs[0] if len(target) > 1 else extent
            new = op.Expand(constant, shape)
            if gain <= len(op.nodes) + 1 or search.opset < 15:
                op.rewind(0)
                return 0
        else:
            new = constant
        if not context.permit(self.name):
            return 0
        before = [node, *dying(node)]
        insert(op, node, context)
        if lean:
            assert node.graph is not None
            constant.name = context.names.value(constant.name or "constant")
            node.graph.register_initializer(constant)
        users = [(user, i) for user in value.consumers() for i, v in enumerate(user.inputs) if v is value]
        for user, index in users:
            user.replace_input_with(index, new)
        context.record(self.name, before, op.nodes)
        remove_unused([node])
        return 1


@dataclass
class _Search:
    """What is known to be steady in a graph.

    Attributes:
        found: each value with its contents for the `_SIZES`.
    """

    opset: int
    found: dict[ir.Value, list[Array]] = field(default_factory=dict)

    def look(self, node: ir.Node) -> None:
        """Compute a node, if it is one of those, and remember it if its results are steady."""
        shapes = _SHAPES.get(node.op_type)
        if shapes is None or node.domain != "" or any(o.is_graph_output() for o in node.outputs):
            return
        inputs: list[list[Array | None]] = []
        for index, value in enumerate(node.inputs):
            contents = [None] * len(_SIZES) if value is None else self.contents(value, index in shapes)
            if contents is None:
                return
            inputs.append(list(contents))
        dims = [dims_of(output) for output in node.outputs]
        if any(d is None or None in d or not _telling(d) for d in dims):
            return
        late = not any(v in self.found for v in node.inputs) and all(is_constant(v) for v in node.inputs if v)
        if late and not _shrinks(node):
            return  # a constant, left alone for its size
        for size in _SIZES:
            for d in dims:
                shape = _bound(d, size)
                if shape is None or np.prod(shape, dtype=np.float64) * 8 > _LARGEST:
                    return
        try:
            results = [
                self.computed(node, [c[place] for c in inputs], size) for place, size in enumerate(_SIZES)
            ]
        except Exception:  # whatever a kernel says to inputs that make no sense
            return
        for output, d, *arrays in zip(node.outputs, dims, *results, strict=False):
            if d is not None and _uniform(d, arrays):
                self.found[output] = arrays

    def computed(self, node: ir.Node, inputs: list[Array | None], size: int) -> list[Array]:
        """The results of a node where symbolic dimensions have a size."""
        x, shape = inputs[0], _bound(dims_of(node.outputs[0]) or (), size)
        resized = node.op_type == "Resize" and not attribute(node, "extrapolation_value", self.opset)
        if resized and x is not None and x.size and shape is not None and (x == x.flat[0]).all():
            return [np.full(shape, x.flat[0])]  # kernels for whole images are slow
        return evaluate(node, inputs, self.opset)

    def contents(self, value: ir.Value, says_shape: bool) -> list[Array] | None:
        """The contents of an operand for the `_SIZES`."""
        if value in self.found:
            return self.found[value]
        constant = small_constant(value)
        if constant is None and is_constant(value) and value.const_value is not None:
            constant = value.const_value.numpy() if value.const_value.nbytes <= _KEPT else None
        if constant is not None:
            return [constant] * len(_SIZES)
        entries = known(value) if says_shape else None
        if entries is None or not _telling(entries.reshape(-1)):
            return None
        arrays = []
        for size in _SIZES:
            bound = _bound(tuple(entries.reshape(-1)), size)
            if bound is None:
                return None
            arrays.append(np.array(bound, np.int64).reshape(entries.shape))
        return arrays

    def frontier(self) -> Iterator[ir.Value]:
        """Steady values that others than steady ones need."""
        for value in self.found:
            if any(o not in self.found for user in value.consumers() for o in user.outputs):
                yield value

    def source(self, dims: Dims) -> tuple[ir.Value, int] | None:
        """An input of the graph that has some dimensions in a row, and where."""
        for value in self.inputs:
            theirs = dims_of(value) or ()
            for start in range(len(theirs) - len(dims) + 1):
                if theirs[start : start + len(dims)] == dims:
                    return value, start
        return None

    @property
    def inputs(self) -> list[ir.Value]:
        graph = next((n.graph for v in self.found if (n := v.producer()) is not None and n.graph), None)
        return list(graph.inputs) if isinstance(graph, ir.Graph) else []


def _bound(entries: Any, size: int) -> tuple[int, ...] | None:
    """Expressions with all symbols set to one size."""
    result = []
    for entry in entries:
        if isinstance(entry, Dim):
            entry = entry.substitute(dict.fromkeys(entry.symbols, size))
        if not isinstance(entry, int | np.integer) or isinstance(entry, bool):
            return None
        result.append(int(entry))
    return tuple(result)


def _telling(entries: Iterable[Any]) -> bool:
    """Whether every expression differs among the `_SIZES`.

    Of 320 samples there is one frame, as of one or two: what is the same for all these says nothing.
    """
    return all(
        len({_bound((entry,), size) for size in _SIZES}) > 1 for entry in entries if isinstance(entry, Dim)
    )


def _uniform(dims: Dims, arrays: list[Array]) -> bool:
    """Whether contents for several sizes are those for 1, repeated along the symbolic dimensions."""
    first = arrays[0]
    if any(not isinstance(d, int) and s != 1 for d, s in zip(dims, first.shape, strict=True)):
        return False
    for size, array in zip(_SIZES, arrays, strict=True):
        if array.shape != _bound(dims, size) or array.dtype != first.dtype:
            return False
        if not _same(array, np.broadcast_to(first, array.shape)):
            return False
    return True


def _shrinks(node: ir.Node) -> bool:
    """Whether the results of a node take no more than its operands: a constant that came about late."""
    taken, made = (_bytes([v for v in values if v is not None]) for values in (node.inputs, node.outputs))
    return taken is not None and made is not None and made <= taken


def _bytes(values: list[ir.Value]) -> float | None:
    """The memory that values of static shapes take."""
    total = 0.0
    for value in values:
        dims = dims_of(value)
        sizes = [d for d in dims or () if isinstance(d, int)]
        if dims is None or value.dtype is None or len(sizes) != len(dims):
            return None
        total += float(np.prod(sizes, dtype=np.float64)) * value.dtype.itemsize
    return total


def _same(one: Array, other: Array) -> bool:
    """Whether two arrays are the same but for rounding, which differs with the size of a product."""
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    size = np.abs(other, where=np.isfinite(other), out=np.zeros_like(other)).max(initial=0)
    return bool(np.allclose(one, other, rtol=_ROUNDING, atol=_ROUNDING * float(size), equal_nan=True))


def _covered(user: ir.Node, value: ir.Value) -> bool:
    """Whether another operand gives an operator's result the symbolic dimensions that a value has."""
    dims = dims_of(value)
    if user.domain != "" or dims is None or user.op_type not in (*_BROADCASTING, "MatMul"):
        return False
    places = [axis - len(dims) for axis, d in enumerate(dims) if not isinstance(d, int)]
    if user.op_type == "MatMul" and any(place >= -2 for place in places):
        return False
    others = [dims_of(other) or () for other in user.inputs if other is not None and other is not value]
    return all(any(len(o) >= -p and o[p] == dims[p] for o in others) for p in places)


def _runs_of_symbols(dims: Dims) -> tuple[int | None, int]:
    """Where the symbolic dimensions begin and end."""
    places = [axis for axis, d in enumerate(dims) if not isinstance(d, int)]
    return (places[0], places[-1] + 1) if places else (None, 0)
