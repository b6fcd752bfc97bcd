"""An opaque plugin that scales a weight, and one that needs a package that is not there on demand."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxlathe import Model, make_pass


@make_pass("careless")
def careless(model: Model, context: Any) -> int:
    """Double the first large weight."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.size > 64 and tensor.dtype == ir.DataType.FLOAT:
            value.const_value = ir.Tensor(tensor.numpy() * 2)
            return 1
    return 0


@make_pass("needs_a_package")
def needs_a_package(model: Model, context: Any) -> int:
    """Import what is not installed."""
    import a_package_that_is_not_there  # type: ignore[import-not-found]  # noqa: F401

    return 0
