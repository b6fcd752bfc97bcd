"""Bounds of expressions, given that symbols are sizes: what can be proven about signs and order."""

from __future__ import annotations

from onnxlathe.infer.dims import Atom, Call, Dim, Expr, from_terms

__all__ = ["at_least", "lower", "upper"]


def at_least(left: Expr, right: Expr, margin: int = 0) -> bool:
    """Whether ``left >= right + margin`` for all sizes."""
    low = lower(left - right)
    return low is not None and low >= margin


def lower(expr: Expr) -> int | None:
    """A number that the expression is never below, given that symbols are >= 0; None where none is known."""
    if isinstance(expr, int):
        return expr
    if expr._lower is False:
        expr._lower = None  # while computing: an expression is no evidence for itself
        expr._lower = _find_lower(expr)
    return expr._lower


def upper(expr: Expr) -> int | None:
    """A number that the expression is never above; None where none is known."""
    low = lower(-expr)
    return None if low is None else -low


def _find_lower(expr: Dim) -> int | None:
    total: int | None = 0
    for monomial, coefficient in expr.terms:
        low = 1
        high: int | None = 1
        for atom in monomial:
            a_low, a_high = _atom_bounds(atom)
            if a_low is None or a_low < 0:
                total = None
                break
            low = low * a_low
            high = None if high is None or a_high is None else high * a_high
        if total is None:
            break
        if coefficient > 0:
            total += coefficient * low
        elif high is None:
            total = None
            break
        else:
            total += coefficient * high
    if total is not None and total >= 0:
        return total
    # Relations between an atom and its own arguments: -(x//k) >= -x/k, -min(a, b) >= -a, max(a, b) >= a.
    best = total
    for monomial, coefficient in expr.terms:
        if len(monomial) != 1 or not isinstance(atom := monomial[0], Call):
            continue
        rest = expr - from_terms({monomial: coefficient})
        found: list[int | None] = []
        if atom.kind == "//" and coefficient < 0 and isinstance(k := atom.args[1], int) and k > 0:
            scaled = lower(rest * k + atom.args[0] * coefficient)
            found.append(None if scaled is None else -((-scaled) // k))
        elif (atom.kind == "min" and coefficient < 0) or (atom.kind == "max" and coefficient > 0):
            found.extend(lower(rest + argument * coefficient) for argument in atom.args)
        for low_bound in found:
            if low_bound is not None and (best is None or low_bound > best):
                best = low_bound
    return best


def _atom_bounds(atom: Atom) -> tuple[int | None, int | None]:
    if isinstance(atom, str):
        return 0, None
    lows = [lower(a) for a in atom.args]
    highs = [upper(a) for a in atom.args]
    if atom.kind == "//":
        (low, divisor_low), (high, divisor_high) = lows, highs
        if low is None or low < 0 or divisor_low is None or divisor_low < 0:
            if low is not None and isinstance(k := atom.args[1], int) and k > 0:
                return low // k, None if high is None else high // k
            return None, None
        return (
            0 if divisor_high is None else low // max(divisor_high, 1),
            None if high is None else high // max(divisor_low, 1),
        )
    if atom.kind == "mod":
        if lows[1] is None or lows[1] < 0:
            return None, None
        return 0, None if highs[1] is None else highs[1] - 1
    if atom.kind == "mul":
        return (0 if all(x is not None and x >= 0 for x in lows) else None), None
    known_lows = [x for x in lows if x is not None]
    known_highs = [x for x in highs if x is not None]
    all_lows, all_highs = len(known_lows) == len(lows), len(known_highs) == len(highs)
    if atom.kind == "max":
        return max(known_lows, default=None), max(known_highs) if all_highs else None
    return min(known_lows) if all_lows else None, min(known_highs, default=None)
