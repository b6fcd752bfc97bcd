"""Scaled dot-product attention as one operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import onnx_ir as ir

from onnxlathe.infer import Dims, dims_of
from onnxlathe.rewrite import (
    Builder,
    NodeRule,
    attribute,
    option,
    reject,
    require,
)
from onnxlathe_passes.causal import is_causal
from onnxlathe_passes.conditions import FLOATS, HALVES, from_front, int64, producer, used_once
from onnxlathe_passes.fold_scale import by_number
from onnxlathe_passes.grouped_heads import Repeated
from onnxlathe_passes.noop_views import permutation
from onnxlathe_passes.regroup import reshaped

_FAST = 256
"""Keys up to which ONNX Runtime's CUDA kernel for float32 is faster than its products on tensor cores (H200)."""


@dataclass(frozen=True)
class Scores:
    """What the weights of an attention are computed from: softmax(scale·q·kᵀ + mask).

    Attributes:
        q: queries, `[batch, heads, seq, size]` or, in groups, `[batch, groups, times, seq, size]`.
        turned: keys with the last two axes exchanged.
        scale: the factors of q, k and their product, multiplied.
        mask: what is added.
        softmax: the type in which the weights are computed.
    """

    q: ir.Value
    turned: ir.Value
    scale: float
    mask: ir.Value | None
    softmax: ir.DataType

    @classmethod
    def of(cls, weights: ir.Value | None, opset: int) -> Scores:
        """Follow the weights upwards.

        Raises:
            NoMatch: they are computed in another way.
        """
        softmax = producer(_uncast(weights), "Softmax")
        if weights is None or softmax is None or softmax.inputs[0] is None:
            reject("its first operand is no Softmax")
        scores = softmax.inputs[0]
        require(used_once(weights) and used_once(softmax.outputs[0]), "its weights are used elsewhere")
        dims = dims_of(scores)
        require(dims is not None and len(dims) in (4, 5), "its scores have another rank than 4 and 5")
        assert dims is not None
        last = from_front([int(attribute(softmax, "axis", opset))], len(dims))
        require(last == [len(dims) - 1], "its Softmax is over another axis")
        precision = scores.dtype
        assert precision is not None
        mask, scale = None, 1.0
        value: ir.Value | None = scores
        while True:
            value = _uncast(value)
            require(value is not None and used_once(value), "its scores are used elsewhere")
            node = producer(value, "Add", "Mul", "Div", "MatMul")
            if node is None or value is None:
                reject("there is something else between its products")
            if node.op_type == "MatMul":
                break
            if node.op_type == "Add":
                require(mask is None and scale == 1.0, "its mask is scaled, or there are two")
                rest, mask = _addend(node)
                value = rest
                continue
            scaled, factor = _unscaled(value)
            require(scaled is not value, "its scores are multiplied by what is no number")
            scale, value = scale * factor, scaled
        q, q_scale = _unscaled(node.inputs[0])
        turned, k_scale = _unscaled(node.inputs[1])
        if q is None or turned is None:
            reject("an operand is left out")
        return cls(q, turned, scale * q_scale * k_scale, mask, precision)


