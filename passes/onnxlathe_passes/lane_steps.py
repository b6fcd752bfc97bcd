"""Which operators can be done once for lanes that lie side by side, and what lanes they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import constant, dims_of
from onnxlathe.rewrite import attribute
from onnxlathe_passes.conditions import from_front, operand, rank
from onnxlathe_passes.lanes import ELEMENTWISE, Lane, split_lane
from onnxlathe_passes.noop_views import permutation
from onnxlathe_passes.reductions import reduction
from onnxlathe_passes.regroup import static, stretches, target
from onnxlathe_passes.views import axes_of

Nodes = tuple[ir.Node, ...]


@dataclass(frozen=True)
class Step:
    """Equal operators, one for each lane.

    Attributes:
        nodes: them, in the order of the parts.
        outputs: the lanes that they make.
        leftovers: for Transposes: the results that need one more, by part, and its permutation.
        shape: for Reshapes: the second input of the joint one.
    """

    nodes: tuple[ir.Node, ...]
    outputs: tuple[Lane, ...]
    leftovers: tuple[tuple[int, ir.Value, tuple[int, ...]], ...] = ()
    shape: tuple[int, ...] = ()


def joint_step(nodes: Nodes, lanes: Sequence[Lane | None], opset: int) -> Step | None:
    """The step that equal operators are, if the joint value can go through it.

    Args:
        nodes: the operators, in the order of the parts.
        lanes: which lane each input reads; `None` where all read the same.
        opset: of the graph.
    """
    kind = nodes[0].op_type
    step = _STEPS.get(kind, _elementwise if kind in ELEMENTWISE else None)
    return step(nodes, lanes, opset) if step is not None else None


def _lane(nodes: Sequence[ir.Node], index: int, axis: int, sizes: tuple[int, ...]) -> Lane:
    return Lane(tuple(node.outputs[index] for node in nodes), axis, sizes)


def _elementwise(nodes: Nodes, lanes: Sequence[Lane | None], opset: int) -> Step | None:
    wide = {(lane.axis, lane.sizes, rank(lane.values[0])) for lane in lanes if lane is not None}
    out = rank(nodes[0].outputs[0])
    if len(wide) != 1 or len(nodes[0].outputs) != 1:
        return None
    ((axis, sizes, axes),) = wide
    if axes is None or out != axes:
        return None
    for value, lane in zip(nodes[0].inputs, lanes, strict=True):
        if value is None or lane is not None:
            continue
        dims = dims_of(value)
        # What all lanes share must not vary along the axis on which they lie side by side.
        if dims is None or (axes - len(dims) <= axis and dims[axis - (axes - len(dims))] != 1):
            return None
    return Step(nodes, (_lane(nodes, 0, axis, sizes),))


def _transpose(nodes: Nodes, lanes: Sequence[Lane | None], opset: int) -> Step | None:
    (lane,) = lanes
    perms = [permutation(node, opset) for node in nodes]
    if lane is None or None in perms:
        return None
    known = [p for p in perms if p is not None]
    common = max(known, key=known.count)
    if known.count(common) < 2:
        return None
    values: list[ir.Value | None] = []
    leftovers = []
    for index, (node, perm) in enumerate(zip(nodes, known, strict=True)):
        if perm == common:
            values.append(node.outputs[0])
        else:
            values.append(None)
            leftovers.append((index, node.outputs[0], tuple(common.index(axis) for axis in perm)))
    return Step(nodes, (Lane(tuple(values), common.index(lane.axis), lane.sizes),), tuple(leftovers))


def _reshape(nodes: Nodes, lanes: Sequence[Lane | None], opset: int) -> Step | None:
    """[…, h·d, …] to […, h, d, …], with h another for each part; other axes may be cut and joined as well."""
    lane, before = lanes[0], dims_of(nodes[0].inputs[0]) if nodes[0].inputs[0] is not None else None
    shapes = [dims_of(node.outputs[0]) for node in nodes]
    if lane is None or before is None or any(lanes[1:]):
        return None
    places, heads = set(), []
    for shape, size in zip(shapes, lane.sizes, strict=True):
        mine = (*before[: lane.axis], size, *before[lane.axis + 1 :])
        found = stretches(mine, shape) if shape is not None else None
        cut = next((b for a, b in found or () if a == range(lane.axis, lane.axis + 1)), None)
        if cut is None or shape is None:
            return None
        places.add((cut.start, shape[: cut.start], shape[cut.start + 1 :]))
        heads.append(shape[cut.start])
    sizes = static(heads)
    if len(places) != 1 or sizes is None:
        return None
    ((axis, head, tail),) = places
    joint = (*before[: lane.axis], sum(lane.sizes), *before[lane.axis + 1 :])
    written = target(joint, (*head, sum(sizes), *tail))
    if written is None:
        return None
    return Step(nodes, (_lane(nodes, 0, axis, tuple(sizes)),), shape=tuple(written))


def _squeezed(nodes: Nodes, lanes: Sequence[Lane | None], opset: int) -> Step | None:
    """Axes of size 1 come in or go away, but not that of the lanes."""
    lane, axes = lanes[0], axes_of(nodes[0], opset)
    out = rank(nodes[0].outputs[0])
    if lane is None or axes is None or out is None:
        return None
    if nodes[0].op_type == "Squeeze":
        if lane.axis in axes:
            return None
        axis = lane.axis - sum(a < lane.axis for a in axes)
    else:
        axis = [a for a in range(out) if a not in axes][lane.axis]
    return Step(nodes, (_lane(nodes, 0, axis, lane.sizes),))


def _reduced(nodes: Nodes, lanes: Sequence[Lane | None], opset: int) -> Step | None:
    """Sums, norms and the like over other axes than that of the lanes."""
    lane, over = lanes[0], reduction(nodes[0], opset)
    if lane is None or over is None or lane.axis in over.axes:
        return None
    axis = lane.axis if over.keepdims else lane.axis - sum(a < lane.axis for a in over.axes)
    return Step(nodes, (_lane(nodes, 0, axis, lane.sizes),))


def _split(nodes: Nodes, lanes: Sequence[Lane | None], opset: int) -> Step | None:
    lane, inner = lanes[0], split_lane(nodes[0], opset)
    if lane is None or inner is None or inner.axis == lane.axis:
        return None
    return Step(nodes, tuple(_lane(nodes, i, lane.axis, lane.sizes) for i in range(len(nodes[0].outputs))))


def _slice(nodes: Nodes, lanes: Sequence[Lane | None], opset: int) -> Step | None:
    lane = lanes[0]
    before, after = (dims_of(v) if v is not None else None for v in (nodes[0].inputs[0], nodes[0].outputs[0]))
    axes = operand(nodes[0], 3) if opset >= 10 else None
    given = constant(axes) if axes is not None else None
    if lane is None or before is None or after is None or given is None:
        return None
    where = from_front([int(a) for a in np.reshape(given, -1)], len(before))
    if where is None or lane.axis in where:
        return None
    return Step(nodes, (_lane(nodes, 0, lane.axis, lane.sizes),))


def _gather(nodes: Nodes, lanes: Sequence[Lane | None], opset: int) -> Step | None:
    """The same elements of another axis."""
    lane = lanes[0]
    axes = from_front([int(attribute(nodes[0], "axis", opset))], rank(nodes[0].inputs[0]))
    if lane is None or lanes[1] is not None or axes is None or axes[0] == lane.axis:
        return None
    if rank(nodes[0].inputs[1]) != 1:
        return None
    return Step(nodes, (_lane(nodes, 0, lane.axis, lane.sizes),))


def _concat(nodes: Nodes, lanes: Sequence[Lane | None], opset: int) -> Step | None:
    wide = {(lane.axis, lane.sizes) if lane is not None else None for lane in lanes}
    axes = from_front([int(attribute(nodes[0], "axis", opset))], rank(nodes[0].outputs[0]))
    if len(wide) != 1 or None in wide or axes is None:
        return None
    lane = lanes[0]
    if lane is None or lane.axis == axes[0]:
        return None
    return Step(nodes, (_lane(nodes, 0, lane.axis, lane.sizes),))


def _rotary(nodes: Nodes, lanes: Sequence[Lane | None], opset: int) -> Step | None:
    """Heads side by side, turned by the same angles."""
    lane = lanes[0]
    if lane is None or lane.axis != 1 or rank(lane.values[0]) != 4 or any(lanes[1:]):
        return None
    return Step(nodes, (_lane(nodes, 0, lane.axis, lane.sizes),))


_STEPS: dict[str, Callable[[Nodes, Sequence[Lane | None], int], Step | None]] = {
    "RotaryEmbedding": _rotary,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Concat": _concat,
    "Unsqueeze": _squeezed,
    "Squeeze": _squeezed,
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2"), _reduced),
    **dict.fromkeys(("ReduceMax", "ReduceMin", "ReduceProd"), _reduced),
}
