"""Recurrences written out by hand, as unrolled steps and as bodies of loops."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import Array, assert_same, operators, optimized, parse, samples

PIPELINE = "shapes,fold,tidy,fuse(recurrence,restack),tidy"
FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
SIZES = ({"n": 1, "t": 1}, {"n": 3, "t": 4}, {"n": 2, "t": 7})
X, H = 3, 4
KINDS = {"LSTM": 4, "GRU": 3, "RNN": 1}


class Writer:
    """The text of a model, line by line, and its weights.

    Args:
        seed: of the weights.
        opset: for how Unsqueeze and Split are spelled.
    """

    def __init__(self, seed: int = 0, opset: int = 17) -> None:
        self.random = np.random.default_rng(seed)
        self.opset = opset
        self.lines: list[str] = []
        self.weights: dict[str, Array] = {}
        self.count = 0

    def weight(self, name: str, *shape: int) -> str:
        """A weight, the same one whenever it is asked for."""
        if name not in self.weights:
            self.weights[name] = (self.random.standard_normal(shape) * 0.5).astype(np.float32)
        return name

    def constant(self, array: Array) -> str:
        name = f"k{len(self.weights)}"
        self.weights[name] = array
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def new(self, call: str) -> str:
        self.count += 1
        self.lines.append(f"v{self.count} = {call}")
        return f"v{self.count}"

    def op(self, op_type: str, *operands: str) -> str:
        return self.new(f"{op_type}({', '.join(operands)})")

    def split(self, x: str, sizes: list[int], axis: int = 1) -> list[str]:
        names = [f"v{self.count + i + 1}" for i in range(len(sizes))]
        self.count += len(sizes)
        if self.opset < 13:
            self.lines.append(f"{', '.join(names)} = Split<axis={axis}, split={sizes}>({x})")
        else:
            self.lines.append(f"{', '.join(names)} = Split<axis={axis}>({x}, {self.ints(*sizes)})")
        return names

    def unsqueeze(self, x: str, axis: int) -> str:
        if self.opset < 13:
            return self.new(f"Unsqueeze<axes=[{axis}]>({x})")
        return self.new(f"Unsqueeze({x}, {self.ints(axis)})")

    def squeeze(self, x: str, axis: int) -> str:
        if self.opset < 13:
            return self.new(f"Squeeze<axes=[{axis}]>({x})")
        return self.new(f"Squeeze({x}, {self.ints(axis)})")

    def sums(self, spelling: str, x: str, h: str, gates: int, tag: str = "") -> list[str]:
        """What each gate adds up."""
        width, rows = gates * H, {"x": X, "h": H}
        if spelling == "torch":
            own = (self.weight("wh" + tag, width, H), self.weight("bh" + tag, width))
            one = self.op(
                "Gemm<transB=1>", x, self.weight("wx" + tag, width, X), self.weight("bx" + tag, width)
            )
            return self.split(self.op("Add", one, self.op("Gemm<transB=1>", h, *own)), [H] * gates)
        if spelling == "keras":
            one = self.op("MatMul", x, self.weight("wx" + tag, X, width))
            two = self.op("MatMul", h, self.weight("wh" + tag, H, width))
            both = self.op("Add", self.weight("b" + tag, width), self.op("Add", one, two))
            return self.split(both, [H] * gates)
        if spelling == "joined":
            both = self.op("Concat<axis=1>", x, h)
            made = self.op("MatMul", both, self.weight("w" + tag, X + H, width))
            made = self.op("Add", made, self.weight("b" + tag, width))
            ends = [self.ints(g * H) for g in range(gates + 1)]
            return [self.op("Slice", made, a, b, self.ints(1)) for a, b in itertools.pairwise(ends)]
        if spelling == "grouped" and gates > 1:  # an axis for the gates
            both = self.op("Concat<axis=1>", x, h)
            made = self.op("Gemm", both, self.weight("w" + tag, X + H, width), self.weight("b" + tag, width))
            made = self.op("Reshape", made, self.ints(-1, gates, H))
            return [self.op("Gather<axis=1>", made, self.constant(np.array(g))) for g in range(gates)]
        assert spelling in ("apart", "grouped")
        result = []
        for gate in range(gates):
            parts = [
                self.op("MatMul", v, self.weight(f"w{k}{gate}{tag}", rows[k], H))
                for k, v in (("x", x), ("h", h))
            ]
            made = self.op("Sub", parts[0], self.op("Neg", parts[1]))
            result.append(self.op("Add", made, self.weight(f"b{gate}{tag}", 1, H)))
        return result

    def rnn(self, spelling: str, x: str, h: str, c: str, tag: str = "", act: str = "Tanh") -> tuple[str, str]:
        (total,) = self.sums(spelling, x, h, 1, tag) if spelling != "torch" else [self.flat(x, h, tag)]
        return self.new(f"{act}({total})"), c

    def flat(self, x: str, h: str, tag: str) -> str:
        one = self.op("Gemm<transB=1>", x, self.weight("wx" + tag, H, X), self.weight("bx" + tag, H))
        return self.op("Gemm<alpha=0.5>", h, self.weight("wh" + tag, H, H), one)

    def lstm(
        self, spelling: str, x: str, h: str, c: str, tag: str = "", gate: str = "Sigmoid", act: str = "Tanh"
    ) -> tuple[str, str]:
        f, i, g, o = self.sums(spelling, x, h, 4, tag)
        f, i, o = (self.op(gate, v) for v in (f, i, o))
        c = self.op("Add", self.op("Mul", f, c), self.op("Mul", self.op(act, g), i))
        return self.op("Mul", o, self.op(act, c)), c

    def gru(
        self, spelling: str, x: str, h: str, c: str, tag: str = "", mix: int = 0, after: bool = True
    ) -> tuple[str, str]:
        z, r = (self.op("Sigmoid", v) for v in self.sums(spelling, x, h, 2, tag + "g"))
        bias = self.weight("bn" + tag, H)
        if after:
            own = self.op("Gemm", h, self.weight("un" + tag, H, H), self.weight("cn" + tag, H))
            put = self.op("Add", self.op("MatMul", x, self.weight("wn" + tag, X, H)), bias)
            total = self.op("Add", put, self.op("Mul", r, own))
        else:
            joined = self.op("Concat<axis=1>", x, self.op("Mul", h, r))
            total = self.op("Gemm", joined, self.weight("wn" + tag, X + H, H), bias)
        n = self.op("Tanh", total)
        one = self.constant(np.array(1, np.float32))
        if mix == 0:
            return self.op("Add", n, self.op("Mul", self.op("Sub", h, n), z)), c
        if mix == 1:
            return self.op("Add", self.op("Mul", z, h), self.op("Mul", self.op("Sub", one, z), n)), c
        if mix == 2:
            return self.op("Add", h, self.op("Mul", z, self.op("Sub", n, h))), c
        rest = self.op("Add", self.op("Neg", z), one)
        return self.op("Add", self.op("Mul", rest, h), self.op("Mul", z, n)), c

    def text(self, inputs: str, outputs: str) -> onnx.ModelProto:
        body = "\n".join(self.lines)
        return parse(f"g ({inputs}) => ({outputs}) {{\n{body}\n}}", self.opset, self.weights)


Cell = Callable[..., tuple[str, str]]


@st.composite
def cells(draw: st.DrawFn, writer: Writer) -> tuple[str, Cell]:
    """A kind of recurrence and what writes one step of it."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    spelling = draw(st.sampled_from(["torch", "keras", "joined", "apart", "grouped"]))
    if kind == "LSTM":
        gate, act = (
            draw(st.sampled_from(["Sigmoid", "HardSigmoid<alpha=0.3>"])),
            draw(st.sampled_from(["Tanh", "Relu"])),
        )
        return kind, lambda x, h, c, tag="": writer.lstm(spelling, x, h, c, tag, gate, act)
    if kind == "RNN":
        act = draw(st.sampled_from(["Tanh", "Relu"]))
        return kind, lambda x, h, c, tag="": writer.rnn(spelling, x, h, c, tag, act)
    mix, after = draw(st.integers(0, 3)), draw(st.booleans())
    return kind, lambda x, h, c, tag="": writer.gru(spelling, x, h, c, tag, mix, after)


