"""`optimize build MODEL -o ENGINE`: an engine of a model as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxlathe.cli.build_options import engine_options


@click.command(short_help="Build a TensorRT engine of a model as it is.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "--engine", type=click.Path(path_type=Path),
    help="Where to put the engine; MODEL.engine if left out.",
)  # fmt: skip
@click.option(
    "--original",
    type=click.Path(path_type=Path),
    help="Compare with this model, at the sizes of the profiles.",
)
@click.option(
    "--recipe",
    "recipe_path",
    type=click.Path(path_type=Path),
    help="TOML file whose table [engine] has options.",
)
@engine_options
@click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), default=1800.0, show_default=True,
    help="Seconds that building may take.",
)  # fmt: skip
@click.option("--report", type=click.Path(path_type=Path), help="Write everything as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def build_command(**options: Any) -> int:
    """Build an engine of MODEL, which is not changed (`optimize MODEL --engine ENGINE` optimizes it first).

    A sidecar beside the engine (ENGINE.json) says what it was built from and how; `optimize inspect ENGINE`
    prints it.
    """
    from onnxlathe.api import VerifyOptions
    from onnxlathe.cli.build_options import engine_request, with_recipe
    from onnxlathe.cli.engine_text import show_engine
    from onnxlathe.cli.options import check_writable, write_json
    from onnxlathe.cli.output import out, progress
    from onnxlathe.model import load
    from onnxlathe.pipeline import load_recipe
    from onnxlathe.target.engine import make_engine

    model: Path = options["model"]
    if options["recipe_path"] is not None:
        options = with_recipe(options, load_recipe(options["recipe_path"]))
    loaded = load(model)  # an unreadable model is complained of before anything else
    request = engine_request(
        options["output"] or model.with_suffix(".engine"), options, model, timeout=options["timeout"]
    )
    if options["report"] is not None:
        check_writable(options["report"], model, *request.files)
    with progress(quiet=options["quiet"]) as say:
        engine = make_engine(
            model,
            request,
            original=options["original"],
            verify=VerifyOptions(),
            facts={"pipeline": loaded.ir.metadata_props.get("onnxlathe.pipeline", "")},
            progress=say,
        )
    if options["report"] is not None:
        write_json(options["report"], {"schema": 1, "engine": engine.to_dict()})
    if not options["quiet"]:
        show_engine(out(), engine)
    return 0
