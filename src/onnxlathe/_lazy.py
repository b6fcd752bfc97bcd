"""Keep modules asleep that libraries import and most runs never use.

`onnx_ir` imports sympy for arithmetic on symbolic dimensions, which we do with our own `Dim`. Importing
sympy takes two seconds and 30 MiB. `onnx` imports what reads and writes its text formats and its hub; that is
a tenth of our start. A finder placed first on `sys.meta_path` lets the modules below be *found* at import time
and *executed* at their first attribute access. Nothing is taken away: they work as ever, a little later.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

# `_symbolic_shapes` subclasses sympy's printer at module level, so it must sleep as well.
_ASLEEP = frozenset(
    {
        "sympy",
        "onnx_ir._symbolic_shapes",
        "google.protobuf.json_format",
        "google.protobuf.text_format",
        "onnx.compose",
        "tarfile",
    }
)


class _LazyFinder:  # without its abstract base class, whose import is slow
    """Wraps the loaders of `_ASLEEP` in `importlib.util.LazyLoader`; knows no other module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _ASLEEP:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


def install() -> None:
    """Put the finder first, once. Harmless when sympy is already imported: it is then never asked."""
    if not any(isinstance(finder, _LazyFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _LazyFinder())
