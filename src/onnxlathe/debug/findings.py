"""What a diagnosis consists of: the refused nodes, their causes, and what would run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from onnxlathe.debug.ask import Complaint
from onnxlathe.debug.catalogue import Cause, operator_of
from onnxlathe.debug.locate import Place, Signature, signature
from onnxlathe.debug.parts import Workpiece
from onnxlathe.debug.surroundings import neighbourhood
from onnxlathe.rewrite import origin

NOT_REWRITTEN = "no rewrite of "
"""How the notes of a pass begin that say why a refused node stays as it is."""


@dataclass(frozen=True)
class Finding:
    """One refused node.

    Attributes:
        stage: `parse`, `build` or `file`.
        message: the target's words.
        code: the target's name for the kind of error.
        node: name of the node; empty where the file as a whole is refused.
        operator: its operator.
        origin: names of the nodes of the original model that it stands for.
        top: name of the node of the main graph that it lies in, if it is not in the main graph itself.
        input: the value whose type is refused, where that is the matter.
        given: the node has no name of its own in the file; `node` is what it is called here.
        how: `named` by the target, `cut`, `bisected`, or `table` for the static table.
        cause: what the catalogue knows about it.
        around: the node and its neighbours as text, with types and shapes; the node's line begins with →.
    """

    stage: str
    message: str
    code: str
    node: str = ""
    operator: str = ""
    origin: tuple[str, ...] = ()
    top: str = ""
    input: str = ""
    given: bool = False
    how: str = ""
    cause: Cause | None = None
    around: tuple[str, ...] = ()

    @property
    def cause_id(self) -> str:
        """The catalogue's name for the cause, or `uncatalogued`."""
        return self.cause.id if self.cause is not None else "uncatalogued"

    def to_dict(self) -> dict[str, Any]:
        """As plain data for a report."""
        return {
            "node": self.node,
            "operator": self.operator,
            "origin": list(self.origin),
            "inside": self.top,
            "input": self.input,
            "unnamed": self.given,
            "stage": self.stage,
            "code": self.code,
            "message": self.message,
            "found": self.how,
            "cause": self.cause_id,
            "around": list(self.around),
        }


@dataclass
class Diagnosis:
    """What is known about a model and its target.

    Attributes:
        target: name of the target.
        version: of the target, or of the one that the static table was made with.
        asked: the real target was asked; otherwise the static table was.
        accepted: the target takes the model as it is: parsed, and built where that was asked.
        built: an engine came out; None where the builder was not asked.
        findings: every refused node, in the order of the nodes.
        nodes: how many nodes the main graph has, constants not counted.
        runs: how many of them the target would run.
        unexamined: names of nodes behind refused ones of which nothing can be said.
        remarks: (cause, names of nodes) of what is accepted, and then done differently.
        profile: sizes that an engine was asked for.
        only_at: sizes of open dimensions for which an engine can be built although it cannot for a range.
        questions: how often the target was asked.
        seconds: it took.
        notes: sentences for the user.
    """

    target: str
    version: str
    asked: bool
    accepted: bool = False
    built: bool | None = None
    findings: list[Finding] = field(default_factory=list)
    nodes: int = 0
    runs: int = 0
    unexamined: list[str] = field(default_factory=list)
    remarks: list[tuple[Cause, list[str]]] = field(default_factory=list)
    profile: dict[str, Any] = field(default_factory=dict)
    only_at: dict[str, int] = field(default_factory=dict)
    questions: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def groups(self) -> list[tuple[Cause | None, list[Finding]]]:
        """Findings by cause, the most frequent first; those without one by their message."""
        found: dict[str, list[Finding]] = {}
        for finding in self.findings:
            key = finding.cause.id if finding.cause else "·".join(signature_of(finding))
            found.setdefault(key, []).append(finding)
        return sorted(((f[0].cause, f) for f in found.values()), key=lambda item: -len(item[1]))

    def to_dict(self) -> dict[str, Any]:
        """As plain data for a report."""
        return {
            "schema": 1,
            "target": {"name": self.target, "version": self.version, "asked": self.asked},
            "accepted": self.accepted,
            "built": self.built,
            "nodes": self.nodes,
            "nodes_that_run": self.runs,
            "unexamined": self.unexamined,
            "causes": [
                {
                    "cause": cause.id if cause else "uncatalogued",
                    "title": cause.title if cause else findings[0].message.splitlines()[0],
                    "why": cause.why if cause else "",
                    "remedies": [_plain(r) for r in cause.remedies] if cause else [],
                    "references": cause.references if cause else [],
                    "findings": [f.to_dict() for f in findings],
                }
                for cause, findings in self.groups()
            ],
            "remarks": [{"cause": c.id, "title": c.title, "nodes": n} for c, n in self.remarks],
            "notes": self.notes,
            "questions": self.questions,
            "seconds": round(self.seconds, 3),
        }


def finding_at(work: Workpiece, complaint: Complaint, place: Place, cause: Cause | None) -> Finding:
    """A finding with its surroundings."""
    node = place.node
    top = work.nodes[place.index]
    return Finding(
        complaint.stage,
        complaint.message,
        complaint.code,
        node=node.name or "",
        operator=operator_of(node),
        origin=tuple(origin(node)),
        top=(top.name or "") if top is not node else "",
        input=place.input,
        given=node.name in work.given,
        how=place.how,
        cause=cause,
        around=tuple(neighbourhood(node)),
    )


def signature_of(finding: Finding) -> Signature:
    """What a finding shares with complaints about the same thing in other models."""
    return signature(_complaint(finding))


def _complaint(finding: Finding) -> Complaint:
    stage = "build" if finding.stage == "build" else "parse"
    return Complaint(stage, finding.message, finding.code, finding.node, finding.operator)  # type: ignore[arg-type]


def _plain(remedy: Any) -> dict[str, str]:
    import msgspec

    return {k: v for k, v in msgspec.to_builtins(remedy).items() if v}
