"""Refused models as both of PyTorch's exporters write them: `refused_corpus.py` has them by hand.

    python tools/refused_export.py FOLDER      needs torch and onnxscript
    python tools/refused_export.py --check FOLDER   holds the diagnoses against what is expected; needs TensorRT

Node names are the exporters' own, so a case says which operators are refused, and for which causes.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """What a module does and why it is refused: one of `causes`, on each refused node."""

    name: str
    forward: Callable[..., Any]
    inputs: Callable[[Any], tuple[Any, ...]]
    causes: frozenset[str]
    dynamic: bool = False


def cases() -> list[Case]:
    """All cases. `t` is torch, `f` is torch.nn.functional."""
    import torch as t
    import torch.nn.functional as f

    def case(name: str, forward: Any, inputs: Any, causes: str, **how: bool) -> Case:
        return Case(name, forward, inputs, frozenset(causes.split()), **how)

    def image(torch: Any) -> tuple[Any, ...]:
        return (torch.randn(1, 3, 16, 16),)

    return [
        case("unique", lambda x: t.unique(x) + 1, lambda t: (t.tensor([1.0, 2, 2, 3]),), "unique"),
        case("mask", lambda x: x[x > 0].sum(), image, "nonzero"),
        case("nonzero", lambda x: t.nonzero(x), lambda t: (t.randn(4, 4),), "nonzero"),
        case(
            "scatter_add",
            lambda x, i, u: x.relu().scatter_add(0, i, u),
            lambda t: (t.randn(8, 4), t.zeros(3, 4, dtype=t.int64), t.randn(3, 4)),
            "scatter-reduction",
        ),
        case(
            "index_put",
            lambda x, i, u: x.relu().index_put((i,), u, accumulate=True),
            lambda t: (t.randn(8, 4), t.tensor([1, 1, 2]), t.randn(3, 4)),
            "scatternd-reduction",
        ),
        case("pool_indices", lambda x: f.max_pool2d(x, 2, return_indices=True), image, "maxpool-indices"),
        case("dilated_pool", lambda x: f.max_pool2d(x, 2, 1, dilation=2), image, "dilated-pooling"),
        case(
            "antialias",
            lambda x: f.interpolate(x, size=(8, 8), mode="bilinear", antialias=True),
            image,
            "resize-antialias",
        ),
        case("any", lambda x: (x > 0).any(dim=1), image, "bool-reduction"),
        case(
            "shift",
            lambda x: x << 2,
            lambda t: (t.randint(0, 9, (4, 4), dtype=t.int32),),
            "bitwise cast-type integer-type",
        ),
        case("masks", lambda x: x & 15, lambda t: (t.randint(0, 99, (4, 4), dtype=t.int32),), "bitwise"),
        case(
            "image",
            lambda x: x.permute(0, 3, 1, 2).float() / 255,
            lambda t: (t.randint(0, 255, (1, 8, 8, 3), dtype=t.uint8),),
            "uint8-arithmetic",
        ),
        case("audio", lambda x: x.float() / 32768, lambda t: (t.ones(1, 64, dtype=t.int16),), "io-type"),
        case("sort", lambda x: x.sort(dim=1)[0], lambda t: (t.randn(1, 8000),), "topk-large"),
        case("fft", lambda x: t.view_as_real(t.fft.rfft(x)), lambda t: (t.randn(1, 16),), "fourier"),
        case(
            "affine",
            lambda m, x: f.grid_sample(x, f.affine_grid(m, [1, 3, 16, 16])),
            lambda t: (t.randn(1, 2, 3), t.randn(1, 3, 16, 16)),
            "function-body",
        ),
        case("fold", lambda x: f.fold(x, (4, 4), (2, 2)), lambda t: (t.randn(1, 12, 9),), "function-body"),
        case(
            "loss",
            lambda x, y: f.cross_entropy(x, y),
            lambda t: (t.randn(4, 5), t.tensor([1, 2, 3, 4])),
            "loss",
        ),
        case("det", lambda x: t.linalg.det(x), lambda t: (t.randn(2, 3, 3),), "function-body"),
        case("draw", lambda x: t.multinomial(x.softmax(-1), 1), lambda t: (t.randn(2, 8),), "random"),
        case(
            "squeeze",
            lambda x: x.relu().squeeze(1) + 1,
            lambda t: (t.randn(2, 1, 4),),
            "if-ranks squeeze-open",
            dynamic=True,
        ),
        case("select", lambda x: t.masked_select(x, x > 0) * 2, image, "nonzero compress"),
        case(
            "assign",
            lambda x: x.relu().index_put((x < 0,), t.tensor(1.0)),
            lambda t: (t.randn(4, 6),),
            "nonzero shape-from-data",
        ),
        case("rows", lambda x: x[x.sum(1) > 0].relu().mean(0), lambda t: (t.randn(6, 4),), "nonzero"),
        case(
            "bicubic",
            lambda x: f.interpolate(x, size=(8, 8), mode="bicubic", antialias=True),
            image,
            "resize-antialias",
        ),
        case("volume", lambda x, g: f.grid_sample(x, g), lambda t: (
            t.randn(1, 2, 4, 4, 4), t.rand(1, 3, 3, 3, 3) * 2 - 1), "grid-sample-rank function-body"),
        case("batch_stats", lambda x: f.batch_norm(x, None, None, training=True), image, "batchnorm-training"),
        case(
            "unpool",
            lambda x: f.max_unpool2d(*f.max_pool2d(x, 2, return_indices=True), 2),
            image,
            "maxpool-indices",
        ),
        case("counts", lambda x: t.unique(x, return_counts=True), lambda t: (t.tensor([1.0, 2, 2, 3]),), "unique"),
        case("remainder", lambda x: t.remainder(x, 1.5), lambda t: (t.randn(4, 4),), "mod-float"),
        case("order", lambda x: x.argsort(dim=1), lambda t: (t.randn(1, 5000),), "topk-large"),
        case("bits", lambda x: (x >> 1) ^ (x & 3) | 8, lambda t: (t.randint(0, 99, (4, 4)),),
            "bitwise cast-type integer-type"),
        case("doubles", lambda x: (x.double() * 2).sum(dim=1).cos(), lambda t: (t.randn(4, 4),), "double"),
    ]  # fmt: skip


def export(case: Case, exporter: str, path: Path) -> None:
    """Write one case."""
    import torch

    class Module(torch.nn.Module):
        def forward(self, *inputs: Any) -> Any:
            return case.forward(*inputs)

    torch.manual_seed(0)
    inputs = case.inputs(torch)
    if exporter == "ts":
        names = [f"x{i}" for i in range(len(inputs))]
        axes = {"x0": {0: "n", 1: "c"}} if case.dynamic else None
        torch.onnx.export(
            Module(), inputs, str(path), opset_version=18, input_names=names, dynamic_axes=axes,
            do_constant_folding=False, dynamo=False,
        )  # fmt: skip
    else:
        torch.onnx.export(Module(), inputs, str(path), opset_version=20, dynamo=True, verbose=False)
    _plain(path)


def _plain(path: Path) -> None:
    """One file, without what the exporter tells of the machine it ran on."""
    import onnx

    model = onnx.load(path)
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)
    graphs = [model.graph, *model.functions]
    while graphs:
        graph = graphs.pop()
        things = [graph, *graph.node, *graph.value_info]
        if isinstance(graph, onnx.GraphProto):
            things += [*graph.input, *graph.output, *graph.initializer]
        for thing in things:
            del thing.metadata_props[:]
            thing.ClearField("doc_string")
        graphs += [a.g for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]
    del model.metadata_props[:]
    onnx.save(model, path)


def check(folder: Path) -> int:
    """Compare the diagnosis of each model with its case; returns how many are wrong."""
    from onnxlathe.debug import Oracle, diagnose
    from onnxlathe.target import find_target

    expected = {c.strip(): set(w.split()) for c, _, w in (x.partition(":") for x in _expectations(folder))}
    wrong = accepted = 0
    with Oracle(find_target()) as oracle:
        for path in sorted(folder.glob("*.onnx")):
            diagnosis = diagnose(path, oracle)
            found = {f.cause_id for f in diagnosis.findings}
            accepted += diagnosis.accepted
            if diagnosis.accepted:
                continue
            fine = bool(found) and found <= expected[path.stem]
            wrong += not fine
            nodes = ", ".join(f"{f.node} ({f.operator}): {f.cause_id}" for f in diagnosis.findings)
            print(f"{'ok   ' if fine else 'WRONG'} {path.stem}: {nodes}")
    print(
        f"{accepted} of {len(expected)} are not refused as exported; {wrong} of the others are named wrongly"
    )
    return wrong


def _expectations(folder: Path) -> list[str]:
    return (folder / "expected.txt").read_text().splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.check:
        sys.exit(min(check(options.folder), 1))
    options.folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    lines = []
    for case in cases():
        for exporter in ("ts", "dyn"):
            name = f"{case.name}_{exporter}"
            try:
                export(case, exporter, options.folder / f"{name}.onnx")
            except Exception as error:
                print(f"{name}: not exported: {type(error).__name__}", file=sys.stderr)
                continue
            lines.append(f"{name}: {' '.join(sorted(case.causes))}")
    (options.folder / "expected.txt").write_text("\n".join(lines) + "\n")
    print(f"{len(lines)} models in {options.folder}")


if __name__ == "__main__":
    main()
