"""The pipeline's text, and what it means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxlathe.errors import UsageError
from onnxlathe.pipeline import PRESETS, Fixpoint, Item, Registry, Size, Unit, load_recipe, parse, plan
from onnxlathe.pipeline.text import join, parse_size

NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
VALUES = st.recursive(
    st.one_of(
        st.integers(-(10**12), 10**12),
        st.floats(allow_nan=False, allow_infinity=False),
        st.booleans(),
        st.none(),
        st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12),
        st.integers(0, 2**50).map(Size),
    ),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)
ITEMS = st.recursive(
    st.builds(Item, NAMES, st.dictionaries(NAMES, VALUES, max_size=3), st.just(()), st.just(False)),
    lambda inner: st.builds(
        Item,
        NAMES,
        st.dictionaries(NAMES, VALUES, max_size=2),
        st.lists(inner, max_size=3).map(tuple),
        st.booleans(),
    ),
    max_leaves=6,
)


@given(st.lists(ITEMS, min_size=1, max_size=4))
def test_text_round_trips(items: list[Item]) -> None:
    text = join(items)
    assert parse(text) == tuple(items)
    assert join(parse(text)) == text


def test_the_example_of_the_documentation() -> None:
    text = "shapes,fold(max_bytes=64MiB),fuse(layernorm,gelu),fixpoint(tidy)"
    items = parse(text)
    assert [item.name for item in items] == ["shapes", "fold", "fuse", "fixpoint"]
    assert items[1].options == {"max_bytes": 64 << 20}
    assert [child.name for child in items[2].children] == ["layernorm", "gelu"]
    assert join(items) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MiB", 64 << 20), ("1.5GB", 1_500_000_000), ("4096", 4096), ("10B", 10), ("2kB", 2000)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "fold,", "fold(", "fold(max_bytes=)", "fold)", "fold fuse", "fold(a=1,a=2)", "§"]
)
def test_what_cannot_be_read_is_shown_with_its_place(text: str) -> None:
    with pytest.raises(UsageError, match="cannot read the pipeline at"):
        parse(text)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.standard()


def test_the_standard_passes_come_through_the_entry_point(registry: Registry) -> None:
    assert not registry.problems
    assert {"shapes", "fold"} <= {entry.name for entry in registry.all()}
    assert all(entry.origin.startswith("onnxlathe ") for entry in registry.all())
    assert {"fuse", "tidy"} <= set(registry.groups())


@pytest.mark.parametrize(
    ("text", "suggested"),
    [
        ("fuze", "fuse"),
        ("fold(max_byte=3)", "max_bytes"),
        ("fuse(gellu)", "gelu"),
        ("shape", "shapes"),
        ("O22", "O2"),
    ],
)
def test_misspelt_names_get_the_nearest_suggested(registry: Registry, text: str, suggested: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(text, registry)
    assert suggested in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "fold(max_bytes=many)",
        "fold(quantized=3)",
        "-fold",
        "fuse(max=1)",
        "fixpoint()",
        "fold(tidy)",
        "O2(fold)",
    ],
)
def test_what_makes_no_sense_is_refused(registry: Registry, text: str) -> None:
    with pytest.raises(UsageError):
        plan(text, registry)


def names(step: Unit | Fixpoint) -> list[str]:
    return (
        [p.name for p in step.passes] if isinstance(step, Unit) else [n for s in step.steps for n in names(s)]
    )


def test_groups_expand_choose_and_leave_out(registry: Registry) -> None:
    members = registry.groups()["fuse"]
    everything = [n for step in plan("fuse", registry).steps for n in names(step)]
    assert everything == members
    chosen = [n for step in plan("fuse(gelu,layernorm)", registry).steps for n in names(step)]
    assert sorted(chosen) == ["gelu", "layernorm"]
    rest = [n for step in plan("fuse(-gelu)", registry).steps for n in names(step)]
    assert rest == [n for n in members if n != "gelu"]


def test_rules_of_a_group_share_one_worklist(registry: Registry) -> None:
    steps = plan("fuse", registry).steps
    assert len(steps) < len(registry.groups()["fuse"]) / 2


def test_presets_and_recipes_expand_into_each_other(registry: Registry) -> None:
    assert str(plan("O1", registry)) == PRESETS["O1"]
    assert str(plan("mine,fold", registry, {"mine": "shapes,tidy"})) == "shapes,tidy,fold"
    with pytest.raises(UsageError, match="contains itself"):
        plan("a", registry, {"a": "b", "b": "a"})


def test_a_pipeline_of_objects_reads_as_text(registry: Registry) -> None:
    fold = registry.get("fold").cls
    assert str(plan([fold(max_bytes=Size(1 << 20)), fold], registry)) == "fold(max_bytes=1MiB),fold"


def test_recipe(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "r.toml"
    path.write_text('passes = "mine"\nplugins = ["p.py"]\n[pipelines]\nmine = "fold,tidy"\n')
    recipe = load_recipe(path)
    assert recipe.pipelines == {"mine": "fold,tidy"}
    assert recipe.plugins == (str(tmp_path / "p.py"),)
    for text in ("passes = 3", "unknown = 1", "not toml"):
        path.write_text(text)
        with pytest.raises(UsageError, match=r"r\.toml"):
            load_recipe(path)
    with pytest.raises(UsageError, match="cannot read"):
        load_recipe(tmp_path / "none.toml")
