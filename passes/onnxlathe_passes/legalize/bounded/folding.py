"""Nodes on constants are computed at once: coordinates of all candidates stay constants that way."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxlathe.infer import constant

_VIEWS = frozenset(
    {"Transpose", "Squeeze", "Unsqueeze", "Reshape", "Slice", "Gather", "Cast", "Concat", "Split", "Identity",
     "Expand", "Max"}
)  # fmt: skip
_LARGEST = 1 << 28
"""Bytes of a constant that is read for this."""


def folded(node: ir.Node, opset: int) -> list[Any] | None:
    """The outputs of a node that only moves elements of constants; None for any other."""
    if node.op_type not in _VIEWS or node.domain or not node.inputs:
        return None
    feeds: dict[str, Any] = {}
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        array = constant(value, _LARGEST)
        if array is None or array.dtype.kind not in "biuf":
            return None
        feeds[f"i{index}"] = np.asarray(array)
    from onnx.reference import ReferenceEvaluator

    helper = onnx.helper
    names = ["" if v is None else f"i{k}" for k, v in enumerate(node.inputs)]
    call = helper.make_node(node.op_type, names, [f"o{k}" for k in range(len(node.outputs))])
    call.attribute.extend(ir.to_proto(a) for a in node.attributes.values())
    graph = helper.make_graph(
        [call],
        "fold",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in feeds.items()
        ],
        [helper.make_value_info(n, onnx.TypeProto()) for n in call.output],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    try:
        return list(ReferenceEvaluator(model).run(None, feeds))
    except Exception:  # a node that cannot be run is left to run time
        return None
