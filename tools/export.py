#!/usr/bin/env python3
"""Make the models that everything is tested and measured on.

    tools/export.py fixtures [NAME…]        the small models of fixtures/, and fixtures/README.md
    tools/export.py corpus OUTDIR [NAME…]   the full-size development corpus
    tools/export.py list [--markdown] [DIR] what is there: bytes, nodes, opset, inputs

Exporting needs the `export` extra (torch, transformers, onnxscript); `list` and the hand-made models of
fixtures/tiny need onnx alone. NAME selects by whole name or by prefix (`bert`, `bert_ts17`, `tiny/pad`).
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import onnx

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
LARGEST_FIXTURE = 300_000  # bytes

KEPT_METADATA = {"pkg.torch.onnx.name_scopes"}  # where in the user's model a node comes from


@dataclass(frozen=True)
class Export:
    """One exported model: an architecture, an exporter, an opset.

    `ts` is the TorchScript exporter (dynamic axes, nothing folded, eager attention as people export it);
    `dyn` is the torch.export-based one, unoptimized. `static` freezes all axes: those of the example if `whole`,
    else sequence 64 and batch 1.
    """

    architecture: str
    exporter: Literal["ts", "dyn"]
    opset: int
    static: bool = False
    label: str = ""
    whole: bool = False

    @property
    def name(self) -> str:
        return self.label or f"{self.architecture}_{self.exporter}{self.opset}{'_static' * self.static}"


FIXTURE_EXPORTS = [
    Export("resnet", "ts", 13),
    Export("resnet", "ts", 17),
    Export("resnet", "dyn", 18),
    Export("vit", "ts", 14),
    Export("vit", "ts", 17),
    Export("vit", "dyn", 18),
    Export("vit", "dyn", 23),
    Export("bert", "ts", 14),
    Export("bert", "ts", 17),
    Export("bert", "dyn", 18),
    Export("bert", "dyn", 23),
    Export("gpt2", "ts", 17),
    Export("gpt2", "dyn", 18),
    Export("gpt2", "dyn", 20, static=True),
    Export("llama", "ts", 17),
    Export("llama", "dyn", 18, static=True),
    Export("llama", "dyn", 20),
    Export("llama", "dyn", 23),
    Export("whisperenc", "ts", 17),
    Export("whisperenc", "dyn", 20),
    Export("unet", "ts", 13),
    Export("unet", "ts", 17),
    Export("unet", "dyn", 18),
    Export("lstm", "ts", 14),
    Export("lstm", "dyn", 18),
    Export("swin", "ts", 17),
    Export("t5", "dyn", 20),
    Export("qwen3", "ts", 17),
    Export("gru", "ts", 17),
    Export("lstmcell", "ts", 17),
    Export("lstmcell", "dyn", 20),
    Export("grucell", "ts", 14),
    Export("grucell", "dyn", 18),
    Export("lstmscript", "ts", 17),
    Export("gruscan", "dyn", 20),
]

CORPUS_EXPORTS = [
    Export("resnet", "ts", 17, label="resnet50_ts"),
    Export("bert", "ts", 17, label="bert_ts"),
    Export("whisperenc", "ts", 17, label="whisperenc_ts"),
    Export("llama", "dyn", 20, static=True, label="llama_dyn"),
    Export("gpt2", "dyn", 20, static=True, label="gpt2_dyn"),
    Export("vit", "ts", 17, label="vit_ts"),
    Export("vit", "dyn", 20, label="vit_dyn"),
    Export("clip", "ts", 17, label="clip_ts"),
    Export("resnet", "dyn", 20, label="resnet50_dyn"),
    Export("bert", "dyn", 20, label="bert_dyn"),
    Export("gpt2", "ts", 17, label="gpt2_ts"),
    Export("llama", "ts", 17, label="llama_ts"),
    Export("unet", "ts", 17, label="unet_ts"),
    Export("unet", "dyn", 20, label="unet_dyn"),
    Export("whisperenc", "dyn", 20, label="whisperenc_dyn"),
    Export("lstm", "ts", 17, label="lstm_ts"),
    Export("llama1024", "dyn", 20, static=True, whole=True, label="llama1024_dyn"),
]

MORE = (
    *("roberta", "distilbert", "albert", "t5", "t5enc", "whisperdec", "qwen3", "gemma3", "mamba", "wav2vec2"),
    *("gru", "convnext", "swin", "segformer", "dinov2", "vitdet", "detr", "mobilenetv2", "efficientnet"),
    *("mobilevit", "yolo", "diffusion", "deeplab"),
)
EXPORTERS: dict[Literal["ts", "dyn"], int] = {"ts": 17, "dyn": 20}
CORPUS_EXPORTS += [
    Export(name, exporter, opset, label=f"{name}_{exporter}")
    for name in MORE
    for exporter, opset in EXPORTERS.items()
]


# --- the two exporters --------------------------------------------------------------------------------------


def write_export(export: Export, size: Literal["tiny", "full"], path: Path) -> None:
    """Build the architecture with random weights and write it through its exporter to `path`, in one file."""
    import torch

    from architectures import build

    logging.disable(logging.WARNING)
    example = build(export.architecture, size, export.exporter)
    common: dict[str, Any] = {
        "input_names": list(example.inputs),
        "output_names": list(example.outputs),
        "opset_version": export.opset,
    }
    # A batch of one would make torch.export take the batch for a constant, so examples have two.
    tensors = tuple(t[:1] if export.static and not export.whole else t for t in example.inputs.values())
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if export.exporter == "ts":
            torch.onnx.export(
                example.module,
                tensors,
                str(path),
                dynamo=False,
                do_constant_folding=False,
                dynamic_axes=None if export.static else example.dynamic,
                **common,
            )
        else:
            shapes = (
                None if export.static else dynamic_shapes(example.module, example.inputs, example.dynamic)
            )
            program = torch.onnx.export(
                example.module,
                tensors,
                dynamo=True,
                optimize=False,
                verbose=False,
                dynamic_shapes=shapes,
                **common,
            )
            program.save(str(path), external_data=False)
    if size == "tiny":
        model = onnx.load(path)
        strip(model)
        write(model, path)


def dynamic_shapes(module: Any, inputs: Iterable[str], axes: dict[str, dict[int, str]]) -> Any:
    """The `dynamic_shapes` of torch.export for a module whose `forward` takes `inputs` by position."""
    import inspect

    import torch

    bounds = {"batch": (1, 64), "seq": (2, 128)}
    dims = {name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in bounds.items()}
    specs = tuple({axis: dims[name] for axis, name in axes.get(name_, {}).items()} for name_ in inputs)
    variadic = any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(module.forward).parameters.values())
    return (specs,) if variadic else specs


def strip(model: onnx.ModelProto) -> None:
    """Drop what makes an export large and tied to one machine: stack traces, source texts, doc strings."""
    for graph in all_graphs(model.graph):
        graph.doc_string = ""
        for part in (*graph.node, *graph.value_info, *graph.input, *graph.output):
            part.doc_string = ""
            keep = KEPT_METADATA if isinstance(part, onnx.NodeProto) else set()
            kept = [(p.key, p.value) for p in part.metadata_props if p.key in keep]
            del part.metadata_props[:]
            for key, value in kept:
                part.metadata_props.add(key=key, value=value)
        for tensor in graph.initializer:
            del tensor.metadata_props[:]
        del graph.metadata_props[:]


def write(model: onnx.ModelProto, path: Path) -> None:
    """Save the same model as the same bytes every time."""
    path.write_bytes(model.SerializeToString(deterministic=True))


# --- looking at models --------------------------------------------------------------------------------------


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for nested in [attribute.g] * attribute.HasField("g") + list(attribute.graphs):
                yield from all_graphs(nested)


def size_of(path: Path) -> str:
    data = [p for p in path.parent.glob(path.stem + ".*") if p.suffix in (".onnx", ".bin", ".data")]
    total = sum(p.stat().st_size for p in data)
    return f"{total / 1e3:.0f} kB" if total < 1e6 else f"{total / 2**20:.0f} MiB"


def describe(path: Path) -> list[str]:
    """Size, nodes (nested graphs and functions too), opset and inputs of a model file, as text."""
    model = onnx.load(path, load_external_data=False)
    nodes = sum(len(graph.node) for graph in all_graphs(model.graph))
    nodes += sum(len(function.node) for function in model.functions)
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), "none")
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = []
    for value in model.graph.input:
        if value.name not in initializers:
            dims = value.type.tensor_type.shape.dim
            inputs.append(f"{value.name} [{', '.join(d.dim_param or str(d.dim_value) for d in dims)}]")
    return [size_of(path), str(nodes), str(opset), "; ".join(inputs)]


HEADER = ["model", "size", "nodes", "opset", "inputs"]


def table(folder: Path, markdown: bool) -> str:
    """All models under `folder`, one line each."""
    rows = [
        [path.relative_to(folder).with_suffix("").as_posix(), *describe(path)]
        for path in sorted(folder.rglob("*.onnx"), key=lambda p: (len(p.relative_to(folder).parts), p))
    ]
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in [HEADER, ["---"] * len(HEADER), *rows]]
        return "\n".join(lines)
    widths = [max(len(row[i]) for row in [HEADER, *rows]) for i in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [HEADER, *rows]
    )


README = """\
# Fixtures

