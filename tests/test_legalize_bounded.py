"""Results whose size data decide: the same rows in sizes that do not depend on data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from helpers import parse
from legalize_helpers import Array, Refusing, agree, in_runtime
from onnxlathe import UsageError, optimize
from onnxlathe.infer import infer_model
from onnxlathe.model import Model
from onnxlathe.model.interface import as_called, interface_of
from onnxlathe.rewrite import Context, subgraphs
from onnxlathe.target import find_target
from onnxlathe.verify import Verifier
from onnxlathe_passes.legalize import Legalize
from onnxlathe_passes.legalize.judge import Ruling, TargetJudge
from onnxlathe_passes.legalize.run import Legalizing

SOURCES = frozenset({"NonZero", "Compress", "Unique", "NonMaxSuppression"})
needs_target = pytest.mark.skipif(not find_target().available, reason="no TensorRT is installed")

# x[m], the way exporters write it
PICK = "i = NonZero(m) j = Transpose<perm=[1,0]>(i) s = GatherND(x, j)"


def pick(outputs: str, body: str, constants: str = "", x: str = "float[8,4]", more: str = "") -> str:
    return f"g ({x} x, bool[8] m{more}) => ({outputs}) <{constants}> {{ {PICK} {body} }}"


# Nothing that a caller sees changes.
EXACT = {
    **{
        f"Reduce{kind}": pick(
            "float[4] y, float[1,4] z",
            f"y = Reduce{kind}<keepdims=0>(s, a) z = Reduce{kind}(s, a)",
            "int64[1] a = {0}",
        )
        for kind in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp")
    },
    "reduced to scalars": pick(
        "float y, float z", "y = ReduceSum<keepdims=0>(s) z = ReduceMean<keepdims=0>(s)"
    ),
    "largest integer": pick(
        "int64[4] y", "y = ReduceMax<keepdims=0>(s, a)", "int64[1] a = {0}", "int64[8,4]"
    ),
    "how many": pick("int64 y, int64[2] z", "y = Size(s) z = Shape(s)"),
    "weighted by softmax": pick(
        "float[4] y",
        "t = Softmax<axis=0>(s) u = Mul(t, s) y = ReduceSum<keepdims=0>(u, a)",
        "int64[1] a = {0}",
    ),
    "place of the largest": pick("int64[1,4] y", "y = ArgMax<axis=0>(s)"),
    "product over the rows": pick("float[4,4] y", "t = Transpose<perm=[1,0]>(s) y = MatMul(t, s)"),
    "written back": pick("float[8,4] y", "t = Exp(s) y = ScatterND(x, j, t)"),
    "written back, booleans": pick("bool[8,4] y", "t = Not(s) y = ScatterND(x, j, t)", x="bool[8,4]"),
    "y[m] = v": pick(
        "float[8,4] y",
        "n = Shape<start=1, end=2>(i) h = Concat<axis=0>(n, f) e = Expand(v, h) y = ScatterND(x, j, e)",
        "int64[1] f = {4}",
        more=", float[4] v",
    ),
    "y[m] = v, counted": pick(
        "float[8,4] y",
        "k = Cast<to=7>(m) n = ReduceSum(k) h = Concat<axis=0>(n, f) e = Expand(v, h) y = ScatterND(x, j, e)",
        "int64[1] f = {4}",
        more=", float[4] v",
    ),
    "masked_scatter": """g (float[8,4] x, bool[8,4] m, float[40] v) => (float[8,4] y) <int64[1] a = {0}> {
        i = NonZero(m) j = Transpose<perm=[1,0]>(i) n = Shape<start=0, end=1>(j)
        s = Slice(v, a, n, a) y = ScatterND(x, j, s) }""",
    "scattered by computed places": pick(
        "float[9,4] y",
        "p = GatherND(k, j) o = Unsqueeze(p, a) y = ScatterND(z, o, s)",
        "int64[1] a = {1}, int64[8] k = {8, -8, 3, 7, 0, 5, 2, 6}",
        more=", float[9,4] z",
    ),
    "scattered by elements": pick(
        "float[9] y",
        "p = GatherND(k, j) y = ScatterElements<axis=0>(z, p, s)",
        "int64[8] k = {8, -8, 3, 7, 0, 5, 2, 6}",
        x="float[8]",
        more=", float[9] z",
    ),
    **{
        f"scattered by elements, {kind}": pick(
            "float[9] y",
            f'p = GatherND(k, j) y = ScatterElements<axis=0, reduction="{kind}">(z, p, s)',
            "int64[8] k = {8, -8, 3, 3, 0, 8, 2, 1}",
            x="float[8]",
            more=", float[9] z",
        )
        for kind in ("add", "mul", "max", "min")
    },
    "accumulated": pick(
        "float[6,4] y",
        'p = GatherND(k, j) o = Unsqueeze(p, a) y = ScatterND<reduction="add">(z, o, s)',
        "int64[1] a = {1}, int64[8] k = {1, -6, 3, 3, 0, 5, 2, 1}",
        more=", float[6,4] z",
    ),
    "levels of a pyramid": """g (float[2,3,8,8] f, float[6,4] r, int64[6] b, bool[6] m) => (float[6,3,2,2] y)
        <float[6,3,2,2] nothing = {NOTHING}, int64 two = {2}> {
        i = NonZero(m) j = Transpose<perm=[1,0]>(i) s = GatherND(r, j) q = Mod(b, two) k = GatherND(q, j) c = Abs(s)
        p = RoiAlign<output_height=2, output_width=2, sampling_ratio=2>(f, c, k)
        y = ScatterND(nothing, j, p) }""".replace("NOTHING", ", ".join(["0.0"] * 72)),
    "Einsum over the rows": pick("float[4,4] y", 'y = Einsum<equation="ni,nj->ij">(s, s)'),
    "a branch that reads": pick(
        "float y",
        """n = Size(s) c = Greater(n, four) y = If(c) <
            then_branch = t () => (float a) { a = ReduceSum<keepdims=0>(s) },
            else_branch = e () => (float b) { b = ReduceMean<keepdims=0>(x) }>""",
        "int64 four = {4}",
    ),
    "what does not count is no index": """g (int64[8] x, float[6,3] w) => (float[3] y) <int64 k = {4}, int64[1] a = {0}> {
        q = Mul(x, x) m = Less(q, k) i = NonZero(m) j = Transpose<perm=[1,0]>(i) s = GatherND(q, j)
        e = Gather(w, s) y = ReduceSum<keepdims=0>(e, a) }""",
    "what does not count is no divisor": """g (int64[8] x) => (int64 y) <int64 z = {0}, int64 h = {60}> {
        m = Greater(x, z) i = NonZero(m) j = Transpose<perm=[1,0]>(i) s = GatherND(x, j) d = Div(h, s)
        y = ReduceSum<keepdims=0>(d) }""",
    "how many different": "g (int64[9] x) => (int64 y) { u = Unique(x) y = Size(u) }",
    "the most frequent": """g (int64[9] x) => (int64[1] y) {
        u, i, v, n = Unique(x) k = ArgMax<axis=0>(n) y = Gather(u, k) }""",
    "a branch": """g (float[8] x, bool[8] m, bool c) => (float y) {
        y = If(c) <then_branch = t () => (float a) { s = Compress<axis=0>(x, m) a = ReduceSum<keepdims=0>(s) },
                   else_branch = e () => (float b) { b = ReduceMax<keepdims=0>(x) }> }""",
}

# These leave the model with as many rows as data say.
PADDED = {
    "coordinates": "g (float[4,3] x) => (int64[2,n] y) { y = NonZero(x) }",
    "coordinates of three axes": "g (int32[2,3,4] x) => (int64[3,n] y) { y = NonZero(x) }",
    "coordinates of a scalar": "g (float x) => (int64[r,n] y) { y = NonZero(x) }",
    "x[m]": pick("float[n,4] y", "y = Relu(s)"),
    "x[m], booleans": pick("bool[n,4] y", "y = Not(s)", x="bool[8,4]"),
    "masked_select": "g (float[3,4] x, bool[12] m) => (float[n] y) { y = Compress(x, m) }",
    "a short condition": "g (float[8,4] x, bool[5] m) => (float[n,4] y) { y = Compress<axis=-2>(x, m) }",
    "sums of rows": pick("float[n] y", "y = ReduceSum<keepdims=0>(s, a)", "int64[1] a = {1}"),
    "rows times a matrix": pick("float[n,3] y", "y = MatMul(s, w)", more=", float[4,3] w"),
    "Gemm": pick("float[n,3] y", "y = Gemm(s, w, b)", more=", float[4,3] w, float[3] b"),
    "LayerNormalization": pick("float[n,4] y", "y = LayerNormalization(s, w)", more=", float[4] w"),
    "CumSum": pick("float[n,4] y", "y = CumSum(s, a)", "int64 a = {0}"),
    "embedded": pick("float[n,3] y", "y = Gather(w, s)", x="int64[8]", more=", float[6,3] w"),
    "sorted": pick(
        "float[n] y, int64[n] z", "k = Shape(s) y, z = TopK<axis=0, largest=0>(s, k)", x="float[8]"
    ),
    "the five largest": pick(
        "float[n,4] y, int64[n,4] z",
        "h = Shape<start=0, end=1>(s) k = Min(h, five) y, z = TopK<axis=0>(s, k)",
        "int64[1] five = {5}",
    ),
    "the first three": pick("float[n,4] y", "y = Slice(s, a, e, a)", "int64[1] a = {0}, int64[1] e = {3}"),
    "the last two": pick(
        "float[n,4] y",
        "y = Slice(s, o, e, a)",
        "int64[1] o = {-2}, int64[1] e = {9223372036854775807}, int64[1] a = {0}",
    ),
    "all but the first": pick(
        "float[n,4] y",
        "y = Slice(s, o, e, a)",
        "int64[1] o = {1}, int64[1] e = {9223372036854775807}, int64[1] a = {0}",
    ),
    "all but the last": pick("float[n,4] y", "y = Slice(s, a, e, a)", "int64[1] a = {0}, int64[1] e = {-1}"),
    "backwards": pick(
        "float[n,4] y",
        "y = Slice(s, o, e, a, o)",
        "int64[1] o = {-1}, int64[1] e = {-9223372036854775807}, int64[1] a = {0}",
    ),
    "two selections, one behind the other": pick(
        "float[n,4] y",
        "i2 = NonZero(p) j2 = Transpose<perm=[1,0]>(i2) s2 = GatherND(x, j2) y = Concat<axis=0>(s, s2)",
        more=", bool[8] p",
    ),
    "and a tensor behind": pick("float[n,4] y", "y = Concat<axis=0>(s, p)", more=", float[2,4] p"),
    "side by side": pick("float[n,8] y", "t = Exp(s) y = Concat<axis=1>(s, t)"),
    "rows of an Einsum": pick(
        "float[3,n] y", 'y = Einsum<equation="ni,ij->jn">(s, w)', more=", float[4,3] w"
    ),
    "summed by key": """g (int64[9] k, float[9,4] x) => (float[n,4] y) <float[1] z = {0}, int64[1] four = {4},
        int64[1] one = {1}> {
        u, i, v, c = Unique(k) h = Shape(u) d = Concat<axis=0>(h, four) e = Expand(z, d) w = Unsqueeze(v, one)
        y = ScatterND<reduction="add">(e, w, x) }""",
    "summed by key, element by element": """g (int64[9] k, float[9] x) => (float[n] y) <float z = {0}> {
        u, i, v, c = Unique(k) h = Shape(u) e = ConstantOfShape(h) y = ScatterElements<reduction="add">(e, v, x) }""",
    "written into a selection": pick(
        "float[n] y",
        "p = Greater(s, z) q = NonZero(p) t = Transpose<perm=[1,0]>(q) v = GatherND(s, t) w = Exp(v) y = ScatterND(s, t, w)",
        "float z = {0}",
        x="float[8]",
    ),
    "none or some": pick(
        "float[n,4] y",
        """k = Size(s) c = Greater(k, three) y = If(c) <
            then_branch = t () => (float[a,4] a) { a = Identity(s) },
            else_branch = e () => (float[b,4] b) { b = Slice(x, o, one, o) }>""",
        "int64 three = {3}, int64[1] o = {0}, int64[1] one = {1}",
    ),
    "selected again": pick(
        "float[n,4] y",
        "q = Gather<axis=1>(s, o) p = Greater(q, z) y = Compress<axis=0>(s, p)",
        "float z = {0}, int64 o = {0}",
    ),
    "coordinates of what was selected": pick(
        "int64[2,n] y, float[n] v",
        "p = Greater(s, z) y = NonZero(p) t = Transpose<perm=[1,0]>(y) v = GatherND(s, t)",
        "float z = {0}",
    ),
    "flat and back": pick(
        "float[n] y, float[k,4] z",
        "y = Reshape(s, f) z = Reshape(y, b)",
        "int64[1] f = {-1}, int64[2] b = {-1, 4}",
    ),
    "numbered": pick(
        "int64[n] y, float[n] z",
        "q = Size(s) y = Range(o, q, e) f = Cast<to=1>(y) z = Add(f, s)",
        "int64 o = {0}, int64 e = {1}",
        x="float[8]",
    ),
    "different ones of what was selected": pick(
        "int64[n] y, int64[k] z", "y, f, v, z = Unique(s)", x="int64[8]"
    ),
    "one of two branches": """g (float[8] x, bool[8] m, bool c) => (float[n] y) {
        y = If(c) <then_branch = t () => (float[k] a) { a = Compress<axis=0>(x, m) },
                   else_branch = e () => (float[l] b) { b = Unique(x) }> }""",
}

OPEN = {
    "open: mean": "g (float[B,4] x, bool[B] m) => (float[4] y) <int64[1] a = {0}> "
    f"{{ {PICK} y = ReduceMean<keepdims=0>(s, a) }}",
    "open: x[m]": f"g (float[B,4] x, bool[B] m) => (float[n,4] y) {{ {PICK} y = Exp(s) }}",
    "open: coordinates": "g (float[B,C] x) => (int64[2,n] y) { y = NonZero(x) }",
    "open: written back": f"g (float[B,4] x, bool[B] m) => (float[B,4] y) {{ {PICK} t = Exp(s) y = ScatterND(x, j, t) }}",
    "open: flat": f"g (float[B,4] x, bool[B] m) => (float[n] y) <int64[1] f = {{-1}}> {{ {PICK} y = Reshape(s, f) }}",
    "open: sorted": f"g (float[B] x, bool[B] m) => (float[n] y) {{ {PICK} k = Shape(s) y, z = TopK<axis=0>(s, k) }}",
}
STAYS = {n: t for n, t in OPEN.items() if n in ("open: mean", "open: written back")}
ALL = EXACT | PADDED | OPEN


class Nested(Refusing):
    """Refuses a node also for what is inside of it."""

    def judge(self, model: ir.Model, expect: Any = None, *, build: bool = True) -> Ruling:
        found = tuple(
            place
            for place, node in enumerate(model.graph)
            if ({node.op_type} | {n.op_type for g in subgraphs(node) for n in g}) & self.operators
        )
        return Ruling(not found, not found, found, "refused" if found else "")


def legalized(proto: onnx.ModelProto, **options: Any) -> tuple[Model, Context]:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    model = Model(ir.from_proto(copy))
    infer_model(model)
    context = Context.of(model.ir)
    Legalizing(Legalize(**options), model, context, Nested(SOURCES)).run()
    assert not SOURCES & {n.op_type for n in model.graph}, context.notes
    onnx.checker.check_model(ir.to_proto(model.ir))
    return model, context


def unpadded(model: Model, proto: onnx.ModelProto) -> onnx.ModelProto:
    return ir.to_proto(as_called(model, Model(ir.from_proto(proto)), interface_of(model.ir)).ir)


def feeds(proto: onnx.ModelProto, density: float, seed: int = 0) -> dict[str, Array]:
    """Random inputs; booleans are true with the given probability, numbers zero with the rest of it."""
    random = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for value in proto.graph.input:
        kind = value.type.tensor_type
        shape = [d.dim_value or 7 - seed for d in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        chosen = random.random(shape) < density
        if dtype.kind == "b":
            made[value.name] = np.asarray(chosen)
        elif dtype.kind == "i":
            made[value.name] = np.asarray(random.integers(0, 6, shape) * chosen).astype(dtype)
        else:
            made[value.name] = np.asarray(random.standard_normal(shape) * chosen).astype(dtype)
    return made


@pytest.mark.parametrize("name", ALL)
def test_the_same_rows(name: str) -> None:
    proto = parse(ALL[name], opset=18)
    model, _ = legalized(proto, pad="max")
    assert bool(interface_of(model.ir).padded) == (name not in EXACT | STAYS)
    after = unpadded(model, proto)
    ran = 0
    for seed, density in enumerate((0.0, 1.0, 0.5, 0.2, 0.8)):
        given_ = feeds(proto, density, seed)
        try:
            expected = in_runtime(proto, given_)
        except Exception:  # the largest of nothing, the first of none
            continue
        agree(in_runtime(after, given_), expected)
        ran += 1
    assert ran >= 4


@pytest.fixture(scope="module")
def judge() -> Iterator[TargetJudge]:
    target = find_target()
    with TargetJudge(target) as found:  # type: ignore[arg-type]
        yield found


@needs_target
@pytest.mark.parametrize("name", ALL)
def test_an_engine_is_built(name: str, judge: TargetJudge) -> None:
    proto = parse(ALL[name], opset=18)
    model = Model(ir.from_proto(proto))
    infer_model(model)
    Legalizing(Legalize(pad="max"), model, Context.of(model.ir), judge).run()
    ruling = judge.judge(model.ir)
    assert ruling.accepted, ruling.message


@pytest.mark.parametrize("name", [*EXACT, *STAYS])
def test_what_stays_inside_needs_no_leave(name: str) -> None:
    model, _ = legalized(parse(ALL[name], opset=18))
    assert not interface_of(model.ir).padded


@pytest.mark.parametrize("name", PADDED)
def test_what_leaves_does(name: str) -> None:
    proto = parse(ALL[name], opset=18)
    model = Model(ir.from_proto(proto))
    infer_model(model)
    before = [n.op_type for n in model.graph]
    context = Context.of(model.ir)
    Legalizing(Legalize(), model, context, Nested(SOURCES)).run()
    assert [n.op_type for n in model.graph] == before
    assert any("legalize(pad=max)" in note for note in context.notes)


# No kernel is missing here: a size is the number of true elements.
COUNTED = {
    "the first of a tensor": "g (float[8] x, bool[8] m) => (float[n] y) <int64[1] a = {0}> "
    "{ c = Cast<to=7>(m) k = ReduceSum(c) s = Slice(x, a, k, a) y = Neg(s) }",
    "numbers": "g (bool[2,4] m) => (int64[n] y) <int64 a = {0}, int64 b = {1}> "
    "{ c = Cast<to=7>(m) k = ReduceSum<keepdims=0>(c) y = Range(a, k, b) }",
    "the largest": "g (float[8] x, bool[8] m) => (float y) "
    "{ c = Cast<to=7>(m) k = ReduceSum(c) v, i = TopK(x, k) y = ReduceSum<keepdims=0>(v) }",
    "copies": "g (float[1] x, bool[8] m) => (float[n] y) { c = Cast<to=6>(m) q = ReduceSum(c) k = Cast<to=7>(q) y = Expand(x, k) }",
}


@needs_target
@pytest.mark.parametrize("name", COUNTED)
def test_a_count_is_a_size(name: str, judge: TargetJudge) -> None:
    proto = parse(COUNTED[name], opset=18)
    model = Model(ir.from_proto(parse(COUNTED[name], opset=18)))
    infer_model(model)
    assert not judge.judge(model.ir).accepted
    Legalizing(Legalize(pad="max"), model, Context.of(model.ir), judge).run()
    assert judge.judge(model.ir).accepted
    after = unpadded(model, proto)
    for seed, density in enumerate((0.0, 1.0, 0.5)):
        given_ = feeds(proto, density, seed)
        agree(in_runtime(after, given_), in_runtime(proto, given_))


def test_a_sum_selects_nothing() -> None:
    """No coordinates, no gather: zeros where the mask is false, and a sum."""
    model, _ = legalized(parse(EXACT["ReduceSum"], opset=18))
    assert {n.op_type for n in model.graph} <= {"Unsqueeze", "Where", "ReduceSum"}


def test_writing_back_is_a_choice() -> None:
    model, _ = legalized(parse(EXACT["written back"], opset=18))
    assert {n.op_type for n in model.graph} <= {"Exp", "Reshape", "Unsqueeze", "Where"}


def test_what_a_caller_is_told() -> None:
    model, context = legalized(parse(PADDED["x[m]"], opset=18), pad="max")
    assert [v.name for v in model.graph.outputs] == ["y", "y_count"]
    assert [str(v.shape) for v in model.graph.outputs] == ["[8,4]", "[1]"]
    (said,) = [note for note in context.notes if "y_count" in note]
    assert "has 8 rows now" in said
    assert "lost" not in said
    given_ = {"x": np.arange(1, 33, dtype=np.float32).reshape(8, 4), "m": np.arange(8) % 3 == 1}
    y, count = in_runtime(ir.to_proto(model.ir), given_)
    assert count.tolist() == [3]
    agree([y[:3]], [given_["x"][given_["m"]]])
    assert not y[3:].any()


def test_outputs_of_one_size_share_a_count() -> None:
    model, _ = legalized(parse(PADDED["sorted"], opset=18), pad="max")
    assert [v.name for v in model.graph.outputs] == ["y", "z", "y_count"]


@pytest.mark.parametrize(("limit", "status"), [(3, "different"), (8, "equal"), (20, "equal")])
def test_a_bound_of_the_user(limit: int, status: str) -> None:
    proto = parse(PADDED["x[m]"], opset=18)
    model, context = legalized(proto, pad=str(limit))
    assert model.graph.outputs[0].shape == ir.Shape([limit, 4])
    assert any("are lost" in note for note in context.notes) == (limit < 8)
    mask = np.array([True] * 5 + [False] * 3)
    x = np.ones((8, 4), np.float32)
    with Verifier(Model(ir.from_proto(proto)), feeds=[{"x": x, "m": mask}]) as verifier:
        verdict = verifier.check(model)
    assert verdict.status == status, verdict.summary()
    if limit < 5:
        assert "padded to 3 rows: the data may give more" in verdict.summary()


def test_a_bound_for_an_open_size() -> None:
    proto = parse(OPEN["open: x[m]"], opset=18)
    model, _ = legalized(proto, pad="5")
    assert model.graph.outputs[0].shape == ir.Shape([5, 4])
    after = unpadded(model, proto)
    for size in (1, 3, 9):
        x = np.arange(size * 4, dtype=np.float32).reshape(size, 4) / 10
        given_ = {"x": x, "m": np.arange(size) % 2 == 0}
        agree(in_runtime(after, given_), in_runtime(proto, given_))


def test_verification_reads_the_count(tmp_path: Any) -> None:
    """Also of the saved file; and a wrong count is a difference."""
    from onnxlathe.model import load, save

    onnx.save(parse(PADDED["x[m]"], opset=18), tmp_path / "original.onnx")
    model, _ = legalized(parse(PADDED["x[m]"], opset=18), pad="max")
    save(model, tmp_path / "padded.onnx")
    wrong = load(tmp_path / "padded.onnx")
    count = wrong.graph.outputs[1]
    more = ir.node("Add", [count, count])
    count.name, more.outputs[0].name, more.outputs[0].type = "before", "y_count", count.type
    wrong.graph.append(more)
    wrong.graph.outputs[1] = more.outputs[0]
    with Verifier(tmp_path / "original.onnx") as verifier:
        verdict = verifier.check(tmp_path / "padded.onnx")
        assert verdict.status == "equal", verdict.summary()
        assert verdict.interface == ["output 'y' is padded to 8 on axis 0 now: compared up to 'y_count'"]
        assert verifier.check(wrong).status == "different"


@pytest.mark.parametrize("wrong", ["many", "0", "-3", "2.5"])
def test_a_wrong_bound(wrong: str) -> None:
    with pytest.raises(UsageError, match="pad"):
        optimize(Model(ir.from_proto(parse(PADDED["x[m]"], opset=18))), [Legalize(pad=wrong)], verify=False)


REFUSED = {
    "meets a tensor of another size": pick("float[8,4] y", "y = Add(s, x)"),
    "two run-time sizes meet": pick(
        "float[n,4] y",
        "i2 = NonZero(p) j2 = Transpose<perm=[1,0]>(i2) t = GatherND(x, j2) y = Add(s, t)",
        more=", bool[8] p",
    ),
    "Resize": pick("float[n,8] y", "y = Resize(s, , f)", "float[2] f = {1, 2}"),
    "in steps": pick(
        "float[n,4] y", "y = Slice(s, a, e, a, k)", "int64[1] a = {0}, int64[1] e = {8}, int64[1] k = {2}"
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_does_not_do(name: str) -> None:
    """The source stays, and why is said."""
    model = Model(ir.from_proto(parse(REFUSED[name], opset=18)))
    infer_model(model)
    before = [n.op_type for n in model.graph]
    context = Context.of(model.ir)
    Legalizing(Legalize(pad="max"), model, context, Nested(SOURCES)).run()
    assert [n.op_type for n in model.graph] == before
    assert any(name in note and "'" in note for note in context.notes), context.notes


def test_one_that_cannot_be_does_not_hinder_another() -> None:
    text = f"""g (float[8,4] x, bool[8] m, bool[8] p) => (float[4] y, float[n,8] z) <int64[1] a = {{0}}, float[2] f = {{1, 2}}> {{
        {PICK} y = ReduceSum<keepdims=0>(s, a)
        t = Compress<axis=0>(x, p) z = Resize(t, , f) }}"""
    model = Model(ir.from_proto(parse(text, opset=18)))
    infer_model(model)
    context = Context.of(model.ir)
    Legalizing(Legalize(pad="max"), model, context, Nested(SOURCES)).run()
    assert [n.op_type for n in model.graph if n.op_type in SOURCES] == ["Compress"]


def test_what_the_target_takes_stays() -> None:
    proto = parse(EXACT["ReduceSum"], opset=18)
    model = Model(ir.from_proto(proto))
    infer_model(model)
    Legalizing(Legalize(pad="max"), model, Context.of(model.ir), Refusing(frozenset({"Erf"}))).run()
    assert [n.op_type for n in model.graph] == [n.op_type for n in proto.graph.node]


def test_nan_is_not_zero() -> None:
    proto = parse(PADDED["coordinates"], opset=18)
    model, _ = legalized(proto, pad="max")
    x = np.array([[np.nan, 0, -0.0], [np.inf, 1, 0], [0, 0, np.nan], [0, -1, 0]], np.float32)
    agree(in_runtime(unpadded(model, proto), {"x": x}), in_runtime(proto, {"x": x}))


@pytest.mark.parametrize("in_order", [0, 1])
@pytest.mark.parametrize(
    ("shape", "axis", "out"),
    [
        ((9,), None, "n"),
        ((3, 4), None, "n"),
        ((6, 3), 0, "n,3"),
        ((2, 7), -1, "2,n"),
        ((5, 2, 2), 0, "n,2,2"),
    ],
)
def test_unique(shape: tuple[int, ...], axis: int | None, out: str, in_order: int) -> None:
    dims = ",".join(map(str, shape))
    own = f"sorted={in_order}" + ("" if axis is None else f", axis={axis}")
    proto = parse(
        f"g (float[{dims}] x) => (float[{out}] y, int64[a] i, int64[b] v, int64[c] n) {{ y, i, v, n = Unique<{own}>(x) }}",
        opset=18,
    )
    model, _ = legalized(proto, pad="max")
    after = unpadded(model, proto)

    @settings(max_examples=30, deadline=None, database=None)
    @given(st_np.arrays(np.float32, shape, elements=st.sampled_from([-1.0, 0.0, 2.0, 2.5])))
    def same(x: Array) -> None:
        agree(in_runtime(after, {"x": x}), in_runtime(proto, {"x": x}))

    same()


@pytest.mark.parametrize("in_order", [0, 1])
def test_every_nan_is_different(in_order: int) -> None:
    proto = parse(
        f"g (float[5] x) => (float[n] y, int64[b] v) {{ y, i, v = Unique<sorted={in_order}>(x) }}", opset=18
    )
    model, _ = legalized(proto, pad="max")
    x = np.array([np.nan, 1, np.nan, 1, 0], np.float32)
    values, inverse = in_runtime(unpadded(model, proto), {"x": x})
    assert np.isnan(values).sum() == 2
    assert sorted(values[~np.isnan(values)].tolist()) == [0, 1]
    np.testing.assert_array_equal(values[inverse], x)


NMS = """g (float[2,12,4] b, float[2,3,12] s) => (int64[n,3] y) <{constants}> {{
    y = NonMaxSuppression<center_point_box={center}>({operands}) }}"""


def _overlapping(random: Any, ties: bool) -> dict[str, Array]:
    boxes = random.random((2, 12, 4)).astype(np.float32)
    boxes[:, 3] = boxes[:, 5]  # the same box twice
    boxes[:, 7, 2] = boxes[:, 7, 0]  # one without an area
    scores = random.random((2, 3, 12)).astype(np.float32)
    return {"b": boxes, "s": np.round(scores, 1) if ties else scores}


@pytest.mark.parametrize("center", [0, 1])
@pytest.mark.parametrize("most", [1, 7, 2**63 - 1])
@pytest.mark.parametrize(("operands", "constants"), [
    ("b, s, k", ""),
    ("b, s, k, iou", ", float[1] iou = {0.3}"),
    ("b, s, k, iou, least", ", float iou = {0.5}, float[1] least = {0.4}"),
    ("b, s, k, , least", ", float least = {0.95}"),
])  # fmt: skip
def test_suppression(center: int, most: int, operands: str, constants: str) -> None:
    text = NMS.format(constants=f"int64[1] k = {{{most}}}{constants}", center=center, operands=operands)
    proto = parse(text, opset=18)
    model, _ = legalized(proto, pad="max")
    after = unpadded(model, proto)
    for seed in range(6):
        given_ = _overlapping(np.random.default_rng(seed), ties=seed % 2 == 1)
        agree(in_runtime(after, given_), in_runtime(proto, given_))


def test_suppression_up_to_a_number_given_at_run_time() -> None:
    proto = parse(
        NMS.format(constants="", center=0, operands="b, s, k").replace("12] s)", "12] s, int64[1] k)"),
        opset=18,
    )
    model, _ = legalized(proto, pad="max")
    after = unpadded(model, proto)
    for k in (0, 1, 5, 100):
        given_ = {**_overlapping(np.random.default_rng(k), ties=False), "k": np.array([k])}
        agree(in_runtime(after, given_), in_runtime(proto, given_))


# What torchvision leaves behind a detector: a threshold, classes kept apart by an offset, the best boxes.
DETECTOR = """g (float[12,4] b, float[12] s) => (float[n,4] y, float[n] z) <int64 k = {9223372036854775807},
    float[1] iou = {0.4}, float least = {0.3}, int64[1] a = {0}, int64[2] two = {0, 1}, int64[1] five = {5}, int64 last = {2}> {
    m = Greater(s, least) i = NonZero(m) at = Squeeze(i, a) b1 = Gather(b, at) s1 = Gather(s, at)
    b2 = Unsqueeze(b1, a) s2 = Unsqueeze(s1, two) r = NonMaxSuppression(b2, s2, k, iou)
    c = Gather<axis=1>(r, last) d = Slice(c, a, five, a) y = Gather(b1, d) z = Gather(s1, d) }"""


@pytest.mark.parametrize("least", [0.0, 0.3, 2.0])
def test_a_detector(least: float) -> None:
    proto = parse(DETECTOR.replace("least = {0.3}", f"least = {{{least}}}"), opset=18)
    model, _ = legalized(proto, pad="max")
    assert [str(v.shape) for v in model.graph.outputs] == ["[5,4]", "[5]", "[1]"]
    after = unpadded(model, proto)
    for seed in range(5):
        random = np.random.default_rng(seed)
        given_ = {"b": random.random((12, 4)).astype(np.float32), "s": random.random(12).astype(np.float32)}
        agree(in_runtime(after, given_), in_runtime(proto, given_))


@needs_target
def test_a_detector_is_built(judge: TargetJudge) -> None:
    model, _ = legalized(parse(DETECTOR, opset=18), pad="max")
    assert judge.judge(model.ir).accepted


def test_no_more_rounds_than_are_used() -> None:
    """A detector that keeps five boxes looks for five, not for as many as there are."""
    model, _ = legalized(parse(DETECTOR, opset=18), pad="max")
    (loop,) = [n for n in model.graph if n.op_type == "Loop"]
    assert loop.inputs[0].const_value.numpy() == 5
    whole, _ = legalized(parse(DETECTOR.replace("Slice(c, a, five, a)", "Identity(c)"), opset=18), pad="max")
    (loop,) = [n for n in whole.graph if n.op_type == "Loop"]
    assert loop.inputs[0].const_value.numpy() == 12


def test_two_loops_do_not_share_names() -> None:
    text = """g (float[1,5,4] b, float[1,1,5] s) => (int64[n,3] y, int64[k,3] z) <int64 k1 = {3}, float[1] iou = {0.4}> {
        open = Neg(s) y = NonMaxSuppression(b, s, k1, iou) z = NonMaxSuppression(b, open, k1, iou) }"""
    proto = parse(text, opset=18)
    model, _ = legalized(proto, pad="max")
    random = np.random.default_rng(0)
    given_ = {
        "b": random.random((1, 5, 4)).astype(np.float32),
        "s": random.random((1, 1, 5)).astype(np.float32),
    }
    agree(in_runtime(unpadded(model, proto), given_), in_runtime(proto, given_))
