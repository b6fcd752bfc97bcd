"""The causes of refusals that are known: read from the TOML files in `catalogue/`, matched against complaints.

An entry says what it applies to (error text, operator, element types, attributes, number of outputs, versions)
and what to tell the user: explanation, remedies, references. All conditions that an entry gives have to hold; of
the entries that match, the first in order of the files wins.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources

import msgspec
import onnx_ir as ir

from onnxlathe.debug.ask import Complaint
from onnxlathe.rewrite import NoMatch, attribute


class Remedy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thing that mends a refusal.

    Attributes:
        say: what to do, as a sentence.
        passes: pipeline that does it (`legalize`), where one does.
        option: words for `optimize MODEL …` that do it (`--dim batch=1`).
        python: what to write at export, for PyTorch where not said otherwise.
        changes: what changes in meaning or in the interface, where anything does.
    """

    say: str
    passes: str = ""
    option: str = ""
    python: str = ""
    changes: str = ""


class When(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a cause applies to. Texts are regular expressions; what is left out is not asked.

    Attributes:
        stage: `parse`, `build`, `file` (before either) or `silent` (accepted, but see the explanation).
        code: of the complaint, whole.
        message: anywhere in the complaint.
        operator: `Op` or `domain::Op`, whole.
        input_type: element type of some input, whole (`uint8`).
        output_type: element type of some output, whole.
        type: element type of some input or output, whole.
        attributes: by name, the text of its value (its default where it is left out), whole.
        outputs: at least so many outputs have names, used or not.
        rank: of the first input.
        computed: these inputs, by index, are not constants.
        inside: operator of the node whose subgraph it stands in, whole.
        without: the node (or with `inside` that around it) leaves out this input.
        target: `rtx` or `tensorrt`.
        version: of the target, as in `>=10.3,<11`.
    """

    stage: str = ""
    code: str = ""
    message: str = ""
    operator: str = ""
    input_type: str = ""
    output_type: str = ""
    type: str = ""
    attributes: dict[str, str] = {}
    outputs: int = 0
    rank: list[int] = []
    computed: list[int] = []
    inside: str = ""
    without: int | None = None
    target: str = ""
    version: str = ""


class Cause(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A known cause.

    Attributes:
        id: short name; tests and reports refer to it.
        title: what is wrong, in a line.
        why: the explanation.
        when: what it applies to; one of several conditions.
        remedies: what mends it, the best first.
        references: upstream issues and documents.
        static: the conditions on operator, types and attributes alone are enough for the verdict: it
            is used where no TensorRT can be asked.
    """

    id: str
    title: str
    why: str
    when: list[When]
    remedies: list[Remedy] = []
    references: list[str] = []
    static: bool = False


class _File(msgspec.Struct, forbid_unknown_fields=True):
    cause: list[Cause]


@functools.cache
def causes() -> tuple[Cause, ...]:
    """All entries, in the order of the files' names and of the entries in them."""
    folder = resources.files(__package__).joinpath("catalogue")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return tuple(c for f in files for c in msgspec.toml.decode(f.read_bytes(), type=_File).cause)


def find_cause(
    complaint: Complaint,
    node: ir.Node | None,
    *,
    target: str = "",
    version: str = "",
    around: Sequence[ir.Node] = (),
) -> Cause | None:
    """The first entry that explains a complaint about a node; `around` it are the nodes in whose subgraphs it
    stands, the nearest first."""
    for cause in causes():
        for when in cause.when:
            if when.stage != "silent" and _applies(when, complaint, node, target, version, around):
                return cause
    return None


def silent_causes(node: ir.Node, *, target: str, version: str) -> Iterator[Cause]:
    """Entries about what the target accepts, and then does differently or slowly."""
    nothing = Complaint("parse", "", "")
    for cause in causes():
        for when in cause.when:
            if when.stage == "silent" and _applies(when, nothing, node, target, version):
                yield cause
                break


def static_cause(node: ir.Node, *, target: str = "", version: str = "") -> Cause | None:
    """The first entry that by itself, without a target's complaint, says that a node is refused."""
    for cause in causes():
        for when in cause.when if cause.static else ():
            enough = not (when.message or when.code or when.stage) and any(_conditions(when))
            if enough and _matches_node(when, node) and _matches_target(when, target, version):
                return cause
    return None


def operator_of(node: ir.Node) -> str:
    """`Op`, or `domain::Op`."""
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def type_name(value: ir.Value | None) -> str:
    """Element type as people write it: `float32`, `uint8`; empty where it is not known."""
    if value is None or value.dtype is None:
        return ""
    name = value.dtype.name.lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def _applies(
    when: When,
    complaint: Complaint,
    node: ir.Node | None,
    target: str,
    version: str,
    around: Sequence[ir.Node] = (),
) -> bool:
    if when.stage not in ("", "silent") and when.stage != complaint.stage:
        return False
    if complaint.fatal and not when.code:  # what it died on is not why
        return False
    if when.code and not re.fullmatch(when.code, complaint.code):
        return False
    if when.message and not re.search(when.message, complaint.message, re.DOTALL):
        return False
    return _matches_target(when, target, version) and _matches_node(when, node, around)


def _matches_target(when: When, target: str, version: str) -> bool:
    if when.target and target and when.target != target:
        return False
    return not (when.version and version) or _in_range(version, when.version)


def _conditions(when: When) -> tuple[object, ...]:
    """The conditions on the node."""
    types = (when.input_type, when.output_type, when.type)
    own = (when.operator, *types, when.attributes, when.outputs, when.rank, when.computed)
    return (*own, when.inside, when.without is not None)


def _matches_node(when: When, node: ir.Node | None, around: Sequence[ir.Node] = ()) -> bool:
    if node is None:
        return not any(_conditions(when))
    inputs, outputs = list(map(type_name, node.inputs)), list(map(type_name, node.outputs))
    if when.operator and not re.fullmatch(when.operator, operator_of(node)):
        return False
    for pattern, names in (
        (when.input_type, inputs),
        (when.output_type, outputs),
        (when.type, inputs + outputs),
    ):
        if pattern and not any(re.fullmatch(pattern, name) for name in names):
            return False
    if not all(_has_attribute(node, name, pattern) for name, pattern in when.attributes.items()):
        return False
    if sum(1 for v in node.outputs if v.name) < when.outputs:  # the parser does not ask who uses them
        return False
    if when.rank and not _has_rank(node, when.rank):
        return False
    if when.inside or when.without is not None:
        holders = [n for n in around if re.fullmatch(when.inside, operator_of(n))] if when.inside else [node]
        if not holders or (when.without is not None and _has_input(holders[0], when.without)):
            return False
    return all(_is_computed(node, index) for index in when.computed)


def _has_input(node: ir.Node, index: int) -> bool:
    return index < len(node.inputs) and node.inputs[index] is not None


def _has_attribute(node: ir.Node, name: str, pattern: str) -> bool:
    graph = node.graph
    opset = graph.opset_imports.get(node.domain) if graph is not None else None
    try:
        value = attribute(node, name, opset or onnx_opset())
    except NoMatch:  # the caller of a function decides
        return False
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return re.fullmatch(pattern, "" if value is None else str(value)) is not None


@functools.cache
def onnx_opset() -> int:
    """The newest opset that the installed onnx knows."""
    import onnx

    return int(onnx.defs.onnx_opset_version())


def _has_rank(node: ir.Node, ranks: Iterable[int]) -> bool:
    first = node.inputs[0] if node.inputs else None
    return first is not None and first.shape is not None and len(first.shape) in ranks


def _is_computed(node: ir.Node, index: int) -> bool:
    from onnxlathe.infer import constant, known

    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or constant(value) is not None:
        return False
    content = known(value)  # what the target's own constant folding will find, too
    return content is None or not all(isinstance(e, int | float | bool) for e in content.reshape(-1).tolist())


def _in_range(version: str, condition: str) -> bool:
    """Whether a version such as 10.16.1 satisfies every part of `>=10.3,<11`."""
    have = _numbers(version)
    checks: Mapping[str, bool]
    for part in condition.split(","):
        found = re.fullmatch(r"\s*(>=|<=|==|<|>)\s*([\d.]+)\s*", part)
        if found is None:
            return False
        want = _numbers(found[2])
        cut = have[: len(want)]
        checks = {">=": cut >= want, "<=": cut <= want, "==": cut == want, "<": cut < want, ">": cut > want}
        if not checks[found[1]]:
            return False
    return True


def _numbers(version: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", version)]
