"""Finding a boundary with as few questions as there are bits in its place."""

from __future__ import annotations

from collections.abc import Callable


def smallest(holds: Callable[[int], bool], end: int) -> int:
    """The first number in 1…end for which `holds`, given that it does for `end` and for all after the first."""
    low, high = 0, end
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high
