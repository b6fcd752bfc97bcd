"""Loops that an exporter has unrolled: what is done to each step, with the axis of the steps kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxlathe.infer import dims_of, set_dims
from onnxlathe.model import Model
from onnxlathe.rewrite import Builder, Context, Pass, attribute, is_constant, remove_unused
from onnxlathe_passes.conditions import from_front, int64, number, numbers, operand, rank
from onnxlathe_passes.insert import graphs_with_weights, insert, substitute
from onnxlathe_passes.lanes import ELEMENTWISE
from onnxlathe_passes.regroup import split
from onnxlathe_passes.views import axes_of, squeeze, unsqueeze
from onnxlathe_passes.weights import derived, tensor_of

_FEWEST = 3
_ALONG = frozenset({"Softmax", "LogSoftmax", "Concat", "Split"})
_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})
_LARGEST = 1 << 20  # bytes of a constant that gets one more axis


class UnrolledSteps(Pass):
    """Take the steps of an unrolled loop out of their tensor by one Split, and keep their axis of size 1.

    Gathers of every position along an axis are one Split where what is computed from them can do with an axis
    more: elementwise operators, products with matrices, normalizations. Where the results are stacked the axis
    is there already.
    """

    name = "unrolled_steps"
    group = "fuse"
    min_opset = 7
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %a = Gather(%x, 0, axis=1)                     # x: [batch, 3, 64]
    %b = Add(%a, Gather(%x, 1, axis=1))
    %c = Add(%b, Gather(%x, 2, axis=1))
    %y = Concat(Unsqueeze(%a, [1]), Unsqueeze(%b, [1]), Unsqueeze(%c, [1]), axis=1)
    →
    %a, %s, %t = Split(%x, axis=1)
    %b = Add(%a, %s)
    %y = Concat(%a, %b, Add(%b, %t), axis=1)
    """

    def run(self, model: Model, context: Context) -> int:
        changes = 0
        for graph in graphs_with_weights(model):
            steps = _Steps(model.opset, {node: place for place, node in enumerate(graph)})
            steps.find()
            for group in steps.groups():
                if steps.gain(group) > 0 and context.permit(self.name):
                    _Change(steps, group, context).apply(self.name)
                    changes += 1
        return changes


@dataclass(frozen=True)
class _Family:
    """Gathers of all positions along an axis of `x`, in the order of the positions."""

    x: ir.Value
    axis: int
    gathers: tuple[ir.Node, ...]


@dataclass
class _Group:
    """Families whose steps are computed with together.

    Attributes:
        nodes: what can do with one axis more, in the order of the graph.
    """

    families: list[_Family] = field(default_factory=list)
    nodes: list[ir.Node] = field(default_factory=list)


