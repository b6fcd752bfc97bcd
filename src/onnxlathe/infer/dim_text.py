"""Text of dimensions: what :meth:`Dim.parse` reads and what ``dim_param`` fields of files mean.

Grammar: integers, names, ``+ - * // % **``, parentheses, ``max min mod`` (and ``Max Min Mod PythonMod
FloorDiv``, as SymPy and torch.export write them), ``floor(a/2)`` and ``ceiling(a/2)``. A name is letters,
digits, ``_`` and ``.``, also with a hyphen glued between (``batch-size``); any other name stands in double
quotes.
"""

from __future__ import annotations

import re
from functools import lru_cache

from onnxlathe.infer.dims import Dim, Expr, ceil_div, floor_div, maximum, minimum, modulo

__all__ = ["from_dim_param", "parse", "quote"]

_NAME = r"[^\W\d][\w.]*(?:-[^\W\d][\w.]*)*"
_TOKEN = re.compile(rf'\s*(?:(\d+)|({_NAME})|"((?:[^"\\]|\\.)*)"|(//|\*\*|[-+*/%(),]))')
_IS_NAME = re.compile(_NAME)
_MAX_LENGTH = 4000
_MAX_DEPTH = 40
_FUNCTIONS = {
    "max": "max",
    "Max": "max",
    "min": "min",
    "Min": "min",
    "mod": "mod",
    "Mod": "mod",
    "PythonMod": "mod",
    "FloorDiv": "//",
    "floor": "floor",
    "ceil": "ceil",
    "ceiling": "ceil",
}
_UNKNOWN = frozenset(("", "?", "-1", "None", "unk", "dynamic"))  # exporters' words for "any size"

Ratio = tuple[Expr, int]  # numerator, denominator > 0


def quote(name: str) -> str:
    """A symbol's name as it is written inside an expression."""
    if _IS_NAME.fullmatch(name) and name not in _FUNCTIONS:
        return name
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def alone(name: str) -> str:
    """A symbol's name where nothing else stands: as it is, unless it would be read differently."""
    return name if from_dim_param(name) == Dim(name) else quote(name)


@lru_cache(maxsize=8192)
def from_dim_param(text: str | None) -> Dim | None:
    """What a ``dim_param`` means: an expression, a symbol with a strange name, or None (unknown)."""
    if text is None or text in _UNKNOWN:
        return None
    try:
        expr = parse(text)
    except ValueError:
        return Dim(text)
    # "3" as a dim_param is a name: a number would stand in dim_value.
    return expr if isinstance(expr, Dim) else Dim(text)


def parse(text: str) -> Expr:
    """Reads an expression; see :meth:`Dim.parse`."""
    if len(text) > _MAX_LENGTH:
        raise ValueError(f"dimension text of {len(text)} characters is too long")
    try:
        return _Parser(text).read()
    except (ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"{text!r} is no dimension: {error}") from None


class _Parser:
    """Recursive descent over tokens; values are ratios, because ``floor(a/2)`` has one inside."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str]] = []
        self.depth = 0
        at = 0
        end = len(text.rstrip())
        while at < end:
            match = _TOKEN.match(text, at)
            if match is None:
                raise self.error(f"unexpected {text[at:].strip()[:1]!r}")
            number, name, quoted, sign = match.groups()
            if number is not None:
                self.tokens.append(("number", number))
            elif name is not None:
                self.tokens.append(("name", name))
            elif quoted is not None:
                self.tokens.append(("quoted", re.sub(r"\\(.)", r"\1", quoted)))
            else:
                self.tokens.append(("sign", sign))
            at = match.end()
        self.tokens.append(("end", ""))
        self.at = 0

    def error(self, what: str) -> ValueError:
        return ValueError(f"{self.text!r} is no dimension: {what}")

    def take(self, *signs: str) -> str | None:
        kind, text = self.tokens[self.at]
        if kind == "sign" and text in signs:
            self.at += 1
            return text
        return None

    def expect(self, sign: str) -> None:
        if not self.take(sign):
            raise self.error(f"{sign!r} expected")

    def read(self) -> Expr:
        value = self.integer(self.sum())
        if self.tokens[self.at][0] != "end":
            raise self.error(f"unexpected {self.tokens[self.at][1]!r}")
        return value

    def integer(self, ratio: Ratio) -> Expr:
        top, bottom = ratio
        if bottom == 1:
            return top
        whole = floor_div(top, bottom)
        if whole * bottom != top:
            raise self.error("a fraction outside of floor() or ceiling()")
        return whole

    def sum(self) -> Ratio:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise self.error("nested too deeply")
        top, bottom = self.product()
        while sign := self.take("+", "-"):
            other, other_bottom = self.product()
            step = other * bottom
            top = top * other_bottom
            top = top + step if sign == "+" else top - step
            bottom *= other_bottom
        self.depth -= 1
        return top, bottom

    def product(self) -> Ratio:
        top, bottom = self.unary()
        while sign := self.take("*", "//", "/", "%"):
            other, other_bottom = self.unary()
            if sign == "*":
                top, bottom = top * other, bottom * other_bottom
            elif sign == "//":
                top, bottom = floor_div(top * other_bottom, other * bottom), 1
            elif sign == "%":
                top, bottom = (
                    modulo(self.integer((top, bottom)), self.integer((other, other_bottom))),
                    1,
                )
            elif isinstance(other, int) and other > 0:
                top, bottom = top * other_bottom, bottom * other
            else:
                raise self.error("division by something that is no positive number")
        return top, bottom

    def unary(self) -> Ratio:
        sign = 1
        while found := self.take("-", "+"):
            sign = -sign if found == "-" else sign
        top, bottom = self.power()
        return top * sign, bottom

    def power(self) -> Ratio:
        top, bottom = self.primary()
        if self.take("**"):
            kind, text = self.tokens[self.at]
            if kind != "number" or len(text) > 2 or int(text) > 16:
                raise self.error("an exponent that is no small number")
            self.at += 1
            return top ** int(text), bottom ** int(text)
        return top, bottom

    def primary(self) -> Ratio:
        kind, text = self.tokens[self.at]
        self.at += 1
        if kind == "number":
            return int(text), 1
        if kind == "quoted":
            return Dim(text), 1
        if kind == "sign" and text == "(":
            value = self.sum()
            self.expect(")")
            return value
        if kind != "name":
            raise self.error(f"unexpected {text!r}" if text else "it ends too early")
        if self.take("("):
            return self.function(text)
        return Dim(text), 1

    def function(self, name: str) -> Ratio:
        kind = _FUNCTIONS.get(name)
        if kind is None:
            raise self.error(f"unknown function {name!r}")
        args = [self.sum()]
        while self.take(","):
            args.append(self.sum())
        self.expect(")")
        if kind in ("floor", "ceil"):
            if len(args) != 1:
                raise self.error(f"{name} takes one argument")
            top, bottom = args[0]
            return (floor_div if kind == "floor" else ceil_div)(top, bottom), 1
        values = [self.integer(a) for a in args]
        if kind in ("max", "min"):
            return (maximum if kind == "max" else minimum)(*values), 1
        if len(values) != 2:
            raise self.error(f"{name} takes two arguments")
        return (modulo if kind == "mod" else floor_div)(values[0], values[1]), 1
