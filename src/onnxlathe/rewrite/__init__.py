"""Transformations of a model: passes, rules, the pattern language and the worklist that drives rules."""

from onnxlathe.model import subgraphs
from onnxlathe.rewrite.builder import Builder
from onnxlathe.rewrite.context import ORIGIN, Context, Firing, carry_origin, origin
from onnxlathe.rewrite.driver import drive
from onnxlathe.rewrite.edit import (
    Names,
    drop_initializer,
    graphs_of,
    is_unused,
    remove_unused,
    replace_value,
)
from onnxlathe.rewrite.match import (
    Match,
    NoMatch,
    attribute,
    attribute_defaults,
    is_constant,
    is_scalar,
    scalar_value,
)
from onnxlathe.rewrite.passes import Bytes, Option, Pass, make_pass, option
from onnxlathe.rewrite.pattern import (
    COMMUTATIVE,
    Pattern,
    PatternBuilder,
    any_of,
    attr,
    const,
    maybe,
    optional,
    shared,
)
from onnxlathe.rewrite.rule import LocalRule, NodeRule, Rule, RuleSet, reject, require

__all__ = [
    "COMMUTATIVE",
    "ORIGIN",
    "Builder",
    "Bytes",
    "Context",
    "Firing",
    "LocalRule",
    "Match",
    "Names",
    "NoMatch",
    "NodeRule",
    "Option",
    "Pass",
    "Pattern",
    "PatternBuilder",
    "Rule",
    "RuleSet",
    "any_of",
    "attr",
    "attribute",
    "attribute_defaults",
    "carry_origin",
    "const",
    "drive",
    "drop_initializer",
    "graphs_of",
    "is_constant",
    "is_scalar",
    "is_unused",
    "make_pass",
    "maybe",
    "option",
    "optional",
    "origin",
    "reject",
    "remove_unused",
    "replace_value",
    "require",
    "scalar_value",
    "shared",
    "subgraphs",
]
