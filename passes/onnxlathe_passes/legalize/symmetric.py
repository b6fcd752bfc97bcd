"""uint8 quantization around 128 is int8 quantization around 0: the only kind for which TensorRT has kernels.

The same numbers, one less by 128 each, so nothing is rounded anew. Tensors with other zero points cannot be made
symmetric without new scales; `legalize` computes those in float arithmetic instead, exactly.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxlathe.infer import constant
from onnxlathe.rewrite import Names

T = ir.DataType
_WEIGHTS = 1 << 31


def to_int8(model: ir.Model, names: Names, permit: Callable[[], bool]) -> list[tuple[ir.Node, list[ir.Node]]]:
    """Turn what can be turned.

    Args:
        model: changed in place.
        names: of the model.
        permit: asked before each tensor.

    Returns:
        For each tensor one of the nodes that changed, and all of them.
    """
    changed = []
    for node in list(model.graph):
        if node.op_type != "DequantizeLinear" or node.domain != "" or node.inputs[0] is None:
            continue
        levels = node.inputs[0]
        if levels.dtype != T.UINT8 or levels.is_graph_output() or levels.is_graph_input():
            continue
        readers = [user for user, _ in levels.uses()]
        if not all(r.op_type == "DequantizeLinear" and r.domain == "" and _around_128(r) for r in readers):
            continue
        producer = levels.producer()
        if producer is None:
            weights = constant(levels, max_bytes=_WEIGHTS)
            if weights is None or not permit():
                continue
            shifted = (weights.astype(np.int16) - 128).astype(np.int8)
            levels.const_value = ir.Tensor(shifted, name=levels.name)
        elif producer.op_type == "QuantizeLinear" and producer.domain == "" and _around_128(producer):
            if not permit():
                continue
            _around_0(producer, names)
            readers = [producer, *readers]
        else:
            continue
        levels.type = ir.TensorType(T.INT8)
        for reader in readers:
            if reader is not producer:
                _around_0(reader, names)
        changed.append((node, list(dict.fromkeys(readers))))
    return changed


def _around_128(node: ir.Node) -> bool:
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    values = constant(zero) if zero is not None else None
    return values is not None and values.dtype == np.uint8 and bool((values == 128).all())


def _around_0(node: ir.Node, names: Names) -> None:
    old = node.inputs[2]
    assert old is not None
    values = constant(old)
    assert values is not None
    zero = ir.Value(
        name=names.value(f"{node.name or node.op_type}/zero_point"),
        type=ir.TensorType(T.INT8),
        shape=ir.Shape(values.shape),
        const_value=ir.Tensor(np.zeros(values.shape, np.int8)),
    )
    assert node.graph is not None
    node.graph.register_initializer(zero)
    node.replace_input_with(2, zero)
    if "output_dtype" in node.attributes:
        node.attributes["output_dtype"] = ir.AttrInt64("output_dtype", int(T.INT8))
