"""Matrix products with what belongs to them: Gemm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import (
    Builder,
    Bytes,
    Pattern,
    PatternBuilder,
    Rule,
    any_of,
    attr,
    attribute,
    const,
    is_constant,
    option,
    optional,
    require,
)
from onnxlathe_passes.conditions import FLOATS
from onnxlathe_passes.weights import attributes_of, may_copy, number_of, numbers, scaled


def _is_matrix(value: ir.Value) -> bool:
    return len(dims_of(value) or ()) == 2


class MatMulAdd(Rule):
    """Fuse MatMul of two matrices and the constant added to its columns into Gemm.

    A MatMul of higher rank stays: flattening it for a Gemm and back costs two nodes, and TensorRT fuses the
    sum anyway.
    """

    name = "matmul_add"
    group = "fuse"
    min_opset = 7
    example = """
    %y = Add(MatMul(%x, %w), %b)        # x: [n, 64], w: [64, 32], b: [32]
    →
    %y = Gemm(%x, %w, %b)
    """

    def pattern(self, op: PatternBuilder, x: Pattern, w: Pattern, b: Pattern) -> Any:
        return op.Add(op.MatMul(x, w), const(b))

    def rewrite(self, op: Builder, x: ir.Value, w: ir.Value, b: ir.Value) -> Any:
        require(_is_matrix(x) and _is_matrix(w), "its operands are not matrices")
        require(w.dtype in FLOATS, "it is not floating point")
        columns, dims = (dims_of(w) or ())[1], dims_of(b)
        require(
            dims is not None
            and len(dims) <= 2
            and all(d in (1, columns) for d in dims[-1:])
            and dims[:-1] in ((), (1,)),
            "what is added is not one number per column",
        )
        return op.Gemm(x, w, b)


class GemmTranspose(Rule):
    """Take the transposition of a matrix into the Gemm or MatMul that uses it."""

    name = "gemm_transpose"
    group = "fuse"
    min_opset = 7
    example = """
    %y = Gemm(%x, Transpose<perm=[1, 0]>(%w), %b)
    →
    %y = Gemm<transB=1>(%x, %w, %b)
    """

    def pattern(self, op: PatternBuilder, x: Pattern, w: Pattern, b: Pattern) -> Any:
        xt, wt = op.Transpose(x, perm=attr("perm")), op.Transpose(w, perm=attr("perm"))
        bias = optional(b)
        return any_of(
            any_of(op.Gemm(xt, w, bias, _name="node"), op.MatMul(xt, w, _name="node")),
            any_of(op.Gemm(x, wt, bias, _name="node"), op.MatMul(x, wt, _name="node")),
            tag="right",
        )

    def rewrite(
        self,
        op: Builder,
        node: ir.Node,
        x: ir.Value,
        w: ir.Value,
        right: int,
        perm: Any,
        b: ir.Value | None = None,
    ) -> Any:
        require(_is_matrix(x) and _is_matrix(w) and perm in (None, (1, 0)), "its operands are not matrices")
        require(w.dtype in FLOATS, "it is not floating point")
        name = "transB" if right else "transA"
        flag = 0 if attribute(node, name, op.opset) else 1
        return op.node("Gemm", [x, w, b], {**attributes_of(node, name), name: flag or None}).outputs[0]


@dataclass(frozen=True)
class GemmFactors(Rule):
    """Multiply the factors alpha and beta of a Gemm into its constant weight and bias.

    TensorRT makes two layers of each of them.
    """

    name = "gemm_factors"
    group = "fuse"
    min_opset = 7
    example = """
    %y = Gemm<alpha=0.5, beta=2>(%x, %w, %b)
    →
    %y = Gemm(%x, %w·0.5, %b·2)
    """

    max_copy: Bytes = option(1 << 20, "largest weight that is copied because something else uses it too")

    def pattern(self, op: PatternBuilder, x: Pattern, w: Pattern, b: Pattern) -> Any:
        return op.Gemm(x, w, optional(b), _name="node")

    def rewrite(self, op: Builder, node: ir.Node, x: ir.Value, w: ir.Value, b: ir.Value | None) -> Any:
        alpha, beta = number_of(node, "alpha", op.opset, 1), number_of(node, "beta", op.opset, 1)
        require(w.dtype in FLOATS, "it is not floating point")
        left: list[str] = []
        if alpha != 1 and is_constant(w) and may_copy(w, self.max_copy):
            w = scaled(op, w, np.array(alpha))
            left.append("alpha")
        if beta != 1 and b is not None and is_constant(b):
            b = op.constant(numbers(b) * beta, b.dtype, name=b.name or "")
            left.append("beta")
        require(left, "its factors are 1, or not of constants")
        return op.node("Gemm", [x, w, b], attributes_of(node, *left)).outputs[0]
