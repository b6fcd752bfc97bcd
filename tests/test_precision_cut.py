"""Where Casts go: never more than the best of all choices, found by trying them all."""

from __future__ import annotations

import itertools

import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlathe_passes.precision_cut import Signal, Unit, choose, count_casts

F32, F16, BF16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16


@st.composite
def networks(draw: st.DrawFn, types: tuple[ir.DataType | None, ...]) -> tuple[list[Unit], list[Signal]]:
    """A random directed acyclic graph of at most 11 units, some of them fixed."""
    count = draw(st.integers(2, 11))
    units = [Unit(draw(st.sampled_from(types)), draw(st.sampled_from([-1, 1, 2]))) for _ in range(count)]
    signals = []
    for number, unit in enumerate(units[:-1]):
        for _ in range(draw(st.integers(1, 2))):
            readers = draw(st.lists(st.integers(number + 1, count - 1), min_size=1, max_size=4, unique=True))
            signals.append(Signal(unit, [units[i] for i in readers]))
    return units, signals


def best(units: list[Unit], signals: list[Signal], types: tuple[ir.DataType, ...]) -> int:
    """The fewest Casts over all choices."""
    free = [u for u in units if u.fixed is None]
    fewest = 10**9
    for chosen in itertools.product(types, repeat=len(free)):
        for unit, dtype in zip(free, chosen, strict=True):
            unit.type = dtype
        for unit in units:
            if unit.fixed is not None:
                unit.type = unit.fixed
        fewest = min(fewest, count_casts(signals))
    return fewest


@given(networks((None, None, None, F32, F16)))
@settings(max_examples=150, deadline=None)
def test_as_few_casts_as_possible(network: tuple[list[Unit], list[Signal]]) -> None:
    units, signals = network
    found = choose(units, signals, F16)
    assert found == count_casts(signals)
    assert found == best(units, signals, (F32, F16))


@given(networks((None, None, None, F32, F16, BF16)))
@settings(max_examples=60, deadline=None)
def test_three_types_are_no_worse_than_two(network: tuple[list[Unit], list[Signal]]) -> None:
    units, signals = network
    found = choose(units, signals, F16)
    assert all(u.fixed is None or u.type == u.fixed for u in units)
    assert found <= best(units, signals, (F32, F16))


def test_leanings_decide_between_equals() -> None:
    wide, low = Unit(F32), Unit(F16)
    a, b, c = Unit(lean=-1), Unit(lean=1), Unit(lean=1)
    signals = [Signal(low, [a]), Signal(a, [b]), Signal(b, [c]), Signal(c, [wide])]
    assert choose([wide, low, a, b, c], signals, F16) == 1
    assert [u.type for u in (a, b, c)] == [F16, F16, F16]
    a.lean = -5
    assert choose([wide, low, a, b, c], signals, F16) == 1
    assert [u.type for u in (a, b, c)] == [F32, F32, F32]


def test_units_between_a_third_type_take_it() -> None:
    first, view, last, low = Unit(BF16), Unit(), Unit(BF16), Unit(F16)
    signals = [Signal(low, [first]), Signal(first, [view]), Signal(view, [last]), Signal(last, [low])]
    assert choose([first, view, last, low], signals, F16) == 2
    assert view.type == BF16
