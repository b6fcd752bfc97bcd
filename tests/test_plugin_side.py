"""new-pass, diff, --why-not, --break-after, and what is not imported unasked."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import onnxlathe
from helpers import parse, registry
from onnxlathe.cli import run
from onnxlathe.report.diff import difference
from onnxlathe.rewrite.explain import near_misses

ROOT = Path(__file__).parent.parent
TINY = ROOT / "fixtures" / "tiny"


@pytest.mark.parametrize("kind", ["rule", "function", "graphsurgeon"])
def test_new_pass_works(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["new-pass", "my_own", "--kind", kind]) == 0
    folder = tmp_path / "onnxlathe-my-own"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert run(["new-pass", "my_own"]) == 2, "the folder exists"


@pytest.mark.parametrize("name", ["gelu", "tidy", "O2", "check", "My", "a-b", "class", "../x"])
def test_new_pass_refuses_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["new-pass", name]) == 2
    assert not list(tmp_path.iterdir())


def misses(text: str, rule: str, opset: int = 20) -> list[str]:
    import onnx_ir as ir

    from onnxlathe.infer import infer_model

    model = onnxlathe.Model(ir.from_proto(parse(text, opset)))
    infer_model(model)
    found = near_misses(registry().get(rule).cls(), model)
    return [miss.reason if not miss.fires else "fires" for miss in found]


GELU = "g (float[n, 4] x) => (float[n, 4] y) {{ r = Constant <value = float {{{root}}}> () \n one = Constant <value = float {{1.0}}> () \n half = Constant <value = float {{0.5}}> () \n d = Div(x, r) \n e = {inner}(d) \n a = Add(e, one) \n m = Mul({gated}, a) \n y = Mul(m, half) }}"


def gelu(root: str = "1.4142135", inner: str = "Erf", gated: str = "x") -> str:
    return GELU.format(root=root, inner=inner, gated=gated)


@pytest.mark.parametrize(
    ("text", "opset", "reason"),
    [
        (gelu(), 20, "fires"),
        (gelu(), 17, "it needs opset 20, and the model has 17"),
        (gelu(root="1.5"), 20, "%r is 1.5 rather than the constant 1.414214"),
        (gelu(inner="Tan"), 20, "is Tan rather than"),
        (gelu(gated="d"), 20, "'x' is %d in one place and %x in another"),
        (gelu().replace("(float[n, 4] y)", "(float[n, 4] y, float[n, 4] e)"), 20, "e is an output of the model"),
        (gelu().replace("}", "z = Neg(a) }", 9).replace("z = Neg(a) }>", "}>").replace("=> (float[n, 4] y)", "=> (float[n, 4] y, float[n, 4] z)"), 20, "a is also used by"),
        (gelu().replace("float[n, 4]", "double[n, 4]").replace("float {", "double {"), 20, "fires"),
    ],
)  # fmt: skip
def test_why_not(text: str, opset: int, reason: str) -> None:
    found = misses(text, "gelu", opset)
    assert found
    assert reason in found[0]


def test_why_not_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(TINY / "gelu_almost.onnx"), "--why-not", "gelu"]) == 0
    said = capsys.readouterr().out
    assert "1.732051 rather than the constant 1.414214" in said
    assert "5 operators fitted" in said
    assert run(["inspect", str(ROOT / "fixtures/bert_ts17.onnx"), "--why-not", "all", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["gelu"][0]["reason"] == "it needs opset 20, and the model has 17"
    assert run(["inspect", str(TINY / "gelu_almost.onnx"), "--why-not", "gleu"]) == 2
    assert run(["inspect", str(TINY / "gelu_almost.onnx"), "--why-not", "dead"]) == 2


def test_looking_changes_nothing() -> None:
    from onnxlathe.infer import infer_model
    from onnxlathe.report.graph_text import model_text

    model = onnxlathe.load(ROOT / "fixtures/bert_ts17.onnx")
    infer_model(model)
    before = model_text(model)
    for entry in registry().all():
        if hasattr(entry.cls, "attempt"):
            near_misses(entry.cls(), model)
    assert model_text(model) == before


def test_diff(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = TINY / "layernorm_op17.onnx", tmp_path / "o.onnx"
    assert run(["diff", str(source), str(source)]) == 0
    assert run([str(source), "-o", str(target), "-q"]) == 0
    capsys.readouterr()
    assert run(["diff", str(source), str(target)]) == 1
    said = capsys.readouterr().out
    assert "fused" in said
    assert "→ LayerNormalization" in said
    assert run(["diff", str(source), str(target), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert any(
        len(c["before"]) > 3 and c["after"][0]["operator"] == "LayerNormalization" for c in data["fused"]
    )


def test_diff_counts_every_node() -> None:
    first = onnxlathe.load(ROOT / "fixtures/gpt2_ts17.onnx")
    second = first.clone()
    onnxlathe.optimize(second, verify=False)
    found = difference(first, second)
    told = [*found.changed, *found.fused, *found.expanded, *found.added]
    assert found.kept + sum(len(c.after) for c in told) == second.count_nodes()
    everything = {n for c in (*told, *found.removed) for n in c.before}
    assert len(everything) + found.kept >= first.count_nodes()


def test_break_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "sys.stdin", io.StringIO("print('nodes:', model.count_nodes(), record.name)\ntext(node('Mul_3'))\n")
    )
    source = TINY / "gelu_erf_op20.onnx"
    words = [
        str(source),
        "-o",
        str(tmp_path / "o.onnx"),
        "--passes",
        "shapes,gelu",
        "--break-after",
        "shapes",
    ]
    assert run(words) == 0
    said = capsys.readouterr()
    assert "nodes: 15 shapes" in said.out
    assert "= Mul(%x, %Add_2_out)" in said.out
    assert "Ctrl-D goes on" in said.err
    assert "Gelu" in {n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node}


def test_nothing_is_imported_from_the_models_folder(tmp_path: Path) -> None:
    """Modules beside the model, under names that this program imports, are not touched."""
    program = Path(sys.executable).with_name("optimize")
    if not program.exists():
        pytest.skip("the console script is not installed")
    names = ("onnxruntime", "polygraphy", "onnx", "numpy", "hypothesis", "onnxlathe", "onnxlathe_passes", "my_passes",
             "sitecustomize", "usercustomize", "code", "rich", "onnx_graphsurgeon", "tensorrt_rtx")  # fmt: skip
    for name in names:
        (tmp_path / f"{name}.py").write_text(f"open('TOUCHED-{name}', 'w').close()\n")
    (tmp_path / "m.onnx").write_bytes((TINY / "conv_bn_op17.onnx").read_bytes())
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for words in (
        ["m.onnx", "--passes", "shapes,ort_basic,tidy"],
        ["passes", "check", "swish", "--examples", "5"],
        ["inspect", "m.onnx"],
    ):
        done = subprocess.run(
            [str(program), *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("TOUCHED-*"))
