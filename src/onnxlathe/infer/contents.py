"""Arithmetic on the known contents of small tensors.

A *content* is a numpy object array. Its entries are

* integer tensors: ``int``, :class:`Dim`, or ``None`` (this entry is unknown);
* boolean tensors: ``bool`` or ``None``;
* float tensors: ``float`` (exactly what the operator computes in the tensor's precision), a ``Dim`` or a
  :class:`Ratio` (a size that was cast to float, perhaps scaled), or ``None``.

Exporters compute shapes through floats (``Cast``, ``Div``, ``Floor``, ``Cast``): ``Ratio`` carries them
through. Sizes are taken to be small enough (below 2**22) for the float format to be exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from onnx_ir import DataType

from onnxlathe.infer.dims import Dim, Expr, ceil_div, floor_div, lower, maximum, minimum, upper

__all__ = ["Content", "Ratio", "as_content", "binary", "cast", "settle", "unary"]

Content = npt.NDArray[np.object_]
Entry = Any  # bool | int | float | Dim | Ratio | None

MAX_ENTRIES = 1024

INTEGER_RANGES: dict[DataType, tuple[int, int]] = {
    DataType.INT4: (-8, 7),
    DataType.INT8: (-(2**7), 2**7 - 1),
    DataType.INT16: (-(2**15), 2**15 - 1),
    DataType.INT32: (-(2**31), 2**31 - 1),
    DataType.INT64: (-(2**63), 2**63 - 1),
    DataType.UINT4: (0, 15),
    DataType.UINT8: (0, 2**8 - 1),
    DataType.UINT16: (0, 2**16 - 1),
    DataType.UINT32: (0, 2**32 - 1),
    DataType.UINT64: (0, 2**64 - 1),
}
FLOATS: dict[DataType, Any] = {
    DataType.FLOAT: np.float32,
    DataType.DOUBLE: np.float64,
    DataType.FLOAT16: np.float16,
    DataType.BFLOAT16: ml_dtypes.bfloat16,
}
_MAX_DENOMINATOR = 4096  # factors such as 0.5 and 0.25 are exact; 1/3 in float32 is not a ratio of sizes


class Ratio:
    """``numerator / denominator`` inside a float tensor: a size that was scaled. ``denominator`` > 1."""

    __slots__ = ("denominator", "numerator")

    def __init__(self, numerator: Dim, denominator: int) -> None:
        self.numerator = numerator
        self.denominator = denominator

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ratio) and (self.numerator, self.denominator) == (
            other.numerator,
            other.denominator,
        )

    def __hash__(self) -> int:
        return hash((self.numerator, self.denominator))

    def __repr__(self) -> str:
        return f"Ratio({self.numerator!s}, {self.denominator})"


def _ratio(numerator: Expr, denominator: int) -> Entry:
    """The entry for a quotient in a float tensor."""
    factor = denominator
    for _, coefficient in numerator.terms if isinstance(numerator, Dim) else (((), numerator),):
        factor = math.gcd(factor, coefficient)
    numerator, denominator = floor_div(numerator, factor), denominator // factor
    if isinstance(numerator, int):
        return numerator / denominator
    return numerator if denominator == 1 else Ratio(numerator, denominator)


def _as_quotient(entry: Entry) -> tuple[Expr, int] | None:
    """A float tensor's entry as exact numerator and denominator."""
    if isinstance(entry, Dim):
        return entry, 1
    if isinstance(entry, Ratio):
        return entry.numerator, entry.denominator
    if not math.isfinite(entry):
        return None
    fraction = Fraction(entry)
    if fraction.denominator > _MAX_DENOMINATOR or abs(fraction.numerator) > 2**40:
        return None
    return fraction.numerator, fraction.denominator


def as_content(entries: Any, shape: tuple[int, ...] | None = None) -> Content:
    """An object array of the entries (a flat list, an array, or one entry for a scalar)."""
    if isinstance(entries, np.ndarray):
        result = entries if entries.dtype == object else entries.astype(object)
    elif isinstance(entries, list | tuple):
        result = np.empty(len(entries), object)
        for i, entry in enumerate(entries):
            result[i] = entry
    else:
        result = np.empty((), object)
        result[()] = entries
    return result if shape is None else result.reshape(shape)


