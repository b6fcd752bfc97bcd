"""Optimization profiles: the range of shapes that an engine is built for, and the shape it is best at.

As trtexec and Polygraphy spell them::

    --min-shapes x:1x3x224x224 --opt-shapes x:8x3x224x224 --max-shapes x:32x3x224x224
    --min-shapes 'ids:[1,1],mask:[1,1]' …        several inputs; the option again: a further profile
    --range batch=1:8:32                         the same by the name of a dimension
    --min-shapes sizes:1x64 …                    values, for an integer input of fixed size (a shape tensor)

Everything is reduced to sizes of the model's symbols, so that inputs which share one cannot disagree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from onnxlathe.errors import UsageError
from onnxlathe.model import Model
from onnxlathe.model.samples import default_bindings, dimension_kinds
from onnxlathe.model.shapes import InputSpec, concrete_shape, input_specs, nearest, parse_shape, resolve

LEVELS: Final = ("min", "opt", "max")

_PROPOSED: Final[dict[str, tuple[int, int, int]]] = {
    "batch": (1, 4, 8),
    "sequence": (1, 64, 256),
    "encoder": (1, 64, 256),
    "past": (1, 64, 256),
    "image": (32, 224, 448),
    "volume": (32, 64, 96),
    "frames": (32, 128, 512),
    "audio": (4000, 16000, 48000),
    "other": (1, 8, 32),
}

Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]
"""At min, opt and max."""


@dataclass(frozen=True)
class Profile:
    """One optimization profile.

    Attributes:
        shapes: of every input with an open dimension.
        values: contents of integer inputs that are shape tensors.
        bindings: sizes of the model's symbols at min, opt and max.
        proposed: symbols whose range nobody gave.
    """

    shapes: dict[str, Range] = field(default_factory=dict)
    values: dict[str, Range] = field(default_factory=dict)
    bindings: tuple[dict[str, int], dict[str, int], dict[str, int]] = ({}, {}, {})
    proposed: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain data: by input [min, opt, max], and the same by symbol."""
        return {
            "shapes": {name: [list(s) for s in shapes] for name, shapes in self.shapes.items()},
            "values": {name: [list(v) for v in values] for name, values in self.values.items()},
            "dimensions": {s: [b[s] for b in self.bindings] for s in self.bindings[1]},
            "proposed": list(self.proposed),
        }

    def __str__(self) -> str:
        ranges = [f"{s} {_span([b[s] for b in self.bindings])}" for s in self.bindings[1]]
        ranges += [f"{name} = {_span([list(v) for v in values])}" for name, values in self.values.items()]
        return ", ".join(ranges)


def _span(levels: Sequence[object]) -> str:
    return f"{levels[0]}…{levels[1]}…{levels[2]}" if levels[0] != levels[2] else f"{levels[0]}"


