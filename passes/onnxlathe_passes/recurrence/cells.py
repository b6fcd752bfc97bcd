"""One step of a recurrence: what it multiplies by what, what is its state, and what steps have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import reject
from onnxlathe_passes.conditions import uniform
from onnxlathe_passes.recurrence.places import Place
from onnxlathe_passes.recurrence.sums import Matrix, Sum


@dataclass(frozen=True)
class Activation:
    """An activation by the name that LSTM, GRU and RNN have for it."""

    kind: str
    alpha: float | None = None
    beta: float | None = None


@dataclass(frozen=True)
class Oriented:
    """A cell, with what is its state and what its input.

    Attributes:
        cell: the cell.
        before: the state that it starts from; `None` where that was folded away: it is zero.
        inputs: what else is multiplied, in an order that is the same for all steps.
        nears: the same as values of the step, where there are such.
        own: per gate, the matrix of the state.
        others: per gate, the matrices of `inputs`.
    """

    cell: Cell
    before: ir.Value | None
    inputs: tuple[Place, ...]
    nears: tuple[ir.Value | None, ...]
    own: tuple[Matrix | None, ...]
    others: tuple[tuple[Matrix | None, ...], ...]

    @property
    def shape(self) -> tuple[Any, ...]:
        """What all steps have in common, apart from the state's part and the biases."""
        cell = self.cell
        weights = tuple(cell.node.inputs[1:4]) if cell.node is not None else None
        return cell.kind, cell.size, cell.activations, cell.linear_before_reset, self.others, weights

    @property
    def biases(self) -> tuple[Any, ...]:
        parts = (*self.cell.gates, *([self.cell.hidden] if self.cell.hidden else []))
        return tuple(tuple(sorted(b.key for b in gate.biases)) for gate in parts)

    def width(self, index: int) -> int:
        """How many features an input has."""
        if self.cell.node is not None:
            dims = dims_of(self.cell.node.inputs[1]) if self.cell.node.inputs[1] is not None else None
            if dims is None or not isinstance(dims[-1], int):
                reject("a weight has no known size")
            return dims[-1]
        matrix = next(gate[index] for gate in self.others if gate[index] is not None)
        assert matrix is not None
        return matrix.rows[1] - matrix.rows[0]

    def same(self, other: Oriented) -> bool:
        """Whether both are steps of one recurrence."""
        return self.shape == other.shape and self.own == other.own and self.biases == other.biases


@dataclass(eq=False)
class Cell:
    """A step that was found.

    Attributes:
        kind: LSTM, GRU or RNN.
        result: the new state, bare.
        size: of the state.
        gates: per gate in the order of the operator, what it adds up.
        activations: in the order of the operator.
        memory, memory_before: an LSTM's cell state after and before the step.
        before: the state before, where the formula names it.
        hidden: what a GRU's reset gate multiplies, where that is done after the product.
        inner: nodes through which the memory goes; the first one makes it.
        node, inputs, near: where the step is the operator itself, on a sequence of length 1: the operator,
            and what goes into it.
    """

    kind: str
    result: ir.Value
    size: int
    gates: tuple[Sum, ...]
    activations: tuple[Activation, ...]
    memory: ir.Value | None = None
    memory_before: ir.Value | None = None
    before: ir.Value | None = None
    hidden: Sum | None = None
    inner: tuple[ir.Node, ...] = ()
    node: ir.Node | None = None
    inputs: tuple[Place, ...] = ()
    near: ir.Value | None = None

    @property
    def linear_before_reset(self) -> bool:
        return self.hidden is not None

    def states(self) -> list[ir.Value]:
        """What may be the state before this step."""
        if self.before is not None or self.node is not None:
            return [] if self.before is None else [self.before]
        terms = [t for t in self.gates[0].terms if t.near is not None]
        fits = [t for t in terms if t.matrix.rows[1] - t.matrix.rows[0] == self.size]
        return list(dict.fromkeys(t.near for t in fits if t.near is not None))

    def oriented(self, before: ir.Value | None, like: Oriented | None = None) -> Oriented | None:
        """The cell with this value as its state; `None` where a gate then does not fit.

        Where the same value is also what goes in, the matrices of another step, `like`, tell which is which.
        """
        if self.node is not None:
            return (
                Oriented(self, before, self.inputs, (self.near,), (), ()) if before is self.before else None
            )
        own: list[Matrix | None] = []
        nears: dict[Place, ir.Value | None] = {}
        tables: list[dict[Place, Matrix]] = []
        for index, gate in enumerate(self.gates):
            # A product with a state of zeros may not have been folded away in every gate.
            terms = [t for t in gate.terms if before is not None or uniform(t.near) != 0]
            mine = [
                t
                for t in terms
                if before is not None and t.near is before and (like is None or t.matrix == like.own[index])
            ]
            table = {t.place: t.matrix for t in terms if t not in mine}
            if len(mine) > 1 or len(table) + len(mine) != len(terms):
                return None
            if self.hidden is not None and index == len(self.gates) - 1:
                mine = [t for t in self.hidden.terms if t.near is before]
                if len(mine) != len(self.hidden.terms):
                    return None
            own.append(mine[0].matrix if mine else None)
            tables.append(table)
            nears.update({t.place: t.near for t in terms if t.place in table})
        if before is not None and None in own:
            return None

        def order(place: Place) -> list[Any]:
            return [t[place].key if place in t else ("",) for t in tables]

        inputs = tuple(sorted(nears, key=order))
        others = tuple(tuple(table.get(place) for place in inputs) for table in tables)
        if not inputs:
            return None
        return Oriented(self, before, inputs, tuple(nears[p] for p in inputs), tuple(own), others)


def starts_from_zero(first: Oriented, second: Oriented) -> bool:
    """Whether `first` is the step before `second` with its state, zero, folded away."""
    if first.shape != second.shape or first.before is not None:
        return False
    size = first.cell.size
    pairs = list(zip(first.cell.gates, second.cell.gates, strict=True))
    if first.cell.hidden is not None and second.cell.hidden is not None:
        pairs.append((first.cell.hidden, second.cell.hidden))
    return all(np.allclose(a.bias(size), b.bias(size), rtol=1e-5, atol=1e-7) for a, b in pairs)