def recurrent(proto: onnx.ModelProto) -> list[str]:
    return [op for op in operators(proto) if op in KINDS]


@st.composite
def unrolled(draw: st.DrawFn) -> tuple[onnx.ModelProto, str]:
    """Steps one after the other: the model and its kind."""
    writer = Writer(draw(st.integers(0, 9)), draw(st.sampled_from([11, 17])))
    kind, cell = draw(cells(writer))
    steps = draw(st.integers(3, 5))
    axis, taken = draw(st.integers(0, 1)), draw(st.sampled_from(["gather", "slice", "split"]))
    total = steps + (0 if taken == "split" else draw(st.integers(0, 2)))
    first = draw(st.integers(0, total - steps))
    backwards = draw(st.booleans())
    shape = ["n", str(X)]
    shape.insert(axis, str(total))
    pieces = []
    if taken == "split":
        pieces = [writer.squeeze(v, axis) for v in writer.split("x", [1] * total, axis)]
    xs = []
    for step in range(first, first + steps):
        if taken == "gather":
            xs.append(writer.new(f"Gather<axis={axis}>(x, {writer.constant(np.array(step))})"))
        elif taken == "slice":
            place = [writer.ints(step), writer.ints(step + 1), writer.ints(axis)]
            xs.append(writer.squeeze(writer.new(f"Slice(x, {', '.join(place)})"), axis))
        else:
            xs.append(pieces[step])
    h, c = ("h", "c") if draw(st.booleans()) else (zeros(writer), zeros(writer))
    results = []
    for x in reversed(xs) if backwards else xs:
        h, c = cell(x, h, c)
        results.append(h)
    wanted = draw(st.sampled_from(["last", "all", "some"]))
    if wanted == "all":
        out = draw(st.integers(0, 1))
        stacked = [writer.unsqueeze(v, out) for v in results]
        writer.lines.append(f"y = Concat<axis={out}>({', '.join(stacked)})")
        form = ["n", str(H)]
        form.insert(out, str(steps))
        outputs = f"float[{', '.join(form)}] y, float[n, {H}] z"
    else:
        value = results[-1] if wanted == "last" else writer.new(f"Add({results[0]}, {results[-1]})")
        writer.lines.append(f"y = Identity({value})")
        outputs = f"float[n, {H}] y, float[n, {H}] z"
    writer.lines.append(f"z = Abs({c if kind == 'LSTM' else h})")
    return (
        writer.text(f"float[{', '.join(shape)}] x, float[n, {H}] h, float[n, {H}] c", outputs),
        kind,
    )


def zeros(writer: Writer, like: str = "h") -> str:
    """A state of zeros, of the batch's size."""
    size = writer.op("Gather<axis=0>", writer.op("Shape", like), writer.ints(0))
    return writer.op("ConstantOfShape", writer.op("Concat<axis=0>", size, writer.ints(H)))


