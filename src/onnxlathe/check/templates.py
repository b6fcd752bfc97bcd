"""Expressions that a pass writes down in its documentation, as patterns to make instances of.

A pass that is code has no pattern to read, but its `example` and its docstring say what it is about:
`Sqrt(Mul(x, x))`, `%y = Concat(Split(%x, axis=1), axis=1)`. Attributes and lists are drawn anew.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Iterator

from onnxlathe.rewrite import Pass
from onnxlathe.rewrite.pattern import NodePattern, Output, Pattern, Scalar, Var


@functools.cache
def templates(cls: type[Pass], operators: frozenset[str]) -> tuple[Output, ...]:
    """The expressions of a pass's example (before the arrow) and docstring, over these operators."""
    found: dict[str, Output] = {}
    for text, names in _expressions(cls):
        try:
            tree = ast.parse(text, mode="eval").body
            pattern = _pattern(tree, names, operators)
        except (SyntaxError, ValueError, RecursionError):
            continue
        if isinstance(pattern, Output):
            found.setdefault(text, pattern)
    return tuple(found.values())


def _expressions(cls: type[Pass]) -> Iterator[tuple[str, dict[str, str]]]:
    before = cls.example.split("→")[0]
    definitions: dict[str, str] = {}
    last = ""
    for line in before.splitlines():
        target, equals, text = re.sub(r"#.*", "", line).partition("=")
        if equals and re.fullmatch(r"\s*%\w+\s*", target):
            last = _plain(text)
            definitions[target.strip().lstrip("%")] = last
    if last:
        yield last, definitions
    doc = inspect.getdoc(cls) or ""
    for match in re.finditer(r"\b[A-Z]\w*\(", doc):
        depth = 0
        for end in range(match.end() - 1, len(doc)):
            depth += {"(": 1, ")": -1}.get(doc[end], 0)
            if depth == 0:
                yield _plain(doc[match.start() : end + 1]), {}
                break


def _plain(text: str) -> str:
    """Without signs that Python does not have: %names, <attributes>."""
    return " ".join(re.sub(r"<[^<>()]*>(?=\()", "", text.replace("%", "")).split())


def _pattern(tree: ast.expr, names: dict[str, str], operators: frozenset[str]) -> Pattern:
    variables: dict[str, Pattern] = {}

    def walk(node: ast.expr, depth: int = 0) -> Pattern:
        if depth > 8:
            raise ValueError("too deep")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id not in operators:
                raise ValueError(f"{node.func.id} is no operator to draw")
            return Output(NodePattern(node.func.id, tuple(walk(a, depth + 1) for a in node.args), {}))
        if isinstance(node, ast.Name):
            if node.id not in variables:
                inner = names.get(node.id)
                if inner is None:
                    variables[node.id] = Var(node.id)
                else:
                    variables[node.id] = walk(ast.parse(inner, mode="eval").body, depth + 1)
            return variables[node.id]
        if isinstance(node, ast.List):
            return Var(f"list{node.col_offset}", constant=True)
        number = ast.literal_eval(node)
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            return Scalar(float(number))
        raise ValueError("neither a name nor a number")

    return walk(tree)
