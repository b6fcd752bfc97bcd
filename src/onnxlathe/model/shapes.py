"""What a model's inputs need, and how a user says it.

A dimension is an integer, a symbol (``batch``), an expression over symbols (``past + seq``) or nothing at
all. Two options bind them::

    --shape input:2x3x224x224     also  input:2,3,224,224  input:[2,3,224,224]  input:batchx3x4x4  input:[]
    --dim batch=4

`resolve` turns both into one mapping from symbol to integer, in which contradictions are errors;
`concrete_shape` reads a shape off it; `freeze` writes it into the model. A dimension without a name is
called ``<input>_dim_<axis>``.
"""

from __future__ import annotations

import ast
import difflib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxlathe.errors import ModelError, UsageError

if TYPE_CHECKING:
    from .model import Model

DimSpec = int | str | None
"""One dimension: an integer, a symbol or expression, or unknown."""

_SYMBOL = re.compile(r"[A-Za-z_][\w.\-/]*")
_KEEP = {"?", "*", "-1"}  # spellings of "leave this dimension as it is"


@dataclass(frozen=True)
class InputSpec:
    """One tensor that has to be fed.

    Attributes:
        name: the input's name in the model.
        dtype: its element type.
        dims: its dimensions, or None when the model does not even give the rank.
    """

    name: str
    dtype: ir.DataType
    dims: tuple[DimSpec, ...] | None

    def symbol(self, axis: int) -> str | None:
        """What to call dimension `axis` in bindings: its symbol, a made-up one, or None if it is fixed."""
        dim = self.dims[axis] if self.dims is not None else None
        if isinstance(dim, int):
            return None
        return dim if dim is not None else f"{self.name}_dim_{axis}"

    def __str__(self) -> str:
        if self.dims is None:
            return f"{self.name}: {self.dtype.name} of unknown rank"
        dims = ", ".join("?" if d is None else str(d) for d in self.dims)
        return f"{self.name}: {self.dtype.name} [{dims}]"


def dims_of_value(value: ir.Value) -> tuple[DimSpec, ...] | None:
    """The dimensions written on `value`, as plain Python (never sympy); None for an unknown rank."""
    if value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else (d.value or None) for d in value.shape.dims)


def required_inputs(model: Model) -> list[ir.Value]:
    """The graph inputs that must be fed: those without an initializer as their default."""
    return [v for v in model.graph.inputs if v.name not in model.graph.initializers]


def input_specs(model: Model) -> list[InputSpec]:
    """What must be fed to `model`, in graph order.

    Raises:
        ModelError: an input is not a tensor (a sequence, an optional or a map) or has no element type.
    """
    specs = []
    for value in required_inputs(model):
        if not isinstance(value.type, ir.TensorType):
            raise ModelError(
                f"input {value.name!r} is {_type_name(value.type)}, not a tensor",
                hint="inputs for it cannot be made up; models with such inputs are optimized unverified",
            )
        specs.append(InputSpec(value.name or "", value.type.dtype, dims_of_value(value)))
    return specs


def _type_name(type_: object) -> str:
    names = {"SequenceType": "a sequence", "OptionalType": "an optional", "SparseTensorType": "sparse"}
    return names.get(type(type_).__name__, "of no known type")


# --- Expressions ---------------------------------------------------------------------------------------


def symbols_in(text: str) -> frozenset[str]:
    """The names that occur in a dimension's text: ``past + seq`` → {past, seq}; a bare symbol is itself."""
    tree = _parse(text)
    if tree is None:
        return frozenset({text})
    return frozenset(n.id for n in ast.walk(tree) if isinstance(n, ast.Name)) - _FUNCTIONS.keys()


def evaluate(text: str, bindings: Mapping[str, int]) -> int | None:
    """The integer that a symbol or expression stands for under `bindings`, or None if that is not settled."""
    if text in bindings:
        return bindings[text]
    tree = _parse(text)
    if tree is None:
        return None
    try:
        return _evaluate(tree.body, bindings)
    except (KeyError, ZeroDivisionError, ValueError):
        return None


