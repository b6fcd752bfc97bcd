"""The command line: what it prints, writes and returns."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxlathe.cli import run

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "fixtures"
PLUGINS = ROOT / "tests" / "plugins"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(FIXTURES / "bert_ts14.onnx", tmp_path / "bert.onnx"))


def test_the_main_job(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([str(model), "--passes", "fold,fuse"]) == 0
    printed = capsys.readouterr().out
    for word in ("fold", "fuse", "nodes", "verdict", "equal", "saved", "bert.opt.onnx"):
        assert word in printed
    assert len(onnx.load("bert.opt.onnx").graph.node) < len(onnx.load(model).graph.node)


def test_options_may_come_first_and_quiet_is_quiet(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-q", "--passes", "tidy", str(model), "-o", "out.onnx", "--no-verify"]) == 0
    assert capsys.readouterr().out == ""
    assert Path("out.onnx").exists()


def test_report(model: Path) -> None:
    assert run([str(model), "-o", "o.onnx", "--report", "r.json", "-q"]) == 0
    report = json.loads(Path("r.json").read_text())
    assert report["verdict"]["status"] == "equal"
    assert report["after"]["nodes"] < report["before"]["nodes"]
    assert report["output"]["bytes"] == Path("o.onnx").stat().st_size
    assert [step["name"] for step in report["steps"]][:2] == ["shapes", "fold"]
    fold = report["steps"][1]
    assert fold["changes"] == len(fold["firings"]) > 0


def test_stats_as_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([str(model), "-o", "o.onnx", "--passes", "shapes,fold", "--no-verify", "--stats", "json"]) == 0
    steps = json.loads(capsys.readouterr().out)
    assert [step["name"] for step in steps] == ["shapes", "fold"]


def test_the_graph_after_a_pass(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(model), "-o", "o.onnx", "--no-verify", "--passes", "fold,tidy"]
    assert run([*command, "--print-after", "fold", "--dump-after", "all"]) == 0
    printed = capsys.readouterr().out
    assert "# after fold" in printed
    assert "# after tidy" not in printed
    assert "MatMul(" in printed
    assert sorted(p.name for p in Path().glob("o.0*.onnx"))[0].startswith("o.01-fold")


def test_the_source_is_only_overwritten_when_asked(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = model.read_bytes()
    assert run([str(model), "-o", str(model)]) == 2
    assert "--in-place" in capsys.readouterr().err
    os.symlink(model, "link.onnx")
    assert run([str(model), "-o", "link.onnx"]) == 2
    assert model.read_bytes() == before
    assert run([str(model), "--in-place", "-q"]) == 0
    assert model.stat().st_size < len(before)


def test_another_file_of_the_default_name_is_not_overwritten(model: Path) -> None:
    Path("bert.opt.onnx").write_text("mine")
    assert run([str(model), "--no-verify"]) == 2
    assert Path("bert.opt.onnx").read_text() == "mine"
    Path("bert.opt.onnx").unlink()
    assert run([str(model), "--no-verify", "-q"]) == 0
    assert run([str(model), "--no-verify", "-q"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.onnx"], "none.onnx"),
        (["bert.onnx", "--passes", "fuze"], "did you mean 'fuse'"),
        (["bert.onnx", "--passes", "fold(max_bytes=lots)"], "max_bytes"),
        (["bert.onnx", "--passes", "fold,"], "cannot read the pipeline"),
        (["bert.onnx", "--plugin", "none.py"], "none.py"),
        (["bert.onnx", "--plugin", "broken.py"], "broken.py"),
        (["bert.onnx", "--shape", "input_idz:2x8"], "input_ids"),
        (["bert.onnx", "--shape", "input_ids:2x8x3"], "input_ids"),
        (["bert.onnx", "--dim", "bach=2"], "batch"),
        (["bert.onnx", "--freeze"], "--freeze"),
        (["bert.onnx", "--data", "none.npz"], "none.npz"),
        (["bert.onnx", "--atol", "x"], "x"),
        (["bert.onnx", "--atol", "nothing:1e-3"], "nothing"),
        (["bert.onnx", "-o", "no/such/folder/o.onnx"], "no/such/folder"),
        (["bert.onnx", "--recipe", "none.toml"], "none.toml"),
        (["bert.onnx", "--no-such-option"], "--no-such-option"),
        (["zip.onnx"], "zip.onnx"),
        (["passes", "fuze"], "fuse"),
        (["inspect", "none.onnx"], "none.onnx"),
        (["verify", "bert.onnx", "none.onnx"], "none.onnx"),
        (["bert.onnx", "--in-place", "-o", "o.onnx"], "--in-place"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_wrong_usage_ends_with_2_and_one_message(
    model: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    Path("broken.py").write_text("import nothing_like_this\n")
    Path("zip.onnx").write_bytes(b"PK\x03\x04" + bytes(100))
    files = sorted(Path().iterdir())
    assert run(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert sorted(Path().iterdir()) == files


def test_a_wrong_plugin_ends_with_1_and_a_reproducer(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = ["--plugin", str(PLUGINS / "wrong_gelu.py")]
    assert run([str(model), *plugin, "--passes", "fold,wrong_gelu", "-o", "o.onnx"]) == 1
    captured = capsys.readouterr()
    assert "wrong_gelu" in captured.err
    assert not Path("o.onnx").exists()
    folder = Path("onnxlathe-repro-bert")
    assert {p.name for p in folder.iterdir()} >= {"before.onnx", "after.onnx", "inputs.npz", "command.sh"}
    command = (folder / "command.sh").read_text().splitlines()[-1].split()
    assert command[0] == "optimize"
    os.chdir(folder)
    assert run(command[1:]) == 1
    os.chdir("..")
    skip = ["--on-mismatch", "skip", "-o", "o.onnx", "--passes", "fold,wrong_gelu"]
    assert run([str(model), *plugin, *skip]) == 0
    assert "left out" in capsys.readouterr().out
    assert Path("o.onnx").exists()


def test_sizes_can_be_frozen(model: Path) -> None:
    assert (
        run([str(model), "-o", "o.onnx", "-q", "--dim", "batch=2", "--shape", "input_ids:2x8", "--freeze"])
        == 0
    )
    shapes = {
        i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in onnx.load("o.onnx").graph.input
    }
    assert shapes["input_ids"] == [2, 8]
    assert "Shape" not in {n.op_type for n in onnx.load("o.onnx").graph.node}


def test_the_users_data(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    feed = {"input_ids": np.ones((2, 5), np.int64), "attention_mask": np.ones((2, 5), np.int64)}
    np.savez("feed.npz", **feed)  # type: ignore[arg-type]
    assert run([str(model), "-o", "o.onnx", "--data", "feed.npz"]) == 0
    assert "1 feed" in capsys.readouterr().out


def test_recipe(model: Path) -> None:
    Path("r.toml").write_text('passes = "mine"\n[pipelines]\nmine = "fold,tidy"\n')
    assert (
        run([str(model), "-o", "o.onnx", "-q", "--no-verify", "--recipe", "r.toml", "--report", "r.json"])
        == 0
    )
    assert json.loads(Path("r.json").read_text())["pipeline"] == "fold,tidy"


def test_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["passes"]) == 0
    listed = capsys.readouterr().out
    for word in ("shapes", "fold", "gelu", "O2", "onnxlathe 0"):
        assert word in listed
    for name in ("fold", "fuse", "gelu", "default"):
        assert run(["passes", name]) == 0
        assert name in capsys.readouterr().out
    assert run(["passes", "--json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert entries["fold"]["options"]["max_bytes"]["default"] == 64 << 20


def test_every_standard_pass_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    from onnxlathe.pipeline import Registry

    for entry in Registry.standard().all():
        assert len(entry.cls.summary()) > 10, entry.name
        assert all(o.doc for o in entry.cls.options().values()), entry.name
        if entry.cls.group:
            assert "→" in entry.cls.example, entry.name


def test_inspect(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(model), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["opsets"] == {"": 14}
    assert facts["inputs"]["input_ids"] == "int64[batch, seq]"
    assert facts["weights"]["largest"][0]["bytes"] == max(w["bytes"] for w in facts["weights"]["largest"])
    assert facts["target"]["asked"] is False or facts["target"]["accepted"]
    assert run(["inspect", str(model), "--target", "none"]) == 0
    assert "MatMul" in capsys.readouterr().out
    assert run(["inspect", str(model), "--text"]) == 0
    assert "= MatMul(" in capsys.readouterr().out


def test_verify(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(model), str(model)]) == 0
    assert "equal" in capsys.readouterr().out
    other = onnx.load(model)
    weight = next(t for t in other.graph.initializer if len(t.dims) == 2)
    weight.raw_data = (np.frombuffer(weight.raw_data, np.float32) * 1.01).astype(np.float32).tobytes()
    onnx.save(other, "other.onnx")
    assert run(["verify", str(model), "other.onnx", "--report", "v.json"]) == 1
    assert json.loads(Path("v.json").read_text())["verdict"]["status"] == "different"


def test_the_program_itself(tmp_path: Path) -> None:
    """As a user starts it; and what it does not import to print its help."""
    code = "import sys; sys.argv = ['optimize', '--help']\nfrom onnxlathe.cli import run\nrun(['--help'])\n"
    code += "heavy = {'onnx', 'onnx_ir', 'onnxruntime', 'polygraphy', 'tensorrt_rtx', 'networkx', 'sympy', 'numpy'}\n"
    code += "print('imported', sorted(heavy & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert "Usage: optimize" in done.stdout
    assert done.stdout.splitlines()[-1] == "imported []"


def test_many_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("conv_bn_op17", "softplus"):
        shutil.copy(FIXTURES / "tiny" / f"{name}.onnx", f"{name}.onnx")
    Path("broken.onnx").write_bytes(b"\x08\x08 no model")
    models = ["broken.onnx", "conv_bn_op17.onnx", "softplus.onnx"]
    assert run([*models, "-j", "2", "-o", "out", "--passes", "fold,fuse"]) == 2
    printed = capsys.readouterr().out
    assert "broken.onnx" in printed
    assert sorted(p.name for p in Path("out").iterdir()) == [
        "conv_bn_op17.onnx",
        "manifest.json",
        "softplus.onnx",
    ]
    entries = json.loads(Path("out/manifest.json").read_text())["models"]
    assert [entries[m]["code"] for m in models] == [2, 0, 0]
    assert entries["softplus.onnx"]["verdict"] == "equal"
    Path("broken.onnx").unlink()
    shutil.copy(FIXTURES / "tiny" / "silu_op17.onnx", "broken.onnx")
    assert run([*models, "-o", "out", "--passes", "fold,fuse"]) == 0
    printed = capsys.readouterr().out
    assert "2 done before" in printed
    assert "broken.onnx" in printed
    assert "softplus" not in printed
    assert run(["softplus.onnx", "broken.onnx"]) == 2
    assert "-o" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a/m.onnx", "b/m.onnx"], "two models are called 'm.onnx'"),
        (["a/m.onnx", "b/m.pb", "--engine", "engines"], "two models are called 'm'"),
        (
            ["a/m.onnx", "b/n.onnx", "--engine", "engines", "--build-log", "log"],
            "--build-log is about one model",
        ),
        (["a/m.onnx", "b/n.onnx", "--engine", "m.engine"], "a folder for their engines"),
        (["a/m.onnx", "b/n.onnx", "--report", "r.json"], "--report is about one model"),
    ],
)
def test_many_models_that_would_share_a_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/m.onnx", "b/m.onnx", "b/m.pb", "b/n.onnx"):
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy(FIXTURES / "tiny" / "softplus.onnx", name)
    Path("engines").mkdir()
    assert run([*words, "-o", "out"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not Path("out").exists()
    assert not list(Path("engines").iterdir())


def test_the_graph_after_a_group_is_printed_once(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """When its last part is done, however many parts run one after another."""
    command = [str(model), "-o", "o.onnx", "--no-verify", "--passes", "shapes,fold,fuse,tidy"]
    assert run([*command, "--print-after", "fuse"]) == 0
    assert capsys.readouterr().out.count("# after ") == 1
    assert run([*command, "--print-after", "all"]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("# after ")]
    assert sum(line.startswith("# after fuse") for line in printed) > 1
    assert run([*command, "--print-after", "steady"]) == 0
    assert capsys.readouterr().out.count("# after ") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--range", "nothing=1:2:3"], "no input has a dimension 'nothing'"),
        (["--min-shapes", "nothing:1x2"], "nothing"),
        (["--range", "batch=8:2:1"], "must not decrease"),
    ],
)
def test_profiles_are_checked_before_the_work(
    model: Path,
    words: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import onnxlathe.api

    monkeypatch.setattr(onnxlathe.api, "optimize", lambda *_, **__: pytest.fail("it was optimized first"))
    target = type("Target", (), {"available": True, "name": "rtx"})()
    monkeypatch.setattr("onnxlathe.target.find_target", lambda *_: target)
    assert run([str(model), "-o", "o.onnx", "--engine", "m.engine", *words]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not Path("o.onnx").exists()
