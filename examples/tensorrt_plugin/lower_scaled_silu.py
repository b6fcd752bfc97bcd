"""Lower an operator of our own to a node that TensorRT resolves to a plugin.

    optimize model.onnx --plugin examples/tensorrt_plugin/lower_scaled_silu.py --passes shapes,scaled_silu_plugin

The exporter wrote `com.acme::ScaledSilu(x, scale)` with the scale as a constant input. The plugin
`ScaledSilu_TRT` takes it as an attribute. TensorRT's parser looks a node that it does not know up in the
plugin registry: by its operator type, `plugin_version` and `plugin_namespace`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxlathe import Rule, option
from onnxlathe.rewrite import Builder, Pattern, PatternBuilder, const, require, scalar_value


@dataclass(frozen=True)
class ScaledSiluPlugin(Rule):
    """Make com.acme::ScaledSilu(x, scale) a node for the TensorRT plugin ScaledSilu_TRT."""

    name = "scaled_silu_plugin"
    example = """
    %y = com.acme::ScaledSilu(%x, 1.5)
    →
    %y = trt.plugins::ScaledSilu_TRT<scale=1.5>(%x)
    """

    version: str = option("1", "version of the plugin")
    namespace: str = option("", "namespace that the plugin is registered in")

    def pattern(self, op: PatternBuilder, x: Pattern, scale: Pattern) -> Any:
        return op.ScaledSilu(x, const(scale), _domain="com.acme")

    def rewrite(self, op: Builder, x: ir.Value, scale: ir.Value) -> Any:
        number = scalar_value(scale)
        require(number is not None, "its scale is not one number")
        return op.ScaledSilu_TRT(
            x,
            _domain="trt.plugins",
            scale=number,
            plugin_version=self.version,
            plugin_namespace=self.namespace,
        )


PASSES = [ScaledSiluPlugin]
