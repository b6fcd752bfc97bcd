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
    "modulo",
    "upper",
]

_MAX_TERMS = 64  # a product that would grow beyond this stays a product ("mul" call): work is bounded


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
            self.text = f"{kind}({', '.join(_argument_text(a) for a in args)})"

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
        self._lower: int | bool | None = False  # False: not computed yet
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
            atom = single_atom(self)
            if isinstance(atom, str):
                from onnxlathe.infer.dim_text import alone

                self._text = alone(atom)
            else:
                self._text = _sum_text(self.terms) if atom is None else atom.text
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
        return from_terms({m: -c for m, c in self.terms})

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
        return isinstance(single_atom(self), str)

    @property
    def call(self) -> Call | None:
        """The function call that this is, such as ``min(4, seq)``; None for anything else."""
        atom = single_atom(self)
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


def single_atom(expr: Expr) -> Atom | None:
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
    atom = single_atom(expr)
    return f"({expr})" if atom is None else _atom_text(atom)


def _argument_text(expr: Expr) -> str:
    """The text of an expression as an argument of a function."""
    atom = single_atom(expr)
    return str(expr) if atom is None else atom_key(atom) if isinstance(atom, Call) else _atom_text(atom)


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


def atom_key(atom: Atom) -> str:
    return atom if isinstance(atom, str) else atom.text


def _term_key(term: tuple[Monomial, int]) -> tuple[int, list[str]]:
    return -len(term[0]), [atom_key(a) for a in term[0]]


def from_terms(terms: Mapping[Monomial, int]) -> Expr:
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


def terms_of(expr: Expr) -> Iterable[tuple[Monomial, int]]:
    if isinstance(expr, Dim):
        return expr.terms
    return (((), expr),) if expr else ()


def call_of(kind: str, *args: Expr) -> Dim:
    result = Dim.__new__(Dim)
    result._init((((Call(kind, args),), 1),))
    return result


@lru_cache(maxsize=4096)
def _add(left: Dim, right: Expr, sign: int) -> Expr:
    terms = dict(left.terms)
    for monomial, coefficient in terms_of(right):
        terms[monomial] = terms.get(monomial, 0) + sign * coefficient
    return from_terms(terms)


@lru_cache(maxsize=4096)
def _multiply(left: Dim, right: Expr) -> Expr:
    if isinstance(right, int):
        return from_terms({m: c * right for m, c in left.terms})
    if len(left.terms) * len(right.terms) > _MAX_TERMS:
        return call_of("mul", *sorted((left, right), key=str))
    terms: dict[Monomial, int] = {}
    for m1, c1 in left.terms:
        for m2, c2 in right.terms:
            product = tuple(sorted(m1 + m2, key=atom_key)) if m1 and m2 else m1 or m2
            terms[product] = terms.get(product, 0) + c1 * c2
    return from_terms(terms)


# Division and extrema work on the class above, and its operators on them.
from onnxlathe.infer.dim_bounds import lower, upper  # noqa: E402
from onnxlathe.infer.dim_division import ceil_div, floor_div, maximum, minimum, modulo  # noqa: E402
