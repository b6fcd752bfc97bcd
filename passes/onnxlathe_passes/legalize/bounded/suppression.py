"""NonMaxSuppression as a loop of fixed length over all batches and classes at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxlathe_passes.legalize.bounded.bench import Bench
from onnxlathe_passes.legalize.bounded.follow import sources
from onnxlathe_passes.legalize.bounded.ragged import Extent, Ragged, Result
from onnxlathe_passes.legalize.bounded.sources import roots_with
from onnxlathe_passes.legalize.draft import value_of
from onnxlathe_passes.loops import copied

T = ir.DataType

# Each round takes the best box that is left, of each batch and class, and drops what overlaps it. Widths that are
# not positive and areas of zero overlap nothing, as in ONNX Runtime.
_ROUNDS = """
<ir_version: 10, opset_import: ["" : 18]>
nms (float[B,1,N] y1, float[B,1,N] x1, float[B,1,N] y2, float[B,1,N] x2, float[B,C,N] scores,
     bool[B,C,N] alive0, float iou, int64 rounds, int64[3] spread, int64[N] numbers,
     float lowest)
    => (int64[K,B,C,1] picks, bool[K,B,C,1] hits)
    <float zero = {0}, bool go = {1}>
{
    h = Sub(y2, y1)
    w = Sub(x2, x1)
    area = Mul(h, w)
    y1s = Expand(y1, spread)
    x1s = Expand(x1, spread)
    y2s = Expand(y2, spread)
    x2s = Expand(x2, spread)
    areas = Expand(area, spread)
    alive9, picks, hits = Loop(rounds, go, alive0) <body = b (int64 i, bool c, bool[B,C,N] alive)
        => (bool d, bool[B,C,N] left, int64[B,C,1] pick, bool[B,C,1] hit)
    {
        d = Identity(c)
        open = Where(alive, scores, lowest)
        pick = ArgMax<axis = 2, keepdims = 1>(open)
        hit = GatherElements<axis = 2>(alive, pick)
        ty = GatherElements<axis = 2>(y1s, pick)
        tx = GatherElements<axis = 2>(x1s, pick)
        by = GatherElements<axis = 2>(y2s, pick)
        bx = GatherElements<axis = 2>(x2s, pick)
        own = GatherElements<axis = 2>(areas, pick)
        top = Max(y1s, ty)
        bottom = Min(y2s, by)
        lefts = Max(x1s, tx)
        rights = Min(x2s, bx)
        high = Sub(bottom, top)
        wide = Sub(rights, lefts)
        common = Mul(high, wide)
        sum = Add(areas, own)
        union = Sub(sum, common)
        ratio = Div(common, union)
        over = Greater(ratio, iou)
        a = Greater(high, zero)
        e = Greater(wide, zero)
        f = Greater(areas, zero)
        g = Greater(own, zero)
        ae = And(a, e)
        fg = And(f, g)
        real = And(ae, fg)
        same = And(over, real)
        itself = Equal(numbers, pick)
        gone = Or(same, itself)
        stays = Not(gone)
        left = And(alive, stays)
    }>
}
"""


@sources("NonMaxSuppression")
def non_max_suppression(bench: Bench, node: ir.Node) -> Sequence[Result]:
    """As many candidates as there may be: for each batch and class the rounds, in order."""
    op = bench.op
    operands = [*bench.operands(node), None, None, None][:5]
    boxes, scores, most, iou, threshold = operands
    roots = roots_with(node, *operands)
    nothing = Extent(node.outputs[0], 0, 0, roots)  # for what fails
    counted: ir.Value | None = None
    if isinstance(boxes, Ragged) or isinstance(scores, Ragged):
        if not (
            isinstance(boxes, Ragged) and isinstance(scores, Ragged) and (boxes.axis, scores.axis) == (1, 2)
        ):
            bench.fail("NonMaxSuppression of a run-time number of batches or classes", nothing)
        boxes, scores = bench.aligned([boxes, scores])
        boxes, scores = bench.packed(boxes), bench.packed(scores)
        counted = scores.extent.valid
        (batch, classes, amount), boxes, scores = scores.dims, boxes.value, scores.value
    else:
        assert scores is not None
        batch, classes, amount = bench.dims(scores)
    assert isinstance(boxes, ir.Value)
    limit = bench.entries(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else [0]
    known = limit[0] if limit and isinstance(limit[0], int) else None
    if known == 0 or not isinstance(batch, int) or not isinstance(classes, int):
        bench.fail("NonMaxSuppression of an open number of batches or classes, or of no boxes", nothing)
    if isinstance(amount, int):
        rounds = amount if known is None else min(known, amount)
    elif known is not None and known < 1 << 31:
        rounds = known
    else:
        bench.fail("NonMaxSuppression of an open number of boxes", nothing)
    if batch == classes == 1:
        rounds = min(rounds, _needed(bench, node))
    if rounds < 1 or boxes.dtype != T.FLOAT:
        bench.fail("NonMaxSuppression of no boxes", nothing)
    spread = bench.shape([batch, classes, amount])
    if threshold is not None:
        assert isinstance(threshold, ir.Value)
        alive = op.Greater(scores, op.reshape(threshold, []))
    else:
        alive = op.Expand(op.constant(np.ones((1, 1, 1), bool)), spread)
    if counted is not None:
        alive = op.And(alive, counted)
    overlap = op.constant(np.float32(0)) if iou is None else op.reshape(iou, [])  # type: ignore[arg-type]
    inputs = [*_corners(bench, boxes, bool(value_of(node, "center_point_box", op, 0))), scores, alive, overlap,
              op.constant(np.int64(rounds)), spread, bench.numbers(amount),
              op.constant(np.float32(-np.inf))]  # fmt: skip
    graph = ir.from_proto(onnx.parser.parse_model(_ROUNDS)).graph
    picks, hits = (op.Transpose(v, perm=[1, 2, 0, 3]) for v in copied(op, graph, inputs))
    if known is None:  # as many as a value says at run time
        assert isinstance(most, ir.Value)
        within = op.Less(bench.numbers(rounds), op.reshape(most, []))
        hits = op.And(hits, op.unsqueeze(within, 1))
    bound = batch * classes * rounds
    extent = Extent(op.reshape(hits, [bound]), bound, bound, roots)
    bench.root(node, 0, 0, extent)
    places = np.indices((batch, classes, rounds), dtype=np.int64)[:2].reshape(2, bound).T
    rows = op.Concat(op.constant(np.ascontiguousarray(places)), op.reshape(picks, [bound, 1]), axis=1)
    return [Ragged(rows, 0, extent)]


def _needed(bench: Bench, node: ir.Node) -> int:
    """How many rows are used, where all that follows takes the first so many of them."""
    most, work = 0, [node.outputs[0]]
    while work:
        value = work.pop()
        if value.is_graph_output() or not value.uses():
            return sys.maxsize
        for user, index in value.uses():
            numbers = [bench.entries(v) for v in user.inputs[1:]]
            if index == 0 and user.op_type in ("Gather", "Squeeze") and _of_columns(user, numbers):
                work.append(user.outputs[0])
            elif index == 0 and user.op_type == "Slice" and all(numbers):
                axes, steps = (numbers + [[], [], [0], [1]][len(numbers) :])[2:]
                starts, ends = numbers[:2]
                last = (ends or [None])[0]
                if (starts, axes, steps) != ([0], [0], [1]) or not isinstance(last, int) or last < 0:
                    return sys.maxsize
                most = max(most, last)
            else:
                return sys.maxsize
    return most


def _of_columns(node: ir.Node, numbers: list[list[Any] | None]) -> bool:
    """Whether each row is taken by itself."""
    if node.op_type == "Gather":
        own = node.attributes.get("axis")
        return own is not None and own.as_int() in (1, -1)
    return bool(numbers) and numbers[0] is not None and all(n in (1, -1) for n in numbers[0])


def _corners(bench: Bench, boxes: ir.Value, centered: bool) -> list[ir.Value]:
    """Lower and upper corners of boxes [batch, n, 4]: y1, x1, y2, x2 as [batch, 1, n]."""
    op = bench.op
    columns = [op.unsqueeze(op.squeeze(op.slice(boxes, 2, i, i + 1), 2), 1) for i in range(4)]
    if centered:
        x, y, width, height = columns
        half_w, half_h = op.Div(width, 2.0), op.Div(height, 2.0)
        return [op.Sub(y, half_h), op.Sub(x, half_w), op.Add(y, half_h), op.Add(x, half_w)]
    a, b, c, d = columns
    return [op.Min(a, c), op.Min(b, d), op.Max(a, c), op.Max(b, d)]
