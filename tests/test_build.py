"""Engines from models, in a child process that may die, hang, or find the disk full."""

from __future__ import annotations

import errno
import json
import os
import platform
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

import onnxlathe
from helpers import parse
from onnxlathe import _files
from onnxlathe.cli import run
from onnxlathe.cli.precision_options import around
from onnxlathe.errors import LatheError, UsageError
from onnxlathe.target import CRASHED, TARGETS, TIMED_OUT, Target, TargetError, timing_cache
from onnxlathe.target import build as building
from onnxlathe.target.build import EngineBuilder, Refused
from onnxlathe.target.engine import Engine, EngineRequest, make_engine
from onnxlathe.target.options import (
    BuildOptions,
    check,
    parse_bytes,
    parse_capabilities,
    parse_capability,
    parse_pool,
)
from onnxlathe.target.profiles import ProfileWishes, make_profiles

HAS_WHEELS = (sys.platform, platform.machine()) in {("linux", "x86_64"), ("win32", "AMD64")}
pytestmark = pytest.mark.skipif(not HAS_WHEELS, reason="tensorrt-rtx has no wheels for this platform")
posix = pytest.mark.skipif(os.name != "posix", reason="signals")

FIXTURES = sorted((Path(__file__).parents[1] / "fixtures").glob("*.onnx"))
RTX = TARGETS["rtx"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    weights = {"w": np.random.default_rng(0).random((32, 64), np.float32)}
    text = "g (float[batch, 32] x) => (float[batch, 64] y) { h = MatMul(x, w) y = Relu(h) }"
    proto = parse(text, weights=weights)
    for node in proto.graph.node:
        node.name = f"my_{node.op_type}"
    onnx.save(proto, path)
    return path


def rtx(script: str = "", name: str = "rtx") -> Target:
    """TensorRT for RTX whose worker runs `script` first; `name` is whose options it takes."""
    run = f"from onnxlathe.target import worker, native_build, native_run\n{textwrap.dedent(script)}\nworker.main()"
    return replace(RTX, name=name, command=(sys.executable, "-c", run, RTX.module))


def build(model: Path, engine: Path, target: Target = RTX, timeout: float = 300.0, **options: Any) -> Engine:
    return make_engine(model, EngineRequest(engine, target, BuildOptions(**options), timeout=timeout))


def nothing_new(folder: Path) -> None:
    """Nothing is there but the model: no engine, no sidecar, nothing temporary."""
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx"]


# Building -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def builder() -> Iterator[EngineBuilder]:
    """One child process for many engines, which are built fast and for one kind of GPU."""
    with EngineBuilder(
        RTX, BuildOptions(builder_optimization_level=0, compute_capabilities=("8.9",))
    ) as builder:
        yield builder


# Pipeline → the type that its outputs have. O3 leaves Attention, which has no kernel in float32.
PIPELINES = {
    "default": "float",
    "O3": "float",
    around("precision(type=fp16)"): "half",
    around("precision(type=bf16)"): "bf16",
}


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_every_fixture_gives_an_engine(
    path: Path, pipeline: str, tmp_path: Path, builder: EngineBuilder
) -> None:
    """With dynamic profiles where dimensions are open."""
    model = onnxlathe.load(path)
    onnxlathe.optimize(model, pipeline, verify=False)
    onnxlathe.save(model, tmp_path / "model.onnx")
    # Sizes that each of them can take; without them they would be looked for.
    wishes = ProfileWishes(ranges=["seq=1:16:64"] if "seq" in str(model.graph.inputs[0].shape) else [])
    profiles = make_profiles(model, wishes)
    open_dims = any(not isinstance(d, int) for v in model.graph.inputs for d in v.shape or ())
    assert bool(profiles) == open_dims
    opened = builder.open(tmp_path / "model.onnx")
    types = {tensor["type"] for tensor in opened.outputs}
    # A GRU has no kernel for bfloat16, and the little that follows it is not worth two Casts.
    assert types == {PIPELINES[pipeline]} or (path.stem.startswith("gru") and types == {"float"})
    with building.staged(tmp_path / "model.engine") as stage:
        built = builder.build(profiles, stage.temporary)
        assert built.nbytes == stage.temporary.stat().st_size > 100_000


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("keep", ["fp32:Attention", "bf16:Attention", "fp32:MatMul"])
@pytest.mark.parametrize("name", ["bert_dyn23", "llama_dyn23", "vit_dyn23"])
def test_attention_among_other_types(
    name: str,
    keep: str,
    precision: str,
    tmp_path: Path,
    builder: EngineBuilder,
    request: pytest.FixtureRequest,
) -> None:
    """Attention in a type of its own, and what is around it in another: what parses must also build."""
    if name == "llama_dyn23" and keep == "fp32:Attention" and precision != "fp32":
        # Of MatMul, RotaryEmbedding and this together TensorRT-RTX 1.7 cannot make a well-formed graph.
        request.applymarker(pytest.mark.xfail(raises=TargetError, strict=True))
    model = onnxlathe.load(next(path for path in FIXTURES if path.stem == name))
    onnxlathe.optimize(model, f'O3,precision(type={precision},keep=["{keep}"])', verify=False)
    onnxlathe.save(model, tmp_path / "model.onnx")
    builder.open(tmp_path / "model.onnx")
    wishes = ProfileWishes(ranges=["seq=1:16:64"] if "seq" in str(model.graph.inputs[0].shape) else [])
    with building.staged(tmp_path / "model.engine") as stage:
        assert builder.build(make_profiles(model, wishes), stage.temporary).nbytes > 100_000


@pytest.mark.parametrize("mask", ["", "float[b, 1, q, k]", "bool[q, k]"])
@pytest.mark.parametrize("size", [16, 24, 64])
@pytest.mark.parametrize("dtype", ["float", "float16", "bfloat16"])
def test_attention_of_every_kind(
    dtype: str, size: int, mask: str, tmp_path: Path, builder: EngineBuilder
) -> None:
    """Heads of sizes with and without a kernel; keys of another length than queries, shared by groups."""
    text = f"""g ({dtype}[b, q, {4 * size}] x, {dtype}[b, k, {2 * size}] y, {dtype}[b, k, {2 * size}] z
        {f", {mask.replace('float', dtype)} m" if mask else ""}) => ({dtype}[b, q, {4 * size}] out) {{
        out = Attention<q_num_heads=4, kv_num_heads=2>(x, y, z{", m" if mask else ""}) }}"""
    path = tmp_path / "model.onnx"
    onnx.save(parse(text, opset=23), path)
    builder.open(path)
    profiles = make_profiles(onnxlathe.load(path), ProfileWishes(ranges=["b=1:2:4", "q=1:8:32", "k=1:8:32"]))
    with building.staged(tmp_path / "model.engine") as stage:
        assert builder.build(profiles, stage.temporary).nbytes > 10_000


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        *((op, {}) for op in ("HardSwish", "Mish", "Celu", "Shrink", "LpNormalization")),
        ("ConvTranspose", {"w": (3, 3, 2, 2)}),
        ("GRU<hidden_size=8>", {"w": (1, 24, 8), "r": (1, 24, 8)}),
    ],
)
def test_what_has_no_kernel_in_a_low_type(
    op: str, shapes: dict[str, tuple[int, ...]], dtype: str, tmp_path: Path, builder: EngineBuilder
) -> None:
    shape = {"ConvTranspose": "n, 3, 8, 8", "GRU<hidden_size=8>": "4, n, 8"}.get(op, "n, 8")
    text = f"g (float[{shape}] x) => (float{'[n, 8]' if not shapes else ''} y) {{ y = {op}(x{''.join(f', {w}' for w in shapes)}) }}"
    random = np.random.default_rng(0)
    source, path = tmp_path / "source.onnx", tmp_path / "model.onnx"
    weights = {w: random.random(s, np.float32) for w, s in shapes.items()}
    onnx.save(parse(text, opset=22, weights=weights), source)
    model = onnxlathe.load(source)
    onnxlathe.optimize(model, f"shapes,precision(type={dtype})", verify=False)
    onnxlathe.save(model, path)
    builder.open(path)
    profiles = make_profiles(model, ProfileWishes(ranges=["n=1:2:4"]))
    with building.staged(tmp_path / "model.engine") as stage:
        assert builder.build(profiles, stage.temporary).nbytes > 10_000


