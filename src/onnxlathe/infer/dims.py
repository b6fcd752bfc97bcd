"""Integer expressions for tensor dimensions: exact, canonical, and free when everything is a number.

An *expression* is a plain ``int`` or a :class:`Dim`. A ``Dim`` is never constant: arithmetic that comes out
constant returns an ``int``, so models with static shapes never meet this class.

A ``Dim`` is a sum of integer multiples of products of *atoms*, sorted, so that equal polynomials are equal
objects (``==`` and ``hash``). Atoms are named symbols (``str``) and :class:`Call` of ``//``, ``mod``, ``max``
or ``min`` on expressions.

What is assumed about numbers:

* Symbols are sizes: integers >= 0. Zero is possible, and nothing below ever assumes >= 1 or >= 2.
* ``//`` and ``%`` are Python's (floor). Where a divisor is zero the value is undefined; an identity holds
  wherever both of its sides are defined: ``(batch*768)//batch == 768``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Union

__all__ = [
    "Call",
    "Dim",
    "DimLike",
    "Dims",
    "Expr",
    "ceil_div",
    "floor_div",
    "lower",
    "maximum",
    "minimum",
    "upper",
]

_MAX_TERMS = 64  # a product that would grow beyond this stays a product ("mul" call): work is bounded
_MAX_ARGUMENTS = 12  # of max and min


class Call:
    """A function of expressions that is not a polynomial: ``//``, ``mod``, ``max``, ``min`` (or ``mul``)."""

    __slots__ = ("_hash", "args", "kind", "text")

    def __init__(self, kind: str, args: tuple[Expr, ...]) -> None:
        self.kind = kind
        self.args = args
        self._hash = hash((kind, args))
        if kind == "//":
            self.text = "//".join(_factor_text(a) for a in args)
        elif kind == "mul":
            self.text = "*".join(_factor_text(a) for a in args)
        else:
            self.text = f"{kind}({', '.join(str(a) for a in args)})"

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (
            type(other) is Call
            and self._hash == other._hash
            and self.kind == other.kind
            and self.args == other.args
        )

    def __repr__(self) -> str:
        return self.text


Atom = Union[str, Call]  # noqa: UP007 - evaluated at run time, where Call is not yet complete
Monomial = tuple[Atom, ...]  # sorted, with repetition; () is the constant term


