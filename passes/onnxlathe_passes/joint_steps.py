"""What is done to every position of an axis alike, done to all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.model import transposed
from onnxlathe.rewrite import Builder, NodeRule, attribute, is_constant, reject, require
from onnxlathe_passes.conditions import (
    attributes_of,
    from_front,
    int64,
    number,
    numbers,
    operand,
    producer,
    rank,
    used_once,
)
from onnxlathe_passes.lanes import ELEMENTWISE
from onnxlathe_passes.regroup import target
from onnxlathe_passes.weights import number_of, tensor_of

_DEEP = 24
_ALONG_LAST = ("Softmax", "LogSoftmax", "Concat")


def _itself(value: ir.Value) -> ir.Value:
    return value


def at_once(
    op: Builder,
    node: ir.Node,
    operands: Sequence[ir.Value | None],
    real: Callable[[ir.Value], ir.Value] = _itself,
) -> ir.Value:
    """What the node computes of every step, for all steps: tensors with one axis more, which is not the last.

    Args:
        op: makes the nodes.
        node: of any step.
        operands: what each input is for all steps; `None` where it is the same constant for each of them.
        real: what such a constant is outside of the steps.

    Raises:
        NoMatch: the operator cannot do with one axis more.
    """
    x, result = node.inputs[0], node.outputs[0]
    same = [None if own is None else real(own) for own in node.inputs]
    require(node.domain == "" and len(node.outputs) == 1 and x is not None, "an operator has several results")
    if node.op_type == "Gemm":
        return _gemm(op, node, operands, same)
    if node.op_type == "MatMul":
        require(operands[0] is not None and operands[1] is None, "a product is of two values")
        require(rank(node.inputs[1]) == 2 and (rank(x) or 0) > 1, "a product is not with a matrix")
    elif node.op_type == "LayerNormalization":
        along = from_front([int(attribute(node, "axis", op.opset))], rank(x))
        require(along == [(rank(x) or 0) - 1] and operands[0] is not None, "it normalizes several axes")
        require(not any(operands[1:]) and rank(node.inputs[1]) == 1, "its weights differ from step to step")
        return op.node(node.op_type, [operands[0], *same[1:]], {**node.attributes, "axis": -1}).outputs[0]
    elif node.op_type in _ALONG_LAST:
        require(op.opset >= 13 and None not in operands, "it flattens its operand")
        along = from_front([int(attribute(node, "axis", op.opset))], rank(result))
        require(along == [(rank(result) or 0) - 1], "it works along another axis than the last one")
        return op.node(node.op_type, operands, {"axis": -1}).outputs[0]
    else:
        require(node.op_type in ELEMENTWISE, "it cannot do with one axis more")
        for own, joint in zip(node.inputs, operands, strict=True):
            dims = dims_of(own) if own is not None else None
            if joint is None:
                require(
                    own is None or _along_last(dims), "a constant varies along other axes than the last one"
                )
            else:
                require(dims is not None and len(dims) == rank(result), "its operands differ in rank")
    inputs = [own if joint is None else joint for own, joint in zip(same, operands, strict=True)]
    return op.node(node.op_type, inputs, dict(node.attributes)).outputs[0]


def _along_last(dims: Any) -> bool:
    return dims is not None and all(size == 1 for size in dims[:-1])


def _gemm(
    op: Builder, node: ir.Node, operands: Sequence[ir.Value | None], same: Sequence[ir.Value | None]
) -> ir.Value:
    weight, added = same[1], same[2] if len(same) > 2 else None
    require(
        operands[0] is not None and not any(operands[1:]) and weight is not None, "a product is of two values"
    )
    assert weight is not None
    factors = [number_of(node, name, op.opset, 1) for name in ("alpha", "beta")]
    require(
        not attribute(node, "transA", op.opset) and factors == [1, 1],
        "a Gemm has factors, or turns its left operand",
    )
    if attribute(node, "transB", op.opset):
        weight = op.weight(transposed(tensor_of(weight)), weight.name or "")
    product: ir.Value = op.MatMul(operands[0], weight)
    if added is None:
        return product
    require(_along_last(dims_of(added)), "a bias varies along the rows")
    result: ir.Value = op.Add(product, added)
    return result


class JointSteps(NodeRule):
    """Concat of f(x[0]), f(x[1]), … = f(x), where f works along the last axis or on each element.

    A loop over time that was written out applies the same layers to every step.
    """

    name = "joint_steps"
    group = "fuse"
    min_opset = 7
    reach = _DEEP
    example = """
    %a = Unsqueeze(Relu(MatMul(Gather(%x, 0, axis=1), %w)), [1])              # x: [batch, 2, 64]
    %b = Unsqueeze(Relu(MatMul(Gather(%x, 1, axis=1), %w)), [1])
    %y = Concat(%a, %b, axis=1)
    →
    %y = Relu(MatMul(%x, %w))
    """

    visits = ("Concat",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        size = rank(node.outputs[0])
        if size is None or len(node.inputs) < 2:
            return None
        axis = int(attribute(node, "axis", op.opset)) % size
        first = _unsqueezed(node.inputs[0], axis, op.opset)
        if first is None:
            return self.joined(op, node, axis)
        values = [_unsqueezed(value, axis, op.opset) for value in node.inputs]
        steps = [value for value in values if value is not None]
        if len(steps) < len(values) or axis == size - 1 or producer(first, "Gather") is not None:
            return None  # what nothing is done to is put together by `restack`
        joint = _Joint(op)
        whole = joint.of(steps)
        return _moved(op, whole, joint.axis, axis, size)

    def joined(self, op: Builder, node: ir.Node, axis: int) -> Any:
        """Steps side by side on an axis that they have: it becomes longer, by the axis of the steps."""
        steps = [value for value in node.inputs if value is not None]
        before, after = dims_of(steps[0]), dims_of(node.outputs[0])
        maker = steps[0].producer()
        if before is None or after is None or maker is None or maker.op_type in ("Unsqueeze", "Gather"):
            return None
        if before[axis] == 1 and axis < len(before) - 1:
            joint = _Joint(op, unit=axis)
            return joint.of(steps)
        joint = _Joint(op)
        whole = _moved(op, joint.of(steps), joint.axis, axis, len(before) + 1)
        shape = target((*before[:axis], len(steps), *before[axis:]), after)
        require(whole is not None and shape is not None, "the steps are not of one tensor")
        return op.Reshape(whole, int64(shape or []))


def _unsqueezed(value: ir.Value | None, axis: int, opset: int) -> ir.Value | None:
    """What an Unsqueeze of this axis alone is applied to, if only the Concat needs it."""
    node = producer(value, "Unsqueeze")
    if node is None or value is None or not used_once(value):
        return None
    axes = numbers(operand(node, 1)) if opset >= 13 else attribute(node, "axes", opset)
    return node.inputs[0] if axes is not None and from_front(axes, rank(value)) == [axis] else None


def _moved(op: Builder, x: ir.Value | None, axis: int | None, to: int, size: int) -> ir.Value | None:
    """The tensor with one of its axes somewhere else."""
    require(x is not None and axis is not None, "the steps are not of one tensor")
    assert axis is not None
    order = [a for a in range(size) if a != axis]
    order.insert(to, axis)
    return x if order == list(range(size)) else op.Transpose(x, perm=order)


@dataclass
class _Joint:
    """Values of all steps, as one tensor.

    Attributes:
        axis: of the steps in all of these tensors, that of the first tensor that they were taken from.
        unit: an axis of size 1 that each step has, where the steps are put; then there is no axis more.
    """

    op: Builder
    axis: int | None = None
    unit: int | None = None
    made: dict[tuple[ir.Value, ...], ir.Value] = field(default_factory=dict)

    def of(self, values: Sequence[ir.Value], depth: int = 0) -> ir.Value | None:
        """One tensor for the values of the steps; `None` for a constant that is the same in each.

        Raises:
            NoMatch: they are not computed alike.
        """
        key = tuple(values)
        if key in self.made:
            return self.made[key]
        if len(set(values)) == 1:
            require(is_constant(values[0]), "a value is the same in all steps, but no constant")
            return None
        nodes = [node for value in values if (node := value.producer()) is not None]
        first = nodes[0] if nodes else None
        if first is None or len(nodes) < len(values) or depth > _DEEP:
            reject("the steps are not computed alike")
        if self.unit is not None and (viewed := self.viewed(values)) is not None:
            self.made[key] = viewed
            return viewed
        if first.op_type == "Gather" and first.domain == "" and self.unit is None:
            self.made[key] = self.taken(nodes)
            return self.made[key]
        for node, value in zip(nodes, values, strict=True):
            same = (node.op_type, node.domain, len(node.inputs), len(node.outputs))
            require(
                same == (first.op_type, first.domain, len(first.inputs), 1),
                "the steps are not computed alike",
            )
            require(attributes_of(node) == attributes_of(first), "the steps are not computed alike")
            require(used_once(value) and node.graph is first.graph, "a step is used elsewhere as well")
        operands: list[ir.Value | None] = []
        for index, own in enumerate(first.inputs):
            inputs = [v for node in nodes if (v := node.inputs[index]) is not None]
            require(len(inputs) in (0, len(nodes)), "the steps are not computed alike")
            operands.append(None if own is None else self.of(inputs, depth + 1))
        self.made[key] = at_once(self.op, first, operands)
        return self.made[key]

    def viewed(self, values: Sequence[ir.Value]) -> ir.Value | None:
        """Gathers with axes of size 1 put in and taken out after them, laid along `unit`."""
        gathers = []
        for value in values:
            node = value.producer()
            while (
                node is not None and node.op_type in ("Reshape", "Squeeze", "Unsqueeze") and node.domain == ""
            ):
                if node.inputs[0] is None or not used_once(value):
                    return None
                value, node = node.inputs[0], node.inputs[0].producer()
            if node is None or node.op_type != "Gather" or node.domain != "":
                return None
            gathers.append(node)
        dims, before = dims_of(values[0]), dims_of(gathers[0].outputs[0])
        unit = self.unit or 0
        if dims is None or before is None or dims[unit] != 1 or {None, 0} & {*dims, *before}:
            return None
        if any(dims_of(v) != dims for v in values) or [d for d in dims if d != 1] != [
            d for d in before if d != 1
        ]:
            return None
        laid = _Joint(self.op)
        x = laid.taken(gathers)
        large = sum(size != 1 for size in dims[:unit])  # how many axes come before that of the steps
        place = next((a for a in range(len(before) + 1) if sum(d != 1 for d in before[:a]) == large), None)
        if place is None or laid.axis is None:
            return None
        whole = _moved(self.op, x, laid.axis, place, len(before) + 1)
        shape = target(
            (*before[:place], len(values), *before[place:]), (*dims[:unit], len(values), *dims[unit + 1 :])
        )
        require(whole is not None and shape is not None, "the shape of the steps cannot be written down")
        result: ir.Value = self.op.Reshape(whole, int64(shape or []))
        return result

    def taken(self, nodes: Sequence[ir.Node]) -> ir.Value:
        """The tensor that Gathers take one position each of, as far as it is needed."""
        opset = self.op.opset
        x = nodes[0].inputs[0]
        dims = dims_of(x) if x is not None else None
        if x is None or dims is None:
            reject("what steps are taken from has no known rank")
        axis = int(attribute(nodes[0], "axis", opset)) % len(dims)
        places = []
        for node in nodes:
            place = number(operand(node, 1))
            same = node.op_type == "Gather" and node.domain == "" and node.inputs[0] is x
            require(
                same and int(attribute(node, "axis", opset)) % len(dims) == axis,
                "steps are taken from several tensors",
            )
            require(
                rank(operand(node, 1)) == 0 and isinstance(place, int), "which step is taken is not known"
            )
            places.append(place)
        require(axis < len(dims) - 1, "steps are taken along the last axis")
        if places != list(range(len(places))) or dims[axis] != len(places):
            x = self.op.Gather(x, int64(places), axis=axis)
        if self.axis is None:
            self.axis = axis
        result = _moved(self.op, x, axis, self.axis, len(dims))
        assert result is not None
        return result
