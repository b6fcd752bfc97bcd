"""A model under construction, of which every decision is drawn by hypothesis.

What is drawn first is the simplest: hypothesis shrinks a counterexample towards the first option of each
choice, so static shapes come before symbolic ones, float32 before other types, one use before two.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import Dim, dims_of, infer_node
from onnxlathe.model import Model

T = TypeVar("T")
Array = np.ndarray[Any, np.dtype[Any]]
Size = Any
"""A number, or an expression over symbols (`onnxlathe.infer.Dim`)."""

SIZES: tuple[Mapping[str, int], ...] = ({"n": 2, "s": 3}, {"n": 5, "s": 4})
"""Sizes of the symbolic dimensions; an instance runs once with each."""

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)


class Impossible(Exception):
    """This draw leads to no valid model; another one may."""


@dataclass(frozen=True)
class Want:
    """What the user of a value asks of it. A leaf obeys; an operator does what it can.

    Attributes:
        shape: the shape it should have.
        dtype: its element type.
        exact: only this shape will do (a partner that broadcasts it to a larger one will not).
        positive: its numbers are to be greater than zero (it will be under a root, or a divisor).
        array: the very contents (axes, shapes, pads); it is then a constant.
        absent: it must be left out.
        sequence: a sequence of tensors is wanted.
    """

    shape: tuple[Size, ...] | None = None
    dtype: ir.DataType | None = None
    exact: bool = False
    positive: bool = False
    array: Array | None = None
    absent: bool = False
    sequence: bool = False


@dataclass
class Slot:
    """The place of an operand: call it with what is wanted, and it builds the value.

    Attributes:
        build: makes the value.
        weak: it is a number or a constant, which follows the shapes of others rather than setting them.
        can_be_absent: it may be left out.
    """

    build: Callable[[Want], ir.Value | None]
    weak: bool = False
    can_be_absent: bool = False

    def __call__(self, want: Want) -> ir.Value | None:
        return self.build(want)


@dataclass
class Feed:
    """How the contents of a graph input are drawn."""

    value: ir.Value
    shape: tuple[Size, ...]
    dtype: ir.DataType
    positive: bool


@dataclass
class Sketch:
    """Grows a model node by node; types and shapes are inferred as it grows.

    Attributes:
        draw: hypothesis' draw function.
        opset: version of the default operator set.
        dtype: the element type that most of it computes in.
    """

    draw: Callable[[Any], Any]
    opset: int
    dtype: ir.DataType = ir.DataType.FLOAT
    symbolic: bool = False
    nodes: list[ir.Node] = field(default_factory=list)
    feeds: list[Feed] = field(default_factory=list)
    initializers: list[ir.Value] = field(default_factory=list)
    domains: dict[str, int] = field(default_factory=dict)
    memory: dict[Any, Any] = field(default_factory=dict)
    _count: int = 0

    # Choices.

    def pick(self, *options: T) -> T:
        """One of `options`; the first is the simplest."""
        from hypothesis import strategies as st

        return options[0] if len(options) == 1 else self.draw(st.sampled_from(options))

    def chance(self, one_in: int) -> bool:
        """True once in so many draws; False is the simpler answer."""
        from hypothesis import strategies as st

        return bool(self.draw(st.integers(0, one_in - 1)) == one_in - 1)

    def subset(self, options: Sequence[T], least: int = 0) -> list[T]:
        """Some of `options`, in their order."""
        chosen = [o for o in options if self.chance(2)]
        if len(chosen) < least:
            chosen = list(options[len(options) - least :])
        return chosen

    def shape(self, least: int = 0, most: int = 4) -> tuple[Size, ...]:
        """A shape of some rank."""
        ranks = [r for r in (2, 3, 1, 4, 0, 5) if least <= r <= most]
        sizes: list[Size] = [self.pick(2, 3, 4, 1, 5) for _ in range(self.pick(*ranks))]
        if self.symbolic:
            for axis, symbol in ((0, "n"), (1, "s")):
                if axis < len(sizes) and self.chance(2):
                    sizes[axis] = Dim.parse(symbol)
        return tuple(sizes)

    def partner(self, shape: Sequence[Size], *, larger: bool = True) -> tuple[Size, ...]:
        """A shape that broadcasts with `shape`; not to a larger one unless `larger`."""
        kinds = (
            "same",
            "scalar",
            "one",
            "tail",
            "channel",
            "units",
            *(("larger", "higher") if larger else ()),
        )
        kind = self.again(("partner", larger), lambda: self.pick(*kinds))
        if kind == "channel" and len(shape) > 1:
            return (shape[1], *(1,) * (len(shape) - 2))
        if kind == "scalar":
            return ()
        if kind == "one":
            return (1,) if shape or larger else ()
        if kind == "tail":
            return tuple(shape[self.pick(*range(1, len(shape) + 1)) :]) if shape else ()
        if kind == "units":
            return tuple(1 if self.chance(2) else size for size in shape)
        if kind == "larger":
            return tuple(self.pick(3, 2) if size == 1 else size for size in shape)
        if kind == "higher" and len(shape) < 5:
            return (self.pick(2, 1), *shape)
        return tuple(shape)

    def again(self, key: Any, make: Callable[[], T]) -> T:
        """What was chosen for `key` before, mostly: the parts of a formula go along the same axes."""
        if key not in self.memory or self.chance(4):
            self.memory[key] = make()
        return self.memory[key]  # type: ignore[no-any-return]

    # Values.

    def fresh(self, stem: str) -> str:
        """A new name."""
        self._count += 1
        return f"{stem}{self._count}"

    def leaf(self, want: Want, *, constant: bool = False) -> ir.Value:
        """An input of the graph, or a constant, as wanted."""
        if want.sequence:
            raise Impossible
        if want.array is not None:
            return self.constant(want.array)
        shape = want.shape if want.shape is not None else self.shape()
        dtype = want.dtype or self.dtype
        if constant:
            # The size of a constant is a number.
            fixed = tuple(size if isinstance(size, int) else 1 for size in shape)
            return self.constant(self.contents(fixed, dtype, want.positive))
        value = ir.Value(
            name=self.fresh("x"),
            shape=ir.Shape([size if isinstance(size, int) else str(size) for size in shape]),
            type=ir.TensorType(dtype),
        )
        self.feeds.append(Feed(value, tuple(shape), dtype, want.positive))
        return value

    def contents(self, shape: Sequence[int], dtype: ir.DataType, positive: bool = False) -> Array:
        """Numbers of the order of one for a constant."""
        from hypothesis import strategies as st

        mode = self.pick("random", "same", "ones", *([] if positive else ["zeros"]))
        if mode in ("ones", "zeros"):
            return np.full(shape, mode == "ones").astype(dtype.numpy())
        random = np.random.default_rng(self.draw(st.integers(0, 99)))
        array = numbers(random, () if mode == "same" else shape, dtype, positive)
        return np.ascontiguousarray(np.broadcast_to(array, shape)).reshape(shape)

    def constant(self, array: Array) -> ir.Value:
        """A constant with these contents, as an initializer or as a node."""
        tensor = ir.Tensor(np.asarray(array))
        value = ir.Value(
            name=self.fresh("c"),
            shape=ir.Shape(tensor.shape),
            type=ir.TensorType(tensor.dtype),
        )
        if self.chance(4):
            node = ir.Node("", "Constant", (), [ir.AttrTensor("value", tensor)], outputs=[value])
            node.name = self.fresh("constant")
            self.nodes.append(node)
            infer_node(node, self.opset)
        else:
            value.const_value = tensor
            self.initializers.append(value)
        return value

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
        outputs: int = 1,
    ) -> ir.Node:
        """A node; its outputs have inferred types and shapes.

        Raises:
            Impossible: its schema does not allow this.
        """
        self._allowed(op_type, inputs, domain)
        given = {
            name: ir.AttrInt64s(name, ()) if isinstance(v, (list, tuple)) and not v else v
            for name, v in (attributes or {}).items()
            if v is not None
        }
        end = len(inputs)
        while end and inputs[end - 1] is None:
            end -= 1
        node = ir.node(op_type, inputs[:end], given, domain=domain, num_outputs=outputs)
        node.name = self.fresh(op_type.lower())
        for output in node.outputs:
            output.name = self.fresh("v")
        if domain:
            self.domains.setdefault(domain, 1)
        infer_node(node, self.opset)
        self.nodes.append(node)
        return node

    def _allowed(self, op_type: str, inputs: Sequence[ir.Value | None], domain: str) -> None:
        schema = schema_of(op_type, self.opset, domain)
        if schema is None:
            if domain == "":
                raise Impossible
            return
        if len([v for v in inputs if v is not None]) > schema.max_input:
            raise Impossible
        seen: dict[str, str] = {}
        for index, value in enumerate(inputs):
            if value is None or value.dtype is None:
                continue
            formal = schema.inputs[min(index, len(schema.inputs) - 1)]
            kind = _TYPE_NAMES.get(value.dtype)
            if kind is None or isinstance(value.type, ir.SequenceType):
                continue
            if kind not in formal.types or seen.setdefault(formal.type_str, kind) != kind:
                raise Impossible

    def dims(self, value: ir.Value) -> tuple[Size, ...]:
        """The shape of a value that was built.

        Raises:
            Impossible: it is not known, so nothing valid can be built on it.
        """
        dims = dims_of(value)
        if dims is None or any(d is None for d in dims):
            raise Impossible
        return tuple(dims)

    def model(self, outputs: Sequence[ir.Value]) -> Model:
        """The finished model."""
        graph = ir.Graph(
            [feed.value for feed in self.feeds],
            list(dict.fromkeys(outputs)),
            nodes=self.nodes,
            initializers=self.initializers,
            opset_imports={"": self.opset, **self.domains},
            name="instance",
        )
        return Model(ir.Model(graph, ir_version=10 if self.opset < 24 else 11))

    def inputs_for(self, sizes: Mapping[str, int], seed: int, scale: float = 1.0) -> dict[str, Array]:
        """Contents of the graph's inputs, of the order of `scale`."""
        found = {}
        for feed in self.feeds:
            shape = [concrete(size, sizes) for size in feed.shape]
            name = feed.value.name or ""
            random = np.random.default_rng([seed, zlib.crc32(name.encode())])
            array = numbers(random, shape, feed.dtype, feed.positive)
            if scale != 1 and feed.dtype.is_floating_point():
                array = (array * scale).astype(array.dtype)
            found[name] = array
        return found


