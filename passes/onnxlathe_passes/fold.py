"""Constant folding, through shape arithmetic with partly known values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import constant, dims_of, infer_node, known
from onnxlathe.model import Model
from onnxlathe.rewrite import (
    Builder,
    Bytes,
    Context,
    NoMatch,
    Pass,
    is_constant,
    option,
    remove_unused,
    replace_value,
    subgraphs,
)
from onnxlathe_passes.branches import inline_branch
from onnxlathe_passes.evaluate import GROWING, UNFOLDABLE, deferred, evaluate
from onnxlathe_passes.extents import Extents, constant_target
from onnxlathe_passes.insert import insert
from onnxlathe_passes.loops import iterations, size, written_out

# Smaller results are computed at once: keeping what they are made of would cost more than the numbers.
_SMALL = 1 << 16


@dataclass(frozen=True)
class Fold(Pass):
    """Replace what does not depend on the model's inputs by constants.

    Beside nodes whose inputs are constants, this covers sizes: where shape arithmetic gives numbers they
    become constants, where it gives the target of a Reshape or Expand up to dimensions that are copied or
    implied, the target becomes a constant with 0 and -1, and where two chains compute the same sizes, one
    remains. An If on a constant becomes its branch. A Loop or Scan of known length is written out, one copy
    of its body for each iteration, where that makes few nodes: kernels and fusions end at the border of a
    loop. Results larger than `max_bytes` stay in the graph.
    """

    name = "fold"
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %s = Shape(%x)              # x: [batch, seq, 768]
    %b = Gather(%s, 0)
    %t = Concat(Unsqueeze(%b), [-1], [12], [64])
    %y = Reshape(%x, %t)
    →
    %y = Reshape(%x, [0, -1, 12, 64])
    """

    max_bytes: Bytes = option(64 << 20, "largest constant that may be made of smaller ones")
    unroll: int = option(16, "most nodes that a Loop or Scan of several iterations may become")
    quantized: bool = option(False, "fold QuantizeLinear and DequantizeLinear of constants as well")

    def run(self, model: Model, context: Context) -> int:
        changes = _Folder(self, model.opset, context, in_function=False).graph(
            model.graph, Extents(model.graph)
        )
        for function in model.ir.functions.values():
            opset = function.opset_imports.get("", model.opset)
            folder = _Folder(self, opset, context, in_function=True)
            changes += folder.graph(function.graph, Extents(function.graph))
        return changes


