"""What an operator asks of its operands, so that drawn models are valid more often than not.

One function for each kind of operator: it builds the operands in a good order, asking each for a shape that
fits those already there, and draws the attributes that were not given. An operator that is not here takes
operands of one shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.check.sketch import FLOATS, Array, Impossible, Size, Sketch, Slot, Want, schema_of, wanted

Operands = list["ir.Value | None"]
Attributes = dict[str, Any]
Draw = Callable[[Sketch, str, Sequence[Slot], Attributes, Want], Operands]

BOOL, INT64 = ir.DataType.BOOL, ir.DataType.INT64
PARTS = "_parts"
"""Not an attribute: tells `split` how many outputs its node has."""
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


def _need(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise Impossible
    return value


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
        dims = s.dims(_need(values[first]))
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
            shape = s.dims(_need(values[i]))
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
    dtype = _need(x).dtype or s.dtype
    for slot, bound in zip(slots[1:], (low, high), strict=False):
        values.append(_bound(s, slot, np.array(bound, dtype.numpy())))
    return values


def _bound(s: Sketch, slot: Slot, array: Array) -> ir.Value | None:
    if slot.can_be_absent and s.chance(3):
        return slot(Want(absent=True))
    return slot(Want(array=array, shape=array.shape, dtype=ir.DataType.from_numpy(array.dtype)))


def integers(s: Sketch, slots: Sequence[Slot], index: int, numbers: Sequence[int] | None) -> ir.Value | None:
    """An operand of known integers (axes, a shape), or none."""
    if index >= len(slots):
        return None
    if numbers is None:
        return slots[index](Want(absent=True))
    array = np.array(numbers, np.int64)
    return slots[index](Want(array=array, shape=array.shape, dtype=INT64))


def _signed(s: Sketch, axis: int, rank: int) -> int:
    return axis - rank if s.chance(3) else axis


def reduce(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    shape = want.shape if want.shape is not None and want.shape else s.shape(least=1)
    positive = op in ("ReduceLogSum", "ReduceProd") or want.positive
    x = _need(slots[0](Want(shape=shape, dtype=want.dtype or s.dtype, positive=positive)))
    rank = len(s.dims(x))
    if rank == 0:
        raise Impossible
    attributes.setdefault("keepdims", s.pick(1, 0))
    chosen = s.again(("axes", rank), lambda: s.pick([rank - 1], s.subset(range(rank), least=1)))
    axes: list[int] | None = [_signed(s, axis, rank) for axis in chosen]
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
    x = _need(slots[0](wanted(want, shape=shape, dtype=s.dtype)))
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
    dims = s.dims(_need(values[first]))
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
    a = _need(slots[0](Want(shape=shape, dtype=s.dtype, exact=True)))
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


def _image(s: Sketch, want: Want) -> tuple[Size, ...]:
    if want.shape is not None and len(want.shape) >= 3:
        return want.shape
    spatial = s.pick(2, 1)
    batch: Size = s.shape(1, 1)[0]
    return (batch, s.pick(4, 2, 3, 1), *(s.pick(5, 4, 6) for _ in range(spatial)))


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
    x = _need(slots[0](Want(shape=_image(s, want), dtype=s.dtype, exact=True)))
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
    x = _need(slots[0](Want(shape=_image(s, want), dtype=s.dtype, exact=True)))
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
    shape = want.shape if want.shape is not None and len(want.shape) >= 2 else _image(s, want)
    x = _need(slots[0](Want(shape=shape, dtype=s.dtype, exact=True)))
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
    x = _need(slots[0](Want(shape=shape, dtype=want.dtype or s.dtype, exact=True)))
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


def transpose(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    from hypothesis import strategies as st

    shape = want.shape if want.shape is not None else s.shape(least=1)
    perm = attributes.get("perm")
    if perm is None and "perm" not in attributes:
        perm = s.again(("perm", len(shape)), lambda: s.draw(st.permutations(range(len(shape)))))
        attributes["perm"] = list(perm) if shape else None
    order = perm if perm is not None else list(range(len(shape)))[::-1]
    if sorted(order) != list(range(len(shape))):
        raise Impossible
    source: list[Size] = [0] * len(shape)
    for i, axis in enumerate(order):
        source[axis] = shape[i]
    return [slots[0](wanted(want, shape=tuple(source)))]


def reshape(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    shape = want.shape if want.shape is not None else s.shape(least=1)
    x = _need(slots[0](Want(shape=shape if s.chance(2) else s.shape(least=1), dtype=want.dtype)))
    dims = s.dims(x)
    still = [i for i, d in enumerate(dims) if not isinstance(d, int)]
    if len(still) > 1 or (still and still[0] != 0):
        target = [0 if not isinstance(d, int) else d for d in dims]
    else:
        rest = math.prod(d for d in dims if isinstance(d, int))
        static = s.pick([rest], [rest, 1], [1, rest], _halves(rest), list(dims[1:] if still else dims))
        target = [0 if s.chance(2) else -1, *static] if still else list(static)
        if not still and target and s.chance(3):
            target[s.pick(*range(len(target)))] = -1
    return [x, integers(s, slots, 1, target)]


def _halves(number: int) -> list[int]:
    factor = next((f for f in (2, 3, 5) if number % f == 0), 1)
    return [factor, number // factor]


def squeeze(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    shape = list(want.shape if want.shape is not None else s.shape(most=3))
    number = s.pick(1, 2)
    axes = sorted({s.pick(*range(len(shape) + 1)) for _ in range(number)})
    if op == "Squeeze":
        for axis in axes:
            shape.insert(axis, 1)
        shape = shape[:5]
        x = _need(slots[0](wanted(want, shape=tuple(shape), exact=True)))
        dims = s.dims(x)
        axes = [a for a in axes if a < len(dims) and dims[a] == 1]
        rank = len(dims)
    else:
        if want.shape is not None:
            axes = [i for i, size in enumerate(shape) if size == 1][:number]
            shape = [size for i, size in enumerate(shape) if i not in axes]
        x = _need(slots[0](wanted(want, shape=tuple(shape), exact=True) if want.shape is not None else want))
        rank = len(s.dims(x)) + len(axes)
        if want.shape is None:
            # Perhaps the very axes that a reduction took away.
            known = [a for (_, r), a in s.memory.items() if _ == "axes" and r == len(s.dims(x)) + len(a)]
            axes = known[0] if known and s.chance(2) else [a for a in axes if a < rank]
            rank = len(s.dims(x)) + len(axes)
    # No axes at all is not the same as none given, and runtimes disagree about it.
    chosen: list[int] | None = [_signed(s, a, rank) for a in axes] or None
    if op == "Squeeze" and s.chance(6):
        chosen = None
    if s.opset < 13:
        attributes.setdefault("axes", chosen)
        return [x]
    return [x, integers(s, slots, 1, chosen)] if len(slots) > 1 else [x]


def expand(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    x = _need(slots[0](Want(shape=want.shape, dtype=want.dtype)))
    dims = s.dims(x)
    if op == "Tile":
        return [x, integers(s, slots, 1, [s.pick(1, 2) for _ in dims])]
    target = [d if isinstance(d, int) and (d != 1 or s.chance(2)) else 1 for d in dims]
    target = [s.pick(3, 1) if d == 1 and isinstance(dims[i], int) else d for i, d in enumerate(target)]
    if s.chance(3) and len(target) < 5:
        target = [s.pick(2, 1), *target]
    return [x, integers(s, slots, 1, target)]


def slices(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    shape = want.shape if want.shape else s.shape(least=1)
    x = _need(slots[0](Want(shape=shape, dtype=want.dtype)))
    rank = len(s.dims(x))
    axes = s.subset(range(rank), least=1)
    steps = [s.pick(1, 2, -1) for _ in axes] if len(slots) > 4 and s.chance(2) else None
    starts, ends = [], []
    for i in range(len(axes)):
        back = steps is not None and steps[i] < 0
        starts.append(s.pick(-1) if back else s.pick(0, 1, -2))
        ends.append(s.pick(-(2**62)) if back else s.pick(2**62, 3, -1))
    if s.opset < 10:
        attributes.update(axes=axes, starts=starts, ends=ends)
        return [x]
    signed = [_signed(s, a, rank) for a in axes]
    values = [x, integers(s, slots, 1, starts), integers(s, slots, 2, ends), integers(s, slots, 3, signed)]
    return [*values, integers(s, slots, 4, steps)]


def concat(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    shape = want.shape if want.shape else s.shape(least=1)
    first = _need(slots[0](wanted(want, shape=shape)))
    dims = s.dims(first)
    if not dims:
        raise Impossible
    axis = attributes.get("axis")
    if axis is None:
        axis = attributes["axis"] = _signed(s, s.pick(*range(len(dims))), len(dims))
    values: Operands = [first]
    for slot in slots[1:]:
        other = list(dims)
        other[axis] = s.pick(dims[axis], 2, 1, 0)
        values.append(slot(Want(shape=tuple(other), dtype=first.dtype, exact=True)))
    return values


def pad(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    shape = want.shape if want.shape else _image(s, want) if s.chance(2) else s.shape(least=1)
    x = _need(slots[0](Want(shape=shape, dtype=want.dtype)))
    rank = len(s.dims(x))
    quiet = rank > 2 and s.chance(2)  # leave batch and channels alone
    sides = [0 if quiet and i % rank < 2 else s.pick(0, 1, 2) for i in range(2 * rank)]
    attributes.setdefault("mode", s.pick(None, "edge", "reflect") if s.chance(3) else None)
    if s.opset < 11:
        attributes.setdefault("pads", sides)
        return [x]
    values = [x, integers(s, slots, 1, sides)]
    if len(slots) > 2:
        value = np.array(s.pick(0, 1), (x.dtype or s.dtype).numpy())
        values.append(_bound(s, slots[2], value))
    return values


def split(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    shape = want.shape if want.shape else s.shape(least=1)
    x = _need(slots[0](Want(shape=shape, dtype=want.dtype)))
    dims = s.dims(x)
    axes = [i for i, d in enumerate(dims) if isinstance(d, int) and d > 1]
    if not axes:
        raise Impossible
    attributes.setdefault("axis", s.pick(*axes))
    size, parts = dims[attributes["axis"]], attributes.pop(PARTS, 2)
    if size < parts:
        raise Impossible
    if len(slots) > 1:
        return [x, integers(s, slots, 1, [1] * (parts - 1) + [size - parts + 1])]
    if s.opset >= 18:
        attributes["num_outputs"] = parts
    elif size % parts:
        raise Impossible
    return [x]


def gather(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    shape = want.shape if want.shape else s.shape(least=1)
    x = _need(slots[0](Want(shape=shape, dtype=want.dtype)))
    rank = len(s.dims(x))
    attributes.setdefault("axis", s.pick(*range(rank)) if rank else 0)
    indices = np.array(s.pick([0], 0, [0, -1], [[0]]), np.int64)
    return [x, slots[1](Want(array=indices, shape=indices.shape, dtype=INT64))]


def resize(s: Sketch, op: str, slots: Sequence[Slot], attributes: Attributes, want: Want) -> Operands:
    x = _need(slots[0](Want(shape=_image(s, want), dtype=s.dtype)))
    rank = len(s.dims(x))
    attributes.setdefault("mode", s.pick("nearest", "linear"))
    scales = np.array([1, 1, *(s.pick(1, 2) for _ in range(rank - 2))], np.float32)
    wants = Want(array=scales, shape=scales.shape, dtype=ir.DataType.FLOAT)
    if op == "Upsample" or s.opset < 11:
        return [x, slots[1](wants)]
    modes = ("half_pixel", "asymmetric", "align_corners")
    attributes.setdefault("coordinate_transformation_mode", s.pick(*modes))
    return [x, slots[1](Want(absent=True)), slots[2](wants)]


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
