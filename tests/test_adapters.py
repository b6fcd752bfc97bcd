"""Foreign functions, rules and programs as passes: weights, provenance and losses."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxlathe
from helpers import operators, parse
from onnxlathe.adapters import from_graphsurgeon, from_onnx_ir, from_onnxscript, from_proto
from onnxlathe.cli import run
from onnxlathe.errors import PassError, UsageError
from onnxlathe.model import FileTensor, Model
from onnxlathe.pipeline import Registry
from onnxlathe.rewrite import origin

ROOT = Path(__file__).parent.parent
BERT = ROOT / "fixtures" / "bert_ts17.onnx"

TWO_RELUS = """
g (float[n, 64] x) => (float[n, 64] y) {
    a = MatMul(x, w)
    b = Relu(a)
    c = Relu(b)
    y = Add(c, w0)
}
"""


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """Two Relus in a row, a weight of 16 kB, metadata on nodes and model."""
    random = np.random.default_rng(0)
    weights = {"w": random.standard_normal((64, 64)).astype(np.float32), "w0": np.ones(64, np.float32)}
    proto = parse(TWO_RELUS, 17, weights)
    for number, node in enumerate(proto.graph.node):
        node.name = f"node{number}"
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=f"layer{number}")
    proto.metadata_props.add(key="author", value="somebody")
    onnx.save(proto, tmp_path / "m.onnx")
    return onnxlathe.load(tmp_path / "m.onnx")


def drop_second_relu(graph: Any) -> None:
    """Relu(Relu(x)) = Relu(x), as a graphsurgeon script would have it."""
    for node in graph.nodes:
        if node.op == "Relu" and node.i().op == "Relu":
            node.inputs = list(node.i().inputs)
    graph.cleanup()


def saved_operators(model: Model, folder: Path) -> list[str]:
    onnxlathe.save(model, folder / "out.onnx")
    proto = onnx.load(folder / "out.onnx")
    onnx.checker.check_model(proto, full_check=True)
    return operators(proto)


def test_graphsurgeon(model: Model, tmp_path: Path) -> None:
    adapted = from_graphsurgeon(drop_second_relu, name="drop_relu")
    assert adapted.summary() == "Relu(Relu(x)) = Relu(x), as a graphsurgeon script would have it."
    result = onnxlathe.optimize(model, [adapted])
    assert result.verdict is not None
    assert result.verdict.status == "equal"
    assert saved_operators(model, tmp_path) == ["MatMul", "Relu", "Add"]
    matmul, relu, _ = model.graph
    assert origin(relu) == ["node2", "node1"]
    assert relu.metadata_props["pkg.torch.onnx.name_scopes"] == "layer2"
    assert matmul.metadata_props["pkg.torch.onnx.name_scopes"] == "layer0"
    assert model.ir.metadata_props["author"] == "somebody"
    assert isinstance(model.graph.initializers["w"].const_value, FileTensor), "the weight stayed on disk"


def test_graphsurgeon_reads_and_writes_a_weight(model: Model) -> None:
    @from_graphsurgeon(name="times")
    def times(graph: Any, *, factor: float = 2.0) -> None:
        """Scale the large weight."""
        constant = graph.tensors()["w"]
        constant.values = constant.values * np.float32(factor)

    before = model.graph.initializers["w"].const_value.numpy().copy()
    assert times.options()["factor"].default == 2.0
    result = onnxlathe.optimize(model, [times(factor=3.0)], verify=False)
    assert result.steps[-1].changes == 1
    np.testing.assert_allclose(model.graph.initializers["w"].const_value.numpy(), before * 3)


def test_doing_nothing_is_no_change(model: Model) -> None:
    nothing = from_graphsurgeon(lambda graph: None, name="nothing")
    graph = model.graph
    result = onnxlathe.optimize(model, [nothing], verify=False)
    assert result.steps[-1].changes == 0
    assert model.graph is graph


def test_proto(model: Model, tmp_path: Path) -> None:
    @from_proto(name="proto_pass")
    def proto_pass(proto: Any) -> Any:
        """Make the second Relu read what the first one reads."""
        proto.graph.node[2].input[0] = proto.graph.node[0].output[0]
        del proto.graph.node[1]
        del proto.metadata_props[:]
        return proto

    result = onnxlathe.optimize(model, [proto_pass])
    assert result.verdict is not None
    assert result.verdict.status == "equal"
    assert saved_operators(model, tmp_path) == ["MatMul", "Relu", "Add"]
    assert result.steps[-1].notes == ["proto_pass dropped the model's metadata 'author'"]


def test_proto_weights_on_demand(model: Model) -> None:
    def read(proto: Any) -> None:
        onnx.numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == "w"))

    with pytest.raises(PassError) as caught:
        onnxlathe.optimize(model, [from_proto(read, name="reads")], verify=False)
    assert "reads" in caught.value.message
    onnxlathe.optimize(model, [from_proto(read, name="reads", weights=True)], verify=False)


def test_onnx_ir(tmp_path: Path) -> None:
    from onnx_ir.passes.common import IdentityEliminationPass

    proto = parse("g (float[4] x) => (float[4] y) { a = Identity(x) \n y = Relu(a) }")
    onnx.save(proto, tmp_path / "m.onnx")
    model = onnxlathe.load(tmp_path / "m.onnx")
    onnxlathe.optimize(model, [from_onnx_ir(IdentityEliminationPass, name="ir_identity")])
    assert saved_operators(model, tmp_path) == ["Relu"]


def test_onnxscript(tmp_path: Path) -> None:
    pattern = pytest.importorskip("onnxscript.rewriter.pattern")
    rule = pattern.RewriteRule(lambda op, x: op.Neg(op.Neg(x)), lambda op, x: op.Identity(x))
    proto = parse("g (float[4] x) => (float[4] y) { a = Neg(x) \n b = Neg(a) \n y = Relu(b) }")
    onnx.save(proto, tmp_path / "m.onnx")
    for rules in (rule, [rule], pattern.RewriteRuleSet([rule])):
        model = onnxlathe.load(tmp_path / "m.onnx")
        result = onnxlathe.optimize(model, [from_onnxscript(rules, name="two_negs")])
        assert result.verdict is not None
        assert result.verdict.status == "equal"
        assert saved_operators(model, tmp_path) == ["Identity", "Relu"]


PROGRAMS = {
    "onnxsim": "onnxsim",
    "onnxslim": "onnxslim",
    "onnxoptimizer": "onnxoptimizer",
    "ort_basic": "onnxruntime",
    "ort_extended": "onnxruntime",
    "surgeon": "polygraphy",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name: str) -> None:
    if importlib.util.find_spec(PROGRAMS[name]) is None:
        pytest.skip(f"{PROGRAMS[name]} is not installed")
    model = onnxlathe.load(ROOT / "fixtures" / "resnet_ts17.onnx")
    before = model.count_nodes()
    result = onnxlathe.optimize(model, name)
    assert result.verdict is not None
    assert result.verdict.status == "equal"
    # onnxoptimizer makes Identities of shared initializers.
    assert model.count_nodes() < before or name == "onnxoptimizer"
    assert result.steps[-1].changes > 0


def test_what_a_program_fuses_knows_its_origin() -> None:
    model = onnxlathe.load(ROOT / "fixtures/tiny/conv_bn_op17.onnx")
    names = {n.op_type: n.name for n in model.graph}
    onnxlathe.optimize(model, "ort_basic")
    (conv,) = [n for n in model.graph if n.op_type == "Conv"][:1]
    assert names["BatchNormalization"] in origin(conv) or len(origin(conv)) > 1


def test_program_with_options(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = 'shapes,ort_basic(skip=["ConvBNFusion", "ConstantFolding"]),tidy'
    target = tmp_path / "o.onnx"
    assert run([str(ROOT / "fixtures/tiny/conv_bn_op17.onnx"), "-o", str(target), "--passes", text]) == 0
    assert "BatchNormalization" in operators(onnx.load(target))


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        onnxlathe.optimize(onnxlathe.load(BERT), "onnxsim", verify=False)
    assert "needs the package onnxsim" in caught.value.message
    assert "onnxlathe[peers]" in caught.value.hint


def test_program_that_fails_is_named(tmp_path: Path) -> None:
    proto = parse(
        '<ir_version: 10, opset_import: ["" : 17, "my.domain" : 1]>\ng (float[4] x) => (float[4] y) { y = my.domain.Strange(x) }'
    )
    onnx.save(proto, tmp_path / "m.onnx")
    model = onnxlathe.load(tmp_path / "m.onnx")
    with pytest.raises(PassError) as caught:
        onnxlathe.optimize(model, "ort_basic", verify=False)
    assert "onnxruntime failed" in caught.value.message
    assert "Strange" in caught.value.message
    assert model.count_nodes() == 1


def test_plugin_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "scripts.py"
    plugin.write_text(
        "from onnxlathe.adapters import from_graphsurgeon, from_proto\n"
        "def clean(graph):\n"
        '    """Remove what nothing needs."""\n'
        "    graph.cleanup()\n"
        'Clean = from_graphsurgeon(clean, name="gs_clean")\n'
        '@from_proto(name="rename", group="")\n'
        'def rename(model, *, to: str = "renamed"):\n'
        '    """Rename the graph."""\n'
        "    model.graph.name = to\n"
    )
    assert run(["passes", "rename", "--plugin", str(plugin)]) == 0
    assert "to: str = renamed" in capsys.readouterr().out
    found = Registry()
    assert sorted(found.add_plugin(str(plugin))) == ["gs_clean", "rename"]


def test_weights_stay_on_disk(tmp_path: Path) -> None:
    """A graphsurgeon pass over a model of 96 MB adds less than a third of that to the process."""
    pytest.importorskip("resource")
    weights = {f"w{i}": np.full((2048, 2048), i, np.float32) for i in range(6)}
    lines = "\n".join(f"a{i + 1} = MatMul(a{i}, w{i})" for i in range(6))
    proto = parse(f"g (float[2, 2048] a0) => (float[2, 2048] y) {{ {lines} \n y = Relu(a6) }}", 17, weights)
    onnx.save(proto, tmp_path / "m.onnx")
    program = """
import resource, sys
import onnxlathe, onnx_graphsurgeon
from onnxlathe.adapters import from_graphsurgeon
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def flip(graph):
    graph.nodes[-1].op = "Neg"
onnxlathe.optimize(onnxlathe.load(sys.argv[2]), [from_graphsurgeon(flip, name="flip")], verify=False)
start = peak()
model = onnxlathe.load(sys.argv[1])
result = onnxlathe.optimize(model, [from_graphsurgeon(flip, name="flip")], verify=False)
assert result.steps[-1].changes == 1
onnxlathe.save(model, sys.argv[1] + ".out.onnx")
print(peak() - start)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "m.onnx"), str(ROOT / "fixtures/tiny/mish_op17.onnx")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 32
    out = onnxlathe.load(str(tmp_path / "m.onnx.out.onnx"))
    assert float(out.graph.initializers["w5"].const_value.numpy()[3, 3]) == 5.0
