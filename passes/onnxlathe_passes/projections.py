"""Matrix products of one value with several weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.model import Model, rows_of
from onnxlathe.rewrite import Builder, Bytes, Context, Pass, attribute, is_constant, option, remove_unused
from onnxlathe_passes.attention import Attention
from onnxlathe_passes.conditions import FLOATS, Array, attributes_of, operand, producer, rank, used_once
from onnxlathe_passes.insert import graphs_with_weights, insert, substitute
from onnxlathe_passes.regroup import split
from onnxlathe_passes.weights import by_rows, derived, may_copy, tensor_of

_ACTIVATIONS = frozenset(
    {
        *("Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Relu", "Selu", "Sigmoid"),
        *("Softplus", "Softsign", "Swish", "Tanh"),
    }
)


@dataclass(frozen=True)
class Projection:
    """`x·weight`, and a bias that is added to it.

    Attributes:
        product: the MatMul or Gemm.
        result: what it is for: the output of the Add, or of the product.
        width: number of columns of the result.
        bias: a constant of one number per column, or of one number.
    """

    product: ir.Node
    result: ir.Value
    width: int
    bias: ir.Value | None = None

    @property
    def weight(self) -> ir.Value:
        assert self.product.inputs[1] is not None
        return self.product.inputs[1]

    @property
    def turned(self) -> bool:
        """Whether the weight is that of a Gemm which transposes it: a row for each column of the result."""
        return "transB" in self.product.attributes and bool(self.product.attributes["transB"].as_int())

    @classmethod
    def of(cls, node: ir.Node, opset: int) -> Projection | None:
        """The projection that a MatMul or Gemm is, if it is one."""
        weight, result = node.inputs[1], node.outputs[0]
        dims = dims_of(weight) if weight is not None else None
        if weight is None or not is_constant(weight) or weight.dtype not in FLOATS or dims is None:
            return None
        if len(dims) != 2 or (rank(result) or 0) < 2:
            return None
        turned = node.op_type == "Gemm" and bool(attribute(node, "transB", opset))
        width = dims[0 if turned else 1]
        if not isinstance(width, int):
            return None
        if node.op_type == "Gemm":
            return cls._of_gemm(node, width, opset)
        for user in result.consumers() if used_once(result) else ():
            bias = next((v for v in user.inputs if v is not result), None)
            sizes = dims_of(bias) if bias is not None else None
            if user.op_type != "Add" or user.domain or not is_constant(bias) or sizes is None:
                continue
            fits = sizes[-1:] in ((), (1,), (width,)) and all(d == 1 for d in sizes[:-1])
            if bias is not None and fits and len(sizes) <= (rank(result) or 0):
                return cls(node, user.outputs[0], width, bias)
        return cls(node, result, width)

    @classmethod
    def _of_gemm(cls, node: ir.Node, width: int, opset: int) -> Projection | None:
        bias = operand(node, 2)
        sizes = dims_of(bias) if bias is not None else ()
        plain = not attribute(node, "transA", opset) and attribute(node, "alpha", opset) == 1
        if not plain or sizes is None or (bias is not None and not is_constant(bias)):
            return None
        if bias is not None and (
            attribute(node, "beta", opset) != 1 or sizes not in ((), (1,), (width,), (1, 1), (1, width))
        ):
            return None
        return cls(node, node.outputs[0], width, bias)


@dataclass(frozen=True)
class MergeProjections(Pass):
    """Make one MatMul or Gemm, and one bias, of several whose left operand is the same.

    Queries, keys and values are one product with the weights side by side, and so are the gate and the
    other half of a SwiGLU. Done where it leaves fewer nodes: what follows each part alike (biases,
    activations, Reshapes, Transposes) is counted, and comes once as well. From operator set 23 on, which
    has Attention, only projections of equal width are merged.
    """

    name = "merge_projections"
    group = "fuse"
    min_opset = 7
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %q = Add(MatMul(%x, %wq), %bq)
    %k = MatMul(%x, %wk)
    %v = Add(MatMul(%x, %wv), %bv)
    →
    %qkv = Add(MatMul(%x, [%wq %wk %wv]), [%bq 0 %bv])
    %q, %k, %v = Split(%qkv, axis=-1)
    """

    max_copy: Bytes = option(1 << 20, "largest weight that is copied because something else uses it too")

    def run(self, model: Model, context: Context) -> int:
        changes = 0
        for graph in graphs_with_weights(model):
            for group in list(self.groups(graph, model.opset)):
                # Attention takes projections of any width as they are, and a Split into unequal parts costs
                # ONNX Runtime's CUDA provider more than the products it saves.
                apart = model.opset >= Attention.min_opset and len({p.width for p in group}) > 1
                if not apart and _gain(group) > 0 and context.permit(self.name):
                    merge(group, model.opset, context, self.name)
                    changes += 1
        return changes

    def groups(self, graph: ir.Graph, opset: int) -> Iterator[list[Projection]]:
        """Projections of the same value, in the order of the graph."""
        found: dict[tuple[object, ...], list[Projection]] = {}
        for node in graph:
            if node.op_type not in ("MatMul", "Gemm") or node.domain != "" or node.inputs[0] is None:
                continue
            projection = Projection.of(node, opset)
            if projection is not None and may_copy(projection.weight, self.max_copy):
                turned = projection.turned
                depth = (dims_of(projection.weight) or ())[1 if turned else 0]
                key = (node.inputs[0], projection.weight.dtype, depth, node.op_type, turned)
                found.setdefault(key, []).append(projection)
        return (group for group in found.values() if len(group) > 1)


