"""Python's cyclic garbage collector, paused while graphs are built and changed.

A graph is one large cycle of live objects, and the collector walks all of it again and again while thousands
of nodes are made: a third of the time on large models. What is really garbage is freed afterwards.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def relax() -> None:
    """Collect so rarely that a graph of 100,000 nodes never sees it: what a program makes here, it keeps."""
    gc.set_threshold(20_000_000, 20, 20)


@contextmanager
def paused() -> Iterator[None]:
    """Do not collect cycles inside; nested uses and a caller's own `gc.disable` are respected."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
