"""Rules of If, Loop, Scan and SequenceMap: bodies are inferred, and what holds for every run comes out."""

from __future__ import annotations

import onnx_ir as ir

from onnxlathe.infer.contents import Content, as_content
from onnxlathe.infer.context import NodeContext, rule
from onnxlathe.infer.dims import Dim, DimLike, Dims, maximum
from onnxlathe.infer.values import constant_tensor, content_of, dims_of, element_dims_of, forget_contents

INT64, BOOL = ir.DataType.INT64, ir.DataType.BOOL
_ROUNDS = 3  # a carried shape that still changes after so many generalizations is given up

Carried = tuple[ir.DataType | None, Dims | None]


def _dtype(value: ir.Value) -> ir.DataType | None:
    return value.dtype if value.type is None or type(value.type) is ir.TensorType else None


@rule("If")
def if_(n: NodeContext) -> None:
    """What both branches agree on; the taken branch's facts where the condition is known."""
    then, otherwise = n.attr("then_branch"), n.attr("else_branch")
    if then is None or otherwise is None:
        return
    # Facts of a branch hold when it is taken, so the other one may be anything: infer both all the same.
    n.engine.infer_graph(then)
    n.engine.infer_graph(otherwise)
    condition = n.scalar(0)
    for i, output in enumerate(n.outputs):
        if i >= len(then.outputs) or i >= len(otherwise.outputs):
            break
        a, b = then.outputs[i], otherwise.outputs[i]
        if isinstance(condition, bool):
            n.engine.copy_facts(n, a if condition else b, output)
        elif _is_other_type(a) or _is_other_type(b):
            if a.type == b.type:
                output.type = a.type
        else:
            n.out(i, _dtype(a) or _dtype(b), merge_dims(dims_of(a), dims_of(b)), _merge_contents(a, b))


def _is_other_type(value: ir.Value) -> bool:
    return value.type is not None and type(value.type) is not ir.TensorType


def merge_dims(a: Dims | None, b: Dims | None) -> Dims | None:
    """What holds for both shapes; None when the ranks differ or are unknown."""
    if a is None or b is None or len(a) != len(b):
        return None
    return a if a == b else tuple([x if x == y else None for x, y in zip(a, b, strict=True)])


def _merge_contents(a: ir.Value, b: ir.Value) -> Content | None:
    x, y = content_of(a), content_of(b)
    if x is None or y is None or x.shape != y.shape:
        return None
    pairs = zip(x.reshape(-1), y.reshape(-1), strict=True)
    return as_content([p if type(p) is type(q) and p == q else None for p, q in pairs], x.shape)


def _state(value: ir.Value, dims: Dims | None) -> None:
    """Writes the dimensions to a body's input, as they are: what the file declares there may be a guess."""
    from onnxlathe.infer.values import set_dims

    set_dims(value, dims)
    forget_contents(value)


def _infer_body(
    n: NodeContext, body: ir.Graph, places: list[ir.Value], initial: list[Carried], outputs: list[ir.Value]
) -> list[Carried]:
    """Infers a body so that its facts hold in every iteration.

    Args:
        places: the body's inputs that carry state.
        initial: what is known of the state before the first iteration.
        outputs: the body's outputs that become the next iteration's state.

    Returns:
        What holds of the state before the first and after every iteration.
    """
    state = initial
    # From _ROUNDS on, each round gives up at least one shape, so the last round changes nothing.
    for attempt in range(_ROUNDS + len(places) + 1):
        if n.engine.exhausted:
            state = [(dtype, None) for dtype, _ in state]
        journal = n.engine.begin_body()
        for place, (dtype, dims) in zip(places, state, strict=True):
            if dtype is not None and place.type is None:
                place.type = ir.TensorType(dtype)
            if not _is_other_type(place):
                _state(place, dims)
        n.engine.infer_graph(body)
        merged: list[Carried] = []
        for (dtype, dims), value in zip(state, outputs, strict=True):
            together = merge_dims(dims, dims_of(value))
            if together != dims and together is not None:
                if attempt >= _ROUNDS:
                    together = None
                elif attempt == _ROUNDS - 1:
                    together = (None,) * len(together)
            merged.append((dtype or _dtype(value), together))
        stable = [dims for _, dims in merged] == [dims for _, dims in state]
        n.engine.end_body(journal, keep=stable)
        if stable:
            return merged
        state = merged
    return [(dtype, None) for dtype, _ in state]


def _outside(n: NodeContext, dims: Dims | None) -> Dims | None:
    """Dimensions of a body's value as the outer graph may know them: no names that only the body has."""
    if dims is None:
        return None
    symbols = n.engine.symbols
    return tuple([None if isinstance(d, Dim) and not d.symbols <= symbols else d for d in dims])