def test_shape_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    text = "g (float[n, 4] x, int64[2] sizes) => (float[a, b] y) { y = Reshape(x, sizes) }"
    onnx.save(parse(text), path)

    def request(*shapes: str) -> EngineRequest:
        return EngineRequest(tmp_path / "e.engine", RTX, wishes=ProfileWishes(shapes, shapes, shapes))

    engine = make_engine(path, request("x:2x4,sizes:4x2"))
    assert engine.profiles[0].values == {"sizes": ((4, 2),) * 3}
    with pytest.raises(UsageError, match="input 'sizes' is a shape tensor"):
        make_engine(path, request("x:2x4"))


def test_a_profile_that_contradicts_the_model(tmp_path: Path) -> None:
    """A table of 16 rows is cut to the length of the input."""
    path = tmp_path / "model.onnx"
    text = """g (float[seq, 8] x) => (float[seq, 8] y) {
        all = Shape(x) n = Slice(all, zero, one) rows = Slice(table, zero, n, zero) y = Add(x, rows) }"""
    weights = {
        "table": np.ones((16, 8), np.float32),
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
    }
    onnx.save(parse(text, weights=weights), path)
    engine = make_engine(path, EngineRequest(tmp_path / "e.engine", RTX))
    assert engine.profiles[0].bindings[2] == {"seq": 16}, "what is proposed is made to fit"
    with pytest.raises(UsageError, match=r"cannot have the max sizes .*seq=32"):
        make_engine(
            path, EngineRequest(tmp_path / "f.engine", RTX, wishes=ProfileWishes(max_shapes=["32x8"]))
        )
    assert not (tmp_path / "f.engine").exists()


