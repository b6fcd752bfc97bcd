"""Rewriting what TensorRT refuses into what it takes: one family of lowerings a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnxlathe import Model, UsageError
from onnxlathe.rewrite import Context, Pass, option

if TYPE_CHECKING:
    from onnxlathe_passes.legalize.judge import Judge

__all__ = ["Legalize"]


@dataclass(frozen=True)
class Legalize(Pass):
    """Rewrite the nodes that TensorRT refuses, and only those, into operators that it takes.

    The real parser and builder are asked (answers are remembered), and of several rewrites the first is kept
    whose result they accept: a constant for an operand that must be one, a lowering of our own, the
    operator's function body from the ONNX schema, another element type.
    """

    name = "legalize"
    needs = frozenset({"shapes"})
    keeps = frozenset({"shapes"})
    example = """
    %y, %mean, %inv = LayerNormalization(%x, %scale, %bias)
    →
    %mean = ReduceMean(%x, [-1]);  %d = Sub(%x, %mean);  ...
    """

    target: str = option("", "`rtx` or `tensorrt`; the best one that is installed if left out")
    io_types: str = option(
        "keep", "`keep` the types of inputs and outputs, or `widen` those that TensorRT does not have"
    )
    pad: str = option(
        "",
        "outputs whose size depends on data (NonZero, Unique, NonMaxSuppression, ...) are padded: `max` to the most"
        " that shapes allow, `300` to so many; left out they stay refused",
    )
    bind: str = option("", 'inputs that are constants of the engine: "axes=[1]; k=3"')
    expect: str = option("", "typical values of integer inputs that decide on shapes, as in `bind`")
    cache: str = option("", "folder for the target's answers; `none` forgets them when the run ends")

    def run(self, model: Model, context: Context) -> int:
        if self.io_types not in ("keep", "widen"):
            raise UsageError(
                f"pass 'legalize' has no io_types={self.io_types!r}", hint="it is `keep` or `widen`"
            )
        if self.pad not in ("", "max") and not (self.pad.isdecimal() and int(self.pad)):
            raise UsageError(
                f"pass 'legalize' has no pad={self.pad!r}", hint="it is `max` or a number of rows: pad=300"
            )
        # Only a run pays for the lowerings: every command imports every pass.
        from onnxlathe_passes.legalize.run import Legalizing

        judge = self.judge(context)
        try:
            return Legalizing(self, model, context, judge).run()
        finally:
            judge.close()

    def judge(self, context: Context) -> Judge:
        """Who decides what is refused: the target, or where none is installed a table of its answers."""
        from onnxlathe.target import TensorRT, find_target
        from onnxlathe_passes.legalize.judge import TableJudge, TargetJudge, cache_folder

        target = find_target(self.target or None)
        if not isinstance(target, TensorRT) or not target.available:
            judge = TableJudge.newest()
            context.note(
                f"{target.reason}: what is refused is taken from a table made with {judge.title}, which knows"
                " operators and types but no shapes"
            )
            return judge
        folder = None if self.cache == "none" else Path(self.cache) if self.cache else cache_folder()
        return TargetJudge(target, folder)