@settings(max_examples=60, deadline=None)
@given(unrolled())
def test_steps_written_out(drawn: tuple[onnx.ModelProto, str]) -> None:
    before, kind = drawn
    after = optimized(before, PIPELINE)
    assert recurrent(after) == [kind]
    assert "Sigmoid" not in operators(after)
    assert len(operators(after)) <= 12
    assert_same(before, after, *(samples(before, i, **size) for i, size in enumerate(SIZES)))
    assert_same(before, optimized(before, "default"), samples(before, n=2))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_two_layers_in_one_loop_over_time(kind: str) -> None:
    writer = Writer()
    cell = {"LSTM": writer.lstm, "GRU": writer.gru, "RNN": writer.rnn}[kind]
    one, two, results = ("h", "c"), ("h", "c"), []
    adapter = writer.weight("adapter", H, X)
    for step in range(4):
        x = writer.new(f"Gather<axis=1>(x, {writer.constant(np.array(step))})")
        one = cell("torch", x, *one, "_1")
        two = cell("keras", writer.new(f"MatMul({one[0]}, {adapter})"), *two, "_2")
        results.append(writer.unsqueeze(two[0], 1))
    writer.lines.append(f"y = Concat<axis=1>({', '.join(results)})")
    before = writer.text(f"float[n, 4, {X}] x, float[n, {H}] h, float[n, {H}] c", f"float[n, 4, {H}] y")
    after = optimized(before, PIPELINE)
    assert recurrent(after) == [kind, kind]
    assert_same(before, after, *(samples(before, i, **size) for i, size in enumerate(SIZES)))


def test_product_of_the_input_before_time_is_cut() -> None:
    """So torch.export decomposes recurrent layers."""
    writer = Writer()
    first = writer.op("Transpose<perm=[1, 0, 2]>", "x")
    turned = writer.op("Slice", first, *(writer.ints(i) for i in (-1, -(2**63), 0, -1)))
    whole = writer.op("MatMul", turned, writer.weight("w", X, 4 * H))
    whole = writer.op("Add", whole, writer.weight("b", 4 * H))
    h, c = writer.unsqueeze("h", 0), writer.unsqueeze("c", 0)
    results = []
    for part in writer.split(whole, [1] * 5, 0):
        own = writer.op("MatMul", h, writer.weight("u", H, 4 * H))
        own = writer.op("Add", own, writer.weight("d", 4 * H))
        i, f, g, o = writer.split(writer.op("Add", own, part), [H] * 4, 2)
        i, f, o = (writer.op("Sigmoid", v) for v in (i, f, o))
        c = writer.op("Add", writer.op("Mul", f, c), writer.op("Mul", i, writer.op("Tanh", g)))
        h = writer.op("Mul", o, writer.op("Tanh", c))
        results.append(h)
    writer.lines.append(f"y = Concat<axis=0>({', '.join(results)})")
    before = writer.text(f"float[n, 5, {X}] x, float[n, {H}] h, float[n, {H}] c", f"float[5, n, {H}] y")
    after = optimized(before, PIPELINE)
    assert recurrent(after) == ["LSTM"]
    assert "MatMul" not in operators(after)
    (lstm,) = (node for node in after.graph.node if node.op_type == "LSTM")
    assert onnx.helper.get_node_attr_value(lstm, "direction") == b"reverse"
    assert_same(before, after, *(samples(before, i, **size) for i, size in enumerate(SIZES)))


# --- Loops ------------------------------------------------------------------------------------------------


@st.composite
def looped(draw: st.DrawFn) -> tuple[onnx.ModelProto, str]:
    """A Loop or Scan over time whose body is a cell."""
    outer, inner = Writer(), Writer(draw(st.integers(0, 9)), draw(st.sampled_from([11, 17])))
    outer.opset, outer.weights, inner.count = inner.opset, inner.weights, 100  # bodies shadow no names
    kind, cell = draw(cells(inner))
    axis, out = draw(st.integers(0, 1)), draw(st.integers(0, 1))
    scan, backwards, counted = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    shape = ["n", str(X)]
    shape.insert(axis, "t")
    states = "float[n, 4] hi, float[n, 4] ci"
    if scan:
        h, c = cell("xi", "hi", "ci")
    else:
        place = "i"
        if counted:
            inner.lines.append("ks = Add(ki, one)")
            place = "ki"
        if backwards:
            place = inner.op("Sub", inner.op("Sub", "trips", "one"), place)
        h, c = cell(inner.new(f"Gather<axis={axis}>(x, {place})"), "hi", "ci")
    inner.lines += [f"ho = Identity({h})", f"co = Identity({c})", f"each = Identity({h})"]
    steps = "\n".join(inner.lines)
    if scan:
        flags = (
            f"scan_input_axes=[{axis}], scan_input_directions=[{int(backwards)}], scan_output_axes=[{out}]"
        )
        flags += f", scan_output_directions=[{draw(st.integers(0, 1))}], num_scan_inputs=1"
        body = f"b ({states}, float[n, {X}] xi) => (float[n, 4] ho, float[n, 4] co, float[n, 4] each) {{\n{steps}\n}}"
        outer.lines.append(f"hl, cl, all = Scan<body = {body}, {flags}>(h, c, x)")
    else:
        out = 0
        shape_of = outer.op("Shape", "x")
        outer.lines.append(f"trips = Gather<axis=0>({shape_of}, {outer.constant(np.array(axis))})")
        outer.weights["one"], outer.weights["yes"] = np.array(1, np.int64), np.array(True)
        more = (
            [", int64 ki", ", int64 ks", "kl, ", f", {outer.constant(np.array(0, np.int64))}"]
            if counted
            else [""] * 4
        )
        body = f"b (int64 i, bool go, {states}{more[0]}) => (bool on, float[n, 4] ho, float[n, 4] co{more[1]}, float[n, 4] each) {{\n"
        body += f"on = Identity(go)\n{steps}\n}}"
        outer.lines.append(f"hl, cl, {more[2]}all = Loop<body = {body}>(trips, yes, h, c{more[3]})")
    outer.lines += ["y = Relu(hl)", f"z = {'Neg(cl)' if kind == 'LSTM' else 'Neg(hl)'}"]
    form = ["n", str(H)]
    form.insert(out, "t")
    inputs = f"float[{', '.join(shape)}] x, float[n, {H}] h, float[n, {H}] c"
    return outer.text(inputs, f"float[n, {H}] y, float[n, {H}] z, float[{', '.join(form)}] all"), kind


