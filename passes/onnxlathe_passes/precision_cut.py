"""Where Casts go: the fewest that a choice of types needs, as a minimum cut.

Things that compute in one type are units; values are signals from one unit to others. A Cast of a value serves
all consumers of its type, so a signal costs one Cast for each type among its consumers that its producer does
not give. With two types this is a minimum cut: the producer `p` pays once to reach the float32 side, however
many consumers lie there. For a signal, with helpers `a` and `b`, and `s` the float32 side::

    p ──1──▶ a ──∞──▶ each consumer        p in float32 and any consumer not: one Cast
    each consumer ──∞──▶ b ──1──▶ p        a consumer in float32 and p not: one Cast

A third type appears only where constraints ask for it; units next to those are settled afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

FLOAT32 = ir.DataType.FLOAT


@dataclass(eq=False, slots=True)
class Unit:
    """Something that computes in one type: a node, an input of the model, a value that a loop carries.

    Attributes:
        fixed: the type, where it is not to be chosen.
        lean: which way to go where the number of Casts is the same: positive to the low type, negative to
            float32; the size counts.
        reluctant: float32 costs as much as three quarters of a Cast.
        type: the choice.
        reason: why it is fixed.
    """

    fixed: ir.DataType | None = None
    lean: int = 1
    type: ir.DataType = FLOAT32
    reason: str = ""
    reluctant: bool = False

    def fix(self, dtype: ir.DataType, reason: str) -> None:
        """Take the choice away."""
        self.fixed, self.reason = dtype, reason


@dataclass(eq=False, slots=True)
class Signal:
    """A value: who makes it, and who reads it."""

    producer: Unit
    consumers: list[Unit] = field(default_factory=list)


def count_casts(signals: Iterable[Signal]) -> int:
    """How many Casts the units' types need."""
    return sum(len({c.type for c in s.consumers} - {s.producer.type}) for s in signals)


def choose(units: Iterable[Unit], signals: Sequence[Signal], low: ir.DataType) -> int:
    """Choose the types of the units that are not fixed, for the fewest Casts; set every unit's `type`.

    Args:
        units: all of them.
        signals: all values between them.
        low: the type beside float32.

    Returns:
        The number of Casts needed.
    """
    free: list[Unit] = []
    for unit in units:
        if unit.fixed is not None:
            unit.type = unit.fixed
        else:
            free.append(unit)
    for members, touching in _components(free, signals):
        around = {u.fixed for s in touching for u in (s.producer, *s.consumers) if u.fixed is not None}
        if around <= {low} or around <= {FLOAT32}:
            preferred = low if sum(u.lean for u in members) >= 0 else FLOAT32
            chosen = next(iter(around), preferred) or preferred
            for unit in members:
                unit.type = chosen
        else:
            _cut(members, touching, low)
            for other in around - {FLOAT32, low, None}:
                assert other is not None
                _spread(members, touching, other)
    return count_casts(signals)


def _components(free: list[Unit], signals: Sequence[Signal]) -> list[tuple[list[Unit], list[Signal]]]:
    """Groups of free units that signals join, each with the signals that touch it."""
    parent: dict[Unit, Unit] = {unit: unit for unit in free}

    def root(unit: Unit) -> Unit:
        while parent[unit] is not unit:
            parent[unit] = parent[parent[unit]]
            unit = parent[unit]
        return unit

    touching: list[tuple[Unit, Signal]] = []
    for signal in signals:
        ends = [u for u in (signal.producer, *signal.consumers) if u.fixed is None]
        if not ends:
            continue
        first = root(ends[0])
        for unit in ends[1:]:
            parent[root(unit)] = first
        touching.append((first, signal))
    groups: dict[Unit, tuple[list[Unit], list[Signal]]] = {}
    for unit in free:
        groups.setdefault(root(unit), ([], []))[0].append(unit)
    for unit, signal in touching:
        groups[root(unit)][1].append(signal)
    return list(groups.values())


def _cut(members: list[Unit], signals: list[Signal], low: ir.DataType) -> None:
    import networkx as nx

    quarter = 1 + sum(abs(unit.lean) for unit in members)  # a quarter of a Cast outweighs all leanings
    cast = 4 * quarter
    graph: Any = nx.DiGraph()
    names: dict[Unit, int | str] = {unit: number for number, unit in enumerate(members)}

    def name(unit: Unit) -> int | str | None:
        if unit.fixed is None:
            return names[unit]
        return "float32" if unit.fixed == FLOAT32 else "low" if unit.fixed == low else None

    def edge(source: int | str, target: int | str, capacity: int | None) -> None:
        if source == target:
            return
        if capacity is None:
            graph.add_edge(source, target)  # without a capacity: infinite
        elif graph.has_edge(source, target):
            if "capacity" in graph[source][target]:
                graph[source][target]["capacity"] += capacity
        else:
            graph.add_edge(source, target, capacity=capacity)

    graph.add_nodes_from(("float32", "low"))
    for unit in members:
        if unit.lean > 0:
            edge(names[unit], "low", unit.lean + (3 * quarter if unit.reluctant else 0))
        elif unit.lean < 0:
            edge("float32", names[unit], -unit.lean)
    for number, signal in enumerate(signals):
        maker = name(signal.producer)
        readers = list(dict.fromkeys(r for c in signal.consumers if (r := name(c)) is not None))
        # A producer of a third type pays for either side.
        to_low, to_wide = ("float32", "low") if maker is None else (maker, maker)
        if to_low != "low":
            targets = [r for r in readers if r not in (to_low, "float32")]
            if len(targets) == 1:
                edge(to_low, targets[0], cast)
            elif targets:
                edge(to_low, f"a{number}", cast)
                for reader in targets:
                    edge(f"a{number}", reader, None)
        if to_wide != "float32":
            sources = [r for r in readers if r not in (to_wide, "low")]
            if len(sources) == 1:
                edge(sources[0], to_wide, cast)
            elif sources:
                edge(f"b{number}", to_wide, cast)
                for reader in sources:
                    edge(reader, f"b{number}", None)
    _, (wide, _) = nx.minimum_cut(
        graph, "float32", "low", flow_func=nx.algorithms.flow.shortest_augmenting_path
    )
    for unit in members:
        unit.type = FLOAT32 if names[unit] in wide else low


def _spread(members: list[Unit], signals: list[Signal], other: ir.DataType) -> None:
    """Let units between others of a third type take it, wherever that saves Casts."""
    touching: dict[Unit, list[Signal]] = {unit: [] for unit in members}
    for signal in signals:
        for unit in {signal.producer, *signal.consumers}:
            if unit in touching:
                touching[unit].append(signal)
    changed = True
    while changed:
        changed = False
        for unit in members:
            run = _run(unit, touching)
            around = list(dict.fromkeys(s for u in run for s in touching[u]))
            before, old = count_casts(around), unit.type
            for each in run:
                each.type = other
            if old != other and count_casts(around) < before:
                changed = True
            else:
                for each in run:
                    each.type = old


def _run(start: Unit, touching: dict[Unit, list[Signal]]) -> list[Unit]:
    """The free units around one that have its type."""
    found = {start: None}
    front = [start]
    while front:
        for signal in touching[front.pop()]:
            for unit in (signal.producer, *signal.consumers):
                if unit in touching and unit not in found and unit.type == start.type:
                    found[unit] = None
                    front.append(unit)
    return list(found)
