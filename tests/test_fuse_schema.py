"""Fusing, then expanding to the function bodies of the ONNX schemas, is the identity."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from helpers import assert_same, operators, optimized, samples

TINY = Path(__file__).resolve().parent.parent / "fixtures" / "tiny"
CASES = {
    "gelu_erf_op20": "Gelu",
    "gelu_tanh_op20": "Gelu",
    "layernorm_op17": "LayerNormalization",
    "layernorm_op18": "LayerNormalization",
    "rmsnorm_op23": "RMSNormalization",
    "hardswish_op14": "HardSwish",
    "mish_op18": "Mish",
    "softplus": "Softplus",
    "silu_op24": "Swish",
}


def expanded(model: onnx.ModelProto, op_type: str) -> onnx.ModelProto:
    """The model with a function in place of each node of this type, its body taken from the schema."""
    model = onnx.shape_inference.infer_shapes(model)
    (opset,) = (o.version for o in model.opset_import if o.domain == "")
    types = {v.name: v.type for v in (*model.graph.input, *model.graph.value_info, *model.graph.output)}
    for tensor in model.graph.initializer:
        types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
    schema = onnx.defs.get_schema(op_type, opset)
    for index, node in enumerate(n for n in model.graph.node if n.op_type == op_type):
        function = onnx.FunctionProto()
        if schema.has_context_dependent_function:
            inputs = [types[name].SerializeToString() for name in node.input if name]
            since = max(v for v in schema.context_dependent_function_opset_versions if v <= opset)
            body = schema.get_context_dependent_function_with_opset_version(
                since, node.SerializeToString(), inputs
            )
        else:
            versions = schema.function_opset_versions
            since = max((v for v in versions if v <= opset), default=min(versions))
            body = schema.get_function_with_opset_version(since)
        function.ParseFromString(body)
        del function.output[len(node.output) :]
        given = {a.name for a in node.attribute}
        node.attribute.extend(
            a.default_value for n, a in schema.attributes.items() if n not in given and a.default_value.name
        )
        function.domain, function.name = "expanded", f"{op_type}_{index}"
        node.domain, node.op_type = function.domain, function.name
        del function.opset_import[:]
        function.opset_import.append(onnx.helper.make_opsetid("", opset))
        model.functions.append(function)
    model.opset_import.append(onnx.helper.make_opsetid("expanded", 1))
    return model


@pytest.mark.parametrize(("name", "op_type"), CASES.items())
def test_expanding_is_the_inverse_of_fusing(name: str, op_type: str) -> None:
    before = onnx.load(TINY / f"{name}.onnx")
    fused = optimized(before, "fuse")
    assert set(operators(fused)) == {op_type}
    after = expanded(fused, op_type)
    assert_same(before, after, *(samples(before, seed, batch=2, seq=3) for seed in range(2)))
