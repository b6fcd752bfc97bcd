"""Running a model as it was and as it is now, in both runtimes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxlathe.check.process import RUNTIMES, Ran, Workers, blind, difference
from onnxlathe.check.sketch import SIZES, Impossible
from onnxlathe.model import Model

_SLACK_ON_LARGE = 100.0
"""Inputs of large numbers are there to show overflows, not rounding errors."""


@dataclass(frozen=True)
class Difference:
    """What one runtime finds different, and which inputs show it."""

    problem: str
    how: str = ""


def compare(
    workers: Workers, before: Model, after: Model, feeds: Sequence[dict[str, Any]], file: Path | None
) -> list[str] | Difference:
    """The runtimes that find both equal, or what one of them finds different.

    Raises:
        Impossible: no runtime takes the model as it was.
    """
    runtimes = RUNTIMES if file is None else RUNTIMES[:1]
    with contextlib.ExitStack() as stack:
        models: list[bytes | str]
        models = (
            [serialized(before), serialized(after)] if file is None else [str(file), _saved(after, stack)]
        )
        found = workers.run(models, feeds, runtimes)
    if all(ran[0].error for ran in found.values()):
        raise Impossible
    names = [v.name or "" for v in before.graph.outputs]
    equal = []
    trusted: Ran | None = None
    for runtime, (old, new) in found.items():
        if old.error:
            continue
        if trusted is not None and _unlike(trusted, old):
            continue  # the runtimes disagree about the original: the second is not to be believed
        trusted = trusted or old
        if new.error:
            # The reference evaluator has its own faults with operators that ONNX Runtime runs.
            if old is not trusted or _unsupported(new.error):
                continue
            return Difference(f"{runtime} cannot run it any more: {new.error.splitlines()[0]}")
        for index, (wanted, given) in enumerate(zip(old.outputs, new.outputs, strict=True)):
            slack = _SLACK_ON_LARGE if index == len(SIZES) else 1.0
            for name, a, b in zip(names, wanted, given, strict=True):
                problem = difference(a, b, slack=slack)
                if problem:
                    return Difference(f"output '{name}' {problem}", _feed_text(feeds[index], runtime))
        if not blind(old.outputs[0]):
            equal.append(runtime)
    return equal


def _unlike(first: Ran, second: Ran) -> bool:
    return any(
        difference(a, b, slack=2.0)
        for one, two in zip(first.outputs[:2], second.outputs[:2], strict=True)
        for a, b in zip(one, two, strict=True)
    )


def _unsupported(error: str) -> bool:
    return any(word in error for word in _NOT_SUPPORTED)


_NOT_SUPPORTED = (
    "NOT_IMPLEMENTED",
    "NotImplemented",
    "No Op registered",
    "not a registered function",
    "No implementation",
    "RuntimeImplementation",
    "only *guarantees*",
)


def _feed_text(feed: dict[str, Any], runtime: str) -> str:
    import numpy as np

    parts = []
    for name, array in feed.items():
        numbers = np.array2string(array, precision=4, separator=", ", threshold=8).replace("\n", "")
        parts.append(
            f"{name} = {' '.join(numbers.split())}" if array.size <= 8 else f"{name}{list(array.shape)}"
        )
    return f"{runtime} with {', '.join(parts)}" if parts else runtime


def serialized(model: Model) -> bytes:
    """The model as bytes, weights included."""
    data: bytes = ir.to_proto(model.ir).SerializeToString()
    return data


def _saved(model: Model, stack: contextlib.ExitStack) -> str:
    import tempfile

    from onnxlathe.model import save

    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="onnxlathe-check-"))
    path = Path(folder) / "after.onnx"
    save(model, path)
    return str(path)
