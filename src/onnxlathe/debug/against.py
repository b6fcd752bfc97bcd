"""Where two models of one interface part ways: the first value that both have and that differs.

Exporters, optimizers and converters keep most names. So the two models are run on the same inputs, every value of
the same name is compared, and what lies between the last equal values and the first different one is cut out of
both. That needs two runs, whatever the size of the models.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxlathe.debug.checks import Bench, sample_of
from onnxlathe.debug.parts import UncutError, Workpiece, has_type, needs
from onnxlathe.debug.reduce import Reduction
from onnxlathe.errors import LatheError
from onnxlathe.model import Model
from onnxlathe.verify import Tolerances

_AT_ONCE = 400  # values that are recorded in one run


@dataclass
class Parting:
    """Where two models part ways.

    Attributes:
        value: the first value that differs.
        right: the part of the first model that computes it, with recorded inputs.
        wrong: the part of the second model that does.
        largest: largest absolute difference.
    """

    value: str
    right: Reduction
    wrong: Model
    largest: float


def find_parting(
    right: Workpiece,
    wrong: Workpiece,
    *,
    feeds: dict[str, np.ndarray] | None = None,
    tolerances: Tolerances | None = None,
) -> Parting | None:
    """Find the first value, in the order of the second model, that differs from the first model's.

    Args:
        right: the truth.
        wrong: the model that gives other numbers.
        feeds: inputs for both; made up if left out.
        tolerances: what is still equal.

    Returns:
        None where no value of the same name differs.

    Raises:
        LatheError: one of them cannot be run, or they share no values.
    """
    started = time.perf_counter()
    allowed = tolerances or Tolerances()
    fed = feeds if feeds is not None else sample_of(right.model, {})
    if not fed and right.model.graph.inputs:
        raise LatheError("no inputs could be made up for the model", hint="give some with --data")
    mine = {v.name for node in right.nodes for v in node.outputs if v.name}
    shared = [v.name for node in wrong.nodes for v in node.outputs if v.name and v.name in mine]
    if not shared:
        raise LatheError("the two models share no names of values", hint="use --passes to say what was done")
    bench = Bench()
    try:
        equal: set[str] = set(fed)
        for begin in range(0, len(shared), _AT_ONCE):
            names = shared[begin : begin + _AT_ONCE]
            a, b = bench.record(right.model, names, fed), bench.record(wrong.model, names, fed)
            if not a or not b:
                raise LatheError(
                    "one of the models cannot be run in ONNX Runtime", hint="see `optimize verify`"
                )
            right.recorded |= a
            for name in names:
                if name in a and name in b:
                    gap = _difference(a[name], b[name], allowed)
                    if gap is not None:
                        return _cut(right, wrong, name, equal, fed, gap, started)
                    equal.add(name)
    finally:
        bench.close()
    return None


def _cut(
    right: Workpiece,
    wrong: Workpiece,
    name: str,
    equal: set[str],
    fed: dict[str, np.ndarray],
    gap: float,
    started: float,
) -> Parting:
    mine = _between(right, name, equal)
    # Both parts take the same values, so that they can be compared.
    other = _between(wrong, name, equal)
    try:
        part = right.part(mine, outputs=[name])
        twin = wrong.part(other, outputs=[name])
    except UncutError as error:
        raise LatheError(
            f"the models differ from value {name!r} on, which cannot be cut out: {error}"
        ) from None
    recorded = right.recorded | fed
    inputs = {v.name: recorded[v.name] for v in part.graph.inputs if v.name in recorded}
    seconds = time.perf_counter() - started
    return Parting(name, Reduction(part, len(right.nodes), len(mine), inputs, (), 2, seconds), twin, gap)


def _between(work: Workpiece, name: str, equal: Collection[str]) -> set[int]:
    """Indices of the nodes that compute a value from values that are known to be equal."""
    maker = next(n for n in work.nodes if any(v.name == name for v in n.outputs))
    found, todo = set(), [maker]
    while todo:
        node = todo.pop()
        index = work.position.get(id(node))
        if index is None or index in found:
            continue
        found.add(index)
        for value in needs(node):
            producer: ir.Node | None = value.producer()
            if producer is not None and not (value.name in equal and has_type(value)):
                todo.append(producer)
    return found


def _difference(right: np.ndarray, other: np.ndarray, allowed: Tolerances) -> float | None:
    """Largest difference where two arrays are not equal, None where they are."""
    if right.shape != other.shape:
        return float("inf")
    if right.dtype.kind in "OUS":
        return None if np.array_equal(right, other) else float("inf")
    tolerance = allowed.of("", str(right.dtype))
    a, b = right.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.abs(a - b)
        same = (gap <= tolerance.atol + tolerance.rtol * np.abs(a)) | (np.isnan(a) & np.isnan(b)) | (a == b)
    return None if bool(same.all()) else float(np.nanmax(gap, initial=0.0, where=~same))
