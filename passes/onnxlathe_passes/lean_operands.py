"""Operands that say the same thing many times, said once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import constant, dims_of, infer_node
from onnxlathe.model import Model
from onnxlathe.rewrite import Builder, Context, Pass, attribute, is_constant, remove_unused
from onnxlathe_passes.broadcasting import repeated
from onnxlathe_passes.conditions import producer, rank, same_shape
from onnxlathe_passes.coordinates import Counters
from onnxlathe_passes.insert import graphs_with_weights, insert, substitute
from onnxlathe_passes.reductions import reduce, reduction
from onnxlathe_passes.views import axes_of, unsqueeze
from onnxlathe_passes.weights import derived, tensor_of

_DEEP = 8
_FAR = 64
_MASK = 16 << 20  # bytes; a mask of 2048 tokens
_ELEMENTWISE = frozenset(
    {
        *("Cast", "Clip", "Not", "Neg", "Identity", "Abs", "And", "Or", "Where"),
        *("Equal", "GreaterOrEqual", "Greater", "LessOrEqual", "Less"),
    }
)
_ARITHMETIC = frozenset({"Add", "Sub", "Mul"})
"""Followed for integers: positions that are compared. What is computed with numbers is no mask."""
_REDUCTIONS = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin")
_ROOTS = frozenset({"Add", "Sub", "Mul", "Div", "Min", "Max"})


class LeanOperands(Pass):
    """Let broadcasting do what Expand, a comparison that always holds, or a Gather of one row does.

    The operand of an arithmetic operator whose other operand has the result's shape may be smaller: an
    attention mask needs no row for each query if all rows are alike. What adds 0 everywhere goes away.
    """

    name = "lean_operands"
    group = "fuse"
    min_opset = 7
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %m = And(GreaterOrEqual(Range(0, %seq, 1), 0), %mask)        # mask: [batch, 1, 1, seq]
    %y = Add(%scores, Where(%m, 0, -3.4e38))                     # scores: [batch, 12, seq, seq]
    →
    %y = Add(%scores, Where(%mask, 0, -3.4e38))
    """

    def run(self, model: Model, context: Context) -> int:
        changes = 0
        for graph in graphs_with_weights(model):
            leaner = _Leaner(model.opset)
            for node in graph:
                if node.op_type in _ROOTS and node.domain == "" and len(node.inputs) == 2:
                    changes += self.lean(node, leaner, context)
        return changes

    def lean(self, node: ir.Node, leaner: _Leaner, context: Context) -> int:
        """Make the operands of one operator smaller."""
        result = node.outputs[0]
        for index, value in enumerate(node.inputs):
            other = node.inputs[1 - index]
            if value is None or other is None or not same_shape(other, result):
                continue
            adds = node.op_type == "Add" or (node.op_type == "Sub" and index == 1)
            if adds and leaner.zero(value):
                if not context.permit(self.name):
                    return 0
                substitute([(result, other)], context, rename=False)
                context.record(self.name, [node])
                remove_unused([node])
                return 1
            if is_constant(value):
                continue
            op = Builder(leaner.opset)
            smaller = leaner.smaller(value, op)
            if smaller is value or not context.permit(self.name):
                op.rewind(0)
                continue
            node.replace_input_with(index, smaller)
            leaner.done[value] = smaller
            insert(op, node, context)
            context.record(self.name, [node, *([p] if (p := value.producer()) is not None else [])], op.nodes)
            if (made_by := value.producer()) is not None:
                remove_unused([made_by])
            return 1
        return 0


