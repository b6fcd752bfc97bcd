"""The operator that does what all steps of a recurrence did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, reject, require
from onnxlathe_passes.conditions import Array, int64
from onnxlathe_passes.recurrence.cells import Cell, Oriented
from onnxlathe_passes.recurrence.places import Place, rows
from onnxlathe_passes.views import squeeze, unsqueeze
from onnxlathe_passes.weights import derived, tensor_of
from onnxlathe_passes.zero_states import is_zero

END = 2**63 - 1


@dataclass(frozen=True)
class Span:
    """Which positions along time the steps take, in which order.

    Attributes:
        start, end: where they are within a tensor that has more; `None` for all of it. The end may be a value,
            a vector of one element.
        backwards: whether the last one comes first.
        listed: the positions one by one, where they do not follow each other.
    """

    start: int | None = None
    end: int | ir.Value | None = None
    backwards: bool = False
    listed: tuple[int, ...] | None = None


def span_of(positions: Sequence[int], size: Any) -> Span:
    """The span of constant positions along an axis."""
    count, low = len(positions), min(positions)
    if positions[0] < 0 and isinstance(size, int):
        return span_of([p + size for p in positions], size)
    for backwards in (False, True):
        ordered = list(positions)[:: -1 if backwards else 1]
        if ordered == list(range(low, low + count)) and (low >= 0 or low + count <= 0):
            whole = low == 0 and size == count
            end = END if low < 0 and low + count == 0 else low + count
            return Span(backwards=backwards) if whole else Span(low, end, backwards)
    return Span(listed=tuple(positions))


def batch_of(value: ir.Value) -> Any:
    """How many rows a state has: one axis at most."""
    found = rows(value)
    if found is None or len(found) > 1 or None in found:
        reject("a state has more than one axis of rows, or an unknown one")
    return found[0] if found else 1


def over_time(op: Builder, place: Place, span: Span, batch: Any, width: int, backwards: bool) -> ir.Value:
    """The tensor of a place as (time, batch, features), cut to a span.

    Raises:
        NoMatch: its axes are others.
    """
    x, axis = place.value, place.axis
    dims = dims_of(x)
    if dims is None or axis is None:
        reject("what goes in has no known rank")
    rest = [size for position, size in enumerate(dims) if position != axis]
    wanted = [size for size in (batch, width) if size != 1]
    require([size for size in rest if size != 1] == wanted, "what goes in is not batch by features")
    if span.listed is not None:
        x = op.Gather(x, int64(span.listed), axis=axis)
    elif span.end is not None:
        end = span.end if isinstance(span.end, ir.Value) else op.constant(int64([span.end]))
        x = _slice(op, x, axis, op.constant(int64([span.start or 0])), end)
    if span.listed is None and span.backwards != backwards:
        x = turned(op, x, axis)
    if axis:
        order = [axis, *(a for a in range(len(dims)) if a != axis)]
        x = op.Transpose(x, perm=order)
    drop, add = _units(rest, [batch, width])
    x = squeeze(op, x, [a + 1 for a in drop]) if drop else x
    return unsqueeze(op, x, [a + 1 for a in add]) if add else x


def _units(have: Sequence[Any], want: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Which axes of size 1 to take out of `have`, and then where to put some in, to make it `want`."""
    if list(have) == list(want):
        return [], []
    drop = [axis for axis, size in enumerate(have) if size == 1]
    return drop, [axis for axis, size in enumerate(want) if size == 1]


def _slice(
    op: Builder, x: ir.Value, axis: int, start: ir.Value, end: ir.Value, step: int | None = None
) -> ir.Value:
    inputs = [x, start, end, op.constant(int64([axis]))]
    made: ir.Value = op.node(
        "Slice", inputs + ([] if step is None else [op.constant(int64([step]))])
    ).outputs[0]
    return made


def turned(op: Builder, x: ir.Value, axis: int) -> ir.Value:
    """The tensor with an axis turned around."""
    return _slice(op, x, axis, op.constant(int64([-1])), op.constant(int64([-(2**63)])), -1)


