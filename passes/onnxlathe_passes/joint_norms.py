"""Root-mean-square normalizations side by side, done at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.model import Model
from onnxlathe.rewrite import Builder, Context, Pass, attribute, is_scalar, remove_unused, scalar_value
from onnxlathe_passes.conditions import (
    Array,
    from_front,
    int64,
    numbers,
    operand,
    rank,
    small_constant,
    used_once,
)
from onnxlathe_passes.insert import graphs_with_weights, insert, substitute
from onnxlathe_passes.lanes import split_lane
from onnxlathe_passes.noop_views import permutation
from onnxlathe_passes.regroup import split, target

_TURN = (0, 2, 1, 3)  # between [batch, seq, heads, size] and [batch, heads, seq, size]


@dataclass(frozen=True)
class Norm:
    """x/√(mean(x²) + ε)·scale over the last axis, of one part of a Split.

    Attributes:
        moves: the Reshape of the part to `[…, heads, size]`, and a Transpose to `[batch, heads, seq, size]`;
            none where the part has heads as an axis.
        turned: whether it is normalized as `[batch, heads, seq, size]`.
        heads: how many there are.
        x: what is normalized.
        core: the operators up to x/√(…), or the RMSNormalization.
        scale: one number for each place of the last axis.
        last: the operator that makes the result.
    """

    moves: tuple[ir.Node, ...]
    turned: bool
    heads: int
    x: ir.Value
    core: tuple[ir.Node, ...]
    scale: ir.Value
    last: ir.Node

    @property
    def nodes(self) -> list[ir.Node]:
        return [*self.moves, *dict.fromkeys([*self.core, self.last])]

    @property
    def epsilon(self) -> float | None:
        if len(self.core) == 1:
            found = self.core[0].attributes.get("epsilon")
            return 1e-5 if found is None else found.as_float()
        return next((number for v in self.core[2].inputs if (number := scalar_value(v)) is not None), None)

    @classmethod
    def of(cls, part: ir.Value, axis: int, opset: int) -> Norm | None:
        """The normalization of a part of a Split along an axis."""
        axes = rank(part)
        moved = _to_heads(part, opset) if axes is not None and axis == axes - 1 else ((), False, part)
        if moved is None:
            return None
        moves, turned, x = moved
        dims = dims_of(x) or ()
        heads = dims[-3 if turned else -2] if moves else dims[axis]
        found = _decomposed(x, opset) or _operator(x, opset)
        if found is None or x.is_graph_output() or not isinstance(heads, int):
            return None
        core, scale, last = found
        if small_constant(scale) is None or dims_of(scale) != dims[-1:]:
            return None
        return cls(moves, turned, heads, x, core, scale, last)

    def like(self, other: Norm) -> bool:
        """Whether both are the same but for their scales."""
        sizes = [(dims_of(norm.x) or ())[-1:] for norm in (self, other)]
        kinds = [[bool(norm.moves), *(node.op_type for node in norm.core)] for norm in (self, other)]
        types = [(norm.x.dtype, norm.scale.dtype) for norm in (self, other)]
        return (sizes[0], kinds[0], types[0], self.epsilon) == (sizes[1], kinds[1], types[1], other.epsilon)


class JointNorms(Pass):
    """Normalize queries and keys at once, where each of their heads is normalized.

    The parts of a Split that are neighbours, and go through RMS normalizations alike but for their scales, are
    normalized together. What differs is a constant with a row for each head. Before opset 23 there is a scale
    of ones as well, as ONNX Runtime fuses an RMS normalization that has one.
    """

    name = "joint_norms"
    group = "fuse"
    min_opset = 11
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %q, %k = Split(%x, [8, 4], axis=2)
    %a = Mul(Div(%q, Sqrt(Add(ReduceMean(Pow(%q, 2), [-1]), 1e-6))), %wq)
    %b = Mul(Div(%k, Sqrt(Add(ReduceMean(Pow(%k, 2), [-1]), 1e-6))), %wk)
    →
    %n = Mul(Div(%x, Sqrt(Add(ReduceMean(Pow(%x, 2), [-1]), 1e-6))), [1, 1, …])
    %a, %b = Split(Mul(%n, [%wq, …, %wk, …]), [8, 4], axis=2)
    """

    def run(self, model: Model, context: Context) -> int:
        changes = 0
        for graph in graphs_with_weights(model):
            for node in graph:
                if node.op_type == "Split" and node.domain == "":
                    for parts, norms in list(_runs(node, model.opset)):
                        if context.permit(self.name):
                            _join(node, parts, norms, model.opset, context, self.name)
                            changes += 1
                            break
        return changes


