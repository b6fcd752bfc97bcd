"""How far two outputs may lie apart.

Policy
------
With b the original's output and a the optimized model's, every element must satisfy::

    |a - b| <= atol + rtol * max(|b|, scale)

``scale`` is the root mean square of b. Rounding errors of a sum are as large as its terms, not as its result:
an element close to zero among large ones (a channel that ReLU closed, a class nobody voted for) may not be
held to its own size.

The whole tensor must also satisfy ``‖a - b‖ <= norm * ‖b‖``. Rounding errors are scattered and stay far below
the largest of them; a wrong formula (GELU's tanh form for its erf form) moves everything a little, and shows.

Numbers by element type are in `DEFAULTS`. The type that counts is the least precise one the values went
through: a float32 output of a float16 network carries float16's errors. Integers, booleans and strings must
be equal, except integers that come straight out of quantization, where a rounding tie may fall either way.
Outputs that pick indices (ArgMax, TopK) are integers, and exact: a flipped tie is worth being told about.

A tolerance the user gives for an output replaces the number of the policy, and switches its norm check off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from onnxlathe.errors import UsageError


@dataclass(frozen=True)
class Tolerance:
    """What is allowed for one output; see the module's text.

    Attributes:
        atol: absolute part, in the output's own units.
        rtol: part relative to the element or to the values around it.
        norm: largest relative difference in the Euclidean norm of the whole tensor; None: not checked.
    """

    atol: float = 0.0
    rtol: float = 0.0
    norm: float | None = None


EXACT = Tolerance()
NORM_ATOL = 0.1
"""Share of the absolute tolerance that the norm check always allows: some outputs are all rounding error."""

DEFAULTS: dict[str, Tolerance] = {
    "float64": Tolerance(1e-12, 1e-9, 1e-10),
    "float32": Tolerance(1e-6, 2e-4, 5e-5),
    "float16": Tolerance(1e-3, 5e-2, 1e-2),
    "bfloat16": Tolerance(1e-2, 2e-1, 5e-2),
    "float8": Tolerance(5e-2, 5e-1, 2e-1),
    "quantized": Tolerance(1e-3, 5e-1, 5e-2),
}
"""The policy's numbers; "quantized" is for values that went through QuantizeLinear and its kin."""

_ORDER = ("float64", "float32", "float16", "bfloat16", "float8", "quantized")


def precision_of(dtype: str) -> str | None:
    """The row of `DEFAULTS` for an element type's name, or None where equality is meant."""
    name = dtype.lower()
    if name in ("complex64", "complex128"):
        return "float32" if name == "complex64" else "float64"
    if name.startswith(("float8", "float4", "float6")):
        return "float8"
    return name if name in DEFAULTS else None


def coarser(first: str, second: str) -> str:
    """The less precise of two rows of `DEFAULTS`."""
    return max(first, second, key=_ORDER.index)


@dataclass(frozen=True)
class Tolerances:
    """The user's tolerances over the policy's.

    Attributes:
        atol, rtol: by output name; ``""`` stands for all that are not named.
    """

    atol: Mapping[str, float] = field(default_factory=dict)
    rtol: Mapping[str, float] = field(default_factory=dict)

    def of(self, output: str, dtype: str, *, through: str | None = None) -> Tolerance:
        """What is allowed for an output.

        Args:
            output: its name.
            dtype: its element type (``float32``, ``int64``, ``bool``, ``string``, …).
            through: the coarsest precision its values went through, a key of `DEFAULTS`.
        """
        row = precision_of(dtype)
        if row is not None:
            base = DEFAULTS[coarser(row, through or row)]
        else:
            base = Tolerance(atol=1.0) if through == "quantized" and dtype in ("int8", "uint8") else EXACT
        atol = self.atol.get(output, self.atol.get(""))
        rtol = self.rtol.get(output, self.rtol.get(""))
        if atol is None and rtol is None:
            return base
        return replace(
            base,
            atol=base.atol if atol is None else atol,
            rtol=base.rtol if rtol is None else rtol,
            norm=None,
        )

    def check_names(self, outputs: Sequence[str]) -> None:
        """Every named output must be one of `outputs`.

        Raises:
            UsageError: one is not.
        """
        from onnxlathe.model.shapes import nearest

        for option, values in (("--atol", self.atol), ("--rtol", self.rtol)):
            for name in values:
                if name and name not in outputs:
                    raise UsageError(f"{option}: no output is called {name!r}", hint=nearest(name, outputs))


def parse_tolerance(words: Sequence[str], option: str = "--atol") -> dict[str, float]:
    """Read tolerances as Polygraphy spells them: ``1e-3`` for all outputs, ``out0:1e-4`` for one.

    Returns:
        output name → number; ``""`` for all that are not named.

    Raises:
        UsageError: not a number, negative, or given twice.
    """
    parsed: dict[str, float] = {}
    for word in words:
        name, _, number = word.rpartition(":")
        try:
            value = float(number)
        except ValueError:
            raise UsageError(
                f"{option} {word}: {number!r} is not a number",
                hint=f"write {option} 1e-3 or {option} OUTPUT:1e-3",
            ) from None
        if not 0 <= value < float("inf"):
            raise UsageError(f"{option} {word}: a tolerance is a number from 0 on")
        if name in parsed:
            raise UsageError(f"{option}: given twice for {name or 'all outputs'}")
        parsed[name] = value
    return parsed
