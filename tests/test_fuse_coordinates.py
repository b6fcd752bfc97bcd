"""What integer tensors are said to count is what they count."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from helpers import Array, parse, run
from onnxlathe.infer import Dim, infer_model
from onnxlathe.model import Model
from onnxlathe_passes.coordinates import Affine, Counters

_SIZES = {"n": 3, "m": 4}


@st.composite
def counting(draw: st.DrawFn) -> tuple[str, dict[str, Array], dict[str, int]]:
    """A graph of integer arithmetic over ranges: its text, constants, and the rank of each of its values."""
    lines = ["s = Shape(x)", "n0 = Gather(s, zero)", "m0 = Gather(s, one)"]
    lines += ["r0 = Range(zero, n0, one)", "r1 = Range(zero, m0, one)", "r2 = Range(two, n0, one)"]
    ranks = {"r0": 1, "r1": 1, "r2": 1, "n0": 0, "m0": 0, "few": 1, "grid": 2}
    weights: dict[str, Any] = {"zero": 0, "one": 1, "two": 2, "first": [-1], "few": [3, 5, 7]}
    weights["grid"] = np.arange(6).reshape(2, 3)
    for index in range(draw(st.integers(1, 8))):
        name, x, y = f"v{index}", draw(st.sampled_from(sorted(ranks))), draw(st.sampled_from(sorted(ranks)))
        rank = ranks[x]
        kinds = ["Unsqueeze", "number", "same", "both"]
        kinds += ["Slice", "Concat", "Transpose", "Expand", "Gather"] if rank else []
        kind = draw(st.sampled_from(kinds))
        if kind == "Unsqueeze" and rank < 4:
            weights[f"a{index}"] = [draw(st.integers(0, rank))]
            lines.append(f"{name} = Unsqueeze({x}, a{index})")
            ranks[name] = rank + 1
        elif kind == "number":
            op = draw(st.sampled_from(["Add", "Sub", "Mul"]))
            lines.append(f"{name} = {op}({x}, {draw(st.sampled_from(['one', 'two', 'n0', 'm0']))})")
            ranks[name] = rank
        elif kind == "same":
            lines.append(f"{name} = {draw(st.sampled_from(['Add', 'Sub', 'Mul']))}({x}, {x})")
            ranks[name] = rank
        elif kind == "both" and ranks[y] and rank:
            # Outer sums always broadcast.
            weights[f"a{index}"] = list(range(rank, rank + ranks[y]))
            lines.append(f"{name}u = Unsqueeze({x}, a{index})")
            lines.append(f"{name} = {draw(st.sampled_from(['Add', 'Sub']))}({name}u, {y})")
            ranks[name] = rank + ranks[y]
        elif kind == "Slice":
            weights[f"a{index}"], weights[f"b{index}"] = (
                [draw(st.integers(0, 1))],
                [draw(st.integers(0, rank - 1))],
            )
            weights[f"e{index}"] = [draw(st.sampled_from([2, 2**40]))]
            lines.append(f"{name} = Slice({x}, a{index}, e{index}, b{index})")
            ranks[name] = rank
        elif kind == "Concat" and rank == 1:
            lines.append(f"{name} = Concat<axis=0>(first, {x})" if draw(st.booleans()) else f"{name} = Concat<axis=0>({x}, {y})" if ranks[y] == 1 else f"{name} = Identity({x})")  # fmt: skip
            ranks[name] = 1
        elif kind == "Transpose":
            lines.append(f"{name} = Transpose<perm={draw(st.permutations(range(rank)))}>({x})")
            ranks[name] = rank
        elif kind == "Expand":
            weights[f"a{index}"] = [2] + [1] * rank
            lines.append(f"{name} = Expand({x}, a{index})")
            ranks[name] = rank + 1
        elif kind == "Gather":
            lines.append(f"{name}d = Sub({x}, {x})")
            lines.append(f"{name} = Gather({name}d, zero)")
            ranks[name] = rank - 1
        if ranks.get(name, 0) > 5:
            break
    arrays = {name: np.array(value, np.int64) for name, value in weights.items()}
    outs = ", ".join(
        f"int64[{', '.join(f'd{n}_{a}' for a in range(r))}] {n}" for n, r in ranks.items() if n[0] in "rv"
    )
    return f"g (float[n, m] x) => ({outs}) {{\n" + "\n".join(lines) + "\n}", arrays, ranks


def number(entry: Any) -> int:
    found = entry.substitute(_SIZES) if isinstance(entry, Dim) else entry
    assert isinstance(found, int)
    return found


def found(proto: onnx.ModelProto) -> list[Array]:
    """What the graph computes; drawn slices can be empty, and then there is nothing to take an entry of."""
    try:
        return run(proto, {"x": np.zeros((_SIZES["n"], _SIZES["m"]), np.float32)})
    except Exception as error:
        if "out of data bounds" in str(error):
            reject()
        raise


def contents(affine: Affine, shape: tuple[int, ...]) -> Array:
    """What the expression says the tensor holds."""
    found = np.full(shape, number(affine.base), np.int64)
    for axis, by in enumerate(affine.slope):
        found = found + number(by) * np.arange(shape[axis]).reshape(-1, *(1,) * (len(shape) - axis - 1))
    return found


@settings(max_examples=120, deadline=None)
@given(counting())
def test_counters(case: tuple[str, dict[str, Array], dict[str, int]]) -> None:
    text, weights, _ = case
    proto = parse(text, 17, weights)
    model = Model(ir.from_proto(proto))
    infer_model(model)
    counters = Counters(17)
    results = found(proto)
    for value, array in zip(model.graph.outputs, results, strict=True):
        affine = counters.affine(value)
        if affine is not None:
            np.testing.assert_array_equal(contents(affine, array.shape), array)


@settings(max_examples=60, deadline=None)
@given(
    counting(),
    st.sampled_from(["Equal", "GreaterOrEqual", "Greater", "LessOrEqual", "Less"]),
    st.sampled_from(["zero", "one", "n0", "r0", "r1", "self"]),
)
def test_truth(case: tuple[str, dict[str, Array], dict[str, int]], kind: str, other: str) -> None:
    text, weights, ranks = case
    name = [n for n in ranks if n[0] in "rv"][-1]
    if ranks[name] > 1 and other in ("r0", "r1"):
        other = "zero"
    lines = f"u = Unsqueeze({name}, last) t = {kind}(u, {name if other == 'self' else other})"
    if other == "self":
        lines = f"t = {kind}({name}, {name})"
    text = text[: text.rindex("}")] + lines + "\n}"
    text = text.replace(
        "=> (", f"=> (bool[{', '.join(f't{a}' for a in range(ranks[name] + (other != 'self')))}] t, ", 1
    )
    if ranks[name] == 1 and other in ("r0", "r1"):
        text = text.replace(f"bool[{', '.join(f't{a}' for a in range(2))}] t", "bool[t0, t1] t")
    proto = parse(text, 17, weights | {"last": np.array([ranks[name]], np.int64)})
    model = Model(ir.from_proto(proto))
    infer_model(model)
    results = found(proto)
    verdict = Counters(17).truth(model.graph.outputs[0])
    if verdict is not None:
        assert (results[0] == verdict).all()


def test_what_is_found_out() -> None:
    text = """g (float[n, m] x) => (int64[n, m] y, bool[n, m] t) {
        s = Shape(x)  n0 = Gather(s, zero)  m0 = Gather(s, one)
        r = Range(zero, n0, one)  c = Range(zero, m0, one)
        r1 = Unsqueeze(r, one1)  a = Mul(r1, m0)  y = Add(a, c)  t = GreaterOrEqual(y, zero)
    }"""
    model = Model(
        ir.from_proto(parse(text, 17, {"zero": np.array(0), "one": np.array(1), "one1": np.array([1])}))
    )
    infer_model(model)
    counters = Counters(17)
    affine = counters.affine(model.graph.outputs[0])
    assert affine is not None
    assert affine.row_major
    assert counters.truth(model.graph.outputs[1]) is True
