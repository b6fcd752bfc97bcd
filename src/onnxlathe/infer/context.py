"""What an operator's rule sees of a node, and how it says what it found.

A rule is a function of one :class:`NodeContext`. It reads facts about inputs (``dims``, ``dtype``,
``content``, attributes), and states facts about outputs with :meth:`NodeContext.out`. Rules never raise for a
strange node on purpose; where one does, the engine notes it and goes on.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxlathe.infer.contents import MAX_ENTRIES, Content, settle
from onnxlathe.infer.dims import Dim, DimLike, Dims, Expr, lower
from onnxlathe.infer.values import FRESH, content_of, dims_of, refine, static_size

if TYPE_CHECKING:
    from onnxlathe.infer.engine import Engine

__all__ = ["RULES", "NodeContext", "Rule", "broadcast", "product", "rule"]


class NodeContext:
    """One node under inference: facts about its inputs, attributes, and where to put the outputs' facts."""

    __slots__ = ("attributes", "changed", "engine", "inputs", "node", "opset", "outputs")

    def __init__(self, engine: Engine, node: ir.Node, opset: int) -> None:
        self.engine = engine
        self.node = node
        self.opset = opset
        self.inputs: Sequence[ir.Value | None] = node.inputs
        self.outputs: Sequence[ir.Value] = node.outputs
        self.attributes: dict[str, ir.Attr] = node.attributes.data
        self.changed = False

    # Inputs.

    def has(self, index: int) -> bool:
        """Whether the (optional) input is there."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def dims(self, index: int) -> Dims | None:
        """Dimensions of an input; None when it is missing or of unknown rank."""
        if index >= len(self.inputs):
            return None
        value = self.inputs[index]
        return None if value is None else dims_of(value)

    def dtype(self, index: int) -> ir.DataType | None:
        """Element type of an input; None when it is missing or unknown."""
        if index >= len(self.inputs):
            return None
        value = self.inputs[index]
        if value is None:
            return None
        kind = value.type
        if kind is None:
            return None if value.const_value is None else value.const_value.dtype
        dtype = kind.dtype
        return None if dtype == ir.DataType.UNDEFINED else dtype

    def content(self, index: int) -> Content | None:
        """The known content of an input."""
        if index >= len(self.inputs):
            return None
        value = self.inputs[index]
        return None if value is None else content_of(value)

    def entries(self, index: int) -> list[Any] | None:
        """The known content of an input, flattened; a list of None when only its static length is known."""
        content = self.content(index)
        if content is not None:
            return content.reshape(-1).tolist()
        size = static_size(self.dims(index))
        return None if size is None or size > MAX_ENTRIES else [None] * size

    def numbers(self, index: int) -> list[int] | None:
        """The content of an integer input where every entry is a number."""
        content = self.content(index)
        if content is None:
            return None
        entries = content.reshape(-1).tolist()
        return entries if all(type(e) is int for e in entries) else None

    def scalar(self, index: int) -> Any:
        """The only entry of an input's content; None where it is not known."""
        content = self.content(index)
        return content.reshape(-1)[0] if content is not None and content.size == 1 else None

    # Attributes. References to a function's attributes are bound by the engine before rules see the node.

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute's value, or the default where it is absent."""
        attribute = self.attributes.get(name)
        if attribute is None:
            return default
        if attribute.is_ref():
            return self.engine.attribute(attribute.ref_attr_name, default)
        return attribute.value

    def axes(self, index: int, since: int) -> list[int] | bool | None:
        """Axes from the attribute (before opset ``since``) or the input at ``index``.

        Returns:
            The axes; None when absent; False when they are not known.
        """
        if self.opset < since or "axes" in self.attributes:
            axes = self.attr("axes")
            return None if axes is None else list(axes)
        if not self.has(index):
            return None
        numbers = self.numbers(index)
        return False if numbers is None else numbers

    # Outputs.

    def out(
        self,
        index: int,
        dtype: ir.DataType | None,
        dims: Iterable[DimLike] | None = None,
        content: Content | None = None,
    ) -> None:
        """States facts about an output; does nothing for an output that the node does not have.

        An unknown dimension gets a made-up name where the engine allows it, so that it can be recognised
        further down.
        """
        if index >= len(self.outputs):
            return
        value = self.outputs[index]
        if content is not None:
            content = settle(content, dtype)
            if content is not None and dims is None:
                dims = content.shape
        if dims is not None:
            dims = tuple(dims)
            if None in dims:
                dims = tuple([self.fresh(value, axis) if d is None else d for axis, d in enumerate(dims)])
        if self.engine.journal is not None:
            self.engine.remember(value)
        if refine(value, dtype, dims, content, self.engine.note):
            self.changed = True

    def fresh(self, value: ir.Value, axis: int) -> Dim | None:
        """A symbol for a dimension that only a run decides, named for the value; None where not allowed.

        Inside loops and functions one value has many sizes, so no name may stand for it.
        """
        name = value.name
        if not self.engine.allow_fresh or not name:
            return None
        safe = "".join(c if c.isalnum() or c == "_" else "_" for c in name).strip("_")
        if safe != name:
            safe = f"{safe}_{zlib.crc32(name.encode()):08x}"
        symbol = f"{FRESH}{safe}.d{axis}"
        self.engine.symbols.add(symbol)
        return Dim(symbol)