@settings(max_examples=60, deadline=None)
@given(looped())
def test_body_of_a_loop(drawn: tuple[onnx.ModelProto, str]) -> None:
    before, kind = drawn
    after = optimized(before, PIPELINE)
    assert recurrent(after) == [kind]
    assert not {"Loop", "Scan", "Sigmoid"} & set(operators(after))
    assert_same(before, after, *(samples(before, i, **size) for i, size in enumerate(SIZES)))


def keras_loop(extra: str = "", state: str = "float[n, 4]") -> onnx.ModelProto:
    """An LSTM of Keras as tf2onnx writes it where it does not recognize it.

    A counter of its own beside the iteration, weights that are handed on unchanged, two conditions.
    """
    writer = Writer()
    writer.weights.update(
        zero=np.array(0, np.int32),
        one=np.array(1, np.int32),
        ones=np.array(1, np.int64),
        no=np.array(0, np.int64),
    )
    for name, shape in {"kernel": (X, 4 * H), "own": (H, 4 * H), "bias": (4 * H,)}.items():
        writer.weight(name, *shape)
    return parse(
        f"""g (float[n, t, {X}] x) => (float[n, t, {H}] y, float[n, {H}] hl, float[n, {H}] cl) {{
            xt = Transpose<perm=[1, 0, 2]>(x)
            size = Shape(xt)
            steps64 = Gather<axis=0>(size, no)
            steps = Cast<to=6>(steps64)
            rows = Gather<axis=0>(size, {writer.ints(1)})
            whole = Concat<axis=0>(rows, {writer.ints(H)})
            h = ConstantOfShape(whole)
            first = Less(zero, steps)
            most = Cast<to=7>(steps)
            second = Less(no, most)
            start = And(first, second)
            timel, hl, cl, kl, all = Loop<body = b (int64 i, bool go, int32 time, {state} hi, {state} ci,
                float[{X}, {4 * H}] ki) => (bool on, int32 timeo, {state} ho, {state} co,
                float[{X}, {4 * H}] ko, float[n, {H}] each) {{
                xi = Gather<axis=0>(xt, time)
                a = MatMul(xi, ki)
                b = MatMul(hi, own)
                ab = Add(a, b)
                total = Add(ab, bias)
                gi, gf, gc, go2 = Split<axis=1>(total, {writer.ints(H, H, H, H)})
                si = Sigmoid(gi)
                sf = Sigmoid(gf)
                so = Sigmoid(go2)
                tc = Tanh(gc)
                kept = Mul(sf, ci)
                put = Mul(si, tc)
                co = Add(kept, put)
                tco = Tanh(co)
                h2 = Mul(so, tco)
                {extra or "ho = Identity(h2)"}
                each = Identity(ho)
                ko = Identity(ki)
                timeo = Add(time, one)
                next = Add(i, ones)
                f1 = Less(next, most)
                f2 = Less(timeo, steps)
                on = And(f1, f2)
            }}>(most, start, zero, h, h, kernel)
            y = Transpose<perm=[1, 0, 2]>(all)
        }}""",
        weights=writer.weights,
    )


def test_loop_of_keras() -> None:
    before = keras_loop()
    after = optimized(before, PIPELINE)
    assert sorted(operators(after)) == ["LSTM", "Squeeze", "Squeeze", "Squeeze", "Transpose", "Transpose"]
    assert_same(before, after, *(samples(before, i, **size) for i, size in enumerate(SIZES)))


@pytest.mark.parametrize(
    "extra",
    [
        "n1 = Abs(h2)\n m1 = Div(h2, n1)\n ho = Add(m1, h2)",  # the state is normalized
        "half = Constant<value = float {0.5}> ()\n ho = Min(h2, half)",
        "ho = Add(h2, hi)",
        "ho = Identity(co)",
    ],
)
def test_loop_of_another_cell(extra: str) -> None:
    before = keras_loop(extra)
    assert recurrent(optimized(before, PIPELINE)) == []


