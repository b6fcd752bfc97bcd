"""The gallery runs."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxlathe
from helpers import operators, parse
from helpers import run as run_model
from onnxlathe.cli import run
from onnxlathe.pipeline import Registry

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SURGERY = EXAMPLES / "graphsurgeon" / "surgery.py"

DETECTOR = """
g (float[n, 3, 8, 8] x) => (float[n, 64, 4] boxes, float[n, 64, 3] scores) {
    features = Conv <kernel_shape=[1, 1]> (x, w)
    active = Relu(features)
    flat = Reshape(active, shape)
    rows = Transpose <perm=[0, 2, 1]> (flat)
    boxes, logits = Split <axis=2> (rows, parts)
    scores = Sigmoid(logits)
}
"""


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    """Something like the head of a YOLO."""
    weights = {
        "w": np.random.default_rng(0).standard_normal((7, 3, 1, 1)).astype(np.float32),
        "shape": np.array([0, 7, 64]),
        "parts": np.array([4, 3]),
    }
    onnx.save(parse(DETECTOR, 17, weights), tmp_path / "detector.onnx")
    return tmp_path / "detector.onnx"


def optimized(model: Path, plugin: Path, passes: str) -> onnx.ModelProto:
    target = model.with_name("out.onnx")
    code = run(
        [str(model), "-o", str(target), "--plugin", str(plugin), "--passes", passes, "--no-verify", "-q"]
    )
    assert code == 0
    return onnx.load(target)


def test_custom_operator_becomes_a_plugin_node(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 17, "com.acme" : 1]>
    g (float[n, 4] x) => (float[n, 4] y) { a = Relu(x) \n y = com.acme.ScaledSilu(a, scale) }"""
    onnx.save(parse(text, 17, {"scale": np.array(1.5, np.float32)}), tmp_path / "m.onnx")
    plugin = EXAMPLES / "tensorrt_plugin" / "lower_scaled_silu.py"
    model = optimized(tmp_path / "m.onnx", plugin, 'scaled_silu_plugin(version="2")')
    node = model.graph.node[1]
    assert (node.domain, node.op_type) == ("trt.plugins", "ScaledSilu_TRT")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes == {"scale": 1.5, "plugin_version": b"2", "plugin_namespace": b""}
    assert {i.domain for i in model.opset_import} >= {"", "trt.plugins"}
    assert [v.name for v in model.graph.output] == ["y"]


def test_efficient_nms(detector: Path) -> None:
    model = optimized(detector, SURGERY, "efficient_nms(max_boxes=50)")
    assert operators(model)[-1] == "EfficientNMS_TRT"
    node = model.graph.node[-1]
    assert list(node.input) == ["boxes", "scores"]
    assert [v.name for v in model.graph.output] == list(node.output)
    assert [d.dim_param or d.dim_value for d in model.graph.output[1].type.tensor_type.shape.dim] == [
        "n",
        50,
        4,
    ]
    assert {i.domain for i in model.opset_import} >= {"", "trt.plugins"}


def test_image_input(detector: Path) -> None:
    before = onnx.load(detector)
    model = optimized(detector, SURGERY, "image_input(mean=[0.5,0.5,0.5],std=[0.25,0.25,0.5]),fold,tidy")
    onnx.checker.check_model(model, full_check=True)
    image = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    normal = ((image / 255 - 0.5) / np.array([0.25, 0.25, 0.5])).transpose(0, 3, 1, 2).astype(np.float32)
    for want, got in zip(run_model(before, {"x": normal}), run_model(model, {"image": image}), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_cut(detector: Path) -> None:
    model = optimized(detector, SURGERY, "shapes,cut(inputs=[features],outputs=[rows])")
    assert operators(model) == ["Relu", "Reshape", "Transpose"]
    assert [v.name for v in (*model.graph.input, *model.graph.output)] == ["features", "rows"]
    features = np.random.default_rng(2).standard_normal((2, 7, 8, 8)).astype(np.float32)
    (rows,) = run_model(model, {"features": features})
    assert rows.shape == (2, 64, 7)


def test_onnxscript_rules(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    proto = parse(
        "g (float[n, 4] x) => (float[n, 4] y) { a = Relu(x) \n b = Min(a, six) \n c = Neg(b) \n y = Neg(c) }",
        17,
        {"six": np.array(6, np.float32)},
    )
    onnx.save(proto, tmp_path / "m.onnx")
    registry = Registry.standard()
    assert registry.add_plugin(str(EXAMPLES / "onnxscript_rules" / "rules.py")) == ["relu6"]
    model = onnxlathe.load(tmp_path / "m.onnx")
    result = onnxlathe.optimize(model, "shapes,relu6,fold,tidy", registry=registry)
    assert result.verdict is not None
    assert result.verdict.status == "equal"
    assert "relu6" in {rule for step in result.steps for rule in step.fired}
    assert "Clip" in model.count_operators()
    assert "Neg" not in model.count_operators()


def installed(package: Path, site: Path) -> None:
    """What `pip install` leaves behind: the modules, and metadata with the entry points."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = [
        f"[{g}]\n" + "\n".join(f"{k} = {v}" for k, v in e.items()) for g, e in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    for module in (package / "src").iterdir():
        os.symlink(module, site / module.name)


def test_out_of_tree_package_is_found(tmp_path: Path) -> None:
    package = EXAMPLES / "out_of_tree"
    installed(package, tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}

    def program(*words: str) -> str:
        command = [
            sys.executable,
            "-c",
            "import sys; from onnxlathe.cli import run; sys.exit(run(sys.argv[1:]))",
        ]
        return subprocess.run(
            [*command, *words], env=environment, capture_output=True, text=True, check=True
        ).stdout

    listing = program("passes")
    assert "root_of_square" in listing
    assert "onnxlathe-root-of-square 0.1.0" in listing
    assert "root_of_square holds" in program("passes", "check", "root_of_square", "--examples", "30")


def test_out_of_tree_tests_pass() -> None:
    package = EXAMPLES / "out_of_tree"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(package / "tests")],
        env=os.environ | {"PYTHONPATH": str(package / "src")},
        cwd=package,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_out_of_tree_is_what_new_pass_writes() -> None:
    from onnxlathe.cli.new_pass import files

    for path, text in files("root_of_square", "rule").items():
        assert (EXAMPLES / "out_of_tree" / path).read_text() == text