Rule = Callable[[NodeContext], None]
RULES: dict[tuple[str, str], Rule] = {}


def rule(operators: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Registers a function as the inference rule of operators (their names, separated by blanks)."""

    def register(function: Rule) -> Rule:
        for operator in operators.split():
            RULES[domain, operator] = function
        return function

    return register


def broadcast_dim(a: DimLike, b: DimLike) -> DimLike:
    """One dimension of two tensors that are broadcast together, in a valid model.

    A size meets a number n > 1: it is n or 1, and the result n. Two different sizes: nothing is known, unless
    one is certainly 2 or more, or one is the other cut at such a number: ``min(512, s)`` with ``s`` gives
    ``s``, for the first is 1 only where ``s`` is.
    """
    if a == b:
        return a
    if type(a) is int:
        return b if a == 1 else a
    if type(b) is int:
        return a if b == 1 else b
    for one in (a, b):
        if one is not None:
            low = lower(one)
            if low is not None and low >= 2:
                return one
    if a is None or b is None:
        return None
    whole_a, whole_b = _uncut(a), _uncut(b)
    if whole_a == whole_b:
        return b if whole_b == b else a
    return None


def _uncut(dim: Expr) -> Expr:
    """``x`` for ``min(n, x)`` with a number n >= 2: it is 1 where x is, and only there."""
    if isinstance(dim, Dim):
        call = dim.call
        if call is not None and call.kind == "min" and len(call.args) == 2:
            for number, whole in (call.args, call.args[::-1]):
                if isinstance(number, int) and number >= 2:
                    return whole
    return dim


def broadcast(*shapes: Dims | None) -> Dims | None:
    """The shape of several tensors broadcast together; None when a rank is unknown."""
    result: Dims | None = None
    for dims in shapes:
        if dims is None:
            return None
        if result is None or result == dims:
            result = dims
            continue
        short, long = (result, dims) if len(result) < len(dims) else (dims, result)
        offset = len(long) - len(short)
        result = (
            *long[:offset],
            *[broadcast_dim(a, b) for a, b in zip(long[offset:], short, strict=True)],
        )
    return result


def product(dims: Iterable[DimLike]) -> Expr | None:
    """The number of elements; None when a dimension is unknown."""
    total: Expr = 1
    unknown = False
    for dim in dims:
        if dim is None:
            unknown = True
        elif type(dim) is int and dim == 0:
            return 0
        else:
            total = total * dim
    return None if unknown else total


def normal_axis(axis: int, rank: int) -> int | None:
    """An axis counted from the front, or None when it lies outside of the rank."""
    if axis < 0:
        axis += rank
    return axis if 0 <= axis < rank else None