class _Folder:
    def __init__(self, options: Fold, opset: int, context: Context, *, in_function: bool) -> None:
        self.options = options
        self.opset = opset
        self.context = context
        self.in_function = in_function
        self.unfoldable = UNFOLDABLE - (
            {"QuantizeLinear", "DequantizeLinear"} if options.quantized else frozenset()
        )

    def graph(self, graph: ir.Graph, extents: Extents, depth: int = 0) -> int:
        changes = inlined = 0
        for node in graph:
            if node.graph is None:
                continue
            for inner in subgraphs(node):
                changes += self.graph(inner, extents.inside(inner), depth + 1)
            count = self.node(node, extents, depth)
            changes += count
            inlined += count if node.op_type == "If" else 0
        if inlined and not depth:  # what was in a branch stands before its If now, where nobody has looked
            changes += self.graph(graph, Extents(graph))
        return changes

    def node(self, node: ir.Node, extents: Extents, depth: int) -> int:
        if node.domain != "":
            return 0
        if node.op_type == "Constant":
            return self.lift(node, depth)
        if node.op_type == "If":
            bare = self.in_function and depth == 0
            return inline_branch(node, self.context, self.options.name, in_function=bare)
        if node.op_type in ("Loop", "Scan"):
            return self.write_out(node, extents, depth)
        if self.is_identity_of_constant(node):
            return 0
        if all(is_constant(v) for v in node.inputs if v is not None) and node.op_type not in self.unfoldable:
            return self.compute(node, depth)
        return self.sizes(node, extents, depth)

    def is_identity_of_constant(self, node: ir.Node) -> bool:
        """An output of the model that is a constant needs an Identity to be produced by a node."""
        return (
            node.op_type == "Identity" and node.outputs[0].is_graph_output() and is_constant(node.inputs[0])
        )

    # Loops.

    def write_out(self, node: ir.Node, extents: Extents, depth: int) -> int:
        """Put copies of its body in the place of a Loop or Scan that runs a few times, or never."""
        if self.in_function and depth == 0:
            return 0
        op = Builder(self.opset)
        try:
            count = iterations(node, self.opset)
            if count > 1 and count * size(node) > self.options.unroll:
                return 0
            outputs = written_out(op, node, count)
        except NoMatch:
            return 0
        if not self.context.permit(self.options.name):
            return 0
        insert(op, node, self.context, set(outputs))
        for old, new in zip(node.outputs, outputs, strict=True):
            if old.uses() or old.is_graph_output():
                replace_value(old, new, self.context.names)
        self.context.record(self.options.name, [node])
        remove_unused([node])
        copies = [made for made in op.nodes if made.graph is not None]
        remove_unused(copies)
        # The number of the iteration is a constant in each copy.
        return 1 + sum(self.node(made, extents, depth) for made in copies if made.graph is not None)

    # Constants.

    def lift(self, node: ir.Node, depth: int) -> int:
        """A Constant node becomes an initializer; a function body has none, so there it stays."""
        if self.in_function and depth == 0:
            return 0
        value = node.outputs[0]
        attribute = next(iter(node.attributes.values()), None)
        if attribute is None or attribute.is_ref() or attribute.name == "sparse_value":
            return 0
        if attribute.name == "value":
            tensor = attribute.value
        else:
            array = constant(value)
            if array is None:
                return 0
            tensor = _tensor_of(array)
        return self.replace(node, [tensor], depth)

    def compute(self, node: ir.Node, depth: int) -> int:
        """Replace a node on constants by its result, unless that is too large or cannot be computed."""
        if any(subgraphs(node)) or not node.outputs or any(a.is_ref() for a in node.attributes.values()):
            return 0
        inputs = sum(v.const_value.nbytes for v in node.inputs if v is not None and v.const_value is not None)
        sizes = [_nbytes(output) for output in node.outputs]
        if None in sizes:  # what it depends on may have become constant just now
            infer_node(node, self.opset)
            sizes = [_nbytes(output) for output in node.outputs]
        total = sum(size for size in sizes if size is not None)
        if None in sizes and (node.op_type in GROWING or inputs > _SMALL):
            return 0
        if total > self.options.max_bytes and total > self.released(node):
            self.context.note(
                f"{node.name} ({node.op_type}) is constant, but its {_human(total)} are left to be computed "
                f"at run time; fold(max_bytes=…) sets the limit"
            )
            return 0
        if node.op_type == "Identity" and node.inputs[0] is not None:
            return self.reuse(node, node.inputs[0])
        dims = dims_of(node.outputs[0])
        if max(total, inputs) > _SMALL and dims is not None and all(isinstance(d, int) for d in dims):
            tensor = deferred(node, self.opset, [d for d in dims if isinstance(d, int)])
            if tensor is not None:
                return self.replace(node, [tensor], depth)
        arrays = [None if v is None else constant(v, max_bytes=self.options.max_bytes) for v in node.inputs]
        if any(a is None and v is not None for a, v in zip(arrays, node.inputs, strict=True)):
            return 0
        try:
            results = evaluate(node, arrays, self.opset)
        except Exception as error:
            # An operator that cannot be computed here is none of our business; the runtime will say.
            self.context.note(f"{node.name} ({node.op_type}) could not be computed: {error}")
            return 0
        results += [np.empty(0)] * (len(node.outputs) - len(results))
        if any(_contradicts(output, array) for output, array in zip(node.outputs, results, strict=True)):
            return 0
        return self.replace(node, [_tensor_of(array) for array in results], depth)

    def released(self, node: ir.Node) -> int:
        """Bytes of constants that only this node uses: they go away with it."""
        return sum(
            v.const_value.nbytes
            for v in node.inputs
            if v is not None and v.const_value is not None and len(v.uses()) == 1
        )

    def reuse(self, node: ir.Node, value: ir.Value) -> int:
        """Let another value stand for the node's output."""
        if not self.context.permit(self.options.name):
            return 0
        replace_value(node.outputs[0], value, self.context.names)
        self.context.record(self.options.name, [node])
        remove_unused([node])
        return 1

    def replace(self, node: ir.Node, tensors: Sequence[ir.TensorProtocol], depth: int) -> int:
        """Put constants in the place of a node's outputs."""
        graph = node.graph
        if graph is None or not self.context.permit(self.options.name):
            return 0
        for output, tensor in zip(node.outputs, tensors, strict=True):
            if not output.uses() and not output.is_graph_output():
                continue
            name = output.name or "const"
            value = ir.Value(shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype))
            if self.in_function and depth == 0:
                value.name = self.context.names.value(name)
                holder = ir.Node("", "Constant", (), [ir.AttrTensor("value", tensor)], outputs=[value])
                holder.name = self.context.names.node(f"{node.name}/Constant")
                graph.insert_before(node, holder)
            else:
                value.const_value = tensor
                # The constant takes over the name that the exporter gave to what it stands for.
                if output.is_graph_output():
                    name = self.context.names.value(name)
                else:
                    output.name = None
                value.name = name
                graph.register_initializer(value)
            replace_value(output, value, self.context.names)
        self.context.record(self.options.name, [node])
        remove_unused([node])
        return 1

    # Sizes.

    def sizes(self, node: ir.Node, extents: Extents, depth: int) -> int:
        """Use what is known of integers that depend on the inputs' shapes only."""
        changes = self.target(node, depth)
        if len(node.outputs) != 1 or node.op_type in self.unfoldable:
            return changes
        output = node.outputs[0]
        contents = known(output)
        if contents is None or output.dtype is None or any(entry is None for entry in contents.flat):
            return changes
        if all(isinstance(entry, (int, bool, float)) for entry in contents.flat):
            array = np.array(contents.tolist(), dtype=output.dtype.numpy()).reshape(contents.shape)
            return changes + self.replace(node, [_tensor_of(array)], depth)
        other = extents.value(node, contents)
        if other is not None:
            return changes + self.reuse(node, other)
        shape_node = extents.as_shape(node, contents, self.opset, self.context.names)
        if shape_node is not None and self.context.permit(self.options.name):
            graph = node.graph
            assert graph is not None
            graph.insert_before(node, shape_node)
            replace_value(output, shape_node.outputs[0], self.context.names)
            self.context.record(self.options.name, [node], [shape_node])
            remove_unused([node])
            node = shape_node
            changes += 1
        elif shape_node is not None:
            shape_node.replace_input_with(0, None)
        extents.learn(node, contents)
        return changes

    def target(self, node: ir.Node, depth: int) -> int:
        """Give Reshape and Expand a constant target where the rest is copied or implied."""
        target = constant_target(node)
        if target is None or not self.context.permit(self.options.name):
            return 0
        old = node.inputs[1]
        graph = node.graph
        assert graph is not None
        assert old is not None
        name = self.context.names.value(f"{node.name}/{'shape'}")
        value = ir.Value(shape=ir.Shape([len(target)]), type=ir.TensorType(ir.DataType.INT64))
        tensor = ir.Tensor(np.array(target, np.int64))
        if self.in_function and depth == 0:
            value.name = name
            holder = ir.Node("", "Constant", (), [ir.AttrTensor("value", tensor)], outputs=[value])
            holder.name = self.context.names.node(f"{node.name}/Constant")
            graph.insert_before(node, holder)
        else:
            value.const_value = tensor
            value.name = name
            graph.register_initializer(value)
        node.replace_input_with(1, value)
        producer = old.producer()
        self.context.record(self.options.name, [node])
        if producer is not None:
            remove_unused([producer])
        return 1


def _nbytes(value: ir.Value) -> int | None:
    """Bytes of a tensor of known type and size."""
    dims = dims_of(value)
    if dims is None or value.dtype is None or value.dtype == ir.DataType.STRING:
        return None
    size = 1
    for dim in dims:
        if not isinstance(dim, int):
            return None
        size *= dim
    return size * value.dtype.bitwidth // 8


def _contradicts(output: ir.Value, array: np.ndarray) -> bool:
    dims = dims_of(output)
    if dims is None or (not output.uses() and not output.is_graph_output()):
        return False
    return len(dims) != array.ndim or any(
        isinstance(d, int) and d != n for d, n in zip(dims, array.shape, strict=True)
    )


def _tensor_of(array: np.ndarray) -> ir.TensorProtocol:
    if array.dtype.kind in "OSU":
        strings = [s.encode() if isinstance(s, str) else bytes(s) for s in array.reshape(-1).tolist()]
        return ir.StringTensor(strings, shape=ir.Shape(array.shape))
    return ir.Tensor(np.ascontiguousarray(array).reshape(array.shape))


def _human(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
