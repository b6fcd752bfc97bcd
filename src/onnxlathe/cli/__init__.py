"""`optimize`: parses words, calls the workbench, prints. `main` is the console script."""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from contextlib import suppress
from typing import NoReturn

from onnxlathe._collector import relax


def main() -> None:
    """Run the command line; the process ends with 0 done, 1 verification failed, 2 wrong usage or model."""
    relax()
    _end(run(sys.argv[1:]))


def _end(status: int) -> NoReturn:
    """End the process without freeing object by object what ends with it: a tenth of a short run."""
    atexit._run_exitfuncs()
    with suppress(OSError):
        sys.stderr.flush()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass  # the reader (`| head`) has seen enough
    except OSError:
        status = status or 2
    os._exit(status)


def run(arguments: list[str]) -> int:
    """Run the command line with `arguments` and return its exit code."""
    import click

    from onnxlathe.cli.app import app
    from onnxlathe.cli.output import complain
    from onnxlathe.errors import LatheError

    try:
        result = app.main(args=arguments, prog_name="optimize", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except LatheError as error:
        complain(error.message, error.hint)
        return error.exit_code
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort:
        complain("interrupted")
        return 130
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        where = context.command_path.removesuffix(" run") if context is not None else "optimize"
        complain(error.format_message(), f"`{where} --help` shows what there is")
        return 2
    except BrokenPipeError:
        # The reader (`| head`) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        complain("there is not enough memory for this model", "close other programs, or use --no-verify")
        return 2
    except Exception as error:
        if os.environ.get("ONNXLATHE_TRACEBACK"):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        complain(
            f"internal error: {type(error).__name__}: {error} ({frame.filename}:{frame.lineno})",
            "this is a bug of onnxlathe; please report it (ONNXLATHE_TRACEBACK=1 shows the whole story)",
        )
        return 2
