"""Rules with one plausible mistake each; `optimize passes check` must find every one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxlathe import Model, NodeRule, Rule, make_pass
from onnxlathe.infer import constant, dims_of
from onnxlathe.rewrite import attr, const, optional, scalar_value


@dataclass(frozen=True)
class WrongAxis(Rule):
    """exp(x)/sum(exp(x)) is Softmax along the summed axis, which is not always the last one."""

    name = "wrong_axis"

    def pattern(self, op: Any, x: Any, axes: Any) -> Any:
        power = op.Exp(x)
        return op.Div(power, op.ReduceSum(power, optional(axes), axes=attr("along"), keepdims=1))

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Softmax(x, axis=-1)


@dataclass(frozen=True)
class IgnoredSecondUse(NodeRule):
    """(x·a)·b = x·(a·b), written into the inner product although something else may use it."""

    name = "ignored_second_use"
    visits = ("Mul",)

    def visit(self, op: Any, node: Any) -> Any:
        inner = node.inputs[0].producer()
        if inner is None or inner.op_type != "Mul":
            return None
        a, b = scalar_value(inner.inputs[1]), scalar_value(node.inputs[1])
        if a is None or b is None or dims_of(node.inputs[1]) != () or dims_of(inner.inputs[1]) != ():
            return None
        inner.replace_input_with(1, op.constant(a * b, node.outputs[0].dtype))
        return inner.outputs[0]


@dataclass(frozen=True)
class DroppedBroadcast(Rule):
    """x + 0 = x, but a tensor of zeros may be larger than x."""

    name = "dropped_broadcast"

    def pattern(self, op: Any, x: Any, zeros: Any) -> Any:
        return op.Add(x, const(zeros))

    def check(self, zeros: Any) -> bool:
        array = constant(zeros)
        return array is not None and not array.any()

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Identity(x)


@dataclass(frozen=True)
class WrongPromotion(Rule):
    """Cast(Cast(x)) is one Cast, unless the first one cuts digits off."""

    name = "wrong_promotion"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Cast(op.Cast(x, to=attr("first")), to=attr("second"))

    def rewrite(self, op: Any, x: Any, second: int) -> Any:
        return op.Cast(x, to=second)


@dataclass(frozen=True)
class HalfOverflow(Rule):
    """|x| = √x², but 300² is no float16."""

    name = "half_overflow"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Abs(x)

    def check(self, x: Any) -> bool:
        return bool(x.dtype is not None and x.dtype.is_floating_point())

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Sqrt(op.Mul(x, x))


@dataclass(frozen=True)
class MissingAttribute(Rule):
    """Gemm is a product and a sum, where it neither transposes nor scales."""

    name = "missing_attribute"

    def pattern(self, op: Any, x: Any, w: Any, b: Any) -> Any:
        return op.Gemm(x, w, b)

    def rewrite(self, op: Any, x: Any, w: Any, b: Any) -> Any:
        return op.Add(op.MatMul(x, w), b)


@dataclass(frozen=True)
class WrongApproximation(Rule):
    """The exact Gelu is not its approximation by tanh."""

    name = "wrong_approximation"
    min_opset = 20

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, 2.0**0.5)), 1.0)), 0.5)

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Gelu(x, approximate="tanh")


@dataclass(frozen=True)
class IgnoredEpsilon(Rule):
    """The number under the root is the model's, not everybody's favourite."""

    name = "ignored_epsilon"

    def pattern(self, op: Any, x: Any, epsilon: Any) -> Any:
        return op.Div(x, op.Sqrt(op.Add(op.Mul(x, x), const(epsilon))))

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Mul(x, op.Reciprocal(op.Sqrt(op.Add(op.Mul(x, x), 1e-5))))


@dataclass(frozen=True)
class IntegerDivision(Rule):
    """(x/c)·c = x for real numbers only."""

    name = "integer_division"

    def pattern(self, op: Any, x: Any, c: Any) -> Any:
        return op.Mul(op.Div(x, const(c)), const(c))

    def check(self, x: Any, c: Any) -> bool:
        return scalar_value(c) not in (None, 0) and dims_of(c) == ()

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Identity(x)


@dataclass(frozen=True)
class FirstElement(Rule):
    """x·c as LeakyRelu-like scalar code: only the first factor of a whole vector is looked at."""

    name = "first_element"

    def pattern(self, op: Any, x: Any, c: Any) -> Any:
        return op.Relu(op.Mul(x, const(c)))

    def check(self, x: Any, c: Any) -> bool:
        array, dims = constant(c), dims_of(x)
        return array is not None and array.size > 1 and dims is not None and array.ndim <= len(dims)

    def rewrite(self, op: Any, x: Any, c: Any) -> Any:
        array = constant(c)
        assert array is not None
        return op.Relu(op.Mul(x, op.constant(np.asarray(array.reshape(-1)[0]), c.dtype)))


@dataclass(frozen=True)
class FrozenSize(Rule):
    """The size of a dimension is not 2 for ever."""

    name = "frozen_size"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Shape(x)

    def check(self, x: Any) -> bool:
        return dims_of(x) is not None

    def rewrite(self, op: Any, x: Any) -> Any:
        sizes = [d if isinstance(d, int) else 2 for d in dims_of(x) or ()]
        return op.Identity(op.constant(np.array(sizes, np.int64)))


@dataclass(frozen=True)
class Restless(Rule):
    """x + y = y + x, again and again."""

    name = "restless"

    def pattern(self, op: Any, x: Any, y: Any) -> Any:
        return op.Add(x, y)

    def rewrite(self, op: Any, x: Any, y: Any) -> Any:
        return op.Add(y, x)


@dataclass(frozen=True)
class Raises(Rule):
    """Not every Transpose says its permutation."""

    name = "raises"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Relu(op.Transpose(x, _name="node"))

    def rewrite(self, op: Any, x: Any, node: Any) -> Any:
        return op.Transpose(op.Relu(x), perm=node.attributes["axes"].value)


@make_pass("renames_outputs")
def renames_outputs(model: Model, context: Any) -> int:
    """Add: give outputs nicer names, which nobody who runs the model will look for."""
    for number, value in enumerate(model.graph.outputs):
        value.name = f"output_{number}"
    return 1


@make_pass("grows")
def grows(model: Model, context: Any) -> int:
    """Add an initializer each time it is run."""
    import onnx_ir as ir

    value = ir.Value(name=context.names.value("marker"), const_value=ir.Tensor(np.zeros(1, np.float32)))
    value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([1])
    model.graph.register_initializer(value)
    return 1


@make_pass("endless")
def endless(model: Model, context: Any) -> int:
    """Add and Mul: never come back."""
    while True:
        pass
