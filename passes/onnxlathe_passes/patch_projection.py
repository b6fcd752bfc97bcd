"""Patches of an image as rows of a product."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxlathe.infer import dims_of
from onnxlathe.model import transposed
from onnxlathe.rewrite import Builder, NodeRule, attribute, is_constant, require
from onnxlathe_passes.conditions import FLOATS, int64, operand, producer, used_once
from onnxlathe_passes.noop_views import permutation
from onnxlathe_passes.regroup import static
from onnxlathe_passes.weights import tensor_of, with_shape


class PatchProjection(NodeRule):
    """A convolution of patches that do not overlap, made into a row of tokens, as one MatMul.

    So do vision transformers begin (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words"). In float32, ONNX
    Runtime's CUDA provider multiplies matrices on tensor cores, which cuDNN has no kernel on for three
    channels: of a ViT-B/16, the convolution alone takes four percent of the time. It is two nodes more, so
    that it is not done where nobody asks for it.
    """

    name = "patch_projection"
    min_opset = 7
    reach = 3
    example = """
    %c = Conv<strides=[16, 16]>(%x, %w)                       # x: [batch, 3, 224, 224], w: [768, 3, 16, 16]
    %y = Transpose(Reshape(%c, [0, 768, 196]), [0, 2, 1])
    →
    %p = Transpose(Reshape(%x, [0, 3, 14, 16, 14, 16]), [0, 2, 4, 1, 3, 5])
    %y = MatMul(Reshape(%p, [0, 196, 768]), %m)               # m: [768, 768]
    """

    visits = ("Transpose",)

    def visit(self, op: Builder, node: ir.Node) -> ir.Value | None:
        view = producer(node.inputs[0], "Reshape", "Flatten")
        image = view.inputs[0] if view is not None else node.inputs[0]
        conv = producer(image, "Conv")
        if conv is None or image is None:
            return None
        x, weight, bias = conv.inputs[0], conv.inputs[1], operand(conv, 2)
        if x is None or weight is None or not is_constant(weight) or weight.dtype not in FLOATS:
            return None
        whole, out, tokens = (dims_of(v) for v in (x, image, node.outputs[0]))
        kernel = static(dims_of(weight) or ())
        if whole is None or out is None or tokens is None or not kernel:
            return None
        space = tuple(range(2, len(kernel)))
        perm = permutation(node, op.opset)
        require(
            perm == ((0, 2, 1) if view is not None else (0, *space, 1)),
            "what becomes of it is not a row of tokens",
        )
        sizes, counts = static(whole[2:]), static(out[2:])
        require(sizes is not None and counts is not None, "the size of its image is not known")
        assert sizes is not None
        assert counts is not None
        if view is not None:
            require(tokens[1:] == (math.prod(counts), out[1]), "what becomes of it is not a row of tokens")
            require(used_once(view.outputs[0]), "its result is used elsewhere")
        require(used_once(image), "its result is used elsewhere")
        require(attribute(conv, "group", op.opset) == 1 and whole[1] == kernel[1], "it has groups")
        require(not any(attribute(conv, "pads", op.opset) or ()), "it pads its image")
        require(attribute(conv, "auto_pad", op.opset) in (b"NOTSET", "NOTSET", "VALID"), "it pads its image")
        require(all(d == 1 for d in attribute(conv, "dilations", op.opset) or ()), "it is dilated")
        patch = kernel[2:]
        require(
            list(attribute(conv, "strides", op.opset) or [1] * len(patch)) == patch, "its patches overlap"
        )
        require(sizes == [n * p for n, p in zip(counts, patch, strict=True)], "a rest of its image is left")
        require(math.prod(patch) > 1, "its patches are single pixels")
        parts = [size for pair in zip(counts, patch, strict=True) for size in pair]
        grid, inner = [range(start, start + 2 * len(patch), 2) for start in (2, 3)]
        split = op.Reshape(x, int64([0, kernel[1], *parts]))
        rows = op.Transpose(split, perm=[0, *grid, 1, *inner])
        width = math.prod(kernel[1:])
        placed = [math.prod(counts)] if view is not None else counts
        flat = op.Reshape(rows, int64([0, *placed, width]))
        matrix = op.weight(transposed(with_shape(tensor_of(weight), [kernel[0], width])), weight.name or "")
        result: ir.Value = op.MatMul(flat, matrix)
        return result if bias is None else op.Add(result, bias)
