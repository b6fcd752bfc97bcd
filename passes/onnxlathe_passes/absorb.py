"""Where a factor can go: upwards through everything that is linear, until weights take it in.

`Absorption.of(value, …)` answers whether a value can be made `factor` times as large by changing constants
alone, with nothing else seeing a difference. It plans and does not edit; `constants` is the plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import Dims, dims_of
from onnxlathe.rewrite import attribute, is_constant
from onnxlathe_passes.conditions import FLOATS, HALVES, Array, from_front, numbers, operand
from onnxlathe_passes.noop_views import permutation
from onnxlathe_passes.regroup import static, stretches
from onnxlathe_passes.rmsnorm import is_rms_scale
from onnxlathe_passes.slices import cuts
from onnxlathe_passes.weights import may_copy

_FAR = 32
"""So many operators are looked at for one factor."""
_RANGE = 2.0**20
_HALF_RANGE = 64.0
_VIEWS = frozenset({"Identity", "Neg", "Expand", "Tile"})


@dataclass(frozen=True)
class Factor:
    """One number for a whole value, or one for each place along an axis (counted from the front)."""

    numbers: Array
    axis: int | None = None

    def same(self, other: Factor) -> bool:
        return self.axis == other.axis and np.array_equal(self.numbers, other.numbers)

    def against(self, rank: int, dims: Dims) -> Array | None:
        """The factor in a shape that multiplies a constant of `dims`, which broadcasts into `rank` axes.

        `None` where the constant would have to grow: it has one number for what is to differ.
        """
        if self.axis is None:
            return self.numbers.reshape(())
        at = self.axis - (rank - len(dims))
        if at < 0 or dims[at] != self.numbers.size:
            return None
        return self.numbers.reshape(-1, *(1,) * (len(dims) - at - 1))


@dataclass
class Absorption:
    """What has to be multiplied for a value to carry a factor.

    Attributes:
        apart: whether the elements that each Gather or Slice takes get a factor of their own, or all get the same.
        split: the same of the parts of Splits.
        constants: node and input at which a constant is multiplied, and by what.
    """

    opset: int
    max_copy: int
    apart: bool = False
    split: bool = True
    constants: dict[tuple[ir.Node, int], Array] = field(default_factory=dict)
    asked: dict[ir.Value, tuple[Factor, set[tuple[ir.Node, int]]]] = field(default_factory=dict)
    seen: int = 0

    @classmethod
    def of(
        cls, value: ir.Value, factor: Factor, by: tuple[ir.Node, int], opset: int, max_copy: int
    ) -> Absorption | None:
        """How `value`, of which `by` is a use, can be multiplied by `factor`; `None` where it cannot.

        Args:
            value: what to multiply.
            factor: by what.
            by: the node and input that will read the product instead.
            opset: of the graph.
            max_copy: bytes of a constant that is copied where something else needs it as it is.
        """
        for split, apart in product((True, False), (False, True)):
            plan = cls(opset, max_copy, apart, split)
            if not plan.ask(value, factor, by):
                continue
            # A value that several ways lead to must have been asked for by all of its users.
            if (
                all(len(users) == len(v.uses()) for v, (_, users) in plan.asked.items())
                and plan.no_part_missing()
            ):
                return plan
        return None

    def ask(self, value: ir.Value | None, factor: Factor, by: tuple[ir.Node, int]) -> bool:
        """Ask `value` to carry `factor`, for one of its uses."""
        if value is None or value.is_graph_output() or value.dtype not in FLOATS:
            return False
        if is_constant(value):
            return self.constant(value, factor, by)
        dims = dims_of(value)
        if factor.axis is not None and (dims is None or dims[factor.axis] != factor.numbers.size):
            return False
        before = self.asked.get(value)
        if before is None:
            before = self.asked[value] = (factor, set())
        elif not before[0].same(factor):
            return False
        before[1].add(by)
        if len(before[1]) < len(value.uses()):
            return True
        self.seen += 1
        return self.seen <= _FAR and self.descend(value, factor)

    def no_part_missing(self) -> bool:
        """Whether a Split all of whose parts are to carry the same number has been asked itself."""
        above = (value.producer() for value, (factor, _) in self.asked.items() if factor.axis is None)
        splits = [node for node in above if node is not None and node.op_type == "Split"]
        return self.split or all(node.inputs[0] in self.asked for node in splits)

    def constant(self, value: ir.Value, factor: Factor, by: tuple[ir.Node, int], at: Any = None) -> bool:
        """Multiply a constant where `by` reads it; `at` is the shaped factor where that is special."""
        node, _ = by
        rank, dims = len(dims_of(node.outputs[0]) or ()), dims_of(value)
        if dims is None or ((producer := value.producer()) is not None and producer.graph is not node.graph):
            return False
        shaped = factor.against(rank, dims) if at is None else at
        if shaped is None or not may_copy(value, self.max_copy):
            return False
        size = np.abs(shaped)
        limit = _HALF_RANGE if value.dtype in HALVES else _RANGE
        if not ((size >= 1 / limit) & (size <= limit)).all() or by in self.constants:
            return False
        self.constants[by] = shaped
        return True

    def descend(self, value: ir.Value, factor: Factor) -> bool:
        """Ask the inputs of what computes `value` for what makes it carry `factor`."""
        node = value.producer()
        if node is None or node.domain != "":
            return False
        step = _STEPS.get(node.op_type)
        if step is not None:
            return step(self, node, value, factor)
        if node.op_type in _VIEWS and factor.axis is None:
            return self.ask(node.inputs[0], factor, (node, 0))
        return False

    def either(self, node: ir.Node, indices: list[int], factor: Factor) -> bool:
        """Ask one of the inputs, the first that can."""
        for index in indices:
            constants, asked = dict(self.constants), {v: (f, set(u)) for v, (f, u) in self.asked.items()}
            if self.ask(node.inputs[index], factor, (node, index)):
                return True
            self.constants, self.asked = constants, asked
        return False


def _transpose(plan: Absorption, node: ir.Node, value: ir.Value, factor: Factor) -> bool:
    perm = permutation(node, plan.opset)
    if perm is None:
        return False
    axis = None if factor.axis is None else perm[factor.axis]
    return plan.ask(node.inputs[0], Factor(factor.numbers, axis), (node, 0))


def before_reshape(node: ir.Node, factor: Factor) -> Factor | None:
    """What the input of a Reshape carries for its output to carry a factor; `None` where it has no one axis."""
    if factor.axis is None:
        return factor
    before, after = dims_of(node.inputs[0]) if node.inputs[0] else None, dims_of(node.outputs[0])
    parts = stretches(before, after) if before is not None and after is not None else None
    if parts is None or after is None:
        return None
    joined, cut = next(((a, b) for a, b in parts if factor.axis in b), (range(0), range(0)))
    sizes = static([after[axis] for axis in cut])
    if len(joined) != 1 or sizes is None:
        return None
    spread = np.broadcast_to(factor.numbers.reshape(-1, *(1,) * (cut.stop - 1 - factor.axis)), sizes)
    return Factor(spread.reshape(-1), joined.start)


def _reshape(plan: Absorption, node: ir.Node, value: ir.Value, factor: Factor) -> bool:
    before = before_reshape(node, factor)
    return before is not None and plan.ask(node.inputs[0], before, (node, 0))


def _split(plan: Absorption, node: ir.Node, value: ir.Value, factor: Factor) -> bool:
    dims = dims_of(value)
    axes = from_front([int(attribute(node, "axis", plan.opset))], len(dims) if dims is not None else None)
    if not plan.split and factor.axis is None:
        # Each part comes here when all of its users have asked for it; the last one asks for all.
        used = [part for part in node.outputs if part.uses() or part.is_graph_output()]
        found = [(part, *plan.asked[part]) for part in used if part in plan.asked]
        done = [f.same(factor) and len(users) == len(part.uses()) for part, f, users in found]
        return plan.ask(node.inputs[0], factor, (node, 0)) if len(done) == len(used) and all(done) else True
    sizes = [static((dims_of(part) or ())[axes[0] : axes[0] + 1]) for part in node.outputs] if axes else []
    if not axes or factor.axis not in (None, axes[0]) or not all(sizes):
        return False
    whole = [np.ones(size) for size in sizes if size]
    whole[value.index() or 0] = np.broadcast_to(factor.numbers, whole[value.index() or 0].shape)
    # The other parts stay as they are, whoever reads them.
    part = node.inputs[0]
    if part is None or len(part.uses()) != 1:
        return False
    return plan.ask(part, Factor(np.concatenate(whole), axes[0]), (node, 0))


def _taken(plan: Absorption, node: ir.Node, value: ir.Value, factor: Factor) -> bool:
    """Multiply what is taken alone, if all that read the whole take elements too, and others of this axis."""
    whole = node.inputs[0]
    dims, mine = (dims_of(whole) if whole is not None else None), places_of(node, plan.opset)
    if whole is None or dims is None or mine is None or not plan.apart:
        return factor.axis is None and plan.ask(whole, factor, (node, 0))
    axis, places, kept = mine
    if factor.axis is not None and (not kept or factor.axis != axis):
        return False
    size = dims[axis]
    spread = np.ones(size if isinstance(size, int) else 0)
    spread[places] = factor.numbers
    uses = [(use.node, use.idx) for use in whole.uses()]
    for user, index in uses:
        other = places_of(user, plan.opset) if user is not node and index == 0 else mine
        if other is None or other[0] != axis or (user is not node and set(other[1]) & set(places)):
            return False
    # The other elements stay as they are, whoever reads them.
    return all(plan.ask(whole, Factor(spread, axis), use) for use in uses)


def places_of(node: ir.Node, opset: int) -> tuple[int, list[int], bool] | None:
    """The axis along which a Gather or Slice takes elements, which ones, each once, and whether the axis stays."""
    dims = dims_of(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
    if dims is None or node.domain != "" or node.op_type not in ("Gather", "Slice"):
        return None
    if node.op_type == "Slice":
        cut = cuts(node, opset)
        if cut is None or len(cut) != 1:
            return None
        ((axis, part),) = cut.items()
        size = dims[axis]
        if not isinstance(size, int):
            return None
        return axis, list(range(size)[part.start : part.end : part.step]), True
    axes = from_front([int(attribute(node, "axis", opset))], len(dims))
    indices = node.inputs[1]
    given, shape = numbers(indices), dims_of(indices) if indices is not None else None
    size = dims[axes[0]] if axes else None
    if not axes or given is None or shape is None or len(shape) > 1 or not isinstance(size, int):
        return None
    found = [place + size if place < 0 else place for place in given]
    fine = len(set(found)) == len(found) and all(0 <= place < size for place in found)
    return (axes[0], found, len(shape) == 1) if fine else None


def _homogeneous(plan: Absorption, node: ir.Node, value: ir.Value, factor: Factor) -> bool:
    """f(c·x) = c·f(x) for one positive number c."""
    if factor.axis is not None or not (factor.numbers > 0).all() or any(o.uses() for o in node.outputs[1:]):
        return False
    if attribute(node, "extrapolation_value", plan.opset):
        return False
    return plan.ask(node.inputs[0], factor, (node, 0))


def _sum(plan: Absorption, node: ir.Node, value: ir.Value, factor: Factor) -> bool:
    rank = len(dims_of(value) or ())
    for index, summand in enumerate(node.inputs):
        given = dims_of(summand) if summand is not None else None
        if given is None or (factor.axis is not None and len(given) != rank and not is_constant(summand)):
            return False
        if not plan.ask(summand, factor, (node, index)):
            return False
    return True


def _product(plan: Absorption, node: ir.Node, value: ir.Value, factor: Factor) -> bool:
    whole = dims_of(value)
    # What is multiplied comes before what it is multiplied by: a sine, a mask.
    indices = [
        i for i, v in enumerate(node.inputs) if v is not None and not is_constant(v) and dims_of(v) == whole
    ]
    # The scale of a normalization takes the factor in: what is above it is not linear.
    if is_rms_scale(node, plan.opset):
        indices = [i for i, v in enumerate(node.inputs) if is_constant(v)]
    return plan.either(node, indices, factor)


def _quotient(plan: Absorption, node: ir.Node, value: ir.Value, factor: Factor) -> bool:
    numerator = node.inputs[0]
    whole = numerator is not None and dims_of(numerator) == dims_of(value) and not is_constant(numerator)
    return whole and plan.ask(numerator, factor, (node, 0))


def _concat(plan: Absorption, node: ir.Node, value: ir.Value, factor: Factor) -> bool:
    axes = from_front([int(attribute(node, "axis", plan.opset))], len(dims_of(value) or ()))
    if not axes or factor.axis == axes[0]:
        return False
    return all(plan.ask(part, factor, (node, index)) for index, part in enumerate(node.inputs))


def _matmul(plan: Absorption, node: ir.Node, value: ir.Value, factor: Factor) -> bool:
    weight = node.inputs[1]
    dims, rank = (dims_of(weight) if weight is not None else None), len(dims_of(value) or ())
    if weight is not None and is_constant(weight) and dims is not None and len(dims) == 2:
        if factor.axis is None:
            return plan.constant(weight, factor, (node, 1), factor.numbers.reshape(()))
        if factor.axis != rank - 1 or dims[1] != factor.numbers.size:
            return False
        return plan.constant(weight, factor, (node, 1), factor.numbers.reshape(1, -1))
    if factor.axis is not None:
        return False
    return plan.either(node, [0, 1], factor)


def _gemm(plan: Absorption, node: ir.Node, value: ir.Value, factor: Factor) -> bool:
    weight, bias = node.inputs[1], operand(node, 2)
    if weight is None or not is_constant(weight) or factor.axis == 0:
        return False
    columns = factor.numbers.reshape(1, -1)
    rows = attribute(node, "transB", plan.opset)
    if not plan.constant(weight, factor, (node, 1), columns.T if rows else columns):
        return False
    return bias is None or (is_constant(bias) and plan.ask(bias, factor, (node, 2)))


def _normalization(plan: Absorption, node: ir.Node, value: ir.Value, factor: Factor) -> bool:
    if any(output.uses() for output in node.outputs[1:]):
        return False
    taken = [(i, v) for i, v in enumerate(node.inputs) if i and v is not None]
    return all(is_constant(v) and plan.ask(v, factor, (node, i)) for i, v in taken)


def _conv(plan: Absorption, node: ir.Node, value: ir.Value, factor: Factor) -> bool:
    weight, bias = node.inputs[1], operand(node, 2)
    if weight is None or not is_constant(weight) or factor.axis not in (None, 1):
        return False
    channels = factor.numbers.reshape(-1, *(1,) * (len(dims_of(weight) or ()) - 1))
    if not plan.constant(weight, factor, (node, 1), channels):
        return False
    if bias is None:
        return True
    return is_constant(bias) and plan.constant(bias, factor, (node, 2), factor.numbers.reshape(-1))


_STEPS: dict[str, Callable[[Absorption, ir.Node, ir.Value, Factor], bool]] = {
    "Transpose": _transpose,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Split": _split,
    "Gather": _taken,
    "Slice": _taken,
    "Add": _sum,
    "Sub": _sum,
    "Mul": _product,
    "Div": _quotient,
    "Concat": _concat,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "LayerNormalization": _normalization,
    "RMSNormalization": _normalization,
    "Conv": _conv,
    **dict.fromkeys(
        ("Relu", "LeakyRelu", "MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin"), _homogeneous
    ),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "ReduceSum", "ReduceMean"), _homogeneous),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth", "Resize"), _homogeneous),
}
