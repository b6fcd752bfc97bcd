"""Keep the transcripts in the documentation true: run their commands and put in what came out.

    python tools/transcripts.py README.md docs/*.md            # rewrite
    python tools/transcripts.py --check README.md docs/*.md    # exit 1 where one no longer holds

A transcript is a fenced block marked `console`; its lines that start with `$ ` are run, in order, in a fresh
folder that has the project's `fixtures/`, `examples/` and `tests/` in it. What differs from run to run (times,
memory, the width of columns) does not count as a difference.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINKED = ("fixtures", "examples", "tests", "docs", "tools", "passes")
VARIABLE = [
    (re.compile(r"\b\d+(\.\d+)? (ms|s|MiB|kB|MB|GB)\b"), "N \\2"),
    (re.compile(r"\b\d(\.\d+)?e-\d+\b"), "1e-N"),
    (re.compile(r"\[\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d\]"), "[when]"),
    (re.compile(r"[─━]+"), "─"),
    (re.compile(r"[ \t]+"), " "),
]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 where a transcript is stale"
    )
    arguments = parser.parse_args()
    stale = 0
    for page in arguments.pages:
        text = page.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory(prefix="transcript-") as folder:
            for name in LINKED:
                os.symlink(ROOT / name, Path(folder) / name)
            renewed = BLOCK.sub(lambda match: f"```console\n{replay(match[1], Path(folder))}```", text)
        if settled(renewed) == settled(text):
            continue
        stale += 1
        print(f"{page}: {'stale' if arguments.check else 'renewed'}")
        if arguments.check:
            show_difference(text, renewed)
        else:
            page.write_text(renewed, encoding="utf-8")
    return 1 if stale and arguments.check else 0


def replay(block: str, folder: Path) -> str:
    """The block with the output of its commands, as they come out now."""
    lines = []
    for line in block.splitlines():
        if line.startswith("$ "):
            lines += [line, *run(line[2:], folder)]
    return "\n".join(lines) + "\n"


def run(command: str, folder: Path) -> list[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=os.environ | {"PATH": path, "NO_COLOR": "1", "TERM": "dumb"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    return [line.rstrip() for line in done.stdout.rstrip("\n").splitlines()]


def settled(text: str) -> str:
    """The text without what differs from run to run."""
    for pattern, replacement in VARIABLE:
        text = pattern.sub(replacement, text)
    return text


def show_difference(old: str, new: str) -> None:
    import difflib

    lines = difflib.unified_diff(
        settled(old).splitlines(), settled(new).splitlines(), "page", "now", lineterm="", n=1
    )
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