@dataclass(frozen=True)
class ProfileWishes:
    """What a user said about profiles; one entry of the shapes for each profile.

    Attributes:
        min_shapes, opt_shapes, max_shapes: texts of `--min-shapes`, `--opt-shapes`, `--max-shapes`.
        ranges: texts of `--range`, for all profiles; they stand for the levels that no shape speaks of.
        fixed: sizes of symbols that are settled.
        caps: the largest size that may be proposed for a symbol.
    """

    min_shapes: Sequence[str] = ()
    opt_shapes: Sequence[str] = ()
    max_shapes: Sequence[str] = ()
    ranges: Sequence[str] = ()
    fixed: Mapping[str, int] = field(default_factory=dict)
    caps: Mapping[str, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many profiles they describe; at least one."""
        return max(1, len(self.min_shapes), len(self.opt_shapes), len(self.max_shapes))

    def at(self, profile: int) -> dict[str, tuple[str, str]]:
        """By level the option and its text for one profile, where it was given."""
        given = zip(LEVELS, (self.min_shapes, self.opt_shapes, self.max_shapes), strict=True)
        return {
            level: (f"--{level}-shapes", texts[profile]) for level, texts in given if profile < len(texts)
        }


def make_profiles(model: Model, wishes: ProfileWishes) -> list[Profile]:
    """The profiles for a model: as wished, and proposed where nothing was said.

    Returns:
        One profile or more; none for a model whose inputs are all of fixed shape.

    Raises:
        UsageError: a wish that contradicts the model, another wish, or itself; it names the dimension.
    """
    specs = input_specs(model)
    ranges: dict[str, tuple[int, int, int]] = {}
    for text in wishes.ranges:
        symbol, span = _parse_range(text, specs)
        if ranges.setdefault(symbol, span) != span:
            raise UsageError(
                f"--range {text}: dimension {symbol!r} has another range already",
                hint="several profiles are given by shapes, each with --min-shapes, --opt-shapes, --max-shapes",
            )
    kinds = dimension_kinds(model)
    profiles = [_profile(model, specs, kinds, wishes, number, ranges) for number in range(wishes.count)]
    return [profile for profile in profiles if profile.shapes or profile.values]


def _profile(
    model: Model,
    specs: list[InputSpec],
    kinds: dict[str, str],
    wishes: ProfileWishes,
    number: int,
    ranges: dict[str, tuple[int, int, int]],
) -> Profile:
    shapes: dict[str, dict[str, int]] = {}  # level → symbol → size
    values: dict[str, dict[str, Shape]] = {}  # level → input → contents
    for level, (option, text) in wishes.at(number).items():
        shapes[level], values[level] = _read(text, option, specs)
    given: dict[str, tuple[int, int, int]] = dict(ranges)
    for symbol in dict.fromkeys(s for sizes in shapes.values() for s in sizes):
        open_levels = dict(zip(LEVELS, ranges[symbol], strict=True)) if symbol in ranges else {}
        said = {lv: sizes[symbol] for lv, sizes in shapes.items() if symbol in sizes}
        given[symbol] = _complete(open_levels | said)
    given |= {symbol: (size, size, size) for symbol, size in wishes.fixed.items()}
    for symbol, span in given.items():
        _check_order(f"dimension {symbol!r}", span)
    proposed = {
        s: _capped(_PROPOSED[kind], wishes.caps.get(s))
        for s, kind in kinds.items()
        if kind != "total" and s not in given
    }
    spans = given | proposed
    low, opt, high = (
        default_bindings(model, 0, given={s: span[i] for s, span in spans.items()}) for i in range(3)
    )
    contents = {
        name: _complete({lv: texts[name] for lv, texts in values.items() if name in texts})
        for name in dict.fromkeys(n for texts in values.values() for n in texts)
    }
    for name, content in contents.items():
        for position, span in enumerate(zip(*content, strict=True)):
            _check_order(f"value {position} of input {name!r}", span)
    made: dict[str, Range] = {}
    for spec in specs:
        if spec.dims is None:
            raise UsageError(
                f"input {spec.name!r} has no rank in the model, so that no profile can be made for it",
                hint="export the model with shapes for its inputs, or freeze it with --freeze --shape",
            )
        if any(spec.symbol(axis) is not None for axis in range(len(spec.dims))):
            made[spec.name] = (
                concrete_shape(spec, low), concrete_shape(spec, opt), concrete_shape(spec, high)
            )  # fmt: skip
            for axis, span in enumerate(zip(*made[spec.name], strict=True)):
                _check_order(f"dimension {axis} ({spec.symbol(axis)}) of input {spec.name!r}", span)
    return Profile(made, contents, (low, opt, high), tuple(proposed))


def _capped(span: tuple[int, int, int], cap: int | None) -> tuple[int, int, int]:
    low, opt, high = span
    return span if cap is None else (min(low, cap), min(opt, cap), min(high, cap))


def tighter(profile: Profile, complaint: str) -> dict[str, int]:
    """Caps for what was proposed, where the target finds that the model cannot be that large.

    Args:
        profile: with proposed ranges.
        complaint: the target's words, which hold the size that was too large and often its bound.

    Returns:
        Some symbols with smaller caps; nothing where there is nothing left to make smaller.
    """
    largest = {s: profile.bindings[2][s] for s in profile.proposed if profile.bindings[2][s] > 1}
    numbers = {int(n) for n in re.findall(r"(?<![\w:.])\d+(?![\w:])", complaint)}
    for symbol in largest:
        sizes = {bindings[symbol] for bindings in profile.bindings}
        wrong = max((s for s in sizes if numbers & {s, s - 1}), default=0)  # s - 1: an index out of bounds
        below = [n for n in numbers if 1 < n < wrong - 1]
        if below:
            return {symbol: max(below)}
    halved = {s: size // 2 for s, size in largest.items() if profile.bindings[0][s] < size}
    most = max(halved, key=halved.__getitem__, default=None)
    return {} if most is None else {most: halved[most]}


def _complete(given: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Min, opt and max from those that were given: opt stands for the others, then max for opt."""
    opt = given.get("opt", given.get("max", given.get("min")))
    return given.get("min", opt), opt, given.get("max", opt)


def _check_order(what: str, span: tuple[int, ...]) -> None:
    low, opt, high = span
    if not low <= opt <= high:
        raise UsageError(
            f"{what} has min {low}, opt {opt} and max {high}", hint="they must not decrease in this order"
        )


# Reading what users write -------------------------------------------------------------------------------


def _read(text: str, option: str, specs: list[InputSpec]) -> tuple[dict[str, int], dict[str, Shape]]:
    """One option's text: sizes of symbols, and contents of shape tensors."""
    shapes: list[str] = []
    values: dict[str, Shape] = {}
    try:
        for part in split_inputs(text, specs):
            spec, dims = parse_shape(part, specs)
            if _takes_values(spec):
                count = spec.dims[0] if spec.dims else 1
                if len(dims) != count or any(not isinstance(d, int) for d in dims):
                    raise UsageError(
                        f"--shape {part}: input {spec.name!r} holds {count} integers, not {len(dims)}",
                        hint=f"the model says {spec}; what is given are its values",
                    )
                values[spec.name] = tuple(d for d in dims if isinstance(d, int))
            else:
                shapes.append(part)
        return resolve(specs, shapes=shapes), values
    except UsageError as error:  # those functions know the option as --shape
        message, hint = (t.replace("--shape", option) for t in (error.message, error.hint))
        raise UsageError(message, hint=hint) from None


def _takes_values(spec: InputSpec) -> bool:
    """An integer vector of fixed size: its shape needs no range, so what is given are its contents."""
    fixed = spec.dims is not None and len(spec.dims) <= 1 and all(isinstance(d, int) for d in spec.dims)
    return fixed and spec.dtype.name in ("INT32", "INT64")


def split_inputs(text: str, specs: Sequence[InputSpec]) -> list[str]:
    """`x:1x3,y:[1,2]` → one text for each input. Names may be quoted, and may hold colons and commas."""
    names = sorted((re.escape(spec.name) for spec in specs), key=len, reverse=True)
    if not names:
        return [text]
    start = re.compile(rf"(?:^|[,\s])\s*(['\"]?)({'|'.join(names)})\1:")
    found = list(start.finditer(text))
    if not found or found[0].start() > 0:
        # Something stands before the first known name: let it be complained of by itself.
        head = text[: found[0].start()] if found else text
        return [_unquoted(part) for part in re.split(r",(?=[^,\[\]]+:)", head) if part.strip()]
    ends = [match.start() for match in found[1:]] + [len(text)]
    return [
        f"{match[2]}:{text[match.end() : end].strip().rstrip(',')}"
        for match, end in zip(found, ends, strict=True)
    ]


def _unquoted(part: str) -> str:
    return re.sub(r"^\s*(['\"])(.*)\1:", r"\2:", part.strip())


def _parse_range(text: str, specs: list[InputSpec]) -> tuple[str, tuple[int, int, int]]:
    """`batch=1:8:32`, also `batch=1:32` (best at the largest) and `batch=4`."""
    name, equals, numbers = text.rpartition("=")
    words = [word.strip() for word in numbers.split(":")]
    if not equals or not 1 <= len(words) <= 3 or not all(re.fullmatch(r"\d{1,18}", w) for w in words):
        raise UsageError(f"--range {text}: not a range", hint="write it as batch=1:8:32 (min, opt, max)")
    name = name.strip()
    known = {s for spec in specs for axis in range(len(spec.dims or ())) if (s := spec.symbol(axis))}
    if name not in known:
        raise UsageError(
            f"--range {text}: no input has a dimension {name!r}", hint=nearest(name, sorted(known))
        )
    sizes = [int(word) for word in words]
    span = (sizes[0], sizes[1] if len(sizes) == 3 else sizes[-1], sizes[-1])
    _check_order(f"--range {text}: dimension {name!r}", span)
    return name, span
