"""The three floating-point types that a mixed model is made of, and how people call them."""

from __future__ import annotations

import onnx_ir as ir

from onnxlathe.errors import UsageError

FLOAT32 = ir.DataType.FLOAT
FLOAT16 = ir.DataType.FLOAT16
BFLOAT16 = ir.DataType.BFLOAT16

_NAMES = {
    "fp32": FLOAT32,
    "float32": FLOAT32,
    "float": FLOAT32,
    "fp16": FLOAT16,
    "float16": FLOAT16,
    "half": FLOAT16,
    "bf16": BFLOAT16,
    "bfloat16": BFLOAT16,
}
_SHOWN = {FLOAT32: "float32", FLOAT16: "float16", BFLOAT16: "bfloat16"}

LOW_TYPES = (FLOAT16, BFLOAT16)


def parse_type(text: str, where: str = "") -> ir.DataType:
    """`fp16`, `float16`, `half`, `bf16`, `fp32`, … as an element type.

    Args:
        text: the name.
        where: the option or file that it is from, for the message.

    Raises:
        UsageError: it is none of them.
    """
    found = _NAMES.get(text.strip().lower())
    if found is None:
        raise UsageError(
            f"{where + ': ' if where else ''}'{text}' is not a type that precision can choose",
            hint="it can choose fp32, fp16 and bf16",
        )
    return found


def is_type(text: str) -> bool:
    """Whether `parse_type` knows the name."""
    return text.strip().lower() in _NAMES


def type_name(dtype: ir.DataType) -> str:
    """`float16` and its like: what files and messages say."""
    return _SHOWN.get(dtype, dtype.name.lower())
