"""Rules of reductions."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxlathe.infer.contents import Content, as_content, fold_reduce
from onnxlathe.infer.context import NodeContext, normal_axis, rule
from onnxlathe.infer.dims import DimLike

INT64 = ir.DataType.INT64


@rule(
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
    "ReduceSum ReduceSumSquare"
)
def reduce_(n: NodeContext) -> None:
    """Axes are an attribute, or an input since opset 18 (ReduceSum: 13)."""
    dims, dtype = n.dims(0), n.dtype(0)
    op = n.node.op_type
    keep = bool(n.attr("keepdims", 1))
    axes = n.axes(1, 13 if op == "ReduceSum" else 18)
    if not axes and axes is not False:
        if n.attr("noop_with_empty_axes", 0):
            # The identity, up to the operator's own function of each element.
            n.out(0, dtype, dims)
            return
        axes = None
    if dims is None:
        n.out(0, dtype, () if axes is None and not keep else None)
        return
    rank = len(dims)
    if not (axes is None or isinstance(axes, list)):
        n.out(0, dtype, (None,) * rank if keep else None)
        return
    reduced = set(range(rank)) if axes is None else {a + rank if a < 0 else a for a in axes}
    result: list[DimLike] = [1 if a in reduced else d for a, d in enumerate(dims) if keep or a not in reduced]
    content = None
    known = n.content(0)
    if (
        known is not None
        and dtype is not None
        and op in ("ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin")
    ):
        content = _reduced(known, op, reduced, keep, dtype)
    n.out(0, dtype, result, content)


def _reduced(known: Content, op: str, axes: set[int], keep: bool, dtype: ir.DataType) -> Content | None:
    rest = [a for a in range(known.ndim) if a not in axes]
    kept_shape = [known.shape[a] for a in rest]
    rows = known.transpose([*rest, *sorted(axes)]).reshape(
        math.prod(kept_shape), math.prod(known.shape[a] for a in axes)
    )
    flat = as_content([fold_reduce(op, row.tolist(), dtype) for row in rows])
    shape = [1 if a in axes else known.shape[a] for a in range(known.ndim)] if keep else kept_shape
    return flat.reshape(shape)


@rule("ArgMax ArgMin")
def arg_extreme(n: NodeContext) -> None:
    """Indices along one axis."""
    dims = n.dims(0)
    if dims is None:
        n.out(0, INT64)
        return
    axis = normal_axis(n.attr("axis", 0), len(dims))
    if n.attr("keepdims", 1):
        n.out(0, INT64, [1 if a == axis else d for a, d in enumerate(dims)])
    else:
        n.out(0, INT64, [d for a, d in enumerate(dims) if a != axis])
