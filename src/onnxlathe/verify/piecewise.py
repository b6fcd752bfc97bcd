"""Running models segment by segment, in the memory that one segment takes.

What is alive between two segments goes through files, so that a model computes exactly what it computes as a
whole. What the original holds at its narrow places is kept: a candidate that is wrong has the first wrong value
at one of them, and whether another state of it is wrong there, too, needs that part of the model only.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.model import Model
from onnxlathe.model.mapped import save_mapped

from . import metrics, store
from .runtime import RuntimeFailure, RuntimeProcess
from .segments import Chain, Segment
from .tolerance import Tolerance
from .verdict import Comparison

Allowed = Callable[[str, str], Tolerance]
"""The tolerance for a value of that name and element type."""

Suspect = tuple[frozenset[str], frozenset[str]]
"""Names of values that are right, and of values behind them that are wrong."""


@dataclass
class Pieces:
    """What a comparison in segments found.

    Attributes:
        comparisons: of the model's outputs.
        segments: how many there were.
        largest: bytes of the weights of the largest.
        suspect: where it first differs from the original, if it does.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    segments: int = 0
    largest: int = 0
    suspect: Suspect | None = None


class Piecewise:
    """An original in segments.

    Args:
        original: the model; all of its outputs must be made by nodes.
        runtime: where models are run.
        folder: for models and recorded values.
        budget: bytes of weights that a segment should have at most.
        progress: called with a short text before each segment.
    """

    def __init__(
        self,
        original: Model,
        runtime: RuntimeProcess,
        folder: Path,
        budget: int,
        progress: Callable[[str], None],
    ) -> None:
        self._runtime, self._folder, self._budget, self._progress = runtime, folder, budget, progress
        self._chain = Chain(original)
        self._recorded = self._chain.narrow()
        self._outputs = [v.name or "" for v in original.graph.outputs]
        self._values: list[dict[str, Path]] = []  # for each feed, where a recorded value lies
        self._inputs: list[Path] = []

    def run(self, feed: Path, save: Path) -> dict[str, Any]:
        """Run the original on a feed and keep its outputs, as `RuntimeProcess.run` does.

        Raises:
            RuntimeFailure: a segment cannot be run.
        """
        number = len(self._values)
        segments = self._chain.segments(self._budget)
        values, answer = self._run(self._chain, segments, feed, f"original{number}", self._recorded)
        store.write(save, {name: _read(values[name], name) for name in self._outputs})
        self._values.append(values)
        self._inputs.append(feed)
        return {
            "outputs": {name: answer["outputs"][name] for name in self._outputs},
            "bases": {name: name for name in self._outputs},
            "blank": [name for name in self._outputs if name in answer["blank"]],
        }

    def _run(
        self, chain: Chain, segments: Sequence[Segment], feed: Path, label: str, wanted: set[str]
    ) -> tuple[dict[str, Path], dict[str, Any]]:
        """Run a model on a feed; in which file each value lies, and the answers of all segments as one."""
        values: dict[str, Path] = {}
        merged: dict[str, Any] = {"outputs": {}, "blank": []}
        for index, segment in enumerate(segments):
            self._progress(
                f"running the {label.rstrip('0123456789')}, segment {index + 1} of {len(segments)}"
            )
            opened = self._open(chain.part(segment, wanted))
            fed, found = self._folder / "segment-feed.npz", self._folder / f"{label}-{index}.npz"
            self._gather(fed, opened["inputs"], feed, values)
            answer = self._runtime.run(fed, found)
            self._runtime.close()
            values |= dict.fromkeys(answer["outputs"], found)
            merged["outputs"] |= answer["outputs"]
            merged["blank"] += answer["blank"]
        return values, merged

    def compare(self, candidate: Model, allowed: Allowed) -> Pieces:
        """Compare a candidate, whose inputs and outputs are the original's, on every feed.

        Raises:
            RuntimeFailure: a segment of it cannot be run.
        """
        chain = Chain(candidate)
        segments = chain.segments(self._budget)
        order = {v.name: i for i, node in enumerate(chain.nodes) for v in node.outputs}
        pieces = Pieces([], len(segments), max(s.nbytes for s in segments))
        for number, original in enumerate(self._values):
            found, _ = self._run(chain, segments, self._inputs[number], "candidate", self._recorded)
            shared = sorted((name for name in original if name in found), key=lambda name: order[name])
            compared = {name: self._measure(name, number, original, found, allowed) for name in shared}
            pieces.comparisons += [compared[name] for name in self._outputs]
            right = [name for name in shared if compared[name].passed]
            wrong = next((name for name in shared if not compared[name].passed), None)
            if wrong is not None and pieces.suspect is None:
                before = [name for name in right if order[name] < order[wrong]]
                pieces.suspect = frozenset(before[-1:]), frozenset([wrong])
            for path in set(found.values()):
                path.unlink()
        return pieces

    @staticmethod
    def _measure(
        name: str, number: int, original: Mapping[str, Path], found: Mapping[str, Path], allowed: Allowed
    ) -> Comparison:
        expected, actual = _read(original[name], name), _read(found[name], name)
        return metrics.compare(name, number, expected, actual, allowed(name, metrics.dtype_name(expected)))

    def is_wrong(self, candidate: Model, suspect: Suspect, allowed: Allowed) -> bool:
        """Whether a candidate, given the original's values before the suspect place, is wrong behind it.

        Raises:
            RuntimeFailure: that part of it cannot be run.
        """
        chain = Chain(candidate)
        given = self._recorded & (self._values[0].keys() if self._values else set())
        given |= set(self._outputs)
        segment = chain.between(*suspect)
        part = chain.part(segment, given=given)
        if not any(v.name in given for v in part.graph.outputs):
            raise RuntimeFailure("invalid", "nothing that the original has comes out of that part")
        opened = self._open(part)
        wrong = False
        for number, values in enumerate(self._values):
            fed, found = self._folder / "segment-feed.npz", self._folder / "suspect.npz"
            self._gather(fed, opened["inputs"], self._inputs[number], values)
            answer = self._runtime.run(fed, found)
            answers = dict.fromkeys((name for name in answer["outputs"] if name in values), found)
            wrong = wrong or any(
                not self._measure(name, number, values, answers, allowed).passed for name in answers
            )
        self._runtime.close()
        return wrong

    def _open(self, part: Model) -> dict[str, list[str]]:
        folder = self._folder / "segment"
        shutil.rmtree(folder, ignore_errors=True)  # one at a time: they may be large
        folder.mkdir()
        save_mapped(part, folder / "model.onnx")
        return self._runtime.open(folder / "model.onnx")

    def _gather(self, path: Path, names: Iterable[str], feed: Path, values: Mapping[str, Path]) -> None:
        """Write the named values to one file: recorded ones, and inputs of the model."""
        with store.Stored(feed) as stored:
            arrays = {
                name: stored[name] if name in stored else _read(values[name], name)
                for name in names
                if name in stored or name in values
            }
        store.write(path, arrays)


def is_divisible(model: Model) -> bool:
    """Whether a model can be run in segments: its outputs are tensors that nodes make."""
    return all(
        v.producer() is not None and not isinstance(v.type, ir.SequenceType | ir.OptionalType)
        for v in model.graph.outputs
    )


def weight_bytes(model: Model) -> int:
    """Bytes of the weights of the main graph."""
    tensors = {id(v.const_value): v.const_value for v in model.graph.initializers.values()}
    return sum(tensor.nbytes for tensor in tensors.values() if tensor is not None)


def _read(path: Path, name: str) -> np.ndarray:
    with store.Stored(path) as stored:
        return stored[name]
