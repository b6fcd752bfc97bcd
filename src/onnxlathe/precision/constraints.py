"""Which type which nodes shall have: constraints, as files and as words of the command line.

A constraint selects nodes and names a type. Where several select the same node, the last one counts, as in
trtexec. In a file::

    schema = 1
    type = "float16"

    [[keep]]
    type = "float32"
    node = "/layers.3/Pow"
    reason = "overflows: 9.1e+04 on feed 1"

Specifications that were written for TensorRT 10 and older are read into the same thing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from onnxlathe._files import write_whole
from onnxlathe.errors import LatheError, UsageError

from .toml_text import to_toml
from .types import is_type, parse_type, type_name

_LIKE_A_TYPE = re.compile(r"(fp|float|bf|bfloat|tf|u?int)\d+(e\d+m\d+)?|half|double|bool", re.IGNORECASE)
_OTHER_TYPES = frozenset({"int4", "int8", "int32", "int64", "uint8", "bool", "fp4", "fp8", "e8m0"})
"""What trtexec and Polygraphy know besides the types that precision chooses among."""

SELECTORS = ("match", "node", "operator", "origin", "output", "between", "tensor")


class Constraint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Nodes, and the type that they shall compute in. Exactly one of the selectors is set.

    Attributes:
        type: `float32`, `float16` or `bfloat16`.
        match: a pattern for any of the following four.
        node: pattern (`*`, `?`) for names of nodes.
        operator: pattern for operators, `Softmax` or `com.microsoft::Gelu`.
        origin: pattern for names of nodes of the original model, which passes may have fused since.
        output: pattern for names of values: the nodes that compute them.
        between: `a..b`: every node on a way from value `a` to value `b`.
        tensor: pattern for inputs and outputs of the model: their own type.
        reason: why, for the reader.
        statistic: numbers that speak for it.
        optional: whether it may select nothing (specifications written for other layer names).
    """

    type: str = "float32"
    match: str = ""
    node: str = ""
    operator: str = ""
    origin: str = ""
    output: str = ""
    between: str = ""
    tensor: str = ""
    reason: str = ""
    statistic: dict[str, float | int | str] = {}
    optional: bool = False

    @property
    def selector(self) -> tuple[str, str]:
        """Which selector is set, and its pattern."""
        return next((name, getattr(self, name)) for name in SELECTORS if getattr(self, name))

    def __str__(self) -> str:
        name, pattern = self.selector
        kind = "" if name in ("match", "between") else f"{name}="
        return f"{type_name(parse_type(self.type))}:{'~' if self.optional else ''}{kind}{pattern}"


