"""A limit on how long a stranger's pass may run, where the system has one to offer."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from onnxlathe.errors import PassError


@contextmanager
def limited(seconds: float, what: str) -> Iterator[None]:
    """End what runs inside after so many seconds, with the file and line where it was.

    Works in the main thread of systems with interval timers (not on Windows), for Python code; elsewhere there
    is no limit. A signal is the only thing that reaches a loop.

    Raises:
        PassError: the time is up.
    """
    timers = hasattr(signal, "setitimer")
    if not timers or seconds <= 0 or threading.current_thread() is not threading.main_thread():
        yield
        return
    # There is but one timer: whoever called us may be keeping the time as well.
    remaining, interval = signal.getitimer(signal.ITIMER_REAL)
    if 0 < remaining <= seconds:
        yield
        return

    def stop(_: int, frame: FrameType | None) -> None:
        where = f" ({frame.f_code.co_filename}:{frame.f_lineno})" if frame is not None else ""
        raise PassError(
            f"pass '{what}' did not end within {seconds:g} seconds{where}",
            hint="does it loop? leave it out, or give it more time with --pass-timeout",
        )

    before = signal.signal(signal.SIGALRM, stop)
    started = time.monotonic()
    # And again: an exception raised in a finalizer or a callback of the collector is lost.
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if remaining:
            left = max(remaining - (time.monotonic() - started), 0.001)
            signal.setitimer(signal.ITIMER_REAL, left, interval)
