"""From a pipeline's text to passes that can be run.

Names are resolved against the registry, groups and presets expanded, options converted to the types of the
pass's fields. What comes out is a short list of units: one pass, or several rules that share one worklist.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from onnxlathe.errors import UsageError
from onnxlathe.pipeline.registry import Registered, Registry, suggestion
from onnxlathe.pipeline.text import Item, Size, join, parse, parse_size, show
from onnxlathe.rewrite.passes import Option, Pass
from onnxlathe.rewrite.rule import LocalRule

UP_TO_ATTENTION = "opset(attention=true),fixpoint(shapes,fold,tidy,fuse)"
"""What `O3` does, on an operator set that has Attention; for what makes it afterwards."""

PRESETS: Mapping[str, str] = {
    "O0": "shapes",
    "O1": "shapes,fold,tidy",
    "O2": "shapes,fold,tidy,fuse,tidy",
    "O3": "opset,fixpoint(shapes,fold,tidy,fuse)",
    "trt": "opset(version=21),shapes,fold,tidy,fuse,tidy,"
    "groupnorm,roll,split_gather,full_rank(everything=true),tidy",
    "ort": f"{UP_TO_ATTENTION},patch_projection,attention(fast_float32=true),fold,fuse,tidy",
    "default": "shapes,fold,tidy,fuse,tidy",
}
"""Pipelines with a name. `O0` only infers, `O1` removes what is not needed, `O2` fuses as well, `O3` raises
the operator set where that is safe, so that newer fused operators can be used, and repeats to the end. `trt`
leaves the fewest layers in TensorRT, at the cost of some nodes and of ONNX Runtime's speed on CPU; `ort` what
ONNX Runtime's CUDA provider is fastest with, which TensorRT may refuse in float32."""

MAX_ROUNDS = 10
"""How often `fixpoint` repeats at most; the user is told where that was not enough."""


@dataclass(frozen=True)
class Unit:
    """What is run at once: one pass, or rules that share a worklist.

    Attributes:
        name: the word of the pipeline text that it comes from.
        passes: the passes; more than one only where all are rules.
        trusted: whether all are our own.
        ends: with it ends what the word stands for; False for the parts of a group but the last.
    """

    name: str
    passes: tuple[Pass, ...]
    trusted: bool = True
    ends: bool = True

    @property
    def rules(self) -> tuple[LocalRule, ...]:
        """The passes, where all of them are rules; otherwise nothing."""
        found = tuple(p for p in self.passes if isinstance(p, LocalRule))
        return found if len(found) == len(self.passes) else ()

    @property
    def label(self) -> str:
        """How records call it."""
        if len(self.passes) == 1 and self.passes[0].name != self.name:
            return f"{self.name}:{self.passes[0].name}"
        return self.name


@dataclass(frozen=True)
class Fixpoint:
    """Steps that are repeated until none of them changes anything."""

    steps: tuple[Unit | Fixpoint, ...]
    rounds: int = MAX_ROUNDS


@dataclass(frozen=True)
class Pipeline:
    """Passes in order, resolved; `str()` gives the text back.

    Attributes:
        items: the pipeline as written, presets expanded.
        steps: what is run.
    """

    items: tuple[Item, ...]
    steps: tuple[Unit | Fixpoint, ...]

    def __str__(self) -> str:
        return join(self.items)

    def passes(self) -> Iterator[Pass]:
        """All passes, in order; those in a `fixpoint` once."""
        front: list[Unit | Fixpoint] = list(reversed(self.steps))
        while front:
            step = front.pop()
            if isinstance(step, Unit):
                yield from step.passes
            else:
                front.extend(reversed(step.steps))


def plan(
    pipeline: str | Sequence[Item | Pass | type[Pass]] | Pass,
    registry: Registry,
    named: Mapping[str, str] | None = None,
) -> Pipeline:
    """Resolve a pipeline.

    Args:
        pipeline: its text, or a sequence of items and passes.
        registry: what the names mean.
        named: further pipelines by name (those of a recipe), beside `PRESETS`.

    Raises:
        UsageError: an unknown pass or option (the nearest are suggested), or a value of the wrong type.
    """
    planner = _Planner(registry, {**PRESETS, **(named or {})})
    if isinstance(pipeline, Pass):
        pipeline = [pipeline]
    parts: Sequence[Any] = parse(pipeline) if isinstance(pipeline, str) else pipeline
    items: list[Item] = []
    steps: list[Unit | Fixpoint] = []
    for part in parts:
        if isinstance(part, type) and issubclass(part, Pass):
            part = part()
        if isinstance(part, Pass):
            items.append(_item_of(part))
            steps.append(Unit(part.name, (part,), trusted=False))
        else:
            for item in planner.expand(part):
                items.append(item)
                steps.extend(planner.steps(item))
    return Pipeline(tuple(items), tuple(steps))


