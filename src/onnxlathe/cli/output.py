"""Where words go: results to standard output, everything else to standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def complain(message: str, hint: str = "") -> None:
    """Say what went wrong and what to do, on standard error."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[red bold]error[/] {escape(message)}")
    if hint:
        console.print(f"[dim]hint[/]  {escape(hint)}")


def out(*, quiet: bool = False) -> Console:
    """The console for results. Tables stay readable where the output is a pipe or a file."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 120
    return Console(quiet=quiet, highlight=False, width=width)


@contextmanager
def progress(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A line that says what is being done, shown while it takes longer than a second."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    import threading

    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)

    status = console.status("")
    timer = threading.Timer(1.0, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda text: status.update(escape(text))
    finally:
        timer.cancel()
        status.stop()
