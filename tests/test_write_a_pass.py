"""The tutorial is followed literally; the reference and the adapters' page are what the code says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from onnxlathe.pipeline import Registry

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(python|sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_tutorial(tmp_path: Path) -> None:
    said = ""
    bin_folder = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "200"}
    for language, text in BLOCK.findall((DOCS / "write-a-pass.md").read_text(encoding="utf-8")):
        if language == "python":
            name = re.match(r"# (\w+\.py)\n", text)
            assert name is not None, f"this block has no file name:\n{text}"
            (tmp_path / name[1]).write_text(text, encoding="utf-8")
        elif language == "sh":
            done = subprocess.run(
                ["bash", "-ec", text],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=250,
                check=False,
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
            said = " ".join(done.stdout.split())
        else:
            for line in text.splitlines():
                assert " ".join(line.split()) in said, f"'{line}' is not in:\n{said}"


@pytest.mark.parametrize("number", range(4))
def test_blocks_of_the_adapters_page(number: int, tmp_path: Path) -> None:
    blocks = [
        text for language, text in BLOCK.findall((DOCS / "adapters.md").read_text()) if language == "python"
    ]
    assert len(blocks) == 4
    if "onnxscript" in blocks[number]:
        pytest.importorskip("onnxscript")
    plugin = tmp_path / f"plugin{number}.py"
    plugin.write_text(blocks[number])
    assert len(Registry.standard().add_plugin(str(plugin))) == 1


def test_programs_of_the_adapters_page() -> None:
    from onnxlathe.adapters.programs import PASSES

    page = (DOCS / "adapters.md").read_text()
    for cls in PASSES:
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{cls.name}`")]
        assert sorted(re.findall(r"`(\w+)(?:=\[…\])?`", row.split("|")[3])) == sorted(
            set(cls.options()) - {"timeout"}
        )


@pytest.mark.parametrize("tool", ["make_docs.py", "make_api.py"])
def test_generated_files_are_up_to_date(tool: str) -> None:
    """Run the tool to renew its file; a change of the public API wants a line in CHANGELOG.md."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / tool), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
