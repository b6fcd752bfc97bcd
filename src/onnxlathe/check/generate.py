"""Instances of a rule's own pattern, and random graphs of the operators that a pass is about."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.check.operators import ARITY, OPERATORS, build
from onnxlathe.check.sketch import FLOATS, INTEGERS, Impossible, Sketch, Slot, Want, schema_of
from onnxlathe.check.templates import templates
from onnxlathe.rewrite import NodeRule, Pass, Rule, RuleSet
from onnxlathe.rewrite.pattern import COMMUTATIVE, AnyOf, AttrVar, NodePattern, Output, Pattern, Scalar, Var

OPSETS = (18, 17, 13, 20, 21, 22, 23, 24, 15, 11, 9)
"""Versions of the operator set to draw from, the simplest first; those that ONNX Runtime knows."""

_DEPTH = 3
_UNARY = ("Relu", "Neg", "Abs", "Identity", "Tanh", "Sigmoid")


@dataclass
class Instance:
    """A drawn model.

    Attributes:
        sketch: what it was drawn with; makes inputs for it.
        outputs: outputs of the model.
    """

    sketch: Sketch
    outputs: list[ir.Value]


def instance(draw: Callable[[Any], Any], subject: Pass, partners: Sequence[str] = ()) -> Instance:
    """One model for `subject` to work on.

    Args:
        draw: hypothesis' draw function.
        subject: the pass. Of a `Rule`, an instance of its pattern; of any other pass, an instance of an
            expression in its documentation, or a graph of the operators that it visits or its source names.
        partners: further operators for such a graph.

    Raises:
        Impossible: this draw leads to no valid model.
    """
    opsets = [o for o in OPSETS if o >= subject.min_opset] or [subject.min_opset]
    s = Sketch(draw, opset=0)
    s.opset = s.pick(*opsets)
    s.symbolic = s.chance(3)
    kinds = (*FLOATS, *INTEGERS) if s.chance(2) else FLOATS[:1]
    s.dtype = s.pick(*kinds)
    if isinstance(subject, RuleSet):
        subject = s.pick(*subject.steps)
    if isinstance(subject, Rule):
        outputs = _Instantiation(s).root(subject)
    else:
        found = templates(type(subject), _USABLE)
        if found and s.chance(2):
            outputs = _Instantiation(s).expression(s.pick(*found))
        else:
            outputs = _Soup(s, subject, partners).root()
    # A rule that looks around by itself is the one to overlook another use.
    return Instance(s, _surroundings(s, outputs, 3 if isinstance(subject, Rule) else 2))


def _surroundings(s: Sketch, results: list[ir.Value], one_in: int) -> list[ir.Value]:
    """What uses the results, and (once in so many draws) what else uses what lies in between."""
    outputs = []
    for value in results:
        if s.chance(3) and isinstance(value.type, ir.TensorType):
            value = s.node("Identity" if s.chance(2) else "Neg", [value]).outputs[0]
        outputs.append(value)
    inner = [v for node in s.nodes for v in node.outputs if v.uses() and node.op_type != "Constant"]
    if inner and s.chance(one_in):
        # Something else needs a value in the middle.
        value = s.pick(*inner)
        if isinstance(value.type, ir.TensorType):
            outputs.append(value if s.chance(2) else s.node("Identity", [value]).outputs[0])
    return [v for v in outputs if isinstance(v.type, ir.TensorType)]


@dataclass
class _Instantiation:
    """Builds what a pattern describes."""

    s: Sketch
    bound: dict[str, Any] = field(default_factory=dict)
    made: dict[int, ir.Node] = field(default_factory=dict)

    def root(self, rule: Rule) -> list[ir.Value]:
        built = rule._built
        if isinstance(built, (tuple, list)):
            first = built[0]
            if not isinstance(first, Output):
                raise Impossible
            return list(self.node(first.node, Want()).outputs)
        return self.expression(built)

    def expression(self, pattern: Pattern) -> list[ir.Value]:
        value = self.value(pattern, Want())
        producer = value.producer() if value is not None else None
        if producer is None:
            raise Impossible
        return list(producer.outputs)

    def value(self, pattern: Pattern | None, want: Want) -> ir.Value | None:
        s = self.s
        if pattern is None:
            return None
        if isinstance(pattern, Var):
            return self.variable(pattern, want)
        if isinstance(pattern, Scalar):
            return self.scalar(pattern, want)
        if isinstance(pattern, AnyOf):
            index = s.pick(*range(len(pattern.options)))
            return self.value(pattern.options[index], want)
        if isinstance(pattern, Output):
            if want.absent:
                raise Impossible
            return self.node(pattern.node, want).outputs[pattern.index]
        raise Impossible

    def variable(self, pattern: Var, want: Want) -> ir.Value | None:
        s = self.s
        if pattern.name in self.bound:
            found: ir.Value | None = self.bound[pattern.name]
            return found
        value: ir.Value | None
        if want.absent:
            if not pattern.optional:
                raise Impossible
            value = None
        else:
            value = s.leaf(want, constant=pattern.constant or s.chance(5))
            if not pattern.constant and want.array is None and want.dtype != ir.DataType.BOOL and s.chance(5):
                value = s.node(s.pick("Identity", "Neg", "Abs"), [value]).outputs[0]
        self.bound[pattern.name] = value
        return value

    def scalar(self, pattern: Scalar, want: Want) -> ir.Value:
        s = self.s
        dtype = want.dtype or s.dtype
        if not dtype.is_floating_point() and pattern.value != int(pattern.value):
            raise Impossible
        rank = len(want.shape) if want.shape is not None else 0
        shape = s.pick((), (1,), (1,) * rank)
        return s.constant(np.full(shape, pattern.value).astype(dtype.numpy()))

    def node(self, pattern: NodePattern, want: Want) -> ir.Node:
        if id(pattern) in self.made:
            return self.made[id(pattern)]
        s = self.s
        order = list(range(len(pattern.inputs)))
        if pattern.op_type in COMMUTATIVE and pattern.domain == "" and len(order) == 2 and s.chance(2):
            order.reverse()
        attributes = {}
        for name, wanted in pattern.attributes.items():
            if isinstance(wanted, AttrVar):
                if wanted.name in self.bound:
                    attributes[name] = self.bound[wanted.name]
            else:
                attributes[name] = wanted
        node, settled = build(
            s,
            pattern.op_type,
            [self.slot(pattern.inputs[i]) for i in order],
            attributes,
            want,
            pattern.domain,
            pattern.num_outputs,
        )
        for name, wanted in pattern.attributes.items():
            if isinstance(wanted, AttrVar):
                value = settled.get(name)
                self.bound.setdefault(wanted.name, tuple(value) if isinstance(value, list) else value)
        if pattern.name:
            self.bound[pattern.name] = node
        self.made[id(pattern)] = node
        return node

    def slot(self, pattern: Pattern | None) -> Slot:
        weak = (
            pattern is None or isinstance(pattern, Scalar) or (isinstance(pattern, Var) and pattern.constant)
        )
        return Slot(
            lambda want: self.value(pattern, want),
            weak=weak,
            can_be_absent=pattern is None or (isinstance(pattern, Var) and pattern.optional),
        )


@dataclass
class _Soup:
    """A random graph that ends in an operator that the pass visits."""

    s: Sketch
    subject: Pass
    partners: Sequence[str]
    words: list[str] = field(default_factory=list)
    roots: list[str] = field(default_factory=list)
    chain: bool = False

    def root(self) -> list[ir.Value]:
        s = self.s
        words = [*vocabulary(type(self.subject)), *self.partners]
        self.words = [w for w in words if schema_of(w, s.opset) is not None] or list(_UNARY)
        # A chain of operators with constants, or anything.
        self.chain = s.chance(2)
        if self.chain and s.chance(2):
            s.memory["partner", True] = s.memory["partner", False] = "scalar"
        if isinstance(self.subject, NodeRule):
            visited = (v.rpartition("::") for v in self.subject.visits)
            self.roots = [o for d, _, o in visited if not d and schema_of(o, s.opset) is not None]
            if not self.roots:
                raise Impossible
            return list(self.node(s.pick(*self.roots), Want(), 1).outputs)
        self.words = [*self.words, "Add", "Mul", *_UNARY]
        outputs = [
            v for _ in range(s.pick(1, 2, 3)) for v in self.node(s.pick(*self.words), Want(), 1).outputs
        ]
        return self.clutter(outputs)

    def clutter(self, outputs: list[ir.Value]) -> list[ir.Value]:
        """What passes over whole models look for: twins, and what nothing needs."""
        s = self.s
        if s.chance(3):
            node = s.pick(*s.nodes)
            twin = s.node(node.op_type, node.inputs, dict(node.attributes), outputs=len(node.outputs))
            outputs = [*outputs, *twin.outputs]
        if s.chance(3) and s.initializers:
            old = s.pick(*s.initializers)
            assert old.const_value is not None
            outputs = [*outputs, s.node("Identity", [s.constant(old.const_value.numpy())]).outputs[0]]
        if s.chance(3) and len(outputs) > 1:
            outputs = outputs[1:]
        return outputs

    def node(self, op_type: str, want: Want, depth: int) -> ir.Node:
        s = self.s
        schema = schema_of(op_type, s.opset)
        if op_type in ARITY:
            options = [n for n in ARITY[op_type] if schema.min_input <= n <= schema.max_input]
            count = s.pick(*(options or [schema.min_input]))
        else:
            count = max(schema.min_input, min(schema.max_input, len(schema.inputs)))
        outputs = s.pick(2, 1, 3) if op_type == "Split" else 1
        slots = [
            Slot(functools.partial(self.operand, depth=depth, index=i), can_be_absent=i >= schema.min_input)
            for i in range(count)
        ]
        first = slots[0]
        if op_type == "Concat" and "Split" in self.words and s.chance(4):
            return self.joined(want, depth)
        if count == 2 and s.chance(4):
            # The same operand twice.
            same: list[ir.Value | None] = []

            def again(want: Want) -> ir.Value | None:
                if not same:
                    same.append(first(want))
                return same[0]

            slots = [Slot(again), Slot(again)]
        return build(s, op_type, slots, {}, want, outputs=outputs)[0]

    def joined(self, want: Want, depth: int) -> ir.Node:
        """What was split, put together again: in order and along the same axis, or not."""
        s = self.s
        split = self.node("Split", want, depth + 1)
        parts = list(split.outputs)
        if s.chance(4):
            parts.reverse()
        axis = split.attributes["axis"].value if "axis" in split.attributes else 0
        slots = [Slot(lambda _, v=v: v) for v in parts]  # type: ignore[misc]
        return build(s, "Concat", slots, {} if s.chance(4) else {"axis": axis}, want)[0]

    def operand(self, want: Want, depth: int, index: int) -> ir.Value | None:
        s = self.s
        if want.absent:
            return None
        if want.array is not None:
            return s.leaf(want)
        kinds = ["input", "inner", "inner", "constant"] if index == 0 else ["constant", "input", "inner"]
        if self.chain:
            kinds = ["inner"] if index == 0 else ["constant"]
        kind = s.pick(*kinds, "earlier") if depth < _DEPTH else s.pick("input", "constant")
        if kind == "inner":
            words = self.roots if self.roots and s.chance(2) else self.words
            outputs = self.node(s.pick(*words), want, depth + 1).outputs
            value: ir.Value = outputs[s.pick(*range(len(outputs)))]
            if want.dtype is not None and value.dtype != want.dtype:
                raise Impossible
            return value
        if kind == "earlier":
            made = [f.value for f in s.feeds] + [v for node in s.nodes for v in node.outputs]
            earlier = [v for v in made if v.dtype == (want.dtype or s.dtype)]
            fitting = [v for v in earlier if want.shape is None or s.dims(v) == want.shape]
            if fitting:
                return s.pick(*fitting)
        return s.leaf(want, constant=kind == "constant")


@functools.cache
def vocabulary(cls: type[Pass]) -> tuple[str, ...]:
    """The operators that a pass is about: those it visits, then those its example and its source name."""
    texts = [inspect.getdoc(cls) or "", cls.example]
    module = sys.modules.get(cls.__module__)
    try:
        texts.append(inspect.getsource(module) if module is not None else inspect.getsource(cls))
    except (OSError, TypeError):
        texts.append("")
    visited = [v for v in getattr(cls, "visits", ()) if "::" not in v]
    named = [w for text in texts for w in re.findall(r"\b[A-Z][A-Za-z0-9]+\b", text)]
    return tuple(dict.fromkeys(w for w in (*visited, *named) if w in _USABLE))


_ELEMENTWISE = frozenset(
    {
        *(
            "Abs",
            "Ceil",
            "Cos",
            "Elu",
            "Erf",
            "Exp",
            "Floor",
            "Gelu",
            "HardSigmoid",
            "HardSwish",
            "LeakyRelu",
        ),
        *("Log", "Mish", "Neg", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Softplus", "Sqrt"),
        *("Swish", "Tanh", "Add", "Div", "Max", "Mean", "Min", "Mul", "Pow", "Sub", "Sum"),
        *("And", "Not", "Or", "Xor", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"),
    }
)
_USABLE = frozenset({*OPERATORS, *_ELEMENTWISE})
