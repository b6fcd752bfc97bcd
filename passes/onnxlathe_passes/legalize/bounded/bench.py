"""Where nodes for tensors of run-time size are made: counts, masks, order, and the sizes themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import Dim, Expr, constant, dims_of, infer_node, known
from onnxlathe.infer.dims import from_terms
from onnxlathe.infer.values import KNOWN
from onnxlathe_passes.legalize.bounded.folding import folded
from onnxlathe_passes.legalize.bounded.ragged import Extent, Operand, Ragged, Unsupported, whole_dims
from onnxlathe_passes.legalize.draft import Draft

T = ir.DataType


class Bench:
    """Where the nodes are made; knows the extents of the graph.

    Args:
        op: makes the nodes.
        graph: the main graph, whose inputs have the open dimensions.
    """

    def __init__(self, op: Draft, graph: ir.Graph) -> None:
        self.op = op
        self.ragged: dict[ir.Value, Ragged] = {}
        self._roots: dict[str, Extent] = {}
        self._derived: dict[Any, Extent] = {}
        self._open = {
            str(d): (v, axis)
            for v in graph.inputs
            for axis, d in enumerate(dims_of(v) or ())
            if isinstance(d, Dim) and d.is_symbol
        }

    # --- What is known of the model as it was ----------------------------------------------------------

    def operands(self, node: ir.Node) -> list[Operand]:
        """The node's inputs, those of run-time size as such."""
        return [None if v is None else self.ragged.get(v, v) for v in node.inputs]

    def fail(self, reason: str, *operands: Operand | Extent) -> NoReturn:
        """Give up on what the operands come from."""
        roots: frozenset[ir.Node] = frozenset()
        for operand in operands:
            extent = operand.extent if isinstance(operand, Ragged) else operand
            if isinstance(extent, Extent):
                roots |= extent.roots
        raise Unsupported(reason, roots)

    def dims(self, value: ir.Value) -> list[Expr]:
        """The dimensions that a value of the model as it was has; all must be known."""
        return whole_dims(value, self.roots_of(dims_of(value) or ()) or self.all_roots())

    def whole(self, operand: Operand) -> list[Expr]:
        """The dimensions of an operand, with all candidates."""
        assert operand is not None
        return operand.dims if isinstance(operand, Ragged) else self.dims(operand)

    def entries(self, value: ir.Value | None) -> list[Any] | None:
        """What a small tensor of shape arithmetic holds, flat; None where it is unknown."""
        content = None if value is None else known(value)
        return None if content is None else content.reshape(-1).tolist()

    def all_roots(self) -> frozenset[ir.Node]:
        """The nodes that all sizes come from."""
        return frozenset(r for e in self._roots.values() for r in e.roots)

    def depends(self, dim: Any) -> bool:
        """Whether a dimension depends on one of the run-time sizes."""
        return isinstance(dim, Dim) and not dim.symbols.isdisjoint(self._roots)

    def roots_of(self, dims: Iterable[Any]) -> frozenset[ir.Node]:
        """The nodes that dimensions depend on."""
        names = {s for d in dims if isinstance(d, Dim) for s in d.symbols}
        return frozenset(r for s in names & self._roots.keys() for r in self._roots[s].roots)

    # --- Extents ---------------------------------------------------------------------------------------

    def root(self, node: ir.Node, output: int, axis: int, extent: Extent) -> Extent:
        """Register the size of an output of a source under the name that inference gave it."""
        dims = dims_of(node.outputs[output]) or ()
        size = dims[axis] if axis < len(dims) else None
        if not isinstance(size, Dim) or not size.is_symbol:
            raise Unsupported("its size has no name", extent.roots)
        extent.size = size
        self._roots[str(size)] = extent
        return extent

    def alias(self, size: Expr, extent: Extent) -> None:
        """Another name for the size of an extent."""
        if isinstance(size, Dim) and size.is_symbol:
            self._roots.setdefault(str(size), extent)

    def bound(self, size: Expr) -> Expr:
        """The most that an expression of run-time sizes can be, or somewhat more."""
        if not isinstance(size, Dim):
            return size
        bounds = {s: self._roots[s].bound for s in size.symbols & self._roots.keys()}
        total: Expr = 0
        for monomial, coefficient in size.terms:
            if not bounds.keys() & _symbols(monomial):
                continue
            if not all(_grows(atom, bounds.keys()) for atom in monomial):
                raise Unsupported(f"the size {size} has no bound", self.roots_of([size]))
            if coefficient > 0:  # what is taken off is not negative
                total = total + _term(monomial, coefficient).substitute(bounds)
        for monomial, coefficient in size.terms:
            if not bounds.keys() & _symbols(monomial):
                total = total + (_term(monomial, coefficient) if monomial else coefficient)
        return total

    def extent_of(self, size: Expr) -> Extent:
        """An extent of a size: a root, or as many as an expression says, at the front."""
        if isinstance(size, Dim) and size.is_symbol and str(size) in self._roots:
            return self._roots[str(size)]
        if size not in self._derived:
            bound = self.bound(size)
            valid = self.op.Less(self.numbers(bound), self.sized(size, counting=True))
            self._derived[size] = Extent(valid, bound, size, self.roots_of([size]), packed=True)
        return self._derived[size]

    def derived(self, key: Any, make: Callable[[], Extent]) -> Extent:
        """The extent under a key, made the first time."""
        if key not in self._derived:
            self._derived[key] = make()
        return self._derived[key]

    def front(self, extent: Extent) -> Extent:
        """The same size with those that count at the front."""
        if extent.packed:
            return extent
        if "front" not in extent.made:
            valid = self.op.Less(self.numbers(extent.bound), self.count(extent))
            extent.made["front"] = Extent(valid, extent.bound, extent.size, extent.roots, packed=True)
        return extent.made["front"]  # type: ignore[no-any-return]

    # --- Numbers at run time ---------------------------------------------------------------------------

    def sized(self, size: Expr, *, counting: bool = False) -> ir.Value:
        """An expression as int64 [1]; run-time sizes as their bounds, or, `counting`, as they are."""
        op = self.op
        if not isinstance(size, Dim):
            return op.ints([size])
        total: ir.Value | None = None
        for monomial, coefficient in size.terms:
            product = op.ints([coefficient]) if coefficient != 1 or not monomial else None
            for atom in monomial:
                factor = self._atom(atom, counting)
                product = factor if product is None else op.Mul(product, factor)
            total = product if total is None else op.Add(total, product)
        assert total is not None
        return total

    def _atom(self, atom: Any, counting: bool) -> ir.Value:
        if isinstance(atom, str):
            if atom in self._roots:
                root = self._roots[atom]
                return self.count(root) if counting else self.sized(root.bound)
            if atom not in self._open:
                raise Unsupported(f"the size {atom} is not that of an input", self.all_roots())
            value, axis = self._open[atom]
            size: ir.Value = self.op.Shape(value, start=axis, end=axis + 1)
            return size
        arguments = [self.sized(a, counting=counting) for a in atom.args]
        operator = {"//": "Div", "mod": "Mod", "max": "Max", "min": "Min", "mul": "Mul"}[atom.kind]
        result = arguments[0]
        for other in arguments[1:]:
            result = self.op.node(operator, [result, other]).outputs[0]
        return result

    def shape(self, dims: Sequence[Expr]) -> ir.Value:
        """A shape as int64 [rank]."""
        if all(isinstance(d, int) for d in dims):
            return self.op.ints([int(d) for d in dims])  # type: ignore[arg-type]
        parts = [self.sized(d) for d in dims]
        return parts[0] if len(parts) == 1 else self.op.Concat(*parts, axis=0)

    def numbers(self, bound: Expr) -> ir.Value:
        """0, 1, 2, ... as int64 [bound]."""
        if isinstance(bound, int):
            return self.op.constant(np.arange(bound, dtype=np.int64))
        end = self.op.squeeze(self.sized(bound), 0)
        result: ir.Value = self.op.Range(self.op.constant(np.int64(0)), end, self.op.constant(np.int64(1)))
        return result

    def count(self, extent: Extent) -> ir.Value:
        """How many count, int64 [1]."""
        if "count" not in extent.made:
            ones = self.op.cast(extent.valid, T.INT64)
            extent.made["count"] = self.op.reduce("Sum", ones, [0])
        return extent.made["count"]  # type: ignore[no-any-return]

    def places(self, extent: Extent) -> ir.Value:
        """The place of each candidate among those that count, int64 [bound]."""
        if extent.packed:
            return self.numbers(extent.bound)
        if "places" not in extent.made:
            before = self.op.CumSum(self.op.cast(extent.valid, T.INT64), self.op.constant(np.int64(0)))
            extent.made["places"] = self.op.Sub(before, self.op.ints([1]))
        return extent.made["places"]  # type: ignore[no-any-return]

    def order(self, extent: Extent, places: ir.Value | None = None) -> ir.Value:
        """The candidates in order, those that count first: int64 [bound].

        Args:
            extent: the size.
            places: where each candidate that counts goes; by default they keep their order.
        """
        if "order" not in extent.made or places is not None:
            op = self.op
            others = op.CumSum(op.cast(op.Not(extent.valid), T.INT64), op.constant(np.int64(0)))
            behind = op.Sub(op.Add(self.count(extent), others), op.ints([1]))
            target = op.Where(extent.valid, self.places(extent) if places is None else places, behind)
            numbers = self.numbers(extent.bound)
            extent.made["order"] = op.ScatterElements(numbers, target, numbers, axis=0)
        return extent.made["order"]  # type: ignore[no-any-return]

    # --- Tensors of run-time size ----------------------------------------------------------------------

    def packed(self, ragged: Ragged) -> Ragged:
        """With the rows that count at the front, in their order."""
        if ragged.extent.packed:
            return ragged
        moved = self.op.Gather(ragged.value, self.order(ragged.extent), axis=ragged.axis)
        return Ragged(moved, ragged.axis, self.front(ragged.extent))

    def mask(self, ragged: Ragged) -> ir.Value:
        """Which elements count, to be broadcast with the value."""
        others = [i for i in range(ragged.rank) if i != ragged.axis]
        return self.op.unsqueeze(ragged.extent.valid, *others)

    def masked(self, ragged: Ragged, fill: Any) -> ir.Value:
        """The candidates with `fill` in the place of those that do not count."""
        op, mask = self.op, self.mask(ragged)
        if ragged.value.dtype == T.BOOL:
            result: ir.Value = op.Or(ragged.value, op.Not(mask)) if fill else op.And(ragged.value, mask)
            return result
        filled: ir.Value = op.Where(mask, ragged.value, op.like(fill, ragged.value))
        return filled

    def where(self, condition: ir.Value, then: ir.Value, other: ir.Value) -> ir.Value:
        """Where, also of booleans, for which ONNX Runtime has none."""
        op = self.op
        if then.dtype == T.BOOL:
            either: ir.Value = op.Or(op.And(condition, then), op.And(op.Not(condition), other))
            return either
        result: ir.Value = op.Where(condition, then, other)
        return result

    def aligned(self, ragged: Sequence[Ragged], *, trust: bool = False) -> list[Ragged]:
        """The same with one extent for all.

        Args:
            ragged: of one size; they may be arranged differently.
            trust: take it that they are of one size, as the operator demands it of a valid model.
        """
        first = ragged[0].extent
        if all(r.extent is first for r in ragged):
            return list(ragged)
        if not trust and any(r.extent.size != first.size for r in ragged):
            self.fail("results of two run-time sizes meet", *ragged)
        moved = [self.packed(r) for r in ragged]
        bounds = {r.extent.bound for r in moved}
        if len(bounds) > 1:
            if not all(isinstance(b, int) for b in bounds):
                self.fail("results of two run-time sizes meet", *ragged)
            least = min(moved, key=lambda r: int(r.extent.bound)).extent  # type: ignore[arg-type]
            moved = [self._cut(r, least) for r in moved]
        return [Ragged(r.value, r.axis, moved[0].extent) for r in moved]

    def _cut(self, ragged: Ragged, extent: Extent) -> Ragged:
        if ragged.extent.bound == extent.bound:
            return ragged
        end = int(extent.bound)  # type: ignore[arg-type]
        return Ragged(self.op.slice(ragged.value, ragged.axis, 0, end), ragged.axis, extent)

    def index(self, ragged: Ragged, sizes: Sequence[Expr]) -> ir.Value:
        """Candidates that are used as indices: those that do not count point at 0.

        Args:
            ragged: the indices.
            sizes: how large they may be, for each of the last axis, or one for all.
        """
        array = constant(ragged.value, 1 << 28)
        if array is not None and all(isinstance(n, int) for n in sizes):
            limits: Any = sizes if len(sizes) > 1 else sizes[0]
            places = array.astype(np.int64)
            if ((places >= 0) & (places < np.asarray(limits, dtype=np.int64))).all():
                return ragged.value
        return self.masked(ragged, 0)

    # --- Nodes -----------------------------------------------------------------------------------------

    def apply(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> list[ir.Value]:
        """The node's operator on other inputs; a constant where all of them are."""
        made = ir.Node(
            node.domain, node.op_type, list(inputs), list(node.attributes.values()),
            num_outputs=len(node.outputs), version=node.version,
        )  # fmt: skip
        for mine, theirs in zip(made.outputs, node.outputs, strict=True):
            mine.type = theirs.type
            if not theirs.name:
                mine.name = ""
        constants = folded(made, self.op.opset)
        if constants is not None:
            for index in range(len(made.inputs)):
                made.replace_input_with(index, None)
            return [self.op.constant(array) for array in constants]
        infer_node(made, self.op.opset)
        self.op.nodes.append(made)
        return list(made.outputs)

    def like(self, value: ir.Value, original: ir.Value) -> ir.Value:
        """`value`, which stands for `original`, with what is known of that one's contents."""
        content = known(original)
        if content is not None:
            value.meta[KNOWN] = content
        return value


def _term(monomial: tuple[Any, ...], coefficient: int) -> Dim:
    return from_terms({monomial: coefficient})  # type: ignore[return-value]


def _symbols(atoms: Iterable[Any]) -> set[str]:
    """The names in a product."""
    found: set[str] = set()
    for atom in atoms:
        if isinstance(atom, str):
            found.add(atom)
        else:
            found.update(s for a in atom.args if isinstance(a, Dim) for s in a.symbols)
    return found


def _grows(atom: Any, names: Iterable[str]) -> bool:
    """Whether a factor grows with each of these symbols, so that bounds may be put in."""
    names = set(names)
    if isinstance(atom, str) or names.isdisjoint(_symbols([atom])):
        return True
    if atom.kind == "mod" or (atom.kind == "//" and any(isinstance(a, Dim) for a in atom.args[1:])):
        return False
    return all(
        coefficient > 0 or names.isdisjoint(_symbols(monomial))
        for a in atom.args
        if isinstance(a, Dim)
        for monomial, coefficient in a.terms
    ) and all(
        _grows(inner, names) for a in atom.args if isinstance(a, Dim) for m, _ in a.terms for inner in m
    )