def initial(op: Builder, value: ir.Value | None, batch: Any, size: int) -> ir.Value | None:
    """A state before the first step as (1, batch, size); `None` for zeros.

    Raises:
        NoMatch: it has another shape.
    """
    if value is None or is_zero(value, op.opset):
        return None
    return single(op, value, batch, size)


def single(op: Builder, value: ir.Value, batch: Any, size: int) -> ir.Value:
    """A value of one step as (1, batch, size).

    Raises:
        NoMatch: it has another shape.
    """
    dims = dims_of(value)
    if dims == (batch, size):
        return unsqueeze(op, value, [0])
    require(dims == (1, batch, size), "a value of one step is not batch by features")
    return value


def shaped(op: Builder, state: ir.Value, like: ir.Value) -> ir.Value:
    """A state (1, batch, size) with the axes of size 1 that `like` has."""
    dims = dims_of(like) or ()
    if len(dims) == 2:
        return squeeze(op, state, [0])
    if len(dims) == 3 and dims[0] == 1:
        return state
    require(len(dims) == 4 and dims[:2] == (1, 1), "a state has axes of size 1 after its batch")
    return unsqueeze(op, state, [0])


def operator(
    op: Builder,
    step: Oriented,
    inputs: Sequence[ir.Value],
    states: Sequence[ir.Value | None],
    backwards: bool,
) -> ir.Node:
    """LSTM, GRU or RNN.

    Args:
        op: makes the nodes.
        step: any step but one whose state was folded away.
        inputs: for each input of the step, the tensor (time, batch, features).
        states: before the first step, (1, batch, size); the cell state of an LSTM last.
        backwards: whether the last position in time comes first.
    """
    cell = step.cell
    x = inputs[0] if len(inputs) == 1 else op.Concat(*inputs, axis=2)
    if cell.node is not None:
        kept = {**cell.node.attributes, "direction": "reverse" if backwards else "forward"}
        weights = [v if v is None else op.weight(tensor_of(v), v.name or "") for v in cell.node.inputs[1:4]]
        operands = [x, *weights, *[None] * (4 - len(weights)), *states]
        return op.node(cell.kind, operands, kept, outputs=3 if cell.kind == "LSTM" else 2)
    size, count = cell.size, len(cell.gates)
    like = next(m.value for m in step.own if m is not None)
    widths = [step.width(index) for index in range(len(step.inputs))]
    weight = derived(op, like, (1, count * size, sum(widths)), lambda: _input_weight(step, widths))
    own = derived(op, like, (1, count * size, size), lambda: _state_weight(step))
    biases = _biases(cell)
    bias = op.constant(biases, like.dtype) if biases.any() else None
    attributes: dict[str, Any] = {"hidden_size": size, "direction": "reverse" if backwards else None}
    if cell.linear_before_reset:
        attributes["linear_before_reset"] = 1
    attributes.update(_activations(cell))
    operands = [x, weight, own, bias, None, *states]
    return op.node(cell.kind, operands, attributes, outputs=3 if cell.kind == "LSTM" else 2)


def _input_weight(step: Oriented, widths: Sequence[int]) -> Array:
    size = step.cell.size
    blocks = [
        np.concatenate(
            [
                np.zeros((width, size), np.float32) if m is None else m.array()
                for m, width in zip(gate, widths, strict=True)
            ]
        ).T
        for gate in step.others
    ]
    return np.concatenate(blocks)[None]


def _state_weight(step: Oriented) -> Array:
    return np.concatenate([m.array().T for m in step.own if m is not None])[None]


def _biases(cell: Cell) -> Array:
    """Those of the inputs, then those of the state."""
    first = [gate.bias(cell.size) for gate in cell.gates]
    second = [np.zeros(cell.size) for _ in cell.gates]
    if cell.hidden is not None:
        second[-1] = cell.hidden.bias(cell.size)
    return np.concatenate(first + second)[None]


_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


def _activations(cell: Cell) -> dict[str, Any]:
    names = tuple(a.kind for a in cell.activations)
    if names == _DEFAULTS[cell.kind]:
        return {}
    found: dict[str, Any] = {"activations": list(names)}
    first = cell.activations[0]
    if first.alpha is not None and first.beta is not None:
        found.update(activation_alpha=[first.alpha], activation_beta=[first.beta])
    return found