def wanted(want: Want, **changes: Any) -> Want:
    """`want` with some of it changed."""
    return replace(want, **changes)


def concrete(size: Size, sizes: Mapping[str, int]) -> int:
    """An extent as a number.

    Raises:
        Impossible: it is none, or a negative one.
    """
    number = size if isinstance(size, int) else size.substitute(sizes)
    if not isinstance(number, int) or number < 0:
        raise Impossible
    return number


def numbers(
    random: np.random.Generator, shape: Sequence[int], dtype: ir.DataType, positive: bool = False
) -> Array:
    """Numbers of the order of one with few digits, so that a counterexample can be read."""
    if dtype == ir.DataType.BOOL:
        return np.asarray(random.integers(0, 2, shape)).astype(bool)
    if not dtype.is_floating_point():
        low = 1 if positive or not dtype.is_signed() else -4
        return np.asarray(random.integers(low, 6, shape)).astype(dtype.numpy())
    array = np.asarray(random.standard_normal(shape) * 1.5)
    array = np.abs(array) + 0.25 if positive else array
    # Half-integers and integers in between: where roundings and thresholds happen.
    plain = np.asarray(random.random(shape)) < 0.15
    array = np.where(plain, np.round(array * 2) / 2 + (0.5 if positive else 0), np.round(array, 2))
    return np.asarray(array).astype(dtype.numpy())


def schema_of(op_type: str, opset: int, domain: str = "") -> Any:
    """The operator's schema, or `None`."""
    import onnx

    try:
        return onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None


_TYPE_NAMES = {
    kind: f"tensor({'bool' if kind == ir.DataType.BOOL else name})"
    for kind, name in {
        ir.DataType.FLOAT: "float",
        ir.DataType.DOUBLE: "double",
        ir.DataType.FLOAT16: "float16",
        ir.DataType.BFLOAT16: "bfloat16",
        ir.DataType.INT8: "int8",
        ir.DataType.INT32: "int32",
        ir.DataType.INT64: "int64",
        ir.DataType.UINT8: "uint8",
        ir.DataType.BOOL: "bool",
    }.items()
}