@dataclass
class _Leaner:
    """Finds smaller values that broadcast to the same.

    Attributes:
        done: what was made for which value; operators of all layers share it.
        nothing: which constants were read, and whether they are all 0.
    """

    opset: int
    done: dict[ir.Value, ir.Value] = field(default_factory=dict)
    nothing: dict[ir.Value, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.counters = Counters(self.opset)

    def zero(self, value: ir.Value, depth: int = 0) -> bool:
        """Whether all entries are 0 in every run."""
        if is_constant(value):
            if value not in self.nothing:  # a mask is read once for all layers
                array = constant(value, max_bytes=_MASK)
                self.nothing[value] = array is not None and array.dtype.kind in "fiu" and not array.any()
            return self.nothing[value]
        node = value.producer()
        if node is None or node.domain != "" or depth > _DEEP:
            return False
        if node.op_type == "Where":
            verdict = self.counters.truth(node.inputs[0])
            chosen = None if verdict is None else node.inputs[1 if verdict else 2]
            return chosen is not None and self.zero(chosen, depth + 1)
        if node.op_type in ("Expand", "Unsqueeze", "Reshape", "Squeeze", "Transpose", "Identity"):
            return node.inputs[0] is not None and self.zero(node.inputs[0], depth + 1)
        return False

    def smaller(self, value: ir.Value, op: Builder, depth: int = 0) -> ir.Value:
        """A value that broadcasts to `value`; itself where none is known."""
        if value in self.done:
            return self.done[value]
        node = value.producer()
        if node is None or node.domain != "" or depth > _DEEP or is_constant(value):
            return value
        first = node.inputs[0] if node.inputs else None
        if first is None:
            return value
        if (source := repeated(value)) is not None:
            return self.smaller(source, op, depth + 1)
        if node.op_type in ("And", "Or"):
            for one, other in (node.inputs, node.inputs[::-1]):
                if (
                    one is not None
                    and other is not None
                    and self.counters.truth(one) is (node.op_type == "And")
                ):
                    return self.smaller(other, op, depth + 1)
        if node.op_type == "Gather":
            return self.row(node, value, op)
        counter = self.counter(value, op)
        if counter is not None:
            return counter
        if node.op_type == "Unsqueeze":
            inner = self.smaller(first, op, depth + 1)
            return value if inner is first else self.with_units(op, inner, value)
        if node.op_type in _REDUCTIONS:
            return self.reduced(node, value, self.smaller(first, op, depth + 1), op)
        counts = node.op_type in _ARITHMETIC and value.dtype == ir.DataType.INT64
        if node.op_type in _ELEMENTWISE or counts:
            inputs = [v if v is None else self.smaller(v, op, depth + 1) for v in node.inputs]
            if any(a is not b for a, b in zip(inputs, node.inputs, strict=True)):
                made = op.node(node.op_type, inputs, dict(node.attributes))
                infer_node(made, self.opset)
                return made.outputs[0]
        return value

    def reduced(self, node: ir.Node, value: ir.Value, inner: ir.Value, op: Builder) -> ir.Value:
        """What a reduction makes of a smaller operand, which must not be smaller along the reduced axes."""
        what = reduction(node, self.opset)
        before, after = dims_of(node.inputs[0]) if node.inputs[0] is not None else None, dims_of(inner)
        if inner is node.inputs[0] or what is None or before is None or after is None:
            return value
        if len(before) != len(after) or any(before[a] != after[a] or after[a] is None for a in what.axes):
            return value
        made = reduce(op, node.op_type, inner, what.axes, what.keepdims)
        infer_node(op.nodes[-1], self.opset)
        return made

    def with_units(self, op: Builder, inner: ir.Value, value: ir.Value) -> ir.Value:
        """What an Unsqueeze makes of a smaller operand; axes in front of all others are not needed."""
        node = value.producer()
        axes = axes_of(node, self.opset) if node is not None else None
        left, after = rank(inner), rank(value)
        if axes is None or left is None or after is None:
            return value
        added, axis = [], after
        while left:
            axis -= 1
            if axis in axes:
                added.append(axis - after)
            else:
                left -= 1
        if not added:
            return inner
        whole = (rank(inner) or 0) + len(added)
        made = unsqueeze(op, inner, [axis + whole for axis in sorted(added)])
        infer_node(op.nodes[-1], self.opset)
        return made

    def counter(self, value: ir.Value, op: Builder) -> ir.Value | None:
        """The range that a value repeats, where it was computed from one in a roundabout way."""
        counted = self.counters.affine(value)
        along = [a for a, by in enumerate(counted.slope) if by != 0] if counted is not None else []
        if counted is None or len(along) != 1 or counted.base != 0 or counted.slope[along[0]] != 1:
            return None
        size, after = counted.dims[along[0]], len(counted.dims) - 1 - along[0]
        work, seen = [value], 0
        while work and seen < _FAR:
            node = work.pop().producer()
            if node is None or node.domain != "":
                continue
            seen += 1
            counts = self.counters.affine(node.outputs[0]) if node.op_type == "Range" else None
            if counts is not None and (counts.base, counts.slope, counts.dims) == (0, (1,), (size,)):
                short = node.outputs[0]
                # As it is made below: nothing would be gained, and a fixpoint would never end.
                direct = seen == 2 and producer(value, "Unsqueeze") is not None
                if short.dtype != value.dtype or seen == 1 or direct:
                    return None
                return unsqueeze(op, short, list(range(1, after + 1))) if after else short
            work += [v for v in node.inputs if v is not None]
        return None

    def row(self, node: ir.Node, value: ir.Value, op: Builder) -> ir.Value:
        """The one row of a table that a Gather takes again and again."""
        table, indices = node.inputs
        if (
            table is None
            or indices is None
            or not is_constant(table)
            or attribute(node, "axis", self.opset) != 0
        ):
            return value
        dims, counted = dims_of(table), self.counters.affine(indices)
        place = counted.base if counted is not None and counted.steady else None
        if dims is None or not isinstance(place, int) or not all(isinstance(d, int) for d in dims):
            return value
        count = dims[0]
        if not isinstance(count, int) or not -count <= place < count:
            return value
        source = tensor_of(table)
        return derived(
            op, table, [d for d in dims[1:] if isinstance(d, int)], lambda: np.array(source.numpy()[place])
        )
