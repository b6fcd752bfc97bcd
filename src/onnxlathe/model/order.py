"""Sorting nodes and functions by what they need."""

from __future__ import annotations

from collections.abc import Callable

from onnxlathe.errors import ModelError

_MAX_NAMED = 8  # items of a cycle that a message names


def in_order(needs: list[list[int]], label: Callable[[int], str], where: str) -> list[int]:
    """An order in which everything comes after what it needs, as close to the given one as may be.

    Args:
        needs: for each item the items that must come before it.

    Raises:
        ModelError: there is a cycle; it is named.
    """
    order: list[int] = []
    state = bytearray(len(needs))  # 0 not seen, 1 on the path, 2 in `order`
    for root in range(len(needs)):
        if state[root]:
            continue
        state[root] = 1
        path = [root]
        pending = [iter(needs[root])]
        while path:
            for other in pending[-1]:
                if state[other] == 1:
                    cycle = path[path.index(other) :]
                    names = [label(index) for index in reversed(cycle)]
                    if len(names) > _MAX_NAMED:
                        names[_MAX_NAMED - 1 : -1] = [f"({len(names) - _MAX_NAMED} more)"]
                    raise ModelError(
                        f"{where} has a cycle: {' -> '.join([*names, names[0]])}",
                        hint="No order of execution exists; the model was damaged or edited wrongly.",
                    )
                if not state[other]:
                    state[other] = 1
                    path.append(other)
                    pending.append(iter(needs[other]))
                    break
            else:
                state[path[-1]] = 2
                order.append(path.pop())
                pending.pop()
    return order