class Dim:
    """An immutable integer expression that is not constant. See the module's description.

    ``Dim("seq")`` is a symbol; :meth:`parse` reads text; ``+ - * // %`` with ints and each other build more.
    ``str(d)`` is canonical and is read back by :meth:`parse` to an equal expression.
    """

    __slots__ = ("_hash", "_lower", "_symbolic", "_text", "terms")

    terms: tuple[tuple[Monomial, int], ...]

    def __init__(self, name: str) -> None:
        self._init((((name,), 1),))

    def _init(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        self.terms = terms
        self._hash = hash(terms)
        self._text: str | None = None
        self._lower: int | None | bool = False  # False: not computed yet
        self._symbolic: object = None  # a place for the IR's spelling, see values.py

    @staticmethod
    def parse(text: str) -> Expr:
        """Reads an expression such as ``"2*seq + 1"``, ``"(h - 1)//2"``, ``"Max(1, s0)"``.

        Raises:
            ValueError: the text is no expression of this grammar (see ``dim_text``).
        """
        from onnxlathe.infer.dim_text import parse

        return parse(text)

    # Comparison and text.

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (
            type(other) is Dim and self._hash == other._hash and self.terms == other.terms
        )

    def __str__(self) -> str:
        if self._text is None:
            atom = _single_atom(self)  # alone, a symbol needs no quotes
            self._text = _sum_text(self.terms) if atom is None else _atom_key(atom)
        return self._text

    def __repr__(self) -> str:
        return f"Dim({str(self)!r})"

    # Arithmetic.

    def __add__(self, other: Expr) -> Expr:
        if other == 0:
            return self
        return _add(self, other, 1)

    __radd__ = __add__

    def __neg__(self) -> Expr:
        return _from_terms({m: -c for m, c in self.terms})

    def __sub__(self, other: Expr) -> Expr:
        return _add(self, other, -1)

    def __rsub__(self, other: int) -> Expr:
        return -self + other

    def __mul__(self, other: Expr) -> Expr:
        return _multiply(self, other)

    __rmul__ = __mul__

    def __pow__(self, exponent: int) -> Expr:
        result: Expr = 1
        for _ in range(exponent):
            result = result * self
        return result

    def __floordiv__(self, other: Expr) -> Expr:
        return floor_div(self, other)

    def __rfloordiv__(self, other: int) -> Expr:
        return floor_div(other, self)

    def __mod__(self, other: Expr) -> Expr:
        return modulo(self, other)

    def __rmod__(self, other: int) -> Expr:
        return modulo(other, self)

    # Questions.

    @property
    def symbols(self) -> frozenset[str]:
        """The names of all symbols in the expression, also inside of ``//``, ``max`` and the like."""
        return frozenset(self._walk_symbols())

    def _walk_symbols(self) -> Iterator[str]:
        for monomial, _ in self.terms:
            for atom in monomial:
                if type(atom) is str:
                    yield atom
                else:
                    for argument in atom.args:  # type: ignore[union-attr]
                        if type(argument) is Dim:
                            yield from argument._walk_symbols()

    @property
    def is_symbol(self) -> bool:
        """Whether this is one named symbol and nothing else."""
        return isinstance(_single_atom(self), str)

    @property
    def call(self) -> Call | None:
        """The function call that this is, such as ``min(4, seq)``; None for anything else."""
        atom = _single_atom(self)
        return atom if isinstance(atom, Call) else None

    def substitute(self, bindings: Mapping[str, Expr]) -> Expr:
        """The expression with symbols replaced; an ``int`` when nothing symbolic is left.

        Raises:
            ZeroDivisionError: a divisor becomes zero.
        """
        total: Expr = 0
        for monomial, coefficient in self.terms:
            product: Expr = coefficient
            for atom in monomial:
                product = product * _substitute_atom(atom, bindings)
            total = total + product
        return total


Expr = Union[int, Dim]  # noqa: UP007
DimLike = Union[int, Dim, None]  # noqa: UP007
Dims = tuple[DimLike, ...]


def _substitute_atom(atom: Atom, bindings: Mapping[str, Expr]) -> Expr:
    if isinstance(atom, str):
        return bindings[atom] if atom in bindings else Dim(atom)
    args = [a.substitute(bindings) if isinstance(a, Dim) else a for a in atom.args]
    return call(atom.kind, args)


def call(kind: str, args: list[Expr]) -> Expr:
    """The value of a :class:`Call` of this kind, simplified."""
    if kind == "//":
        return floor_div(args[0], args[1])
    if kind == "mod":
        return modulo(args[0], args[1])
    if kind == "max":
        return maximum(*args)
    if kind == "min":
        return minimum(*args)
    return args[0] * args[1]


# Text.


def _single_atom(expr: Expr) -> Atom | None:
    """The atom that the expression is, where it is just one."""
    if isinstance(expr, Dim) and len(expr.terms) == 1:
        monomial, coefficient = expr.terms[0]
        if coefficient == 1 and len(monomial) == 1:
            return monomial[0]
    return None


def _factor_text(expr: Expr) -> str:
    """The text of an expression as an operand of ``*`` and ``//``."""
    if isinstance(expr, int):
        return str(expr) if expr >= 0 else f"({expr})"
    atom = _single_atom(expr)
    return f"({expr})" if atom is None else _atom_text(atom)


def _atom_text(atom: Atom) -> str:
    if isinstance(atom, str):
        from onnxlathe.infer.dim_text import quote

        return quote(atom)
    return f"({atom.text})" if atom.kind in ("//", "mul") else atom.text


def _sum_text(terms: tuple[tuple[Monomial, int], ...]) -> str:
    text = ""
    for monomial, coefficient in terms:
        size = abs(coefficient)
        factors = [_atom_text(a) for a in monomial]
        if size != 1 or not factors:
            factors.insert(0, str(size))
        term = "*".join(factors)
        if not text:
            text = f"-{term}" if coefficient < 0 else term
        else:
            text += f" - {term}" if coefficient < 0 else f" + {term}"
    return text


# Polynomials. The order is graded lexicographic over the atoms' texts, which division relies on.


def _atom_key(atom: Atom) -> str:
    return atom if isinstance(atom, str) else atom.text


def _term_key(term: tuple[Monomial, int]) -> tuple[int, list[str]]:
    return -len(term[0]), [_atom_key(a) for a in term[0]]


def _from_terms(terms: Mapping[Monomial, int]) -> Expr:
    kept = [(m, c) for m, c in terms.items() if c]
    if not kept:
        return 0
    if len(kept) == 1:
        if not kept[0][0]:
            return kept[0][1]
    else:
        kept.sort(key=_term_key)
    result = Dim.__new__(Dim)
    result._init(tuple(kept))
    return result


def _terms_of(expr: Expr) -> Iterable[tuple[Monomial, int]]:
    if isinstance(expr, Dim):
        return expr.terms
    return (((), expr),) if expr else ()


def _atom(kind: str, *args: Expr) -> Dim:
    result = Dim.__new__(Dim)
    result._init((((Call(kind, args),), 1),))
    return result


@lru_cache(maxsize=4096)
def _add(left: Dim, right: Expr, sign: int) -> Expr:
    terms = dict(left.terms)
    for monomial, coefficient in _terms_of(right):
        terms[monomial] = terms.get(monomial, 0) + sign * coefficient
    return _from_terms(terms)


@lru_cache(maxsize=4096)
def _multiply(left: Dim, right: Expr) -> Expr:
    if isinstance(right, int):
        return _from_terms({m: c * right for m, c in left.terms})
    if len(left.terms) * len(right.terms) > _MAX_TERMS:
        return _atom("mul", *sorted((left, right), key=str))
    terms: dict[Monomial, int] = {}
    for m1, c1 in left.terms:
        for m2, c2 in right.terms:
            product = tuple(sorted(m1 + m2, key=_atom_key)) if m1 and m2 else m1 or m2
            terms[product] = terms.get(product, 0) + c1 * c2
    return _from_terms(terms)


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
    for _ in range(_MAX_TERMS):
        if isinstance(rest, int):
            return quotient if rest == 0 else None
        monomial, coefficient = rest.terms[0]
        step = _without(monomial, lead_monomial)
        if step is None or coefficient % lead_coefficient:
            return None
        term = _from_terms({step: coefficient // lead_coefficient})
        quotient = quotient + term
        rest = rest - term * right
    return None


def _common_monomial(expressions: Iterable[Expr]) -> Monomial:
    common: Monomial | None = None
    for expr in expressions:
        for monomial, _ in _terms_of(expr):
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
    factor = math.gcd(*(c for e in (left, right) for _, c in _terms_of(e)))
    if not monomial and factor == 1:
        return left, right

    def shrink(expr: Expr) -> Expr:
        return _from_terms({_without(m, monomial) or (): c // factor for m, c in _terms_of(expr)})

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
    if lower(left) is not None and lower(left) >= 0 and _at_least(right, left, 1):  # type: ignore[operator]
        return 0
    return _atom("//", left, right)


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
    return _from_terms(quotient), _from_terms(rest)


def _divide_by_number(left: Dim, divisor: int) -> Expr:
    if divisor == 0:
        raise ZeroDivisionError("a dimension divided by zero")
    if divisor < 0:
        return floor_div(-left, -divisor)
    if divisor == 1:
        return left
    whole = _from_terms({m: c // divisor for m, c in left.terms})
    rest = _from_terms({m: c % divisor for m, c in left.terms})
    if isinstance(rest, int):
        return whole  # 0 <= rest < divisor
    factor = math.gcd(divisor, *(c for m, c in rest.terms if m))
    if factor > 1:  # (f*r + c)//(f*d) == (r + c//f)//d
        rest = _from_terms({m: c // factor for m, c in rest.terms})
        return whole + floor_div(rest, divisor // factor)
    if lower(rest) == 0 and _at_least(divisor, rest, 1):
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
    return whole + _atom("//", rest, divisor)


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
        rest = _from_terms({m: c % right for m, c in left.terms})
        if isinstance(rest, int):
            return rest
        factor = math.gcd(right, *(c for _, c in rest.terms))
        if factor > 1:
            rest = _from_terms({m: c // factor for m, c in rest.terms})
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
    if low is not None and low >= 0 and _at_least(right, rest, 1):
        return rest
    return _atom("mod", rest, right)


def maximum(*expressions: Expr) -> Expr:
    """The largest of the expressions; those that another one provably covers are left out."""
    return _extreme("max", expressions)


def minimum(*expressions: Expr) -> Expr:
    """The smallest of the expressions; those that another one provably covers are left out."""
    return _extreme("min", expressions)


def _extreme(kind: str, expressions: Iterable[Expr]) -> Expr:
    flat: list[Expr] = []
    for expr in expressions:
        alone = _single_atom(expr)
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
        kept = [*kept[: _MAX_ARGUMENTS - 1], _atom(kind, *kept[_MAX_ARGUMENTS - 1 :])]
    return _atom(kind, *kept)


def _covers(kind: str, one: Expr, other: Expr) -> bool:
    return _at_least(one, other) if kind == "max" else _at_least(other, one)


# Bounds.


def _at_least(left: Expr, right: Expr, margin: int = 0) -> bool:
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
        rest = expr - _from_terms({monomial: coefficient})
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