def settle(content: Content, dtype: DataType | None) -> Content | None:
    """The content with integers that overflow the type made unknown; None when nothing is known."""
    limits = INTEGER_RANGES.get(dtype) if dtype is not None else None
    anything = False
    flat = content.reshape(-1)
    for i in range(flat.size):
        entry = flat[i]
        if entry is None:
            continue
        if limits is not None and type(entry) is int and not limits[0] <= entry <= limits[1]:
            if flat.base is not None:
                flat = flat.copy()
            flat[i] = None
            continue
        anything = True
    if flat.size and not anything:
        return None
    return flat.reshape(content.shape)


def unary(function: Callable[[Entry, DataType], Entry], a: Content, dtype: DataType) -> Content:
    """Applies a function to each known entry."""
    flat = [None if x is None else function(x, dtype) for x in a.reshape(-1)]
    return as_content(flat, a.shape)


def binary(
    function: Callable[[Entry, Entry, DataType], Entry], a: Content, b: Content, dtype: DataType
) -> Content:
    """Applies a function to each pair of entries, broadcasting; the function sees None entries too.

    Raises:
        ValueError: the shapes do not broadcast.
    """
    if a.shape != b.shape:
        a, b = np.broadcast_arrays(a, b)
    flat = [function(x, y, dtype) for x, y in zip(a.reshape(-1), b.reshape(-1), strict=True)]
    return as_content(flat, a.shape)


def _strict(
    function: Callable[[Entry, Entry, DataType], Entry],
) -> Callable[[Entry, Entry, DataType], Entry]:
    """A function that knows nothing where an operand is unknown."""

    def wrapped(x: Entry, y: Entry, dtype: DataType) -> Entry:
        return None if x is None or y is None else function(x, y, dtype)

    return wrapped


def round_float(value: float, dtype: DataType) -> Entry:
    """A float as the type holds it; None for types whose rounding we do not know."""
    kind = FLOATS.get(dtype)
    if kind is None:
        return None
    with np.errstate(all="ignore"):
        return float(kind(value))


def _float_arithmetic(
    exact: Callable[[Any, Any], Any], quotient: Callable[[Any, Any], Entry]
) -> Callable[[Entry, Entry, DataType], Entry]:
    """A float operator: IEEE on numbers, exact quotients where a size is involved."""

    def apply(x: Entry, y: Entry, dtype: DataType) -> Entry:
        if isinstance(x, float) and isinstance(y, float):
            kind = FLOATS.get(dtype)
            if kind is None:
                return None
            with np.errstate(all="ignore"):
                return float(kind(exact(kind(x), kind(y))))
        left, right = _as_quotient(x), _as_quotient(y)
        if left is None or right is None:
            return None
        return quotient(left, right)

    return apply


def _quotient_divide(left: tuple[Expr, int], right: tuple[Expr, int]) -> Entry:
    (a, b), (c, d) = left, right
    if isinstance(c, int):
        if c == 0:
            return None
        return _ratio(a * d if c > 0 else -a * d, b * abs(c))
    whole = floor_div(a * d, b * c)
    return _ratio(whole, 1) if whole * (b * c) == a * d else None


_FLOAT_OPS = {
    "Add": _float_arithmetic(lambda x, y: x + y, lambda p, q: _ratio(p[0] * q[1] + q[0] * p[1], p[1] * q[1])),
    "Sub": _float_arithmetic(lambda x, y: x - y, lambda p, q: _ratio(p[0] * q[1] - q[0] * p[1], p[1] * q[1])),
    "Mul": _float_arithmetic(lambda x, y: x * y, lambda p, q: _ratio(p[0] * q[0], p[1] * q[1])),
    "Div": _float_arithmetic(lambda x, y: x / y, _quotient_divide),
}


