"""Constants that say the same along an axis, said once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.model import Model
from onnxlathe.rewrite import Builder, Context, Pass, drop_initializer, is_constant
from onnxlathe_passes.conditions import Array
from onnxlathe_passes.insert import graphs_with_weights, insert
from onnxlathe_passes.weights import derived, tensor_of

_ROOTS = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Min", "Max", "And", "Or", "Where"),
        *("Equal", "GreaterOrEqual", "Greater", "LessOrEqual", "Less"),
    }
)
_READ = 16 << 20  # bytes; a mask of 2048 tokens


class LeanConstants(Pass):
    """Let broadcasting repeat a constant that says the same along an axis.

    An export for a fixed batch has its attention mask once for each of the batch. Vectors stay as they are,
    since the scales and biases that they are become part of other operators.
    """

    name = "lean_constants"
    group = "tidy"
    min_opset = 7
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %y = Add(%scores, %mask)              # scores: [8, 12, 256, 256], mask: [8, 1, 256, 256], eight times one
    →
    %y = Add(%scores, %mask)              # mask: [1, 1, 256, 256]
    """

    def run(self, model: Model, context: Context) -> int:
        changes = 0
        for graph in graphs_with_weights(model):
            found = _Found()
            for node in graph:
                if node.op_type in _ROOTS and node.domain == "":
                    changes += self.lean(node, found, model.opset, context)
        return changes

    def lean(self, node: ir.Node, found: _Found, opset: int, context: Context) -> int:
        """Exchange the constants of one operator for smaller ones."""
        changes = 0
        for index, value in enumerate(node.inputs):
            if value is None or not is_constant(value):
                continue
            axes = found.repeated(value)
            axes = tuple(axis for axis in axes if _implied(node, index, axis))
            if not axes or not context.permit(self.name):
                continue
            op = Builder(opset)
            node.replace_input_with(index, found.once(value, axes, op))
            insert(op, node, context)
            if not value.uses() and value.is_initializer() and not value.is_graph_output():
                drop_initializer(value)
            context.record(self.name, [node])
            changes += 1
        return changes


@dataclass
class _Found:
    """What is known of a graph's constants, each read once.

    Attributes:
        axes: along which of its axes a constant says the same.
        made: the smaller constants.
    """

    axes: dict[ir.Value, tuple[int, ...]] = field(default_factory=dict)
    made: dict[tuple[ir.Value, tuple[int, ...]], ir.Value] = field(default_factory=dict)

    def repeated(self, value: ir.Value) -> tuple[int, ...]:
        if value not in self.axes:
            self.axes[value] = tuple(_repeated(value))
        return self.axes[value]

    def once(self, value: ir.Value, axes: tuple[int, ...], op: Builder) -> ir.Value:
        """The constant with one entry along `axes`."""
        if (value, axes) not in self.made:
            source = tensor_of(value)
            shape = [1 if axis in axes else size for axis, size in enumerate(source.shape.numpy())]
            part = tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(len(shape)))
            self.made[value, axes] = derived(op, value, shape, lambda: np.asarray(source.numpy())[part])
        return self.made[value, axes]


def _repeated(value: ir.Value) -> Iterator[int]:
    tensor = tensor_of(value)
    shape = tensor.shape.numpy()
    long = [axis for axis, size in enumerate(shape) if size > 1]
    if len(long) < 2 or tensor.nbytes > _READ or tensor.dtype.bitwidth < 8:
        return
    array = np.asarray(tensor.numpy())
    for axis in long:
        if _same(array.take([0, 1], axis), axis) and _same(array, axis):
            yield axis


def _same(array: Array, axis: int) -> bool:
    return bool((array == array.take([0], axis)).all())


def _implied(node: ir.Node, index: int, axis: int) -> bool:
    """Whether another operand has all of the result's entries along an axis of this one."""
    value = node.inputs[index]
    own, whole = dims_of(value) if value is not None else None, dims_of(node.outputs[0])
    if own is None or whole is None:
        return False
    place = axis - len(own)
    for other, beside in enumerate(node.inputs):
        dims = dims_of(beside) if beside is not None and other != index else None
        if dims is not None and -place <= len(dims) and dims[place] == whole[place] == own[axis]:
            return True
    return False
