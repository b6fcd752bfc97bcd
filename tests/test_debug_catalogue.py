"""The catalogue of causes: well formed, and no entry without use."""

from __future__ import annotations

import re

import onnx_ir as ir
import pytest

from onnxlathe.debug.ask import Complaint
from onnxlathe.debug.catalogue import causes, find_cause, operator_of, static_cause
from onnxlathe.pipeline import Registry, plan

# Messages that users report, with the operator they come with, and the cause that has to be named.
REPORTS = [
    ("Found unsupported datatype (11) when importing initializer: w", "", "double-type"),
    ("Unsupported ONNX data type: STRING (8)", "", "string-tensor"),
    ("operation PROD has incompatible input types Float and Bool", "Mul", "mixed-types"),
    ("network input that is shape tensor must have type Int32", "", "float-shape-tensor"),
    ("Network has dynamic or shape inputs, but no optimization profile has been defined", "", "no-profile"),
    ("kOPT values for profile 0 violate shape constraints: reshape would change volume 4 to 8", "Reshape", "baked-reshape"),
    ("This version of TensorRT does not support dynamic axes.", "Slice", "dynamic-slice-axes"),
    ("Cannot infer squeeze dimensions from a dynamic shape! Please re-export", "Squeeze", "squeeze-without-axes"),
    ("IShuffleLayer applied to shape tensor must have 0 or 1 reshape dimensions: dimensions were [-1,2]", "", "shape-tensor-2d"),
    ("onnx2trt_utils.cpp importPad: Assertion failed: inputs.at(1).is_weights()", "Pad", "shape-tensor-2d"),
    ("IUnaryLayer cannot be used to compute a shape tensor", "Round", "not-shape-evaluable"),
    ("Shape tensor must have build-time extent", "Range", "shape-from-data"),
    ("axes must be an initializer!", "ReduceSum", "reduce-axes"),
    ("IIfConditionalOutputLayer inputs must have the same shape. Shapes are [-1] and [-1,1].", "If", "if-ranks"),
    ("[Recurrence]: inputs to IRecurrenceLayer have different dimensions. First [3,1] and second [3,2]", "Loop", "loop-growing"),
    ("operation not supported within a loop body", "Loop", "loop-body"),
    ("checkSequenceEmpty: UNSUPPORTED_NODE", "SequenceEmpty", "sequence"),
    ("No importer registered for op: NonMaxSuppression", "NonMaxSuppression", "nms"),
    ("This version of TensorRT only supports input K as an initializer", "TopK", "topk-k"),
    ("TopK: K exceeds the maximum value allowed (3840).", "TopK", "topk-large"),
    ("No importer registered for op: NonZero", "NonZero", "nonzero"),
    ("plugin not found: Unique", "Unique", "unique"),
    ("INetworkDefinition::addGridSample: Error Code 3: API Usage Error", "GridSample", "gridsample-rank"),
    ("Indices dimensions must be less than data dimensions!", "ScatterElements", "scatter-dims"),
    ("!attrs.count(\"reduction\"): Attribute reduction is not supported", "ScatterND", "scatternd-reduction"),
    ("dimensions not compatible for Gather with GatherMode = kND", "GatherND", "gathernd"),
    ("does not support BOOL input type for the Gather operator", "Gather", "gather-bool"),
    ("No importer registered for op: OneHot", "OneHot", "onehot-depth"),
    ("Ellipsis and diagonal operations are not supported", "Einsum", "einsum"),
    ("Axis input for CumSum must be an initializer!", "CumSum", "cumsum-axis"),
    ("sum: at least 1 dimensions are required for input", "ReduceSum", "scalar-reduction"),
    ("This version of TensorRT does not support the indices output in MaxPool!", "MaxPool", "maxpool-indices"),
    ("Antialiasing is not supported currently.", "Resize", "resize-antialias"),
    ("linear resizing on the outermost 3 dimensions", "Resize", "resize-mode"),
    ("does not support training_mode == 1 in BatchNormalization", "BatchNormalization", "batchnorm-training"),
    ("InstanceNormalization does not support dynamic inputs!", "InstanceNormalization", "instancenorm"),
    ("Assertion failed: scale", "GroupNormalization", "groupnorm"),
    ("setPostPadding: allDimsGtEq(postPadding, 0)", "ConvTranspose", "convtranspose-padding"),
    ("Kernel weights are not set yet", "Conv", "conv-weights"),
    ("DFT: not supported (checkDFT, onnxOpCheckers.cpp:1)", "DFT", "fourier"),
    ("The input tensor cannot be an initializer.", "RandomNormalLike", "random"),
    ("Running layernorm after self-attention in FP16 may cause overflow", "", "fp16-overflow"),
    ("Could not find any implementation for node {ForeignNode[a...b]}", "", "no-implementation"),
    ("MyelinCheckException: host_instr.cpp", "", "myelin"),
    ("onnx::Add requires bool I/O but node can not be handled by Myelin", "", "myelin"),
    ("Type 'tensor(float16)' of input parameter (scales) of operator (Resize)", "Resize", "float16-resize"),
    ("only supports symmetric quantization - zeroPt must be all zeros", "QuantizeLinear", "zero-point"),
    ("DequantizeLinear: only activation types allowed as input to this layer", "DequantizeLinear", "int32-bias"),
    ("No importer registered for op: QLinearConv", "QLinearConv", "qoperator"),
    ("could not find plugin: DynamicQuantizeLinear", "DynamicQuantizeLinear", "dynamic-quantization"),
    ("Assertion numScales == 1 || numScales == scale.count() failed", "", "per-channel-scale"),
    ("Plugin not found, are the plugin name, version, and namespace correct?", "com.microsoft::MultiHeadAttention", "contrib-operator"),
    ("SymbolAddress for getCreators could not be loaded", "", "plugin-load"),
    ("Plugin not found, are the plugin name, version, and namespace correct?", "TRT::EfficientNMS_TRT", "plugin-removed"),
    ("Output name is not unique: ", "", "duplicate-names"),
    ("Weights of same values but of different counts", "", "duplicate-names"),
    ("onnx.ModelProto exceeds maximum protobuf size of 2GB", "", "too-large"),
    ("Your ONNX model has a newer ir_version than the parser", "", "opset-too-new"),
    ("Unsupported model IR version: 11, max supported IR version: 10", "", "opset-too-new"),
    ("TensorRT input: X has no shape specified. Please run shape inference", "", "input-without-shape"),
    ("split attribute misaligns with the number of outputs", "Split", "split-outputs"),
    ("Concat: Internal Error (no further information)", "Concat", "empty-tensor"),
    ("Your ONNX model has been generated with INT64 weights; outside the range of INT32 was clamped", "", "int64-range"),
    ("the fused attention is not supported by a dedicated kernel", "Attention", "attention-kernel"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "operator", "cause"), REPORTS, ids=[r[2] for r in REPORTS])
