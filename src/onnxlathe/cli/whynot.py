"""`optimize inspect MODEL --why-not RULE`: where it almost matched, and what stopped it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onnxlathe.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from onnxlathe.model import Model
    from onnxlathe.pipeline import Registry
    from onnxlathe.rewrite import LocalRule
    from onnxlathe.rewrite.explain import NearMiss

_PLACES_SHOWN = 5
_NODES_SHOWN = 12


def why_not(model: Model, name: str, registry: Registry, after: str = "shapes") -> dict[str, list[NearMiss]]:
    """Near misses by rule, for one rule, a group, or `all`; `after` runs first, on this very model.

    Raises:
        UsageError: there is no such rule, or it is an opaque pass, which has nothing to match.
    """
    from onnxlathe.infer import infer_model
    from onnxlathe.pipeline import Runner, plan
    from onnxlathe.rewrite.explain import near_misses

    rules = _rules(name, registry)
    Runner().run(model, plan(after, registry))
    infer_model(model)
    return {rule.name: near_misses(rule, model) for rule in rules}


def _rules(name: str, registry: Registry) -> list[LocalRule]:
    from onnxlathe.pipeline import suggestion
    from onnxlathe.rewrite import LocalRule

    groups = registry.groups()
    if name == "all":
        names: Sequence[str] = [entry.name for entry in registry.all()]
    elif name in groups:
        names = groups[name]
    elif name in registry:
        names = [name]
    else:
        raise UsageError(f"there is no rule '{name}'", hint=suggestion(name, [*registry.names(), "all"]))
    rules = [registry.get(each).cls() for each in names]
    found = [rule for rule in rules if isinstance(rule, LocalRule)]
    if not found:
        raise UsageError(
            f"'{name}' is not a rule: it works on whole models and matches nothing",
            hint="`optimize passes check` shows what it does",
        )
    return found


def show_why_not(console: Console, misses: dict[str, list[NearMiss]]) -> None:
    """Print them: for one rule all that is near, for many the nearest place of each."""
    from rich.markup import escape

    many = len(misses) > 1
    silent = []
    for name, found in misses.items():
        if not found:
            silent.append(name)
            continue
        fires = sum(miss.fires for miss in found)
        places = f"{len(found)} place{'s' if len(found) > 1 else ''}"
        near = f", and fires at {fires} of them" if fires else ""
        console.print(f"[bold cyan]{escape(name)}[/] comes near at {places}{near}")
        limit = 1 if many else _PLACES_SHOWN
        for miss in found[:limit]:
            _place(console, miss, nodes=not many)
        if len(found) > limit and not many:
            console.print(f"  [dim]… and {len(found) - limit} more[/]")
    if silent:
        what = "no operator of" if not many else "not near anything:"
        console.print(f"[dim]{what} {escape(', '.join(silent))}{' fits anywhere' if not many else ''}[/]")


def _place(console: Console, miss: NearMiss, *, nodes: bool) -> None:
    from rich.markup import escape

    from onnxlathe.report.graph_text import node_lines

    fitted = f"{len(miss.nodes)} operator{'s' if len(miss.nodes) > 1 else ''} fitted"
    console.print(escape(f"  {miss.root.name} ({miss.root.op_type}): {fitted}"))
    if nodes:
        for node in miss.nodes[:_NODES_SHOWN][::-1]:
            for line in list(node_lines(node, "      "))[:1]:
                console.print(f"[dim]{escape(line)}[/]", soft_wrap=True)
    if miss.fires:
        console.print("    [green]fires here[/]")
    else:
        console.print(f"    [yellow]stopped:[/] {escape(miss.reason)}", soft_wrap=True)


def as_data(misses: dict[str, list[NearMiss]]) -> dict[str, list[dict[str, Any]]]:
    """As plain data for JSON."""
    return {
        name: [
            {
                "node": miss.root.name,
                "operator": miss.root.op_type,
                "fitted": [node.name for node in miss.nodes],
                "reason": miss.reason,
                "complete": miss.complete,
                "fires": miss.fires,
            }
            for miss in found
        ]
        for name, found in misses.items()
    }