class Constraints(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A file of constraints.

    Attributes:
        schema: version of the format.
        type: the type of everything that nothing is said about; empty: whatever the command line says.
        keep: the constraints, later ones win.
        search: what a search wrote down about itself; not read.
    """

    schema: int = 1
    type: str = ""
    keep: list[Constraint] = []
    search: dict[str, Any] = {}


def checked(constraint: Constraint, where: str) -> Constraint:
    """The constraint, if it makes sense.

    Raises:
        UsageError: no such type; no selector or several; a `between` that is not `a..b`.
    """
    parse_type(constraint.type, where)
    used = [name for name in SELECTORS if getattr(constraint, name)]
    if len(used) != 1:
        found = ", ".join(used) or "none"
        raise UsageError(
            f"{where}: a constraint selects by exactly one of {', '.join(SELECTORS)}; found {found}"
        )
    if constraint.between:
        first, dots, last = constraint.between.partition("..")
        if not (first and dots and last):
            raise UsageError(f"{where}: '{constraint.between}' is not a subgraph", hint="write FIRST..LAST")
    return constraint


# --- The command line -------------------------------------------------------------------------------------


def parse_keep(word: str, where: str = "--keep") -> list[Constraint]:
    """Read `fp32:*LayerNorm*,Softmax`: patterns for node names, operators, original nodes or values.

    A pattern may say what it is for (`op=Softmax`, `node=`, `origin=`, `output=`, `tensor=`), and `a..b` is the
    subgraph between two values. A pattern after `~` may select nothing. Without a type, fp32 is meant.

    Raises:
        UsageError: nothing is selected.
    """
    head, colon, rest = word.partition(":")
    if colon and _LIKE_A_TYPE.fullmatch(head):
        parse_type(head, f"{where} {word}")  # fp33 is meant for a type, and is none
    kind, patterns = (head, rest) if colon and is_type(head) else ("fp32", word)
    kind = type_name(parse_type(kind))
    found = []
    for pattern in patterns.split(","):
        pattern = pattern.strip().strip("'\"")
        optional = pattern.startswith("~")
        pattern = pattern.removeprefix("~")
        if not pattern:
            continue
        name, equals, value = pattern.partition("=")
        name = {"op": "operator"}.get(name, name)
        if equals and name in SELECTORS:
            fields: dict[str, Any] = {name: value}
        elif ".." in pattern:
            fields = {"between": pattern}
        else:
            fields = {"match": pattern}
        found.append(checked(Constraint(type=kind, optional=optional, **fields), where))
    if not found:
        raise UsageError(
            f"{where} {word}: nothing is selected", hint="as in --keep fp32:'*LayerNorm*,Softmax'"
        )
    return found


# --- Files ------------------------------------------------------------------------------------------------


def load_constraints(path: Path | str) -> Constraints:
    """Read a file of constraints, TOML or JSON.

    Raises:
        UsageError: it is missing, malformed, or says something unknown.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        if path.suffix == ".json" or data.lstrip()[:1] == b"{":
            found = msgspec.json.decode(data, type=Constraints)
        else:
            found = msgspec.toml.decode(data, type=Constraints)
    except OSError as error:
        raise UsageError(f"cannot read the constraints '{path}': {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"constraints '{path}': {error}", hint="see docs/precision.md for what the file may say"
        ) from error
    if found.schema != 1:
        raise UsageError(
            f"constraints '{path}': schema {found.schema} is not known", hint="this program reads 1"
        )
    if found.type:
        parse_type(found.type, f"constraints '{path}'")
    for constraint in found.keep:
        checked(constraint, f"constraints '{path}'")
    return found


def dump_constraints(constraints: Constraints, path: Path | str) -> None:
    """Write a file of constraints, JSON if it is called so and TOML otherwise; all of it or nothing.

    Raises:
        LatheError: it cannot be written.
    """
    path = Path(path)
    plain = msgspec.to_builtins(constraints)
    plain = {"schema": constraints.schema, **plain}
    if constraints.keep:
        # The type is written even where it is the default: the file is for readers, too.
        plain["keep"] = [
            {"type": c.type, **entry} for c, entry in zip(constraints.keep, plain["keep"], strict=True)
        ]
    if path.suffix == ".json":
        text = msgspec.json.format(msgspec.json.encode(plain), indent=2) + b"\n"
    else:
        text = to_toml(plain).encode()
    try:
        write_whole(path, text)
    except OSError as error:
        raise LatheError(f"cannot write the constraints '{path}': {error.strerror}") from error


# --- Specifications for TensorRT 10 and older ---------------------------------------------------------------


def parse_layer_precisions(
    words: Sequence[str], where: str = "--layerPrecisions", notes: list[str] | None = None
) -> list[Constraint]:
    """trtexec's `layer:fp16,*:fp32` (also `--layerOutputTypes`, with `fp16+fp32`) and Polygraphy's `layer:float16`.

    A layer's name is the name of an ONNX node; in a strongly typed network a node that computes in a type also
    gives that type, so both of trtexec's options mean the same here. Integer types change nothing in a graph
    that says its types, and are noted.

    Raises:
        UsageError: a part is not NAME:TYPE, or names no type.
    """
    found = []
    for name, kinds in _pairs(words, where):
        wanted = [kind for kind in kinds.split("+") if is_type(kind)]
        for kind in kinds.split("+"):
            if is_type(kind):
                continue
            _other(kind, where)
            if notes is not None:
                notes.append(
                    f"{where}: {name}:{kind} is left out: the graph itself says which values are {kind}"
                )
        if wanted:
            # The widest, where the outputs of one layer were given several types.
            kind = max(wanted, key=lambda k: parse_type(k).bitwidth)
            found.append(Constraint(type=type_name(parse_type(kind)), match=name, optional=True))
    return found


def parse_tensor_dtypes(
    words: Sequence[str], where: str = "--tensor-dtypes", notes: list[str] | None = None
) -> list[Constraint]:
    """Polygraphy's `tensor:float16`: the types of inputs and outputs of the network.

    Raises:
        UsageError: a part is not NAME:TYPE, or names no type.
    """
    found = []
    for name, kind in _pairs(words, where):
        if is_type(kind):
            found.append(Constraint(type=type_name(parse_type(kind)), tensor=name, optional=True))
            continue
        _other(kind, where)
        if notes is not None:
            notes.append(f"{where}: {name}:{kind} is left out: precision chooses among fp32, fp16 and bf16")
    return found


def _other(kind: str, where: str) -> None:
    """A type that is none of precision's is one of those that the specifications have besides.

    Raises:
        UsageError: it is none at all.
    """
    if kind.strip().lower() not in _OTHER_TYPES:
        parse_type(kind, where)


def _pairs(words: Iterable[str], where: str) -> Iterable[tuple[str, str]]:
    for word in words:
        for part in word.replace(" ", ",").split(","):
            part = part.strip().strip("'\"")
            if not part:
                continue
            name, colon, kind = part.rpartition(":")
            if not (name and colon and kind):
                raise UsageError(
                    f"{where}: '{part}' is not NAME:TYPE", hint=f"as in {where} 'conv1:fp16,*:fp32'"
                )
            yield name, kind