class _Planner:
    def __init__(self, registry: Registry, presets: Mapping[str, str]) -> None:
        self.registry = registry
        self.presets = presets
        self.groups = registry.groups()

    def expand(self, item: Item, within: tuple[str, ...] = ()) -> list[Item]:
        """The item, or the items of the preset that it names."""
        if item.excluded:
            raise UsageError(
                f"'-{item.name}' stands outside a group", hint=f"write it inside one, as fuse(-{item.name})"
            )
        if item.name not in self.presets:
            return [item]
        if item.name in within:
            raise UsageError(f"the pipeline '{item.name}' contains itself")
        if item.options or item.children:
            raise UsageError(f"the preset '{item.name}' takes no arguments")
        inner = parse(self.presets[item.name])
        return [each for part in inner for each in self.expand(part, (*within, item.name))]

    def steps(self, item: Item) -> list[Unit | Fixpoint]:
        if item.name == "fixpoint":
            return [self.fixpoint(item)]
        if item.name in self.groups:
            return list(self.group(item))
        if item.name not in self.registry:
            known = [*self.registry.names(), *self.presets, "fixpoint"]
            raise UsageError(f"there is no pass '{item.name}'", hint=suggestion(item.name, known))
        entry = self.registry.get(item.name)
        return [Unit(item.name, (self.instance(entry, item),), entry.trusted)]

    def fixpoint(self, item: Item) -> Fixpoint:
        rounds = item.options.get("rounds", MAX_ROUNDS)
        unknown = [name for name in item.options if name != "rounds"]
        if unknown or not isinstance(rounds, int) or rounds < 1:
            raise UsageError("fixpoint takes passes and rounds=N", hint="as in fixpoint(fold,tidy,rounds=3)")
        if not item.children:
            raise UsageError("fixpoint has nothing to repeat", hint="as in fixpoint(tidy)")
        inner = [each for child in item.children for each in self.expand(child)]
        return Fixpoint(tuple(step for child in inner for step in self.steps(child)), rounds)

    def group(self, item: Item) -> list[Unit]:
        """A group's members, all or those named, as few units as possible."""
        members = self.groups[item.name]
        if item.options:
            name = next(iter(item.options))
            raise UsageError(
                f"the group '{item.name}' has no option '{name}'",
                hint=f"options belong to its members, as in {item.name}({members[0]}({name}=…))",
            )
        for child in item.children:
            if child.name not in members:
                raise UsageError(
                    f"'{child.name}' is not in the group '{item.name}'", hint=suggestion(child.name, members)
                )
        wanted = {child.name: child for child in item.children if not child.excluded}
        excluded = {child.name for child in item.children if child.excluded}
        chosen = [n for n in members if n not in excluded and (not wanted or n in wanted)]
        units: list[Unit] = []
        batch: list[Pass] = []
        trusted = True

        def flush() -> None:
            nonlocal batch, trusted
            if batch:
                units.append(Unit(item.name, tuple(batch), trusted))
            batch, trusted = [], True

        for name in chosen:
            entry = self.registry.get(name)
            instance = self.instance(entry, wanted.get(name, Item(name)))
            if isinstance(instance, LocalRule):
                batch.append(instance)
                trusted = trusted and entry.trusted
            else:
                flush()
                units.append(Unit(item.name, (instance,), entry.trusted))
        flush()
        return [replace(unit, ends=number == len(units)) for number, unit in enumerate(units, 1)]

    def instance(self, entry: Registered, item: Item) -> Pass:
        if item.children:
            raise UsageError(
                f"the pass '{item.name}' takes options, not '{item.children[0]}'",
                hint=f"`optimize passes {item.name}` shows its options",
            )
        # Resolving the types of options takes longer than making the pass; most items have none.
        options = entry.cls.options() if item.options else {}
        values = {}
        for name, value in item.options.items():
            if name not in options:
                raise UsageError(
                    f"pass '{item.name}' has no option '{name}'",
                    hint=suggestion(name, options) if options else "it has no options at all",
                )
            values[name] = convert(value, options[name], item.name)
        return entry.cls(**values)


def convert(value: Any, option: Option, owner: str) -> Any:
    """A value of the pipeline text as the type of a pass's option.

    Raises:
        UsageError: it cannot be one.
    """
    kind = option.type
    is_size = typing.get_origin(kind) is typing.Annotated and "bytes" in typing.get_args(kind)[1:]
    try:
        if is_size:
            size = parse_size(value) if isinstance(value, str) else Size(msgspec.convert(value, int))
            if size < 0:
                raise UsageError("a size is not negative")
            return size
        if isinstance(value, (str, int, float)) and typing.get_origin(kind) is tuple:
            value = (value,)
        if isinstance(value, int) and not isinstance(value, bool) and kind is str:
            value = str(value)
        return msgspec.convert(value, kind, strict=True)
    except (msgspec.ValidationError, TypeError, UsageError) as error:
        shown = "bytes (64MiB)" if is_size else getattr(kind, "__name__", str(kind))
        raise UsageError(
            f"option {option.name}={show(value)} of pass '{owner}' is not of type {shown}",
            hint=option.doc or str(error),
        ) from error


def _item_of(part: Pass) -> Item:
    changed = {
        name: getattr(part, name) for name, o in part.options().items() if getattr(part, name) != o.default
    }
    return Item(part.name, changed)
