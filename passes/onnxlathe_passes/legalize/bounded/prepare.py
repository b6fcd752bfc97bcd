"""Making a model ready for `bounded`: branches are computed both, sizes get names."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from onnxlathe import Model
from onnxlathe.infer import Dim, dims_of, forget_contents, infer_model, set_dims
from onnxlathe.rewrite import Context, Names, NoMatch, subgraphs
from onnxlathe_passes.cse import CommonSubexpressions
from onnxlathe_passes.legalize import mini
from onnxlathe_passes.legalize.body import expanded
from onnxlathe_passes.legalize.bounded.follow import FOLLOWERS, SOURCES
from onnxlathe_passes.legalize.bounded.sources import is_settled
from onnxlathe_passes.legalize.draft import Draft
from onnxlathe_passes.loops import copied

SELECT = "Select"
"""Stands for an If whose branches have been computed: condition, then, else."""

DOMAIN = "onnxlathe"
_SIZED = {"Expand": 1, "Reshape": 1, "ConstantOfShape": 0, "Range": 1, "Slice": 2, "TopK": 1, "Tile": 1}
_ON = frozenset({"Concat", "Unsqueeze", "Reshape", "Squeeze", "Cast", "Gather", "Mul", "Identity"})

Refused = Callable[[ir.Node], bool]


def sources_in(graph: ir.Graph) -> Iterator[ir.Node]:
    """Nodes whose result has a size that data decide, also inside of branches."""
    for node in graph:
        if node.domain == "" and node.op_type in SOURCES and not is_settled(node):
            yield node
        elif node.op_type == "If":
            for inner in subgraphs(node):
                yield from sources_in(inner)


def counts_in(graph: ir.Graph) -> Iterator[ir.Node]:
    """Numbers of true elements of a mask that decide on a size."""
    for node in graph:
        if node.op_type == "ReduceSum" and _decides_a_size(node, 0) and _counted(node) is not None:
            yield node


def prepare(model: Model, refused: Refused, names: Names) -> list[ir.Node]:
    """Prepare a model in place; returns the sources of its main graph that are refused.

    Args:
        model: a copy.
        refused: whether the target refuses a node.
        names: of the model.
    """
    graph = model.graph
    while any(_inline(node, graph, model.opset, refused, names) for node in list(graph)):
        pass
    _expand_bodies(model, names)
    for node in list(counts_in(graph)):
        _count_by_nonzero(node, graph, names, model.opset)
    _forget(graph)
    # What finds the same has the same size; only then names are given to sizes.
    CommonSubexpressions().run(model, Context.of(model.ir))
    infer_model(model)
    for number, node in enumerate([n for n in graph if n.op_type == SELECT and n.domain == DOMAIN]):
        then, other = dims_of(node.inputs[1]), dims_of(node.inputs[2])  # type: ignore[arg-type]
        if then is not None and other is not None and len(then) == len(other):
            pairs = enumerate(zip(then, other, strict=True))
            dims = tuple(a if a == b else Dim(f"u.select{number}.d{i}") for i, (a, b) in pairs)
            set_dims(node.outputs[0], dims)
            infer_model(model)
    return [n for n in sources_in(graph) if n.graph is graph and refused(n)]


def _inline(node: ir.Node, graph: ir.Graph, opset: int, refused: Refused, names: Names) -> bool:
    """Compute both branches of an If in whose branches there is a refused source, or that reads of one."""
    if node.op_type != "If" or node.domain or node.graph is None:
        return False
    inside = [s for g in subgraphs(node) for s in sources_in(g)]
    tainted = _tainted(graph)
    if not any(refused(s) for s in inside) and not any(v in tainted for v in mini.captured(node)):
        return False
    draft = Draft(opset)
    then = copied(draft, node.attributes["then_branch"].as_graph(), [])
    other = copied(draft, node.attributes["else_branch"].as_graph(), [])
    outputs = []
    for a, b in zip(then, other, strict=True):
        chosen = ir.Node(DOMAIN, SELECT, [node.inputs[0], a, b])
        chosen.outputs[0].type = a.type or b.type
        draft.nodes.append(chosen)
        outputs.append(chosen.outputs[0])
    mini.install(draft, graph, node, outputs, names)
    return True


def _expand_bodies(model: Model, names: Names) -> None:
    """Operators that nothing is known to do with such results, as what the specification says they consist of."""
    tried: set[ir.Node] = set()
    while True:
        tainted = _tainted(model.graph)
        unknown = [
            node
            for node in model.graph
            if not (node in tried or node.domain or node.op_type in FOLLOWERS)
            and any(v in tainted for v in node.inputs)
        ]
        if not unknown:
            return
        tried.update(unknown)
        for node in unknown:
            piece = mini.cut(node, dict(model.graph.opset_imports), model.ir.ir_version)
            try:
                mini.splice(expanded(piece, mini.only_node(piece)), node, names)
            except NoMatch:
                continue
        infer_model(model)  # a body is chosen by types


def _tainted(graph: ir.Graph) -> set[ir.Value]:
    """Values that come of a result whose size data decide."""
    found: set[ir.Value] = set()
    starts = set(sources_in(graph))
    for node in graph:
        begins = node in starts or (node.op_type == SELECT and node.domain == DOMAIN)
        begins = begins or any(s in starts for g in subgraphs(node) for s in sources_in(g))
        if begins or any(v in found for v in mini.operands_of(node)):
            found.update(node.outputs)
    return found


def _forget(graph: ir.Graph) -> None:
    """Declared sizes of such values: exporters give one name to different sizes."""
    for value in _tainted(graph):
        value.shape = None
        forget_contents(value)


def _decides_a_size(node: ir.Node, depth: int) -> bool:
    if depth > 6:
        return False
    for user, index in node.outputs[0].uses():
        if user.domain == "" and _SIZED.get(user.op_type) == index:
            return True
        if user.domain == "" and user.op_type in _ON and _decides_a_size(user, depth + 1):
            return True
    return False


def _counted(node: ir.Node) -> ir.Value | None:
    """The mask whose true elements a ReduceSum counts; None where it does something else."""
    cast = node.inputs[0].producer() if node.inputs[0] is not None else None
    mask = cast.inputs[0] if cast is not None and cast.op_type == "Cast" else None
    if mask is None or mask.dtype != ir.DataType.BOOL:
        return None
    source = mask.producer()
    while source is not None and source.op_type in ("Reshape", "Flatten") and source.inputs[0] is not None:
        mask = source.inputs[0]
        source = mask.producer()
    out = dims_of(node.outputs[0])
    whole = out is not None and all(d == 1 for d in out)
    integer = node.outputs[0].dtype in (ir.DataType.INT64, ir.DataType.INT32)
    return mask if whole and integer and dims_of(mask) is not None else None


def _count_by_nonzero(node: ir.Node, graph: ir.Graph, names: Names, opset: int) -> None:
    """The number that NonZero would find: a size that has a name."""
    mask, out, dtype = _counted(node), dims_of(node.outputs[0]), node.outputs[0].dtype
    assert mask is not None
    assert out is not None
    assert dtype is not None
    draft = Draft(opset)
    count = draft.cast(draft.Shape(draft.NonZero(mask), start=-1), dtype)
    if len(out) != 1:
        count = draft.reshape(count, [1] * len(out))
    mini.install(draft, graph, node, [count], names)
