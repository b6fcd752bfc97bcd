"""Making new nodes: `op.Gelu(x, approximate="tanh")`.

Nothing enters the graph until the driver accepts the whole replacement, so a rule can stop half way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import convert_attribute

Operand = "ir.Value | np.ndarray | float | int | bool | None"


class Builder:
    """Makes nodes and constants for one replacement.

    Calling an operator makes a node: positional arguments are inputs (`None` leaves an optional one out;
    numbers and arrays become constants, numbers in the element type of the first input that is a value),
    keyword arguments are attributes (`None` leaves one out). `_outputs`, `_domain` as in patterns.

    Attributes:
        opset: version of the default operator set where the new nodes will stand.
    """

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[ir.Node] = []
        self.constants: dict[ir.Value, None] = {}

    def mark(self) -> int:
        """A place to `rewind` to."""
        return len(self.nodes)

    def rewind(self, mark: int) -> None:
        """Forget the nodes made since `mark`, and the constants that only they use."""
        if not self.constants and len(self.nodes) == mark:
            return
        for node in self.nodes[mark:]:
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)
        del self.nodes[mark:]
        self.constants = {value: None for value in self.constants if value.uses()}

    def constant(self, array: Any, dtype: ir.DataType | None = None, name: str = "") -> ir.Value:
        """A constant with the given contents.

        Args:
            array: an array, a number or a nested sequence; integers become int64, floats float32 where
                neither `array` nor `dtype` says otherwise.
            dtype: element type; the contents are converted.
            name: a hint for its name.
        """
        if dtype is not None:
            array = np.asarray(array).astype(dtype.numpy())
        elif not isinstance(array, np.ndarray | np.generic):
            array = np.asarray(array)
            if array.dtype == np.float64:
                array = array.astype(np.float32)
        return self.weight(ir.Tensor(np.ascontiguousarray(array).reshape(np.shape(array)), dtype=dtype), name)

    def weight(self, tensor: ir.TensorProtocol, name: str = "") -> ir.Value:
        """A constant held by `tensor`, which may compute its contents only when they are written."""
        value = ir.Value(
            name=name or None,
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.constants[value] = None
        return value

    def node(
        self,
        op_type: str,
        inputs: Sequence[Any],
        attributes: dict[str, Any] | None = None,
        *,
        domain: str = "",
        outputs: int = 1,
    ) -> ir.Node:
        """Make a node; see the class for what inputs and attributes may be."""
        like = next((v.dtype for v in inputs if isinstance(v, ir.Value) and v.dtype is not None), None)
        values = [
            v if v is None or isinstance(v, ir.Value) else self._operand(v, like) for v in _trimmed(inputs)
        ]
        kept = [_attribute(k, v) for k, v in (attributes or {}).items() if v is not None]
        made = ir.Node(domain, op_type, values, kept, num_outputs=outputs)
        self.nodes.append(made)
        return made

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if op_type.startswith("_"):
            raise AttributeError(op_type)

        def build(*inputs: Any, _outputs: int = 1, _domain: str = "", **attributes: Any) -> Any:
            made = self.node(op_type, inputs, attributes, domain=_domain, outputs=_outputs)
            return made.outputs[0] if _outputs == 1 else tuple(made.outputs)

        return build

    def _operand(self, operand: Any, like: ir.DataType | None) -> ir.Value:
        if isinstance(operand, (bool, int, float)) and like is not None:
            return self.constant(operand, like)
        return self.constant(operand)


_KINDS = {int: ir.AttributeType.INT, float: ir.AttributeType.FLOAT, str: ir.AttributeType.STRING}
_LISTS = {int: ir.AttributeType.INTS, float: ir.AttributeType.FLOATS, str: ir.AttributeType.STRINGS}


def _attribute(name: str, value: Any) -> ir.Attr:
    """An attribute with its type; onnx_ir's own conversion is for the rare kinds, it takes much longer."""
    kind = _KINDS.get(type(value))
    if kind is None and type(value) in (list, tuple) and value:
        first = type(value[0])
        kind = _LISTS.get(first) if all(type(entry) is first for entry in value) else None
        value = tuple(value) if kind is not None else value
    return ir.Attr(name, kind, value) if kind is not None else convert_attribute(name, value)


def _trimmed(inputs: Sequence[Any]) -> Sequence[Any]:
    end = len(inputs)
    while end and inputs[end - 1] is None:
        end -= 1
    return inputs[:end]