def _runs(node: ir.Node, opset: int) -> Iterator[tuple[range, list[Norm]]]:
    """Neighbouring parts of a Split with normalizations alike."""
    lane = split_lane(node, opset)
    axes = rank(node.inputs[0])
    if lane is None or axes is None or axes < 3:
        return
    norms = [Norm.of(value, lane.axis, opset) for value in node.outputs]
    start = 0
    for _, group in groupby(_alike(norms)):
        count = len(list(group))
        found = [norm for norm in norms[start : start + count] if norm is not None]
        if len(found) == count > 1:
            yield range(start, start + count), found
        start += count


def _alike(norms: Sequence[Norm | None]) -> Iterator[int]:
    """A number for each normalization, the same for neighbours that are alike."""
    number, before = 0, None
    for norm in norms:
        if norm is None or before is None or not before.like(norm):
            number += 1
        before = norm
        yield number


def _join(
    node: ir.Node, parts: range, norms: Sequence[Norm], opset: int, context: Context, rule: str
) -> None:
    """Put one normalization in the place of several."""
    first, lane = norms[0], split_lane(node, opset)
    assert lane is not None
    op = Builder(opset)
    whole = node.inputs[0]
    assert whole is not None
    sizes = lane.sizes
    pairs: list[tuple[ir.Value, ir.Value]] = []
    if len(parts) < len(sizes):
        merged = [*sizes[: parts.start], sum(sizes[parts.start : parts.stop]), *sizes[parts.stop :]]
        cut = split(op, whole, merged, lane.axis)
        others = [value for index, value in enumerate(node.outputs) if index not in parts]
        pairs = list(zip(others, [v for i, v in enumerate(cut) if i != parts.start], strict=True))
        whole = cut[parts.start]
    heads = [norm.heads for norm in norms]
    axis = lane.axis
    if first.moves:
        flat = dims_of(first.moves[0].inputs[0]) or ()  # type: ignore[arg-type]
        wanted = target(flat, (*flat[:-1], sum(heads), (dims_of(first.x) or ())[-1]))
        assert wanted is not None
        whole = op.Reshape(whole, int64(wanted))
    scales = [_array(norm.scale) for norm in norms]
    same = all(np.array_equal(scales[0], scale) for scale in scales)
    common = scales[0] if same else np.ones_like(scales[0])
    # RMSNormalization wants a scale; so does ONNX Runtime, to see that it is one.
    result = _normalized(op, first, whole, op.constant(common, first.scale.dtype, first.scale.name or ""))
    if not same:
        rows = np.concatenate([np.broadcast_to(s, (n, s.size)) for s, n in zip(scales, heads, strict=True)])
        after = 0 if first.moves else (rank(first.x) or 0) - axis - 2
        rows = rows.reshape(rows.shape[0], *(1,) * after, rows.shape[1])
        result = op.Mul(result, op.constant(rows, first.scale.dtype, first.scale.name or ""))
    for norm, part in zip(norms, split(op, result, heads, axis), strict=True):
        pairs.append((norm.last.outputs[0], op.Transpose(part, perm=_TURN) if norm.turned else part))
    before = [node, *(n for norm in norms for n in norm.nodes)]
    insert(op, node, context)
    substitute(pairs, context)
    context.record(rule, before, op.nodes)
    remove_unused(reversed(before))


