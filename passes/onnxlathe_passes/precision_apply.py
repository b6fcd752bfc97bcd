"""Carrying out a plan: values change their types, and Casts are put where two of them meet."""

from __future__ import annotations

import onnx_ir as ir

from onnxlathe import Model
from onnxlathe.infer import forget_contents
from onnxlathe.precision import FLOAT32, type_name
from onnxlathe.rewrite import Context, drop_initializer, is_constant, remove_unused, replace_value
from onnxlathe_passes.precision_plan import Plan
from onnxlathe_passes.precision_rules import TRACKED
from onnxlathe_passes.precision_weights import Weights, converted
from onnxlathe_passes.weights import tensor_of


class Applier:
    """Changes a model as a plan says.

    Attributes:
        casts: the Casts that were made.
        lowered: nodes that compute in another type than before.
        absorbed: Casts of the model that were made superfluous.
    """

    def __init__(self, model: Model, plan: Plan, weights: Weights, context: Context) -> None:
        self.model, self.plan, self.weights, self.context = model, plan, weights, context
        self.casts: list[ir.Node] = []
        self.lowered: list[ir.Node] = []
        self.absorbed = 0
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._idle: dict[ir.Value, None] = {}

    def run(self) -> None:
        """Apply the plan."""
        plan = self.plan
        before = {value: value.dtype for value in plan.gives}
        for value, unit in plan.gives.items():
            if value.dtype != unit.type:
                value.type = ir.TensorType(unit.type)
                forget_contents(value)
        for node, unit in plan.units.items():
            self._attributes(node, unit.type, before)
        for (node, index), unit in plan.reads.items():
            operand = node.inputs[index]
            assert operand is not None
            found = self._in_type(operand, unit.type, plan.limits.get((node, index)))
            if found is not operand:
                node.replace_input_with(index, found)
        self._bypass()
        for (graph, index), unit in plan.ends.items():
            self._end(graph, index, unit.type)
        self._clean()

    def _attributes(
        self, node: ir.Node, dtype: ir.DataType, before: dict[ir.Value, ir.DataType | None]
    ) -> None:
        changed = any(before.get(v) not in (None, v.dtype) for v in node.outputs)
        changed |= not any(v in before for v in node.outputs) and dtype != FLOAT32
        if not changed:
            return
        self.lowered.append(node)
        if node.domain != "":
            return
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", int(dtype))
        elif node.op_type == "ConstantOfShape":
            held = node.attributes.get("value")
            tensor = held.as_tensor() if held is not None else None
            if tensor is not None:
                node.attributes["value"] = ir.AttrTensor("value", converted(tensor, dtype))

    # --- Values in a type --------------------------------------------------------------------------------------

    def _in_type(self, value: ir.Value, dtype: ir.DataType, limit: float | None) -> ir.Value:
        root = self.plan.root(value)
        if root is not value:
            self._idle[value] = None
        if is_constant(root):
            if root.dtype == dtype:
                return root
            self._idle[root] = None
            return self.weights.get(root, tensor_of(root), dtype, limit if dtype != FLOAT32 else None)
        if root.dtype == dtype:
            return root
        made = self._casts.get((root, dtype))
        if made is None:
            made = self._casts[root, dtype] = self._cast(root, dtype)
        return made

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        name = f"{value.name}/to_{type_name(dtype)}"
        node = ir.node("Cast", [value], {"to": int(dtype)}, name=self.context.names.node(name))
        result = node.outputs[0]
        result.name = self.context.names.value(name)
        result.type, result.shape = ir.TensorType(dtype), value.shape
        producer = value.producer()
        graph = producer.graph if producer is not None else value.graph
        assert graph is not None
        if producer is not None:
            graph.insert_after(producer, node)
        else:
            first = next(iter(graph), None)
            if first is None:
                graph.append(node)
            else:
                graph.insert_before(first, node)
        self.casts.append(node)
        self.context.record("precision", [producer] if producer is not None else [], [node])
        return result

    def _bypass(self) -> None:
        """Uses of Casts that are made anew, by operators that take any type."""
        for value in self.plan.skipped:
            for user, index in list(value.uses()):
                if user.outputs and user.outputs[0] in self.plan.skipped:
                    continue
                root = self.plan.root(value)
                user.replace_input_with(index, root)
            self._idle[value] = None

    def _end(self, graph: ir.Graph, index: int, dtype: ir.DataType) -> None:
        old = graph.outputs[index]
        new = self._in_type(old, dtype, None)
        if new is old:
            return
        if graph is self.model.graph:
            # The model's output keeps its name; what it was made from gets another.
            root_name, old.name = old.name, None
            old.name = self.context.names.value(f"{root_name}_{type_name(old.dtype or FLOAT32)}")
            new.name = root_name
        graph.outputs[index] = new

    def _clean(self) -> None:
        for value in reversed(self._idle):
            producer = value.producer()
            if producer is not None and producer.graph is not None:
                was_cast = producer.op_type == "Cast"
                gone, _ = remove_unused([producer])
                self.absorbed += was_cast and bool(gone)
            elif value.is_initializer() and not value.uses() and not value.is_graph_output():
                drop_initializer(value)
        for node in list(self.model.nodes()):
            if node.op_type == "Cast" and node.domain == "" and node.outputs[0].dtype in TRACKED:
                source = node.inputs[0]
                if source is not None and source.dtype == node.attributes["to"].as_int():
                    replace_value(node.outputs[0], source, self.context.names)
                    self.absorbed += bool(remove_unused([node])[0])
