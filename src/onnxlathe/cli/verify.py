"""`optimize verify A B`: do two models compute the same?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxlathe.cli.options import comparison_options, memory_option


@click.command(short_help="Compare two models numerically.")
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("optimized", type=click.Path(path_type=Path))
@comparison_options
@memory_option
@click.option("--report", type=click.Path(path_type=Path), help="Write the verdict as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def verify_command(original: Path, optimized: Path, report: Path | None, quiet: bool, **options: Any) -> int:
    """Run ORIGINAL and OPTIMIZED on the same inputs in ONNX Runtime and compare every output.

    Exit code 0: equal; 1: different, or nothing could be checked; 2: wrong usage or bad model.
    """
    from onnxlathe.cli.options import verify_options, write_json
    from onnxlathe.cli.output import out, progress
    from onnxlathe.model import load
    from onnxlathe.verify import Verifier

    notes: list[str] = []
    with progress(quiet=quiet) as say:
        how = verify_options(load(original), **options, notes=notes)
        load(optimized)
        with Verifier(
            original,
            feeds=how.feeds,
            seeds=how.seeds,
            bindings=how.bindings,
            tolerances=how.tolerances,
            timeout=how.timeout,
            memory=how.memory,
            progress=say,
        ) as verifier:
            verdict = verifier.check(optimized)
    if report is not None:
        write_json(report, {"schema": 1, "verdict": verdict.to_dict()})
    if not quiet:
        from onnxlathe.report.terminal import show_verdict

        verdict.notes += notes
        show_verdict(out(), verdict)
    return 0 if verdict.status in ("equal", "partially checked") else 1
