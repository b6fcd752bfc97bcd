"""Inputs that a user fixes: `bind` turns them into constants of the model."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe import UsageError
from onnxlathe.model.interface import bind_input


def parse_values(text: str, option: str = "bind") -> dict[str, Any]:
    """`axes=[1]; k=3` as a dictionary.

    Raises:
        UsageError: it is not that.
    """
    values: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in text.split(";"))):
        name, sign, value = part.partition("=")
        try:
            values[name.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            sign = ""
        if not sign or not name.strip():
            raise UsageError(
                f"pass 'legalize': {option} cannot be read at {part!r}",
                hint=f'write {option}="axes=[1]; k=3": names of inputs with numbers or lists of numbers',
            )
    return values


def bind(model: ir.Model, values: dict[str, Any]) -> list[str]:
    """Turn inputs into constants.

    Returns:
        A sentence for each.

    Raises:
        UsageError: there is no such input, or the value does not fit it.
    """
    inputs = {v.name: v for v in model.graph.inputs}
    said = []
    for name, content in values.items():
        value = inputs.get(name)
        if value is None:
            raise UsageError(
                f"pass 'legalize' cannot bind '{name}': the model has no such input",
                hint=f"it has {', '.join(repr(n) for n in inputs)}",
            )
        if value.dtype is None:
            raise UsageError(f"pass 'legalize' cannot bind '{name}': it is not a tensor")
        try:
            array = np.asarray(content).astype(value.dtype.numpy())
        except (ValueError, TypeError) as error:
            raise UsageError(f"pass 'legalize' cannot bind '{name}': {error}") from None
        shape = value.shape
        if shape is not None and (
            len(shape) != array.ndim
            or any(isinstance(d, int) and d != n for d, n in zip(shape, array.shape, strict=True))
        ):
            raise UsageError(
                f"pass 'legalize' cannot bind '{name}': its shape is {shape}, not {list(array.shape)}"
            )
        bind_input(model, value, array)
        shown = np.array2string(array, threshold=8, separator=", ").replace("\n", "")
        said.append(f"input '{name}' is now the constant {shown}: the model works for this value only")
    return said
