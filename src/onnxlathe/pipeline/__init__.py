"""Pipelines: which passes there are, what a pipeline's text means, and running it."""

from onnxlathe.pipeline.invariants import broken_invariants
from onnxlathe.pipeline.plan import PRESETS, Fixpoint, Pipeline, Unit, plan
from onnxlathe.pipeline.recipe import Recipe, load_recipe
from onnxlathe.pipeline.records import StepRecord
from onnxlathe.pipeline.registry import GROUP, Registered, Registry, suggestion
from onnxlathe.pipeline.runner import Budget, Runner
from onnxlathe.pipeline.text import Item, Size, parse, parse_size

__all__ = [
    "GROUP",
    "PRESETS",
    "Budget",
    "Fixpoint",
    "Item",
    "Pipeline",
    "Recipe",
    "Registered",
    "Registry",
    "Runner",
    "Size",
    "StepRecord",
    "Unit",
    "broken_invariants",
    "load_recipe",
    "parse",
    "parse_size",
    "plan",
    "suggestion",
]
