"""Fourier transforms as products with matrices of sines and cosines, constant where the length is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import Dim
from onnxlathe.rewrite import require
from onnxlathe_passes.legalize.draft import (
    FLOATS,
    Draft,
    contents,
    element_type,
    extent,
    given,
    lowers,
    operand,
    rank_of,
    static_or_none,
    value_of,
)

_LONGEST = 4096


def _transformed(
    op: Draft, real: ir.Value, imag: ir.Value | None, length: int, out: int, inverse: bool
) -> tuple[ir.Value, ir.Value]:
    """The transform along the last axis; real and imaginary part."""
    require(length <= _LONGEST, "too long for a matrix")
    size = extent(real, -1)
    used = min(size, length)
    if used < size:
        real = op.slice(real, -1, 0, used)
        imag = op.slice(imag, -1, 0, used) if imag is not None else None
    # Angles are reduced before they are multiplied, which keeps them exact.
    turns = np.outer(np.arange(used), np.arange(out)) % length
    angle = 2.0 * np.pi * turns / length * (1.0 if inverse else -1.0)
    factor = 1.0 / length if inverse else 1.0
    return _products(
        op, real, imag, op.like(np.cos(angle) * factor, real), op.like(np.sin(angle) * factor, real)
    )


def _products(
    op: Draft, real: ir.Value, imag: ir.Value | None, cosine: ir.Value, sine: ir.Value
) -> tuple[ir.Value, ir.Value]:
    first, second = op.MatMul(real, cosine), op.MatMul(real, sine)
    if imag is not None:
        first = op.Sub(first, op.MatMul(imag, sine))
        second = op.Add(second, op.MatMul(imag, cosine))
    return first, second


def _open(
    op: Draft, real: ir.Value, imag: ir.Value | None, x: ir.Value, axis: int, inverse: bool
) -> tuple[ir.Value, ir.Value]:
    """The same for a length that is known at run time only: the sines are computed then.

    float32 holds the products of places below 4096 exactly, and turns are counted from the nearest whole one.
    """
    kind = element_type(x)
    size = op.Shape(x, start=axis, end=axis + 1)
    places = op.Range(op.constant(np.int64(0)), op.squeeze(size, 0), op.constant(np.int64(1)))
    numbers, length = op.cast(places, ir.DataType.FLOAT), op.cast(size, ir.DataType.FLOAT)
    products = op.Mul(op.unsqueeze(numbers, 1), numbers)
    turns = op.Sub(products, op.Mul(op.Round(op.Div(products, length)), length))
    angle = op.Mul(op.Div(turns, length), op.like(2.0 * np.pi * (1.0 if inverse else -1.0), length))
    cosine, sine = op.Cos(angle), op.Sin(angle)
    if inverse:
        cosine, sine = op.Div(cosine, length), op.Div(sine, length)
    return _products(op, real, imag, op.cast(cosine, kind), op.cast(sine, kind))


@lowers("DFT")
def dft(op: Draft, node: ir.Node) -> ir.Value:
    """X_k = sum_n x_n exp(-2 pi i n k / N)."""
    x = given(node, 0)
    require(element_type(x) in FLOATS, "not floats")
    rank = rank_of(x)
    axis_operand = operand(node, 2)
    if axis_operand is not None:
        axis = int(contents(axis_operand).reshape(-1)[0])
    else:
        axis = int(value_of(node, "axis", op, 1 if op.opset < 20 else -2))
    axis %= rank
    require(axis < rank - 1, "the axis is that of the parts")
    length_operand = operand(node, 1)
    onesided = bool(value_of(node, "onesided", op, 0))
    inverse = bool(value_of(node, "inverse", op, 0))
    to_real = onesided and inverse
    dims = static_or_none(x)
    is_open = length_operand is None and not onesided and dims is not None and isinstance(dims[axis], Dim)
    if length_operand is not None:
        length = int(contents(length_operand).reshape(-1)[0])
    elif not is_open:
        length = 2 * (extent(x, axis) - 1) if to_real else extent(x, axis)
    order = [i for i in range(rank - 1) if i != axis] + [axis]
    back = [order.index(i) for i in range(rank - 1)]
    parts = []
    for part in range(extent(x, -1)):
        flat = op.squeeze(op.slice(x, -1, part, part + 1), -1)
        parts.append(op.Transpose(flat, perm=order) if order != sorted(order) else flat)
    real, imag = parts[0], parts[1] if len(parts) > 1 else None
    if is_open:
        results = _open(op, real, imag, x, axis, inverse)
    else:
        if to_real:
            real, imag = _mirrored(op, real, imag, length)
        out = length // 2 + 1 if onesided and not inverse else length
        results = _transformed(op, real, imag, length, out, inverse)
    turned = [op.Transpose(r, perm=back) if order != sorted(order) else r for r in results]
    if to_real:
        return op.unsqueeze(turned[0], -1)
    result: ir.Value = op.Concat(*(op.unsqueeze(r, -1) for r in turned), axis=-1)
    return result


def _mirrored(
    op: Draft, real: ir.Value, imag: ir.Value | None, length: int
) -> tuple[ir.Value, ir.Value | None]:
    """The whole spectrum of a real signal from its first half."""
    half = length // 2 + 1
    size = extent(real, -1)
    require(size >= half, "a half spectrum that is too short")
    places = [k if k < half else length - k for k in range(length)]
    signs = np.array([1.0 if k < half else -1.0 for k in range(length)])
    whole = op.Gather(real, op.ints(places), axis=-1)
    if imag is None:
        return whole, None
    return whole, op.Mul(op.Gather(imag, op.ints(places), axis=-1), op.like(signs, imag))


@lowers("STFT")
def stft(op: Draft, node: ir.Node) -> ir.Value:
    """Overlapping frames by a Gather, times the window, transformed."""
    signal = given(node, 0)
    rank = rank_of(signal)
    require(rank == 2 or extent(signal, 2) == 1, "a complex signal")
    step = int(contents(given(node, 1)).reshape(-1)[0])
    window, length_operand = operand(node, 2), operand(node, 3)
    if length_operand is not None:
        length = int(contents(length_operand).reshape(-1)[0])
    else:
        require(window is not None, "neither window nor frame length")
        length = extent(window, 0)
    flat = op.squeeze(signal, 2) if rank == 3 else signal
    count = 1 + (extent(signal, 1) - length) // step
    places = np.arange(count)[:, None] * step + np.arange(length)[None]
    frames = op.Gather(flat, op.constant(places.astype(np.int64)), axis=1)
    if window is not None:
        frames = op.Mul(frames, window)
    out = length // 2 + 1 if value_of(node, "onesided", op, 1) else length
    parts = _transformed(op, frames, None, length, out, False)
    result: ir.Value = op.Concat(*(op.unsqueeze(p, -1) for p in parts), axis=-1)
    return result