def test_cells_as_operators_in_a_loop_that_fills_a_list() -> None:
    """torch.jit.script exports torch.nn.LSTMCell as an LSTM of one step, and append as SequenceInsert."""
    writer = Writer()
    for name, shape in {"w": (1, 4 * H, X), "r": (1, 4 * H, H), "b": (1, 8 * H)}.items():
        writer.weight(name, *shape)
    zero, one = writer.ints(0), writer.constant(np.array(1))
    writer.weights["yes"] = np.array(True)
    before = parse(
        f"""g (float[n, t, {X}] x, float[n, {H}] h, float[n, {H}] c) => (float[n, t, {H}] y, float[n, {H}] hl) {{
            size = Shape(x)
            most = Gather(size, {one})
            empty = SequenceEmpty()
            hl, cl, list = Loop<body = body (int64 i, bool go, float[n, {H}] hi, float[n, {H}] ci, seq(float) li)
                => (bool on, float[n, {H}] ho, float[n, {H}] co, seq(float) lo) {{
                xi = Gather<axis=1>(x, i)
                x3 = Unsqueeze(xi, {zero})
                h3 = Unsqueeze(hi, {zero})
                c3 = Unsqueeze(ci, {zero})
                a, hn, cn = LSTM<hidden_size={H}>(x3, w, r, b, , h3, c3)
                ho = Squeeze(hn, {zero})
                co = Squeeze(cn, {zero})
                lo = SequenceInsert(li, ho)
                on = Identity(yes)
            }}>(most, yes, h, c, empty)
            y = ConcatFromSequence<axis=1, new_axis=1>(list)
        }}""",
        weights=writer.weights,
    )
    after = optimized(before, PIPELINE)
    assert recurrent(after) == ["LSTM"]
    assert not {"Loop", "SequenceEmpty", "ConcatFromSequence"} & set(operators(after))
    assert_same(before, after, *(samples(before, i, **size) for i, size in enumerate(SIZES)))


@pytest.mark.parametrize(
    ("trips", "start", "expected"),
    [(40, 0, ["RNN"]), (30, 0, ["RNN"]), (30, 4, ["RNN"]), (30, 10, ["RNN"])],
)
def test_loop_over_a_part_of_the_sequence(trips: int, start: int, expected: list[str]) -> None:
    writer = Writer()
    writer.weights.update(trips=np.array(trips), start=np.array(start), yes=np.array(True))
    place = writer.op("Add", "i", "start")
    h, _ = writer.rnn("torch", writer.op("Gather<axis=1>", "x", place), "hi", "")
    body = "\n".join(writer.lines)
    before = parse(
        f"""g (float[n, 40, {X}] x, float[n, {H}] h) => (float[{trips}, n, {H}] y) {{
            hl, y = Loop<body = body (int64 i, bool go, float[n, {H}] hi)
                => (bool on, float[n, {H}] ho, float[n, {H}] each) {{
                {body}
                ho = Identity({h})
                each = Identity({h})
                on = Identity(go)
            }}>(trips, yes, h)
        }}""",
        weights=writer.weights,
    )
    after = optimized(before, PIPELINE)
    assert recurrent(after) == expected
    assert_same(before, after, *(samples(before, i, **size) for i, size in enumerate(SIZES)))


# --- What is no recurrence, or not one that an operator can say ----------------------------------------------


def steps_of(
    write: Callable[[Writer, str, str, str, int], tuple[str, str]], wanted: str = "h"
) -> onnx.ModelProto:
    """Four steps over x [n, 4, X]; the output is the last state, or what `write` puts down as `extra`."""
    writer = Writer()
    h, c = "h", "c"
    for step in range(4):
        x = writer.new(f"Gather<axis=1>(x, {writer.constant(np.array(step))})")
        h, c = write(writer, x, h, c, step)
    writer.lines.append(f"y = Identity({ {'h': h, 'c': c}.get(wanted, wanted) })")
    return writer.text(f"float[n, 4, {X}] x, float[n, {H}] h, float[n, {H}] c", f"float[n, {H}] y")


def _other_weights(w: Writer, x: str, h: str, c: str, step: int) -> tuple[str, str]:
    return w.lstm("torch", x, h, c, str(step))


def _normalized(w: Writer, x: str, h: str, c: str, step: int) -> tuple[str, str]:
    h, c = w.lstm("torch", x, h, c)
    norm = w.op("LayerNormalization", h, w.weight("g", H), w.weight("o", H))
    return norm, c


def _normalized_sum(w: Writer, x: str, h: str, c: str, step: int) -> tuple[str, str]:
    one, two = w.op("MatMul", x, w.weight("a", X, H)), w.op("MatMul", h, w.weight("b", H, H))
    return w.op("Tanh", w.op("LayerNormalization", w.op("Add", one, two), w.weight("g", H))), c


def _mixed_gates(w: Writer, x: str, h: str, c: str, step: int) -> tuple[str, str]:
    f, i, g, o = w.sums("torch", x, h, 4)
    c = w.op("Add", w.op("Mul", w.op("Sigmoid", f), c), w.op("Mul", w.op("HardSigmoid", i), w.op("Tanh", g)))
    return w.op("Mul", w.op("Sigmoid", o), w.op("Tanh", c)), c


def _wrong_gate(w: Writer, x: str, h: str, c: str, step: int) -> tuple[str, str]:
    return w.lstm("keras", x, h, c, gate="Softplus")


def _peepholes(w: Writer, x: str, h: str, c: str, step: int) -> tuple[str, str]:
    f, i, g, o = w.sums("torch", x, h, 4)
    f = w.op("Add", f, w.op("Mul", c, w.weight("p", H)))
    f, i, o = (w.op("Sigmoid", v) for v in (f, i, o))
    c = w.op("Add", w.op("Mul", f, c), w.op("Mul", i, w.op("Tanh", g)))
    return w.op("Mul", o, w.op("Tanh", c)), c


def _coupled(w: Writer, x: str, h: str, c: str, step: int) -> tuple[str, str]:
    f, _, g, o = w.sums("torch", x, h, 4)
    f, o = w.op("Sigmoid", f), w.op("Sigmoid", o)
    i = w.op("Sub", w.constant(np.array(1, np.float32)), f)
    c = w.op("Add", w.op("Mul", f, c), w.op("Mul", i, w.op("Tanh", g)))
    return w.op("Mul", o, w.op("Tanh", c)), c


