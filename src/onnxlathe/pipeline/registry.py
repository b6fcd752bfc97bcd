"""Which passes there are, and where they come from.

Passes are found through the entry-point group `onnxlathe.passes`: an entry point names a module (or
package), whose `PASSES` list, or else whose `Pass` subclasses, are registered. The standard passes come the
same way. A file or module that is not installed is added with `Registry.add_plugin`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
import sys
import traceback
import types
from collections.abc import Iterable
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any

from onnxlathe.errors import LatheError, UsageError
from onnxlathe.rewrite.passes import Pass

GROUP = "onnxlathe.passes"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


@dataclass(frozen=True)
class Registered:
    """A pass and where it came from.

    Attributes:
        cls: the pass.
        origin: the distribution and version, the file or the module that it was loaded from.
        trusted: whether it is one of ours; a stranger's runs behind a copy of the model.
    """

    cls: type[Pass]
    origin: str
    trusted: bool = False

    @property
    def name(self) -> str:
        """The name in the pipeline text."""
        return self.cls.name


class Registry:
    """Passes by name, in order of registration, and the groups they form."""

    def __init__(self) -> None:
        self._passes: dict[str, Registered] = {}
        self.problems: list[str] = []

    @classmethod
    def standard(cls) -> Registry:
        """All installed passes. A plugin that cannot be loaded becomes one of `problems`."""
        registry = cls()
        points = list(importlib.metadata.entry_points(group=GROUP))
        # Ours first, so that a name taken twice is the newcomer's mistake.
        for point in sorted(points, key=lambda p: (p.module.split(".")[0] != "onnxlathe_passes", p.name)):
            dist = point.dist
            source = f"{dist.name} {dist.version}" if dist is not None else point.value
            try:
                registry.add(point.load(), source, trusted=point.module.startswith("onnxlathe_passes"))
            except LatheError as error:
                registry.problems.append(f"plugin {source}: {error.message}")
            except (Exception, SystemExit) as error:
                registry.problems.append(f"plugin {source} could not be loaded: {_where(error)}")
        return registry

    def add(self, found: Any, origin: str, *, trusted: bool = False) -> list[str]:
        """Register a pass, a list of passes, or the passes of a module.

        Returns:
            The names that were added.

        Raises:
            UsageError: nothing in `found` is a pass, or a name is malformed or taken.
        """
        classes = list(_passes_in(found))
        if not classes:
            raise UsageError(
                f"{origin} defines no pass",
                hint="a plugin holds subclasses of onnxlathe.Pass or Rule, or a list of them named PASSES",
            )
        for cls in classes:
            if not _NAME.match(cls.name):
                raise UsageError(
                    f"{origin}: pass class {cls.__name__} has no usable name ('{cls.name}')",
                    hint="set its class attribute `name` to letters, digits and _",
                )
            taken = self._passes.get(cls.name)
            if (taken is not None and taken.cls is not cls) or cls.name in ("fixpoint", *self.groups()):
                owner = taken.origin if taken else "the pipeline language or a group"
                raise UsageError(
                    f"{origin}: the pass name '{cls.name}' is taken by {owner}", hint="rename the pass"
                )
            if (field := _undecorated(cls)) is not None:
                raise UsageError(
                    f"{origin}: pass '{cls.name}' has the option '{field}' but is no dataclass",
                    hint="write @dataclass(frozen=True) above the class",
                )
        for cls in classes:
            self._passes[cls.name] = Registered(cls, origin, trusted)
        return [cls.name for cls in classes]

    def add_plugin(self, spec: str) -> list[str]:
        """Register what a `--plugin` names: `file.py`, `module` or either with `:attribute`.

        Raises:
            UsageError: it is not there, does not import, or holds no pass; with its file and line.
        """
        path, _, attribute = spec.partition(":") if not re.match(r"[A-Za-z]:[\\/]", spec) else (spec, "", "")
        try:
            if path.endswith(".py") or "/" in path or "\\" in path:
                module = _import_file(Path(path))
            else:
                module = importlib.import_module(path)
        except LatheError:
            raise
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"plugin '{spec}' could not be loaded: {_where(error)}",
                hint="is a package that it needs missing, or its path wrong?",
            ) from error
        found: Any = module
        if attribute:
            if not hasattr(module, attribute):
                raise UsageError(
                    f"plugin '{path}' has no '{attribute}'",
                    hint=suggestion(attribute, [n for n in vars(module) if not n.startswith("_")]),
                )
            found = getattr(module, attribute)
        return self.add(found, spec)

    def get(self, name: str) -> Registered:
        """The pass of that name.

        Raises:
            UsageError: there is none; the nearest names are suggested.
        """
        if name in self._passes:
            return self._passes[name]
        raise UsageError(f"there is no pass '{name}'", hint=suggestion(name, self.names()))

    def __contains__(self, name: object) -> bool:
        return name in self._passes

    def all(self) -> list[Registered]:
        """All passes in order of registration."""
        return list(self._passes.values())

    def groups(self) -> dict[str, list[str]]:
        """Members of each group, in order of registration."""
        groups: dict[str, list[str]] = {}
        for entry in self._passes.values():
            if entry.cls.group:
                groups.setdefault(entry.cls.group, []).append(entry.name)
        return groups

    def names(self) -> list[str]:
        """All names that a pipeline may use: passes and groups."""
        return [*self._passes, *self.groups()]


def suggestion(name: str, known: Iterable[str]) -> str:
    """`did you mean …` for a misspelt name, or where to look."""
    names = list(known)
    same = [n for n in names if n.lower() == name.lower()]
    near = same or difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    return "`optimize passes` lists what there is"


def _undecorated(cls: type[Pass]) -> str | None:
    """An option that no dataclass made a field of; the pass would see its declaration instead of a value."""
    for base in cls.__mro__:
        for name, value in vars(base).items():
            if isinstance(value, Field):
                return name
    return None


def _passes_in(found: Any) -> Iterable[type[Pass]]:
    if inspect.isclass(found) and issubclass(found, Pass):
        yield found
    elif isinstance(found, (list, tuple)):
        for each in found:
            yield from _passes_in(each)
    elif isinstance(found, types.ModuleType):
        if hasattr(found, "PASSES"):
            yield from _passes_in(list(found.PASSES))
            return
        for value in list(vars(found).values()):
            if (
                inspect.isclass(value)
                and issubclass(value, Pass)
                and not inspect.isabstract(value)
                and value.name
                and value.__module__ == found.__name__
            ):
                yield value


def _import_file(path: Path) -> types.ModuleType:
    if not path.is_file():
        raise UsageError(f"there is no plugin file '{path}'", hint="give the path of a Python file")
    name = "onnxlathe_plugin_" + re.sub(r"\W", "_", str(path.resolve()))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"'{path}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    keeps, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # nothing is left in the user's folder
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.dont_write_bytecode = keeps
    return module


def _where(error: BaseException) -> str:
    """What was raised, with the file and line of its innermost frame."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}:{error.lineno})"
    return f"{type(error).__name__}: {error}{place}"
