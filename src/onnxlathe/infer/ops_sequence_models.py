"""Rules of recurrent layers and of attention."""

from __future__ import annotations

from onnxlathe.infer.context import NodeContext, rule
from onnxlathe.infer.dims import DimLike, Dims, floor_div


@rule("LSTM GRU RNN")
def recurrent(n: NodeContext) -> None:
    """All steps, then the last hidden (and cell) state; ``layout`` 1 puts the batch first."""
    dims, weight, recurrence = n.dims(0), n.dims(1), n.dims(2)
    dtype = n.dtype(0)
    hidden: DimLike = n.attr("hidden_size")
    if hidden is None and recurrence is not None and len(recurrence) == 3:
        hidden = recurrence[2]
    directions: DimLike = 2 if n.attr("direction", "forward") == "bidirectional" else 1
    if weight is not None and len(weight) == 3 and weight[0] is not None:
        directions = weight[0]
    steps: DimLike = None
    batch: DimLike = None
    layout = n.attr("layout", 0)
    if dims is not None and len(dims) == 3:
        batch, steps = (dims[0], dims[1]) if layout else (dims[1], dims[0])
    if layout:
        every: Dims = (batch, steps, directions, hidden)
        last: Dims = (batch, directions, hidden)
    else:
        every = (steps, directions, batch, hidden)
        last = (directions, batch, hidden)
    n.out(0, dtype, every)
    n.out(1, dtype, last)
    n.out(2, dtype, last)


def _heads(dims: Dims | None, count: int | None) -> tuple[DimLike, DimLike, DimLike, DimLike] | None:
    """Batch, heads, length and head size of a query, key or value of rank 3 or 4."""
    if dims is None:
        return None
    if len(dims) == 4:
        return dims[0], dims[1], dims[2], dims[3]
    if len(dims) == 3 and count:
        size = dims[2]
        return dims[0], count, dims[1], None if size is None else floor_div(size, count)
    return None


@rule("Attention")
def attention(n: NodeContext) -> None:
    """Attention of the ONNX domain (opset 23): output, present key and value, and the score matrix."""
    dtype = n.dtype(0)
    query_dims = n.dims(0)
    query = _heads(query_dims, n.attr("q_num_heads"))
    key = _heads(n.dims(1), n.attr("kv_num_heads"))
    value = _heads(n.dims(2), n.attr("kv_num_heads"))
    if query is None or key is None or value is None or query_dims is None:
        n.out(0, dtype, None if query_dims is None else (None,) * len(query_dims))
        for i, kind in ((1, n.dtype(1)), (2, n.dtype(2)), (3, dtype)):
            n.out(i, kind, (None,) * 4)
        return
    batch, heads, length, _ = query
    if len(query_dims) == 4:
        n.out(0, dtype, (batch, heads, length, value[3]))
    else:
        size = value[3]
        n.out(0, dtype, (batch, length, None if heads is None or size is None else heads * size))
    total = key[2]
    if n.has(4):
        past = n.dims(4)
        before = past[2] if past is not None and len(past) == 4 else None
        total = None if total is None or before is None else total + before
    n.out(1, n.dtype(1), (key[0], key[1], total, key[3]))
    n.out(2, n.dtype(2), (value[0], value[1], total, value[3]))
    n.out(3, dtype, (batch, heads, length, total))
