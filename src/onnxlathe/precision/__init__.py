"""Mixed precision: what a user may ask for, what a mixed model would compute, and the search for constraints.

The pass `precision` (among the standard passes) applies constraints; this package says what they are.
"""

from __future__ import annotations

from onnxlathe.model.model import LOWERED

from .constraints import (
    Constraint,
    Constraints,
    dump_constraints,
    load_constraints,
    parse_keep,
    parse_layer_precisions,
    parse_tensor_dtypes,
)
from .emulate import emulate, has_low_types
from .select import Selection, select
from .types import BFLOAT16, FLOAT16, FLOAT32, LOW_TYPES, parse_type, type_name

__all__ = [
    "BFLOAT16",
    "FLOAT16",
    "FLOAT32",
    "LOWERED",
    "LOW_TYPES",
    "Constraint",
    "Constraints",
    "Selection",
    "dump_constraints",
    "emulate",
    "has_low_types",
    "load_constraints",
    "parse_keep",
    "parse_layer_precisions",
    "parse_tensor_dtypes",
    "parse_type",
    "select",
    "type_name",
]