@dataclass(frozen=True)
class Attention(NodeRule):
    """Softmax(scale·q·kᵀ + mask)·v as one Attention.

    TensorRT and ONNX Runtime have kernels for it that never write the scores to memory (FlashAttention, Dao
    et al. 2022). TensorRT has them in float16 and bfloat16 alone, so that its place is after `precision`; a
    Softmax that was kept in float32 becomes the operator's `softmax_precision`. Keys and values that groups
    of heads share stay shared. A mask that hides what comes after each position is said with `is_causal`,
    with which kernels do half the work. Rows whose mask is -inf throughout are NaN before and 0 after.
    """

    name = "attention"
    min_opset = 23
    reach = 10
    example = """
    %w = Softmax(Add(Mul(MatMul(%q, Transpose(%k, [0, 1, 3, 2])), 0.125), %mask))
    %y = MatMul(%w, %v)                              # q, k, v: float16[batch, heads, seq, size]
    →
    %y = Attention<scale=0.125>(%q, %k, %v, %mask)
    """

    float32: bool = option(False, "in float32 too, which ONNX Runtime has a kernel for and TensorRT has not")
    fast_float32: bool = option(
        False,
        f"in float32 where ONNX Runtime's kernel is faster: heads with keys of their own, {_FAST} at most",
    )

    visits = ("MatMul",)

    def visit(self, op: Builder, node: ir.Node) -> Any:
        whole, dtype = dims_of(node.outputs[0]), node.outputs[0].dtype
        values = node.inputs[1]
        if whole is None or len(whole) not in (4, 5) or values is None:
            return None
        if producer(_uncast(node.inputs[0]), "Softmax") is None:
            return None
        require(dtype in FLOATS, "its element type is not floating point")
        float32 = self.float32 or self.fast_float32
        require(float32 or dtype in HALVES, "TensorRT has no kernel for it in float32 (see `float32`)")
        scores = Scores.of(node.inputs[0], op.opset)
        require(scores.softmax in (dtype, ir.DataType.FLOAT), "its Softmax is in a narrower type")
        q_dims = _known(scores.q)
        heads = (q_dims[0], q_dims[1], *q_dims[-2:])
        if len(q_dims) == 5:
            if not (isinstance(q_dims[1], int) and isinstance(q_dims[2], int)):
                reject("its groups are not known")
            heads = (q_dims[0], q_dims[1] * q_dims[2], *q_dims[-2:])
        require(isinstance(heads[1], int) and isinstance(heads[3], int), "its heads are not of a known size")
        keys = _keys(op, scores.turned)
        keys, shared = (without_group(op, v) for v in unrepeated(keys, values) or (keys, values))
        k_dims, v_dims = _known(keys), _known(shared)
        require(k_dims[0] == heads[0] and v_dims[0] == heads[0], "its operands differ in their batch")
        require(k_dims[1:3] == v_dims[1:3], "its keys and values differ in number")
        alike = k_dims[3] == v_dims[3] or dtype not in HALVES
        require(alike, "its keys and values differ in size, which TensorRT has no kernel for")
        count, groups = heads[1], k_dims[1]
        if not (isinstance(count, int) and isinstance(groups, int) and groups and count % groups == 0):
            reject("its keys cannot be shared out among its heads")
        if not self.float32 and dtype not in HALVES:
            short = isinstance(k_dims[2], int) and k_dims[2] <= _FAST
            require(short and groups == count, "in float32 there is nothing to gain (see `fast_float32`)")
        attributes: dict[str, Any] = {"scale": scores.scale}
        mask = None
        if scores.mask is not None and heads[2] == k_dims[2] and is_causal(scores.mask, op.opset):
            attributes["is_causal"] = 1
        else:
            mask = _mask(op, scores, (*heads[:3], k_dims[2]), dtype)
        if scores.softmax != dtype:
            attributes["softmax_precision"] = scores.softmax.value
        result = op.Attention(reshaped(op, scores.q, heads), keys, shared, mask, **attributes)
        if len(whole) == 4:
            return result
        return reshaped(op, result, whole, (*heads[:3], whole[-1]))


def _uncast(value: ir.Value | None) -> ir.Value | None:
    """What is cast, where nothing else uses the outcome."""
    cast = producer(value, "Cast")
    if cast is None or value is None or not used_once(value):
        return value
    source = cast.inputs[0]
    return source if source is not None and source.dtype in FLOATS else value


def _unscaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """A value without the number that it is multiplied by."""
    node = producer(value, "Mul", "Div")
    if node is None or value is None or not used_once(value):
        return value, 1.0
    found = by_number(node)
    return (node.inputs[found[0]], found[1]) if found is not None else (value, 1.0)