@dataclass
class _Steps:
    """What is computed from the steps of a graph.

    Attributes:
        places: where its nodes stand.
        after: for values that can have an axis of size 1 more: how many axes follow it.
    """

    opset: int
    places: dict[ir.Node, int]
    after: dict[ir.Value, int] = field(default_factory=dict)
    families: list[_Family] = field(default_factory=list)
    nodes: list[ir.Node] = field(default_factory=list)

    def find(self) -> None:
        """Follow the steps down the graph."""
        gathers: dict[tuple[ir.Value, int], dict[int, ir.Node]] = {}
        for node in self.places:
            taken = _taken(node, self.opset)
            if taken is not None:
                x, axis, position = taken
                gathers.setdefault((x, axis), {}).setdefault(position, node)
        for (x, axis), found in gathers.items():
            dims = dims_of(x) or ()
            if len(found) >= _FEWEST and len(found) == dims[axis] and None not in dims:
                family = _Family(x, axis, tuple(found[place] for place in range(len(found))))
                self.families.append(family)
                self.after.update((node.outputs[0], len(dims) - 1 - axis) for node in family.gathers)
        if not self.families:
            return
        for node in self.places:
            count = self.follows(node)
            if count is not None:
                self.nodes.append(node)
                self.after.update(dict.fromkeys(node.outputs, count))

    def follows(self, node: ir.Node) -> int | None:
        """How many axes may follow one more axis in all results; `None` if there cannot be one more."""
        ours = [v for v in node.inputs if v is not None and v in self.after]
        if not ours:
            return None
        counts = {self.after[v] for v in ours}
        axes = {rank(v) for v in (*ours, *node.outputs)}
        if len(counts) != 1 or len(axes) != 1 or None in axes or node.domain != "":
            return None
        if any(None in (dims_of(v) or (None,)) or v.is_graph_output() for v in node.outputs):
            return None
        (count,), whole = counts, rank(ours[0]) or 0
        others = [v for v in node.inputs if v is not None and v not in self.after]
        if node.op_type in ELEMENTWISE:
            fits = all(self.beside(v, count) for v in others)
        elif node.op_type == "MatMul":
            fits = ours == [node.inputs[0]] and rank(others[0]) == 2 and count >= 1
        elif node.op_type in _ALONG:
            fits = not others or (node.op_type == "Split" and ours == [node.inputs[0]])
        elif node.op_type in _NORMS:
            axis = from_front([int(attribute(node, "axis", self.opset))], whole)
            fits = ours == [node.inputs[0]] and len(node.outputs) == 1 and axis is not None
            fits = fits and whole - (axis or [0])[0] <= count
        elif node.op_type.startswith("Reduce"):
            given = numbers(operand(node, 1)) if others else attribute(node, "axes", self.opset)
            places = from_front(given, whole) if given else None
            fits = bool(attribute(node, "keepdims", self.opset)) and ours == [node.inputs[0]]
            fits = fits and places is not None and all(whole - place <= count for place in places)
        else:
            return None
        return count if fits else None

    def beside(self, value: ir.Value, count: int) -> bool:
        """Whether another operand can get the axis as well, where it reaches that far."""
        dims = dims_of(value)
        if dims is None or None in dims:
            return False
        return len(dims) <= count or not is_constant(value) or tensor_of(value).nbytes <= _LARGEST

    def groups(self) -> Iterator[_Group]:
        """What hangs together."""
        group_of: dict[ir.Value, int] = {}
        parent = list(range(len(self.families)))

        def root(of: int) -> int:
            while parent[of] != of:
                parent[of] = of = parent[parent[of]]
            return of

        for place, family in enumerate(self.families):
            group_of.update((node.outputs[0], place) for node in family.gathers)
        for node in self.nodes:
            first, *others = {root(group_of[v]): None for v in node.inputs if v in group_of}
            for other in others:
                parent[other] = first
            group_of.update(dict.fromkeys(node.outputs, first))
        found: dict[int, _Group] = {}
        for place, family in enumerate(self.families):
            found.setdefault(root(place), _Group()).families.append(family)
        for node in self.nodes:
            found[root(group_of[node.outputs[0]])].nodes.append(node)
        yield from found.values()

    def exits(self, group: _Group) -> Iterator[tuple[ir.Value, list[ir.Node], list[ir.Node]]]:
        """Values that others need: the Unsqueezes that make the axis, and the operators that want none."""
        inside = set(group.nodes)
        values = [node.outputs[0] for family in group.families for node in family.gathers]
        for value in (*values, *(v for node in group.nodes for v in node.outputs)):
            users = [user for user in dict.fromkeys(value.consumers()) if user not in inside]
            makers = [user for user in users if self.makes_it(user, value)]
            if users:
                yield value, makers, [user for user in users if user not in makers]

    def makes_it(self, node: ir.Node, value: ir.Value) -> bool:
        """Whether an Unsqueeze puts the axis where it is kept."""
        if node.op_type != "Unsqueeze" or node.domain != "" or node.outputs[0].is_graph_output():
            return False
        return axes_of(node, self.opset) == [(rank(value) or 0) - self.after[value]]

    def outside(self, group: _Group) -> list[ir.Value]:
        """Operands of elementwise operators that are computed elsewhere and need an Unsqueeze."""
        found: dict[tuple[ir.Value, int], None] = {}
        for node in group.nodes:
            count = self.after[node.outputs[0]]
            for value in node.inputs if node.op_type in ELEMENTWISE else ():
                if value is None or value in self.after or is_constant(value):
                    continue
                if (rank(value) or 0) > count:
                    found[value, count] = None
        return [value for value, _ in found]

    def gain(self, group: _Group) -> int:
        """How many nodes fewer there are with the axis kept."""
        saved = sum(len(family.gathers) - 1 for family in group.families) - len(self.outside(group))
        for _, makers, rest in self.exits(group):
            if any(user not in self.places for user in rest):
                return 0  # another graph needs it
            saved += len(makers) - bool(rest)
        return saved


