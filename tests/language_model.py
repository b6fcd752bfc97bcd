"""A small decoder laid out as ONNX Runtime's generator of language models writes them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MS = "com.microsoft"


@dataclass
class Decoder:
    """Weights of four bits, norms and attention as operators of ONNX Runtime, one cache a layer.

    Attributes:
        cache: positions that the cache holds, where it does not grow.
    """

    layers: int = 2
    heads: int = 4
    groups: int = 2
    size: int = 16
    words: int = 64
    cache: int | None = None
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))

    @property
    def width(self) -> int:
        """Of the hidden state."""
        return self.heads * self.size

    def weight(self, name: str, array: np.ndarray) -> str:
        """An initializer's name."""
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def node(
        self, op: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: object
    ) -> str:
        """Add a node; the name of its first output."""
        self.nodes.append(
            helper.make_node(op, inputs, outputs, name=f"n/{outputs[0]}", domain=domain, **attributes)
        )
        return outputs[0]

    def product(self, x: str, depth: int, width: int, name: str) -> str:
        """A MatMul with weights of four bits."""
        blocks = depth // 32
        packed = self.rng.integers(0, 256, (width, blocks, 16)).astype(np.uint8)
        scales = self.rng.uniform(0.01, 0.04, (width, blocks)).astype(np.float32)
        inputs = [x, self.weight(f"{name}.q", packed), self.weight(f"{name}.s", scales)]
        return self.node("MatMulNBits", inputs, [name], MS, K=depth, N=width, bits=4, block_size=32)

    def model(self) -> onnx.ModelProto:
        """The model."""
        one = self.weight("one", np.array(1, np.int64))
        lengths = self.node(
            "ReduceSum", ["attention_mask", self.weight("axis", np.array([1]))], ["sum"], keepdims=0
        )
        ends = self.node("Cast", [self.node("Sub", [lengths, one], ["last"])], ["ends"], to=TensorProto.INT32)
        size = self.node("Gather", [self.node("Shape", ["attention_mask"], ["shape"]), one], ["size"])
        total = self.node("Cast", [size], ["total"], to=TensorProto.INT32)
        table = self.weight("table", self.rng.standard_normal((self.words, self.width)).astype(np.float32))
        state = self.node("Gather", [table, "input_ids"], ["embedded"])
        half = self.size // 2
        angles = np.outer(np.arange(64), 10000.0 ** (-np.arange(half) / half)).astype(np.float32)
        turns = [self.weight("cos", np.cos(angles)), self.weight("sin", np.sin(angles))]
        norm = self.weight("norm", np.linspace(0.5, 1.5, self.width, dtype=np.float32))
        x = self.node("SimplifiedLayerNormalization", [state, norm], ["normed"], axis=-1, epsilon=1e-6)
        past, after = self.cache or "past_sequence_length", self.cache or "total_sequence_length"
        inputs = [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"]),
            helper.make_tensor_value_info(
                "attention_mask", TensorProto.INT64, ["batch", "total_sequence_length"]
            ),
        ]
        outputs = [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", self.words])
        ]
        for i in range(self.layers):
            sizes = {"q": self.heads, "k": self.groups, "v": self.groups}
            parts = [self.product(x, self.width, n * self.size, f"{i}.{k}") for k, n in sizes.items()]
            caches = [(f"past.{i}.{k}", f"present.{i}.{k}") for k in ("key", "value")]
            for old, new in caches:
                shape = ["batch", self.groups, past, self.size]
                inputs.append(helper.make_tensor_value_info(old, TensorProto.FLOAT, shape))
                shape = ["batch", self.groups, after, self.size]
                outputs.append(helper.make_tensor_value_info(new, TensorProto.FLOAT, shape))
            attended = self.node(
                "GroupQueryAttention",
                [*parts, caches[0][0], caches[1][0], ends, total, *turns],
                [f"{i}.attended", caches[0][1], caches[1][1]],
                MS, num_heads=self.heads, kv_num_heads=self.groups, do_rotary=1,
            )  # fmt: skip
            out = self.product(attended, self.width, self.width, f"{i}.out")
            rest = [f"{i}.normed", "", "", f"{i}.state"]
            x = self.node("SkipSimplifiedLayerNormalization", [state, out, norm], rest, MS, epsilon=1e-6)
            state = rest[-1]
        self.node("Identity", [self.product(x, self.width, self.words, "head")], ["logits"])
        graph = helper.make_graph(self.nodes, "decoder", inputs, outputs, self.weights)
        imports = [helper.make_opsetid("", 21), helper.make_opsetid(MS, 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)
