"""Delta debugging: the smallest part of a set that still does the job (Zeller and Hildebrandt, 2002)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def ddmin(items: Sequence[T], works: Callable[[Sequence[T]], bool | None]) -> list[T]:
    """Make a set that works smaller until no single element can be left out.

    Args:
        items: a set that works, what matters most first.
        works: whether a part works; None ends the search (no time left), and the best so far is returned.

    Returns:
        A part that works. Nothing is assumed about how parts relate; where less is enough whenever more is
        not, the result is the smallest there is up to leaving out single elements.
    """
    current = list(items)
    pieces = 2
    while len(current) >= 2:
        size = -(-len(current) // pieces)
        chunks = [current[i : i + size] for i in range(0, len(current), size)]
        smaller: list[T] | None = None
        for part in chunks if pieces == 2 else ():
            answer = works(part)
            if answer is None:
                return current
            if answer:
                smaller, pieces = part, 2
                break
        if smaller is None:
            # What matters least goes first.
            for number in reversed(range(len(chunks))):
                rest = [x for i, chunk in enumerate(chunks) if i != number for x in chunk]
                answer = works(rest)
                if answer is None:
                    return current
                if answer:
                    smaller, pieces = rest, max(pieces - 1, 2)
                    break
        if smaller is not None:
            current = smaller
        elif pieces >= len(current):
            break
        else:
            pieces = min(len(current), 2 * pieces)
    if len(current) == 1 and works([]):
        return []
    return current
