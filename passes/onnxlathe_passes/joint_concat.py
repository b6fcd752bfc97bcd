"""What is done to every input of a Concat alike, done once behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import constant, dims_of
from onnxlathe.rewrite import Builder, NodeRule, attribute, is_constant
from onnxlathe_passes.conditions import Array, attributes_of, from_front, numbers, rank, used_once
from onnxlathe_passes.lanes import ELEMENTWISE

_MOVERS = frozenset(
    {
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Slice",
        "Split",
        "Gather",
        "Expand",
        "Concat",
    }
)
_ALONG = frozenset({"Concat", "Softmax", "LogSoftmax"})
_DEEP = 16
_LARGEST = 1 << 22  # bytes of a constant that is made of several

Values = tuple[ir.Value, ...]


@dataclass
class _Joint:
    """Values side by side along an axis, and how far back all of them are computed alike.

    Attributes:
        axis: from the front.
        axes: how many there are.
        sizes: of the values along the axis.
        alike: for values that were looked at, whether one operator can make all of them.
        constants: operands that differ, as one constant.
        made: what stands for values side by side, and for operators.
    """

    axis: int
    axes: int
    sizes: tuple[int, ...]
    opset: int
    alike: dict[Values, bool] = field(default_factory=dict)
    constants: dict[Values, Array] = field(default_factory=dict)
    made: dict[Any, Any] = field(default_factory=dict)
    gone: set[ir.Node] = field(default_factory=set)

    def whole(self, values: Sequence[ir.Value | None]) -> bool:
        """Whether the values are parts along the axis, of sizes that are known, and alike otherwise."""
        shapes = [dims_of(v) if v is not None else None for v in values]
        if any(d is None or len(d) != self.axes or not isinstance(d[self.axis], int) for d in shapes):
            return False
        rest = {(*d[: self.axis], *d[self.axis + 1 :]) for d in shapes if d is not None}
        return len(rest) == 1 and None not in next(iter(rest))

    def can(self, values: Values, depth: int = 0) -> bool:
        """Whether one operator can make all of the values side by side."""
        if values not in self.alike:
            self.alike[values] = False
            self.alike[values] = depth < _DEEP and self.look(values, depth)
        return self.alike[values]

    def look(self, values: Values, depth: int) -> bool:
        nodes = [node for v in values if (node := v.producer()) is not None]
        if len(nodes) < len(values) or len(set(nodes)) < len(nodes):
            return False
        first, graph = nodes[0], nodes[0].graph
        place = list(first.outputs).index(values[0])
        for node, value in zip(nodes, values, strict=True):
            same = (node.op_type, node.domain, len(node.inputs), len(node.outputs), node.graph)
            if same != (first.op_type, "", len(first.inputs), len(first.outputs), graph):
                return False
            if node.outputs[place] is not value or not all(used_once(v) for v in node.outputs):
                return False
        if not self.fits(nodes):
            return False
        found = False
        for index in range(len(first.inputs)):
            operands = [node.inputs[index] for node in nodes]
            kind = self.kind(operands, first.op_type)
            if kind == "whole":
                found = True
                parts = tuple(v for v in operands if v is not None)
                # What a convolution or a product makes is fused with what follows it there.
                if not self.can(parts, depth + 1) and not all(_moved(v) for v in parts):
                    return False
            elif not kind:
                return False
        return found

    def fits(self, nodes: list[ir.Node]) -> bool:
        """Whether equal operators do to the whole what they do to the parts."""
        first = nodes[0]
        names = {name for node in nodes for name in node.attributes if name != "axis"}
        if any(len({repr(attribute(n, name, self.opset)) for n in nodes}) > 1 for name in names):
            return False
        if first.op_type in ELEMENTWISE:
            return len(first.outputs) == 1 and self.whole([n.outputs[0] for n in nodes])
        if first.op_type not in (*_ALONG, "Split"):
            return False
        (axis, *others) = (from_front([int(attribute(n, "axis", self.opset))], self.axes) for n in nodes)
        if axis is None or any(other != axis for other in others) or axis == [self.axis]:
            return False
        if any(rank(v) != self.axes for n in nodes for v in n.outputs):
            return False
        if first.op_type in ("Softmax", "LogSoftmax"):
            return self.opset >= 13
        sizes = {tuple(_size(v, axis[0]) for v in n.outputs) for n in nodes}
        return len(sizes) == 1 and None not in next(iter(sizes))

    def kind(self, operands: Sequence[ir.Value | None], op_type: str) -> str:
        """How operands of equal operators go together: `whole`, `same`, `constant`; empty if they do not."""
        first = operands[0]
        if all(v is first for v in operands) and (first is None or not self.reaches(first)):
            return "same"
        if any(v is None for v in operands):
            return ""
        if all(is_constant(v) for v in operands if v is not None):
            if op_type == "Split":
                return "same" if len({str(numbers(v)) for v in operands if v is not None}) == 1 else ""
            return "constant" if self.constant(tuple(v for v in operands if v is not None)) else ""
        return "whole" if self.whole(operands) and not any(map(is_constant, operands)) else ""

    def reaches(self, value: ir.Value) -> bool:
        """Whether a value varies along the axis."""
        dims = dims_of(value)
        if dims is None:
            return True
        place = self.axis - (self.axes - len(dims))
        return place >= 0 and dims[place] != 1

    def constant(self, values: Values) -> bool:
        """Whether constants, each for its own part, are one constant for the whole; remembers it."""
        arrays = [array for v in values if (array := constant(v, max_bytes=_LARGEST)) is not None]
        if len(arrays) < len(values) or len({v.dtype for v in values}) > 1:
            return False
        if any(a.ndim > self.axes for a in arrays):
            return False
        padded = [a.reshape((1,) * (self.axes - a.ndim) + a.shape) for a in arrays]
        if any(a.shape[self.axis] not in (1, size) for a, size in zip(padded, self.sizes, strict=True)):
            return False
        first = arrays[0]
        steady = padded[0].shape[self.axis] == 1
        if steady and all(a.shape == first.shape and np.array_equal(a, first) for a in arrays):
            self.constants[values] = first
            return True
        rest = [(*a.shape[: self.axis], 1, *a.shape[self.axis + 1 :]) for a in padded]
        common = np.broadcast_shapes(*rest)
        full = [(*common[: self.axis], size, *common[self.axis + 1 :]) for size in self.sizes]
        if sum(int(np.prod(shape)) for shape in full) * first.itemsize > _LARGEST:
            return False
        parts = [np.broadcast_to(a, shape) for a, shape in zip(padded, full, strict=True)]
        self.constants[values] = np.concatenate(parts, self.axis)
        return True

    def build(self, op: Builder, values: Values) -> ir.Value:
        """The values side by side, computed together as far back as that can be."""
        if values not in self.made:
            alike = self.can(values)
            self.made[values] = self.computed(op, values) if alike else op.Concat(*values, axis=self.axis)
        made: ir.Value = self.made[values]
        return made

    def computed(self, op: Builder, values: Values) -> ir.Value:
        nodes = tuple(node for v in values if (node := v.producer()) is not None)
        if nodes not in self.made:
            first = nodes[0]
            inputs: list[Any] = []
            for index, value in enumerate(first.inputs):
                operands = tuple(node.inputs[index] for node in nodes)
                known = tuple(v for v in operands if v is not None)
                if self.kind(operands, first.op_type) == "whole":
                    inputs.append(self.build(op, known))
                elif known in self.constants:
                    inputs.append(op.constant(self.constants[known], known[0].dtype))
                else:
                    inputs.append(value)
            made = op.node(first.op_type, inputs, attributes_of(first), outputs=len(first.outputs))
            self.made[nodes] = made
            self.gone.update(nodes)
        result: ir.Value = self.made[nodes].outputs[list(nodes[0].outputs).index(values[0])]
        return result


def _size(value: ir.Value, axis: int) -> int | None:
    dims = dims_of(value)
    size = dims[axis] if dims is not None else None
    return size if isinstance(size, int) else None


def _moved(value: ir.Value) -> bool:
    """Whether a value is an input, or only moved to where it is."""
    node = value.producer()
    return node is None or (node.domain == "" and node.op_type in _MOVERS)


class JointConcat(NodeRule):
    """Concat(f(a), f(b)) = f(Concat(a, b)), for operators that do to each part what they do to the whole.

    So a detector decodes the boxes of all its scales at once. Constants that differ from part to part, such as
    grids, anchors and strides, become one. What follows a convolution or a product stays there.
    """

    name = "joint_concat"
    group = "fuse"
    reach = _DEEP
    example = """
    %a = Mul(Sigmoid(%x), 8)                    # x: [batch, 6400, 85], y: [batch, 1600, 85]
    %b = Mul(Sigmoid(%y), 16)
    %z = Concat(%a, %b, axis=1)
    →
    %z = Mul(Sigmoid(Concat(%x, %y, axis=1)), %c)         # c: [1, 8000, 1], 8 and 16
    """

    visits = ("Concat",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        dims = dims_of(node.outputs[0])
        values = tuple(v for v in node.inputs if v is not None)
        if dims is None or len(set(values)) < len(values) or len(values) < 2:
            return None
        axes = from_front([int(attribute(node, "axis", op.opset))], len(dims))
        if axes is None:
            return None
        sizes = tuple(size for v in values if (size := _size(v, axes[0])) is not None)
        if len(sizes) < len(values):
            return None
        joint = _Joint(axes[0], len(dims), sizes, op.opset)
        if not joint.can(values):
            return None
        made = joint.build(op, values)
        return made if len(op.nodes) <= len(joint.gone) else None