_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Div: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
}
_FUNCTIONS: dict[str, Callable[..., int]] = {"max": max, "min": min, "Max": max, "Min": min, "floor": int}


def _parse(text: str) -> ast.Expression | None:
    if len(text) > 1000:
        return None
    try:
        return ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _evaluate(node: ast.expr, bindings: Mapping[str, int]) -> int:
    """Arithmetic only. KeyError: an unbound name; ValueError: anything that is not dimension arithmetic."""
    match node:
        case ast.Constant(value=int() as number):
            return number
        case ast.Name(id=name):
            return bindings[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_evaluate(left, bindings), _evaluate(right, bindings))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, bindings)
        case ast.Call(func=ast.Name(id=name), args=[_, *_] as args, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_evaluate(a, bindings) for a in args))
    raise ValueError(ast.dump(node))


# --- What the user wrote -------------------------------------------------------------------------------


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the closest of `known`, or all of them when none is close."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}" if known else "there is none"


def parse_shape(text: str, specs: Sequence[InputSpec]) -> tuple[InputSpec, tuple[DimSpec, ...]]:
    """Read one ``--shape``: which input it is for, and its dimensions (None: leave as it is).

    Input names may contain colons. Without a name the shape is that of the model's only input.

    Raises:
        UsageError: no such input, or dimensions that cannot be read.
    """
    by_name = {s.name: s for s in specs}
    fitting = [name for name in by_name if text.startswith(name + ":")]
    if fitting:
        spec = by_name[max(fitting, key=len)]
        return spec, _parse_dims(text[len(spec.name) + 1 :], text, spec)
    name, colon, dims = text.rpartition(":")
    if colon and name:
        raise UsageError(f"--shape {text}: no input is called {name!r}", hint=nearest(name, by_name))
    if text in by_name:
        raise UsageError(f"--shape {text}: the shape is missing", hint=f"write it as {text}:1x3x224x224")
    if len(specs) != 1:
        raise UsageError(
            f"--shape {text}: which input is meant?",
            hint=f"write NAME:{dims or text}; the inputs are {', '.join(by_name) or '(none)'}",
        )
    return specs[0], _parse_dims(dims, text, specs[0])


def _parse_dims(dims: str, text: str, spec: InputSpec) -> tuple[DimSpec, ...]:
    dims = dims.strip()
    bracketed = dims[:1] in ("[", "(") and dims[-1:] == {"[": "]", "(": ")"}[dims[0]]
    if bracketed:
        dims = dims[1:-1].strip()
        if not dims:
            return ()
    if "," in dims:
        words = [w.strip() for w in dims.removesuffix(",").split(",")]
    elif bracketed and re.search(r"\s", dims):
        words = dims.split()
    else:
        words = _split_at_x(dims, spec)
    parsed: list[DimSpec] = []
    for word in words:
        if word in _KEEP:
            parsed.append(None)
        elif re.fullmatch(r"\d{1,18}", word, re.ASCII):
            parsed.append(int(word))
        elif _SYMBOL.fullmatch(word):
            parsed.append(word)
        else:
            raise UsageError(
                f"--shape {text}: {word!r} is not a dimension",
                hint="write it as NAME:2x3x224x224, NAME:2,3,224,224 or NAME:[2,3,224,224]; "
                "a symbol or ? leaves a dimension as it is",
            )
    return tuple(parsed)


