"""Comparing an optimized model with its original.

`Verifier` runs the original once and keeps its outputs on disk; `Verifier.check` compares any number of
candidates with them, which is what finding the pass to blame needs.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir

from onnxlathe.errors import LatheError, ModelError
from onnxlathe.model import Model, load
from onnxlathe.model.interface import Interface, as_called, interface_of
from onnxlathe.model.mapped import save_mapped
from onnxlathe.model.model import LOWERED
from onnxlathe.model.samples import VARIANTS, default_bindings, sample_inputs

from . import metrics, store
from .limits import operator_of, output_precisions, random_nodes, reached_outputs, why_random, without_outputs
from .memory import available_memory
from .piecewise import Allowed, Piecewise, Suspect, is_divisible, weight_bytes
from .runtime import RuntimeFailure, RuntimeProcess
from .tolerance import Tolerance, Tolerances, coarser
from .verdict import Comparison, Feed, Unchecked, Verdict

_WORTH_DIVIDING = 1 << 27  # bytes of weights from which on the segment that is wrong is looked for first
_MAX_PRUNES = 8  # operators that are cut away before giving up


@dataclass
class _Reference:
    """The original on one feed: where its inputs and outputs lie."""

    feed: Feed
    inputs: Path
    outputs: Path
    dtypes: dict[str, str]
    bases: dict[str, str]  # array → the output that it is (a part) of
    blank: list[str] = field(default_factory=list)


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
        self._original, self._feeds, self._seeds = original, feeds, tuple(seeds)
        self._bindings = dict(bindings or {})
        self._tolerances = tolerances or Tolerances()
        self._progress = progress or (lambda _: None)
        self._memory = memory
        self._pieces: Piecewise | None = None
        self._suspect: Suspect | None = None
        self._runtime = RuntimeProcess(threads=threads, timeout=timeout)
        self._folder = Path(tempfile.mkdtemp(prefix="onnxlathe-verify-"))
        self._references: list[_Reference] | None = None
        self._unchecked: dict[str, Unchecked] = {}  # by output; "" for everything
        self._notes: list[str] = []
        self._through: dict[str, str] = {}
        self._low_names: set[str] = set()  # inputs and outputs of float16 and bfloat16
        self._is_lowered = False
        self._files = 0
        self._before = Interface()  # how the original itself is called otherwise than what it was made from
        self._fixed: dict[str, Any] = {}  # inputs that a candidate has as constants: everybody gets these

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child process and remove the temporary folder."""
        self._runtime.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    # --- The original ----------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Run the original, unless that has been done. `check` does it by itself."""
        if self._references is not None:
            return
        self._references = []
        self._runtime.start()
        model = self._original if isinstance(self._original, Model) else load(Path(self._original))
        if model.repairs:  # the file itself is not what the user's model means
            self._original = model
        names = [o.name or "" for o in model.graph.outputs]
        self._tolerances.check_names(names)
        self._through = output_precisions(model)
        self._is_lowered = LOWERED in model.ir.metadata_props
        self._before = interface_of(model.ir)
        self._kinds = {
            v.name: v.dtype.numpy() for v in model.graph.inputs if v.dtype is not None and v.name is not None
        }
        self._low_names = {
            v.name or ""
            for v in (*model.graph.inputs, *model.graph.outputs)
            if v.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
        }
        for name, node in reached_outputs(model, random_nodes(model)).items():
            self._unchecked[name] = why_random(name, node)
        try:
            memory = available_memory() // 2 if self._memory is None else self._memory
            if weight_bytes(model) > memory and is_divisible(model):
                self._pieces = self._divided(model, memory // 3)
            else:
                self._progress("loading the original")
                _, failure = self._open(model, self._original, self._unchecked)
                if failure is not None:
                    self._unchecked[""] = _why_not("the original", failure)
                    return
            self._run_original(model)
            self._runtime.close()
        except RuntimeFailure as failure:
            self._unchecked[""] = _why_not("the original", failure)

    def _divided(self, model: Model, budget: int) -> Piecewise:
        return Piecewise(model, self._runtime, self._folder, budget, self._progress)

    def _run_original(self, model: Model) -> None:
        """Fill `_references`: the user's feeds, or one made up for each seed."""
        references = self._references
        assert references is not None
        if self._feeds is not None:
            for number, feed in enumerate(self._feeds):
                self._progress(f"running the original on feed {number + 1}")
                failure = self._run_on(feed, f"feed {number + 1} of the data")
                if failure is not None:
                    self._unchecked[""] = _why_not(
                        f"the original, on feed {number + 1} of the data,", failure
                    )
                    return
            if not references:
                self._unchecked[""] = Unchecked("", "the data holds no feed")
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
                self._progress(f"running the original ({label})")
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
                if failure.kind == "crash" and self._pieces is None:
                    self._open(model, self._original, self._unchecked)
        if not references:
            self._unchecked[""] = Unchecked(
                "",
                "the original could not be run on any inputs made up for it"
                + (f" ({failures[0]})" if failures else ""),
                hint="give inputs of your own with --data, or sizes with --dim and --shape",
            )
        elif failures:
            self._notes += [f"the original could not be run on inputs made up for it: {f}" for f in failures]
        for name in {n for r in references for n in r.blank if all(n in q.blank for q in references)}:
            base = references[0].bases.get(name, name)
            self._unchecked.setdefault(
                base,
                Unchecked(
                    base,
                    "the original gives nothing but NaN and infinity there, on every feed",
                    hint="give inputs of your own with --data",
                ),
            )

    def _run_on(self, inputs: Mapping[str, np.ndarray], label: str) -> RuntimeFailure | None:
        assert self._references is not None
        inputs = {
            name: np.asarray(self._fixed[name], dtype=self._kinds.get(name, array.dtype))
            if name in self._fixed
            else array
            for name, array in inputs.items()
        }
        number = len(self._references)
        feed, outputs = self._folder / f"feed{number}.npz", self._folder / f"expected{number}.npz"
        store.write(feed, inputs)
        try:
            answer = (self._pieces or self._runtime).run(feed, outputs)
        except RuntimeFailure as failure:
            return failure
        shapes = {name: list(array.shape) for name, array in inputs.items()}
        self._references.append(
            _Reference(
                Feed(label, shapes), feed, outputs, answer["outputs"], answer["bases"], answer["blank"]
            )
        )
        return None

    # --- The candidates --------------------------------------------------------------------------------

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
        references = self._references or []
        feeds = [r.feed for r in references]
        verdict = Verdict(feeds=feeds, notes=list(self._notes), interface=changes.sentences())
        unchecked = dict(self._unchecked)
        if "" not in unchecked:
            try:
                optimized, through = self._as_it_computes(optimized)
                if self._pieces is not None:
                    self._compare_pieces(self._pieces, optimized, unchecked, verdict, through)
                else:
                    self._compare(optimized, references, unchecked, verdict, through)
            except RuntimeFailure as failure:
                self._blame(failure, unchecked, verdict)
        for comparison in verdict.comparisons:
            padding = changes.padded.get(comparison.output)
            if padding is not None and not padding.enough and not comparison.passed:
                comparison.reason += f" (it is padded to {padding.rows} rows: the data may give more)"
        verdict.unchecked = [unchecked[""]] if "" in unchecked else list(unchecked.values())
        verdict.seconds = time.perf_counter() - start
        return verdict

    def _compare(
        self,
        optimized: Model | Path | str,
        references: list[_Reference],
        unchecked: dict[str, Unchecked],
        verdict: Verdict,
        through: Mapping[str, str],
    ) -> None:
        self._progress("loading the optimized model")
        interface, failure = self._open(None, optimized, unchecked)
        if failure is not None:
            self._blame(failure, unchecked, verdict)
            return
        if "::" not in (cut := _cut_by(unchecked, self._unchecked)) and cut:
            # A standard operator that only the optimized model has; the original could be run.
            verdict.error = f"the optimized model cannot be run: ONNX Runtime has no kernel for its {cut}"
            return
        verdict.error = self._misfit(interface, optimized, unchecked)
        if verdict.error:
            return
        for number, reference in enumerate(references):
            self._progress(f"comparing on {reference.feed.label}")
            tolerances = {
                name: asdict(self._tolerances.of(base, dtype, through=through.get(base)))
                for name, dtype in reference.dtypes.items()
                if (base := reference.bases[name]) not in unchecked
            }
            found = self._runtime.compare(reference.inputs, reference.outputs, number, tolerances)
            verdict.comparisons += [msgspec.convert(c, Comparison) for c in found]
        self._runtime.close()

    def _misfit(
        self, interface: dict[str, list[str]], optimized: Model | Path | str, unchecked: dict[str, Unchecked]
    ) -> str:
        """Why a model with these inputs and outputs cannot stand for the original, if it cannot."""
        assert self._references
        reference = self._references[0]
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
        if extra and len(extra) > self._optional(optimized, extra):
            return f"the optimized model has an input {extra[0]!r} that the original lacks"
        order = [name for name in dict.fromkeys(reference.bases.values()) if name in expected]
        if [name for name in interface["outputs"] if name in expected] != order:
            return "the optimized model has the original's outputs in another order"
        return ""

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
        verdict.error = self._misfit({"inputs": given, "outputs": outputs}, model, unchecked)
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
            ask = self._in_suspect_segment(wrong)
        except (RuntimeFailure, LatheError, ValueError):
            return whole

        return ask or whole

    def _in_suspect_segment(self, wrong: Model) -> Callable[[Model], bool] | None:
        original = self._original if isinstance(self._original, Model) else load(Path(self._original))
        plain = not self._unchecked and not interface_of(wrong.ir).since(self._before) and self._references
        if not plain or not is_divisible(original) or LOWERED in wrong.ir.metadata_props:
            return None
        pieces = self._pieces
        if pieces is None:
            weights = weight_bytes(original)
            if weights < _WORTH_DIVIDING:
                return None
            pieces = self._divided(original, weights // 8)
            for number, reference in enumerate(self._references or []):
                pieces.run(reference.inputs, self._folder / f"again{number}.npz")
        allowed = self._allowed(wrong, self._through)
        suspect = self._suspect or pieces.compare(wrong, allowed).suspect
        if suspect is None:
            return None

        def is_wrong(model: Model) -> bool:
            try:
                return pieces.is_wrong(model, suspect, allowed)
            except RuntimeFailure:
                return self.check(model).status == "different"

        return is_wrong

    def _as_called(self, optimized: Model | Path | str) -> tuple[Model | Path | str, Interface]:
        """The model as the original is called, where it says that it is called otherwise, and how it is."""
        try:
            model = optimized if isinstance(optimized, Model) else load(Path(optimized))
        except LatheError:  # whoever opens it says what is wrong with it
            return optimized, Interface()
        changes = interface_of(model.ir).since(self._before)
        if not changes:
            return optimized, changes
        fixed = {n: v for n, v in changes.bound.items() if self._fixed.get(n) != v}
        sizes = {n: s for n, s in changes.sizes.items() if self._bindings.get(n) != s}
        if fixed or sizes:
            self._fixed |= fixed
            self._bindings |= sizes
            self._run_again()
        original = self._original if isinstance(self._original, Model) else load(Path(self._original))
        return as_called(model, original, changes), changes

    def _run_again(self) -> None:
        """The original once more, since some inputs are to hold something else."""
        feeds: list[tuple[str, dict[str, np.ndarray]]] = []
        if self._feeds is not None:  # which may have been a stream
            for reference in self._references or []:
                with store.Stored(reference.inputs) as stored:
                    feeds.append((reference.feed.label, {name: stored[name] for name in stored}))
        self._references = None
        self._unchecked.clear()
        self._notes.clear()
        self._feeds = [feed for _, feed in feeds] if self._feeds is not None else None
        self.prepare()

    def _as_it_computes(self, optimized: Model | Path | str) -> tuple[Model | Path | str, dict[str, str]]:
        """A lowered model as it is run, and the coarsest precision that each output's values went through."""
        model = optimized if isinstance(optimized, Model) else load(Path(optimized))
        if LOWERED not in model.ir.metadata_props or self._is_lowered:
            return optimized, self._through
        from onnxlathe.infer import infer_model
        from onnxlathe.precision import emulate

        if model is not optimized:
            infer_model(model)
        through = dict(self._through)
        for name, row in output_precisions(model).items():
            through[name] = coarser(through[name], row) if name in through else row
        return emulate(model, keep=self._low_names), through

    @staticmethod
    def _optional(optimized: Model | Path | str, names: list[str]) -> int:
        """How many of these inputs have a default and need not be fed."""
        model = optimized if isinstance(optimized, Model) else load(Path(optimized))
        return sum(name in model.graph.initializers for name in names)

    @staticmethod
    def _blame(failure: RuntimeFailure, unchecked: dict[str, Unchecked], verdict: Verdict) -> None:
        standard = failure.kind == "unsupported" and failure.operator and "::" not in failure.operator
        if failure.kind == "invalid" or standard:
            where = f" (node {failure.node!r}, {failure.operator})" if failure.operator else ""
            verdict.error = f"the optimized model cannot be run{where}: {failure.message}"
        else:
            unchecked[""] = _why_not("the optimized model", failure)

    def check_outputs(self, outputs: Sequence[Path], *, through: str | None = None) -> Verdict:
        """Compare what somebody else made of the feeds with the original.

        Args:
            outputs: a file of `store` for each feed, in order.
            through: the coarsest precision that it was computed in, a key of `tolerance.DEFAULTS`.
        """
        start = time.perf_counter()
        self.prepare()
        references = self._references or []
        verdict = Verdict(feeds=[r.feed for r in references], notes=list(self._notes))
        verdict.unchecked = list(self._unchecked.values())
        for number, (reference, path) in enumerate(zip(references, outputs, strict=False)):
            with store.Stored(reference.outputs) as expected, store.Stored(path) as actual:
                for name, dtype in reference.dtypes.items():
                    base = reference.bases[name]
                    if base in self._unchecked or "" in self._unchecked:
                        continue
                    if name not in actual:
                        verdict.error = f"the engine has no output {name!r}, which the original has"
                        continue
                    coarsest = self._through.get(base) or through
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
        return len(self._references or [])

    def inputs(self, feed: int = 0) -> dict[str, np.ndarray]:
        """The inputs of a feed, as the original was run on them."""
        self.prepare()
        if not self._references:
            return {}
        with store.Stored(self._references[feed].inputs) as stored:
            return {name: stored[name] for name in stored}

    def record(self, model: Model, names: Sequence[str], feed: int = 0) -> dict[str, np.ndarray]:
        """What values inside of `model`, which takes the original's inputs, hold on a feed.

        Raises:
            LatheError: the model cannot be run, or has no such value in its main graph.
        """
        fed = self.inputs(feed)
        found = {name: fed[name] for name in names if name in fed}
        asked = [name for name in names if name not in found]
        if not asked or not self._references:
            return found
        probe = model.clone()
        values = {v.name: v for node in probe.graph for v in node.outputs}
        if any(name not in values for name in asked):
            raise LatheError(f"the model has no value {next(n for n in asked if n not in values)!r}")
        probe.graph.outputs.clear()
        probe.graph.outputs.extend(values[name] for name in asked)
        path = self._folder / "recorded.npz"
        try:
            self._runtime.open(self._as_file(probe))
            self._runtime.run(self._references[feed].inputs, path)
            self._runtime.close()
        except RuntimeFailure as failure:
            raise LatheError(f"values inside of the model could not be recorded: {failure.message}") from None
        with store.Stored(path) as stored:
            return found | {name: stored[name] for name in asked}

    # --- Both ------------------------------------------------------------------------------------------

    def _open(
        self, model: Model | None, source: Model | Path | str, unchecked: dict[str, Unchecked]
    ) -> tuple[dict[str, list[str]], RuntimeFailure | None]:
        """Open a model, cutting away what depends on operators that ONNX Runtime lacks.

        Outputs that were cut away are added to `unchecked`. If nothing is left, the failure is returned.
        """
        path = self._as_file(source)
        try:
            interface = self._runtime.open(path)
            if interface.get("instead"):
                note = (
                    "ONNX Runtime is too old for this operator set: onnx's reference evaluator ran it instead"
                )
                self._notes += [note] if note not in self._notes else []
            return interface, None
        except RuntimeFailure as error:
            failure = error
        for _ in range(_MAX_PRUNES):
            if failure.kind != "unsupported" or not failure.operator:
                return {}, failure
            model = model or (source if isinstance(source, Model) else load(Path(source)))
            lacking = [n for n in model.nodes() if operator_of(n) == failure.operator]
            if failure.node:
                lacking = [n for n in lacking if n.name == failure.node] or lacking
            cut = reached_outputs(model, lacking)
            for name, node in cut.items():
                unchecked.setdefault(name, _lacking(name, operator_of(node), node.name or ""))
            rest = without_outputs(model, unchecked) if cut else None
            if rest is None:
                return {}, RuntimeFailure(
                    failure.kind, failure.message, failure.operator, next((n.name or "" for n in lacking), "")
                )
            try:
                return self._runtime.open(self._as_file(rest)), None
            except RuntimeFailure as error:
                failure = error
        return {}, failure

    def _as_file(self, source: Model | Path | str) -> Path:
        """Where a model lies; one that lies nowhere is written to the temporary folder."""
        if not isinstance(source, Model):
            return Path(source)
        self._files += 1
        folder = self._folder / f"model{self._files}"
        folder.mkdir()
        for old in self._folder.glob("model*"):  # one at a time: they may be large
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)
        save_mapped(source, folder / "model.onnx")
        return folder / "model.onnx"


def _cut_by(now: Mapping[str, Unchecked], before: Mapping[str, Unchecked]) -> str:
    """The first operator for which an output was cut away from the optimized model only."""
    return next((u.operator for name, u in now.items() if name not in before and u.operator), "")


def _lacking(output: str, operator: str, node: str) -> Unchecked:
    return Unchecked(
        output,
        f"depends on operator {operator} (node {node!r}), which ONNX Runtime cannot run",
        operator,
        node,
    )


def _why_not(who: str, failure: RuntimeFailure) -> Unchecked:
    """Why nothing was checked at all."""
    if failure.kind == "unsupported":
        named = f"operator {failure.operator} (node {failure.node!r})" if failure.operator else "an operator"
        reason = f"ONNX Runtime cannot run {named} of {who.rstrip(',')}: {failure.message}"
    elif failure.kind == "version":
        reason = f"ONNX Runtime is too old for {who}: {failure.message}"
    elif failure.kind in ("timeout", "crash"):
        reason = f"{failure.message}, with {who}"
    else:
        reason = f"{who} cannot be run: {failure.message}"
    hint = "give inputs of your own with --data" if failure.kind == "invalid" else ""
    if failure.kind == "timeout":
        hint = "give it more time, or smaller sizes with --dim"
    return Unchecked("", reason, failure.operator, failure.node, hint)


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
