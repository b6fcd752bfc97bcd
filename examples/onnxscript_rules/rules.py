"""An onnxscript rule set in the middle of a pipeline.

    optimize model.onnx --plugin examples/onnxscript_rules/rules.py --passes shapes,relu6,tidy

The rules are written for onnxscript's rewriter and know nothing of OnnxLathe.
"""

from __future__ import annotations

from typing import Any

from onnxscript.rewriter.pattern import RewriteRule, RewriteRuleSet

from onnxlathe.adapters import from_onnxscript


def min_of_relu(op: Any, x: Any, six: Any) -> Any:
    return op.Min(op.Relu(x), six)


def clip(op: Any, x: Any, six: Any) -> Any:
    return op.Clip(x, op.CastLike(op.Constant(value_float=0.0), x), six)


def is_scalar(context: Any, six: Any, **_: Any) -> bool:
    return six.const_value is not None and six.const_value.numpy().ndim == 0


def twice_negated(op: Any, x: Any) -> Any:
    return op.Neg(op.Neg(x))


def itself(op: Any, x: Any) -> Any:
    return op.Identity(x)


RULES = RewriteRuleSet([RewriteRule(min_of_relu, clip, is_scalar), RewriteRule(twice_negated, itself)])

PASSES = [from_onnxscript(RULES, name="relu6", doc="Min(Relu(x), c) is Clip(x, 0, c); Neg(Neg(x)) is x.")]
