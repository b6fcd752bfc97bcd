"""Division, modulo, max and min of expressions, simplified as far as is exact."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

from onnxlathe.infer.dim_bounds import at_least, lower
from onnxlathe.infer.dims import Call, Dim, Expr, Monomial, call_of, from_terms, single_atom, terms_of

__all__ = ["ceil_div", "floor_div", "maximum", "minimum", "modulo"]

_MAX_STEPS = 64  # of a polynomial division
_MAX_ARGUMENTS = 12  # of max and min


def _without(monomial: Monomial, factor: Monomial) -> Monomial | None:
    """``monomial / factor``, or None where it does not divide."""
    rest = list(monomial)
    for atom in factor:
        if atom not in rest:
            return None
        rest.remove(atom)
    return tuple(rest)


def _divide_exactly(left: Dim, right: Dim) -> Expr | None:
    """The polynomial q with ``left == q*right``, or None."""
    lead_monomial, lead_coefficient = right.terms[0]
    rest: Expr = left
    quotient: Expr = 0
    for _ in range(_MAX_STEPS):
        if isinstance(rest, int):
            return quotient if rest == 0 else None
        monomial, coefficient = rest.terms[0]
        step = _without(monomial, lead_monomial)
        if step is None or coefficient % lead_coefficient:
            return None
        term = from_terms({step: coefficient // lead_coefficient})
        quotient = quotient + term
        rest = rest - term * right
    return None


def _common_monomial(expressions: Iterable[Expr]) -> Monomial:
    common: Monomial | None = None
    for expr in expressions:
        for monomial, _ in terms_of(expr):
            if common is None:
                common = monomial
                continue
            rest, shared = list(monomial), []
            for atom in common:
                if atom in rest:
                    rest.remove(atom)
                    shared.append(atom)
            common = tuple(shared)
        if not common:
            return ()
    return common or ()


def _cancel(left: Expr, right: Dim) -> tuple[Expr, Expr]:
    """Both without their common monomial and common integer factor."""
    monomial = _common_monomial((left, right))
    factor = math.gcd(*(c for e in (left, right) for _, c in terms_of(e)))
    if not monomial and factor == 1:
        return left, right

    def shrink(expr: Expr) -> Expr:
        return from_terms({_without(m, monomial) or (): c // factor for m, c in terms_of(expr)})

    return shrink(left), shrink(right)


@lru_cache(maxsize=4096)
def floor_div(left: Expr, right: Expr) -> Expr:
    """``left // right``, rounded down, simplified as far as is exact.

    Raises:
        ZeroDivisionError: ``right`` is the number 0.
    """
    if isinstance(right, int):
        if isinstance(left, int):
            return left // right
        return _divide_by_number(left, right)
    if left == 0:
        return 0
    if isinstance(left, Dim):
        exact = _divide_exactly(left, right)
        if exact is not None:
            return exact
        if len(right.terms) == 1:  # (r*q + rest)//r == q + rest//r
            quotient, rest = _split(left, right)
            if quotient != 0:
                return quotient + floor_div(rest, right)
    top, bottom = _cancel(left, right)
    if top != left:
        return floor_div(top, bottom)
    if lower(left) is not None and lower(left) >= 0 and at_least(right, left, 1):  # type: ignore[operator]
        return 0
    return call_of("//", left, right)


def _split(left: Dim, right: Dim) -> tuple[Expr, Expr]:
    """``(q, rest)`` with ``left == q*right + rest`` for a ``right`` of one term."""
    (factor, divisor), *_ = right.terms
    quotient: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    for monomial, coefficient in left.terms:
        step = _without(monomial, factor)
        if step is not None and coefficient % divisor == 0:
            quotient[step] = coefficient // divisor
        else:
            rest[monomial] = coefficient
    return from_terms(quotient), from_terms(rest)


def _divide_by_number(left: Dim, divisor: int) -> Expr:
    if divisor == 0:
        raise ZeroDivisionError("a dimension divided by zero")
    if divisor < 0:
        return floor_div(-left, -divisor)
    if divisor == 1:
        return left
    whole = from_terms({m: c // divisor for m, c in left.terms})
    rest = from_terms({m: c % divisor for m, c in left.terms})
    if isinstance(rest, int):
        return whole  # 0 <= rest < divisor
    factor = math.gcd(divisor, *(c for m, c in rest.terms if m))
    if factor > 1:  # (f*r + c)//(f*d) == (r + c//f)//d
        rest = from_terms({m: c // factor for m, c in rest.terms})
        return whole + floor_div(rest, divisor // factor)
    if lower(rest) == 0 and at_least(divisor, rest, 1):
        return whole
    (monomial, coefficient), *more = rest.terms
    if coefficient == 1 and len(monomial) == 1 and (not more or not more[0][0]):
        inner = monomial[0]
        if isinstance(inner, Call) and inner.kind == "//" and isinstance(inner.args[1], int):
            # (x//a + c)//b == (x + c*a)//(a*b) for a, b > 0
            offset = more[0][1] if more else 0
            if inner.args[1] > 0:
                top = inner.args[0] + offset * inner.args[1]
                return whole + floor_div(top, inner.args[1] * divisor)
    return whole + call_of("//", rest, divisor)


def ceil_div(left: Expr, right: Expr) -> Expr:
    """``left / right`` rounded up, for ``right`` > 0 (symbols are taken to be so)."""
    if isinstance(right, int) and right < 0:
        return ceil_div(-left, -right)
    return floor_div(left + right - 1, right)


@lru_cache(maxsize=1024)
def modulo(left: Expr, right: Expr) -> Expr:
    """``left % right`` with Python's sign rule.

    Raises:
        ZeroDivisionError: ``right`` is the number 0.
    """
    if isinstance(right, int):
        if isinstance(left, int):
            return left % right
        if right < 0:
            return -1 * modulo(-left, -right)
        if right == 0:
            raise ZeroDivisionError("a dimension modulo zero")
        rest = from_terms({m: c % right for m, c in left.terms})
        if isinstance(rest, int):
            return rest
        factor = math.gcd(right, *(c for _, c in rest.terms))
        if factor > 1:
            rest = from_terms({m: c // factor for m, c in rest.terms})
            return factor * modulo(rest, right // factor)
    else:
        if left == 0:
            return 0
        rest = left
        if isinstance(left, Dim):
            if _divide_exactly(left, right) is not None:
                return 0
            if len(right.terms) == 1:
                rest = _split(left, right)[1]
    low = lower(rest)
    if low is not None and low >= 0 and at_least(right, rest, 1):
        return rest
    return call_of("mod", rest, right)


def maximum(*expressions: Expr) -> Expr:
    """The largest of the expressions; those that another one provably covers are left out."""
    return _extreme("max", expressions)


def minimum(*expressions: Expr) -> Expr:
    """The smallest of the expressions; those that another one provably covers are left out."""
    return _extreme("min", expressions)


def _extreme(kind: str, expressions: Iterable[Expr]) -> Expr:
    flat: list[Expr] = []
    for expr in expressions:
        alone = single_atom(expr)
        if isinstance(alone, Call) and alone.kind == kind:
            flat.extend(alone.args)
        else:
            flat.append(expr)
    kept: list[Expr] = []
    for expr in flat:
        if any(_covers(kind, other, expr) for other in kept):
            continue
        kept = [other for other in kept if not _covers(kind, expr, other)]
        kept.append(expr)
    if len(kept) == 1:
        return kept[0]
    kept.sort(key=str)
    while len(kept) > _MAX_ARGUMENTS:
        kept = [*kept[: _MAX_ARGUMENTS - 1], call_of(kind, *kept[_MAX_ARGUMENTS - 1 :])]
    return call_of(kind, *kept)


def _covers(kind: str, one: Expr, other: Expr) -> bool:
    return at_least(one, other) if kind == "max" else at_least(other, one)
