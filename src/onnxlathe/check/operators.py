"""What an operator asks of its operands, so that drawn models are valid more often than not.

One function for each kind of operator: it builds the operands in a good order, asking each for a shape that
fits those already there, and draws the attributes that were not given. An operator that is not here takes
operands of one shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxlathe.check.operands import (
    INT64,
    PARTS,
    Attributes,
    Draw,
    Operands,
    constant_operand,
    image,
    integers,
    needed,
    signed,
)
from onnxlathe.check.sketch import FLOATS, Impossible, Size, Sketch, Slot, Want, schema_of, wanted
from onnxlathe.check.views import (
    concat,
    expand,
    gather,
    pad,
    reshape,
    resize,
    slices,
    split,
    squeeze,
    transpose,
)

BOOL = ir.DataType.BOOL
_ROOTS = frozenset({"Sqrt", "Log", "Reciprocal"})


def build(
    s: Sketch,
    op_type: str,
    slots: Sequence[Slot],
    attributes: Attributes,
    want: Want,
    domain: str = "",
    outputs: int = 1,
) -> tuple[ir.Node, Attributes]:
    """An operator on operands that fit.

    Args:
        s: what it is added to.
        op_type: the operator.
        slots: its operands.
        attributes: those that are settled; `None` for one that must be absent.
        want: what is asked of its first output.
        domain: its domain.
        outputs: how many outputs it has.

    Returns:
        The node, and all its attributes.

    Raises:
        Impossible: these operands do not go together.
    """
    if want.absent or (want.array is not None and want.array.size > 64):
        raise Impossible
    draw = OPERATORS.get(op_type, elementwise) if domain == "" else elementwise
    if want.shape is not None and len(want.shape) > 5:
        raise Impossible
    settled = dict(attributes)
    if op_type == "Split" and domain == "":
        settled[PARTS] = outputs
    operands = draw(s, op_type, slots, settled, want)
    schema = schema_of(op_type, s.opset, domain)
    if schema is not None:
        for name in [n for n in settled if n not in schema.attributes]:
            if name in attributes and attributes[name] is not None:
                raise Impossible
            del settled[name]
    return s.node(op_type, operands, settled, domain, outputs), settled


def _order(s: Sketch, slots: Sequence[Slot]) -> list[int]:
    """Which operand to build first: one that is not a constant, since constants follow."""
    strong = [i for i, slot in enumerate(slots) if not slot.weak] or list(range(len(slots)))
    first = s.pick(*strong)
    return [first, *(i for i in range(len(slots)) if i != first)]


def elementwise(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    """Operands that broadcast."""
    if not slots:
        raise Impossible
    dtype = want.dtype if want.dtype not in (None, BOOL) else s.dtype
    if op in ("Not", "And", "Or", "Xor"):
        dtype = BOOL
    elif op.startswith("Bitwise") and not (dtype or s.dtype).is_integer():
        dtype = s.dtype = ir.DataType.INT32
    for name, (low, high) in _FACTORS.get(op, {}).items():
        if name not in attributes and s.chance(2):
            attributes[name] = s.pick(low, high)
    if op == "Gelu" and "approximate" not in attributes:
        attributes["approximate"] = s.pick("none", "tanh")
    shape = want.shape if want.shape is not None else s.shape()
    first, *others = _order(s, slots)
    values: Operands = [None] * len(slots)
    ask = Want(shape=shape, dtype=dtype, exact=want.exact, positive=want.positive or op in _ROOTS)
    if (op in ("Div", "Mod") and first == 1) or op == "Pow":
        ask = wanted(ask, positive=True)
    values[first] = slots[first](ask)
    for i in others:
        dims = s.dims(needed(values[first]))
        positive = ask.positive or (op in ("Div", "Mod") and i == 1) or op == "Pow"
        rank = len(want.shape) if want.exact and want.shape is not None else 5
        partner = s.partner(dims, larger=not want.exact and len(dims) < rank)
        values[i] = slots[i](Want(shape=partner, dtype=dtype, exact=want.exact, positive=positive))
    return values


_FACTORS = {
    "LeakyRelu": {"alpha": (0.5, 0.1)},
    "Elu": {"alpha": (0.5, 2.0)},
    "HardSigmoid": {"alpha": (0.5, 1 / 6), "beta": (0.25, 0.5)},
    "Swish": {"alpha": (0.5, 1.702)},
    "Celu": {"alpha": (0.5, 2.0)},
    "ThresholdedRelu": {"alpha": (0.5, 2.0)},
}


def where(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    values: Operands = [None, None, None]
    shape = want.shape if want.shape is not None else s.shape()
    order = [i for i in _order(s, slots) if i != 0]
    for number, i in enumerate(order):
        asked = shape if number == 0 else s.partner(shape, larger=not want.exact)
        values[i] = slots[i](Want(shape=asked, dtype=want.dtype or s.dtype, exact=want.exact))
        if number == 0:
            shape = s.dims(needed(values[i]))
    values[0] = slots[0](Want(shape=s.partner(shape, larger=not want.exact), dtype=BOOL))
    return values


def clip(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    low, high = s.pick((0, 6), (-1, 1), (0.5, 0.75), (1, -1))
    x = slots[0](wanted(want, dtype=want.dtype or s.dtype))
    if s.opset < 11:
        for name, bound in (("min", low), ("max", high)):
            if name not in attributes and s.chance(2):
                attributes[name] = float(bound)
        return [x, *(slot(Want(absent=True)) for slot in slots[1:])]
    values: Operands = [x]
    dtype = needed(x).dtype or s.dtype
    for slot, bound in zip(slots[1:], (low, high), strict=False):
        values.append(constant_operand(s, slot, np.array(bound, dtype.numpy())))
    return values


def reduce(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    shape = want.shape if want.shape is not None and want.shape else s.shape(least=1)
    positive = op in ("ReduceLogSum", "ReduceProd") or want.positive
    x = needed(slots[0](Want(shape=shape, dtype=want.dtype or s.dtype, positive=positive)))
    rank = len(s.dims(x))
    if rank == 0:
        raise Impossible
    attributes.setdefault("keepdims", s.pick(1, 0))
    chosen = s.again(("axes", rank), lambda: s.pick([rank - 1], s.subset(range(rank), least=1)))
    axes: list[int] | None = [signed(s, axis, rank) for axis in chosen]
    if s.chance(8):
        axes = None
    as_attribute = "axes" in schema_of(op, s.opset).attributes
    if as_attribute:
        if "axes" not in attributes:
            attributes["axes"] = axes
        axes = None
    elif attributes.get("axes") is not None:
        raise Impossible
    return [x, integers(s, slots, 1, axes)] if len(slots) > 1 else [x]


def along_axis(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    """Softmax, ArgMax, CumSum and others with one axis."""
    shape = want.shape if want.shape else s.shape(least=1)
    x = needed(slots[0](wanted(want, shape=shape, dtype=s.dtype)))
    rank = len(s.dims(x))
    if "axis" not in attributes and rank:
        axis = s.pick(*range(-1, rank))
        attributes["axis"] = None if axis == -1 and op != "Flatten" else axis
        if op == "Flatten":
            attributes["axis"] = s.pick(*range(rank + 1))
    if op in ("ArgMax", "ArgMin"):
        attributes.setdefault("keepdims", s.pick(1, 0))
    return [x]


def cast(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    kinds = [*FLOATS, INT64, ir.DataType.INT32, BOOL]
    source = s.pick(s.dtype, *kinds)
    x = slots[0](Want(shape=want.shape, dtype=source, exact=want.exact, positive=want.positive))
    if op == "CastLike":
        like = slots[1](Want(shape=(), dtype=want.dtype or s.pick(*kinds)))
        return [x, like]
    if "to" not in attributes:
        attributes["to"] = int(want.dtype or s.pick(*kinds))
    return [x]


def matmul(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    first, second = _order(s, slots)
    shape = want.shape if want.shape is not None and len(want.shape) >= 2 else s.shape(least=2)
    values: Operands = [None, None]
    values[first] = slots[first](Want(shape=shape, dtype=want.dtype or s.dtype, exact=True))
    dims = s.dims(needed(values[first]))
    if not dims:
        raise Impossible
    inner = dims[-1] if first == 0 or len(dims) == 1 else dims[-2]
    free: Size = s.pick(3, 2, 4, 1)
    if want.exact and want.shape is not None and first == 0 and len(want.shape) >= 2:
        free = want.shape[-1]
    kind = s.pick("matrix", "batch", "vector") if not want.exact else "matrix"
    if kind == "vector":
        partner: tuple[Size, ...] = (inner,)
    else:
        partner = (inner, free) if first == 0 else (free, inner)
        if kind == "batch" and len(dims) > 2:
            partner = (*(s.pick(1, d) for d in dims[:-2]), *partner)
    values[second] = slots[second](Want(shape=partner, dtype=want.dtype or s.dtype, exact=True))
    return values


def gemm(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    for name in ("transA", "transB"):
        attributes.setdefault(name, s.pick(0, 1))
    for name in ("alpha", "beta"):
        attributes.setdefault(name, s.pick(None, 0.5, 2.0))
    exact = want.shape if want.shape is not None and len(want.shape) == 2 else None
    rows, columns = exact if exact is not None else (s.shape(1, 1)[0], s.pick(3, 2, 4, 1))
    shape = (rows, s.pick(4, 2, 3, 1))
    shape = shape[::-1] if attributes["transA"] else shape
    a = needed(slots[0](Want(shape=shape, dtype=s.dtype, exact=True)))
    dims = s.dims(a)
    if len(dims) != 2:
        raise Impossible
    inner, rows = (dims[0], dims[1]) if attributes["transA"] else (dims[1], dims[0])
    shape = (columns, inner) if attributes["transB"] else (inner, columns)
    values: Operands = [a, slots[1](Want(shape=shape, dtype=s.dtype, exact=True))]
    if len(slots) > 2:
        if slots[2].can_be_absent and s.chance(2):
            values.append(slots[2](Want(absent=True)))
        else:
            bias = s.pick((columns,), (rows, columns), (1, columns), (rows, 1), (), (1,))
            values.append(slots[2](Want(shape=bias, dtype=s.dtype, exact=True)))
    return values


def _window(s: Sketch, attributes: Attributes, spatial: int, kernel: Sequence[int]) -> None:
    """Strides, pads and dilations."""
    if "strides" not in attributes:
        attributes["strides"] = s.pick(None, [1] * spatial, [2] * spatial)
    if "dilations" not in attributes:
        attributes["dilations"] = s.pick(None, [2] * spatial) if max(kernel) <= 2 else None
    if attributes.get("auto_pad") in (None, "NOTSET") and "pads" not in attributes:
        pads = [s.pick(0, 1) for _ in range(spatial)] + [s.pick(0, 1) for _ in range(spatial)]
        attributes["pads"] = [min(p, k - 1) for p, k in zip(pads, (*kernel, *kernel), strict=True)]
        if "auto_pad" not in attributes and s.chance(4) and not attributes["dilations"]:
            attributes["auto_pad"], attributes["pads"] = s.pick("SAME_UPPER", "SAME_LOWER", "VALID"), None


def conv(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    x = needed(slots[0](Want(shape=image(s, want), dtype=s.dtype, exact=True)))
    dims = s.dims(x)
    if len(dims) < 3 or not isinstance(dims[1], int):
        raise Impossible
    channels, spatial = dims[1], len(dims) - 2
    group = attributes.setdefault("group", s.pick(1, channels, 2))
    if not isinstance(group, int) or channels % group:
        raise Impossible
    kernel = [s.pick(1, 3, 2) for _ in range(spatial)]
    attributes.pop("kernel_shape", None)
    _window(s, attributes, spatial, kernel)
    features = group * s.pick(1, 2, 3)
    if op == "ConvTranspose":
        attributes["auto_pad"], attributes["dilations"] = None, None
        attributes["pads"] = attributes.get("pads") or [0] * (2 * spatial)
        weight = (channels, features // group, *kernel)
    else:
        weight = (features, channels // group, *kernel)
    values: Operands = [x, slots[1](Want(shape=weight, dtype=s.dtype, exact=True))]
    if len(slots) > 2:
        absent = slots[2].can_be_absent and s.chance(2)
        values.append(slots[2](Want(absent=absent, shape=(features,), dtype=s.dtype, exact=True)))
    return values


def pool(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    x = needed(slots[0](Want(shape=image(s, want), dtype=s.dtype, exact=True)))
    spatial = len(s.dims(x)) - 2
    if spatial < 1:
        raise Impossible
    if not op.startswith("Global"):
        kernel = attributes.setdefault("kernel_shape", [s.pick(2, 3) for _ in range(spatial)])
        attributes["dilations"] = None
        _window(s, attributes, spatial, kernel)
        if op == "AveragePool":
            attributes.setdefault("count_include_pad", s.pick(0, 1))
    return [x]


def per_channel(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    """BatchNormalization and InstanceNormalization."""
    shape = want.shape if want.shape is not None and len(want.shape) >= 2 else image(s, want)
    x = needed(slots[0](Want(shape=shape, dtype=s.dtype, exact=True)))
    dims = s.dims(x)
    if len(dims) < 2:
        raise Impossible
    attributes.setdefault("epsilon", s.pick(None, 0.125))
    values: Operands = [x]
    for index, slot in enumerate(slots[1:], 1):
        values.append(slot(Want(shape=(dims[1],), dtype=s.dtype, exact=True, positive=index == 4)))
    return values


def normalized(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    """LayerNormalization and RMSNormalization."""
    shape = want.shape if want.shape else s.shape(least=1)
    x = needed(slots[0](Want(shape=shape, dtype=want.dtype or s.dtype, exact=True)))
    dims = s.dims(x)
    axis = attributes.setdefault("axis", s.pick(*range(-1, -len(dims) - 1, -1)))
    attributes.setdefault("epsilon", s.pick(None, 0.125))
    values: Operands = [x]
    for slot in slots[1:]:
        if slot.can_be_absent and s.chance(2):
            values.append(slot(Want(absent=True)))
        else:
            values.append(slot(Want(shape=dims[axis:], dtype=x.dtype, exact=True)))
    return values


def passing(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    """Only the first operand: Identity, Dropout, Shape."""
    x = slots[0](want if op != "Shape" else Want())
    return [x, *(slot(Want(absent=True)) for slot in slots[1:])]


def sequence(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    """Operators on sequences, which are made of two tensors."""
    shape = s.shape(least=1, most=3)
    if op == "SequenceConstruct":
        return [slot(Want(shape=shape, dtype=s.dtype, exact=True)) for slot in slots]
    if op == "SplitToSequence":
        x = s.leaf(Want(shape=(4, *shape[1:]), dtype=s.dtype))
        attributes.setdefault("axis", 0)
        attributes.setdefault("keepdims", s.pick(1, 0))
        return [x, s.constant(np.array(2, np.int64))] if s.chance(2) else [x]
    leaves = [Slot(lambda w: s.leaf(w))] * s.pick(2, 3)
    kind = s.pick("SequenceConstruct", "SplitToSequence")
    made, _ = build(s, kind, leaves, {}, Want())
    values: Operands = [made.outputs[0]]
    if op == "SequenceAt":
        values.append(s.constant(np.array(s.pick(0, 1, -1), np.int64)))
    if op == "ConcatFromSequence":
        attributes.setdefault("axis", s.pick(0, -1))
        attributes.setdefault("new_axis", s.pick(0, 1))
    return values


_REDUCTIONS = ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp")
OPERATORS: dict[str, Draw] = {
    **{f"Reduce{kind}": reduce for kind in _REDUCTIONS},
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "ArgMax", "ArgMin", "Flatten"), along_axis),
    **dict.fromkeys(("Cast", "CastLike"), cast),
    "MatMul": matmul,
    "Gemm": gemm,
    **dict.fromkeys(("Conv", "ConvTranspose"), conv),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"), pool),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), per_channel),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), normalized),
    "Transpose": transpose,
    "Reshape": reshape,
    **dict.fromkeys(("Squeeze", "Unsqueeze"), squeeze),
    **dict.fromkeys(("Expand", "Tile"), expand),
    "Slice": slices,
    "Concat": concat,
    "Pad": pad,
    "Split": split,
    "Gather": gather,
    **dict.fromkeys(("Resize", "Upsample"), resize),
    **dict.fromkeys(("Identity", "Dropout", "Shape"), passing),
    "Where": where,
    "Clip": clip,
    **dict.fromkeys(
        ("SequenceAt", "ConcatFromSequence", "SequenceLength", "SequenceConstruct", "SplitToSequence"),
        sequence,
    ),
}
"""How to draw each kind of operator."""

ARITY = {
    **dict.fromkeys(("Sum", "Mean", "Max", "Min"), (2, 1, 3)),
    "Concat": (2, 1, 3),
    "SequenceConstruct": (2, 3),
    "Clip": (3,),
    "Pad": (2, 3),
    "Slice": (4, 5, 3),
    "Resize": (3,),
    "Gemm": (3, 2),
    "Conv": (2, 3),
    "ConvTranspose": (2, 3),
    "LayerNormalization": (2, 3),
    "Split": (1, 2),
    "Squeeze": (2, 1),
    "Dropout": (1,),
}
"""How many operands to draw, where the schema leaves it open; the first is the simplest."""
