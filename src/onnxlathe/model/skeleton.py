"""The graph as a protobuf message without its big tensors.

The same as `onnx_ir.serde.serialize_model`, with three differences: a tensor of `MIN_PAYLOAD` bytes or more
becomes a placeholder instead of being read; types that onnx_ir cannot hold are written as they were loaded;
nothing of the model is changed on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir import serde

from .load import TYPES_KEY
from .wire import MIN_PAYLOAD, new_token, placeholder

Proto = Any

_QUANTIZATION_KEY = "quant_parameter_tensor_names"  # where onnx_ir keeps a value's TensorAnnotation
_IR_VERSION_FUNCTION_VALUES = 10  # from here on functions have value_info of their own
_IR_VERSION_DEVICES = 11


class Skeleton:
    """A model as ModelProto, with the tensors that were left out of it.

    Args:
        model: what to serialize.
        place: for a big tensor the (file name, byte offset) of its external data; None to write it into
            the model file.

    Attributes:
        proto: the ModelProto.
        token: marks the placeholders, see `onnxlathe.model.wire`.
        inline: the tensors that `proto` has placeholders for, in the order of their index.
    """

    def __init__(
        self, model: ir.Model, place: Callable[[ir.TensorProtocol], tuple[str, int] | None] | None = None
    ) -> None:
        self.proto = onnx.ModelProto()
        self.token = new_token()
        self.inline: list[ir.TensorProtocol] = []
        self._place = place
        self._ir_version = model.ir_version
        self._model(model)

    def _model(self, model: ir.Model) -> None:
        proto = self.proto
        proto.ir_version = model.ir_version
        for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
            if value := getattr(model, field):
                setattr(proto, field, value)
        _opsets(proto.opset_import, model.opset_imports)
        _entries(proto.metadata_props, model.metadata_props)
        if self._ir_version >= _IR_VERSION_DEVICES:
            for configuration in model.device_configurations:
                proto.configuration.append(serde.serialize_model_configuration(configuration))
        self._graph(proto.graph, model.graph)
        for function in model.functions.values():
            self._function(proto.functions.add(), function)

    def _graph(self, proto: Proto, graph: ir.Graph) -> None:
        if graph.name:
            proto.name = graph.name
        if graph.doc_string:
            proto.doc_string = graph.doc_string
        types: dict[str, bytes] = graph.meta.get(TYPES_KEY, {})
        for value in graph.inputs:
            _value(proto.input.add(), value, types)
            _annotate(proto, value)
        for value in graph.initializers.values():
            if not value.is_graph_input():
                _annotate(proto, value)
                if _worth_saying(value):
                    serde.serialize_value_into(proto.value_info.add(), value)
            if value.const_value is not None:
                self._tensor(proto.initializer.add(), value.const_value, value.name)
        for node in graph:
            self._node(proto.node.add(), node)
            for value in node.outputs:
                _annotate(proto, value)
                if value.name in types and not value.is_graph_output():
                    _value(proto.value_info.add(), value, types)
                elif _worth_saying(value) and not value.is_graph_output():
                    serde.serialize_value_into(proto.value_info.add(), value)
        for value in graph.outputs:
            _value(proto.output.add(), value, types)
        _entries(proto.metadata_props, graph.metadata_props)

    def _function(self, proto: Proto, function: ir.Function) -> None:
        proto.name, proto.domain = function.name, function.domain
        if function.overload:
            proto.overload = function.overload
        if function.doc_string:
            proto.doc_string = function.doc_string
        _opsets(proto.opset_import, function.opset_imports)
        _entries(proto.metadata_props, function.metadata_props)
        for attribute in function.attributes.values():
            if attribute.value is None:
                proto.attribute.append(attribute.name)
            else:
                self._attribute(proto.attribute_proto.add(), attribute)
        proto.input.extend(value.name for value in function.inputs)
        proto.output.extend(value.name for value in function.outputs)
        for node in function:
            self._node(proto.node.add(), node)
        values = [*function.inputs, *(value for node in function for value in node.outputs)]
        for value in values:
            if not _worth_saying(value):
                continue
            if self._ir_version >= _IR_VERSION_FUNCTION_VALUES:
                serde.serialize_value_into(proto.value_info.add(), value)
            else:  # the custom of PyTorch's exporter, which onnx_ir reads
                name = f"{function.domain}::{function.name}/{value.name}"
                serde.serialize_value_into(self.proto.graph.value_info.add(), value, name=name)

    def _node(self, proto: Proto, node: ir.Node) -> None:
        proto.op_type = node.op_type
        if node.domain:
            proto.domain = node.domain
        if node.name:
            proto.name = node.name
        if node.overload:
            proto.overload = node.overload
        if node.doc_string:
            proto.doc_string = node.doc_string
        proto.input.extend("" if value is None else value.name for value in node.inputs)
        names = [value.name or "" for value in node.outputs]
        while names and not names[-1]:
            names.pop()  # an optional output that is not wanted
        proto.output.extend(names)
        for attribute in node.attributes.values():
            self._attribute(proto.attribute.add(), attribute)
        _entries(proto.metadata_props, node.metadata_props)
        if self._ir_version >= _IR_VERSION_DEVICES:
            for configuration in node.device_configurations:
                proto.device_configurations.append(serde.serialize_node_device_configuration(configuration))

    def _attribute(self, proto: Proto, attribute: ir.Attr) -> None:
        kind = attribute.type
        if attribute.is_ref():
            serde.serialize_reference_attribute_into(proto, attribute)
        elif kind in (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS):
            many = kind == ir.AttributeType.TENSORS
            for tensor in attribute.value if many else [attribute.value]:
                self._tensor(proto.tensors.add() if many else proto.t, tensor, tensor.name)
        elif kind in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            many = kind == ir.AttributeType.GRAPHS
            for graph in attribute.value if many else [attribute.value]:
                self._graph(proto.graphs.add() if many else proto.g, graph)
        elif attribute.value is None:
            pass  # a reference to a function's attribute that has no default and no type
        else:
            serde.serialize_attribute_into(proto, attribute)
            return
        proto.name = attribute.name
        proto.type = kind.value
        if attribute.doc_string:
            proto.doc_string = attribute.doc_string

    def _tensor(self, proto: Proto, tensor: ir.TensorProtocol, name: str | None) -> None:
        if isinstance(tensor, ir.TensorProtoTensor) and tensor.nbytes < MIN_PAYLOAD:
            proto.CopyFrom(tensor.raw)  # as it was, also in a typed field
            proto.ClearField("metadata_props")
        else:
            proto.data_type = tensor.dtype.value
            proto.dims.extend(tensor.shape.numpy())
            if tensor.doc_string:
                proto.doc_string = tensor.doc_string
            if isinstance(tensor, ir.StringTensor):
                proto.string_data.extend(tensor.string_data())
            elif tensor.nbytes < MIN_PAYLOAD:
                proto.raw_data = tensor.tobytes()
            else:
                self._payload(proto, tensor)
        proto.ClearField("name")
        if name:
            proto.name = name
        _entries(proto.metadata_props, tensor.metadata_props)

    def _payload(self, proto: Proto, tensor: ir.TensorProtocol) -> None:
        proto.data_location = onnx.TensorProto.EXTERNAL
        where = self._place(tensor) if self._place is not None else None
        if where is None:
            proto.external_data.add(key="location", value=placeholder(self.token, len(self.inline)))
            self.inline.append(tensor)
            return
        location, offset = where
        proto.external_data.add(key="location", value=location)
        proto.external_data.add(key="offset", value=str(offset))
        proto.external_data.add(key="length", value=str(tensor.nbytes))


def _opsets(proto: Any, imports: dict[str, int]) -> None:
    for domain, version in imports.items():
        proto.add(domain=domain, version=version)


def _entries(proto: Any, entries: Mapping[str, str]) -> None:
    """String maps are written in the order of their keys, so that equal models have equal bytes."""
    for key in sorted(entries):
        proto.add(key=key, value=entries[key])


def _worth_saying(value: ir.Value) -> bool:
    """Whether a value_info would tell anything."""
    if not value.name:
        return False
    return bool(value.type is not None or value.shape is not None or value.doc_string or value.metadata_props)


def _value(proto: Proto, value: ir.Value, types: dict[str, bytes]) -> None:
    serde.serialize_value_into(proto, value)
    if value.type is None and value.name in types:
        proto.type.ParseFromString(types[value.name])


def _annotate(proto: Proto, value: ir.Value) -> None:
    """The value's quantization annotation, which onnx_ir keeps in its `meta`."""
    annotation: dict[str, str] | None = value.meta.get(_QUANTIZATION_KEY)
    if annotation:
        entry = proto.quantization_annotation.add(tensor_name=value.name)
        _entries(entry.quant_parameter_tensor_names, annotation)


def names_without_value(graphs: Iterable[ir.Graph]) -> list[str]:
    """Initializers that have no tensor: they would be lost when the model is written."""
    return [
        str(value.name)
        for graph in graphs
        for value in graph.initializers.values()
        if value.const_value is None
    ]
