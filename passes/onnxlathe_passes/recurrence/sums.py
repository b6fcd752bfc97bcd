"""What a gate of a cell adds up: products of values with constant matrices, and biases.

However an exporter writes it (one product for all gates or one each, of the input and the state side by side
or apart, before or after time is cut into steps), some columns of a sum are read off: which value is
multiplied by which part of which weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import constant, dims_of
from onnxlathe.rewrite import attribute, is_constant, reject, require, scalar_value
from onnxlathe_passes.conditions import Array, operand, producer, rank
from onnxlathe_passes.recurrence.places import Place, Scope, indices, last_axis, rows
from onnxlathe_passes.slices import cuts
from onnxlathe_passes.weights import tensor_of

_DEEP = 40

Columns = tuple[int, int]


@dataclass(frozen=True)
class Matrix:
    """A part of a constant weight, times a factor.

    Attributes:
        value: the constant.
        turned: whether its rows are the outputs, as in a Gemm with transB.
        rows: from which to which input.
        columns: from which to which output.
    """

    value: ir.Value
    turned: bool
    rows: Columns
    columns: Columns
    factor: float = 1.0

    @property
    def key(self) -> tuple[Any, ...]:
        """What matrices are ordered by, the same in every step."""
        return str(self.value.name), self.rows, self.columns

    def array(self) -> Array:
        """The numbers: one row for each input, one column for each output."""
        whole = tensor_of(self.value).numpy()
        whole = whole.reshape(whole.shape[-2:])
        whole = whole.T if self.turned else whole
        part = whole[slice(*self.rows), slice(*self.columns)]
        return part * part.dtype.type(self.factor) if self.factor != 1 else part


@dataclass(frozen=True)
class Bias:
    """Columns of a constant that is the same for all rows, times a factor."""

    value: ir.Value
    columns: Columns
    factor: float = 1.0

    @property
    def key(self) -> tuple[Any, ...]:
        return str(self.value.name), self.columns, self.factor

    def array(self) -> Array:
        """The numbers, one for each column, in double precision."""
        whole = tensor_of(self.value).numpy().astype(np.float64)
        row = whole.reshape(-1, whole.shape[-1])[0] if whole.ndim else whole.reshape(1)
        start, stop = self.columns
        part = np.broadcast_to(row, stop - start) if row.size == 1 else row[start:stop]
        return part * self.factor


@dataclass(frozen=True)
class Term:
    """A value times a matrix.

    Attributes:
        near: the value itself, bare; `None` where the product was made for all steps at once.
        place: where the value comes from.
    """

    near: ir.Value | None
    place: Place
    matrix: Matrix


@dataclass
class Sum:
    """Some columns of a value, as terms, biases, and products of two values of the step.

    Attributes:
        products: the two factors of each, columns of which are meant.
    """

    terms: list[Term] = field(default_factory=list)
    biases: list[Bias] = field(default_factory=list)
    products: list[tuple[ir.Value, ir.Value, Columns]] = field(default_factory=list)

    def negated(self) -> Sum:
        """The sum times -1."""
        require(not self.products, "a product of two values cannot be turned around")
        terms = [replace(t, matrix=replace(t.matrix, factor=-t.matrix.factor)) for t in self.terms]
        return Sum(terms, [replace(b, factor=-b.factor) for b in self.biases])

    def bias(self, width: int) -> Array:
        """All biases together."""
        return sum((b.array() for b in self.biases), np.zeros(width))


def sum_of(scope: Scope, value: ir.Value, columns: Columns) -> Sum:
    """Some columns of a value as a sum.

    Raises:
        NoMatch: it is something else.
    """
    found = Sum()
    _Reader(scope, found).add(Place(value), columns, 1.0, 0)
    return found


class _Reader:
    def __init__(self, scope: Scope, found: Sum) -> None:
        self.scope = scope
        self.found = found

    def add(self, at: Place, columns: Columns, factor: float, depth: int) -> None:
        """Take in the columns of a value, or of what stands at a position along one of its axes."""
        value = self.scope.real(at.value)
        at = Place(value, at.axis, at.index)
        if is_constant(value):
            self.bias(value, columns, factor)
            return
        node = value.producer()
        require(node is not None and node.domain == "" and depth < _DEEP, "a gate is no sum of products")
        assert node is not None
        if node.op_type in ("Add", "Sub"):
            for index, summand in enumerate(node.inputs):
                assert summand is not None
                sign = -1.0 if index and node.op_type == "Sub" else 1.0
                self.add(self.aligned(summand, at), columns, factor * sign, depth + 1)
        elif node.op_type == "Neg":
            self.add(self.aligned(_operand(node, 0), at), columns, -factor, depth + 1)
        elif node.op_type == "Mul":
            self.product(node, at, columns, factor, depth)
        elif node.op_type == "MatMul":
            self.matmul(node, at, columns, factor)
        elif node.op_type == "Gemm":
            self.gemm(node, at, columns, factor, depth)
        elif node.op_type in ("Split", "Slice", "Gather", "Concat") and last_axis(node, self.scope.opset):
            x, inner = selected(node, value, columns, self.scope.opset)
            self.add(Place(x, at.axis, at.index), inner, factor, depth + 1)
        elif (flat := self.grouped(node, at, columns)) is not None:
            self.add(Place(_operand(node, 0)), flat, factor, depth + 1)
        else:
            above = self.scope.above(at)
            require(above is not None, "a gate is no sum of products")
            assert above is not None
            dims = dims_of(above.value)
            require(
                above.axis is None or (dims is not None and above.axis < len(dims) - 1),
                "time is the last axis of a product",
            )
            self.add(above, columns, factor, depth + 1)

    def grouped(self, node: ir.Node, at: Place, columns: Columns) -> Columns | None:
        """Columns of the operand of a Reshape that gives the gates an axis of their own, before the last one."""
        before, after = dims_of(_operand(node, 0)), dims_of(at.value)
        if node.op_type != "Reshape" or not before or not after or at.axis != len(after) - 2:
            return None
        count, width, index = after[-2], after[-1], at.index
        whole = _same(rows(_operand(node, 0)), rows(at.value, at.axis))
        if (
            not isinstance(width, int)
            or not isinstance(count, int)
            or not isinstance(index, int)
            or not whole
        ):
            return None
        start = (index + count if index < 0 else index) * width
        return (columns[0] + start, columns[1] + start) if before[-1] == count * width else None

    def aligned(self, operand: ir.Value, at: Place) -> Place:
        """The same place in an operand of an elementwise operator, whose rows must be those of the result."""
        if is_constant(self.scope.real(operand)):
            return Place(operand)
        ours, theirs = dims_of(operand), dims_of(at.value)
        if ours is None or theirs is None or ours[-1:] != theirs[-1:]:
            reject("a summand of a gate is broadcast")
        axis = None if at.axis is None else at.axis - (len(theirs) - len(ours))
        if axis is None or axis < 0:
            left_out = () if at.axis is None else (at.axis,)
            require(_same(rows(operand), rows(at.value, *left_out)), "a summand of a gate is broadcast")
            return Place(operand)
        same = ours[axis] == theirs[at.axis] and _same(rows(operand, axis), rows(at.value, at.axis))  # type: ignore[index,arg-type]
        require(same, "a summand of a gate is broadcast")
        return Place(operand, axis, at.index)

    def bias(self, value: ir.Value, columns: Columns, factor: float) -> None:
        dims = dims_of(value)
        require(dims is not None and all(isinstance(d, int) for d in dims), "a bias has no known shape")
        assert dims is not None
        if any(d != 1 for d in dims[:-1]):
            array = constant(value)
            require(array is not None and array.size > 0, "what is added is no bias")
            assert array is not None
            flat = array.reshape(-1, array.shape[-1])
            require(bool((flat == flat[:1]).all()), "what is added is no bias")
        width = dims[-1] if dims else 1
        require(width == 1 or columns[1] <= width, "a bias is too short")  # type: ignore[operator]
        self.found.biases.append(Bias(value, columns, factor))

    def product(self, node: ir.Node, at: Place, columns: Columns, factor: float, depth: int) -> None:
        left, right = _operand(node, 0), _operand(node, 1)
        for scale, other in ((left, right), (right, left)):
            by = scalar_value(self.scope.real(scale))
            if by is not None:
                self.add(self.aligned(other, at), columns, factor * by, depth + 1)
                return
        require(at.axis is None and factor == 1, "a gate is no sum of products")
        self.found.products.append((left, right, columns))

    def matmul(self, node: ir.Node, at: Place, columns: Columns, factor: float) -> None:
        x, weight = _operand(node, 0), self.scope.real(_operand(node, 1))
        inputs = _weight_dims(weight)[0]
        require(rank(x) == rank(at.value), "a product changes the rank")
        self.term(Place(x, at.axis, at.index), Matrix(weight, False, (0, inputs), columns, factor))

    def gemm(self, node: ir.Node, at: Place, columns: Columns, factor: float, depth: int) -> None:
        opset = self.scope.opset
        require(not attribute(node, "transA", opset) and at.axis is None, "a Gemm turns its left operand")
        weight = self.scope.real(_operand(node, 1))
        turned = bool(attribute(node, "transB", opset))
        dims = _weight_dims(weight)
        scale = factor * float(attribute(node, "alpha", opset))
        matrix = Matrix(weight, turned, (0, dims[1 if turned else 0]), columns, scale)
        self.term(Place(_operand(node, 0)), matrix)
        added = operand(node, 2)
        if added is not None:
            beta = float(attribute(node, "beta", opset))
            self.add(self.aligned(added, at), columns, factor * beta, depth + 1)

    def term(self, at: Place, matrix: Matrix) -> None:
        """A product with what is multiplied; of values side by side, one for each."""
        value = self.scope.real(at.value)
        joined = producer(value, "Concat")
        if joined is not None and at.axis is None and last_axis(joined, self.scope.opset):
            start = matrix.rows[0]
            for part in joined.inputs:
                assert part is not None
                dims = dims_of(part)
                width = dims[-1] if dims else None
                if not isinstance(width, int):
                    reject("a part of what is multiplied has no known size")
                inner = replace(matrix, rows=(start, start + width))
                self.term(Place(part, at.axis, at.index), inner)
                start += width
        elif at.axis is None:
            near = self.scope.bare(value)
            self.found.terms.append(Term(near, self.scope.place(value), matrix))
        else:
            place = self.scope.uncut(Place(value, at.axis, at.index))
            self.found.terms.append(Term(None, place, matrix))


def selected(node: ir.Node, value: ir.Value, columns: Columns, opset: int) -> tuple[ir.Value, Columns]:
    """The operand of a Split, Slice, Gather or Concat along the last axis, and which columns of it are meant.

    Raises:
        NoMatch: they are not side by side there.
    """
    x = _operand(node, 0)
    start: Any = 0
    if node.op_type == "Concat":
        for part in node.inputs:
            dims = dims_of(part) if part is not None else None
            width = dims[-1] if dims else None
            if part is None or not isinstance(width, int):
                break
            if start <= columns[0] and columns[1] <= start + width:
                return part, (columns[0] - start, columns[1] - start)
            start += width
        reject("a gate lies in several parts")
    if node.op_type == "Split":
        for output in node.outputs:
            if output is value:
                break
            dims = dims_of(output)
            width = dims[-1] if dims else None
            if not isinstance(width, int):
                reject("a part of a Split has no known size")
            start += width
    elif node.op_type == "Slice":
        found = cuts(node, opset) or {}
        cut = next(iter(found.values())).normal((dims_of(x) or (None,))[-1])
        require(cut is not None and cut.step == 1, "a gate is cut in steps")
        assert cut is not None
        start = cut.start
    else:
        places = indices(operand(node, 1))
        require(places is not None, "columns of a gate are gathered")
        assert places is not None
        start = places[0]
    return x, (columns[0] + start, columns[1] + start)


def _operand(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        reject("an operand is left out")
    return value


def _weight_dims(weight: ir.Value) -> tuple[int, int]:
    """Rows and columns of a constant matrix (which may have axes of size 1 before them)."""
    dims = dims_of(weight) if is_constant(weight) else None
    if dims is None or len(dims) < 2 or any(d != 1 for d in dims[:-2]):
        reject("a weight is not a constant matrix")
    first, second = dims[-2:]
    if not isinstance(first, int) or not isinstance(second, int):
        reject("a weight is not a constant matrix")
    return first, second


def _same(a: Sequence[Any] | None, b: Sequence[Any] | None) -> bool:
    return a is not None and b is not None and None not in a and list(a) == list(b)