def test_what_users_report_has_its_cause(message: str, operator: str, cause: str) -> None:
    domain, _, name = operator.rpartition("::")
    node = ir.node(name, [ir.Value(name="x")], domain=domain, name="n") if name else None
    found = find_cause(Complaint("parse", message, "UNSUPPORTED_NODE", "n" if name else "", name), node)
    assert found is not None
    assert found.id == cause


def test_every_entry_is_complete() -> None:
    ids = [cause.id for cause in causes()]
    assert len(set(ids)) == len(ids)
    for cause in causes():
        assert cause.title
        assert len(cause.why) > 30
        assert cause.when
        assert cause.remedies, cause.id
        for when in cause.when:
            for pattern in (
                when.message,
                when.operator,
                when.type,
                when.input_type,
                when.output_type,
                when.code,
            ):
                re.compile(pattern)
        for reference in cause.references:
            assert "#" in reference or " " in reference, (
                f"{cause.id}: {reference} is no issue and no document"
            )


def test_remedies_name_pipelines_that_there_are() -> None:
    registry = Registry.standard()
    for cause in causes():
        for remedy in cause.remedies:
            if remedy.passes:
                plan(remedy.passes, registry)


def test_an_error_that_nobody_knows() -> None:
    node = ir.node("Frobnicate", [ir.Value(name="x")], name="n")
    assert find_cause(Complaint("build", "the moon is full", "BUILDER"), node) is None
    assert static_cause(node) is None
    assert operator_of(node) == "Frobnicate"
