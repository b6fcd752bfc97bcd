"""From what the target says to the node that it means.

The parser names nodes mostly, the builder names layers of its own, and a crash names nothing. Names are read out
of the text where there are any; otherwise the model is cut: the shortest prefix that is refused for the same reason
ends with the node to blame.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxlathe._bisection import smallest
from onnxlathe.debug.ask import Complaint, Hearing, Oracle
from onnxlathe.debug.parts import UncutError, Workpiece, within

Signature = tuple[str, ...]


def signature(complaint: Complaint) -> Signature:
    """What two complaints share that are about the same thing; names and numbers of the model are left out."""
    if complaint.fatal:
        return (complaint.stage, complaint.code)
    text = complaint.message
    places = re.findall(r"\((\w+), [\w.]+\.(?:cpp|h):\d+\)|In (\w+) at \S+?\.(?:cpp|h):\d+", text)
    found = tuple(a or b for a, b in places if (a or b) != "importInput")
    # The place in the sources says what was checked; the operator says of what.
    if found:
        return (complaint.stage, complaint.operator, *found)
    plain = re.sub(r"\{.*?\}|\[.*?\]|'[^']*'|\"[^\"]*\"|[\w/.]*\d[\w/.]*", "#", text.splitlines()[0])
    return (complaint.stage, complaint.operator, plain)


def shows(hearing: Hearing, wanted: Signature) -> bool:
    """Whether the target complains of the same thing."""
    for complaint in hearing.complaints:
        have = signature(complaint)
        if have == wanted:
            return True
        # A builder's message knows no operator, and the parser does not always.
        if have[0] == wanted[0] and have[2:] and have[2:] == wanted[2:] and "" in (have[1], wanted[1]):
            return True
    return False


@dataclass(frozen=True)
class Place:
    """Where a complaint belongs.

    Attributes:
        index: of the node of the main graph, into `Workpiece.nodes`.
        node: the node itself, which may lie in a graph within that one.
        how: `named` by the target, `cut` out (the node alone is refused for the same reason), `bisected`.
        input: the graph input or value at a border that the complaint is about.
    """

    index: int
    node: ir.Node
    how: str
    input: str = ""


class Locator:
    """Finds the nodes that complaints are about.

    Args:
        work: the model.
        oracle: whom to ask about parts of it.
        inner: timeout for questions about parts, in seconds.
    """

    def __init__(self, work: Workpiece, oracle: Oracle, *, inner: float | None = None) -> None:
        self.work, self.oracle, self.inner = work, oracle, inner
        self._nodes = {n.name or "": n for n in work.model.nodes()}
        self._makers = {v.name: n for n in work.model.nodes() for v in n.outputs if v.name}

    def places(self, complaint: Complaint, hearing: Hearing, kept: Sequence[int]) -> list[Place]:
        """The nodes that a complaint about the part `kept` is about; empty if none can be found.

        More than one: the consumers of an input that has a type the target does not take.
        """
        found = self._named(complaint, kept)
        if found:
            return found
        found = self._of_input(complaint, kept)
        if found:
            return found
        candidates = self._mentioned(complaint, hearing, set(kept)) if not complaint.fatal else []
        wanted = signature(complaint)
        for place in candidates[:4]:
            if self.shown([place.index], wanted):
                return [Place(place.index, place.node, "cut")]
        if len({p.index for p in candidates}) == 1:
            return candidates[:1]
        index = self.bisect(kept, wanted, build=complaint.stage == "build")
        if index is not None:
            return [Place(index, self.work.nodes[index], "bisected")]
        return candidates[:1]

    # --- by name ---------------------------------------------------------------------------------------

    def _named(self, complaint: Complaint, kept: Sequence[int]) -> list[Place]:
        if complaint.code == "INVALID_GRAPH" and not complaint.node:
            return []
        node = self._nodes.get(complaint.node) if complaint.node else None
        if node is None and complaint.stack:
            node = self._nodes.get(complaint.stack[0].rsplit(" (", 1)[0])
        if node is None:
            return []
        index = self.work.holder(node)
        if index is None:  # within a function
            for outer in complaint.stack:
                caller = self._nodes.get(outer.rsplit(" (", 1)[0])
                index = self.work.holder(caller) if caller is not None else None
                if index is not None:
                    break
        return [Place(index, node, "named")] if index is not None and index in kept else []

    def _of_input(self, complaint: Complaint, kept: Sequence[int]) -> list[Place]:
        found = re.search(r"\(importInput, (.+):\d+\)", complaint.message)
        if found is None:
            return []
        name = found[1]
        users = [
            (index, user)
            for index in kept
            for user in within(self.work.nodes[index])
            if any(v is not None and v.name == name for v in user.inputs)
        ]
        return [Place(index, node, "named", name) for index, node in users]

    def _mentioned(self, complaint: Complaint, hearing: Hearing, kept: set[int]) -> list[Place]:
        """Nodes whose names, or whose layers' names, are words of the message; outermost for values."""
        layers: dict[str, str] = {}
        for layer in hearing.layers:
            said = re.search(r"\[ONNX Layer: ([^|\]]+?)(?: \||\])", layer["metadata"] or "")
            if said:
                layers[layer["name"]] = said[1]
        found: dict[int, Place] = {}
        weak: dict[int, Place] = {}
        for word in _words(complaint.message):
            name = layers.get(word, word)
            node = self._nodes.get(name) or self._nodes.get(_stem(name, self._nodes))
            if node is not None:
                index = self.work.holder(node)
                if index is not None and index in kept:
                    found.setdefault(id(node), Place(index, node, "named"))
            elif word in self._makers:
                index = self.work.holder(self._makers[word])
                if index is not None and index in kept:
                    weak.setdefault(index, Place(index, self.work.nodes[index], "named"))
        return list(found.values()) or list(weak.values())

    # --- by cutting ------------------------------------------------------------------------------------

    def shown(self, keep: Iterable[int], wanted: Signature) -> bool:
        """Whether the part with these nodes is refused for the same reason."""
        keep = list(keep)
        for frozen in ({}, self.work.freezable(keep)):
            try:
                part = self.work.part(keep, frozen=frozen)
            except UncutError:
                return False
            hearing = self.oracle.ask(part, build=wanted[0] == "build", timeout=self.inner)
            if shows(hearing, wanted):
                return True
            if hearing.accepted and not self.work.freezable(keep):
                return False
        return False

    def bisect(self, kept: Sequence[int], wanted: Signature, *, build: bool) -> int | None:
        """The last node of the shortest prefix of `kept` that is refused for the same reason."""
        ordered = sorted(kept)

        def refused(count: int) -> bool:
            try:
                part = self.work.part(ordered[:count])
            except UncutError:
                return False
            return shows(self.oracle.ask(part, build=build, timeout=self.inner), wanted)

        end = first(refused, len(ordered))
        return ordered[end - 1] if end is not None else None


def first(holds: Callable[[int], bool], end: int) -> int | None:
    """The first number in 1…end for which `holds`, given that it goes on to hold; None if it never does."""
    return smallest(holds, end) if end >= 1 and holds(end) else None


def _words(message: str) -> Iterator[str]:
    """The words of a message that may be names, in order."""
    for word in re.split(r"[\s\[\](){},;\"'+]+", message):
        for part in word.split("..."):
            cleaned = part.rstrip(":.").strip()
            if cleaned:
                yield cleaned


def _stem(word: str, names: dict[str, ir.Node]) -> str:
    """`nms` of `nms_0` and `choose` of `choose_OutputLayer`, if there is such a node."""
    while "_" in word:
        word = word.rpartition("_")[0]
        if word in names:
            return word
    return ""
