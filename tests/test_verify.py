"""Equal models pass, wrong ones do not, and what cannot be checked is never called equal."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from helpers import parse
from onnxlathe.errors import UsageError
from onnxlathe.model import Model, load
from onnxlathe.verify import Tolerance, Tolerances, Unchecked, Verdict, Verifier, parse_tolerance, verify
from onnxlathe.verify import session as session_module
from onnxlathe.verify.metrics import compare
from onnxlathe.verify.runtime import RuntimeFailure, RuntimeProcess
from onnxlathe.verify.store import Stored, write
from onnxlathe.verify.worker import classify

FIXTURES = Path(__file__).parent.parent / "fixtures"
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def shared() -> Iterator[RuntimeProcess]:
    """One child process for all tests: it takes a second to load its libraries."""
    runtime = RuntimeProcess(threads=1, timeout=60)
    yield runtime
    runtime.stop()


@pytest.fixture
def check(shared: RuntimeProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> object:
    """`verify` in the shared child, on models given as protos."""

    def run(original: onnx.ModelProto, optimized: onnx.ModelProto, **options: object) -> Verdict:
        paths = []
        for name, proto in (("original", original), ("optimized", optimized)):
            onnx.save(proto, tmp_path / f"{name}.onnx")
            paths.append(tmp_path / f"{name}.onnx")
        with monkeypatch.context() as patch:
            patch.setattr(session_module, "RuntimeProcess", lambda **_: shared)
            patch.setattr(shared, "stop", lambda: None)
            return verify(*paths, **options)  # type: ignore[arg-type]

    return run


def mlp(gelu: str = "Gelu(h)", head: str = "float[n, 8] y", extra: str = "") -> onnx.ModelProto:
    rng = np.random.default_rng(7)
    return parse(
        f"g (float[n, 16] x) => ({head}) {{ h = MatMul(x, w)  a = {gelu}  y = MatMul(a, v) {extra} }}",
        opset=20,
        weights={
            "w": rng.standard_normal((16, 64)).astype(np.float32) / 4,
            "v": rng.standard_normal((64, 8)).astype(np.float32) / 8,
        },
    )


# --- Models --------------------------------------------------------------------------------------------


def test_a_model_equals_itself(check) -> None:  # type: ignore[no-untyped-def]
    verdict = check(mlp(), mlp())
    assert verdict.status == "equal"
    assert [f.label for f in verdict.feeds] == ["seed 0, n=2", "seed 1, n=3"]
    assert {c.output for c in verdict.comparisons} == {"y"}
    assert verdict.worst().max_abs == 0
    assert "equal" in verdict.summary()
    assert json.loads(json.dumps(verdict.to_dict(), allow_nan=False))["status"] == "equal"


def test_another_order_of_sums_is_equal(check) -> None:  # type: ignore[no-untyped-def]
    other = mlp()
    w = onnx.numpy_helper.to_array(other.graph.initializer[0])
    order = np.random.default_rng(1).permutation(64)
    other.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(w[:, order], "w"))
    v = onnx.numpy_helper.to_array(other.graph.initializer[1])
    other.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(v[order], "v"))
    verdict = check(mlp(), other)
    assert verdict.status == "equal"
    assert 0 < verdict.worst().excess < 0.1, "a margin of ten"


def test_the_neighbouring_formula_is_different(check) -> None:  # type: ignore[no-untyped-def]
    verdict = check(mlp(), mlp('Gelu<approximate="tanh">(h)'))
    assert verdict.status == "different"
    worst = verdict.worst()
    assert worst.max_abs < 1e-3, "and that is a small difference"
    assert worst in verdict.failures
    assert "output 'y'" in verdict.summary()
    loose = check(mlp(), mlp('Gelu<approximate="tanh">(h)'), tolerances=Tolerances(atol={"y": 1e-2}))
    assert loose.status == "equal"
    with pytest.raises(UsageError, match="'z'"):
        check(mlp(), mlp(), tolerances=Tolerances(rtol={"z": 1e-2}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (mlp(head="float[n, 8] y, float[n, 64] a"), "has an output 'a' that the original lacks"),
        (mlp(extra="z = Relu(y)", head="float[n, 8] z"), "has no output 'y'"),
        (mlp(gelu="NoSuch(h)"), "No Op registered for NoSuch"),
        (parse("g (float[n, 16] x, float[n] q) => (float[n, 8] y) { y = MatMul(x, w) }", weights={"w": np.zeros((16, 8), np.float32)}), "an input 'q' that the original lacks"),
        (parse("g (float[n, 15] x) => (float[n, 8] y) { y = MatMul(x, w) }", weights={"w": np.zeros((15, 8), np.float32)}), "cannot be run"),
    ],
)  # fmt: skip
def test_broken_candidates_are_different(check, change: onnx.ModelProto, says: str) -> None:  # type: ignore[no-untyped-def]
    verdict = check(mlp(), change)
    assert verdict.status == "different"
    assert says in verdict.error


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("y = Cast<to=11>(x)", "has type float64 instead of float32"),
        ("t = Transpose(x)  y = Identity(t)", "has shape [4, 2] instead of [2, 4]"),
    ],
)
def test_types_and_shapes_count(check, body: str, says: str) -> None:  # type: ignore[no-untyped-def]
    original = parse("g (float[n, 4] x) => (float[a, b] y) { y = Identity(x) }")
    change = parse(f"g (float[n, 4] x) => (float[a, b] y) {{ {body} }}")
    change.graph.output[0].type.tensor_type.elem_type = 11 if "to=11" in body else 1
    verdict = check(original, change)
    assert verdict.status == "different"
    assert says in verdict.failures[0].reason


def test_custom_operators_are_not_called_equal(check) -> None:  # type: ignore[no-untyped-def]
    def custom(body: str) -> onnx.ModelProto:
        return parse(
            '<ir_version: 10, opset_import: ["" : 18, "trt" : 1]>'
            f"g (float[n, 4] x) => (float[n, 4] y, float[n, 4] z) {{ {body} }}"
        )

    with_plugin = custom("t = trt.Plugin(x)  y = Relu(t)  z = Relu(x)")
    verdict = check(with_plugin, with_plugin)
    assert verdict.status == "partially checked"
    (unchecked,) = verdict.unchecked
    assert (unchecked.output, unchecked.operator) == ("y", "trt::Plugin")
    assert {c.output for c in verdict.comparisons} == {"z"}
    wrong = check(with_plugin, custom("t = trt.Plugin(x)  y = Relu(t)  z = Neg(x)"))
    assert wrong.status == "different"
    made = check(custom("y = Relu(x)  z = Relu(x)"), custom("y = trt.Plugin(x)  z = trt.Other(y)"))
    assert made.status == "unchecked"
    assert made.unchecked[0].operator.startswith("trt::")


def test_no_kernel_is_unchecked(check) -> None:  # type: ignore[no-untyped-def]
    original = parse("g (int16[n, 4] x) => (int16[n, 4] y) { y = Relu(x) }")
    verdict = check(original, original)
    assert verdict.status == "unchecked"
    assert verdict.unchecked[0].operator == "Relu"


def test_a_version_that_is_too_new_is_unchecked(check) -> None:  # type: ignore[no-untyped-def]
    head = '<ir_version: 10, opset_import: ["" : 28, "mine" : 1]>'
    future = parse(f"{head} g (float[n, 4] x) => (float[n, 4] y) {{ y = mine.Odd(x) }}")
    for pair in [(future, future), (parse("g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }"), future)]:
        verdict = check(*pair)
        assert verdict.status == "unchecked"
        assert "too old" in verdict.unchecked[0].reason


def test_what_onnx_knows_and_the_runtime_does_not_is_evaluated(check) -> None:  # type: ignore[no-untyped-def]
    text = "g (float[n, 4] x, float[n, 4] g) => (float[n, 4] y) {{ y = {0}(g, x) }}"
    new = parse(text.format("SwiGLU"), 28)
    old = parse(
        "g (float[n, 4] x, float[n, 4] g) => (float[n, 4] y) { s = Sigmoid(g) t = Mul(s, g) y = Mul(t, x) }"
    )
    wrong = parse("g (float[n, 4] x, float[n, 4] g) => (float[n, 4] y) { s = Sigmoid(g) y = Mul(s, x) }")
    for original, candidate, status in [(new, new, "equal"), (new, old, "equal"), (new, wrong, "different")]:
        verdict = check(original, candidate)
        assert verdict.status == status, verdict.summary()
        assert any("reference evaluator" in note for note in verdict.notes)


def test_random_outputs_are_not_checked(check) -> None:  # type: ignore[no-untyped-def]
    text = """g (float[n, 4] x, bool c) => (float[n, 4] y, float[n, 4] z, float[n, 4] s, float[n, 4] b) {{
        r = RandomUniformLike{0}(x)  y = Add(x, r)  z = Relu(x)  s = RandomNormalLike<seed=1.0>(x)
        b = If (c) <then_branch = t () => (float[n, 4] p) {{ p = Bernoulli(z) }},
                    else_branch = e () => (float[n, 4] q) {{ q = Add(x, r) }}>
    }}"""
    original = parse(text.format(""), opset=18)
    verdict = check(original, original)
    assert verdict.status == "partially checked"
    assert {u.output for u in verdict.unchecked} == {"y", "b"}
    assert all("no seed" in u.reason for u in verdict.unchecked)
    assert {c.output for c in verdict.comparisons} == {"z", "s"}


def test_sequences_and_strings(check) -> None:  # type: ignore[no-untyped-def]
    text = """g (float[n, 4] x, string[3] s) => (seq(float) q, string[3] t) {{
        q = SequenceConstruct({0})  t = Identity(s)
    }}"""
    verdict = check(parse(text.format("x, x")), parse(text.format("x, x")))
    assert verdict.status == "equal"
    assert {c.output for c in verdict.comparisons} == {"q.length", "q[0]", "q[1]", "t"}
    shorter = check(parse(text.format("x, x")), parse(text.format("x")))
    assert shorter.status == "different"
    assert {c.output for c in shorter.failures} == {"q.length", "q[1]"}


def test_floats_that_numpy_lacks(check) -> None:  # type: ignore[no-untyped-def]
    text = "g (float[n, 4] x, bfloat16[3] b) => (float[n, 4] y, bfloat16[3] c) {{ y = Relu(x)  c = {0}(b) }}"
    verdict = check(parse(text.format("Identity")), parse(text.format("Identity")))
    assert verdict.status == "equal"
    assert {c.dtype for c in verdict.comparisons} == {"float32", "bfloat16"}
    cast = parse(
        "g (float[n, 4] x, bfloat16[3] b) => (float[n, 4] y, bfloat16[3] c)"
        "{ y = Relu(x)  f = Cast<to=1>(b)  h = Mul(f, two)  c = Cast<to=16>(h) }",
        weights={"two": np.float32(2)},
    )
    assert check(parse(text.format("Identity")), cast).status == "different"


def test_sizes_that_the_original_refuses_are_replaced(check) -> None:  # type: ignore[no-untyped-def]
    fixed = parse(
        "g (float[n, s] x) => (float[n, s] y) { y = Add(x, w) }", weights={"w": np.ones((1, 16), np.float32)}
    )
    verdict = check(fixed, fixed)
    assert verdict.status == "equal"
    assert verdict.feeds[0].shapes["x"] == [1, 16]
    assert verdict.notes
    impossible = parse(
        "g (float[n, s] x) => (float[n, 2] y) { y = MatMul(x, w) }",
        weights={"w": np.ones((37, 2), np.float32)},
    )
    verdict = check(impossible, impossible)
    assert verdict.status == "unchecked"
    assert "--data" in verdict.unchecked[0].hint
    assert check(impossible, impossible, bindings={"s": 37}).status == "equal"
    own = [{"x": np.ones((2, 37), np.float32)}]
    assert check(impossible, impossible, feeds=own).status == "equal"
    assert check(impossible, impossible, feeds=[{"x": np.ones((2, 3), np.float32)}]).status == "unchecked"
    assert check(impossible, impossible, feeds=[]).status == "unchecked"


def test_outputs_without_a_number_are_not_equal(check) -> None:  # type: ignore[no-untyped-def]
    blank = parse(
        "g (float[n, 4] x) => (float[n, 4] y) { a = Abs(x)  m = Neg(a)  o = Sub(m, one)  y = Sqrt(o) }",
        weights={"one": np.float32(1)},
    )
    verdict = check(blank, blank)
    assert verdict.status == "unchecked" or verdict.unchecked[0].output == "y"
    assert "NaN" in verdict.unchecked[0].reason


def test_a_model_in_memory_and_several_candidates(tmp_path: Path) -> None:
    original = Model(ir.from_proto(mlp()))
    with Verifier(original, threads=1) as verifier:
        assert verifier.check(original.clone()).status == "equal"
        assert verifier.check(Model(ir.from_proto(mlp("Relu(h)")))).status == "different"
        assert verifier.check(original.clone()).status == "equal"
        folder = verifier._session.folder
        assert folder.exists()
    assert not folder.exists()


@pytest.mark.parametrize("name", ["bert_ts17", "llama_dyn20", "unet_dyn18", "lstm_ts14"])
def test_real_exports(check, name: str) -> None:  # type: ignore[no-untyped-def]
    path = FIXTURES / f"{name}.onnx"
    if not path.exists():
        pytest.skip("no such fixture")
    proto = onnx.load(path)
    verdict = check(proto, proto)
    assert verdict.status == "equal"
    shapes = [tuple(f.shapes[k]) for f in verdict.feeds for k in list(f.shapes)[:1]]
    assert shapes[0] != shapes[1], "two sizes"
    changed = onnx.load(path)
    for tensor in changed.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim >= 2 and array.any():
            tensor.CopyFrom(onnx.numpy_helper.from_array(array * np.float32(1.01), tensor.name))
    assert check(proto, changed).status == "different"


# --- The child process -----------------------------------------------------------------------------------


def test_a_crash_and_a_hang_cost_one_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(mlp(), tmp_path / "m.onnx")
    runtime = RuntimeProcess(threads=1, timeout=60)
    try:
        runtime.open(tmp_path / "m.onnx")
        process = runtime._process
        assert process is not None
        process.kill()
        process.wait()
        with monkeypatch.context() as patch:
            # As if it had died after it was last looked at, and not before.
            patch.setattr(runtime, "start", lambda: None)
            with pytest.raises(RuntimeFailure) as caught:
                runtime.open(tmp_path / "m.onnx")
        assert caught.value.kind == "crash"
        assert "SIGKILL" in caught.value.message or os.name == "nt"
        assert runtime.open(tmp_path / "m.onnx")["outputs"] == ["y"], "started again"
        loop = parse(
            "g (float[n, 4] x, int64 n_times) => (float[n, 4] y) {"
            " c = Constant<value=bool {1}>() y = Loop (n_times, c, x) <body = b (int64 i, bool k, float[n, 4] p)"
            " => (bool k2, float[n, 4] q) { k2 = Identity(k)  q = Identity(p) }> }"
        )
        onnx.save(loop, tmp_path / "slow.onnx")
        write(tmp_path / "f.npz", {"x": np.ones((1, 4), np.float32), "n_times": np.array(10**12)})
        runtime.open(tmp_path / "slow.onnx")
        runtime.timeout = 1.0
        start = time.perf_counter()
        with pytest.raises(RuntimeFailure) as caught:
            runtime.run(tmp_path / "f.npz", tmp_path / "o.npz")
        assert caught.value.kind == "timeout"
        assert time.perf_counter() - start < 10
    finally:
        runtime.stop()


def test_the_users_folder_cannot_shadow_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit(3)")
    onnx.save(mlp(), tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    assert verify("m.onnx", "m.onnx", threads=1).status == "equal"


def test_the_parent_imports_no_runtime() -> None:
    code = (
        "import sys, onnxlathe.verify, onnxlathe.verify.compare, onnxlathe.model.data; "
        "print([m for m in ('onnxruntime', 'polygraphy', 'onnx.reference', 'networkx') if m in sys.modules])"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Fail: [ONNXRuntimeError] : 1 : FAIL : Load model from m.onnx failed:Fatal error: my.dom:Foo(-1) is not a registered function/op", ("unsupported", "my.dom::Foo", "")),
        ("NotImplemented: [ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for Relu(14) node with name 'n1'", ("unsupported", "Relu", "n1")),
        ("Unsupported model IR version: 99, max supported IR version: 13", ("version", "", "")),
        ("Non-zero status code returned while running Reshape node. Name:'r' Status Message: bad", ("invalid", "Reshape", "r")),
        ("RuntimeException: std::bad_alloc", ("memory", "", "")),
    ],
)  # fmt: skip
def test_messages_are_understood(message: str, expected: tuple[str, str, str]) -> None:
    found = classify(message)
    assert (found["kind"], found["operator"], found["node"]) == expected


def test_arrays_travel_through_files(tmp_path: Path) -> None:
    arrays = {
        "a/b:0": RNG.standard_normal((2, 3)).astype(np.float32),
        "bf": np.array([1.5], ml_dtypes.bfloat16),
        "f8": np.array([[1.5, 2]], ml_dtypes.float8_e4m3fn),
        "words": np.array([["a", "ü"]], object),
        "empty": np.zeros((0, 4), np.int64),
        "scalar": np.array(True),
    }
    write(tmp_path / "x.npz", arrays)
    with Stored(tmp_path / "x.npz") as stored:
        assert list(stored) == list(arrays)
        for name, array in arrays.items():
            assert stored[name].dtype == array.dtype
            assert stored[name].shape == array.shape
            assert (stored[name] == array).all()


# --- The numbers -----------------------------------------------------------------------------------------

LOOSE = Tolerance(1e-6, 1e-3, 1e-2)


def numbers(b: object, a: object, tolerance: Tolerance = LOOSE) -> Mapping[str, object]:
    result = compare("y", 0, np.asarray(b), np.asarray(a), tolerance)
    assert result.passed == (not result.reason)
    return vars(result)


def test_metrics_by_hand() -> None:
    found = numbers(np.array([3.0, 4.0]), np.array([3.0, 4.5]))
    assert found["max_abs"] == 0.5
    assert found["mean_abs"] == 0.25
    assert found["max_rel"] == 0.125
    assert found["rel_norm"] == pytest.approx(0.1)
    assert found["cosine"] == pytest.approx((9 + 18) / (5 * math.hypot(3, 4.5)))
    assert found["worst_index"] == [1]
    assert not found["passed"]


def test_metrics_do_not_depend_on_the_piece_size(monkeypatch: pytest.MonkeyPatch) -> None:
    b = RNG.standard_normal((1, 37, 11))
    a = b + 1e-4 * RNG.standard_normal(b.shape)
    whole = numbers(b, a)
    monkeypatch.setattr("onnxlathe.verify.metrics._PIECE", 25)
    pieces = numbers(b, a)
    assert whole["worst_index"] == pieces["worst_index"]
    for key in ("max_abs", "mean_abs", "rel_norm", "cosine", "excess"):
        assert whole[key] == pytest.approx(pieces[key])
    assert len(whole["worst_index"]) == 3  # type: ignore[arg-type]


def test_nan_and_infinity_have_their_places() -> None:
    special = np.array([np.nan, np.inf, -np.inf, 1.0])
    assert numbers(special, special.copy())["passed"]
    for other in ([1, np.inf, -np.inf, 1], [np.nan, -np.inf, -np.inf, 1], [np.nan, np.inf, -np.inf, np.nan]):
        found = numbers(special, np.array(other, float))
        assert not found["passed"]
        assert not found["nonfinite_agree"]


def test_small_elements_among_large_ones() -> None:
    b = np.full(1000, 100.0)
    b[0] = 1e-5
    a = b.copy()
    a[0] = 2e-5
    assert numbers(b, a)["passed"], "rounding error of the large terms"
    assert not numbers(b[:1], a[:1])["passed"]


def test_a_small_difference_everywhere() -> None:
    b = RNG.standard_normal(10000)
    everywhere = numbers(b, b * (1 + 5e-4), Tolerance(1e-6, 1e-3, 1e-4))
    assert not everywhere["passed"]
    assert "norm" in str(everywhere["reason"])
    somewhere = b.copy()
    somewhere[0] *= 1 + 5e-4
    assert numbers(b, somewhere, Tolerance(1e-6, 1e-3, 1e-4))["passed"]
    tiny = np.full(1000, 1e-9)
    assert numbers(tiny, -tiny)["passed"], "all of it is rounding error"
    zero = np.zeros(100)
    assert numbers(zero, zero + 1e-8)["passed"]
    assert not numbers(zero, zero + 1e-3)["passed"]


def test_integers_strings_and_booleans_are_exact() -> None:
    exact = Tolerance()
    assert numbers([1, 2], [1, 2], exact)["passed"]
    assert not numbers([1, 2], [1, 3], exact)["passed"]
    assert not numbers([2**62], [2**62 + 1], exact)["passed"]
    assert not numbers([True], [False], exact)["passed"]
    assert numbers(np.array(["a"], object), np.array(["a"], object))["passed"]
    assert not numbers(np.array(["a"], object), np.array(["b"], object))["passed"]
    assert numbers(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32))["passed"]
    assert numbers(np.float32(3), np.float32(3))["passed"]
    assert not numbers(np.array([1 + 2j]), np.array([1 + 3j]))["passed"]


# --- Tolerances and verdicts -------------------------------------------------------------------------------


def test_tolerances_as_polygraphy_spells_them() -> None:
    assert parse_tolerance(["1e-3", "out0:1e-4", "a:b:0.5"]) == {"": 1e-3, "out0": 1e-4, "a:b": 0.5}
    for wrong in (["x"], ["out:"], ["-1"], ["nan"], ["inf"], ["1", "2"]):
        with pytest.raises(UsageError):
            parse_tolerance(wrong)


def test_tolerance_of_an_output() -> None:
    mine = Tolerances(atol={"": 0.5, "y": 0.1}, rtol={"z": 0.2})
    assert mine.of("y", "float32").atol == 0.1
    assert mine.of("z", "float32") == Tolerance(0.5, 0.2, None)
    none = Tolerances()
    assert none.of("y", "int64") == Tolerance()
    assert none.of("y", "float32", through="float16") == none.of("y", "float16")
    assert none.of("y", "uint8", through="quantized").atol == 1
    assert none.of("y", "int64", through="quantized") == Tolerance()
    assert none.of("y", "float8_e4m3fn").atol > none.of("y", "bfloat16").atol


def test_precision_follows_the_values() -> None:
    from onnxlathe.verify.limits import output_precisions

    half = Model(ir.from_proto(parse(
        "g (float[n, 4] x) => (float[n, 4] y, float[n, 4] z)"
        "<float16[n, 4] h> { h = Cast<to=10>(x)  y = Cast<to=1>(h)  z = Relu(x) }"
    )))  # fmt: skip
    assert output_precisions(half) == {"y": "float16", "z": "float32"}
    quantized = load(FIXTURES / "tiny" / "quantized.onnx")
    assert "quantized" in output_precisions(quantized).values()


def test_a_verdict_without_comparisons_is_unchecked() -> None:
    assert Verdict().status == "unchecked"
    verdict = Verdict(unchecked=[Unchecked("", "no reason at all")])
    assert verdict.status == "unchecked"
    assert "no reason at all" in verdict.summary()
    assert verdict.worst() is None
    assert Verdict(error="boom").status == "different"


@pytest.mark.parametrize("size", [4, 300])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_outputs_below_the_tolerance_say_nothing(size: int, kind: type) -> None:
    """Where zeros would have passed as well, only a difference that is small beside the output counts."""
    row = Tolerances().of("y", np.dtype(kind).name)
    x = np.linspace(1, 2, size).astype(np.float64)
    small = (x * row.atol / 60).astype(np.float32)
    for wrong in (small * 0, small * 2, -small):
        comparison = compare("y", 0, small, wrong, row)
        assert comparison.passed
        assert not comparison.telling
    assert compare("y", 0, small, small * np.float32(1 + row.norm / 2), row).telling  # type: ignore[operator]
    assert compare("y", 0, small, small, row).telling
    large = (x * row.atol * 100).astype(np.float32)
    assert compare("y", 0, large, large * np.float32(1 + row.rtol / 2), row).telling
    assert compare("y", 0, small * 0, small * 0, row).telling


def test_a_tiny_output_is_not_called_equal(check) -> None:  # type: ignore[no-untyped-def]
    def scaled(factor: float) -> onnx.ModelProto:
        weights = {"tiny": np.array(factor, np.float32)}
        return parse(
            "g (float[n] x) => (float[n] y, float[n] z) { y = Mul(x, tiny) z = Neg(x) }", weights=weights
        )

    assert check(scaled(1e-8), scaled(1e-8)).status == "equal"
    verdict = check(scaled(1e-8), scaled(3e-8))
    assert verdict.status == "partially checked"
    (remark,) = verdict.unchecked
    assert remark.output == "y"
    assert "smaller than the tolerance" in remark.reason
    assert "--atol y:" in remark.hint
    sharp = parse_tolerance([remark.hint.split("--atol ")[1]])
    assert check(scaled(1e-8), scaled(3e-8), tolerances=Tolerances(atol=sharp)).status == "different"
    assert check(scaled(1e-2), scaled(3e-2)).status == "different"


def test_a_weight_that_nothing_uses_stands_in_nobodys_way(tmp_path: Path) -> None:
    """ONNX Runtime drops it before weights are mapped into memory."""
    weights = {"w": np.eye(32, dtype=np.float32), "idle": np.ones((32, 32), np.float32)}
    proto = parse("g (float[n,32] x) => (float[n,32] y) { y = MatMul(x, w) }", weights=weights)
    onnx.save(proto, tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx")
    assert "idle" in model.graph.initializers
    assert verify(tmp_path / "m.onnx", model).status == "equal"
