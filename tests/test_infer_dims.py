"""The algebra of dimensions against Python's own arithmetic, on random expressions and random sizes."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxlathe.infer import Dim, ceil_div, lower, maximum, minimum, upper
from onnxlathe.infer.dim_text import from_dim_param

NAMES = ["batch", "seq", "h", 'odd "name"', "a + b"]


@st.composite
def expressions(draw, depth=4):
    """An expression as ``(Expr, function of bindings to int)``, built in parallel."""
    if depth == 0 or draw(st.integers(0, 3)) == 0:
        if draw(st.booleans()):
            name = draw(st.sampled_from(NAMES))
            return Dim(name), lambda b: b[name]
        number = draw(st.integers(-6, 12))
        return number, lambda b: number
    (x, f), (y, g) = draw(expressions(depth=depth - 1)), draw(expressions(depth=depth - 1))
    operator = draw(st.sampled_from(["+", "-", "*", "//", "%", "max", "min", "neg"]))
    if operator in ("//", "%"):
        assume(y != 0)
    apply = {
        "+": lambda a, b: a + b,
        "-": lambda a, b: a - b,
        "*": lambda a, b: a * b,
        "//": lambda a, b: a // b,
        "%": lambda a, b: a % b,
        "neg": lambda a, b: -a,
    }
    if operator == "max":
        return maximum(x, y), lambda b: max(f(b), g(b))
    if operator == "min":
        return minimum(x, y), lambda b: min(f(b), g(b))
    return apply[operator](x, y), lambda b: apply[operator](f(b), g(b))


sizes = st.fixed_dictionaries({name: st.integers(0, 9) for name in NAMES})


def number(expr, bindings):
    return expr.substitute(bindings) if isinstance(expr, Dim) else expr


@settings(max_examples=600, deadline=None)
@given(expressions(), sizes)
def test_simplification_keeps_the_value(pair, bindings):
    expr, evaluate = pair
    try:
        expected = evaluate(bindings)
    except ZeroDivisionError:
        return  # undefined: any simplification is right
    assert number(expr, bindings) == expected
    assert lower(expr) is None or lower(expr) <= expected
    assert upper(expr) is None or upper(expr) >= expected


@settings(max_examples=300, deadline=None)
@given(expressions())
def test_text_is_read_back(pair):
    expr, _ = pair
    text = str(expr)
    if isinstance(expr, Dim):
        assert from_dim_param(text) == expr
        assert Dim.parse(f"{expr + 1}") == expr + 1
    else:
        assert Dim.parse(text) == expr


@settings(max_examples=200, deadline=None)
@given(expressions(depth=2), expressions(depth=2), expressions(depth=2))
def test_polynomials_are_canonical(a, b, c):
    x, y, z = a[0], b[0], c[0]
    assert x + y == y + x
    assert x * y == y * x
    assert (x + y) + z == x + (y + z)
    assert x - x == 0
    assert (x + y) - y == x
    if y != 0:
        assert (x * y) // y == x


b, s = Dim("batch"), Dim("seq")


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        ((b * s * 768) // (b * s), 768),
        ((2 * s) // 2, s),
        ((s + 3) // 1, s + 3),
        ((b * s * 768) // (b * 64), 12 * s),
        ((b * s + b) // b, s + 1),
        ((b * s + s + b + 1) // (s + 1), b + 1),
        ((2 * s + 3) // 2, s + 1),
        ((s // 2) // 3, s // 6),
        ((4 * s) % 2, 0),
        ((s - 1) // 2 + 1, (s + 1) // 2),
        (ceil_div(s, 2), (s + 1) // 2),
        (minimum(s, s + 1), s),
        (maximum(s, 0), s),
        (maximum(minimum(4, s), 0), minimum(4, s)),
        (maximum(s - s // 2, 0), s - s // 2),
        (maximum(s - minimum(s, 4), 0), s - minimum(s, 4)),
    ],
)
def test_exact_simplification(expr, expected):
    assert expr == expected


def test_nothing_is_assumed_about_small_sizes():
    assert maximum(s, 1) != s
    assert minimum(s, 1) != 1
    assert s // (s + 1) == 0
    assert lower(s) == 0
    assert lower(s - 1) == -1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2*seq + 1", 2 * s + 1),
        ("seq*batch", b * s),
        ("(seq + 1)//2", (s + 1) // 2),
        ("floor(seq/2 + 1/2)", (s + 1) // 2),
        ("ceiling(seq/2)", (s + 1) // 2),
        ("Max(1, seq)", maximum(1, s)),
        ("Mod(seq, 3)", s % 3),
        ("FloorDiv(seq, 3)", s // 3),
        ("seq**2", s * s),
        ("-seq + 2", 2 - s),
        ("batch-size*2", 2 * Dim("batch-size")),
        ("past.key + seq", Dim("past.key") + s),
    ],
)
def test_text_of_exporters(text, expected):
    assert Dim.parse(text) == expected


@pytest.mark.parametrize("text", ["seq +", "1024x", "a b", "seq/2", "f(x)", "x[0]", "", "(" * 99, "seq//0"])
def test_other_text_is_a_name(text):
    with pytest.raises(ValueError):
        Dim.parse(text)
    if text and text != "?":
        assert from_dim_param(text) == Dim(text)
        assert str(Dim(text)) == text


def test_dim_params_that_say_nothing():
    assert from_dim_param(None) is None
    assert from_dim_param("?") is None
    assert from_dim_param("3") == Dim("3"), "a number as a name is a name"


def test_substitute_and_symbols():
    expr = minimum(s, 4) * b + (s + 1) // 2
    assert expr.symbols == {"batch", "seq"}
    assert expr.substitute({"seq": 3}) == 3 * b + 2
    assert expr.substitute({"seq": 3, "batch": 2}) == 8
    with pytest.raises(ZeroDivisionError):
        (s // b).substitute({"batch": 0, "seq": 1})


def test_growth_is_bounded():
    expr = sum((Dim(f"d{i}") for i in range(40)), 0)
    power = expr
    for _ in range(6):
        power = power * expr
    assert isinstance(power, Dim)
    assert len(power.terms) < 200
