"""A pass: a named transformation of a model with typed options.

A pass is a small frozen dataclass, after xDSL's: its fields are its options, its docstring is its
documentation, and `run` does the work. The command line, the documentation and the pipeline text are
derived from these.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

from onnxlathe.errors import UsageError
from onnxlathe.model import Model
from onnxlathe.rewrite.context import Context

Bytes = Annotated[int, "bytes"]
"""An option that counts bytes: `64MiB`, `1.5GB` or a number in the pipeline text."""


def option(default: Any, doc: str) -> Any:
    """A field of a pass that users may set: its default and one line of documentation."""
    if isinstance(default, (list, dict, set)):
        raise TypeError("an option's default must be immutable; use a tuple")
    return dataclasses.field(default=default, metadata={"doc": doc})


@dataclasses.dataclass(frozen=True)
class Option:
    """An option of a pass as users see it."""

    name: str
    type: Any
    default: Any
    doc: str


@dataclasses.dataclass(frozen=True)
class Pass(ABC):
    """Base of all passes.

    Class attributes:
        name: what the pipeline text calls it (letters, digits and `_`).
        group: the name that also stands for this pass together with others (`fuse`, `tidy`).
        needs: facts that must hold before it runs: `"shapes"` (types and shapes have been inferred).
        keeps: facts that are still true after it has run.
        gives: facts that are true after it has run, whatever was true before.
        min_opset: the pass does nothing for models of an older default operator set.
        example: a before/after in readable text, for `optimize passes NAME`.
        lowers_precision: values go through a less precise type afterwards, on purpose.
    """

    name: ClassVar[str] = ""
    group: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    keeps: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset()
    min_opset: ClassVar[int] = 1
    example: ClassVar[str] = ""
    lowers_precision: ClassVar[bool] = False

    @classmethod
    def __subclasshook__(cls, other: type, /) -> bool:
        # Without this, every class that is no subclass is looked for below each of the subclasses that there are:
        # with a hundred passes 20 ms for a pipeline.
        return cls in other.__mro__

    @abstractmethod
    def run(self, model: Model, context: Context) -> int:
        """Transform `model` in place.

        Args:
            model: the model to change.
            context: the run: fresh names, permission for single changes, records.

        Returns:
            How many changes were made; 0 where the model is as it was.
        """

    @classmethod
    def summary(cls) -> str:
        """The first sentence of the docstring."""
        return (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ").strip()

    @classmethod
    def options(cls) -> dict[str, Option]:
        """The options by name, with their resolved types."""
        hints = typing.get_type_hints(cls, include_extras=True)
        return {
            f.name: Option(f.name, hints[f.name], f.default, str(f.metadata.get("doc", "")))
            for f in dataclasses.fields(cls)
        }

    def with_options(self, **values: Any) -> Pass:
        """The same pass with some options changed.

        Raises:
            UsageError: for an option that the pass does not have.
        """
        known = self.options()
        for name in values:
            if name not in known:
                raise UsageError(f"pass '{self.name}' has no option '{name}'")
        return dataclasses.replace(self, **values)


def make_pass(
    name: str, *, group: str = "", needs: frozenset[str] = frozenset(), keeps: frozenset[str] = frozenset()
) -> Callable[[Callable[..., int | None]], type[Pass]]:
    """Decorator: a pass from a function `f(model, context, *, option=default…)`.

    The function's keyword-only parameters become the options, its docstring the documentation. It returns
    how many changes it made; `None` counts as one, since nothing is known.
    """

    def decorate(function: Callable[..., int | None]) -> type[Pass]:
        parameters = [
            p
            for p in inspect.signature(function).parameters.values()
            if p.kind is inspect.Parameter.KEYWORD_ONLY
        ]
        hints = typing.get_type_hints(function, include_extras=True)
        fields = [(p.name, hints.get(p.name, str), option(p.default, "")) for p in parameters]

        def run(self: Pass, model: Model, context: Context) -> int:
            values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
            changed = function(model, context, **values)
            return 1 if changed is None else int(changed)

        namespace = {
            "name": name,
            "group": group,
            "needs": needs,
            "keeps": keeps,
            "run": functools.wraps(function)(run),
            "__doc__": function.__doc__,
            "__module__": function.__module__,
        }
        cls = dataclasses.make_dataclass(
            function.__name__, fields, bases=(Pass,), namespace=namespace, frozen=True
        )
        return typing.cast("type[Pass]", cls)

    return decorate
