"""Comparing an optimized model with its original.

`Verifier` runs the original once and keeps its outputs on disk; `Verifier.check` compares any number of
candidates with them, which is what finding the pass to blame needs.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec
import numpy as np

from onnxlathe.errors import LatheError
from onnxlathe.model import Model, load
from onnxlathe.model.interface import Interface, as_called, interface_of
from onnxlathe.model.model import LOWERED

from . import metrics, store
from .limits import output_precisions
from .original import Original, Reference
from .piecewise import Allowed, Piecewise, Suspect
from .runtime import RuntimeFailure
from .session import Session, why_not
from .suspicion import in_suspect_segment
from .tolerance import Tolerance, Tolerances, coarser
from .verdict import Comparison, Unchecked, Verdict, too_small


class Verifier:
    """Holds an original model's answers; compares candidates with them.

    Args:
        original: the truth: a model or its file.
        feeds: the user's own inputs; made up (`onnxlathe.model.samples`) if None.
        seeds: one feed is made up for each; open dimensions get other sizes every other feed.
        bindings: sizes of open dimensions that are settled.
        tolerances: the user's, over the policy's (see `tolerance`).
        timeout: seconds that loading or one run may take.
        threads: of ONNX Runtime.
        memory: bytes that the comparison may take; half of what is free if None. Models with larger weights
            are compared in segments (see `piecewise`).
        progress: called with a short text before each step that may take long.

    The original is run at the first `check` (or at `prepare`). Use it as a context manager, or `close` it:
    there are a child process and a temporary folder to be cleaned up. A wrong binding or tolerance name
    raises `UsageError`; whatever the models do ends up in the `Verdict`.
    """

    def __init__(
        self,
        original: Model | Path | str,
        *,
        feeds: Iterable[Mapping[str, np.ndarray]] | None = None,
        seeds: Sequence[int] = (0, 1),
        bindings: Mapping[str, int] | None = None,
        tolerances: Tolerances | None = None,
        timeout: float = 300.0,
        threads: int = 2,
        memory: int | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self._tolerances = tolerances or Tolerances()
        self._session = Session(threads=threads, timeout=timeout, progress=progress or (lambda _: None))
        self._original = Original(
            original,
            self._session,
            feeds=feeds,
            seeds=seeds,
            bindings=bindings or {},
            tolerances=self._tolerances,
            memory=memory,
        )
        self._suspect: Suspect | None = None  # where the last candidate first differed, if it ran in segments

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child process and remove the temporary folder."""
        self._session.close()

    def prepare(self) -> None:
        """Run the original, unless that has been done. `check` does it by itself."""
        self._original.prepare()

    def check(self, optimized: Model | Path | str) -> Verdict:
        """Compare `optimized` with the original.

        A model that was given a lower precision on purpose says so in its metadata (`onnxlathe.precision`).
        It runs as `onnxlathe.precision.emulate` writes it, since ONNX Runtime's CPU kernels would hide the
        rounding; the tolerance follows the precision that its values went through; and float16 and bfloat16
        inputs and outputs may stand where the original has float32.

        Returns:
            The verdict. Operators that ONNX Runtime lacks leave the outputs that depend on them unchecked;
            any other reason why the optimized model cannot be run while the original can is a difference.
        """
        start = time.perf_counter()
        self.prepare()
        optimized, changes = self._as_called(optimized)
        references = self._original.references
        feeds = [r.feed for r in references]
        verdict = Verdict(feeds=feeds, notes=list(self._session.notes), interface=changes.sentences())
        unchecked = dict(self._original.unchecked)
        if "" not in unchecked:
            try:
                optimized, through = self._as_it_computes(optimized)
                if self._original.pieces is not None:
                    self._compare_pieces(self._original.pieces, optimized, unchecked, verdict, through)
                else:
                    self._compare(optimized, references, unchecked, verdict, through)
            except RuntimeFailure as failure:
                self._blame(failure, unchecked, verdict)
        for comparison in verdict.comparisons:
            padding = changes.padded.get(comparison.output)
            if padding is not None and not padding.enough and not comparison.passed:
                comparison.reason += f" (it is padded to {padding.rows} rows: the data may give more)"
        for remark in too_small(verdict.comparisons):
            unchecked.setdefault(remark.output, remark)
        verdict.unchecked = [unchecked[""]] if "" in unchecked else list(unchecked.values())
        verdict.seconds = time.perf_counter() - start
        return verdict

    def _compare(
        self,
        optimized: Model | Path | str,
        references: list[Reference],
        unchecked: dict[str, Unchecked],
        verdict: Verdict,
        through: Mapping[str, str],
    ) -> None:
        self._session.progress("loading the optimized model")
        interface, failure = self._session.open(None, optimized, unchecked)
        if failure is not None:
            self._blame(failure, unchecked, verdict)
            return
        if "::" not in (cut := _cut_by(unchecked, self._original.unchecked)) and cut:
            # A standard operator that only the optimized model has; the original could be run.
            verdict.error = f"the optimized model cannot be run: ONNX Runtime has no kernel for its {cut}"
            return
        verdict.error = self._original.misfit(interface, optimized, unchecked)
        if verdict.error:
            return
        for number, reference in enumerate(references):
            self._session.progress(f"comparing on {reference.feed.label}")
            tolerances = {
                name: asdict(self._tolerances.of(base, dtype, through=through.get(base)))
                for name, dtype in reference.dtypes.items()
                if (base := reference.bases[name]) not in unchecked
            }
            found = self._session.runtime.compare(reference.inputs, reference.outputs, number, tolerances)
            verdict.comparisons += [msgspec.convert(c, Comparison) for c in found]
        self._session.runtime.close()

    def _compare_pieces(
        self,
        pieces: Piecewise,
        optimized: Model | Path | str,
        unchecked: dict[str, Unchecked],
        verdict: Verdict,
        through: Mapping[str, str],
    ) -> None:
        model = optimized if isinstance(optimized, Model) else load(Path(optimized))
        given = [v.name or "" for v in model.graph.inputs if not v.is_initializer()]
        outputs = [v.name or "" for v in model.graph.outputs]
        verdict.error = self._original.misfit({"inputs": given, "outputs": outputs}, model, unchecked)
        if verdict.error:
            return
        found = pieces.compare(model, self._allowed(model, through))
        verdict.comparisons = [c for c in found.comparisons if c.output not in unchecked]
        self._suspect = found.suspect
        verdict.segments = found.segments
        verdict.notes.append(
            f"run in {found.segments} segment{'s' * (found.segments != 1)}, one after the other;"
            f" the largest has {max(found.largest / 1e6, 0.1):.1f} MB of weights"
        )

    def _allowed(self, model: Model, through: Mapping[str, str]) -> Allowed:
        """Tolerances for outputs and for values inside, which went through what the outputs went through."""
        inside = functools.reduce(coarser, through.values(), "float64") if through else None
        names = {v.name for v in model.graph.outputs}
        policy = Tolerances()

        def allowed(name: str, dtype: str) -> Tolerance:
            if name in names:
                return self._tolerances.of(name, dtype, through=through.get(name))
            return policy.of(name, dtype, through=inside)

        return allowed

    def suspicion(self, wrong: Model) -> Callable[[Model], bool]:
        """A quick way to ask whether other states of a model are wrong like this one.

        Where the model can be divided, only the segment that is wrong is run from now on; otherwise, whole
        models are compared.
        """

        def whole(model: Model) -> bool:
            return self.check(model).status == "different"

        try:
            allowed = self._allowed(wrong, self._original.through)
            ask = in_suspect_segment(
                wrong, self._original, self._session, suspect=self._suspect, allowed=allowed, whole=whole
            )
        except (RuntimeFailure, LatheError, ValueError):
            return whole
        return ask or whole

    def _as_called(self, optimized: Model | Path | str) -> tuple[Model | Path | str, Interface]:
        """The model as the original is called, where it says that it is called otherwise, and how it is."""
        try:
            model = optimized if isinstance(optimized, Model) else load(Path(optimized))
        except LatheError:  # whoever opens it says what is wrong with it
            return optimized, Interface()
        changes = interface_of(model.ir).since(self._original.interface)
        if not changes:
            return optimized, changes
        self._original.settle(changes.bound, changes.sizes)
        return as_called(model, self._original.model(), changes), changes

    def _as_it_computes(self, optimized: Model | Path | str) -> tuple[Model | Path | str, dict[str, str]]:
        """A lowered model as it is run, and the coarsest precision that each output's values went through."""
        model = optimized if isinstance(optimized, Model) else load(Path(optimized))
        if LOWERED not in model.ir.metadata_props or self._original.is_lowered:
            return optimized, self._original.through
        from onnxlathe.infer import infer_model
        from onnxlathe.precision import emulate

        if model is not optimized:
            infer_model(model)
        through = dict(self._original.through)
        for name, row in output_precisions(model).items():
            through[name] = coarser(through[name], row) if name in through else row
        return emulate(model, keep=self._original.low_names), through

    @staticmethod
    def _blame(failure: RuntimeFailure, unchecked: dict[str, Unchecked], verdict: Verdict) -> None:
        standard = failure.kind == "unsupported" and failure.operator and "::" not in failure.operator
        if failure.kind == "invalid" or standard:
            where = f" (node {failure.node!r}, {failure.operator})" if failure.operator else ""
            verdict.error = f"the optimized model cannot be run{where}: {failure.message}"
        else:
            unchecked[""] = why_not("the optimized model", failure)

    def check_outputs(self, outputs: Sequence[Path], *, through: str | None = None) -> Verdict:
        """Compare what somebody else made of the feeds with the original.

        Args:
            outputs: a file of `store` for each feed, in order.
            through: the coarsest precision that it was computed in, a key of `tolerance.DEFAULTS`.
        """
        start = time.perf_counter()
        self.prepare()
        references = self._original.references
        verdict = Verdict(feeds=[r.feed for r in references], notes=list(self._session.notes))
        verdict.unchecked = list(self._original.unchecked.values())
        for number, (reference, path) in enumerate(zip(references, outputs, strict=False)):
            with store.Stored(reference.outputs) as expected, store.Stored(path) as actual:
                for name, dtype in reference.dtypes.items():
                    base = reference.bases[name]
                    if base in self._original.unchecked or "" in self._original.unchecked:
                        continue
                    if name not in actual:
                        verdict.error = f"the engine has no output {name!r}, which the original has"
                        continue
                    coarsest = self._original.through.get(base) or through
                    tolerance = self._tolerances.of(base, dtype, through=coarsest)
                    verdict.comparisons.append(
                        metrics.compare(name, number, expected[name], actual[name], tolerance)
                    )
        verdict.seconds = time.perf_counter() - start
        return verdict

    @property
    def feed_count(self) -> int:
        """On how many sets of inputs the original was run."""
        self.prepare()
        return len(self._original.references)

    def inputs(self, feed: int = 0) -> dict[str, np.ndarray]:
        """The inputs of a feed, as the original was run on them."""
        self.prepare()
        if not self._original.references:
            return {}
        with store.Stored(self._original.references[feed].inputs) as stored:
            return {name: stored[name] for name in stored}

    def record(self, model: Model, names: Sequence[str], feed: int = 0) -> dict[str, np.ndarray]:
        """What values inside of `model`, which takes the original's inputs, hold on a feed.

        Raises:
            LatheError: the model cannot be run, or has no such value in its main graph.
        """
        fed = self.inputs(feed)
        found = {name: fed[name] for name in names if name in fed}
        asked = [name for name in names if name not in found]
        if not asked or not self._original.references:
            return found
        probe = model.clone()
        values = {v.name: v for node in probe.graph for v in node.outputs}
        if any(name not in values for name in asked):
            raise LatheError(f"the model has no value {next(n for n in asked if n not in values)!r}")
        probe.graph.outputs.clear()
        probe.graph.outputs.extend(values[name] for name in asked)
        path = self._session.folder / "recorded.npz"
        try:
            self._session.runtime.open(self._session.as_file(probe))
            self._session.runtime.run(self._original.references[feed].inputs, path)
            self._session.runtime.close()
        except RuntimeFailure as failure:
            raise LatheError(f"values inside of the model could not be recorded: {failure.message}") from None
        with store.Stored(path) as stored:
            return found | {name: stored[name] for name in asked}


def _cut_by(now: Mapping[str, Unchecked], before: Mapping[str, Unchecked]) -> str:
    """The first operator for which an output was cut away from the optimized model only."""
    return next((u.operator for name, u in now.items() if name not in before and u.operator), "")


def verify(
    original: Model | Path | str,
    optimized: Model | Path | str,
    *,
    feeds: Iterable[Mapping[str, np.ndarray]] | None = None,
    seeds: Sequence[int] = (0, 1),
    bindings: Mapping[str, int] | None = None,
    tolerances: Tolerances | None = None,
    timeout: float = 300.0,
    threads: int = 2,
) -> Verdict:
    """Compare two models once; the arguments are those of `Verifier`."""
    with Verifier(
        original,
        feeds=feeds,
        seeds=seeds,
        bindings=bindings,
        tolerances=tolerances,
        timeout=timeout,
        threads=threads,
    ) as verifier:
        return verifier.check(optimized)
