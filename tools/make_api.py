"""Keep tests/api.txt, the public API as a list, and see to it that a change of it is told to users.

    python tools/make_api.py            # write; refuses where the API changed and CHANGELOG.md did not
    python tools/make_api.py --check    # exit 1 where the list is out of date

Public is what `onnxlathe.__all__` and the `__all__` of the documented submodules hold.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "tests" / "api.txt"
CHANGELOG = ROOT / "CHANGELOG.md"

MODULES = (
    "onnxlathe",
    "onnxlathe.adapters",
    "onnxlathe.check",
    "onnxlathe.infer",
    "onnxlathe.model",
    "onnxlathe.pipeline",
    "onnxlathe.rewrite",
    "onnxlathe.verify",
)
"""The documented modules."""


def main() -> int:
    current = "\n".join(lines())
    recorded, told = read()
    if "--check" in sys.argv[1:]:
        if current != recorded:
            print("the public API is not what tests/api.txt says: run python tools/make_api.py")
        return int(current != recorded)
    if current != recorded and recorded and told == unreleased():
        print("the public API changed, but CHANGELOG.md did not: say it under 'Unreleased' first")
        return 1
    LIST.write_text(f"# changelog {unreleased()}\n{current}\n", encoding="utf-8")
    return 0


def read() -> tuple[str, str]:
    """The recorded list, and the state of the changelog when it was recorded."""
    if not LIST.exists():
        return "", ""
    head, _, body = LIST.read_text(encoding="utf-8").partition("\n")
    return body.rstrip("\n"), head.removeprefix("# changelog ")


def unreleased() -> str:
    """A fingerprint of what the changelog says about the coming release."""
    text = CHANGELOG.read_text(encoding="utf-8") if CHANGELOG.exists() else ""
    section = re.search(r"^## Unreleased\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return hashlib.sha256((section[1] if section else "").encode()).hexdigest()[:12]


def lines() -> list[str]:
    """The public API, a name a line, with parameters but without types."""
    found: list[str] = []
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in sorted(module.__all__):
            found += _describe(f"{module_name}.{name}", getattr(module, name))
    return found


def _describe(path: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        yield f"{path}{_fields(value)}"
        if path.count(".") == 1:
            return  # its home among the submodules lists its methods
        for name, member in sorted(vars(value).items()):
            if name.startswith("_") or not inspect.isfunction(inspect.unwrap(_function(member))):
                continue
            yield f"{path}.{name}{_signature(_function(member))}"
    elif callable(value):
        yield f"{path}{_signature(value)}"
    else:
        yield path


def _function(member: Any) -> Any:
    if isinstance(member, (classmethod, staticmethod)):
        return member.__func__
    return member.fget if isinstance(member, property) else member


def _fields(cls: type) -> str:
    if dataclasses.is_dataclass(cls):
        return (
            f"({', '.join(f.name for f in dataclasses.fields(cls) if f.init and not f.name.startswith('_'))})"
        )
    return _signature(cls.__init__) if "__init__" in vars(cls) else ""


def _signature(function: Any) -> str:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return ""
    parameters = [
        p.replace(annotation=p.empty, default=p.default if p.default is p.empty else _Shown(p.default))
        for p in signature.parameters.values()
    ]
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


class _Shown:
    """A default, without addresses in memory."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return re.sub(r" at 0x[0-9a-f]+", "", repr(self.value))


if __name__ == "__main__":
    sys.exit(main())