class _Change:
    """The steps of one group, being taken out with their axis."""

    def __init__(self, steps: _Steps, group: _Group, context: Context) -> None:
        self.steps = steps
        self.group = group
        self.context = context
        self.made: list[ir.Node] = []
        self.wider: dict[tuple[ir.Value, int], ir.Value] = {}

    def apply(self, rule: str) -> None:
        steps, group = self.steps, self.group
        before = [*(node for family in group.families for node in family.gathers), *group.nodes]
        exits = list(steps.exits(group))
        parts: dict[ir.Value, ir.Value] = {}
        for family in group.families:
            op = Builder(steps.opset)
            made = split(op, family.x, [1] * len(family.gathers), family.axis)
            self.enter(op, min(family.gathers, key=steps.places.__getitem__))
            parts.update((g.outputs[0], part) for g, part in zip(family.gathers, made, strict=True))
        for node in group.nodes:
            for index, value in enumerate(node.inputs):
                if value in parts:
                    node.replace_input_with(index, parts[value])
            self.widen(node, {*parts.values()})
        for value, makers, rest in exits:
            self.leave(value, parts.get(value, value), makers, rest)
            before += makers
        self.context.record(rule, before, self.made)
        remove_unused(before)

    def enter(self, op: Builder, anchor: ir.Node) -> None:
        insert(op, anchor, self.context)
        self.made += op.nodes

    def widen(self, node: ir.Node, parts: set[ir.Value]) -> None:
        """Let an operator have one axis more."""
        steps, op = self.steps, Builder(self.steps.opset)
        count, whole = steps.after[node.outputs[0]], rank(node.outputs[0]) or 0
        if node.op_type in ELEMENTWISE:
            for index, value in enumerate(node.inputs):
                if value is None or value in steps.after or value in parts or (rank(value) or 0) <= count:
                    continue
                node.replace_input_with(index, self.with_axis(op, value, count))
        elif node.op_type in (*_ALONG, *_NORMS):
            node.attributes["axis"] = ir.AttrInt64("axis", _kept(node, whole, count, steps.opset))
        elif "axes" in node.attributes:
            axes = from_front(node.attributes["axes"].as_ints(), whole) or []
            node.attributes["axes"] = ir.AttrInt64s("axes", [axis - whole for axis in axes])
        elif node.op_type.startswith("Reduce"):
            axes = from_front(numbers(node.inputs[1]) or [], whole) or []
            node.replace_input_with(1, op.constant(int64([axis - whole for axis in axes])))
        self.enter(op, node)
        for output in node.outputs:
            dims = dims_of(output) or ()
            set_dims(output, (*dims[: whole - count], 1, *dims[whole - count :]))

    def with_axis(self, op: Builder, value: ir.Value, count: int) -> ir.Value:
        """An operand from elsewhere with the axis."""
        if (value, count) not in self.wider:
            dims = dims_of(value) or ()
            place = len(dims) - count
            if is_constant(value):
                source = tensor_of(value)
                shape = [d for d in (*dims[:place], 1, *dims[place:]) if isinstance(d, int)]
                made = derived(op, value, shape, lambda: source.numpy().reshape(shape))
            else:
                made = unsqueeze(op, value, [place])
            self.wider[value, count] = made
        return self.wider[value, count]

    def leave(self, old: ir.Value, wide: ir.Value, makers: list[ir.Node], rest: list[ir.Node]) -> None:
        """Give others what they need: with the axis or without."""
        for maker in makers:
            substitute([(maker.outputs[0], wide)], self.context, rename=False)
        if not rest:
            return
        op = Builder(self.steps.opset)
        narrow = squeeze(op, wide, [(rank(wide) or 0) - 1 - self.steps.after[old]])
        self.enter(op, min(rest, key=self.steps.places.__getitem__))
        for user in rest:
            for index, value in enumerate(user.inputs):
                if value is old:
                    user.replace_input_with(index, narrow)


def _taken(node: ir.Node, opset: int) -> tuple[ir.Value, int, int] | None:
    """What a Gather of one position takes: from which value, along which axis, where."""
    if node.op_type != "Gather" or node.domain != "" or node.outputs[0].is_graph_output():
        return None
    x, index = node.inputs
    dims = dims_of(x) if x is not None else None
    position = number(index)
    axes = from_front([int(attribute(node, "axis", opset))], len(dims)) if dims is not None else None
    if x is None or dims is None or axes is None or position is None or rank(index) != 0 or is_constant(x):
        return None
    size = dims[axes[0]]
    if not isinstance(size, int) or not -size <= position < size:
        return None
    return x, axes[0], position % size


def _kept(node: ir.Node, whole: int, count: int, opset: int) -> int:
    """The attribute `axis` of an operator, for one more axis before the last `count`."""
    (axis,) = from_front([int(attribute(node, "axis", opset))], whole) or [0]
    return axis - whole if whole - axis <= count else axis
