"""Operators without a rule of our own: ask ONNX's schema, one node at a time.

ONNX's inference raises for much and knows little of symbolic dimensions; whatever goes wrong just leaves the
outputs unknown.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxlathe.infer.contents import INTEGER_RANGES
from onnxlathe.infer.context import NodeContext
from onnxlathe.infer.dims import Dim, DimLike

if TYPE_CHECKING:
    import onnx

__all__ = ["infer_by_schema", "schema_of"]


@lru_cache(maxsize=512)
def schema_of(op_type: str, domain: str, opset: int) -> Any:
    """What the specification says of an operator; None for one that it does not know.

    Of an operator that is newer than the operator set it is what the operator began as: ONNX Runtime's optimizer
    writes LayerNormalization into models of opset 14, and runs it.
    """
    import onnx.defs

    try:
        return onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        pass
    newest = onnx.defs.onnx_opset_version() if domain == "" else 0
    for version in range(opset + 1, newest + 1):
        try:
            return onnx.defs.get_schema(op_type, version, domain)
        except onnx.defs.SchemaError:
            continue
    return None


def infer_by_schema(n: NodeContext) -> None:
    """States what ONNX's own inference of this node finds, or the element types that the schema fixes."""
    node = n.node
    schema = schema_of(node.op_type, node.domain, n.opset)
    if schema is None:
        return
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in n.attributes.values()):
        return
    found = _ask(n, schema)
    for i, value in enumerate(n.outputs):
        kind = None if found is None else found.get(f"o{i}")
        if kind is None or not kind.WhichOneof("value"):
            n.out(i, _element_type(n, schema, i))
        elif kind.HasField("tensor_type"):
            tensor = kind.tensor_type
            dtype = ir.DataType(tensor.elem_type) if tensor.elem_type else _element_type(n, schema, i)
            n.out(i, dtype, _dims(n, tensor.shape) if tensor.HasField("shape") else None)
        elif value.type is None:
            value.type = ir.from_proto(kind)


def _ask(n: NodeContext, schema: Any) -> dict[str, onnx.TypeProto] | None:
    import onnx
    from onnx.shape_inference import infer_node_outputs

    proto = onnx.NodeProto(op_type=n.node.op_type, domain=n.node.domain)
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for i, value in enumerate(n.inputs):
        name = "" if value is None else f"i{i}"
        proto.input.append(name)
        if value is None:
            continue
        types[name] = _type_proto(n, i)
        content = n.content(i)
        dtype = n.dtype(i)
        numbers = n.numbers(i) if dtype in INTEGER_RANGES else None
        if content is not None and dtype is not None and numbers is not None:
            data[name] = onnx.helper.make_tensor(name, int(dtype), content.shape, numbers)
    proto.output.extend(f"o{i}" if v.name else "" for i, v in enumerate(n.outputs))
    try:
        for attribute in n.attributes.values():
            proto.attribute.append(ir.to_proto(attribute))
        opset = onnx.helper.make_opsetid(n.node.domain, n.opset)
        answer: dict[str, onnx.TypeProto] = infer_node_outputs(
            schema, proto, types, data, opset_imports=[opset]
        )
        return answer
    except Exception as error:  # C++ checks raise several types; an unknown output is an answer
        n.engine.note(f"node {n.node.name!r} ({n.node.op_type}): {str(error).strip().splitlines()[0]}")
        return None


def _type_proto(n: NodeContext, index: int) -> onnx.TypeProto:
    import onnx

    value = n.inputs[index]
    assert value is not None
    if value.type is not None and type(value.type) is not ir.TensorType:
        return ir.to_proto(value.type)
    kind = onnx.TypeProto()
    kind.tensor_type.elem_type = int(n.dtype(index) or 0)
    dims = n.dims(index)
    if dims is not None:
        kind.tensor_type.shape.SetInParent()
        for dim in dims:
            entry = kind.tensor_type.shape.dim.add()
            if isinstance(dim, Dim):
                entry.dim_param = str(dim)
            elif dim is not None:
                entry.dim_value = dim
    return kind


def _dims(n: NodeContext, shape: onnx.TensorShapeProto) -> list[DimLike]:
    """Dimensions of an answer; only names that were in the question mean anything."""
    asked: dict[str, Dim] = {}
    for i in range(len(n.inputs)):
        for dim in n.dims(i) or ():
            if isinstance(dim, Dim):
                asked[str(dim)] = dim
    return [
        d.dim_value if d.HasField("dim_value") else asked.get(d.dim_param) if d.dim_param else None
        for d in shape.dim
    ]


def _element_type(n: NodeContext, schema: Any, index: int) -> ir.DataType | None:
    """An output's element type where the schema binds it to an input's, or to one type."""
    formal = schema.outputs[min(index, len(schema.outputs) - 1)] if schema.outputs else None
    if formal is None:
        return None
    for i, given in enumerate(schema.inputs):
        if given.type_str == formal.type_str and "(" not in given.type_str and n.dtype(i) is not None:
            return n.dtype(i)
    text = formal.type_str
    if text.startswith("tensor("):
        return _named_type(text[7:-1])
    return None


def _named_type(name: str) -> ir.DataType | None:
    try:
        return ir.DataType[name.upper()]
    except KeyError:
        return None