def _clipped(w: Writer, x: str, h: str, c: str, step: int) -> tuple[str, str]:
    h, c = w.lstm("torch", x, h, c)
    return h, w.op("Clip", c, w.constant(np.array(-1, np.float32)), w.constant(np.array(1, np.float32)))


def _fed_back(w: Writer, x: str, h: str, c: str, step: int) -> tuple[str, str]:
    seen = w.op("Add", x, w.op("MatMul", h, w.weight("back", H, X)))
    return w.lstm("torch", seen, h, c)


def _other_gate_of_gru(w: Writer, x: str, h: str, c: str, step: int) -> tuple[str, str]:
    z, r, q = (w.op("Sigmoid", v) for v in w.sums("torch", x, h, 3))
    n = w.op("Tanh", w.op("Add", w.op("MatMul", x, w.weight("p", X, H)), w.op("Mul", r, h)))
    return w.op("Add", w.op("Mul", z, h), w.op("Mul", q, n)), c


@pytest.mark.parametrize(
    "write",
    [
        _other_weights, _normalized, _normalized_sum, _mixed_gates, _wrong_gate, _peepholes, _coupled, _clipped,
        _fed_back, _other_gate_of_gru,
    ],
)  # fmt: skip
def test_steps_of_something_else(write: Callable[[Writer, str, str, str, int], tuple[str, str]]) -> None:
    before = steps_of(write)
    after = optimized(before, PIPELINE)
    assert recurrent(after) == []
    assert_same(before, after, *(samples(before, i, **size) for i, size in enumerate(SIZES)))


def test_cell_state_of_every_step_is_wanted() -> None:
    """An LSTM gives the last one only."""
    memories = []

    def write(w: Writer, x: str, h: str, c: str, step: int) -> tuple[str, str]:
        h, c = w.lstm("torch", x, h, c)
        memories.append(c)
        if step == 3:
            total = w.op("Sum", *memories)
            w.lines.append(f"total = Identity({total})")
        return h, c

    before = steps_of(write, "total")
    assert recurrent(optimized(before, PIPELINE)) == []


def test_fewer_steps_than_pay() -> None:
    writer = Writer()
    h, c = "h", "c"
    for step in range(2):
        x = writer.new(f"Gather<axis=1>(x, {writer.constant(np.array(step))})")
        h, c = writer.lstm("torch", x, h, c)
    writer.lines.append(f"y = Identity({h})")
    before = writer.text(f"float[n, 4, {X}] x, float[n, {H}] h, float[n, {H}] c", f"float[n, {H}] y")
    assert recurrent(optimized(before, PIPELINE)) == []
    after = optimized(before, "shapes,fold,tidy,fuse(recurrence(least=2),restack),tidy")
    assert recurrent(after) == ["LSTM"]
    assert_same(before, after, *(samples(before, i, **size) for i, size in enumerate(SIZES)))


def test_what_goes_in_is_computed_step_by_step() -> None:
    """Each step's input is a value of its own; they are put side by side."""
    before = steps_of(lambda w, x, h, c, step: w.gru("torch", w.op("Relu", x), h, c))
    after = optimized(before, PIPELINE)
    assert recurrent(after) == ["GRU"]
    assert_same(before, after, *(samples(before, i, **size) for i, size in enumerate(SIZES)))


def test_a_constant_vector_goes_in() -> None:
    before = steps_of(lambda w, x, h, c, step: w.rnn("keras", w.op("Relu", "x0"), h, c))
    before.graph.input.append(onnx.helper.make_tensor_value_info("x0", onnx.TensorProto.FLOAT, ["n", X]))
    after = optimized(before, PIPELINE)
    assert recurrent(after) == ["RNN"]
    assert_same(before, after, *(samples(before, i, **size) for i, size in enumerate(SIZES)))


def test_convolutional_lstm() -> None:
    writer = Writer()
    h, c = "h", "c"
    kernel = writer.weight("k", 4 * H, X + H, 3, 3)
    for step in range(4):
        x = writer.new(f"Gather<axis=1>(x, {writer.constant(np.array(step))})")
        both = writer.op("Concat<axis=1>", x, h)
        f, i, g, o = writer.split(writer.op("Conv<pads=[1, 1, 1, 1]>", both, kernel), [H] * 4)
        f, i, o = (writer.op("Sigmoid", v) for v in (f, i, o))
        c = writer.op("Add", writer.op("Mul", f, c), writer.op("Mul", i, writer.op("Tanh", g)))
        h = writer.op("Mul", o, writer.op("Tanh", c))
    writer.lines.append(f"y = Identity({h})")
    state = f"float[n, {H}, 4, 4]"
    before = writer.text(f"float[n, 4, {X}, 4, 4] x, {state} h, {state} c", f"{state} y")
    assert recurrent(optimized(before, PIPELINE)) == []


def test_state_of_zeros_that_was_folded_away() -> None:
    """With a batch of known size, what the first step multiplies the state with is a constant."""
    for kind in sorted(KINDS):
        writer = Writer()
        zero = writer.constant(np.zeros((2, H), np.float32))
        cell = {"LSTM": writer.lstm, "GRU": writer.gru, "RNN": writer.rnn}[kind]
        h, c = zero, zero
        for step in range(4):
            h, c = cell("keras", writer.new(f"Gather<axis=1>(x, {writer.constant(np.array(step))})"), h, c)
        writer.lines.append(f"y = Identity({h})")
        before = writer.text(f"float[2, 4, {X}] x", f"float[2, {H}] y")
        after = optimized(before, PIPELINE)
        assert recurrent(after) == [kind]
        (node,) = (n for n in after.graph.node if n.op_type == kind)
        assert len(node.input) == 4  # no initial state
        assert_same(before, after, samples(before, 0), samples(before, 1))


