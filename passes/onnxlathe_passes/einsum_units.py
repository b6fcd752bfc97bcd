"""Axes of size 1 that an Einsum can make by itself."""

from __future__ import annotations

import string
from typing import Any

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.rewrite import Builder, NodeRule, attribute, is_constant
from onnxlathe_passes.conditions import producer, used_once
from onnxlathe_passes.views import axes_of
from onnxlathe_passes.weights import derived, tensor_of

_LARGEST = 1 << 20


class EinsumUnits(NodeRule):
    """Unsqueeze(Einsum(x, w)) = Einsum(x, w with axes of size 1 more), for a constant w.

    So decomposed relative positions (ViTDet, Li et al. 2022; SAM) get the axis along which they are repeated.
    """

    name = "einsum_units"
    group = "fuse"
    min_opset = 12
    example = """
    %r = Einsum(%q, %w, equation="bhwc,hkc->bhwk")           # w: [14, 14, 64]
    %y = Unsqueeze(%r, [4])
    →
    %y = Einsum(%q, %w1, equation="bhwc,hkca->bhwka")        # w1: [14, 14, 64, 1]
    """

    visits = ("Unsqueeze",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        value = node.inputs[0]
        einsum = producer(value, "Einsum")
        axes = axes_of(node, op.opset)
        if einsum is None or value is None or axes is None or not used_once(value):
            return None
        terms, arrow, result = attribute(einsum, "equation", op.opset).replace(" ", "").partition("->")
        labels = terms.split(",")
        spare = [label for label in string.ascii_lowercase if label not in terms]
        if not arrow or "." in terms or len(labels) != len(einsum.inputs) or len(spare) < len(axes):
            return None
        places = [i for i, v in enumerate(einsum.inputs) if v is not None and _fits(v)]
        if not places:
            return None
        place = places[-1]
        weight = einsum.inputs[place]
        assert weight is not None
        source, new = tensor_of(weight), spare[: len(axes)]
        shape = [*(int(d) for d in source.shape.numpy()), *(1 for _ in axes)]
        written = list(result)
        for axis, label in zip(axes, new, strict=True):
            written.insert(axis, label)
        labels[place] += "".join(new)
        inputs: list[Any] = list(einsum.inputs)
        inputs[place] = derived(op, weight, shape, lambda: source.numpy().reshape(shape))
        return op.Einsum(*inputs, equation=f"{','.join(labels)}->{''.join(written)}")


def _fits(value: ir.Value) -> bool:
    return is_constant(value) and dims_of(value) is not None and tensor_of(value).nbytes <= _LARGEST
