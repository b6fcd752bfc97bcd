"""Operators by elements, reductions, sorts and products of results of run-time size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import Expr
from onnxlathe_passes.legalize.bounded.bench import Bench
from onnxlathe_passes.legalize.bounded.follow import follows
from onnxlathe_passes.legalize.bounded.ragged import Operand, Ragged, Result
from onnxlathe_passes.legalize.draft import FLOATS, value_of, wanted

T = ir.DataType


@follows(
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitwiseAnd", "BitwiseNot", "BitwiseOr",
    "BitwiseXor", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div", "Dropout", "Elu", "Equal",
    "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsInf",
    "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not",
    "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus",
    "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
)  # fmt: skip
def by_elements(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """The same on all candidates."""
    operands = bench.operands(node)
    ragged = [o for o in operands if isinstance(o, Ragged)]
    parts = iter(bench.aligned(ragged))
    operands = [next(parts) if isinstance(o, Ragged) else o for o in operands]
    ragged = [o for o in operands if isinstance(o, Ragged)]
    backs = {r.rank - r.axis for r in ragged}
    if len(backs) > 1:
        bench.fail("results of run-time size meet on two axes", *ragged)
    (back,) = backs
    ranks = [r.rank for r in ragged]
    for operand in operands:
        if isinstance(operand, ir.Value):
            dims = bench.dims(operand)
            ranks.append(len(dims))
            if len(dims) >= back and dims[len(dims) - back] != 1:
                bench.fail("a result of run-time size meets a tensor of another size", *ragged)
    values = [o.value if isinstance(o, Ragged) else o for o in operands]
    divisor = operands[1] if len(operands) > 1 else None
    if node.op_type in ("Div", "Mod") and isinstance(divisor, Ragged) and divisor.value.dtype not in FLOATS:
        values[1] = bench.masked(divisor, 1)  # dividing an integer by zero ends the process
    made = bench.apply(node, values)
    return [Ragged(v, max(ranks) - back, ragged[0].extent) for v in made]


_NEUTRAL: dict[str, float] = {
    "ReduceSum": 0, "ReduceMean": 0, "ReduceL1": 0, "ReduceL2": 0, "ReduceSumSquare": 0, "ReduceLogSum": 0,
    "ReduceProd": 1, "ReduceMax": -math.inf, "ReduceMin": math.inf, "ReduceLogSumExp": -math.inf,
}  # fmt: skip


def extreme(value: ir.Value, sign: float) -> Any:
    """The least or greatest number of an element type."""
    dtype = value.dtype
    if dtype in FLOATS or dtype is None:
        return math.copysign(math.inf, sign)
    if dtype == T.BOOL:
        return sign > 0
    info = np.iinfo(dtype.numpy())
    return info.max if sign > 0 else info.min


@follows(*_NEUTRAL)
def reduction(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """Candidates that do not count become the neutral element; a mean is divided by how many count."""
    op = bench.op
    x, axes = first_operand(bench, node), _axes(bench, node)
    if x.axis not in axes:
        (made,) = bench.apply(node, [x.value, *node.inputs[1:]])
        keep = bool(value_of(node, "keepdims", op, 1))
        return [Ragged(made, x.axis if keep else x.axis - sum(a < x.axis for a in axes), x.extent)]
    fill: Any = _NEUTRAL[node.op_type]
    if math.isinf(fill):
        fill = extreme(x.value, fill)
    neutral = bench.masked(x, fill)
    if node.op_type != "ReduceMean":
        return bench.apply(node, [neutral, *node.inputs[1:]])
    if x.value.dtype not in FLOATS:
        bench.fail("a mean of integers", x)
    keep = bool(value_of(node, "keepdims", op, 1))
    total = op.reduce("Sum", neutral, sorted(axes), keepdims=keep)
    amount: ir.Value = bench.count(x.extent)
    others = [d for i, d in enumerate(x.dims) if i in axes and i != x.axis]
    for d in others:
        amount = op.Mul(amount, bench.sized(d))
    amount = op.Max(amount, op.ints([1]))  # the mean of nothing is 0, as in ONNX Runtime
    return [op.Div(total, op.reshape(op.cast(amount, x.value.dtype or T.FLOAT), []))]


def first_operand(bench: Bench, node: ir.Node) -> Ragged:
    """The first operand, which alone may be of run-time size."""
    operands = bench.operands(node)
    x = operands[0] if operands else None
    if not isinstance(x, Ragged) or any(isinstance(o, Ragged) for o in operands[1:]):
        bench.fail(f"a result of run-time size is an operand of {node.op_type}", *operands)
    return x


def _axes(bench: Bench, node: ir.Node) -> set[int]:
    """The axes of a reduction, from the front."""
    x = first_operand(bench, node)
    entries = bench.entries(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else []
    own = node.attributes.get("axes")
    if own is not None:
        entries = list(own.as_ints())
    if entries is None or not all(isinstance(e, int) for e in entries):
        bench.fail("a reduction over axes given at run time", x)
    if not entries:
        return set() if value_of(node, "noop_with_empty_axes", bench.op, 0) else set(range(x.rank))
    return {int(e) % x.rank for e in entries}


@follows("CumSum")
def running_sum(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """Candidates that do not count add nothing."""
    x = first_operand(bench, node)
    axis = bench.entries(node.inputs[1])
    if axis is None or not isinstance(axis[0], int):
        bench.fail("a CumSum along an axis given at run time", x)
    value = bench.masked(x, 0) if axis[0] % x.rank == x.axis else x.value
    (made,) = bench.apply(node, [value, node.inputs[1]])
    return [Ragged(made, x.axis, x.extent)]


@follows("Softmax", "LogSoftmax")
def softmax(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """Candidates that do not count have no weight."""
    x = first_operand(bench, node)
    along = int(value_of(node, "axis", bench.op, -1)) % x.rank == x.axis
    (made,) = bench.apply(node, [bench.masked(x, -math.inf) if along else x.value])
    return [Ragged(made, x.axis, x.extent)]


@follows("ArgMax", "ArgMin")
def extreme_place(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """The rows that count come first, so that places are right and ties go to the first of them."""
    op = bench.op
    x = first_operand(bench, node)
    axis, keep = int(value_of(node, "axis", op, 0)) % x.rank, bool(value_of(node, "keepdims", op, 1))
    if axis != x.axis:
        (made,) = bench.apply(node, [x.value])
        return [Ragged(made, x.axis if keep or x.axis < axis else x.axis - 1, x.extent)]
    if value_of(node, "select_last_index", op, 0):
        bench.fail("the last of equal extremes", x)
    x = bench.packed(x)
    return bench.apply(node, [bench.masked(x, extreme(x.value, -1 if node.op_type == "ArgMax" else 1))])


@follows("TopK")
def top_k(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """The rows that count come first, and others are smaller than all (or greater)."""
    op = bench.op
    x = bench.operands(node)[0]
    entries = bench.entries(node.inputs[1])
    if not isinstance(x, Ragged):
        return _open_top_k(bench, node, entries)
    axis = int(value_of(node, "axis", op, -1)) % x.rank
    if axis != x.axis:
        made = bench.apply(node, [x.value, node.inputs[1]])
        return [Ragged(m, x.axis, x.extent) for m in made]
    if entries is None or entries[0] is None:
        bench.fail("a TopK of a number given at run time", x)
    x = bench.packed(x)
    value = bench.masked(x, extreme(x.value, -1 if value_of(node, "largest", op, 1) else 1))
    k: Expr = entries[0]
    made = bench.apply(node, [value, bench.sized(bench.bound(k))])
    if not bench.depends(k):
        return made
    extent = bench.front(bench.extent_of(k))
    return [Ragged(m, axis, extent) for m in made]


def _open_top_k(bench: Bench, node: ir.Node, entries: list[Any] | None) -> Sequence[Result]:
    """As many of a tensor of fixed size as data say."""
    x = node.inputs[0]
    assert x is not None
    if entries is None or not bench.depends(entries[0]):
        bench.fail("a TopK of a number given at run time", *bench.operands(node))
    dims = bench.dims(x)
    axis = int(value_of(node, "axis", bench.op, -1)) % len(dims)
    extent = bench.front(bench.extent_of(entries[0]))
    most, there = extent.bound, dims[axis]
    if not isinstance(most, int) or not isinstance(there, int) or most > there:
        bench.fail("a TopK of more than there may be", extent)
    made = bench.apply(node, [x, bench.sized(most)])
    return [Ragged(m, axis, extent) for m in made]


@follows("MatMul")
def product(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """Rows and columns of candidates; where they are summed over, those that do not count are zero."""
    a, b = bench.operands(node)
    if isinstance(a, Ragged) and isinstance(b, Ragged):
        a, b = bench.aligned([a, b])
    rank_a, rank_b = _rank(bench, a), _rank(bench, b)
    sums_a = isinstance(a, Ragged) and a.axis == rank_a - 1
    sums_b = isinstance(b, Ragged) and b.axis == max(0, rank_b - 2)
    if isinstance(a, Ragged) and isinstance(b, Ragged):
        if not (sums_a and sums_b):
            bench.fail("a product of two results of run-time size", a, b)
        return bench.apply(node, [bench.masked(a, 0), bench.masked(b, 0)])
    if sums_a or sums_b:
        bench.fail("a product over a run-time size with a tensor of another", a, b)
    value_a, value_b = (o.value if isinstance(o, Ragged) else o for o in (a, b))
    (made,) = bench.apply(node, [value_a, value_b])
    ragged = a if isinstance(a, Ragged) else b
    assert isinstance(ragged, Ragged)
    if rank_a < 2 or rank_b < 2:
        if isinstance(a, Ragged):
            return [Ragged(made, a.axis, a.extent)]
        return [Ragged(made, ragged.axis if ragged.axis < rank_b - 2 else rank_b - 2, ragged.extent)]
    rank = max(rank_a, rank_b)
    own = rank_a if isinstance(a, Ragged) else rank_b
    axis = ragged.axis + rank - own
    if axis < rank - 2:
        other = b if isinstance(a, Ragged) else a
        dims = bench.dims(other) if isinstance(other, ir.Value) else []
        at = axis - (rank - len(dims))
        if at >= 0 and dims[at] != 1:
            bench.fail("a result of run-time size meets a tensor of another size", ragged)
    return [Ragged(made, axis, ragged.extent)]


def _rank(bench: Bench, operand: Operand) -> int:
    if isinstance(operand, Ragged):
        return operand.rank
    assert operand is not None
    return len(bench.dims(operand))


@follows("Gemm")
def general_product(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """Rows of the first operand."""
    op = bench.op
    a, *rest = bench.operands(node)
    transposed = bool(value_of(node, "transA", op, 0))
    if not isinstance(a, Ragged) or any(isinstance(o, Ragged) for o in rest) or a.axis != int(transposed):
        bench.fail("a Gemm over a run-time size", a, *rest)
    if len(rest) > 1 and isinstance(rest[1], ir.Value):
        dims = bench.dims(rest[1])
        if len(dims) == 2 and dims[0] != 1:
            bench.fail("a result of run-time size meets a tensor of another size", a)
    (made,) = bench.apply(node, [a.value, *node.inputs[1:]])
    return [Ragged(made, 0, a.extent)]


@follows(
    "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "DepthToSpace", "GlobalAveragePool",
    "GlobalMaxPool", "GroupNormalization", "InstanceNormalization", "LRN", "MaxPool", "SpaceToDepth",
)  # fmt: skip
def by_samples(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """A run-time number of samples: each is computed for itself."""
    x = first_operand(bench, node)
    if x.axis or (node.op_type == "BatchNormalization" and value_of(node, "training_mode", bench.op, 0)):
        bench.fail(f"{node.op_type} over a run-time size", x)
    made = bench.apply(node, [x.value, *node.inputs[1:]])
    return [Ragged(m, 0, x.extent) if wanted(node, i) else None for i, m in enumerate(made)]


@follows("LayerNormalization", "RMSNormalization", "LpNormalization", "Hardmax")
def normalized(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """Each row for itself."""
    x = first_operand(bench, node)
    axis = int(value_of(node, "axis", bench.op, -1)) % x.rank
    inside = x.axis == axis if node.op_type in ("LpNormalization", "Hardmax") else x.axis >= axis
    if inside:
        bench.fail(f"{node.op_type} over a run-time size", x)
    for other in node.inputs[1:]:
        if other is not None and len(bench.dims(other)) >= x.rank - x.axis:
            bench.fail("a result of run-time size meets a tensor of another size", x)
    made = bench.apply(node, [x.value, *node.inputs[1:]])
    return [Ragged(m, x.axis, x.extent) if wanted(node, i) else None for i, m in enumerate(made)]


@follows("RoiAlign", "GridSample")
def by_regions(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """A run-time number of regions of fixed images (of samples, for GridSample)."""
    x, *regions = bench.operands(node)
    ragged = [o for o in (x, *regions) if isinstance(o, Ragged)]
    fixed = x if node.op_type == "RoiAlign" else None
    if any(r.axis for r in ragged) or isinstance(fixed, Ragged) or len(ragged) < 2:
        bench.fail(f"{node.op_type} with some operands of run-time size", *ragged)
    parts = iter(bench.aligned(ragged))
    operands = [next(parts) if isinstance(o, Ragged) else o for o in (x, *regions)]
    values = [o.value if isinstance(o, Ragged) else o for o in operands]
    extent = next(o.extent for o in operands if isinstance(o, Ragged))
    if fixed is not None and isinstance(operands[2], Ragged):
        values[2] = bench.index(operands[2], [bench.whole(fixed)[0]])
    (made,) = bench.apply(node, values)
    return [Ragged(made, 0, extent)]


@follows("Einsum")
def einsum(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """The letter of the run-time size is kept, or what does not count adds zero to the sum over it."""
    operands = bench.operands(node)
    text = value_of(node, "equation", bench.op)
    text = (text.decode() if isinstance(text, bytes) else str(text)).replace(" ", "")
    inputs, arrow, output = text.partition("->")
    terms = inputs.split(",")
    ragged = [o for o in operands if isinstance(o, Ragged)]
    letters = {
        t[o.axis] for t, o in zip(terms, operands, strict=True) if isinstance(o, Ragged) and "." not in t
    }
    if len(letters) != 1 or not arrow or "." in text:
        bench.fail("an Einsum with run-time sizes on two axes", *ragged)
    (letter,) = letters
    if any(t.count(letter) != isinstance(o, Ragged) for t, o in zip(terms, operands, strict=True)):
        bench.fail("a result of run-time size meets a tensor of another size", *ragged)
    parts = iter(bench.aligned(ragged))
    operands = [next(parts) if isinstance(o, Ragged) else o for o in operands]
    kept = letter in output
    values = [(o.value if kept else bench.masked(o, 0)) if isinstance(o, Ragged) else o for o in operands]
    (made,) = bench.apply(node, values)
    extent = next(o.extent for o in operands if isinstance(o, Ragged))
    return [Ragged(made, output.index(letter), extent) if kept else made]
