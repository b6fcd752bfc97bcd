"""How the hand-made models of `fixtures/tiny/` are drawn.

Every model is a function that draws on a `Sketch`; the decorator `tiny` registers it in `TINY` under the
function's name, once for each opset it is asked for. Its docstring becomes the model's `doc_string`. Weights
come from a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str | None]
TINY: dict[str, Callable[[Path], None]] = {}

FLOAT, FLOAT16, INT64, BOOL = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL


class Sketch:
    """A graph under construction. Methods return the names of the values they make."""

    def __init__(self, opset: int, prefix: str = "") -> None:
        self.opset = opset
        self.prefix = prefix
        self.random = np.random.default_rng(7)
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.domains: dict[str, int] = {}

    def input(self, name: str, shape: Shape, dtype: int = FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, shape: Shape | None = None, dtype: int = FLOAT) -> str:
        """Declare `name` a graph output; without a shape the rank stays unknown."""
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def const(self, value: Any, dtype: Any = np.float32, name: str = "") -> str:
        """An initializer with these contents."""
        name = name or f"{self.prefix}const_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weight(self, *shape: int, low: float = -1.0, high: float = 1.0, dtype: Any = np.float32) -> str:
        """An initializer of uniform random numbers."""
        name = f"{self.prefix}weight_{len(self.initializers)}"
        return self.const(self.random.uniform(low, high, shape), dtype, name)

    def op(self, op_type: str, *inputs: str, out: str | Sequence[str] = "", **attributes: Any) -> str:
        """Add a node; returns its first output. `out` names the outputs where the default will not do."""
        label = f"{self.prefix}{op_type}_{len(self.nodes)}"
        outputs = [out] if isinstance(out, str) else list(out)
        outputs[0] = outputs[0] or f"{label}_out"
        node = helper.make_node(op_type, inputs, outputs, name=label, **attributes)
        self.nodes.append(node)
        return outputs[0]

    def body(self, prefix: str) -> Sketch:
        """An empty sketch for a nested graph, with names of its own."""
        return Sketch(self.opset, prefix)

    def graph(self, name: str) -> onnx.GraphProto:
        return helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.initializers)

    def model(self, name: str, doc: str) -> onnx.ModelProto:
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(domain, version) for domain, version in self.domains.items()]
        model = helper.make_model(
            self.graph(name),
            opset_imports=opsets,
            functions=self.functions,
            producer_name="tools/export.py",
        )
        model.ir_version = (
            8 if self.opset <= 17 else 10 if self.opset <= 22 else 11 if self.opset == 23 else 12
        )
        model.doc_string = doc
        return model


def tiny(*opsets: int) -> Callable[[Callable[[Sketch], None]], Callable[[Sketch], None]]:
    """Register a drawing function; with several opsets the model's name ends in `_opN`."""

    def register(draw: Callable[[Sketch], None]) -> Callable[[Sketch], None]:
        for opset in opsets:
            name = draw.__name__ + (f"_op{opset}" if len(opsets) > 1 else "")

            def job(path: Path, opset: int = opset, name: str = name) -> None:
                sketch = Sketch(opset)
                draw(sketch)
                save(sketch.model(name, " ".join((draw.__doc__ or "").split())), path)

            TINY[name] = job
        return draw

    return register


def save(model: onnx.ModelProto, path: Path) -> None:
    if model.graph.name.startswith("external_data"):
        data = path.with_suffix(".bin")
        data.unlink(missing_ok=True)  # onnx appends
        onnx.save(model, path, save_as_external_data=True, location=data.name, size_threshold=0)
    else:
        path.write_bytes(model.SerializeToString(deterministic=True))


# --- pieces that several models use ---


def batchnorm(g: Sketch, x: str, channels: int, **named: Any) -> str:
    scale, bias, mean = (g.weight(channels) for _ in range(3))
    return g.op("BatchNormalization", x, scale, bias, mean, g.weight(channels, low=0.5, high=2), **named)


def mean(g: Sketch, x: str, axes: list[int]) -> str:
    """ReduceMean over `axes`, an attribute before opset 18 and an input since."""
    if g.opset < 18:
        return g.op("ReduceMean", x, axes=axes, keepdims=1)
    return g.op("ReduceMean", x, g.const(axes, np.int64), keepdims=1)
