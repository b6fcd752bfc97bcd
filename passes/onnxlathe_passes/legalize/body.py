"""The operator's function body from the ONNX schema: the specification says what most operators consist of."""

from __future__ import annotations

import onnx
import onnx.inliner
import onnx_ir as ir

from onnxlathe.rewrite import reject


def expanded(model: ir.Model, node: ir.Node) -> ir.Model:
    """`model`, which consists of `node` alone, with the body of the node's operator instead of it.

    Raises:
        NoMatch: the operator has no body for these types.
    """
    proto = ir.to_proto(model)
    versions = {o.domain: o.version for o in proto.opset_import}
    version = versions.get(node.domain, 1)
    try:
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    except onnx.defs.SchemaError:
        reject(f"the ONNX schema does not know {node.op_type}")
    (call,) = proto.graph.node
    # The inliner knows nothing of defaults, and a body may refer to an attribute that was left out.
    present = {a.name for a in call.attribute}
    for name, declared in schema.attributes.items():
        if name not in present and declared.default_value.type != onnx.AttributeProto.UNDEFINED:
            call.attribute.append(declared.default_value)
    function = _body(schema, call, proto, versions.get("", 1))
    function.domain, function.name = "onnxlathe.body", node.op_type
    call.domain, call.op_type = function.domain, function.name
    call.overload = function.overload = ""
    for entry in function.opset_import:
        if entry.domain in versions:
            entry.version = versions[entry.domain]
        else:
            proto.opset_import.append(entry)
    proto.opset_import.append(onnx.helper.make_opsetid(function.domain, 1))
    proto.functions.append(function)
    try:
        inlined = onnx.inliner.inline_local_functions(proto)
    except Exception as error:
        reject(f"the body of {node.op_type} cannot be inlined: {error}")
    del inlined.functions[:]
    kept = [o for o in inlined.opset_import if o.domain != function.domain]
    del inlined.opset_import[:]
    inlined.opset_import.extend(kept)
    result: ir.Model = ir.from_proto(inlined)
    return result


def _body(
    schema: onnx.defs.OpSchema, call: onnx.NodeProto, proto: onnx.ModelProto, opset: int
) -> onnx.FunctionProto:
    text: bytes = b""
    if schema.has_function:
        text = _closest(schema.function_opset_versions, opset, schema.get_function_with_opset_version)
    elif schema.has_context_dependent_function:
        types = {v.name: v.type for v in [*proto.graph.input, *proto.graph.value_info]}
        for tensor in proto.graph.initializer:
            types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        operands = [types[name].SerializeToString() if name else b"" for name in call.input]
        data = call.SerializeToString()
        text = _closest(
            schema.context_dependent_function_opset_versions,
            opset,
            lambda v: schema.get_context_dependent_function_with_opset_version(v, data, operands),
        )
    if not text:
        reject(f"the schema of {schema.name} has no function body for this")
    function = onnx.FunctionProto()
    function.ParseFromString(text)
    return function


def _closest(versions: object, opset: int, get: object) -> bytes:
    """The body written for the newest operator set up to `opset`, else for the oldest."""
    known = sorted(versions)  # type: ignore[call-overload]
    for version in [*[v for v in reversed(known) if v <= opset], *known]:
        try:
            text = get(version)  # type: ignore[operator]
        except Exception:
            continue
        if text:
            return bytes(text)
    return b""
