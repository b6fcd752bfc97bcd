"""The original: run once on every feed, with its answers kept on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.errors import LatheError, ModelError
from onnxlathe.model import Model, load
from onnxlathe.model.interface import Interface, interface_of
from onnxlathe.model.model import LOWERED
from onnxlathe.model.samples import VARIANTS, default_bindings, sample_inputs

from . import store
from .limits import output_precisions, random_nodes, reached_outputs, why_random
from .memory import available_memory
from .piecewise import Piecewise, is_divisible, weight_bytes
from .runtime import RuntimeFailure
from .session import Session, why_not
from .tolerance import Tolerances
from .verdict import Feed, Unchecked


@dataclass
class Reference:
    """The original on one feed: where its inputs and outputs lie."""

    feed: Feed
    inputs: Path
    outputs: Path
    dtypes: dict[str, str]
    bases: dict[str, str]  # array → the output that it is (a part) of
    blank: list[str] = field(default_factory=list)


class Original:
    """The truth that candidates are compared with.

    Args:
        source: a model or its file.
        session: where it is run.
        feeds, seeds, bindings, tolerances, memory: as `Verifier` takes them.

    Attributes:
        references: what it gives on each feed; empty if it cannot be run.
        unchecked: why an output cannot be compared, by its name; "" for everything.
        through: the coarsest precision that each output's values went through.
        low_names: its inputs and outputs of float16 and bfloat16.
        is_lowered: whether it was given a lower precision on purpose.
        interface: how it is itself called otherwise than what it was made from.
        pieces: it in segments, where it does not fit in memory as a whole.
    """

    def __init__(
        self,
        source: Model | Path | str,
        session: Session,
        *,
        feeds: Iterable[Mapping[str, np.ndarray]] | None,
        seeds: Sequence[int],
        bindings: Mapping[str, int],
        tolerances: Tolerances,
        memory: int | None,
    ) -> None:
        self._source, self._session = source, session
        self._feeds, self._seeds, self._bindings = feeds, tuple(seeds), dict(bindings)
        self._tolerances, self._memory = tolerances, memory
        self._is_prepared = False
        self._kinds: dict[str, np.dtype[Any]] = {}  # element types of the inputs
        self._fixed: dict[str, Any] = {}  # inputs that a candidate has as constants: everybody gets these
        self.references: list[Reference] = []
        self.unchecked: dict[str, Unchecked] = {}
        self.through: dict[str, str] = {}
        self.low_names: set[str] = set()
        self.is_lowered = False
        self.interface = Interface()
        self.pieces: Piecewise | None = None

    def model(self) -> Model:
        """The model itself, loaded if only its file was given."""
        return self._source if isinstance(self._source, Model) else load(Path(self._source))

    def prepare(self) -> None:
        """Run it on all feeds, unless that has been done."""
        if self._is_prepared:
            return
        self._is_prepared = True
        self.references.clear()
        self._session.runtime.start()
        model = self.model()
        if model.repairs:  # the file itself is not what the user's model means
            self._source = model
        names = [o.name or "" for o in model.graph.outputs]
        self._tolerances.check_names(names)
        self.through = output_precisions(model)
        self.is_lowered = LOWERED in model.ir.metadata_props
        self.interface = interface_of(model.ir)
        self._kinds = {
            v.name: v.dtype.numpy() for v in model.graph.inputs if v.dtype is not None and v.name is not None
        }
        self.low_names = {
            v.name or ""
            for v in (*model.graph.inputs, *model.graph.outputs)
            if v.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
        }
        for name, node in reached_outputs(model, random_nodes(model)).items():
            self.unchecked[name] = why_random(name, node)
        try:
            memory = available_memory() // 2 if self._memory is None else self._memory
            if weight_bytes(model) > memory and is_divisible(model):
                self.pieces = self.divided(model, memory // 3)
            else:
                self._session.progress("loading the original")
                _, failure = self._session.open(model, self._source, self.unchecked)
                if failure is not None:
                    self.unchecked[""] = why_not("the original", failure)
                    return
            self._run(model)
            self._session.runtime.close()
        except RuntimeFailure as failure:
            self.unchecked[""] = why_not("the original", failure)

    def divided(self, model: Model, budget: int) -> Piecewise:
        """The original in segments with at most `budget` bytes of weights each; nothing has been run."""
        session = self._session
        return Piecewise(model, session.runtime, session.folder, budget, session.progress)

    def _run(self, model: Model) -> None:
        """Fill `references`: the user's feeds, or one made up for each seed."""
        references = self.references
        if self._feeds is not None:
            for number, feed in enumerate(self._feeds):
                self._session.progress(f"running the original on feed {number + 1}")
                failure = self._run_on(feed, f"feed {number + 1} of the data")
                if failure is not None:
                    self.unchecked[""] = why_not(f"the original, on feed {number + 1} of the data,", failure)
                    return
            if not references:
                self.unchecked[""] = Unchecked("", "the data holds no feed")
            return
        failures: list[str] = []
        tried: set[tuple[int, str]] = set()
        for number, seed in enumerate(self._seeds):
            # The sizes meant for this feed first; then sizes that other models turned out to insist on.
            for attempt in range(VARIANTS):
                variant = (
                    number % 2 if attempt == 0 else attempt + 1 if attempt < VARIANTS - 1 else 1 - number % 2
                )
                try:
                    sizes = default_bindings(model, variant, given=self._bindings)
                except ModelError as error:  # inputs that are no tensors
                    failures.append(error.message)
                    break
                label = ", ".join([f"seed {seed}", *(f"{k}={v}" for k, v in sizes.items())])
                if (seed, label) in tried:
                    continue
                tried.add((seed, label))
                self._session.progress(f"running the original ({label})")
                try:
                    inputs = sample_inputs(model, seed=seed, bindings=sizes)
                except LatheError as error:
                    failures.append(f"{label}: {error.message}")
                    continue
                failure = self._run_on(inputs, label)
                if failure is None:
                    break
                failures.append(f"{label}: {failure.message.splitlines()[0][:300]}")
                if failure.kind in ("timeout", "memory"):
                    break
                if failure.kind == "crash" and self.pieces is None:
                    self._session.open(model, self._source, self.unchecked)
        if not references:
            self.unchecked[""] = Unchecked(
                "",
                "the original could not be run on any inputs made up for it"
                + (f" ({failures[0]})" if failures else ""),
                hint="give inputs of your own with --data, or sizes with --dim and --shape",
            )
        elif failures:
            self._session.notes += [
                f"the original could not be run on inputs made up for it: {f}" for f in failures
            ]
        for name in {n for r in references for n in r.blank if all(n in q.blank for q in references)}:
            base = references[0].bases.get(name, name)
            self.unchecked.setdefault(
                base,
                Unchecked(
                    base,
                    "the original gives nothing but NaN and infinity there, on every feed",
                    hint="give inputs of your own with --data",
                ),
            )

    def _run_on(self, inputs: Mapping[str, np.ndarray], label: str) -> RuntimeFailure | None:
        inputs = {
            name: np.asarray(self._fixed[name], dtype=self._kinds.get(name, array.dtype))
            if name in self._fixed
            else array
            for name, array in inputs.items()
        }
        number = len(self.references)
        feed, outputs = (
            self._session.folder / f"feed{number}.npz",
            self._session.folder / f"expected{number}.npz",
        )
        store.write(feed, inputs)
        try:
            answer = (self.pieces or self._session.runtime).run(feed, outputs)
        except RuntimeFailure as failure:
            return failure
        shapes = {name: list(array.shape) for name, array in inputs.items()}
        self.references.append(
            Reference(Feed(label, shapes), feed, outputs, answer["outputs"], answer["bases"], answer["blank"])
        )
        return None

    def settle(self, bound: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
        """Give these inputs and these open dimensions the values that a candidate has settled on.

        Whatever is new among them makes the original run once more.
        """
        fixed = {n: v for n, v in bound.items() if self._fixed.get(n) != v}
        bindings = {n: s for n, s in sizes.items() if self._bindings.get(n) != s}
        if fixed or bindings:
            self._fixed |= fixed
            self._bindings |= bindings
            self._run_again()

    def _run_again(self) -> None:
        """Once more, since some inputs are to hold something else."""
        feeds: list[tuple[str, dict[str, np.ndarray]]] = []
        if self._feeds is not None:  # which may have been a stream
            for reference in self.references:
                with store.Stored(reference.inputs) as stored:
                    feeds.append((reference.feed.label, {name: stored[name] for name in stored}))
        self._is_prepared = False
        self.unchecked.clear()
        self._session.notes.clear()
        self._feeds = [feed for _, feed in feeds] if self._feeds is not None else None
        self.prepare()

    def misfit(
        self, interface: dict[str, list[str]], optimized: Model | Path | str, unchecked: dict[str, Unchecked]
    ) -> str:
        """Why a model with these inputs and outputs cannot stand for this one, if it cannot."""
        assert self.references
        reference = self.references[0]
        expected = {base for base in reference.bases.values() if base not in unchecked}
        lost = sorted(expected - set(interface["outputs"]))
        new = sorted(set(interface["outputs"]) - expected - unchecked.keys())
        with store.Stored(reference.inputs) as stored:
            gone = sorted(set(stored) - set(interface["inputs"]))
            extra = sorted(set(interface["inputs"]) - set(stored))
        if lost or gone:
            what = f"output {lost[0]!r}" if lost else f"input {gone[0]!r}"
            return f"the optimized model has no {what}, which the original has"
        if new:
            return f"the optimized model has an output {new[0]!r} that the original lacks"
        if extra and len(extra) > _optional(optimized, extra):
            return f"the optimized model has an input {extra[0]!r} that the original lacks"
        order = [name for name in dict.fromkeys(reference.bases.values()) if name in expected]
        if [name for name in interface["outputs"] if name in expected] != order:
            return "the optimized model has the original's outputs in another order"
        return ""


def _optional(optimized: Model | Path | str, names: list[str]) -> int:
    """How many of these inputs have a default and need not be fed."""
    model = optimized if isinstance(optimized, Model) else load(Path(optimized))
    return sum(name in model.graph.initializers for name in names)
