"""Detection heads: regions pooled by products with interpolation matrices that are computed from the regions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import require
from onnxlathe_passes.legalize.draft import Draft, given, lowers, operand, static_dims, value_of

T = ir.DataType


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@lowers("RoiAlign")
def roi_align(op: Draft, node: ir.Node) -> ir.Value:
    """Bilinear interpolation is separable: rows times image times columns, averages folded into both.

    For the average of the samples. Where their number follows each region's size, it is right for regions up to
    twice as high and wide as the image. A NaN or infinity anywhere in an image reaches all of its regions,
    because it is multiplied by weights that are zero.
    """
    x, rois, batch = (given(node, i) for i in range(3))
    samples = int(value_of(node, "sampling_ratio", op, 0))
    require(_text(value_of(node, "mode", op, "avg")) == "avg", "the largest sample is asked for")
    height, width = static_dims(x)[2:]
    half = _text(value_of(node, "coordinate_transformation_mode", op, "half_pixel")) == "half_pixel"
    scale = float(value_of(node, "spatial_scale", op, 1.0))
    outputs = [int(value_of(node, name, op, 1)) for name in ("output_height", "output_width")]
    corners = op.Mul(rois, op.like(scale, rois))
    if half:
        corners = op.Sub(corners, op.like(0.5, rois))
    matrices = []
    for low, size, bins in ((1, height, outputs[0]), (0, width, outputs[1])):
        start, end = op.slice(corners, 1, low, low + 1), op.slice(corners, 1, low + 2, low + 3)
        extent = op.Sub(end, start)
        if not half:
            extent = op.Max(extent, op.like(1.0, rois))
        most = samples or -(-2 * size // bins)
        step = op.Div(extent, op.like(float(bins), rois))
        count = op.Ceil(step) if not samples else op.like(np.full((1, 1), float(samples)), rois)
        # Places of the samples, [regions, bins * most]; those beyond their number weigh nothing.
        sample = op.like(np.tile(np.arange(most) + 0.5, bins)[None], rois)
        counts = op.Max(count, op.like(1.0, rois))
        offset = op.Add(op.like(np.repeat(np.arange(bins), most)[None], rois), op.Div(sample, counts))
        places = op.Add(start, op.Mul(step, offset))
        used = op.Less(sample, count)
        inside = op.And(
            op.Not(op.Less(places, op.like(-1.0, rois))), op.Not(op.Less(op.like(float(size), rois), places))
        )
        clamped = op.Min(op.Max(places, op.like(0.0, rois)), op.like(size - 1.0, rois))
        distance = op.Abs(op.Sub(op.unsqueeze(clamped, 2), op.like(np.arange(size)[None, None], rois)))
        weights = op.Max(op.Sub(op.like(1.0, rois), distance), op.like(0.0, rois))
        weights = op.Where(op.unsqueeze(op.And(inside, used), 2), weights, op.like(0.0, rois))
        total = op.reduce("Sum", op.Reshape(weights, op.ints([0, bins, most, size])), [2], keepdims=False)
        matrices.append(op.unsqueeze(op.Div(total, op.unsqueeze(counts, 2)), 1))
    images = op.Gather(x, batch, axis=0)
    columns = op.MatMul(images, op.Transpose(matrices[1], perm=[0, 1, 3, 2]))
    result: ir.Value = op.MatMul(matrices[0], columns)
    return result


@lowers("DeformConv")
def deform_conv(op: Draft, node: ir.Node) -> ir.Value:
    """The places that the kernel reaches by a GridSample, and a product with the weights."""
    x, w, offset = (given(node, i) for i in range(3))
    bias, mask = operand(node, 3), operand(node, 4)
    batch, channels, height, width = static_dims(x)
    filters, per_group, kh, kw = static_dims(w)
    groups = channels // per_group
    parts = int(value_of(node, "offset_group", op, 1))
    strides = [int(v) for v in value_of(node, "strides", op, [1, 1]) or [1, 1]]
    dilations = [int(v) for v in value_of(node, "dilations", op, [1, 1]) or [1, 1]]
    pads = [int(v) for v in value_of(node, "pads", op, [0] * 4) or [0] * 4]
    oh, ow = static_dims(offset)[2:]
    require(height > 1 and width > 1, "a grid of one line has no coordinates")
    area = kh * kw
    # [batch * parts, area, 2, oh, ow]: how far from its place each kernel element looks, y first.
    moved = op.reshape(offset, [batch * parts, area, 2, oh, ow])
    grid = []
    for axis, (size, kernel, out) in enumerate(((height, kh, oh), (width, kw, ow))):
        element = np.arange(area) // kw if axis == 0 else np.arange(area) % kw
        base = np.arange(out) * strides[axis] - pads[axis]
        place = element[:, None] * dilations[axis] + base[None]
        table = place[:, :, None] if axis == 0 else place[:, None, :]
        assert kernel > 0
        own = op.squeeze(op.slice(moved, 2, axis, axis + 1), 2)
        at = op.Add(own, op.like(np.broadcast_to(table, (area, oh, ow))[None], x))
        scaled = op.Sub(op.Mul(at, op.like(2.0 / (size - 1), x)), op.like(1.0, x))
        grid.append(op.unsqueeze(op.reshape(scaled, [batch * parts, area * oh, ow]), 3))
    image = op.reshape(x, [batch * parts, channels // parts, height, width])
    sampled = op.GridSample(
        image,
        op.Concat(grid[1], grid[0], axis=3),
        mode="linear" if op.opset >= 20 else "bilinear",
        padding_mode="zeros",
        align_corners=1,
    )
    sampled = op.reshape(sampled, [batch, parts, channels // parts, area, oh * ow])
    if mask is not None:
        sampled = op.Mul(sampled, op.reshape(mask, [batch, parts, 1, area, oh * ow]))
    columns = op.reshape(sampled, [batch, groups, per_group * area, oh * ow])
    weights = op.reshape(w, [1, groups, filters // groups, per_group * area])
    result = op.reshape(op.MatMul(weights, columns), [batch, filters, oh, ow])
    return result if bias is None else op.Add(result, op.reshape(bias, [1, filters, 1, 1]))