@rule("Loop")
def loop(n: NodeContext) -> None:
    """Carried values keep what no iteration changes; scan outputs gain the trip count in front."""
    body = n.attr("body")
    if body is None:
        return
    count = len(n.inputs) - 2
    if len(body.inputs) < count + 2 or len(body.outputs) < count + 1:
        return
    for value, kind in ((body.inputs[0], INT64), (body.inputs[1], BOOL)):
        value.type = ir.TensorType(kind)
        if value.shape is None:  # some exporters declare [1], and ONNX Runtime then gives them that
            _state(value, ())
    places = [body.inputs[2 + i] for i in range(count)]
    initial: list[Carried] = []
    for i, place in enumerate(places):
        source = n.inputs[2 + i]
        if source is not None and _is_other_type(source):
            place.type = source.type
            place.shape = None
            initial.append((None, None))
        else:
            initial.append((n.dtype(2 + i), n.dims(2 + i)))
    state = _infer_body(n, body, places, initial, [body.outputs[1 + i] for i in range(count)])
    for i, (dtype, dims) in enumerate(state):
        last = body.outputs[1 + i]
        if _is_other_type(last):
            if i < len(n.outputs):
                n.outputs[i].type = last.type
            continue
        if dims is None and not _may_skip(n, body):
            dims = dims_of(last)  # at least one iteration runs
        n.out(i, dtype, _outside(n, dims))
    trips = _trip_count(n, body)
    for i in range(count, len(n.outputs)):
        if 1 + i >= len(body.outputs):
            break
        value = body.outputs[1 + i]
        inner = _outside(n, dims_of(value))
        n.out(i, _dtype(value), None if inner is None else (trips, *inner))


def _may_skip(n: NodeContext, body: ir.Graph) -> bool:
    trips = _trip_count(n, body)
    return not (type(trips) is int and trips > 0)


def _trip_count(n: NodeContext, body: ir.Graph) -> DimLike:
    """The number of iterations where the condition never ends the loop early."""
    if n.has(1) and n.scalar(1) is not True:
        return None
    condition = body.outputs[0]
    producer = condition.producer()
    while producer is not None and producer.op_type == "Identity" and producer.inputs[0] is not None:
        condition = producer.inputs[0]
        producer = condition.producer()
    if condition is not body.inputs[1] and condition is not n.inputs[1]:
        content = content_of(condition) if constant_tensor(condition) is not None else None
        if content is None or content.size != 1 or content.reshape(-1)[0] is not True:
            return None
    trips = n.scalar(0)
    if type(trips) is int:
        return max(trips, 0) if trips < 2**40 else None
    return maximum(trips, 0) if isinstance(trips, Dim) else None


@rule("Scan")
def scan(n: NodeContext) -> None:
    """State as in Loop; scanned inputs lose, and scan outputs gain, the scan axis (opset 9 and later)."""
    body = n.attr("body")
    scanned = n.attr("num_scan_inputs")
    if body is None or scanned is None or n.opset < 9:
        return
    states = len(n.inputs) - scanned
    if states < 0 or len(body.inputs) < len(n.inputs):
        return
    in_axes = n.attr("scan_input_axes") or (0,) * scanned
    length: DimLike = None
    for i in range(scanned):
        dims, place = n.dims(states + i), body.inputs[states + i]
        scanned_type = n.dtype(states + i)
        if scanned_type is not None:
            place.type = ir.TensorType(scanned_type)
        if dims:
            axis = in_axes[i] % len(dims)
            if length is None or type(dims[axis]) is int:
                length = dims[axis]
            _state(place, dims[:axis] + dims[axis + 1 :])
        else:
            _state(place, None)
    initial: list[Carried] = [(n.dtype(i), n.dims(i)) for i in range(states)]
    state = _infer_body(n, body, list(body.inputs[:states]), initial, list(body.outputs[:states]))
    for i, (dtype, dims) in enumerate(state):
        n.out(i, dtype, _outside(n, dims))
    out_axes = n.attr("scan_output_axes") or (0,) * len(n.outputs)
    for i in range(states, min(len(n.outputs), len(body.outputs))):
        value = body.outputs[i]
        inner = _outside(n, dims_of(value))
        if inner is not None:
            axis = out_axes[i - states] % (len(inner) + 1)
            inner = (*inner[:axis], length, *inner[axis:])
        n.out(i, _dtype(value), inner)


@rule("SequenceMap")
def sequence_map(n: NodeContext) -> None:
    """The body runs for each element; results are sequences."""
    body = n.attr("body")
    if body is None:
        return
    for i, place in enumerate(body.inputs):
        source = n.inputs[i] if i < len(n.inputs) else None
        if source is None or source.type is None:
            continue
        inner = source.type.elem_type if isinstance(source.type, ir.SequenceType) else source.type
        if isinstance(inner, ir.TensorType):
            place.type = ir.TensorType(inner.dtype)
            _state(place, element_dims_of(source))
    journal = n.engine.begin_body()
    n.engine.infer_graph(body)
    n.engine.end_body(journal, keep=True)
    for i, output in enumerate(n.outputs):
        if i < len(body.outputs) and body.outputs[i].type is not None:
            output.type = ir.SequenceType(ir.TensorType(body.outputs[i].dtype or ir.DataType.UNDEFINED))
            shape = _outside(n, dims_of(body.outputs[i]))
            if shape is not None:
                from onnxlathe.infer.values import shape_of

                output.shape = shape_of(shape)
