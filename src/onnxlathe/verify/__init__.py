"""Does the optimized model still compute what the original does?

`Verifier` (or `verify`, for one comparison) runs both in ONNX Runtime, in a child process, through
Polygraphy's runner and comparator; a `Verdict` says what was found. Importing this package imports neither.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compare import Verifier, verify
    from .tolerance import Tolerance, Tolerances, parse_tolerance
    from .verdict import Comparison, Feed, Unchecked, Verdict

_PUBLIC = {
    "Comparison": "verdict",
    "Feed": "verdict",
    "Tolerance": "tolerance",
    "Tolerances": "tolerance",
    "Unchecked": "verdict",
    "Verdict": "verdict",
    "Verifier": "compare",
    "parse_tolerance": "tolerance",
    "verify": "compare",
}

__all__ = [
    "Comparison",
    "Feed",
    "Tolerance",
    "Tolerances",
    "Unchecked",
    "Verdict",
    "Verifier",
    "parse_tolerance",
    "verify",
]


def __getattr__(name: str) -> Any:
    # The child process imports a module of this package and must not pay for all of it.
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