def _arithmetic(
    name: str, integers: Callable[[Entry, Entry], Entry]
) -> Callable[[Entry, Entry, DataType], Entry]:
    floats = _FLOAT_OPS.get(name)

    def apply(x: Entry, y: Entry, dtype: DataType) -> Entry:
        if x is None or y is None:
            # 0 * unknown is 0 among integers; nothing else survives an unknown operand.
            if name == "Mul" and dtype in INTEGER_RANGES and (x == 0 or y == 0):
                return 0
            return None
        if dtype in INTEGER_RANGES:
            return integers(x, y)
        return floats(x, y, dtype) if floats is not None and dtype in FLOATS else None

    return apply


def _truncating_divide(x: Expr, y: Expr) -> Entry:
    """ONNX's integer ``Div`` rounds toward zero."""
    if isinstance(y, int) and y == 0:
        return None
    if isinstance(x, int) and isinstance(y, int):
        size = abs(x) // abs(y)
        return size if (x >= 0) == (y >= 0) else -size
    whole = floor_div(x, y)
    x_low, y_low = lower(x), lower(y)
    if (x_low is not None and x_low >= 0 and y_low is not None and y_low >= 0) or whole * y == x:
        return whole
    return None


def _modulo(x: Expr, y: Expr) -> Entry:
    return None if isinstance(y, int) and y == 0 else x % y


def _power(x: Expr, y: Expr) -> Entry:
    return x**y if isinstance(y, int) and 0 <= y <= 8 else None


def _compare(decide: Callable[[Any], Entry]) -> Callable[[Entry, Entry, DataType], Entry]:
    def apply(x: Entry, y: Entry, dtype: DataType) -> Entry:
        if isinstance(x, Ratio | float) or isinstance(y, Ratio | float):
            return decide(x - y) if isinstance(x, float) and isinstance(y, float) else None
        if isinstance(x, bool) or isinstance(y, bool):
            return decide(int(x) - int(y))
        return decide(x - y)

    return _strict(apply)


def _is_zero(difference: Expr | float) -> Entry:
    if isinstance(difference, float):
        return None if math.isnan(difference) else difference == 0
    low, high = lower(difference), upper(difference)
    if low == 0 and high == 0:
        return True
    return False if (low is not None and low > 0) or (high is not None and high < 0) else None


def _is_negative(difference: Expr | float) -> Entry:
    if isinstance(difference, float):
        return None if math.isnan(difference) else difference < 0
    low, high = lower(difference), upper(difference)
    if high is not None and high < 0:
        return True
    return False if low is not None and low >= 0 else None


def _negate(entry: Entry) -> Entry:
    return None if entry is None else not entry


def _extreme(
    symbolic: Callable[..., Expr], plain: Callable[..., Any]
) -> Callable[[Entry, Entry, DataType], Entry]:
    def apply(x: Entry, y: Entry, dtype: DataType) -> Entry:
        if isinstance(x, float) and isinstance(y, float):
            return None if math.isnan(x) or math.isnan(y) else plain(x, y)
        return symbolic(x, y) if dtype in INTEGER_RANGES else None

    return _strict(apply)


def _and(x: Entry, y: Entry, dtype: DataType) -> Entry:
    if x is False or y is False:
        return False
    return None if x is None or y is None else bool(x and y)


def _or(x: Entry, y: Entry, dtype: DataType) -> Entry:
    if x is True or y is True:
        return True
    return None if x is None or y is None else bool(x or y)


BINARY: dict[str, Callable[[Entry, Entry, DataType], Entry]] = {
    "Add": _arithmetic("Add", lambda x, y: x + y),
    "Sub": _arithmetic("Sub", lambda x, y: x - y),
    "Mul": _arithmetic("Mul", lambda x, y: x * y),
    "Div": _arithmetic("Div", _truncating_divide),
    "Mod": _arithmetic("Mod", _modulo),
    "Pow": _arithmetic("Pow", _power),
    "Min": _extreme(minimum, min),
    "Max": _extreme(maximum, max),
    "Equal": _compare(_is_zero),
    "Less": _compare(_is_negative),
    "Greater": _compare(lambda d: _is_negative(-d)),
    "LessOrEqual": _compare(lambda d: _negate(_is_negative(-d))),
    "GreaterOrEqual": _compare(lambda d: _negate(_is_negative(d))),
    "And": _and,
    "Or": _or,
    "Xor": _strict(lambda x, y, dtype: bool(x) != bool(y)),
}


