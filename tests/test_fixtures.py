"""The committed models are what the other tests believe them to be: valid, small, and runnable."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
MODELS = sorted(FIXTURES.rglob("*.onnx"))

UNKNOWN_OPERATOR = {"custom_op"}  # onnx has no schema for it, ONNX Runtime no kernel
REFUSED = {p.stem for p in MODELS if p.parent.name == "refused"}  # tests/test_refused_mend.py runs these
BOMBS = {"bomb_constantofshape", "bomb_expand"}  # would take 8 GiB


def name_of(path: Path) -> str:
    return path.stem


def feeds(session: ort.InferenceSession, batch: int, seq: int) -> dict[str, np.ndarray]:
    """Random inputs with the symbolic dimensions bound; token ids and masks where the names say so."""
    random = np.random.default_rng(0)
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(bool)": np.bool_}
    result = {}
    for value in session.get_inputs():
        shape = [d if isinstance(d, int) else {"batch": batch, "seq": seq}[d] for d in value.shape]
        if value.type == "tensor(int64)":
            ids = np.ones(shape) if "mask" in value.name else random.integers(1, 900, shape)
            result[value.name] = ids.astype(np.int64)
        elif value.type == "tensor(string)":
            result[value.name] = np.array(["A", "b", "c", "d"][: shape[0]], dtype=object)
        else:
            result[value.name] = random.standard_normal(shape).astype(types[value.type])
    return result


@pytest.mark.parametrize("path", MODELS, ids=name_of)
def test_is_small_and_anonymous(path: Path) -> None:
    content = path.read_bytes()
    assert len(content) < 300_000
    assert b"site-packages" not in content
    assert b"/home/" not in content


@pytest.mark.parametrize("path", [p for p in MODELS if p.stem not in UNKNOWN_OPERATOR], ids=name_of)
def test_is_valid(path: Path) -> None:
    onnx.checker.check_model(str(path), full_check=True)


@pytest.mark.parametrize(
    "path", [p for p in MODELS if p.stem not in UNKNOWN_OPERATOR | BOMBS | REFUSED], ids=name_of
)
def test_runs_at_two_sizes(path: Path) -> None:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for batch, seq in ((1, 64), (3, 5)):
        for output in session.run(None, feeds(session, batch, seq)):
            assert output.size
            assert path.stem == "infinities" or output.dtype.kind != "f" or np.isfinite(output).all()


def test_every_architecture_is_there_from_both_exporters() -> None:
    names = {path.stem for path in MODELS}
    for architecture in ("resnet", "vit", "bert", "gpt2", "llama", "whisperenc", "unet", "lstm"):
        for exporter in ("ts", "dyn"):
            assert any(name.startswith(f"{architecture}_{exporter}") for name in names)
