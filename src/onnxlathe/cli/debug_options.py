"""Options of `optimize debug` that do not go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxlathe.errors import UsageError

# An option, what it is where it is left out, and the one without which it does nothing.
_ONLY_WITH = (
    ("engine", None, "fix"), ("io_types", "keep", "fix"), ("pad", "max", "fix"), ("split", False, "fix"),
    ("cause", None, "reduce"), ("fail_regex", "", "check"), ("fail_codes", (), "check"),
)  # fmt: skip
_NAMES = {"fix": "fixing", "reduce": "reducing", "fail_code": "fail_codes"}
_WORDS = {name: word for word, name in _NAMES.items()}


def consistent(options: Mapping[str, Any]) -> None:
    """Check that every option that was given has something to do.

    Raises:
        UsageError: two options exclude each other, one needs another, or `--pad` is no number of rows.
    """
    given = [n for n in ("check", "passes", "against") if options[n]]
    if len(given) > 1:
        raise UsageError(f"--{given[0]} and --{given[1]} exclude each other", hint="give one of them")
    pad = options["pad"]
    if pad not in ("max", "none") and not (pad.isdecimal() and int(pad)):
        raise UsageError(f"--pad {pad}: not a number of rows", hint="write --pad 300, max or none")
    given += ["reduce"] if options["reducing"] else []
    if given and options["fixing"]:
        raise UsageError(f"--fix excludes --{given[0]}", hint="leave one of them out")
    for name, default, mode in _ONLY_WITH:
        if options[name] != default and not options[_NAMES.get(mode, mode)]:
            shown = _WORDS.get(name, name).replace("_", "-")
            raise UsageError(f"--{shown} does nothing without --{mode}", hint=f"add --{mode}")