def _absolute(x: Entry, dtype: DataType) -> Entry:
    if isinstance(x, Dim):
        low = lower(x)
        return x if low is not None and low >= 0 else maximum(x, -x)
    return None if isinstance(x, Ratio) else abs(x)


def _rounded(
    numbers: Callable[[float], Any], symbolic: Callable[[Expr, Expr], Expr]
) -> Callable[[Entry, DataType], Entry]:
    def apply(x: Entry, dtype: DataType) -> Entry:
        if isinstance(x, Ratio):
            return _ratio(symbolic(x.numerator, x.denominator), 1)
        if isinstance(x, float):
            return float(numbers(x))
        return x

    return apply


def _round_half_even(x: Entry, dtype: DataType) -> Entry:
    if isinstance(x, float):
        return float(np.rint(x))
    return x if isinstance(x, Dim) else None


def _square_root(x: Entry, dtype: DataType) -> Entry:
    kind = FLOATS.get(dtype)
    return float(np.sqrt(kind(x))) if isinstance(x, float) and kind is not None and x >= 0 else None


def _sign(x: Entry, dtype: DataType) -> Entry:
    if isinstance(x, Dim | Ratio):
        return None
    return float(np.sign(x)) if isinstance(x, float) else (x > 0) - (x < 0)


UNARY: dict[str, Callable[[Entry, DataType], Entry]] = {
    "Neg": lambda x, dtype: Ratio(-x.numerator, x.denominator) if isinstance(x, Ratio) else -x,  # type: ignore[arg-type]
    "Abs": _absolute,
    "Ceil": _rounded(np.ceil, ceil_div),
    "Floor": _rounded(np.floor, floor_div),
    "Round": _round_half_even,
    "Sqrt": _square_root,
    "Sign": _sign,
    "Not": lambda x, dtype: not x,
    "Identity": lambda x, dtype: x,
}


def cast(x: Entry, target: DataType) -> Entry:
    """One entry as ``Cast`` makes it; None where that is not certain."""
    if x is None:
        return None
    if target in INTEGER_RANGES:
        if isinstance(x, Ratio):
            low = lower(x.numerator)
            return floor_div(x.numerator, x.denominator) if low is not None and low >= 0 else None
        if isinstance(x, Dim):
            return x
        if isinstance(x, float):
            if not math.isfinite(x):
                return None
            x = math.trunc(x)
        low_limit, high_limit = INTEGER_RANGES[target]
        return int(x) if low_limit <= x <= high_limit else None
    if target == DataType.BOOL:
        if isinstance(x, Dim):
            low = lower(x)
            return True if low is not None and low > 0 else None
        return None if isinstance(x, Ratio) or x != x else bool(x)
    if target in FLOATS:
        if isinstance(x, Dim | Ratio):
            return x if target in (DataType.FLOAT, DataType.DOUBLE) else None
        return round_float(x, target)
    return None


def fold_reduce(name: str, entries: list[Entry], dtype: DataType) -> Entry:
    """What ``ReduceSum``, ``ReduceProd``, ``ReduceMax`` or ``ReduceMin`` make of integer entries."""
    if any(e is None for e in entries) or dtype not in INTEGER_RANGES:
        return None
    if name == "ReduceMax":
        return maximum(*entries) if entries else None
    if name == "ReduceMin":
        return minimum(*entries) if entries else None
    result: Expr = 0 if name == "ReduceSum" else 1
    for entry in entries:
        result = result + entry if name == "ReduceSum" else result * entry
    return result