# --- Layers before and after -------------------------------------------------------------------------------


def test_layers_within_the_loop_over_time() -> None:
    """What is done to each step alike leaves the loop, written out or not."""
    writer = Writer()
    h, c, outs = "h", "c", []
    for step in range(5):
        x = writer.new(f"Gather<axis=1>(x, {writer.constant(np.array(step))})")
        x = writer.op(
            "Relu", writer.op("Gemm<transB=1>", x, writer.weight("wi", X, X), writer.weight("bi", X))
        )
        h, c = writer.lstm("joined", x, h, c)
        out = writer.op("Softmax<axis=-1>", writer.op("MatMul", h, writer.weight("wo", H, 2)))
        outs.append(writer.unsqueeze(out, 1))
    writer.lines.append(f"y = Concat<axis=1>({', '.join(outs)})")
    before = writer.text(f"float[n, 5, {X}] x, float[n, {H}] h, float[n, {H}] c", "float[n, 5, 2] y")
    after = optimized(before, "shapes,fold,tidy,fuse(recurrence,restack,joint_steps),tidy")
    assert sorted(operators(after)) == sorted(
        ["MatMul", "Add", "Relu", "Transpose", "Unsqueeze", "Unsqueeze", "LSTM", "Squeeze", "MatMul", "Softmax", "Transpose"]
    )  # fmt: skip
    assert_same(before, after, *(samples(before, i, **size) for i, size in enumerate(SIZES)))


@pytest.mark.parametrize("scale", ["wi", "[n, 3] s"])
def test_layers_within_the_body(scale: str) -> None:
    """A weight may lie in the body; what varies with the batch is no weight."""
    writer = Writer()
    for name, shape in {"wi": (X, X), "wo": (H, 2), "k": (X + H, 4 * H)}.items():
        writer.weight(name, *shape)
    factor = "half" if scale == "wi" else "s"
    writer.weights["yes"] = np.array(True)
    sizes, axis = writer.ints(H, H, H, H), writer.constant(np.array(1))
    before = parse(
        f"""g (float[n, t, {X}] x, float[n, {X}] s, float[n, {H}] h, float[n, {H}] c) => (float[t, n, 2] y) {{
            size = Shape(x)
            most = Gather(size, {axis})
            hl, cl, y = Loop<body = body (int64 i, bool go, float[n, {H}] hi, float[n, {H}] ci)
                => (bool on, float[n, {H}] ho, float[n, {H}] co, float[n, 2] each) {{
                half = Constant<value = float[1, 3] {{0.5, 0.25, 2.0}}> ()
                xi = Gather<axis=1>(x, i)
                p = MatMul(xi, wi)
                q = Mul(p, {factor})
                r = Tanh(q)
                both = Concat<axis=1>(hi, r)
                total = MatMul(both, k)
                gi, gf, gc, go2 = Split<axis=1>(total, {sizes})
                si = Sigmoid(gi)
                sf = Sigmoid(gf)
                so = Sigmoid(go2)
                tc = Tanh(gc)
                kept = Mul(sf, ci)
                put = Mul(si, tc)
                co = Add(kept, put)
                tco = Tanh(co)
                ho = Mul(so, tco)
                out = MatMul(ho, wo)
                each = Sigmoid(out)
                on = Identity(yes)
            }}>(most, yes, h, c)
        }}""",
        weights=writer.weights,
    )
    after = optimized(before, PIPELINE)
    assert recurrent(after) == (["LSTM"] if scale == "wi" else [])
    assert ("Loop" in operators(after)) is (scale != "wi")
    assert_same(before, after, *(samples(before, i, **size) for i, size in enumerate(SIZES)))


def test_context_is_first_state_and_input_alike() -> None:
    """A decoder that gets what the encoder left in each of its steps."""
    writer = Writer()
    h = "h"
    for step in range(3):
        h, _ = writer.gru("torch", writer.new(f"Gather<axis=1>(x, {writer.constant(np.array(step))})"), h, "")
    context, outs = h, []
    for _ in range(3):
        own = writer.op("Gemm", h, writer.weight("r", H, H), writer.weight("d", H))
        h = writer.op("Tanh", writer.op("Add", own, writer.op("MatMul", context, writer.weight("w", H, H))))
        outs.append(writer.unsqueeze(h, 1))
    writer.lines.append(f"y = Concat<axis=1>({', '.join(outs)})")
    before = writer.text(f"float[n, 3, {X}] x, float[n, {H}] h", f"float[n, 3, {H}] y")
    after = optimized(before, PIPELINE)
    assert recurrent(after) == ["GRU", "RNN"]
    assert_same(before, after, *(samples(before, i, **size) for i, size in enumerate(SIZES)))


# --- What exporters make of loops over cells -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lstmcell_ts17", ["LSTM"]),
        ("lstmcell_dyn20", ["LSTM"]),
        ("grucell_ts14", ["GRU", "GRU", "GRU"]),
        ("grucell_dyn18", ["GRU", "GRU", "GRU"]),
        ("lstmscript_ts17", ["LSTM"]),
        ("gruscan_dyn20", ["GRU"]),
    ],
)
def test_exported_loops(name: str, expected: list[str]) -> None:
    before = onnx.load(FIXTURES / f"{name}.onnx")
    after = optimized(before, "default")
    assert recurrent(after) == expected
    assert not {"Loop", "Scan", "Tanh", "Gather", "Concat"} & set(operators(after))
    sizes = ({"batch": 1, "seq": 9}, {"batch": 3, "seq": 4})
    assert_same(before, after, *(samples(before, i, **size) for i, size in enumerate(sizes)))


