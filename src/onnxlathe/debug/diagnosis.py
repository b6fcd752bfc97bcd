"""Why a model is refused: every refused node, its cause, and what would run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from onnxlathe.debug.ask import Complaint, Hearing, Oracle
from onnxlathe.debug.catalogue import Cause, find_cause, silent_causes
from onnxlathe.debug.findings import Diagnosis, Finding, finding_at
from onnxlathe.debug.locate import Locator, Place, signature
from onnxlathe.debug.parts import UncutError, Workpiece, around, graphs_within, needs
from onnxlathe.model import Model, load
from onnxlathe.target import Target

_MAX_ROUNDS = 200
_MAX_SINGLES = 200
_SIZED_BY_DATA = frozenset({"nonzero", "unique", "nms", "compress", "shape-from-data"})
_ABOUT_SHAPES = frozenset({"shape-contradiction"})


def diagnose(
    source: Model | Path,
    oracle: Oracle,
    *,
    work: Workpiece | None = None,
    budget: float = 600.0,
    build_rest: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> Diagnosis:
    """Ask the target about a model until every refused node is known.

    Args:
        source: the model, or its file.
        oracle: the target.
        work: the same model, where somebody has it ready to be cut.
        budget: seconds; what is known by then is the answer.
        build_rest: where the parser refuses nodes, ask the builder about the others, which takes as long as a
            build does.
        progress: called with what is being done.

    Raises:
        ModelError: the file cannot be loaded.
        TargetError: the target cannot be asked.
    """
    started, asked = time.perf_counter(), oracle.asked
    target = oracle.target
    result = Diagnosis(target.name, target.version, asked=True)
    progress("asking the target")
    hearing = oracle.ask(source)
    model = source if isinstance(source, Model) else load(source)
    work = work or Workpiece(model)
    result.nodes = len(work.nodes)
    result.accepted, result.built, result.profile = hearing.accepted, hearing.built, hearing.profile
    if hearing.accepted:
        result.runs = result.nodes
    else:
        if hearing.only_at is not None:
            result.only_at = hearing.only_at["bindings"]
            sizes = ", ".join(f"{name}={size}" for name, size in result.only_at.items())
            result.notes.append(
                f"an engine for one size can be built ({sizes}); for a range of sizes it cannot"
            )
        search = _Search(work, oracle, result, started + budget, progress)
        if not hearing.parsed and not build_rest and oracle.build:
            search.build = False
            result.notes.append("the builder was not asked about what the parser takes")
        search.run(hearing)
    result.remarks = remarks(work, target)
    result.questions, result.seconds = oracle.asked - asked, time.perf_counter() - started
    return result


def remarks(work: Workpiece, target: Target) -> list[tuple[Cause, list[str]]]:
    """What the target would accept, and then do differently."""
    found: dict[str, tuple[Cause, list[str]]] = {}
    for node in work.model.nodes():
        for cause in silent_causes(node, target=target.name, version=target.version):
            found.setdefault(cause.id, (cause, []))[1].append(node.name or "")
    return list(found.values())


class _Search:
    """Refused nodes are removed and the rest is asked about, until the rest is accepted."""

    def __init__(
        self,
        work: Workpiece,
        oracle: Oracle,
        result: Diagnosis,
        deadline: float,
        progress: Callable[[str], None],
    ) -> None:
        self.work, self.oracle, self.result = work, oracle, result
        self.deadline, self.progress = deadline, progress
        self.locator = Locator(work, oracle)
        self.refused: set[int] = set()
        self.seen: set[tuple[str, str]] = set()
        self.by_data: set[int] = set()  # refused, and how much they give depends on data
        self.entered: set[int] = set()  # refused for a node within, whose other nodes have been asked about
        self.behind: set[int] = set()  # refused for what such nodes give
        self.build: bool | None = (
            None  # whether the builder is asked about the rest; None: as the oracle does
        )

    def run(self, first: Hearing) -> None:
        kept = list(range(len(self.work.nodes)))
        if any(c.fatal for c in first.complaints):
            self.locator.inner = min(
                self.oracle.timeout, max(5.0, min(self.oracle.timeout / 4, 4 * first.seconds))
            )
        elif first.parsed:  # otherwise nobody knows yet how long a build takes
            self.locator.inner = min(self.oracle.timeout, max(20.0, 10 * first.seconds))
        hearing = self._ask(kept)
        if hearing is None or hearing.accepted:
            self._file_level(first)
            return
        for _ in range(_MAX_ROUNDS):
            new = self._trace(hearing, kept)
            if not new:
                self._unplaced(hearing)
                break
            if not hearing.parsed:
                self._singles(kept)
            kept = sorted(self.work.examinable(self.refused))
            if not kept:
                break
            if time.perf_counter() > self.deadline:
                self.result.notes.append("time ran out: there may be more refused nodes (see --budget)")
                break
            self.progress(f"asking about the rest ({len(self.refused)} nodes refused so far)")
            again = self._ask(kept)
            if again is None or again.accepted:
                break
            hearing = again
        self._finish(kept)

    def _ask(self, kept: Sequence[int]) -> Hearing | None:
        try:
            return self.oracle.ask(self.work.part(kept), build=self.build, timeout=self.locator.inner)
        except UncutError as error:
            self.result.notes.append(f"the rest could not be examined: {error}")
            return None

    def _trace(self, hearing: Hearing, kept: Sequence[int]) -> int:
        """Place what was complained of; returns how many nodes of the main graph are newly refused."""
        before = len(self.refused)
        for complaint in hearing.complaints:
            # The parser goes on after some errors, and then complains of what those have caused.
            vague = not complaint.node and not complaint.fatal and "importInput" not in complaint.message
            if vague and len(self.refused) > before:
                continue
            for place in self.locator.places(complaint, hearing, kept):
                self._add(complaint, place)
        return len(self.refused) - before

    def _singles(self, kept: Sequence[int]) -> None:
        """Further nodes that the parser would leave out, each confirmed by itself."""
        rest = sorted(self.work.examinable(self.refused) & set(kept))
        for name in self._left(self.work, rest) if rest else ():
            node = self.work.find(name)
            index = self.work.holder(node) if node is not None else None
            if index is None or index in self.refused:
                continue
            hearing = self._alone(self.work, index)
            for complaint in hearing.complaints:
                for place in self.locator.places(complaint, hearing, [index])[:1]:
                    self._add(complaint, place)

    def _add(self, complaint: Complaint, place: Place) -> None:
        if (place.node.name or "", signature(complaint)[-1]) in self.seen:
            return
        self.seen.add((place.node.name or "", signature(complaint)[-1]))
        self.refused.add(place.index)
        target = self.oracle.target
        if place.input and not self._is_input(place.input):  # refused for what a removed node gives
            said = f"the target has no type for its input '{place.input}' ({complaint.message})"
            complaint = replace(complaint, message=said.replace("importInput", "border"))
        holders = around(self.work.nodes[place.index], place.node)
        cause = find_cause(complaint, place.node, target=target.name, version=target.version, around=holders)
        if cause is not None and cause.id in _SIZED_BY_DATA:
            self.by_data.add(place.index)
        elif (cause is None or cause.id in _ABOUT_SHAPES) and self._behind_data(place.index):
            self.behind.add(
                place.index
            )  # cut off from the count that its sizes come from, it cannot be judged
            return
        if any(f.node == place.node.name and f.cause is cause for f in self.result.findings):
            return
        self.result.findings.append(finding_at(self.work, complaint, place, cause))
        if holders and place.index not in self.entered:
            self.entered.add(place.index)
            self._inside(place.index)

    def _inside(self, index: int) -> None:
        """The other nodes within a node of the main graph: the parser stops at the first that it refuses."""
        for graph in graphs_within(self.work.nodes[index]):
            inner = self.work.inside(graph)
            for name in self._left(inner, range(len(inner.nodes))):
                node = inner.find(name)
                position = inner.holder(node) if node is not None else None
                if node is None or position is None or inner.nodes[position] is not node:
                    continue
                for complaint in self._alone(inner, position).complaints[:1]:
                    if complaint.node in ("", name):
                        self._add(complaint, Place(index, node, "cut"))

    def _left(self, work: Workpiece, indices: Iterable[int]) -> list[str]:
        """Names of those nodes that the parser would leave out; none where it cannot be asked."""
        try:
            part = work.part(indices)
        except UncutError:
            return []
        runs = self.oracle.supported(part)
        if runs is None:
            return []
        taken = {index for run in runs for index in run}
        names = [n.name or "" for n in part.graph]
        return [name for index, name in enumerate(names) if index not in taken][:_MAX_SINGLES]

    def _alone(self, work: Workpiece, index: int) -> Hearing:
        """What the parser says of one node by itself."""
        try:
            alone = work.part([index], frozen=work.freezable([index]))
        except UncutError:
            return Hearing(True, True)
        return self.oracle.ask(alone, build=False, timeout=self.locator.inner)

    def _behind_data(self, index: int) -> bool:
        """Whether a node uses, at some remove, what a node of data-dependent size gives."""
        seen, work = {index}, [index]
        while work:
            for value in needs(self.work.nodes[work.pop()]):
                producer = value.producer()
                above = self.work.position.get(id(producer)) if producer is not None else None
                if above in self.by_data:
                    return True
                if above is not None and above not in seen:
                    seen.add(above)
                    work.append(above)
        return False

    def _is_input(self, name: str) -> bool:
        return any(v.name == name for v in self.work.model.graph.inputs)

    def _unplaced(self, hearing: Hearing) -> None:
        """Complaints that belong to no node."""
        target = self.oracle.target
        for complaint in hearing.complaints[:4]:
            cause = find_cause(complaint, None, target=target.name, version=target.version)
            self.result.findings.append(
                Finding(complaint.stage, complaint.message, complaint.code, how="", cause=cause)
            )

    def _file_level(self, first: Hearing) -> None:
        """The file is refused, and the same graph written anew is not."""
        target = self.oracle.target
        for complaint in first.complaints[:4]:
            node = self.work.find(complaint.node) if complaint.node else None
            cause = find_cause(complaint, node, target=target.name, version=target.version)
            self.result.findings.append(
                Finding(
                    "file",
                    complaint.message,
                    complaint.code,
                    node=complaint.node,
                    operator=complaint.operator,
                    cause=cause,
                    how="named" if complaint.node else "",
                )
            )
        self.result.runs = self.result.nodes
        self.result.notes.append(
            "the same graph, loaded and saved by this program, is accepted: `optimize MODEL --passes tidy` mends it"
        )

    def _finish(self, kept: Sequence[int]) -> None:
        position = {n.name: i for i, n in enumerate(self.work.nodes)}
        order = {f.node: position.get(f.top or f.node, len(position)) for f in self.result.findings}
        self.result.findings.sort(key=lambda f: order[f.node])
        runs = set(kept) - self.refused
        self.result.runs = len(runs)
        behind = (set(range(len(self.work.nodes))) - runs - self.refused) | self.behind
        self.result.unexamined = [self.work.nodes[i].name or "" for i in sorted(behind)]
