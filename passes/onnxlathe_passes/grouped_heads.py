"""Keys and values that several heads share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, NodeRule, NoMatch, RuleSet, attribute, reject, require
from onnxlathe_passes.conditions import producer, used_once
from onnxlathe_passes.noop_views import permutation
from onnxlathe_passes.regroup import reshaped
from onnxlathe_passes.view_transposes import ViewTranspose
from onnxlathe_passes.views import unsqueeze

_FAR = 8
_UNARY = ("Cast", "Identity", "Relu", "Tanh")
_BINARY = ("Add", "Sub", "Mul", "Div")


@dataclass(frozen=True)
class Repeated:
    """Heads of which each stands `times` times in a row.

    Attributes:
        heads: them, as `[batch, groups, 1, seq, size]`.
        groups, times: how many there are, and how often each is used.
    """

    heads: ir.Value
    groups: int
    times: int

    @classmethod
    def of(cls, value: ir.Value | None) -> Repeated | None:
        """What a value repeats by Expand and Reshape, if it does."""
        joined = producer(value, "Reshape")
        expanded = producer(joined.inputs[0], "Expand") if joined is not None else None
        if joined is None or expanded is None or expanded.inputs[0] is None:
            return None
        heads = expanded.inputs[0]
        before, wide, after = dims_of(heads), dims_of(expanded.outputs[0]), dims_of(joined.outputs[0])
        if (
            before is None
            or wide is None
            or after is None
            or (len(before), len(wide), len(after)) != (5, 5, 4)
        ):
            return None
        groups, times = wide[1], wide[2]
        if not isinstance(groups, int) or not isinstance(times, int) or None in wide:
            return None
        fits = before == (*wide[:2], 1, *wide[3:]) and after == (wide[0], groups * times, *wide[3:])
        return cls(heads, groups, times) if fits else None


class _Core(NodeRule):
    """Attention, up to its result as `[batch, heads, seq, size]`."""

    reach = _FAR

    visits = ("MatMul",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        values = Repeated.of(node.inputs[1])
        whole = dims_of(node.outputs[0])
        if values is None or whole is None or len(whole) != 4:
            return None
        between = self.between(node, op.opset)
        scores = between.pop()
        q, turned = scores.inputs
        transpose = producer(turned, "Transpose")
        require(transpose is not None, "its keys are not transposed")
        assert transpose is not None
        keys = Repeated.of(transpose.inputs[0])
        require(permutation(transpose, op.opset) == (0, 1, 3, 2), "its keys are transposed in another way")
        dims = dims_of(q) if q is not None else None
        if keys is None or q is None or dims is None or len(dims) != 4:
            reject("its keys are not repeated as its values are")
        require((keys.groups, keys.times) == (values.groups, values.times), "its keys are repeated otherwise")
        require(dims[1] == values.groups * values.times, "it has another number of heads")
        grouped = (dims[0], values.groups, values.times, *dims[2:])
        value = op.MatMul(reshaped(op, q, grouped), op.Transpose(keys.heads, perm=[0, 1, 2, 4, 3]))
        for step in reversed(between):
            value = self.again(op, step, value)
        result = op.MatMul(value, values.heads)
        return reshaped(op, result, whole, (dims[0], values.groups, values.times, *whole[2:]))

    def between(self, node: ir.Node, opset: int) -> list[ir.Node]:
        """What is between the two products, from the last to the first of them."""
        found: list[ir.Node] = []
        value = node.inputs[0]
        while len(found) < _FAR:
            require(value is not None and used_once(value), "its weights are used elsewhere")
            assert value is not None
            step = value.producer()
            if step is None or step.domain != "":
                break
            found.append(step)
            if step.op_type == "MatMul":
                return found
            if step.op_type == "Softmax":
                require(attribute(step, "axis", opset) in (-1, 3), "its Softmax is over another axis")
            elif step.op_type not in (*_UNARY, *_BINARY):
                break
            value = step.inputs[_through(step)]
        raise NoMatch("there is something else between its products")

    def again(self, op: Builder, step: ir.Node, value: ir.Value) -> ir.Value:
        """An operator on scores again, for scores in groups."""
        inputs = list(step.inputs)
        index = _through(step)
        inputs[index] = value
        for place, other in enumerate(inputs):
            if place == index or other is None:
                continue
            dims = dims_of(other)
            require(dims is not None and len(dims) <= 4, "its mask's rank is not known")
            assert dims is not None
            require(len(dims) < 3 or dims[-3] == 1, "its mask differs between heads")
            if len(dims) == 4 and dims[0] != 1:
                inputs[place] = unsqueeze(op, other, [1])
        attributes = {**step.attributes}
        if step.op_type == "Softmax":
            attributes = {"axis": -1}  # type: ignore[dict-item]
        made: ir.Value = op.node(step.op_type, inputs, attributes).outputs[0]
        return made


class GroupedHeads(RuleSet):
    """Attention whose keys and values are repeated for groups of heads, without repeating them.

    With queries as `[batch, groups, times, seq, size]`, and keys and values as `[batch, groups, 1, seq, size]`,
    MatMul broadcasts, and nothing is copied. Between the two products there may be a mask that is the same
    for all heads, factors, and the Softmax.
    """

    name = "grouped_heads"
    group = "fuse"
    min_opset = 7
    example = """
    %k8 = Reshape(Expand(%k, [1, 4, 2, 1, 64]), [0, 8, -1, 64])      # k, v: [batch, 4, 1, seq, 64]
    %v8 = Reshape(Expand(%v, [1, 4, 2, 1, 64]), [0, 8, -1, 64])
    %y = MatMul(Softmax(MatMul(%q, Transpose(%k8, [0, 1, 3, 2]))), %v8)
    →
    %q1 = Reshape(%q, [0, 4, 2, -1, 64])
    %y1 = MatMul(Softmax(MatMul(%q1, Transpose(%k, [0, 1, 2, 4, 3]))), %v)
    %y = Reshape(%y1, [0, 8, -1, 64])
    """

    steps = (_Core(), ViewTranspose())


def _through(step: ir.Node) -> int:
    """Which operand of an operator on scores the scores are: the one of the result's shape."""
    if len(step.inputs) == 1:
        return 0
    whole = dims_of(step.outputs[0])
    fitting = [i for i, v in enumerate(step.inputs) if v is not None and dims_of(v) == whole]
    if len(fitting) == 2:
        fitting = [i for i in fitting if producer(step.inputs[i], "MatMul", *_BINARY) is not None]
    if len(fitting) != 1:
        reject("which of its operands are the scores is not known")
    return fitting[0]