def test_loops_from_both_ends() -> None:
    """What goes in and comes out is turned twice; the operator is bidirectional, and starts from zero."""
    writer = Writer()
    forwards, backwards = [], []
    for tag, order, results in (("f", range(4), forwards), ("b", range(3, -1, -1), backwards)):
        h, c = zeros(writer, "x"), zeros(writer, "x")
        for step in order:
            h, c = writer.lstm(
                "torch", writer.new(f"Gather<axis=1>(x, {writer.constant(np.array(step))})"), h, c, tag
            )
            results.append(writer.unsqueeze(h, 1))
    one = writer.op("Concat<axis=1>", *forwards)
    two = writer.op("Concat<axis=1>", *reversed(backwards))
    writer.lines.append(f"y = Concat<axis=2>({one}, {two})")
    before = writer.text(f"float[n, 4, {X}] x", f"float[n, 4, {2 * H}] y")
    after = optimized(before, "default")
    assert operators(after) == ["Transpose", "LSTM", "Transpose", "Reshape"]
    assert_same(before, after, *(samples(before, i, **size) for i, size in enumerate(SIZES)))


@pytest.mark.parametrize("opset", [11, 17])
def test_recurrent_layer_called_step_by_step(opset: int) -> None:
    """torch.nn.LSTM in a loop, on one position at a time."""
    writer = Writer(opset=opset)
    for name, shape in {"w": (1, 4 * H, X), "r": (1, 4 * H, H), "b": (1, 8 * H)}.items():
        writer.weight(name, *shape)
    state, memory, outs = "", "", []
    for step in range(4):
        x = writer.op("Slice", "x", writer.ints(step), writer.ints(step + 1), writer.ints(0))
        writer.lines.append(
            f"a{step}, h{step}, c{step} = LSTM<hidden_size={H}>({x}, w, r, b, , {state}, {memory})"
        )
        state, memory = f"h{step}", f"c{step}"
        outs.append(writer.squeeze(f"a{step}", 1))
    writer.lines += [f"y = Concat<axis=0>({', '.join(outs)})", f"z = Neg({memory})"]
    before = writer.text(f"float[4, n, {X}] x", f"float[4, n, {H}] y, float[1, n, {H}] z")
    after = optimized(before, PIPELINE)
    assert recurrent(after) == ["LSTM"]
    assert "Slice" not in operators(after)
    assert_same(before, after, *(samples(before, i, **size) for i, size in enumerate(SIZES)))


def test_recurrent_layer_of_one_step_stays() -> None:
    """Alone, without or with a state."""
    for state in ("", ", , h, c"):
        writer = Writer()
        for name, shape in {"w": (1, 4 * H, X), "r": (1, 4 * H, H), "b": (1, 8 * H)}.items():
            writer.weight(name, *shape)
        writer.lines.append(f"a, y = LSTM<hidden_size={H}>(x, w, r, b{state})")
        before = writer.text(
            f"float[1, n, {X}] x, float[1, n, {H}] h, float[1, n, {H}] c", f"float[1, n, {H}] y"
        )
        assert operators(optimized(before, "default")) == ["LSTM"]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_half_precision(kind: str) -> None:
    writer = Writer()
    cell = {"LSTM": writer.lstm, "GRU": writer.gru, "RNN": writer.rnn}[kind]
    h, c = "h", "c"
    for step in range(4):
        h, c = cell("torch", writer.new(f"Gather<axis=1>(x, {writer.constant(np.array(step))})"), h, c)
    writer.lines.append(f"y = Identity({h})")
    halves = {n: a.astype(np.float16) if a.dtype == np.float32 else a for n, a in writer.weights.items()}
    inputs = f"float16[n, 4, {X}] x, float16[n, {H}] h, float16[n, {H}] c"
    lines = "\n".join(writer.lines)
    before = parse(f"g ({inputs}) => (float16[n, {H}] y) {{\n{lines}\n}}", weights=halves)
    after = optimized(before, PIPELINE)
    assert recurrent(after) == [kind]
    assert_same(before, after, samples(before, 0, n=2), samples(before, 1, n=3), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("trips", "go"), [("none", "yes"), ("zero", "yes"), ("some", "open"), ("size", "yes")]
)
def test_loop_whose_end_is_not_known(trips: str, go: str) -> None:
    """Or that does not run; or that says itself, in its body, when it ends."""
    writer = Writer()
    writer.weights.update(zero=np.array(0), some=np.array(40), yes=np.array(True))
    h, _ = writer.rnn("torch", writer.op("Gather<axis=1>", "x", "i"), "hi", "")
    body = "\n".join(writer.lines)
    ends = "on = Less(i, limit)" if trips == "size" else "on = Identity(go)"
    count = {"none": "", "size": "size"}.get(trips, trips)
    before = parse(
        f"""g (float[n, 40, {X}] x, float[n, {H}] h, bool open, int64 limit) => (float[n, {H}] y) {{
            shape = Shape(x)
            size = Gather(shape, one)
            y = Loop<body = body (int64 i, bool go, float[n, {H}] hi) => (bool on, float[n, {H}] ho) {{
                {body}
                ho = Identity({h})
                {ends}
            }}>({count}, {go}, h)
        }}""",
        weights={**writer.weights, "one": np.array(1)},
    )
    assert recurrent(optimized(before, PIPELINE)) == []
