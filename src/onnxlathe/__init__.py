"""OnnxLathe: optimize ONNX models for TensorRT with passes that are proven to keep the function.

    import onnxlathe
    model = onnxlathe.load("model.onnx")
    ...
    onnxlathe.save(model, "smaller.onnx")

Public names are resolved at first use, so that `import onnxlathe` costs nothing but itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import _lazy

# Before anything imports onnx_ir: it would import sympy at once (two seconds).
_lazy.install()

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .errors import LatheError, ModelError, PassError, UsageError, VerificationError
    from .model import FileTensor, Model, is_overridable, load, save

# Public name -> the module that defines it.
_PUBLIC = {
    "LatheError": "errors",
    "ModelError": "errors",
    "PassError": "errors",
    "UsageError": "errors",
    "VerificationError": "errors",
    "FileTensor": "model",
    "Model": "model",
    "is_overridable": "model",
    "load": "model",
    "save": "model",
}

__all__ = [
    "FileTensor",
    "LatheError",
    "Model",
    "ModelError",
    "PassError",
    "UsageError",
    "VerificationError",
    "__version__",
    "is_overridable",
    "load",
    "save",
]


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