def test_refusal_names_the_node(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    proto = parse("g (float[n] x) => (float[m] y) { y = Unique(x) }")
    proto.graph.node[0].name = "the_unique"
    onnx.save(proto, path)
    with pytest.raises(Refused, match="the_unique") as caught:
        build(path, tmp_path / "e.engine")
    assert caught.value.refusals[0].operator == "Unique"
    assert "optimize debug" in caught.value.hint
    nothing_new(tmp_path)


def test_the_library_says_why_it_cannot_build(model: Path) -> None:
    with pytest.raises(TargetError, match="workspace limit") as caught:
        build(model, model.with_suffix(".engine"), memory_pools={"workspace": 1})
    assert "--workspace" in caught.value.hint
    nothing_new(model.parent)


def test_log(model: Path, tmp_path: Path) -> None:
    request = EngineRequest(tmp_path / "e.engine", RTX, log=tmp_path / "e.log")
    make_engine(model, request)
    assert "[VERBOSE]" in (tmp_path / "e.log").read_text()


# What goes wrong ----------------------------------------------------------------------------------------


@posix
def test_killed_from_outside(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"the old one")
    mark = tmp_path / "begun"
    target = rtx(f"""
        import time
        def build(native, **_):
            open({str(mark)!r}, "w").close()
            time.sleep(60)
        worker.HANDLERS["build"] = build
    """)
    parsed = threading.Event()
    killed: list[int] = []
    real = EngineBuilder.open

    def open_and_kill(self: EngineBuilder, path: Path) -> Any:
        opened = real(self, path)

        def kill() -> None:
            while not mark.exists():
                time.sleep(0.01)
            assert self.pid is not None
            killed.append(self.pid)
            os.kill(self.pid, signal.SIGKILL)

        threading.Thread(target=kill).start()
        parsed.set()
        return opened

    monkeypatch.setattr(EngineBuilder, "open", open_and_kill)
    with pytest.raises(TargetError, match="SIGKILL") as caught:
        build(model, engine, target)
    assert caught.value.code == CRASHED
    assert "memory" in caught.value.hint
    assert killed
    mark.unlink()
    assert engine.read_bytes() == b"the old one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.engine", "model.onnx"]


@posix
@pytest.mark.parametrize("handler", ["open", "build"])
def test_crash(handler: str, model: Path) -> None:
    target = rtx(f"""
        import os, signal, sys
        def crash(native, **_):
            print("the library's last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        worker.HANDLERS[{handler!r}] = crash
    """)
    with pytest.raises(TargetError, match=r"(?s)SIGSEGV.*the library's last words") as caught:
        build(model, model.with_suffix(".engine"), target)
    assert caught.value.code == CRASHED
    nothing_new(model.parent)


def test_hang(model: Path) -> None:
    target = rtx("""
        import time
        worker.HANDLERS["build"] = lambda native, **_: time.sleep(600)
    """)
    with pytest.raises(TargetError, match="did not answer within 6 s") as caught:
        build(model, model.with_suffix(".engine"), target, timeout=6)
    assert caught.value.code == TIMED_OUT
    nothing_new(model.parent)


