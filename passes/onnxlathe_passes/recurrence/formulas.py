"""How an LSTM, a GRU or a plain recurrent network is written with elementary operators.

A step is found from an activation: of an LSTM's cell state, of what a GRU takes in, of the sum of a plain one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import NoMatch, attribute, is_constant, is_scalar, reject, require
from onnxlathe_passes.conditions import operand, producer
from onnxlathe_passes.recurrence.cells import Activation, Cell
from onnxlathe_passes.recurrence.places import Place, Scope, last_axis
from onnxlathe_passes.recurrence.sums import Columns, Sum, selected, sum_of

_ACTIVATIONS = ("Tanh", "Relu", "Softsign")
_GATES = ("Sigmoid", "HardSigmoid")
_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})  # what LSTM takes and ONNX Runtime computes


def cells_of(graph: ir.Graph, scope: Scope) -> Iterator[Cell]:
    """The cells of a graph, in its order; what looks like several is given as several."""
    for node in graph:
        readers = _READERS.get(node.op_type, ()) if node.domain == "" else ()
        for read in readers:
            try:
                yield from read(node, scope)
            except NoMatch:
                continue


def _width(value: ir.Value) -> int:
    dims = dims_of(value)
    if not dims or not isinstance(dims[-1], int) or len(dims) < 2 or value.dtype not in _TYPES:
        reject("a state has no known size")
    return dims[-1]


def _plain(node: ir.Node, scope: Scope) -> Iterator[Cell]:
    """h = f(x·W + h·R + b)."""
    x = node.inputs[0]
    if x is None or producer(x, "Add", "Gemm", "MatMul") is None:
        return
    result = node.outputs[0]
    size = _width(result)
    found = sum_of(scope, x, (0, size))
    if not found.products:
        yield Cell("RNN", scope.bare(result), size, (found,), (Activation(node.op_type),))


def _lstms(node: ir.Node, scope: Scope) -> Iterator[Cell]:
    """c = f·c + i·g, h = o·tanh(c), where f, i and o are gates and g is what comes in."""
    memory = node.inputs[0]
    added = producer(memory, "Add")
    users = [u for u in node.outputs[0].consumers() if u.op_type == "Mul" and u.domain == ""]
    if memory is None or added is None or not users:
        return
    size = _width(memory)
    for keep, take in _orders(added):
        kept, taken = producer(keep, "Mul"), producer(take, "Mul")
        if kept is None or taken is None:
            return
        for gate_i, content in _orders(taken):
            inner = producer(scope.bare(content), node.op_type)
            if inner is None or inner.inputs[0] is None:
                continue
            for gate_f, before in _orders(kept):
                for user in users:
                    other = [v for v in user.inputs if v is not node.outputs[0]]
                    if len(other) != 1 or other[0] is None:
                        continue
                    try:
                        gates = [_gate(scope, v, size) for v in (gate_i, other[0], gate_f)]
                        require(len({kind for kind, _ in gates}) == 1, "its gates differ in activation")
                        content_sum = sum_of(scope, inner.inputs[0], (0, size))
                        require(not content_sum.products, "what comes in is no sum")
                    except NoMatch:
                        continue
                    kind = Activation(node.op_type)
                    yield Cell(
                        "LSTM",
                        scope.bare(user.outputs[0]),
                        size,
                        (*(s for _, s in gates), content_sum),
                        (gates[0][0], kind, kind),
                        memory=scope.bare(memory),
                        memory_before=scope.bare(before),
                        inner=(added, kept, node),
                    )


def _grus(node: ir.Node, scope: Scope) -> Iterator[Cell]:
    """h = (1 - z)·n + z·h, where n = tanh(x·W + b + r·(h·R + b)) or tanh(x·W + (r·h)·R + b)."""
    content = node.outputs[0]
    near = [u for u in content.consumers() if u.op_type in ("Mul", "Sub", "Add") and u.domain == ""]
    ends = {e: None for u in near for e in (u, *u.outputs[0].consumers()) if e.op_type == "Add"}
    ends.update({e: None for u in near for m in u.outputs[0].consumers() if m.op_type == "Mul"
                 for e in m.outputs[0].consumers() if e.op_type == "Add"})  # fmt: skip
    for end in ends:
        for update, before, turned in _mixtures(end, content):
            try:
                size = _width(content)
                yield _gru(node, end.outputs[0], scope, size, update, scope.bare(before), turned)
            except NoMatch:
                continue


def _mixtures(end: ir.Node, n: ir.Value) -> Iterator[tuple[ir.Value, ir.Value, bool]]:
    """How an Add mixes `n` with the state: the gate, the state, and whether the gate is that of `n`."""
    for a, b in _orders(end):
        if a is n or producer(b, "Mul") is not None:
            for gate, difference in _orders(producer(b, "Mul")):
                sub = producer(difference, "Sub")
                if sub is None or None in sub.inputs:
                    continue
                left, right = sub.inputs
                assert left is not None
                assert right is not None
                if a is n and right is n:  # n + z·(h - n)
                    yield gate, left, False
                elif left is n and right is a:  # h + z·(n - h)
                    yield gate, a, True
        for gate_a, first in _orders(producer(a, "Mul")):
            for gate_b, second in _orders(producer(b, "Mul")):
                if first is n and _complement(gate_a) is gate_b:
                    yield gate_b, second, False
                elif first is n and _complement(gate_b) is gate_a:
                    yield gate_a, second, True


def _complement(value: ir.Value) -> ir.Value | None:
    """z, where the value is 1 - z."""
    node = producer(value, "Sub", "Add")
    if node is None:
        return None
    for one, other in _orders(node)[: 1 if node.op_type == "Sub" else 2]:
        if is_scalar(one, 1.0):
            if node.op_type == "Sub":
                return other
            negated = producer(other, "Neg")
            return negated.inputs[0] if negated is not None else None
    return None


def _gru(
    node: ir.Node,
    result: ir.Value,
    scope: Scope,
    size: int,
    update: ir.Value,
    before: ir.Value,
    turned: bool,
) -> Cell:
    kind, z = _gate(scope, update, size)
    require(not turned or kind.kind == "Sigmoid", "1 - z is no gate of the same kind")
    z = z.negated() if turned else z
    if node.inputs[0] is None:
        reject("it has no operand")
    content = sum_of(scope, node.inputs[0], (0, size))
    hidden: Sum | None = None
    reset: tuple[Activation, Sum] | None = None
    if content.products:
        require(len(content.products) == 1, "what comes in has several products")
        left, right, columns = content.products[0]
        for gate, other in ((left, right), (right, left)):
            try:
                reset, hidden = _gate(scope, gate, size, columns), sum_of(scope, other, columns)
                break
            except NoMatch:
                continue
        content = Sum(content.terms, content.biases)
        require(hidden is not None and not hidden.products, "the reset gate multiplies something else")
    else:
        content, reset = _reset_first(scope, content, before, size)
    require(reset is not None and reset[0] == kind, "its gates differ in activation")
    assert reset is not None
    return Cell(
        "GRU", scope.bare(result), size, (z, reset[1], content), (kind, Activation(node.op_type)),
        before=before, hidden=hidden,
    )  # fmt: skip


def _reset_first(
    scope: Scope, content: Sum, before: ir.Value, size: int
) -> tuple[Sum, tuple[Activation, Sum] | None]:
    """The sum with `h` for the term `r·h`, and the gate r."""
    terms, reset = [], None
    for term in content.terms:
        mixed = producer(term.near, "Mul")
        for gate, other in _orders(mixed) if reset is None else ():
            if scope.bare(other) is not before:
                continue
            try:
                reset = _gate(scope, gate, size)
            except NoMatch:
                continue
            term = type(term)(before, Place(before), term.matrix)
            break
        terms.append(term)
    return Sum(terms, content.biases), reset


def _gate(scope: Scope, value: ir.Value, size: int, columns: Columns | None = None) -> tuple[Activation, Sum]:
    """A gate: the activation and what it is applied to, also where a Split comes after it.

    Raises:
        NoMatch: the value is no gate.
    """
    columns = columns or (0, size)
    while True:
        value = scope.real(value)
        node = value.producer()
        require(node is not None and node.domain == "", "it is no gate")
        assert node is not None
        if node.op_type in _GATES:
            break
        if node.op_type in ("Split", "Slice", "Gather", "Concat") and last_axis(node, scope.opset):
            value, columns = selected(node, value, columns, scope.opset)
            continue
        above = scope.above(Place(value))
        require(above is not None and above.axis is None, "it is no gate")
        assert above is not None
        value = above.value
    kind = Activation(node.op_type)
    if node.op_type == "HardSigmoid":
        alpha, beta = (float(attribute(node, name, scope.opset)) for name in ("alpha", "beta"))
        kind = Activation(node.op_type, alpha, beta)
    x = node.inputs[0]
    if x is None:
        reject("it is no gate")
    found = sum_of(scope, x, columns)
    require(not found.products, "a gate has a product of two values")
    return kind, found


def _single(node: ir.Node, scope: Scope) -> Iterator[Cell]:
    """LSTM, GRU or RNN of a sequence of length 1: so is torch.nn.LSTMCell exported from TorchScript."""
    x, opset = node.inputs[0], scope.opset
    dims = dims_of(x) if x is not None else None
    result = node.outputs[1] if len(node.outputs) > 1 else node.outputs[0]
    lengths, peepholes = operand(node, 4), operand(node, 7)
    if dims is None or dims[0] != 1 or lengths is not None or peepholes is not None:
        return
    forward = attribute(node, "direction", opset) == "forward" and not attribute(node, "layout", opset)
    weights = [scope.real(v) if v is not None else None for v in node.inputs[1:4]]
    if not forward or not all(v is None or is_constant(v) for v in weights):
        return
    before, memory = operand(node, 5), operand(node, 6)
    yield Cell(
        node.op_type,
        result,
        _width(result),
        (),
        (),
        memory=node.outputs[2] if len(node.outputs) > 2 else None,
        memory_before=scope.bare(memory) if memory is not None else None,
        before=scope.bare(before) if before is not None else None,
        node=node,
        inputs=(scope.place(x),) if x is not None else (),
        near=scope.bare(x) if x is not None else None,
    )


_READERS = {
    **dict.fromkeys(_ACTIVATIONS, (_lstms, _grus, _plain)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (_single,)),
}


def _orders(node: ir.Node | None) -> Sequence[tuple[ir.Value, ir.Value]]:
    """The operands of a node with two of them, in both orders."""
    if node is None or len(node.inputs) != 2:
        return ()
    left, right = operand(node, 0), operand(node, 1)
    return () if left is None or right is None else ((left, right), (right, left))
