"""Who computes in which type, and why: the model as units and signals.

What was said by the user counts most, then what an operator can do at all, then what is protected. Matrix
products and convolutions take the low type; everything else goes where it needs the fewest Casts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from onnxlathe import Model, UsageError, is_overridable
from onnxlathe.precision import FLOAT32, Selection, type_name
from onnxlathe.rewrite import Context, is_constant, subgraphs
from onnxlathe_passes.precision_cut import Signal, Unit
from onnxlathe_passes.precision_rules import (
    AGNOSTIC,
    HEAVY,
    LEAN_WIDE,
    TRACKED,
    angles,
    heads,
    indices,
    is_bias,
    is_kept,
    protection,
    unsupported,
)
from onnxlathe_passes.precision_weights import LARGEST, MASK, Weights
from onnxlathe_passes.weights import tensor_of

_SATURATING = frozenset({"Clip", "Min", "Max"})
_MASKED = frozenset({"Softmax", "LogSoftmax", "Attention"})
_MASK_PATH = frozenset(
    {
        "Add", "Sub", "Mul", "Where", "Cast", "Expand", "Unsqueeze", "Squeeze", "Reshape", "Transpose",
        "Slice", "Concat", "Gather", "Identity", "Tile", "Trilu", "ScatterND", "ScatterElements",
    }
)  # fmt: skip
_MASK_STEPS = 400

Place = tuple[ir.Node, int]


@dataclass
class Plan:
    """The model as units and signals.

    Attributes:
        units: by node; a node whose operands the plan does not track has none.
        all_units: these, and those of inputs and of values that control flow carries.
        signals: by the value that they stand for.
        reads: which type each operand is wanted in.
        gives: which unit decides the type of a value.
        ends: outputs of graphs that must have a unit's type: (graph, index) → unit.
        limits: operands that are cut off rather than left to overflow.
        skipped: Casts between tracked types, which are made anew where they are needed.
    """

    units: dict[ir.Node, Unit] = field(default_factory=dict)
    all_units: list[Unit] = field(default_factory=list)
    signals: dict[ir.Value, Signal] = field(default_factory=dict)
    reads: dict[Place, Unit] = field(default_factory=dict)
    gives: dict[ir.Value, Unit] = field(default_factory=dict)
    ends: dict[tuple[ir.Graph, int], Unit] = field(default_factory=dict)
    limits: dict[Place, float] = field(default_factory=dict)
    skipped: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def root(self, value: ir.Value) -> ir.Value:
        """The value that `value` is, but for Casts that are made anew."""
        while value in self.skipped:
            value = self.skipped[value]
        return value


class Planner:
    """Builds the plan of a model.

    Args:
        model: types must be known.
        low: the default type.
        selection: what the user's constraints select.
        weights: measures constants.
        context: the run; permission is asked for each node that may become lower.
        keep_io: whether inputs and outputs keep their types.
        protect: whether operators that are known to be delicate stay in float32.
    """

    def __init__(
        self,
        model: Model,
        low: ir.DataType,
        selection: Selection,
        weights: Weights,
        context: Context,
        *,
        keep_io: bool,
        protect: bool,
    ) -> None:
        self.model, self.low, self.selection = model, low, selection
        self.weights, self.context, self.keep_io, self.protect = weights, context, keep_io, protect
        self.plan = Plan()
        self.types = {FLOAT32, low, *(dtype for dtype, _ in selection.nodes.values())}
        self.types |= set(selection.tensors.values())
        self.constants: dict[ir.DataType, Unit] = {}
        self.delicate: dict[ir.Node, str] = {}
        self.opsets: dict[str, int] = dict(model.ir.opset_imports)
        self.heads = heads(model.graph)

    def build(self) -> Plan:
        """The plan, its types not chosen yet."""
        if self.protect:
            nodes = list(self.model.nodes())
            self.delicate = dict(angles(nodes)) | dict(indices(nodes))
        self._interface()
        self._graph(self.model.graph)
        self._outputs()
        return self.plan

    # --- Units ---------------------------------------------------------------------------------------------

    def unit(self, fixed: ir.DataType | None = None, lean: int = 1, reason: str = "") -> Unit:
        """A new unit."""
        made = Unit(fixed, lean, reason=reason)
        self.plan.all_units.append(made)
        return made

    def always(self, dtype: ir.DataType) -> Unit:
        """The unit of everything that has a type and keeps it."""
        if dtype not in self.constants:
            self.constants[dtype] = self.unit(dtype)
        return self.constants[dtype]

    def give(self, value: ir.Value, unit: Unit) -> None:
        """Let a unit decide the type of a value."""
        self.plan.gives[value] = unit
        self.plan.signals[value] = Signal(unit)

    def read(self, value: ir.Value, unit: Unit) -> None:
        """Let a unit decide what type it gets a value in. Constants come in any type for nothing."""
        root = self.plan.root(value)
        if is_constant(root):
            return
        signal = self.plan.signals.get(root)
        if signal is None:
            self.give(root, self.always(root.dtype or FLOAT32))
            signal = self.plan.signals[root]
        signal.consumers.append(unit)

    def _interface(self) -> None:
        for value in self.model.graph.inputs:
            if value.dtype not in TRACKED or value.dtype is None:
                continue
            asked = self.selection.tensors.get(value.name or "")
            if is_overridable(value):
                unit = self.always(value.dtype)
            elif asked is not None:
                unit = self.unit(asked)
            elif self.keep_io or value.dtype != FLOAT32:
                unit = self.always(value.dtype)
            else:
                unit = self.unit()
            self.give(value, unit)

    def _outputs(self) -> None:
        for index, value in enumerate(self.model.graph.outputs):
            if value.dtype not in TRACKED or value.dtype is None or value.producer() is None:
                continue
            asked = self.selection.tensors.get(value.name or "")
            if asked is not None or self.keep_io or value.dtype != FLOAT32:
                unit = self.always(asked if asked is not None else value.dtype)
                self.plan.ends[self.model.graph, index] = unit
                self.read(value, unit)

    def _graph(self, graph: ir.Graph) -> None:
        for node in graph:
            if node.domain == "" and node.op_type == "Cast":
                self._cast(node)
            elif node.domain == "" and node.op_type in ("Constant", *AGNOSTIC):
                continue
            elif subgraphs(node):
                self._control(node)
            else:
                self._node(node)

    # --- Nodes ---------------------------------------------------------------------------------------------

    def _node(self, node: ir.Node) -> None:
        reads = [(i, v) for i, v in enumerate(node.inputs) if v is not None and v.dtype in TRACKED]
        gives = [(i, v) for i, v in enumerate(node.outputs) if v.dtype in TRACKED]
        typed = [v for i, v in reads if not is_kept(node, i, False)]
        typed += [v for i, v in gives if not is_kept(node, i, True)]
        if not typed:
            for index, value in reads:
                assert value.dtype is not None
                self._read_as(node, index, value, self.always(value.dtype))
            for _, value in gives:
                assert value.dtype is not None
                self.give(value, self.always(value.dtype))
            return
        unit = self._unit_of(node, typed[0].dtype or FLOAT32)
        self.plan.units[node] = unit
        for index, value in reads:
            assert value.dtype is not None
            kept = is_kept(node, index, False)
            self._read_as(node, index, value, self.always(value.dtype) if kept else unit)
        for index, value in gives:
            assert value.dtype is not None
            self.give(value, self.always(value.dtype) if is_kept(node, index, True) else unit)

    def _read_as(self, node: ir.Node, index: int, value: ir.Value, unit: Unit) -> None:
        self.plan.reads[node, index] = unit
        self.read(value, unit)

    def _unit_of(self, node: ir.Node, own: ir.DataType) -> Unit:
        """The unit of a node, fixed where there is no choice, with the reason."""
        opset = self.opsets.get(node.domain, 1)
        asked = self.selection.nodes.get(node)
        wide = node.op_type in LEAN_WIDE and node.domain == ""
        unit = self.unit(lean=-1 if wide else 1)
        target = asked[0] if asked is not None else self.low
        cannot = "" if target in (FLOAT32, own) else unsupported(node, opset, target)
        lossy = self._constants(node) if target != FLOAT32 and own == FLOAT32 and not cannot else ""
        if cannot:
            if asked is not None and asked[1].selector[0] in ("node", "operator", "output"):
                raise UsageError(
                    f"constraint '{asked[1]}' asks node '{node.name}' for {type_name(target)}: {cannot}",
                    hint="leave it in float32",
                )
            unit.fix(own, cannot)
        elif asked is not None:
            unit.fix(asked[0], asked[1].reason or f"asked for by '{asked[1]}'")
            if lossy and asked[0] != FLOAT32:
                self.context.note(f"node '{node.name}' is lowered although {lossy}")
        elif own != FLOAT32:
            unit.fix(own, "the model says so")
        elif self.protect and (why := self.delicate.get(node) or protection(node, opset) or lossy):
            unit.fix(FLOAT32, why)
        elif node.domain == "" and node.op_type in HEAVY:
            if node in self.heads:
                unit.reluctant = True
            else:
                unit.fix(self.low, "")
        if own == FLOAT32 and node.name in self.context.spared:
            unit.fix(FLOAT32, "in a lower type the outputs are wrong")
        if unit.fixed != FLOAT32 and own == FLOAT32 and not self.context.permit("precision"):
            unit.fix(FLOAT32, "left out")
        if unit.fixed == FLOAT32:
            for index in range(len(node.inputs)):
                self.plan.limits.pop((node, index), None)
        return unit

    def _constants(self, node: ir.Node) -> str:
        """Why constants of the node speak against float16; remembers which may be cut off instead."""
        for index, value in enumerate(node.inputs):
            if (
                value is None
                or value.dtype != FLOAT32
                or not is_constant(value)
                or is_kept(node, index, False)
            ):
                continue
            loss = self.weights.loss(tensor_of(value), self.low)
            if loss.overflows:
                if node.op_type in _SATURATING:
                    self.plan.limits[node, index] = LARGEST
                elif self._is_mask(node):
                    self.plan.limits[node, index] = MASK
                else:
                    return f"constant '{value.name}' reaches {loss.largest:.3g}, beyond float16's 65504"
            elif loss.underflow and not (loss.size > 1 and is_bias(node, index)):
                return f"constant '{value.name}': {loss.underflow}"
        return ""

    def _is_mask(self, node: ir.Node) -> bool:
        """Whether everything that the node's result is used for ends in a Softmax."""
        front, seen = [node], {node}
        reached = False
        while front and len(seen) < _MASK_STEPS:
            for value in front.pop().outputs:
                if value.is_graph_output():
                    return False
                for user, _ in value.uses():
                    if user.op_type in _MASKED:
                        reached = True
                    elif user in seen or user.op_type in AGNOSTIC:
                        continue
                    elif user.op_type in _MASK_PATH:
                        seen.add(user)
                        front.append(user)
                    else:
                        return False
        return reached and not front

    def _cast(self, node: ir.Node) -> None:
        source, result = node.inputs[0], node.outputs[0]
        if source is None:
            return
        to = ir.DataType(node.attributes["to"].as_int())
        if to not in TRACKED:
            return  # it takes its operand in whatever type there is
        if (
            source.dtype in self.types
            and to in self.types
            and not result.is_graph_output()
            and not is_constant(source)
        ):
            self.plan.skipped[result] = source
            return
        if source.dtype in TRACKED:
            self.give(result, self.always(to))
            return
        # From an integer: straight to the type that is wanted.
        unit = self.unit(None if to == FLOAT32 else to)
        asked = self.selection.nodes.get(node)
        if asked is not None:
            unit.fix(asked[0], asked[1].reason or f"asked for by '{asked[1]}'")
        elif self.delicate.get(node):
            unit.fix(FLOAT32, self.delicate[node])
        self.plan.units[node] = unit
        self.give(result, unit)

    # --- Control flow --------------------------------------------------------------------------------------

    def _control(self, node: ir.Node) -> None:
        """What a node with subgraphs carries in and out has one type on both sides."""
        bodies = list(subgraphs(node))
        ties: list[tuple[list[int], list[ir.Value], list[tuple[ir.Graph, int]]]] = []
        if node.domain == "" and node.op_type == "If":
            ties = [([], [v], [(b, k) for b in bodies]) for k, v in enumerate(node.outputs)]
        elif node.domain == "" and node.op_type == "Loop":
            (body,) = bodies
            states = len(node.inputs) - 2
            ties = [([2 + k], [body.inputs[2 + k], node.outputs[k]], [(body, 1 + k)]) for k in range(states)]
            ties += [([], [node.outputs[k]], [(body, 1 + k)]) for k in range(states, len(node.outputs))]
        elif node.domain == "" and node.op_type == "Scan" and self.opsets.get("", 1) >= 9:
            (body,) = bodies
            states = len(node.inputs) - node.attributes["num_scan_inputs"].as_int()
            ties = [([k], [body.inputs[k], node.outputs[k]], [(body, k)]) for k in range(states)]
            ties += [([k], [body.inputs[k]], []) for k in range(states, len(node.inputs))]
            ties += [([], [node.outputs[k]], [(body, k)]) for k in range(states, len(node.outputs))]
        tied: set[ir.Value] = set()
        reads: dict[int, Unit] = {}
        ends: dict[tuple[ir.Graph, int], Unit] = {}
        for inputs, made, results in ties:
            dtype = made[0].dtype if made else None
            if (
                dtype not in TRACKED
                or dtype is None
                or any(not isinstance(v.type, ir.TensorType) for v in made)
            ):
                continue
            unit = self.unit(None if dtype == FLOAT32 else dtype)
            for value in made:
                value.type = value.type or ir.TensorType(dtype)
                tied.add(value)
                self.give(value, unit)
            reads.update(dict.fromkeys(inputs, unit))
            ends.update(dict.fromkeys(results, unit))
        for index, operand in enumerate(node.inputs):
            if operand is not None and operand.dtype in TRACKED:
                unit = reads.get(index) or self.always(operand.dtype or FLOAT32)
                self._read_as(node, index, operand, unit)
        for value in (*node.outputs, *(v for b in bodies for v in b.inputs)):
            if value.dtype in TRACKED and value not in tied:
                self.give(value, self.always(value.dtype or FLOAT32))
        for body in bodies:
            self._graph(body)
            for index, value in enumerate(body.outputs):
                if value.dtype in TRACKED:
                    unit = ends.get((body, index)) or self.always(value.dtype or FLOAT32)
                    self.plan.ends[body, index] = unit
                    self.read(value, unit)