def _split_at_x(dims: str, spec: InputSpec) -> list[str]:
    """Split ``batchx3x224`` at the right ``x``s: symbols may contain that letter (``max_lenx3``).

    Of all ways to split, the first that uses only numbers and the input's own symbols and has its rank; then
    by fewer of those wishes; then the one with the most dimensions.
    """
    pieces = re.split("[x×]", dims)
    words_known = {d for d in spec.dims or () if isinstance(d, str)} | _KEEP
    rank = None if spec.dims is None else len(spec.dims)
    if len(pieces) > 12 or not any(re.search(r"[A-Za-wyz_]", p) or p == "" for p in pieces):
        return [p.strip() for p in pieces]

    def wishes(words: list[str]) -> tuple[bool, bool, bool, int]:
        own = all(w.isdigit() or w in words_known for w in words)
        legal = all(w.isdigit() or w in _KEEP or _SYMBOL.fullmatch(w) for w in words)
        return legal, own, rank is None or len(words) == rank, len(words)

    ways = []
    for cuts in itertools.product((True, False), repeat=len(pieces) - 1):
        words = [pieces[0]]
        for cut, piece in zip(cuts, pieces[1:], strict=True):
            if cut:
                words.append(piece)
            else:
                words[-1] += "x" + piece
        ways.append([w.strip() for w in words])
    return max(ways, key=wishes)


def parse_dim(text: str) -> tuple[str, int]:
    """Read one ``--dim NAME=INTEGER``.

    Raises:
        UsageError: not of that form, or a negative number.
    """
    name, equals, number = text.rpartition("=")
    if not equals or not name.strip() or not re.fullmatch(r"\s*\d{1,18}\s*", number, re.ASCII):
        raise UsageError(f"--dim {text}: not a dimension and a size", hint="write it as --dim batch=4")
    return name.strip(), int(number)


def resolve(
    specs: Sequence[InputSpec], *, shapes: Sequence[str] = (), dims: Sequence[str] = ()
) -> dict[str, int]:
    """Bind symbols as the user's ``--shape`` and ``--dim`` options say.

    Returns:
        symbol → size. Unnamed dimensions appear as ``<input>_dim_<axis>``; an expression that was given
        a size appears under its own text.

    Raises:
        UsageError: an unknown input or symbol, a wrong rank, a size that contradicts a fixed dimension, or
            two sizes for one symbol.
    """
    bound: dict[str, tuple[int, str]] = {}  # symbol → size, and the option that said so

    def bind(symbol: str, size: int, option: str) -> None:
        before = bound.setdefault(symbol, (size, option))
        if before[0] != size:
            raise UsageError(
                f"dimension {symbol!r} cannot be {before[0]} ({before[1]}) and {size} ({option}) at once"
            )

    known = {s for spec in specs for s in _spec_symbols(spec)}
    for text in dims:
        name, size = parse_dim(text)
        if name not in known:
            hint = nearest(name, sorted(known))
            raise UsageError(f"--dim {text}: no input has a dimension {name!r}", hint=hint)
        bind(name, size, f"--dim {text}")
    for text in shapes:
        spec, given = parse_shape(text, specs)
        if spec.dims is not None and len(given) != len(spec.dims):
            raise UsageError(
                f"--shape {text}: {len(given)} dimensions for an input of rank {len(spec.dims)}",
                hint=f"the model says {spec}",
            )
        for axis, dim in enumerate(given):
            own = spec.dims[axis] if spec.dims is not None else None
            if dim is None or dim == own:
                continue
            if isinstance(own, int) or (isinstance(dim, str) and own is not None):
                raise UsageError(
                    f"--shape {text}: dimension {axis} of input {spec.name!r} is {own}, not {dim}",
                    hint=f"the model says {spec}",
                )
            if isinstance(dim, int):
                symbol = spec.symbol(axis) if spec.dims is not None else f"{spec.name}_dim_{axis}"
                bind(symbol or "", dim, f"--shape {text}")
    bindings = {symbol: size for symbol, (size, _) in bound.items()}
    for symbol, (size, option) in bound.items():  # expressions must come out as they were given
        value = evaluate(symbol, {k: v for k, v in bindings.items() if k != symbol})
        if value is not None and value != size:
            raise UsageError(f"dimension {symbol!r} comes out as {value}, but {option} makes it {size}")
    return bindings