Small models with random weights, made by `tools/export.py fixtures`, which writes this file too.
NAME_tsN comes from PyTorch's TorchScript exporter at opset N (dynamic batch and sequence, nothing folded);
NAME_dynN from its torch.export-based exporter, unoptimized. The models of `tiny/` are made by hand, one
operator idea each; what each is for stands in its `doc_string`.

{table}
"""


# --- command line -------------------------------------------------------------------------------------------


def make(jobs: dict[str, Callable[[Path], None]], folder: Path, chosen: list[str]) -> int:
    """Run the chosen jobs, report each, go on after a failure; the number of failures."""
    unknown = [word for word in chosen if not any(name.startswith(word) for name in jobs)]
    if unknown:
        print(f"no model is called {', '.join(unknown)}; there are: {', '.join(jobs)}", file=sys.stderr)
        return len(unknown)
    failures = 0
    for name, job in jobs.items():
        if chosen and not any(name.startswith(word) for word in chosen):
            continue
        path = folder / f"{name}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        try:
            job(path)
        except Exception as error:  # one architecture that does not export must not stop the others
            failures += 1
            print(f"{name}: FAILED: {type(error).__name__}: {str(error)[:1000]}", file=sys.stderr, flush=True)
            continue
        print(f"{name}: {', '.join(describe(path))} ({time.perf_counter() - start:.1f} s)", flush=True)
    return failures


def exports(entries: list[Export], size: Literal["tiny", "full"]) -> dict[str, Callable[[Path], None]]:
    return {entry.name: partial(write_export, entry, size) for entry in entries}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    fixtures = commands.add_parser("fixtures", help="write the small models of fixtures/")
    fixtures.add_argument("names", nargs="*", metavar="NAME")
    corpus = commands.add_parser("corpus", help="write the full-size models")
    corpus.add_argument("outdir", type=Path)
    corpus.add_argument("names", nargs="*", metavar="NAME")
    listing = commands.add_parser("list", help="describe the models of a folder")
    listing.add_argument("dir", type=Path, nargs="?", default=FIXTURES)
    listing.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()

    if arguments.command == "list":
        print(table(arguments.dir, arguments.markdown))
        return 0
    if arguments.command == "corpus":
        return min(1, make(exports(CORPUS_EXPORTS, "full"), arguments.outdir, arguments.names))

    import tiny_fusions  # noqa: F401 (fills TINY)
    import tiny_structures  # noqa: F401
    from tiny_sketch import TINY

    jobs = exports(FIXTURE_EXPORTS, "tiny") | {f"tiny/{name}": job for name, job in TINY.items()}
    failures = make(jobs, FIXTURES, arguments.names)
    (FIXTURES / "README.md").write_text(README.format(table=table(FIXTURES, markdown=True)))
    for path in FIXTURES.rglob("*.onnx"):
        if path.stat().st_size > LARGEST_FIXTURE:
            failures += 1
            print(f"{path}: {path.stat().st_size} bytes, more than {LARGEST_FIXTURE}", file=sys.stderr)
    return min(1, failures)


if __name__ == "__main__":
    sys.exit(main())
