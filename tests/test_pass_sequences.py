"""Sequences of known length: what is taken from them is a tensor, and comes out the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import optimized, parse
from legalize_helpers import Array, agree, in_runtime, legalized

RNG = np.random.default_rng(0)

PRELUDE = "<int64 zero = {0}, int64 one = {1}, int64 last = {-1}, int64[3] sizes = {1,3,2}, int64 two = {2}>"

# The nodes that make y of x and z, which have one shape.
BODIES = {
    "insert": "s = SequenceEmpty<dtype=1>() t = SequenceInsert(s, x) u = SequenceInsert(t, z) y = ConcatFromSequence<axis=1>(u)",
    "in front": "s = SequenceConstruct(x) t = SequenceInsert(s, z, zero) y = ConcatFromSequence<axis=0,new_axis=1>(t)",
    "before the last": "s = SequenceConstruct(x, z) e = Exp(x) t = SequenceInsert(s, e, last) y = ConcatFromSequence<axis=-1,new_axis=1>(t)",
    "erase": "s = SequenceConstruct(x, z, x) t = SequenceErase(s, zero) u = SequenceErase(t) y = SequenceAt(u, zero)",
    "erase, negative": "s = SequenceConstruct(x, z) t = SequenceErase(s, last) y = SequenceAt(t, last)",
    "split": "s = SplitToSequence<axis=1>(x, sizes) t = SequenceInsert(s, z, one) y = ConcatFromSequence<axis=1>(t)",
    "split, single": "s = SplitToSequence<axis=1,keepdims=0>(x) i = Identity(s) a = SequenceAt(i, one) b = SequenceAt(i, last) y = Sub(a, b)",
    "split, even": "s = SplitToSequence<axis=-1>(x, two) a = SequenceAt(s, one) b = SequenceAt(s, zero) y = Add(a, b)",
    "length": "s = SequenceConstruct(x, z) t = SequenceInsert(s, x) n = SequenceLength(t) f = Cast<to=1>(n) y = Mul(x, f)",
}  # fmt: skip


def kinds(proto: onnx.ModelProto) -> set[str]:
    return {n.op_type for n in proto.graph.node}


def rewritten(proto: onnx.ModelProto) -> onnx.ModelProto:
    return optimized(proto, "shapes,sequences")


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("rows", [1, 4])
def test_the_same_tensors(body: str, rows: int) -> None:
    proto = parse(
        f"g (float[{rows},6] x, float[{rows},6] z) => (float[*] y) {PRELUDE} {{ {body} }}".replace("[*]", "")
    )
    feeds: dict[str, Array] = {n: RNG.standard_normal((rows, 6)).astype(np.float32) for n in ("x", "z")}
    expected = in_runtime(proto, feeds)
    after = rewritten(proto)
    assert not [k for k in kinds(after) if "Sequence" in k]
    agree(in_runtime(after, feeds), expected)


@pytest.mark.parametrize(
    "body",
    [
        "s = SequenceConstruct(x, z) y = SequenceAt(s, at)",
        "s = SequenceConstruct(x, z) t = SequenceInsert(s, x, at) y = ConcatFromSequence<axis=0>(t)",
        "s = SequenceConstruct(x, z) t = SequenceErase(s, at) y = SequenceAt(t, zero)",
    ],
)
def test_places_that_are_not_constant_stay(body: str) -> None:
    proto = parse(f"g (float[2,6] x, float[2,6] z, int64 at) => (float y) {PRELUDE} {{ {body} }}")
    assert [k for k in kinds(rewritten(proto)) if "Sequence" in k]


LOOP = """g (float[N,3] x, int64 n) => (float[a,N,3] y) <int64 four = {4}, bool yes = {1}> {
    e = SequenceEmpty<dtype=1>()
    s, l = Loop(COUNT, yes, e, x)<body = b (int64 i, bool c, seq(float[N,3]) si, float[N,3] xi)
            => (bool co, seq(float[N,3]) so, float[N,3] xo) {
        co = Identity(c)  xo = Sin(xi)  so = SequenceInsert(si, xo)
    }>
    y = ConcatFromSequence<axis=0, new_axis=1>(s)
}"""


@pytest.mark.parametrize("rows", [1, 5])
def test_a_list_that_a_loop_fills(rows: int) -> None:
    proto = parse(LOOP.replace("COUNT", "four").replace("N", str(rows)))
    feeds = {"x": RNG.standard_normal((rows, 3)).astype(np.float32), "n": np.array(4)}
    expected = in_runtime(proto, feeds)
    after, context = legalized(proto, ["SequenceEmpty", "ConcatFromSequence"])
    assert not [k for k in kinds(after) if "Sequence" in k or k == "Loop"]
    agree(in_runtime(after, feeds), expected)
    assert any("one copy of the body" in note for note in context.notes)


def test_a_loop_of_any_length_stays() -> None:
    proto = parse(LOOP.replace("COUNT", "n").replace("N", "2"))
    assert "Loop" in kinds(rewritten(proto))
    with pytest.raises(AssertionError):
        legalized(proto, ["SequenceEmpty"])
