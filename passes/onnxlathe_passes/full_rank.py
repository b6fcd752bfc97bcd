"""Constants that have as many axes as what they meet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.model import Model
from onnxlathe.rewrite import Builder, Context, Pass, drop_initializer, is_constant, option
from onnxlathe_passes.conditions import producer, rank, used_once
from onnxlathe_passes.insert import graphs_with_weights, insert
from onnxlathe_passes.regroup import static
from onnxlathe_passes.weights import tensor_of, with_shape

_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})
_BROADCASTING = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where", "PRelu", "And", "Or", "Xor"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
    }
)


@dataclass(frozen=True)
class FullRank(Pass):
    """Store a constant with as many axes as the operand that it is broadcast to: [768] as [1, 1, 768].

    TensorRT's parser otherwise makes a layer of the difference, for each use. What ONNX Runtime's fusions
    want as a vector or a number stays: the scale of a LayerNormalization after a sum, the bias before an
    activation or a residual, the numbers of an activation. Matrices stay too, since ONNX Runtime packs only
    those for its fastest kernels on CPU. `everything` is for graphs that only TensorRT will see.
    """

    name = "full_rank"
    group = "fuse"
    min_opset = 7
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %y = LayerNormalization(%x, %scale, %bias)      # x: [batch, seq, 768], scale, bias: [768]
    →
    %y = LayerNormalization(%x, %scale1, %bias1)    # scale1, bias1: [1, 1, 768]
    """

    everything: bool = option(False, "weights of MatMul, all biases and numbers as well")

    def run(self, model: Model, context: Context) -> int:
        changes = 0
        for graph in graphs_with_weights(model):
            forms = _Forms(model.opset)
            for node in graph:
                if node.domain == "":
                    changes += self.widen(node, forms, context)
        return changes

    def widen(self, node: ir.Node, forms: _Forms, context: Context) -> int:
        """Exchange the constants that one operator reads."""
        wanted = list(self.wanted(node))
        if not wanted or not context.permit(self.name):
            return 0
        op = Builder(forms.opset)
        replaced = [node.inputs[index] for index, _ in wanted]
        for index, axes in wanted:
            node.replace_input_with(index, forms.of(node.inputs[index], axes, op))
        insert(op, node, context)
        for old in replaced:
            if old is not None and not old.uses() and old.is_initializer() and not old.is_graph_output():
                drop_initializer(old)
        context.record(self.name, [node])
        return 1

    def wanted(self, node: ir.Node) -> Iterator[tuple[int, int]]:
        """Which inputs should have how many axes."""
        if not self.everything and not _only_parsed(node):
            return
        axes = rank(node.outputs[0])
        inputs = range(len(node.inputs))
        if node.op_type in _NORMS:
            inputs = range(1, len(node.inputs))
        elif node.op_type == "Gemm":
            inputs = range(2, len(node.inputs))
        elif node.op_type == "MatMul":
            if 1 in (rank(node.inputs[0]), rank(node.inputs[1])):
                return  # a vector has another meaning than a matrix of one row
        elif node.op_type not in _BROADCASTING:
            return
        for index in inputs:
            value = node.inputs[index]
            given = dims_of(value) if value is not None else None
            if axes is None or given is None or static(given) is None:
                continue
            if value is not None and is_constant(value) and len(given) < axes:
                yield index, axes


def _only_parsed(node: ir.Node) -> bool:
    """Whether no fusion of ONNX Runtime looks at the constants of the node."""
    result = node.outputs[0]
    if node.op_type == "LayerNormalization":
        # After a sum that nothing else needs it becomes SkipLayerNormalization, with vectors.
        x = node.inputs[0]
        return x is not None and (producer(x, "Add") is None or not used_once(x))
    if node.op_type == "Add":
        product = any(producer(v, "MatMul") is not None for v in node.inputs)
        users = result.consumers()
        return product and bool(users) and all(u.op_type == "Reshape" and u.domain == "" for u in users)
    return False


@dataclass
class _Forms:
    """The constants of a graph with more axes, each made once.

    Attributes:
        opset: version of the default operator set.
        made: what was made of which constant, by number of axes.
    """

    opset: int
    made: dict[tuple[ir.Value, int], ir.Value] = field(default_factory=dict)

    def of(self, value: ir.Value | None, axes: int, op: Builder) -> ir.Value:
        """The constant with so many axes, made by `op` if it is not there yet."""
        assert value is not None
        if (value, axes) not in self.made:
            self.made[value, axes] = _widened(op, value, axes)
        return self.made[value, axes]


def _widened(op: Builder, value: ir.Value, axes: int) -> ir.Value:
    source = tensor_of(value)
    dims = source.shape.numpy()
    return op.weight(with_shape(source, [1] * (axes - len(dims)) + list(dims)), value.name or "")