def _gain(group: Sequence[Projection]) -> int:
    """How many nodes fewer there are when all is done."""
    biases = 0 if group[0].product.op_type == "Gemm" else sum(p.bias is not None for p in group)
    gain = len(group) + biases - (1 + (biases > 0)) - 1
    results = [p.result for p in group]
    while all(used_once(r) for r in results):
        following = [next(iter(r.consumers())) for r in results]
        kinds = {(n.domain, n.op_type, str(sorted(attributes_of(n).items()))) for n in following}
        if len(kinds) > 1 or following[0].op_type not in _ACTIVATIONS or following[0].domain:
            break
        results = [node.outputs[0] for node in following]
        gain += len(group) - 1
    for op_type in ("Reshape", "Transpose"):
        following = [next(iter(r.consumers())) for r in results if used_once(r)]
        if len(following) < len(group) or any(n.op_type != op_type or n.domain for n in following):
            break
        results = [node.outputs[0] for node in following]
        if op_type == "Reshape":
            heads = {(dims_of(r) or ())[-1:] for r in results}
            if len(heads) != 1 or len({rank(r) for r in results}) != 1:
                break
        gain += len(group) - 1
        if op_type == "Transpose":
            perms = [
                tuple(n.attributes["perm"].as_ints()) if "perm" in n.attributes else () for n in following
            ]
            gain -= len(perms) - max(perms.count(p) for p in perms)
    return gain


def merge(group: Sequence[Projection], opset: int, context: Context, rule: str) -> None:
    """Put one product in the place of the group's."""
    first = group[0].product
    op = Builder(opset)
    biased = any(p.bias is not None for p in group)
    weight = _side_by_side(op, group)
    if first.op_type == "Gemm":
        bias = _biases(op, group) if biased else None
        product = op.Gemm(first.inputs[0], weight, bias, transB=1 if group[0].turned else None)
    else:
        product = op.MatMul(first.inputs[0], weight)
        if biased:
            product = op.Add(product, _biases(op, group))
    widths = [p.width for p in group]
    axis = (rank(group[0].result) or 0) - 1
    parts = split(op, product, widths, axis)
    insert(op, first, context)
    substitute([(p.result, part) for p, part in zip(group, parts, strict=True)], context)
    before = [p.product for p in group]
    before += [made for p in group if (made := producer(p.result, "Add")) is not None]
    context.record(rule, before, op.nodes)
    remove_unused(before)


def _side_by_side(op: Builder, group: Sequence[Projection]) -> ir.Value:
    """The weights as columns of one; read only when it is written."""
    sources = [tensor_of(p.weight) for p in group]
    total = sum(p.width for p in group)
    if group[0].turned:
        starts = list(accumulate((p.width for p in group), initial=0))

        def stacked(start: int, stop: int) -> Array:
            found = [
                rows_of(source, max(start - first, 0), min(stop, end) - first)
                for source, first, end in zip(sources, starts, starts[1:], strict=False)
                if start < end and stop > first
            ]
            return np.concatenate(found)

        return by_rows(op, group[0].weight, (total, sources[0].shape.numpy()[1]), stacked)
    shape = sources[0].shape.numpy()[0], total

    def rows(start: int, stop: int) -> Array:
        return np.concatenate([rows_of(source, start, stop) for source in sources], axis=1)

    return by_rows(op, group[0].weight, shape, rows)


def _biases(op: Builder, group: Sequence[Projection]) -> ir.Value:
    like = next(p.bias for p in group if p.bias is not None)
    parts = [(tensor_of(p.bias) if p.bias is not None else None, p.width) for p in group]

    def compute() -> Array:
        zero = np.zeros(1, like.dtype.numpy())  # type: ignore[union-attr]
        return np.concatenate(
            [np.broadcast_to(zero if t is None else t.numpy().reshape(-1), width) for t, width in parts]
        )

    return derived(op, like, (sum(p.width for p in group),), compute)
