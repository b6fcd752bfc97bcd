"""`optimize new-pass NAME`: a working pass of one's own, with its test, packaging and README."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template

import click


@click.command(short_help="Write the files of a new pass.")
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(["rule", "function", "graphsurgeon"]),
    default="rule",
    show_default=True,
    help="A pattern and its replacement, a function over the model, or one over a graphsurgeon Graph.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The folder to make; onnxlathe-NAME if left out."
)
def new_pass_command(name: str, kind: str, output: Path | None) -> int:
    """Write a package with a pass called NAME that works: change it into your own.

    Exit code 0: written; 2: NAME is no name for a pass, or the folder exists.
    """
    from onnxlathe.errors import LatheError, UsageError
    from onnxlathe.pipeline import PRESETS, Registry

    if not re.fullmatch(r"[a-z_][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UsageError(
            f"'{name}' cannot be the name of a pass and its package", hint="use small letters, digits and _"
        )
    if name in (*Registry.standard().names(), *PRESETS, "fixpoint", "check", "show"):
        raise UsageError(f"the name '{name}' is taken", hint="`optimize passes` lists those that are")
    folder = output or Path(f"onnxlathe-{name.replace('_', '-')}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"'{folder}' exists", hint="say where to write with -o")
    try:
        for path, text in files(name, kind).items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LatheError(f"cannot write '{folder}': {error.strerror}") from error
    click.echo(f"wrote {folder}/")
    module = folder / "src" / f"onnxlathe_{name}" / "__init__.py"
    click.echo(f"try it:      optimize passes check {name} --plugin {module}")
    click.echo(f"install it:  pip install -e {folder}")
    return 0


def files(name: str, kind: str) -> dict[str, str]:
    """The files of the new package: path in its folder → contents."""
    words = {
        "name": name,
        "package": f"onnxlathe_{name}",
        "distribution": f"onnxlathe-{name.replace('_', '-')}",
        "cls": "".join(part.capitalize() for part in name.split("_") if part) or "Mine",
    }
    layout = {
        "pyproject.toml": _PYPROJECT,
        "README.md": _README,
        f"src/{words['package']}/__init__.py": _KINDS[kind],
        f"src/{words['package']}/py.typed": "",
        f"tests/test_{name}.py": _TEST,
    }
    return {path: Template(text).substitute(words) for path, text in layout.items()}


_PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "$distribution"
version = "0.1.0"
description = "A pass for OnnxLathe: $name"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["onnxlathe>=0.1,<1"]

[project.optional-dependencies]
dev = ["onnxlathe[check]", "pytest>=8"]

# This is what makes `optimize` find the pass.
[project.entry-points."onnxlathe.passes"]
$name = "$package"

[tool.hatch.build.targets.wheel]
packages = ["src/$package"]
"""

_README = """\
# $distribution

The pass `$name` for [OnnxLathe](https://pypi.org/project/onnxlathe/).

    pip install -e .                          # `optimize` finds it from now on
    optimize passes $name                     # what it does
    optimize passes check $name               # does it keep its word?
    optimize model.onnx --passes shapes,fold,$name,tidy

Without installing: `optimize model.onnx --plugin src/$package/__init__.py --passes $name`.

    pip install -e '.[dev]' && pytest         # its tests
"""

_RULE = '''\
"""The pass `$name`: √(x·x) = |x|."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxlathe import Rule
from onnxlathe.rewrite import any_of, require


@dataclass(frozen=True)
class $cls(Rule):
    """Replace √(x·x), and √(x²), by |x|."""

    name = "$name"
    example = """
    %y = Sqrt(Mul(%x, %x))
    →
    %y = Abs(%x)
    """

    def pattern(self, op: Any, x: Any) -> Any:
        # What to look for. Operators in between must not be used by anything else.
        return op.Sqrt(any_of(op.Mul(x, x), op.Pow(x, 2.0)))

    def check(self, x: Any) -> None:
        # When the identity holds; the reason is shown by `optimize inspect MODEL --why-not $name`.
        require(x.dtype is not None and x.dtype.is_floating_point(), "its element type is not floating point")

    def rewrite(self, op: Any, x: Any) -> Any:
        # What to put there instead.
        return op.Abs(x)


PASSES = [$cls]
'''

