"""Write docs/passes.md, the reference of the standard passes, from their docstrings.

python tools/make_docs.py            # write
python tools/make_docs.py --check    # exit 1 where the page is out of date
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from pathlib import Path

from onnxlathe.cli.passes import _default, _type
from onnxlathe.pipeline import PRESETS, Registered, Registry

PAGE = Path(__file__).resolve().parent.parent / "docs" / "passes.md"

_HEAD = """\
# Passes

All passes that come with OnnxLathe. This page is written by `tools/make_docs.py` from their docstrings;
`optimize passes NAME` says the same in the terminal. In a pipeline, options go in parentheses:
`fold(max_bytes=64MiB)`. See [pipelines](pipelines.md) for the language, [Write your first
pass](write-a-pass.md) for your own, and [adapters](adapters.md) for those of others.
"""


def main() -> int:
    text = page(Registry.standard())
    if "--check" in sys.argv[1:]:
        current = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        if current != text:
            print(f"{PAGE.name} is out of date: run python tools/make_docs.py")
        return int(current != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


def page(registry: Registry) -> str:
    """The whole page."""
    ours = {"onnxlathe_passes", "onnxlathe"}
    entries = [e for e in registry.all() if e.cls.__module__.split(".")[0] in ours]
    parts = [_HEAD, "## Presets\n", "| preset | pipeline |\n|---|---|"]
    parts[-1] += "".join(f"\n| `{name}` | `{text}` |" for name, text in PRESETS.items()) + "\n"
    parts += ["## Passes that stand alone\n", *(_entry(e) for e in entries if not e.cls.group)]
    for group, members in registry.groups().items():
        inside = [e for e in entries if e.name in members]
        if inside:
            parts.append(f"## The group `{group}`\n\n`{group}` runs all of these.\n")
            parts += [_entry(e) for e in inside]
    return "\n".join(parts).rstrip() + "\n"


def _entry(entry: Registered) -> str:
    cls = entry.cls
    lines = [f"### `{cls.name}`", "", _escaped(inspect.getdoc(cls) or ""), ""]
    if cls.example:
        lines += ["```text", textwrap.dedent(cls.example).strip("\n"), "```", ""]
    if cls.min_opset > 1:
        lines += [f"Needs opset {cls.min_opset}.", ""]
    options = cls.options()
    if options:
        lines += ["| option | type | default | |", "|---|---|---|---|"]
        for o in options.values():
            cells = (f"`{o.name}`", f"`{_type(o.type)}`", f"`{_default(o.type, o.default)}`", o.doc)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return text.replace("*", "\\*").replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(main())
