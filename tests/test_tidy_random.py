"""Random chains of what `tidy` works on compute the same afterwards, at two sizes and in nested graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from helpers import assert_same, optimized

CAREFUL = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
N = -7  # the first dimension of the input, whatever it is


class Chain:
    """A chain of nodes on `x: float[n, 4, 6]`, its shape tracked; now and then a value is used twice."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.nodes: list[onnx.NodeProto] = []
        self.value = "x"
        self.shape = [N, 4, 6]
        self.extra: list[str] = []

    def pick(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def constant(self, array: Any, dtype: Any = np.int64) -> str:
        name = f"c{len(self.nodes)}"
        tensor = numpy_helper.from_array(np.asarray(array, dtype), name)
        self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        return name

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> None:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], **attributes))
        self.value = name
        if self.draw(st.integers(0, 5)) == 0:
            self.extra.append(name)

    # Views.

    def transpose(self) -> None:
        perm = self.draw(st.permutations(range(len(self.shape))))
        self.shape = [self.shape[axis] for axis in perm]
        self.op("Transpose", self.value, perm=perm)

    def unsqueeze(self) -> None:
        axes = self.draw(st.sets(st.integers(0, len(self.shape)), min_size=1, max_size=2))
        if len(self.shape) + len(axes) > 6:
            return
        total = len(self.shape) + len(axes)
        rest = iter(self.shape)
        self.shape = [1 if axis in axes else next(rest) for axis in range(total)]
        signed = [axis - total if self.draw(st.booleans()) else axis for axis in axes]
        self.op("Unsqueeze", self.value, self.constant(signed))

    def squeeze(self) -> None:
        units = [axis for axis, size in enumerate(self.shape) if size == 1]
        if not units:
            return
        axes = self.draw(st.sets(st.sampled_from(units), min_size=1))
        self.op("Squeeze", self.value, self.constant(sorted(axes)))
        self.shape = [size for axis, size in enumerate(self.shape) if axis not in axes]

    def reshape(self) -> None:
        """Keep what comes before the dynamic dimension, and do what may be done to the rest."""
        where = self.shape.index(N)
        rest = int(np.prod([size for size in self.shape if size != N]))
        target = self.pick([N, rest], [rest, N], [N, 4, rest // 4], [N, rest // 6, 6], [2, N, rest // 2])
        spelled = [-1 if size == N else size for size in target]
        if where < len(target) and target[where] == N and self.draw(st.booleans()):
            spelled[where] = 0
        self.op("Reshape", self.value, self.constant(spelled))
        self.shape = list(target)

    def flatten(self) -> None:
        if self.shape[0] != N:
            return
        self.op("Flatten", self.value, axis=1)
        self.shape = [N, int(np.prod(self.shape[1:]))]

    # Elements.

    def unary(self) -> None:
        self.op(self.pick("Relu", "Neg", "Abs", "Identity", "Floor", "Tanh", "Sign", "Round"), self.value)

    def clip(self) -> None:
        low = self.constant(self.pick(-1.0, 0.0, 0.5), np.float32) if self.draw(st.booleans()) else ""
        high = self.constant(self.pick(-0.5, 0.75, 2.0), np.float32) if self.draw(st.booleans()) else ""
        self.op("Clip", self.value, low, high)

    def bound(self) -> None:
        number = self.constant(self.pick(-1.0, 0.0, 0.75), np.float32)
        self.op(self.pick("Min", "Max"), *self.pick([self.value, number], [number, self.value]))

    def arithmetic(self) -> None:
        last = self.shape[-1]
        sizes: list[Any] = [(), (1,)] if last == N else [(), (1,), (last,)]
        values = np.random.default_rng(self.draw(st.integers(0, 9))).uniform(0.5, 2, self.pick(*sizes))
        if self.draw(st.booleans()):
            values = np.full_like(values, self.pick(0.0, 1.0))
        op_type = self.pick("Add", "Sub", "Mul", "Div")
        if op_type == "Div":
            values = np.where(values == 0, 1, values)
        number = self.constant(values, np.float32)
        swap = op_type in ("Add", "Mul") and self.draw(st.booleans())
        self.op(op_type, *([number, self.value] if swap else [self.value, number]))

    def cast(self) -> None:
        self.op("Cast", self.value, to=self.pick(TensorProto.FLOAT, TensorProto.DOUBLE))
        self.op("Cast", self.value, to=self.pick(TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT32))
        self.op("Cast", self.value, to=TensorProto.FLOAT)

    # Parts.

    def slice(self) -> None:
        axes = [axis for axis, size in enumerate(self.shape) if size not in (N, 1)]
        if not axes:
            return
        axis = self.pick(*axes)
        size = self.shape[axis]
        start, end = self.pick(0, 1, -size, -2), self.pick(size, size - 1, -1, 2**62)
        step = self.pick(1, 1, 1, 2, -1)
        if step < 0:
            start, end = self.pick(-1, size - 2), self.pick(0, -(2**62))
        kept = len(range(size)[start:end:step])
        if not kept or (kept * int(np.prod([s for s in self.shape if s != N]))) // size % 24:
            return  # later Reshapes want to divide what is left
        inputs = [[start], [end], [axis - len(self.shape) if self.draw(st.booleans()) else axis]]
        if step != 1 or self.draw(st.booleans()):
            inputs.append([step])
        names = [self.constant(numbers) for numbers in inputs]
        self.op("Slice", self.value, *names)
        self.shape[axis] = kept

    def split(self) -> None:
        axes = [axis for axis, size in enumerate(self.shape) if size != N and size % 2 == 0]
        if not axes:
            return
        axis, name = self.pick(*axes), f"s{len(self.nodes)}"
        self.nodes.append(helper.make_node("Split", [self.value], [name, f"{name}b"], axis=axis))
        order = self.pick([name, f"{name}b"], [f"{name}b", name], [name, name])
        self.op("Concat", *order, axis=self.pick(axis, axis - len(self.shape)))

    def pad(self) -> None:
        axes = [axis for axis, size in enumerate(self.shape) if size == 6]
        if not axes:
            return
        pads = [0] * (2 * len(self.shape))
        axis = self.pick(*axes)
        pads[axis], pads[axis + len(self.shape)] = self.pick((0, 0), (3, 3), (6, 0))
        self.shape[axis] += pads[axis] + pads[axis + len(self.shape)]
        self.op("Pad", self.value, self.constant(pads), mode=self.pick("constant", "edge"))

    def reduce(self) -> None:
        axis = self.draw(st.integers(0, len(self.shape) - 1))
        if self.shape[axis] == N or len(self.shape) < 3 or self.shape[axis] != 1:
            return
        keep = self.draw(st.booleans())
        self.op(self.pick("ReduceMean", "ReduceMax"), self.value, axes=[axis], keepdims=int(keep))
        if not keep:
            del self.shape[axis]


FAMILIES = {
    "views": ("transpose", "unsqueeze", "squeeze", "reshape", "flatten", "reduce", "unary"),
    "elements": ("unary", "clip", "bound", "arithmetic", "cast", "transpose"),
    "parts": ("slice", "split", "pad", "reshape", "arithmetic", "unsqueeze", "squeeze"),
}


@st.composite
def chains(draw: Any) -> Chain:
    chain = Chain(draw)
    family = draw(st.sampled_from(sorted(FAMILIES)))
    for _ in range(draw(st.integers(2, 8))):
        getattr(chain, draw(st.sampled_from(FAMILIES[family])))()
    if not chain.nodes:
        chain.op("Identity", "x")
    return chain


def info(name: str, shape: Any = None, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(nodes: list[onnx.NodeProto], outputs: list[str], functions: Any = ()) -> onnx.ModelProto:
    inputs = [info("x", ["n", 4, 6]), info("go", [], TensorProto.BOOL)]
    graph = helper.make_graph(nodes, "g", inputs, [info(name) for name in outputs])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=8)


def placed(chain: Chain, where: str) -> onnx.ModelProto:
    """A model with the chain as its graph, or in a branch, a loop's body or a function."""
    outputs = list(dict.fromkeys([*chain.extra, chain.value]))
    types = {n.output[0]: TensorProto.FLOAT for n in chain.nodes}
    for node in chain.nodes:
        if node.op_type == "Cast":
            types[node.output[0]] = node.attribute[0].i
    if where == "main":
        proto = model(chain.nodes, outputs)
        for output in proto.graph.output:
            output.type.tensor_type.elem_type = types[output.name]
        return proto
    if where == "function":
        outer = [f"o_{name}" for name in outputs]
        call = helper.make_node("f", ["x"], outer, domain="local")
        body = helper.make_function(
            "local", "f", ["x"], outputs, chain.nodes, [helper.make_opsetid("", 17)], []
        )
        proto = model([call], outer, [body])
        for output, name in zip(proto.graph.output, outputs, strict=True):
            output.type.tensor_type.elem_type = types[name]
        return proto
    final = [info(chain.value, None, types[chain.value])]
    if where == "branch":
        body = helper.make_graph(chain.nodes, "then", [], final)
        shape = numpy_helper.from_array(np.ones(len(chain.shape), np.int64), "shape")
        ones = helper.make_node("ConstantOfShape", ["shape"], ["z"])
        other = helper.make_graph([ones], "else", [], [info("z")], [shape])
        nodes = [helper.make_node("If", ["go"], ["y"], then_branch=body, else_branch=other)]
        return model(nodes, ["y"])
    inputs = [info("i", [], TensorProto.INT64), info("on", [], TensorProto.BOOL)]
    nodes = [*chain.nodes, helper.make_node("Identity", ["on"], ["still"])]
    body = helper.make_graph(nodes, "body", inputs, [info("still", [], TensorProto.BOOL), *final])
    count = helper.make_node("Constant", [], ["count"], value_int=2)
    loop = helper.make_node("Loop", ["count", ""], ["y"], body=body)
    return model([count, loop], ["y"])


def feeds(n: int) -> dict[str, Any]:
    x = np.random.default_rng(n).uniform(-3, 3, (n, 4, 6)).astype(np.float32)
    return {"x": x, "go": np.array(True)}


@given(chains(), st.sampled_from(["main", "branch", "loop", "function"]))
@CAREFUL
def test_random_chains(chain: Chain, where: str) -> None:
    if where in ("branch",) and chain.value in {
        n.output[0] for n in chain.nodes if n.op_type == "Cast" and n.attribute[0].i != TensorProto.FLOAT
    }:
        return
    before = placed(chain, where)
    after = optimized(before, "tidy")
    assert len(after.graph.node) <= len(before.graph.node) + len(before.graph.output)
    assert_same(before, after, feeds(1), feeds(3))
    again = optimized(after, "tidy")
    assert_same(before, again, feeds(2))


TYPES = ["FLOAT", "DOUBLE", "FLOAT16", "INT8", "UINT8", "INT16", "INT32", "UINT32", "INT64", "BOOL"]


@given(st.lists(st.sampled_from(TYPES), min_size=2, max_size=5), st.sampled_from(TYPES))
@CAREFUL
def test_random_casts(types: list[str], start: str) -> None:
    nodes = []
    value = "x"
    for index, name in enumerate(types):
        nodes.append(helper.make_node("Cast", [value], [f"v{index}"], to=TensorProto.DataType.Value(name)))
        value = f"v{index}"
    dtype = TensorProto.DataType.Value(start)
    output = info(value, None, TensorProto.DataType.Value(types[-1]))
    graph = helper.make_graph(nodes, "g", [info("x", ["n"], dtype)], [output])
    before = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    # Within the range of every type: what is outside of it is not defined for casts from floats.
    numbers = np.array([0, 1, 2, 3.5, 7.25, 100, 127, 55.125])
    x = numbers.astype(helper.tensor_dtype_to_np_dtype(dtype))
    assert_same(before, optimized(before, "tidy"), {"x": x}, {"x": x[:1]}, rtol=0, atol=0)
