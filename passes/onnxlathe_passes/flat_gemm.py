"""A Gemm that is wrapped in Reshapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.model import transposed
from onnxlathe.rewrite import Builder, Bytes, NodeRule, attribute, is_constant, option, require
from onnxlathe_passes.conditions import FLOATS, operand, producer, used_once
from onnxlathe_passes.regroup import reshaped
from onnxlathe_passes.weights import may_copy, number_of, tensor_of


@dataclass(frozen=True)
class FlatGemm(NodeRule):
    """Reshape(Gemm(Reshape(x, [-1, k]), w, b), […, n]) = MatMul(x, w) + b, for x of three or more axes.

    MatMul does the flattening by itself.
    """

    name = "flat_gemm"
    group = "fuse"
    min_opset = 7
    reach = 3
    example = """
    %a = Reshape(%x, [-1, 64])              # x: [batch, seq, 64]
    %b = Gemm(%a, %w, %c)
    %y = Reshape(%b, [0, -1, 32])           # y: [batch, seq, 32]
    →
    %y = Add(MatMul(%x, %w), %c)
    """

    max_copy: Bytes = option(1 << 20, "largest weight that is copied because something else uses it too")

    visits = ("Reshape",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        gemm = producer(node.inputs[0], "Gemm")
        before = producer(gemm.inputs[0], "Reshape", "Flatten") if gemm is not None else None
        if gemm is None or before is None:
            return None
        x, w, c = before.inputs[0], gemm.inputs[1], operand(gemm, 2)
        after, weight = dims_of(node.outputs[0]), dims_of(gemm.inputs[1]) if gemm.inputs[1] else None
        if x is None or w is None or after is None or weight is None:
            return None
        require(used_once(gemm.outputs[0]), "its Gemm is used elsewhere")
        require(w.dtype in FLOATS, "it is not floating point")
        require(not attribute(gemm, "transA", op.opset), "it is transposed")
        factors = [number_of(gemm, name, op.opset, 1) for name in ("alpha", "beta")]
        require(factors == [1, 1], "it has factors")
        turned = bool(attribute(gemm, "transB", op.opset))
        k, n = reversed(weight) if turned else weight
        require(len(after) > 2 and after[-1] == n, "its result is not in rows of the Gemm's")
        x = reshaped(op, x, (*after[:-1], k))
        if turned:
            require(is_constant(w) and may_copy(w, self.max_copy), f"{w.name} cannot be transposed")
            w = op.weight(transposed(tensor_of(w)), w.name or "")
        product = op.MatMul(x, w)
        if c is None:
            return product
        dims = dims_of(c)
        require(
            dims is not None and dims[-1:] in ((), (1,), (n,)) and all(d == 1 for d in dims[:-1]),
            "its bias varies along the rows",
        )
        return op.Add(product, c)
