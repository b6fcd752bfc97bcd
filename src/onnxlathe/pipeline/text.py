"""The pipeline as text: `shapes,fold(max_bytes=64MiB),fuse(layernorm,gelu),fixpoint(tidy)`.

    pipeline = item { "," item }
    item     = [ "-" ] name [ "(" argument { "," argument } ")" ]
    argument = name "=" value | item
    value    = number | size (64MiB) | true | false | none | word | "quoted" | [ value { "," value } ]

`parse` and `Item.__str__` are each other's inverse. What a name means is the registry's business.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from onnxlathe.errors import UsageError

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<string>"(?:[^"\\]|\\.)*")
      | (?P<size>[0-9]+(?:\.[0-9]+)?\s?(?:[kKMGT]i?B|B)\b)
      | (?P<number>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![A-Za-z_0-9]))
      | (?P<word>[A-Za-z_][A-Za-z0-9_.:/*?@-]*)
      | (?P<sign>[-(),=\[\]])
    )""",
    re.VERBOSE,
)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


class Size(int):
    """A number of bytes that was written with its unit."""

    def __str__(self) -> str:
        for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
            if self >= factor and self % factor == 0:
                return f"{int(self) // factor}{unit}"
        return f"{int(self)}B"


@dataclass(frozen=True)
class Item:
    """One element of a pipeline: a pass, group, preset or `fixpoint`, as written."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    children: tuple[Item, ...] = ()
    excluded: bool = False

    def __str__(self) -> str:
        arguments = [*map(str, self.children), *(f"{k}={show(v)}" for k, v in self.options.items())]
        sign = "-" if self.excluded else ""
        return f"{sign}{self.name}({','.join(arguments)})" if arguments else f"{sign}{self.name}"


def show(value: Any) -> str:
    """A value as the pipeline text spells it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, Size):
        return str(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(show, value))}]"
    if isinstance(value, str):
        match = _TOKEN.fullmatch(value)
        plain = (
            match
            and match[match.lastgroup or 0] == value
            and match.lastgroup == "word"
            and value not in ("true", "false", "none")
        )
        return value if plain else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)


def join(items: tuple[Item, ...] | list[Item]) -> str:
    """The text of a pipeline."""
    return ",".join(map(str, items))


def parse(text: str) -> tuple[Item, ...]:
    """Read a pipeline.

    Raises:
        UsageError: where the text does not follow the grammar, with the place marked.
    """
    return _Parser(text).pipeline()


def parse_size(text: str) -> Size:
    """`64MiB`, `1.5 GB`, `4096` or `10B` as a number of bytes.

    Raises:
        UsageError: for anything else.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([kKMGT]i?)?B)?", text.strip())
    if match is None:
        raise UsageError(f"'{text}' is not a size", hint="write it as 64MiB, 1.5GB or a number of bytes")
    unit = (match[2] or "").lower()
    return Size(float(match[1]) * (_BINARY_UNITS.get(unit) or _UNITS[unit]))


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str, int]] = []
        position = 0
        while text[position:].strip():
            match = _TOKEN.match(text, position)
            if match is None:
                raise self.error("this is not understood", position)
            kind = match.lastgroup or ""
            self.tokens.append((kind, match[kind], match.start(kind)))
            position = match.end()
        self.next = 0

    def error(self, problem: str, position: int | None = None) -> UsageError:
        if position is None:
            position = self.tokens[self.next][2] if self.next < len(self.tokens) else len(self.text)
        here, rest = self.text[:position], self.text[position:]
        return UsageError(
            f"cannot read the pipeline at '{here}»{rest}': {problem}",
            hint="a pipeline looks like shapes,fold(max_bytes=64MiB),fuse(layernorm,gelu),fixpoint(tidy)",
        )

    def peek(self) -> str:
        return self.tokens[self.next][1] if self.next < len(self.tokens) else ""

    def take(self, sign: str) -> bool:
        if self.next < len(self.tokens) and self.tokens[self.next][:2] == ("sign", sign):
            self.next += 1
            return True
        return False

    def pipeline(self) -> tuple[Item, ...]:
        items = [self.item()]
        while self.take(","):
            items.append(self.item())
        if self.next < len(self.tokens):
            raise self.error("a comma or the end is expected here")
        return tuple(items)

    def word(self) -> str:
        if self.next >= len(self.tokens) or self.tokens[self.next][0] != "word":
            raise self.error("the name of a pass is expected here")
        self.next += 1
        return self.tokens[self.next - 1][1]

    def item(self) -> Item:
        excluded = self.take("-")
        name = self.word()
        options: dict[str, Any] = {}
        children: list[Item] = []
        if self.take("(") and not self.take(")"):
            while True:
                self.argument(name, options, children)
                if self.take(")"):
                    break
                if not self.take(","):
                    raise self.error("a comma or a closing parenthesis is expected here")
        return Item(name, options, tuple(children), excluded)

    def argument(self, owner: str, options: dict[str, Any], children: list[Item]) -> None:
        following = self.tokens[self.next + 1][1] if self.next + 1 < len(self.tokens) else ""
        if following != "=":
            children.append(self.item())
            return
        name = self.word()
        if name in options:
            raise self.error(f"option '{name}' of '{owner}' is given twice", self.tokens[self.next - 1][2])
        self.take("=")
        options[name] = self.value()

    def value(self) -> Any:
        if self.take("["):
            values: list[Any] = []
            while not self.take("]"):
                values.append(self.value())
                if not self.take(",") and self.peek() != "]":
                    raise self.error("a comma or a closing bracket is expected here")
            return tuple(values)
        if self.next >= len(self.tokens) or self.tokens[self.next][0] == "sign":
            raise self.error("a value is expected here")
        kind, text, _ = self.tokens[self.next]
        self.next += 1
        if kind == "string":
            return re.sub(r"\\(.)", r"\1", text[1:-1])
        if kind == "size":
            return parse_size(text)
        if kind == "number":
            return int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else float(text)
        return {"true": True, "false": False, "none": None}.get(text, text)