_FUNCTION = '''\
"""The pass `$name`: √(x·x) = |x|."""

from __future__ import annotations

import onnx_ir as ir

from onnxlathe import Context, Model, make_pass


@make_pass("$name")
def $name(model: Model, context: Context, *, largest: int = 1000) -> int:
    """Replace Sqrt(Mul(x, x)) by Abs(x), at most `largest` times.

    Parameters after the star are its options: `$name(largest=1)` in a pipeline.
    """
    changes = 0
    for graph in model.graphs():
        for node in list(graph):
            square = node.inputs[0].producer() if node.op_type == "Sqrt" and node.inputs[0] else None
            if square is None or square.op_type != "Mul" or square.inputs[0] is not square.inputs[1]:
                continue
            # Ask before each change that stands by itself, so that a wrong one can be found.
            if changes == largest or not context.permit("$name"):
                return changes
            output = node.outputs[0]
            new = ir.node("Abs", [square.inputs[0]], name=context.names.node(f"{node.name}/Abs"))
            new.outputs[0].name = context.names.value(f"{output.name}/Abs")
            new.outputs[0].type, new.outputs[0].shape = output.type, output.shape
            graph.insert_before(node, new)
            # The Sqrt stays behind where a graph output must keep its name: it is the Abs's Identity then.
            if output.is_graph_output():
                keep = ir.node("Identity", [new.outputs[0]], name=context.names.node(f"{node.name}/Identity"))
                graph.insert_before(node, keep)
                name, output.name = output.name, None
                keep.outputs[0].name, keep.outputs[0].type, keep.outputs[0].shape = name, output.type, output.shape
                output.replace_all_uses_with(keep.outputs[0], replace_graph_outputs=True)
            else:
                output.replace_all_uses_with(new.outputs[0])
            context.record("$name", [node], [new])
            graph.remove(node, safe=True)
            if not square.outputs[0].uses() and not square.outputs[0].is_graph_output():
                square.graph.remove(square, safe=True)
            changes += 1
    return changes


PASSES = [$name]
'''

_GRAPHSURGEON = '''\
"""The pass `$name`: √(x·x) = |x|, as a graphsurgeon script."""

from __future__ import annotations

from typing import Any

from onnxlathe.adapters import from_graphsurgeon


@from_graphsurgeon(name="$name")
def $name(graph: Any, *, largest: int = 1000) -> None:
    """Replace Sqrt(Mul(x, x)) by Abs(x), at most `largest` times.

    Parameters after the star are its options: `$name(largest=1)` in a pipeline.
    """
    for node in [n for n in graph.nodes if n.op == "Sqrt"][:largest]:
        square = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
        if square is not None and square.op == "Mul" and square.inputs[0] is square.inputs[1]:
            node.op = "Abs"
            node.inputs = [square.inputs[0]]
    graph.cleanup()


PASSES = [$name]
'''

_KINDS = {"rule": _RULE, "function": _FUNCTION, "graphsurgeon": _GRAPHSURGEON}

_TEST = '''\
"""`$name` changes what it should, and holds on whatever it is given."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from $package import PASSES

import onnxlathe
from onnxlathe.check import Prover

MODEL = """
<ir_version: 10, opset_import: ["" : 18]>
g (float[n, 4] x) => (float[n, 4] y) {
    a = Mul(x, x)
    b = Sqrt(a)
    y = Relu(b)
}
"""


def test_it_changes_what_it_should() -> None:
    model = onnxlathe.Model(ir.from_proto(onnx.parser.parse_model(MODEL)))
    result = onnxlathe.optimize(model, [PASSES[0]])
    assert [node.op_type for node in model.graph] == ["Abs", "Relu"]
    assert result.verdict is not None
    assert result.verdict.status == "equal"


def test_it_holds() -> None:
    with Prover(examples=100) as prover:
        proof = prover.prove(PASSES[0]())
    assert proof.holds, proof.counterexample and proof.counterexample.text()
'''