def _normalized(op: Builder, like: Norm, x: ir.Value, scale: ir.Value) -> ir.Value:
    """The normalization again, of something else."""
    made: dict[ir.Value, ir.Value] = {like.x: x, like.scale: scale}
    for node in dict.fromkeys([*like.core, like.last]):
        inputs = [made.get(v, v) if v is not None else None for v in node.inputs]
        made[node.outputs[0]] = op.node(node.op_type, inputs, dict(node.attributes)).outputs[0]
    return made[like.last.outputs[0]]


def _to_heads(part: ir.Value, opset: int) -> tuple[tuple[ir.Node, ...], bool, ir.Value] | None:
    """`[…, heads·size]` as heads: what makes them, whether they come before the sequence, and what they are."""
    view = _only(part, "Reshape")
    before, after = dims_of(part), dims_of(view.outputs[0]) if view is not None else None
    if view is None or before is None or after is None or None in after or len(after) != len(before) + 1:
        return None
    x = view.outputs[0]
    if after[:-2] == before[:-1]:
        turn = _only(x, "Transpose")
        if turn is None or permutation(turn, opset) != _TURN:
            return (view,), False, x
        return (view, turn), True, turn.outputs[0]
    # One head: where its axis is makes no difference.
    if len(before) == 3 and after == (before[0], 1, *before[1:]):
        return (view,), True, x
    return None


def _decomposed(x: ir.Value, opset: int) -> tuple[tuple[ir.Node, ...], ir.Value, ir.Node] | None:
    """The operators of x/√(mean(x²) + ε)·scale, the scale, and the last of them."""
    square = next((node for node in x.consumers() if _is_square(node, x)), None)
    if square is None:
        return None
    mean = _only(square.outputs[0], "ReduceMean")
    total = _only(mean.outputs[0], "Add") if mean is not None else None
    root = _only(total.outputs[0], "Sqrt") if total is not None else None
    quotient = _only(root.outputs[0], "Div") if root is not None else None
    if mean is None or total is None or root is None or quotient is None or quotient.inputs[0] is not x:
        return None
    axes = operand(mean, 1)
    given = numbers(axes) if axes is not None else attribute(mean, "axes", opset)
    last = (rank(x) or 0) - 1
    if given is None or from_front(given, last + 1) != [last] or not attribute(mean, "keepdims", opset):
        return None
    if set(x.consumers()) != {square, quotient}:
        return None
    scaled = _only(quotient.outputs[0], "Mul")
    if scaled is None:
        return None
    scale = next((v for v in scaled.inputs if v is not quotient.outputs[0]), None)
    return None if scale is None else ((square, mean, total, root, quotient), scale, scaled)


def _is_square(node: ir.Node, x: ir.Value) -> bool:
    if node.domain != "" or node.op_type not in ("Pow", "Mul") or node.inputs[0] is not x:
        return False
    return is_scalar(node.inputs[1], 2.0) if node.op_type == "Pow" else node.inputs[1] is x


def _operator(x: ir.Value, opset: int) -> tuple[tuple[ir.Node, ...], ir.Value, ir.Node] | None:
    """The RMSNormalization of x, and its scale."""
    node = _only(x, "RMSNormalization")
    if node is None or node.inputs[0] is not x or node.inputs[1] is None:
        return None
    last = (rank(x) or 0) - 1
    if from_front([int(attribute(node, "axis", opset))], last + 1) != [last]:
        return None
    return (node,), node.inputs[1], node


def _only(value: ir.Value, op_type: str) -> ir.Node | None:
    """The operator that alone needs a value, if it is of this kind."""
    if not used_once(value):
        return None
    node = next(iter(value.consumers()))
    return node if node.op_type == op_type and node.domain == "" else None


def _array(value: ir.Value) -> Array:
    found = small_constant(value)
    assert found is not None
    return found
