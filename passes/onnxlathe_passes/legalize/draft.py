"""Writing a lowering: what a refused node should be instead, from operators that the target takes.

    @lowers("LpPool")
    def lp_pool(op: Draft, node: ir.Node) -> Lowered:
        ...

Lowerings of one operator are tried in the order in which they are written; the first whose result the
target accepts is kept. They are written for the operator sets since version 18.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxlathe.infer import Dim, constant, dims_of, infer_node, known
from onnxlathe.rewrite import Builder, attribute, reject, require

# Lowerings take these from here, with what is for them alone.
from onnxlathe_passes.conditions import FLOATS as FLOATS
from onnxlathe_passes.conditions import Array as Array
from onnxlathe_passes.conditions import operand as operand

Lowered = ir.Value | Sequence[ir.Value | None] | None
Lowering = Callable[["Draft", ir.Node], Lowered]

LOWERINGS: dict[tuple[str, str], list[Lowering]] = {}
"""By domain and operator type, in the order in which they are tried."""

INTEGERS = frozenset(
    {
        ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64,
        ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64,
    }
)  # fmt: skip


def lowers(*operators: str) -> Callable[[Lowering], Lowering]:
    """Register a lowering for operators (`com.microsoft::Gelu` for another domain than the default one)."""

    def register(function: Lowering) -> Lowering:
        for text in operators:
            domain, _, op_type = text.rpartition("::")
            LOWERINGS.setdefault((domain, op_type), []).append(function)
        return function

    return register


class Draft(Builder):
    """A builder whose values have types and shapes as soon as they are made.

    Its constants are initializers of a graph of its own meanwhile, so that their contents are known.
    """

    def __init__(self, opset: int) -> None:
        super().__init__(opset)
        self._scratch = ir.Graph([], [], nodes=[], opset_imports={"": opset})

    def weight(self, tensor: ir.TensorProtocol, name: str = "") -> ir.Value:
        value = super().weight(tensor, name)
        self.adopt(value)
        return value

    def adopt(self, value: ir.Value) -> None:
        """Take in a constant that belongs to no graph."""
        value.name = f"const_{len(self._scratch.initializers)}"
        self.constants[value] = None
        self._scratch.register_initializer(value)

    def release(self, value: ir.Value) -> None:
        """Let go of a constant, which is to become an initializer elsewhere."""
        self._scratch.initializers.pop(str(value.name))

    def node(
        self,
        op_type: str,
        inputs: Sequence[Any],
        attributes: dict[str, Any] | None = None,
        *,
        domain: str = "",
        outputs: int = 1,
    ) -> ir.Node:
        made = super().node(op_type, inputs, attributes, domain=domain, outputs=outputs)
        infer_node(made, self.opset)
        return made

    # Shorthands. Axes and shapes are int64 constants.

    def ints(self, values: Sequence[int] | Array) -> ir.Value:
        """A constant vector of int64."""
        return self.constant(np.asarray(values, dtype=np.int64).reshape(-1))

    def like(self, value: Any, x: ir.Value) -> ir.Value:
        """A constant in the element type of `x`."""
        return self.constant(np.asarray(value), element_type(x))

    def cast(self, x: ir.Value, to: ir.DataType) -> ir.Value:
        """`x` in another element type; `x` itself if it has it."""
        if x.dtype == to:
            return x
        result: ir.Value = self.Cast(x, to=int(to))
        return result

    def reshape(self, x: ir.Value, shape: Sequence[int]) -> ir.Value:
        """`x` under a constant shape (which may have zeros that mean zero)."""
        zero = 0 in shape
        result: ir.Value = self.Reshape(x, self.ints(shape), allowzero=1 if zero else None)
        return result

    def unsqueeze(self, x: ir.Value, *axes: int) -> ir.Value:
        """`x` with axes of size one inserted."""
        if not axes:
            return x
        result: ir.Value = self.Unsqueeze(x, self.ints(axes))
        return result

    def squeeze(self, x: ir.Value, *axes: int) -> ir.Value:
        """`x` without the given axes of size one."""
        if not axes:
            return x
        result: ir.Value = self.Squeeze(x, self.ints(axes))
        return result

    def slice(self, x: ir.Value, axis: int, start: int, end: int, step: int = 1) -> ir.Value:
        """A constant slice along one axis."""
        result: ir.Value = self.Slice(
            x, self.ints([start]), self.ints([end]), self.ints([axis]), self.ints([step])
        )
        return result

    def reduce(self, kind: str, x: ir.Value, axes: Sequence[int], keepdims: bool = True) -> ir.Value:
        """`ReduceSum` and the like over constant axes."""
        if not axes:
            return x
        result: ir.Value = self.node(
            f"Reduce{kind}", [x, self.ints(axes)], {"keepdims": int(keepdims)}
        ).outputs[0]
        return result


def element_type(value: ir.Value | None) -> ir.DataType:
    """The element type of a tensor; declines where it is unknown."""
    if value is None or value.dtype is None:
        reject("an element type is unknown")
    return value.dtype


def static_dims(value: ir.Value | None) -> list[int]:
    """The dimensions of a value; declines where one is unknown."""
    dims = dims_of(value) if value is not None else None
    if dims is None or not all(isinstance(d, int) for d in dims):
        reject("needs a static shape")
    return [int(d) for d in dims]  # type: ignore[arg-type]


def extent(value: ir.Value | None, axis: int) -> int:
    """One dimension of a value; declines where it is unknown. The others may be open."""
    dims = dims_of(value) if value is not None else None
    if dims is None or not -len(dims) <= axis < len(dims) or not isinstance(dims[axis], int):
        reject("a dimension that has to be known is open")
    return int(dims[axis])  # type: ignore[arg-type]


def rank_of(value: ir.Value | None) -> int:
    """The rank of a value; declines where it is unknown."""
    dims = dims_of(value) if value is not None else None
    if dims is None:
        reject("needs a known rank")
    return len(dims)


def static_or_none(value: ir.Value | None) -> list[int | Dim | None] | None:
    """The dimensions as far as they are known."""
    dims = dims_of(value) if value is not None else None
    return None if dims is None else list(dims)


def contents(value: ir.Value | None) -> Array:
    """What a constant (or a value that is fully known) holds; declines for anything else."""
    if value is None:
        reject("an operand is missing")
    array = constant(value)
    if array is not None:
        return np.asarray(array)
    entries = known(value)
    require(entries is not None, f"'{value.name}' is not constant")
    assert entries is not None
    require(
        all(isinstance(e, (int, float, bool, np.generic)) for e in entries.flat),
        f"'{value.name}' is not constant",
    )
    kind = value.dtype.numpy() if value.dtype is not None else np.int64
    return np.asarray(entries.tolist(), dtype=kind).reshape(entries.shape)


def given(node: ir.Node, index: int) -> ir.Value:
    """The input at `index`; declines where it is absent."""
    value = operand(node, index)
    if value is None:
        reject(f"input {index} is missing")
    return value


def wanted(node: ir.Node, index: int) -> bool:
    """Whether the node's output at `index` is there and used."""
    if index >= len(node.outputs):
        return False
    output = node.outputs[index]
    return bool(output.name) and (bool(output.uses()) or output.is_graph_output())


def value_of(node: ir.Node, name: str, op: Draft, default: Any = None) -> Any:
    """An attribute, or the schema's default for it, or `default`."""
    own = node.attributes.get(name)
    if own is not None and not own.is_ref():
        return own.value
    if node.domain not in ("", "ai.onnx.ml"):
        return default
    try:
        found = attribute(node, name, op.opset)
    except (KeyError, onnx.defs.SchemaError):
        found = None
    return default if found is None else found
