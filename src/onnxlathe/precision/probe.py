"""What rounding does to each node: measured, not guessed.

A node's own error is what rounding its operands and its result adds when everything before it is exact. What
has gathered before it shows in the mixed model as a whole, whose values are compared with the exact ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxlathe.model import Model
from onnxlathe.rewrite import Names, subgraphs

from .types import FLOAT32, LOW_TYPES

_AT_ONCE = 48  # nodes whose values are fetched in one run


@dataclass
class NodeError:
    """What a low type does to a node, at worst over the feeds.

    Attributes:
        name, operator: the node.
        own: relative error (of the Euclidean norm) that the node adds to exact operands.
        gathered: relative error of its result in the mixed model.
        jump: how much of that its operands did not have yet.
        largest: largest magnitude among its exact operands and results.
        overflows: elements that are finite, and are not when only this node is rounded.
        vanishing: share of its exact results that are not zero and become zero.
    """

    name: str
    operator: str
    own: float = 0.0
    gathered: float = 0.0
    jump: float = 0.0
    largest: float = 0.0
    overflows: int = 0
    vanishing: float = 0.0

    @property
    def score(self) -> float:
        """How suspicious the node is; infinite where it makes infinities or NaN."""
        if self.overflows:
            return math.inf
        return max(self.own, min(self.jump, 1e6)) + self.vanishing * 1e-3

    @property
    def reason(self) -> str:
        """The score in words."""
        if self.overflows:
            return (
                f"overflows: {self.overflows} elements become infinite or NaN, |x| reaches {self.largest:.3g}"
            )
        if self.vanishing > 0.01 and self.vanishing > self.own:
            return f"underflows: {self.vanishing:.1%} of its results become 0"
        if math.isinf(self.gathered):
            return f"becomes infinite or NaN in the mixed model, |x| reaches {self.largest:.3g}"
        if self.own >= self.jump:
            return f"adds a relative error of {self.own:.1e}"
        return f"makes a relative error of {self.gathered:.1e} out of {self.gathered - self.jump:.1e}"

    def statistic(self) -> dict[str, float | int | str]:
        """The numbers, for a file."""
        found: dict[str, float | int | str] = {
            "operator": self.operator,
            "own_error": float(f"{self.own:.3g}"),
            "largest": float(f"{self.largest:.6g}"),
        }
        if math.isfinite(self.gathered):
            found["gathered_error"] = float(f"{self.gathered:.3g}")
        if self.overflows:
            found["overflows"] = self.overflows
        if self.vanishing:
            found["vanishing"] = float(f"{self.vanishing:.3g}")
        return found

    def worst(self, other: NodeError) -> None:
        """Take over whatever is worse in another feed."""
        for field in ("own", "gathered", "jump", "largest", "overflows", "vanishing"):
            setattr(self, field, max(getattr(self, field), getattr(other, field)))


def low_nodes(mixed: Model) -> dict[str, ir.DataType]:
    """The nodes of the main graph of a mixed model that compute in a low type, by name; Casts are none."""
    found = {}
    for node in mixed.graph:
        if node.op_type in ("Cast", "Constant") or not node.name:
            continue
        kinds = [v.dtype for v in (*node.outputs, *node.inputs) if v is not None and v.dtype in LOW_TYPES]
        if kinds and kinds[0] is not None:
            found[node.name] = kinds[0]
    return found


def shadows(exact: Model, types: Mapping[str, ir.DataType]) -> tuple[Model, dict[str, str]]:
    """The exact model with a second copy of some nodes, each computing from rounded exact operands.

    Args:
        exact: a float32 model, which is not changed.
        types: type by name of the node.

    Returns:
        The model, and for each output value of such a node the name of its rounded counterpart.
    """
    model = exact.clone()
    names = Names(model.ir)
    rounded: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    twins: dict[str, str] = {}

    def pair(value: ir.Value, dtype: ir.DataType, after: list[ir.Node]) -> ir.Value:
        down = ir.node("Cast", [value], {"to": int(dtype)}, name=names.node(f"{value.name}/down"))
        up = ir.node("Cast", [down.outputs[0]], {"to": int(FLOAT32)}, name=names.node(f"{value.name}/up"))
        for node in (down, up):
            node.outputs[0].name = names.value(f"{value.name}/rounded")
        after += [down, up]
        return up.outputs[0]

    for node in list(model.graph):
        dtype = types.get(node.name or "")
        if dtype is None or subgraphs(node):
            continue
        made: list[ir.Node] = []
        inputs: list[ir.Value | None] = []
        for value in node.inputs:
            if value is not None and value.dtype == FLOAT32:
                if (value, dtype) not in rounded:
                    rounded[value, dtype] = pair(value, dtype, made)
                inputs.append(rounded[value, dtype])
            else:
                inputs.append(value)
        twin = ir.Node(
            node.domain, node.op_type, inputs, list(node.attributes.values()), num_outputs=len(node.outputs)
        )
        twin.name = names.node(f"{node.name}/twin")
        made.append(twin)
        for value, copy in zip(node.outputs, twin.outputs, strict=True):
            copy.name = names.value(f"{value.name}/twin")
            if value.dtype == FLOAT32 and value.name:
                twins[value.name] = pair(copy, dtype, made).name or ""
        model.graph.insert_after(node, made)
    return model, twins


def compare(exact: np.ndarray, other: np.ndarray) -> tuple[float, int, float]:
    """Relative error of the norm (of what is finite), new infinities and NaN, share of vanished elements."""
    a, b = exact.astype(np.float64).reshape(-1), other.astype(np.float64).reshape(-1)
    fine = np.isfinite(a)
    lost = int(np.count_nonzero(fine & ~np.isfinite(b)))
    both = fine & np.isfinite(b)
    a, b = a[both], b[both]
    norm = float(np.linalg.norm(a))
    error = float(np.linalg.norm(a - b))
    nonzero = int(np.count_nonzero(a))
    vanished = int(np.count_nonzero((a != 0) & (b == 0)))
    return (error / norm if norm else (0.0 if not error else math.inf)), lost, vanished / max(1, nonzero)


def groups(nodes: Iterable[ir.Node], size: int = _AT_ONCE) -> Iterator[list[ir.Node]]:
    """Nodes in groups whose values are fetched together."""
    batch: list[ir.Node] = []
    for node in nodes:
        batch.append(node)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def largest_of(arrays: Sequence[np.ndarray]) -> float:
    """The largest finite magnitude among some arrays."""
    top = 0.0
    for array in arrays:
        finite = np.abs(array[np.isfinite(array)]) if array.size else array
        top = max(top, float(finite.max(initial=0.0)))
    return top
