"""Other optimizers in the middle of a pipeline: `shapes,onnxsim,fold,tidy`.

Each runs in a child process, from file to file, so that its native code may crash and its memory is its own.
They are proven like any other pass: by the comparison at the end of the run, with blame.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

from onnxlathe.adapters.exchange import adopt
from onnxlathe.errors import LatheError, PassError, UsageError
from onnxlathe.model import Model, load, save
from onnxlathe.rewrite import Context, Pass, option


@dataclass(frozen=True)
class Program(Pass):
    """A program that turns one model file into another.

    Class attributes:
        package: what must be importable.
        extra: the extra of onnxlathe that installs it; nothing where it is always there.
    """

    package: ClassVar[str] = ""
    extra: ClassVar[str] = "peers"

    timeout: float = option(600.0, "seconds that it may take")

    def run(self, model: Model, context: Context) -> int:
        if importlib.util.find_spec(self.package) is None:
            wanted = f"'onnxlathe[{self.extra}]'" if self.extra else self.package
            raise UsageError(
                f"pass '{self.name}' needs the package {self.package}, which is not installed",
                hint=f"pip install {wanted}",
            )
        if not context.permit(self.name):
            return 0
        with tempfile.TemporaryDirectory(prefix=f"onnxlathe-{self.name}-") as folder:
            source, result = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
            save(model, source)
            self._start(source, result)
            try:
                returned = load(result)
            except LatheError as error:
                raise PassError(f"what {self.package} wrote cannot be loaded: {error.message}") from error
            # The weights hold their file open, so the folder may go.
            return adopt(model, returned.ir, context, self.name)

    def _start(self, source: Path, result: Path) -> None:
        options = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "timeout"}
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
        # -P: never import from the current folder, where the user's files lie.
        command = [sys.executable, "-P", "-m", "onnxlathe.adapters.child"]
        try:
            done = subprocess.run(
                [*command, self.name, str(source), str(result), json.dumps(options)],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self.timeout,
                env=os.environ | {"PYTHONPATH": path},
                cwd=source.parent,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise PassError(
                f"{self.package} took longer than {self.timeout:g} seconds",
                hint=f"give it more: {self.name}(timeout={2 * self.timeout:g})",
            ) from error
        if done.returncode != 0 or not result.exists():
            words = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()][-3:]
            ended = f"was ended by signal {-done.returncode}" if done.returncode < 0 else "failed"
            raise PassError(
                f"{self.package} {ended}: {' | '.join(words) or 'it said nothing'}",
                hint=f"leave out the pass '{self.name}', or report it to the makers of {self.package}",
            )


@dataclass(frozen=True)
class Onnxsim(Program):
    """Simplify with onnxsim (onnx-simplifier)."""

    name = "onnxsim"
    package = "onnxsim"

    skip_fuse_bn: bool = option(False, "leave BatchNormalization after a Conv alone")
    skip_constant_folding: bool = option(False, "fold no constants")
    skip_shape_inference: bool = option(False, "infer no shapes")
    skip: tuple[str, ...] = option((), "its optimizers to leave out")


@dataclass(frozen=True)
class Onnxslim(Program):
    """Slim with onnxslim."""

    name = "onnxslim"
    package = "onnxslim"

    skip: tuple[str, ...] = option((), "its optimizations to leave out: constant_folding, graph_fusion, …")
    skip_fusions: tuple[str, ...] = option((), "its fusion patterns to leave out")
    no_shape_infer: bool = option(False, "infer no shapes")


@dataclass(frozen=True)
class Onnxoptimizer(Program):
    """Optimize with onnxoptimizer, ONNX's own collection of passes."""

    name = "onnxoptimizer"
    package = "onnxoptimizer"

    passes: tuple[str, ...] = option((), "its passes to run; its default ones if left out")
    fixed_point: bool = option(False, "repeat until nothing changes")


@dataclass(frozen=True)
class OrtBasic(Program):
    """Optimize with ONNX Runtime, its basic level: only standard operators come out."""

    name = "ort_basic"
    package = "onnxruntime"
    extra = ""

    skip: tuple[str, ...] = option((), "its optimizers to leave out, as ConstantFolding")


@dataclass(frozen=True)
class OrtExtended(Program):
    """Optimize with ONNX Runtime, its extended level: fused operators of its own that TensorRT refuses."""

    name = "ort_extended"
    package = "onnxruntime"
    extra = ""

    skip: tuple[str, ...] = option((), "its optimizers to leave out, as GeluFusion")


@dataclass(frozen=True)
class Surgeon(Program):
    """Sanitize with `polygraphy surgeon`: fold constants, remove what nothing needs."""

    name = "surgeon"
    package = "polygraphy"
    extra = ""

    fold_constants: bool = option(True, "fold constants")
    cleanup: bool = option(True, "remove nodes and tensors that nothing needs")
    toposort: bool = option(False, "sort the nodes")


PASSES: list[type[Pass]] = [Onnxsim, Onnxslim, Onnxoptimizer, OrtBasic, OrtExtended, Surgeon]