def _spec_symbols(spec: InputSpec) -> set[str]:
    """Every name under which a dimension of `spec` may be bound."""
    found: set[str] = set()
    for axis in range(len(spec.dims or ())):
        symbol = spec.symbol(axis)
        if symbol is not None:
            found |= {symbol} | symbols_in(symbol)
    return found


def concrete_shape(spec: InputSpec, bindings: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of an input when the symbols have the sizes of `bindings`.

    Raises:
        UsageError: a dimension is left open, or comes out negative.
    """
    if spec.dims is None:
        sizes: list[int] = []
        while (size := bindings.get(f"{spec.name}_dim_{len(sizes)}")) is not None:
            sizes.append(size)
        return tuple(sizes)
    shape: list[int] = []
    for axis, dim in enumerate(spec.dims):
        size = dim if isinstance(dim, int) else evaluate(spec.symbol(axis) or "", bindings)
        if size is None or size < 0:
            raise UsageError(
                f"input {spec.name!r}: dimension {axis} ({spec.symbol(axis)}) "
                + ("has no size" if size is None else f"comes out as {size}"),
                hint=f"give it with --dim {spec.symbol(axis)}=SIZE",
            )
        shape.append(size)
    return tuple(shape)


# --- Freezing ------------------------------------------------------------------------------------------


def freeze(model: Model, bindings: Mapping[str, int]) -> int:
    """Write the sizes of `bindings` into the model: inputs get constant dimensions, in place.

    Shapes elsewhere that mention a bound symbol are evaluated as far as their expression is understood and
    forgotten where it is not, so that no stale symbol survives. Symbols of function bodies are their own.

    Returns:
        The number of input dimensions that became constant.
    """
    frozen = 0
    for value in model.graph.inputs:
        if not isinstance(value.type, ir.TensorType):
            continue
        spec = InputSpec(value.name or "", value.type.dtype, dims_of_value(value))
        if spec.dims is None:
            shape = concrete_shape(spec, bindings)
            if shape:
                value.shape = ir.Shape(shape)
                frozen += len(shape)
            continue
        new: list[DimSpec] = []
        for axis, dim in enumerate(spec.dims):
            symbol = spec.symbol(axis)
            new.append(dim if symbol is None else _substitute(symbol, bindings, unnamed=dim is None))
            frozen += isinstance(new[-1], int) and not isinstance(dim, int)
        value.shape = ir.Shape(new)
    inputs = set(model.graph.inputs)
    for value in _values(model.graph):
        value.meta.pop("onnxlathe.known", None)
        dims = dims_of_value(value)
        if value not in inputs and dims is not None and any(isinstance(d, str) for d in dims):
            value.shape = ir.Shape([_substitute(d, bindings) if isinstance(d, str) else d for d in dims])
    return frozen


def _substitute(text: str, bindings: Mapping[str, int], *, unnamed: bool = False) -> DimSpec:
    """A dimension's text under `bindings`; None when it mentions a bound symbol but is not understood."""
    size = evaluate(text, bindings)
    if size is not None:
        return size if size >= 0 else None
    if unnamed:
        return None
    if not symbols_in(text) & bindings.keys():
        return text
    from onnxlathe.infer import Dim

    try:
        rest = Dim.parse(text)
        return str(rest if isinstance(rest, int) else rest.substitute(dict(bindings)))
    except (ValueError, ZeroDivisionError):
        return None


def _values(graph: ir.Graph) -> Iterable[ir.Value]:
    """Every value of a graph and of the graphs nested in it."""
    yield from graph.inputs
    for node in ir.traversal.RecursiveGraphIterator(graph):
        yield from node.outputs
        for attr in node.attributes.values():
            if attr.type == ir.AttributeType.GRAPH:
                yield from attr.as_graph().inputs
            elif attr.type == ir.AttributeType.GRAPHS:
                for nested in attr.as_graphs():
                    yield from nested.inputs
