"""OnnxLathe: optimize ONNX models for TensorRT with passes that are proven to keep the function.

    import onnxlathe
    model = onnxlathe.load("model.onnx")
    onnxlathe.optimize(model, "shapes,fold,tidy,fuse")
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
    from .api import Census, Mismatch, Result, VerifyOptions, optimize
    from .errors import LatheError, ModelError, PassError, UsageError, VerificationError
    from .model import FileTensor, Model, is_overridable, load, save
    from .pipeline import Pipeline, Registry
    from .rewrite import Context, NodeRule, Pass, Rule, make_pass, option

# Public name -> the module that defines it.
_PUBLIC = {
    "Census": "api",
    "Mismatch": "api",
    "Result": "api",
    "VerifyOptions": "api",
    "optimize": "api",
    "Pipeline": "pipeline",
    "Registry": "pipeline",
    "Context": "rewrite",
    "NodeRule": "rewrite",
    "Pass": "rewrite",
    "Rule": "rewrite",
    "make_pass": "rewrite",
    "option": "rewrite",
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
    "Census",
    "Context",
    "FileTensor",
    "LatheError",
    "Mismatch",
    "Model",
    "ModelError",
    "NodeRule",
    "Pass",
    "PassError",
    "Pipeline",
    "Registry",
    "Result",
    "Rule",
    "UsageError",
    "VerificationError",
    "VerifyOptions",
    "__version__",
    "is_overridable",
    "load",
    "make_pass",
    "optimize",
    "option",
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