def _addend(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """The scores and the mask that is added to them."""
    found = [
        (rest, other)
        for rest, other in (node.inputs, node.inputs[::-1])
        if rest is not None and other is not None
        if producer(_unscaled(_uncast(rest))[0], "MatMul") is not None
    ]
    if len(found) != 1:
        reject("which operand is its mask is not known")
    return found[0]


def _known(value: ir.Value) -> Dims:
    dims = dims_of(value)
    if dims is None or None in dims or len(dims) not in (4, 5):
        reject(f"the shape of {value.name} is not known")
    return dims


def _keys(op: Builder, turned: ir.Value) -> ir.Value:
    """Keys as `[…, seq, size]`, given with the last two axes exchanged."""
    axes = len(_known(turned))
    exchange = [*range(axes - 2), axes - 1, axes - 2]
    transpose = producer(turned, "Transpose")
    source = transpose.inputs[0] if transpose is not None else None
    if transpose is None or source is None:
        return _with_axes(op.Transpose(turned, perm=exchange), turned, exchange)
    perm = permutation(transpose, op.opset)
    assert perm is not None
    restored = [perm[i] for i in exchange]
    if restored == sorted(restored):
        return source
    return _with_axes(op.Transpose(source, perm=restored), source, restored)


def unrepeated(keys: ir.Value | None, values: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """Keys and values once for each group of heads, where both are repeated.

    Raises:
        NoMatch: they are repeated in different ways.
    """
    one, other = Repeated.of(keys), Repeated.of(values)
    if one is None or other is None:
        return None
    same = (one.groups, one.times) == (other.groups, other.times)
    require(same, "its keys are repeated otherwise than its values")
    return one.heads, other.heads


def without_group(op: Builder, heads: ir.Value) -> ir.Value:
    """`[batch, groups, 1, seq, size]` as `[batch, groups, seq, size]`."""
    dims = _known(heads)
    if len(dims) == 4:
        return heads
    require(dims[2] == 1, "its keys or values differ within a group")
    unsqueeze = producer(heads, "Unsqueeze", "Reshape")
    short = (*dims[:2], *dims[3:])
    if unsqueeze is not None and unsqueeze.inputs[0] is not None and dims_of(unsqueeze.inputs[0]) == short:
        return unsqueeze.inputs[0]
    return _with_axes(op.Squeeze(heads, int64([2])), heads, [0, 1, 3, 4])


def _mask(op: Builder, scores: Scores, shape: Dims, dtype: ir.DataType | None) -> ir.Value | None:
    """The mask in the type and for the shape of the scores, `[batch, heads, queries, keys]`."""
    mask = scores.mask
    if mask is None:
        return None
    dims = dims_of(mask)
    require(dims is not None and None not in dims, "its mask's shape is not known")
    assert dims is not None
    if len(_known(scores.q)) == 5 and len(dims) > 2:
        require(set(dims[-4:-2]) == {1}, "its mask differs between heads")
        axes = [axis for axis in range(len(dims)) if axis != len(dims) - 3]
        mask = _with_axes(op.Squeeze(mask, int64([len(dims) - 3])), mask, axes)
        dims = (*dims[:-3], *dims[-2:])
    require(0 < len(dims) <= 4 and dims[-1] == shape[-1], "its mask is not over all keys")
    fits = all(d in (1, s) for d, s in zip(dims[::-1], shape[::-1], strict=False))
    require(fits, "its mask is not of the scores' shape")
    if mask.dtype != dtype:
        # What float32 has for -∞ must stay a number, or a row that is masked as a whole is none; and not the
        # lowest, which ONNX Runtime takes for -∞.
        assert dtype is not None
        if dtype in HALVES:
            mask = op.Max(mask, op.constant(float(ml_dtypes.finfo(dtype.numpy()).min) / 2, mask.dtype))
        mask = op.Cast(mask, to=dtype.value)
    if len(dims) > 1 and dims[-2] == shape[-2]:
        return mask
    # ONNX Runtime does not broadcast a mask over queries.
    wide: ir.Value
    if isinstance(shape[-2], int):
        wide = op.Expand(mask, int64([shape[-2], 1]))
        return wide
    rows = op.Shape(mask, start=-1) if shape[-1] == shape[-2] else op.Shape(scores.q, start=-2, end=-1)
    wide = op.Expand(mask, op.Concat(rows, int64([1]), axis=0))
    return wide


def _with_axes(made: ir.Value, source: ir.Value, axes: Sequence[int]) -> ir.Value:
    """A new value, whose axes are these of another one, with its type and shape."""
    assert source.shape is not None
    made.shape, made.type = ir.Shape([source.shape[axis] for axis in axes]), source.type
    return made
