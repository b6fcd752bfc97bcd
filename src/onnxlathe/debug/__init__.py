"""Why a model is refused: explain it, reduce it, mend it.

    with Oracle(find_target()) as oracle:
        diagnosis = diagnose(Path("model.onnx"), oracle)
        for cause, findings in diagnosis.groups(): ...

`ask` asks the target, `parts` cuts models, `locate` finds the node that a complaint means, `catalogue` knows
causes, `diagnosis` puts them together as `findings`; `reduce` (for a `check`) and `against` make small models;
`fix` mends, `decide` knows what has to be known for that, and `outside` what is left to the caller.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .against import Parting, find_parting
    from .ask import Complaint, Hearing, Oracle
    from .catalogue import Cause, Remedy, causes, find_cause
    from .checks import Check, Command, RefusedFor, WrongAfter
    from .diagnosis import diagnose
    from .findings import Diagnosis, Finding
    from .fix import Attempt, Mended, mend
    from .parts import Workpiece
    from .reduce import Reduction, reduce_model
    from .table import diagnose_by_table

_PUBLIC = {
    "Attempt": "fix",
    "Cause": "catalogue",
    "Check": "checks",
    "Command": "checks",
    "Complaint": "ask",
    "Diagnosis": "findings",
    "Finding": "findings",
    "Hearing": "ask",
    "Mended": "fix",
    "Oracle": "ask",
    "Parting": "against",
    "Reduction": "reduce",
    "RefusedFor": "checks",
    "Remedy": "catalogue",
    "Workpiece": "parts",
    "WrongAfter": "checks",
    "causes": "catalogue",
    "diagnose": "diagnosis",
    "diagnose_by_table": "table",
    "find_cause": "catalogue",
    "find_parting": "against",
    "mend": "fix",
    "reduce_model": "reduce",
}

__all__ = [
    "Attempt",
    "Cause",
    "Check",
    "Command",
    "Complaint",
    "Diagnosis",
    "Finding",
    "Hearing",
    "Mended",
    "Oracle",
    "Parting",
    "Reduction",
    "RefusedFor",
    "Remedy",
    "Workpiece",
    "WrongAfter",
    "causes",
    "diagnose",
    "diagnose_by_table",
    "find_cause",
    "find_parting",
    "mend",
    "reduce_model",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