def test_disk_full_at_the_engine(model: Path) -> None:
    target = rtx("""
        import errno
        class Full:
            def __init__(self, file): self.file = file
            def __enter__(self): return self
            def __exit__(self, *_): self.file.close()
            def write(self, data):
                self.file.write(data[:1000])
                raise OSError(errno.ENOSPC, "No space left on device")
        native_build.open = lambda path, mode: Full(open(path, mode))
    """)
    with pytest.raises(
        LatheError, match=r"cannot write the engine in '.*': No space left on device"
    ) as caught:
        build(model, model.with_suffix(".engine"), target)
    assert "room" in caught.value.hint
    nothing_new(model.parent)


def test_disk_full_at_the_sidecar(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = model.with_suffix(".engine")
    build(model, engine)
    before = {path.name: path.read_bytes() for path in model.parent.iterdir()}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(building.os, "fsync", full)
    with pytest.raises(LatheError, match=r"cannot write '.*model.engine': No space left on device"):
        build(model, engine, tf32=False)
    assert {path.name: path.read_bytes() for path in model.parent.iterdir()} == before


def test_places_where_no_engine_can_be(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is the model itself"):
        build(model, model)
    with pytest.raises(UsageError, match="is the model itself"):
        building.check_engine_path(tmp_path / "new.onnx", model, tmp_path / "a" / ".." / "new.onnx")
    with pytest.raises(UsageError, match="it is a folder"):
        build(model, tmp_path)
    with pytest.raises(LatheError, match="no folder"):
        build(model, tmp_path / "nowhere" / "m.engine")


@pytest.mark.parametrize(
    ("command", "victim"),
    [
        (["build", "MODEL", "--report", "MODEL"], "model.onnx"),
        (["build", "MODEL", "--report", "model.engine.json"], "model.engine.json"),
        (["build", "MODEL", "--build-log", "MODEL"], "model.onnx"),
        (["build", "MODEL", "--build-log", "model.engine"], "model.engine"),
        (["MODEL", "-o", "new.onnx", "--report", "MODEL"], "model.onnx"),
        (["MODEL", "-o", "new.onnx", "--report", "new.onnx"], "new.onnx"),
        (["MODEL", "-o", "new.onnx", "--engine", "e", "--build-log", "new.onnx"], "new.onnx"),
        (["MODEL", "-o", "new.onnx", "--engine", "e", "--build-log", "x", "--report", "x"], "x"),
    ],
)
def test_no_report_or_log_replaces_another_file(
    model: Path,
    command: list[str],
    victim: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = model.read_bytes()
    monkeypatch.chdir(model.parent)
    assert run([word.replace("MODEL", model.name) for word in command]) == 2
    assert f"would replace '{victim}'" in " ".join(capsys.readouterr().err.split())
    assert model.read_bytes() == before
    nothing_new(model.parent)


def test_a_model_that_differs_gives_no_engine(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = tmp_path / "original.onnx"
    proto = onnx.load(model)
    proto.graph.node[1].op_type = "Sigmoid"
    onnx.save(proto, original)
    engine = tmp_path / "e.engine"
    assert run(["build", str(model), "-o", str(engine), "--original", str(original), "-q"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "differs from the original within the profiles" in said
    assert "--dim NAME=SIZE" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "original.onnx"]


def test_a_batch_builds_an_engine_that_is_gone_again(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(model.parent)
    Path("other.onnx").write_bytes(model.read_bytes())
    Path("engines").mkdir()
    words = [
        model.name,
        "other.onnx",
        "-o",
        "out",
        "--engine",
        "engines",
        "--builder-optimization-level",
        "0",
    ]
    assert run(words) == 0
    Path("engines/model.engine").unlink()
    capsys.readouterr()
    assert run(words) == 0
    assert "1 done before" in capsys.readouterr().out
    assert Path("engines/model.engine").exists()


# Timing cache -------------------------------------------------------------------------------------------


def test_corrupt_timing_cache(model: Path) -> None:
    """TensorRT's interface, played by TensorRT for RTX, which reads timing caches but puts nothing in."""
    cache = model.with_name("my.cache")
    cache.write_bytes(b"this is no timing cache" * 20)
    with pytest.raises(LatheError, match=r"timing cache '.*my\.cache' cannot be used: ") as caught:
        build(model, model.with_suffix(".engine"), rtx(name="tensorrt"), timing_cache=str(cache))
    assert "delete it" in caught.value.hint
    assert cache.read_bytes() == b"this is no timing cache" * 20
    cache.unlink()
    nothing_new(model.parent)
    build(model, model.with_suffix(".engine"), rtx(name="tensorrt"), timing_cache=str(cache))
    assert cache.stat().st_size > 0, "a new one is begun"


class FakeCache:
    """A timing cache that holds words."""

    def __init__(self, words: set[str]) -> None:
        self.words = words

    def combine(self, other: FakeCache, ignore_mismatch: bool) -> bool:
        self.words |= other.words
        return True

    def serialize(self) -> bytes:
        return json.dumps(sorted(self.words)).encode()


class FakeConfig:
    def __init__(self, native: Any) -> None:
        self.native = native
        self.cache: FakeCache | None = None

    def create_timing_cache(self, data: bytes) -> FakeCache:
        try:
            return FakeCache(set(json.loads(data)) if data else set())
        except ValueError:
            self.native.messages.append(("WARNING", "Failed to deserialize timing cache."))
            return FakeCache(set())

    def set_timing_cache(self, cache: FakeCache, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return "other gpu" not in cache.words

    def get_timing_cache(self) -> FakeCache | None:
        return self.cache


def test_writers_of_a_timing_cache_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "cache"

    def build_once(number: int) -> None:
        native: Any = SimpleNamespace(messages=[])
        config = FakeConfig(native)
        timing_cache.attach(native, config, path)
        assert config.cache is not None
        config.cache.words.add(f"kernel {number}")
        timing_cache.keep(native, config, path)

    threads = [threading.Thread(target=build_once, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert json.loads(path.read_bytes()) == sorted(f"kernel {number}" for number in range(16))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "cache.lock"]


def test_timing_cache_of_another_gpu(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    path.write_text('["other gpu"]')
    native: Any = SimpleNamespace(messages=[])
    with pytest.raises(timing_cache.BadCache, match="another GPU"):
        timing_cache.attach(native, FakeConfig(native), path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_a_pipe_is_written_to_and_not_replaced(model: Path, tmp_path: Path) -> None:
    """As `--report /dev/stdout` is, which is a link to one."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert run(["precision", str(model), "--report", str(link), "-q"]) == 0
        assert json.loads(os.read(reader, 1 << 16))["schema"] == 1
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert link.is_symlink()
    with pytest.raises(UsageError, match="it is no file"):
        build(model, pipe)
    assert pipe.is_fifo()


def test_a_link_stays_one(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(file)
    for words in (b"first", b"second"):
        _files.write_whole(link, words)
        assert file.read_bytes() == words
    assert link.is_symlink()


def test_timing_cache_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cache"
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        _files.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]


# Options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "options", "message", "hint"),
    [
        ("rtx", {"timing_cache": "x"}, "--timing-cache: TensorRT for RTX does not", "--target tensorrt"),
        ("rtx", {"hardware_compatibility": "ampere+"}, "--hardware-compatibility", "--target tensorrt"),
        ("rtx", {"version_compatible": True}, "--version-compatible", "--target tensorrt"),
        ("tensorrt", {"compute_capabilities": ("8.6",)}, "--compute-capabilities", "--target rtx"),
        ("rtx", {"refit": True}, "--refit: TensorRT for RTX needs a GPU", "with a GPU"),
        ("rtx", {"strip_weights": True}, "--strip-weights", "with a GPU"),
        ("rtx", {"compute_capabilities": ("current",)}, "no GPU", "8.9"),
        ("tensorrt", {"exclude_lean_runtime": True}, "--version-compatible", "both"),
        ("rtx", {"plugins": ("no/such.so",)}, "--plugins no/such.so: no such file", ""),
    ],
)
def test_options_that_cannot_be_had(target: str, options: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        check(BuildOptions(**options), target, gpu=False)
    assert hint in caught.value.hint


def test_options_reach_the_builder(model: Path) -> None:
    build(
        model,
        model.with_suffix(".engine"),
        memory_pools={"workspace": 1 << 30, "tactic-shared-memory": 1 << 20},
        builder_optimization_level=1,
        compute_capabilities=("8.6", "12.0"),
        weight_streaming=True,
        sparsity=True,
        profiling_verbosity="detailed",
        tf32=False,
    )
    with pytest.raises(LatheError, match=r"--compute-capabilities 1\.2: .*does not have it") as caught:
        build(model, model.with_suffix(".engine"), compute_capabilities=("1.2",))
    assert "8.6" in caught.value.hint


def test_plugin_library_that_is_none(model: Path) -> None:
    library = model.with_name("no_plugin.so")
    library.write_bytes(b"\x7fELF and then nothing")
    with pytest.raises(LatheError, match=r"no_plugin\.so' cannot be loaded: .*file too short"):
        build(model, model.with_suffix(".engine"), plugins=(str(library),))


def test_spellings() -> None:
    assert parse_bytes("4GiB", "--workspace") == parse_bytes("4G", "") == parse_bytes("4096", "") == 4 << 30
    assert parse_pool("tacticSharedMem:64K") == ("tactic-shared-memory", 64 << 10)
    assert parse_pool("workspace:1.5GiB") == ("workspace", 3 << 29)
    assert {parse_capability(word) for word in ("8.6", "86", "sm_86", "SM86")} == {"8.6"}
    assert parse_capability("sm_120") == "12.0"
    for wrong in ("workspace", "nothing:1G", "workspace:much"):
        with pytest.raises(UsageError, match="--memory-pool"):
            parse_pool(wrong)
    with pytest.raises(UsageError, match="--workspace 0: not a size"):
        parse_bytes("0", "--workspace")
    with pytest.raises(UsageError, match="not a compute capability"):
        parse_capability("ampere")
    assert parse_capabilities("8.6, sm_120,8.6") == ("8.6", "12.0")
    with pytest.raises(UsageError, match="none is named"):
        parse_capabilities(",")


# Weights ------------------------------------------------------------------------------------------------


def test_weights_in_every_form(model: Path, tmp_path: Path, builder: EngineBuilder) -> None:
    """raw_data, float_data, external data, and constants in attributes, which take no address."""

    def layers_of(path: Path) -> int:
        return len(builder.open(path).layers)

    expected = layers_of(model)
    proto = onnx.load(model)
    onnx.save(
        proto, tmp_path / "outside.onnx", save_as_external_data=True, size_threshold=0, location="w.bin"
    )
    assert layers_of(tmp_path / "outside.onnx") == expected
    proto = onnx.load(model)
    array = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    tensor = onnx.helper.make_tensor("w", 1, array.shape, array.reshape(-1).tolist())
    constant = onnx.helper.make_node("Constant", [], ["w"], name="my_weight", value=tensor)
    del proto.graph.initializer[:]
    proto.graph.initializer.append(tensor)
    onnx.save(proto, tmp_path / "floats.onnx")
    assert layers_of(tmp_path / "floats.onnx") == expected
    del proto.graph.initializer[:]
    proto.graph.node.insert(0, constant)
    onnx.save(proto, tmp_path / "constant.onnx")
    assert layers_of(tmp_path / "constant.onnx") == expected
    (tmp_path / "w.bin").write_bytes(b"too short")
    with pytest.raises(Refused):
        layers_of(tmp_path / "outside.onnx")


@posix
def test_more_than_protobuf_can_hold(tmp_path: Path) -> None:
    """A table of 2.7 GiB in a sparse file reaches the parser, and is not read."""
    rows, width = 700_000, 1024
    proto = parse(f"g (int64[n] ids) => (float[n, {width}] y) {{ y = Gather(w, ids) }}")
    tensor = proto.graph.initializer.add(name="w", data_type=1, dims=[rows, width], data_location=1)
    for key, value in (("location", "w.bin"), ("offset", "0"), ("length", str(rows * width * 4))):
        tensor.external_data.add(key=key, value=value)
    (tmp_path / "big.onnx").write_bytes(proto.SerializeToString())
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(rows * width * 4)
    with EngineBuilder(RTX) as builder:
        builder.open(tmp_path / "big.onnx")
        status = Path(f"/proc/{builder.pid}/status")
        if status.exists():
            peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            assert int(peak.split()[1]) < 1_000_000, "kB"


def test_damaged_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x0a\xff\xff\xff nonsense")
    with EngineBuilder(RTX) as builder, pytest.raises(Refused):
        builder.open(tmp_path / "model.onnx")


def test_profiles_of_the_model_are_needed(model: Path, tmp_path: Path) -> None:
    with EngineBuilder(RTX) as builder, building.staged(tmp_path / "e.engine") as stage:
        builder.open(model)
        with pytest.raises(UsageError, match="input 'x' has open dimensions"):
            builder.build([], stage.temporary)
        assert builder.build(make_profiles(onnxlathe.load(model), ProfileWishes()), stage.temporary).nbytes
