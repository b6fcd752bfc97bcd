"""What becomes of refused models through `optimize debug MODEL --fix`: mended and proven equal, or why not.

    python tools/refused_mend.py                    all: hand-made ones, and those of fixtures/refused
    python tools/refused_mend.py nms unique_dyn     some
    python tools/refused_mend.py --summary          the numbers only, as docs/debugging.md has them

Mended means: the parser takes the model, the builder makes an engine of it, and every output was compared with
the original's and is equal. What changes the interface is allowed as a user would allow it (--bind, --io-types,
--split). The exit code is 1 where fewer than nine of ten are mended.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from onnxlathe.debug import Oracle, diagnose
from onnxlathe.debug.bind import bind_inputs
from onnxlathe.debug.fix import mend
from onnxlathe.model import load
from onnxlathe.target import find_target

sys.path.insert(0, str(Path(__file__).resolve().parent))
from refused_corpus import CASES

EXPORTED = Path(__file__).resolve().parent.parent / "fixtures" / "refused"
_NARROW = ("audio",)  # exported cases whose inputs have a type that no engine has


@dataclass(frozen=True)
class Refused:
    """A refused model, and what a user has to allow.

    Attributes:
        name: of the case; of an exported one with `_ts` or `_dyn`.
        source: `hand`, `ts` or `dyn`.
        bind: what `--bind` is given.
        widen: `--io-types widen`.
        split: `--split`.
    """

    name: str
    source: str
    bind: tuple[str, ...] = ()
    widen: bool = False
    split: bool = False

    def write(self, folder: Path) -> Path:
        """The model's file, made in `folder` where it is not there already."""
        if self.source != "hand":
            return EXPORTED / f"{self.name}.onnx"
        path = folder / f"{self.name}.onnx"
        onnx.save(next(c for c in CASES if c.name == self.name).model(), path)
        return path


@dataclass(frozen=True)
class Outcome:
    """What became of a model.

    Attributes:
        name: of the case.
        mended: an engine and equal numbers.
        how: the remedies that were kept.
        interface: how the mended model is called otherwise.
        reason: why it is not mended.
    """

    name: str
    mended: bool
    how: tuple[str, ...] = ()
    interface: str = ""
    reason: str = ""


@dataclass
class Corpus:
    """All refused models."""

    cases: list[Refused] = field(default_factory=list)

    @classmethod
    def whole(cls) -> Corpus:
        """The hand-made ones and those of fixtures/refused."""
        hand = [Refused(c.name, "hand", c.bind, c.widen, c.split) for c in CASES]
        exported = []
        for path in sorted(EXPORTED.glob("*.onnx")):
            name, _, source = path.stem.rpartition("_")
            exported.append(Refused(path.stem, source, widen=name in _NARROW))
        return cls(hand + exported)


def outcome(case: Refused, oracle: Oracle, folder: Path) -> Outcome:
    """Mend one model."""
    original = load(case.write(folder))
    model = original.clone()
    bind_inputs(model, case.bind)
    io_types = "widen" if case.widen else "keep"
    mended = mend(
        model, oracle, diagnose(model, oracle), original=original, io_types=io_types, split=case.split
    )
    kept = [a for a in mended.attempts if a.kept]
    if mended.proven:
        said = (part for a in kept for part in a.verdict.split("; ")[2:])  # after status and numbers
        return Outcome(case.name, True, tuple(a.pipeline for a in kept), "; ".join(dict.fromkeys(said)))
    if mended.accepted:
        return Outcome(case.name, False, reason=f"an engine, and {kept[-1].verdict}")
    left = mended.left.findings if mended.left is not None else []
    causes = dict.fromkeys(f"{f.operator}: {f.cause.title if f.cause else f.message}" for f in left)
    return Outcome(case.name, False, reason="; ".join([*causes, *mended.reasons]))


def outcomes(names: list[str]) -> Iterator[tuple[Refused, Outcome]]:
    """Of these cases; of all where none is named."""
    with Oracle(find_target("rtx")) as oracle, tempfile.TemporaryDirectory() as folder:
        for case in Corpus.whole().cases:
            if not names or case.name in names:
                yield case, outcome(case, oracle, Path(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    found = []
    if not options.summary:
        print("| model | from | mended by | interface, or why not |\n|---|---|---|---|")
    for case, what in outcomes(options.names):
        found.append((case, what))
        if not options.summary:
            how = ", then ".join(f"`{h}`" for h in what.how) if what.mended else "not mended"
            print(f"| {case.name} | {case.source} | {how} | {what.interface or what.reason} |", flush=True)
    print("\n| from | models | mended |\n|---|---|---|")
    for source in ("hand", "ts", "dyn"):
        mine = [w for c, w in found if c.source == source]
        print(f"| {source} | {len(mine)} | {sum(w.mended for w in mine)} |")
    mended = sum(w.mended for _, w in found)
    print(f"| all | {len(found)} | {mended} ({mended / max(1, len(found)):.0%}) |")
    sys.exit(10 * mended < 9 * len(found))


if __name__ == "__main__":
    main()
