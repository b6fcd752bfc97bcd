"""Inputs that become constants: the model is specialised, and says so."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from onnxlathe.errors import UsageError
from onnxlathe.model import Model
from onnxlathe.model.interface import bind_input
from onnxlathe.model.shapes import nearest


def bind_inputs(model: Model, words: Iterable[str]) -> list[str]:
    """Make inputs constants, in place.

    Args:
        model: the model.
        words: `axes=[1]`, `k=3`: name and JSON value of each.

    Returns:
        What was done, as sentences.

    Raises:
        UsageError: no such input, or a value that does not fit it.
    """
    said = []
    for word in words:
        name, equals, text = word.partition("=")
        inputs = {v.name: v for v in model.graph.inputs}
        value = inputs.get(name.strip())
        if not equals:
            raise UsageError(f"--bind {word}: no value", hint=f"write --bind '{word}=[1]'")
        if value is None:
            names = [str(n) for n in inputs]
            raise UsageError(f"--bind {word}: no input is called {name!r}", hint=nearest(name, names))
        array = _array(word, text, value)
        bind_input(model.ir, value, array)
        said.append(f"input '{value.name}' is bound to {array.tolist()}: the model is specialised to that")
    return said


def _array(word: str, text: str, value: ir.Value) -> np.ndarray:
    try:
        read = np.asarray(json.loads(text))
        array = read.astype(value.dtype.numpy() if value.dtype is not None else read.dtype)
    except (ValueError, TypeError, OverflowError):
        raise UsageError(
            f"--bind {word}: {text!r} is no value", hint="write numbers: axes=[1], k=3"
        ) from None
    if array.dtype.kind in "iub" and not np.array_equal(array, read):
        raise UsageError(
            f"--bind {word}: {array.dtype} cannot hold {text}", hint=f"it would be {array.tolist()}"
        )
    if value.shape is None:
        return array
    want = [d if isinstance(d, int) else None for d in value.shape]
    fits = len(want) == array.ndim and all(w in (None, s) for w, s in zip(want, array.shape, strict=True))
    if not fits and None not in want and array.size == 1 and int(np.prod([w or 1 for w in want])) == 1:
        return array.reshape([w or 1 for w in want])
    if not fits:
        raise UsageError(f"--bind {word}: the input has the shape {value.shape}, not {list(array.shape)}")
    return array
