"""The numbers of a comparison: two arrays and a tolerance in, one `Comparison` out.

Large outputs are gone through in pieces, so that the double precision used here never holds a whole one.
"""

from __future__ import annotations

import math

import numpy as np

from .tolerance import EXACT, NORM_ATOL, Tolerance
from .verdict import Comparison

_PIECE = 1 << 20  # elements looked at at a time


def dtype_name(array: np.ndarray) -> str:
    """The ONNX-like name of an array's element type."""
    return "string" if array.dtype.kind in "OUST" else array.dtype.name


def compare(
    output: str, feed: int, expected: np.ndarray, actual: np.ndarray, tolerance: Tolerance
) -> Comparison:
    """Compare one output with what it should be.

    Args:
        output: its name.
        feed: index of the feed it is from.
        expected: the original's.
        actual: the optimized model's.
        tolerance: what is allowed; ignored for strings.
    """
    result = Comparison(
        output, feed, dtype_name(expected), list(expected.shape), passed=False, tolerance=tolerance
    )
    if dtype_name(actual) != result.dtype:
        result.reason = f"has type {dtype_name(actual)} instead of {result.dtype}"
    elif actual.shape != expected.shape:
        result.reason = f"has shape {list(actual.shape)} instead of {result.shape}"
    elif result.dtype == "string":
        _compare_exactly(result, expected, actual)
    elif expected.dtype.kind in "iub" and np.array_equal(expected, actual):
        result.finite, result.passed = expected.size, True
    else:
        _measure(result, _plain(expected), _plain(actual))
        _judge(result)
        if result.passed and tolerance == EXACT and not np.array_equal(expected, actual, equal_nan=True):
            result.passed, result.reason = False, "differs in the last digits of large integers"
    if result.reason and not result.excess:
        result.excess = math.inf
    return result


def _compare_exactly(result: Comparison, expected: np.ndarray, actual: np.ndarray) -> None:
    wrong = int(np.count_nonzero(expected.astype(object) != actual.astype(object)))
    result.passed, result.finite = wrong == 0, expected.size
    if wrong:
        result.reason = f"differs in {wrong} of {expected.size} strings"


def _plain(array: np.ndarray) -> np.ndarray:
    """Something numpy can count with: no ml_dtypes, no complex numbers, no leading dimensions of one."""
    if array.dtype.kind == "c":
        array = np.ascontiguousarray(array).view(array.real.dtype)
    elif array.dtype.kind == "V" or array.dtype.name.startswith(
        ("bfloat", "float8", "float4", "int4", "uint4")
    ):
        array = array.astype(np.float32)
    while array.ndim > 1 and array.shape[0] == 1:
        array = array[0]
    return np.atleast_1d(array)


def _root_mean_square(array: np.ndarray) -> float:
    """Of the finite elements, in double precision."""
    squares, finite, rows = 0.0, 0, _rows_at_once(array)
    for start in range(0, len(array), rows):
        piece = array[start : start + rows].astype(np.float64)
        good = np.isfinite(piece)
        finite += int(np.count_nonzero(good))
        squares += float(np.square(piece, where=good, out=np.zeros_like(piece)).sum())
    return math.sqrt(squares / max(1, finite))


def _rows_at_once(array: np.ndarray) -> int:
    return max(1, _PIECE // max(1, math.prod(array.shape[1:])))


def _measure(result: Comparison, expected: np.ndarray, actual: np.ndarray) -> None:
    """Fill in the numbers."""
    tolerance = result.tolerance
    scale = _root_mean_square(expected) if tolerance.rtol else 0.0
    rows = _rows_at_once(expected)
    total = squared = norm = norm_actual = dot = 0.0
    worst: tuple[float, int] = (-1.0, 0)  # excess, flat index
    row_size = math.prod(expected.shape[1:])
    with np.errstate(all="ignore"):
        for start in range(0, len(expected), rows):
            b = expected[start : start + rows].astype(np.float64)
            a = actual[start : start + rows].astype(np.float64)
            finite = np.isfinite(b) & np.isfinite(a)
            same = finite | (a == b) | (np.isnan(a) & np.isnan(b))
            result.nonfinite_agree &= bool(same.all())
            result.finite += int(np.count_nonzero(finite))
            b[~finite] = 0.0
            a[~finite] = 0.0
            difference = np.abs(a - b)
            size = np.abs(b)
            allowed = tolerance.atol + tolerance.rtol * np.maximum(size, scale)
            excess = np.where(difference > 0, difference / allowed, 0.0)
            relative = np.where(size > 0, difference / size, 0.0)
            if excess.size and (high := float(excess.max())) > worst[0]:
                worst = (high, start * row_size + int(excess.argmax()))
            result.largest = max(result.largest, float(size.max(initial=0.0)))
            result.max_abs = max(result.max_abs, float(difference.max(initial=0.0)))
            result.max_rel = max(result.max_rel, float(relative.max(initial=0.0)))
            total += float(difference.sum())
            squared += float(np.square(difference).sum())
            norm += float(np.square(b).sum())
            norm_actual += float(np.square(a).sum())
            dot += float((a * b).sum())
    result.rms_difference = math.sqrt(squared / max(1, result.finite))
    result.mean_abs = total / max(1, result.finite)
    result.rel_norm = math.sqrt(squared / norm) if norm else (0.0 if squared == 0 else math.inf)
    lengths = math.sqrt(norm) * math.sqrt(norm_actual)
    result.cosine = max(-1.0, min(1.0, dot / lengths)) if lengths else float(norm == norm_actual)
    if worst[0] >= 0:
        result.excess = worst[0]
        if worst[0] > 0:
            where = np.unravel_index(worst[1], expected.shape)
            lead = len(result.shape) - expected.ndim
            result.worst_index = [0] * max(0, lead) + [int(i) for i in where]
            result.expected, result.actual = float(expected[where]), float(actual[where])


def _norm_excess(result: Comparison, allowed: float) -> float:
    """How much larger the difference is, as a root mean square, than the norm check allows it to be."""
    if result.rel_norm <= allowed:
        return 0.0
    if not math.isfinite(result.rel_norm):  # the original is zero throughout
        return result.max_abs / max(result.tolerance.atol, 1e-300)
    return result.rms_difference / max(
        allowed * result.rms_difference / result.rel_norm + result.tolerance.atol * NORM_ATOL, 1e-300
    )


def _judge(result: Comparison) -> None:
    """Passed or not, and why not."""
    tolerance = result.tolerance
    if not result.nonfinite_agree:
        result.reason = "has NaN or infinity in other places than the original"
    elif result.excess > 1:
        allowed = result.max_abs / result.excess
        result.reason = (
            f"differs by {result.max_abs:.3g} at most, {result.excess:.3g} times what is allowed "
            f"(at {result.worst_index}: {result.actual:.6g} instead of {result.expected:.6g})"
            if math.isfinite(allowed)
            else f"differs by {result.max_abs:.3g} where it has to be equal"
        )
    elif tolerance.norm is not None and _norm_excess(result, tolerance.norm) > 1:
        result.reason = (
            f"differs by {result.rel_norm:.3g} of its norm, {tolerance.norm:.3g} is allowed: "
            "a small difference everywhere, as a slightly wrong formula makes it"
        )
    result.passed = not result.reason
