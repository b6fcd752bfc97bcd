"""Small models that TensorRT refuses, after what users report, each with the node and the cause to be
    named.

    python tools/refused_corpus.py FOLDER      writes them as .onnx

The tests of `optimize debug` hold the diagnosis of each against what is written here.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Case:
    """A refused model.

    Attributes:
        name: of the case.
        about: what users do to get it.
        refused: name of each refused node → id of its cause in the catalogue.
        text: the model as onnx.parser reads it; weights are declared without contents.
        bind: what `--bind` has to say for it to be mended.
        widen: whether its inputs or outputs have to change their type for that.
        split: whether a part of it has to be left to the caller for that.
    """

    name: str
    about: str
    refused: dict[str, str]
    text: str
    bind: tuple[str, ...] = ()
    widen: bool = False
    split: bool = False
    opsets: dict[str, int] = field(default_factory=dict)

    def model(self) -> onnx.ModelProto:
        """The model, its weights drawn."""
        model = onnx.parser.parse_model(self.text)
        made = {name for node in model.graph.node for name in node.output}
        random = np.random.default_rng(0)
        for value in [v for v in model.graph.value_info if v.name not in made]:
            tensor = value.type.tensor_type
            shape = [d.dim_value for d in tensor.shape.dim]
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            scale = 1.0 if tensor.elem_type == TensorProto.FLOAT else 4.0
            array = np.asarray(random.standard_normal(shape) * scale).astype(dtype)
            model.graph.initializer.append(numpy_helper.from_array(array, value.name))
            model.graph.value_info.remove(value)
        return model


CASES: list[Case] = []


def case(
    name: str,
    about: str,
    refused: str,
    graph: str,
    opset: int = 18,
    *,
    bind: tuple[str, ...] = (),
    widen: bool = False,
    split: bool = False,
    **domains: int,
) -> None:
    """Add a case; `refused` is written as `node:cause node:cause`."""
    opsets = {"": opset} | {domain.replace("_", "."): version for domain, version in domains.items()}
    imports = ", ".join(f'"{domain}" : {version}' for domain, version in opsets.items())
    text = f"<ir_version: 10, opset_import: [{imports}]>\n{graph}"
    named = dict(pair.split(":") for pair in refused.split())
    CASES.append(Case(name, about, named, text, bind, widen, split, opsets))


# Types

case(
    "uint8_image", "an image in uint8 that is transposed before it is cast",
    "to_chw:uint8-arithmetic",
    """g (uint8[1,8,8,3] image) => (float[1,4,8,8] y) <float[4,3,1,1] w> {
        [to_chw] c = Transpose<perm=[0,3,1,2]>(image)
        [to_float] f = Cast<to=1>(c)
        [conv] y = Conv(f, w)
    }""",
)  # fmt: skip

case(
    "uint8_add", "arithmetic in uint8",
    "sum:uint8-arithmetic",
    """g (uint8[4,4] a, uint8[4,4] b) => (uint8[4,4] y) {
        [sum] s = Add(a,b)
        [out] y = Identity(s)
    }""",
)  # fmt: skip

case(
    "int16_audio", "audio samples in int16",
    "to_float:io-type",
    """g (int16[1,16] pcm) => (float[1,16] y) <float c = {32768.0}> {
        [to_float] f = Cast<to=1>(pcm)
        [scale] y = Div(f,c)
    }""", widen=True,
)  # fmt: skip

case(
    "uint16_depth", "a depth image in uint16",
    "to_float:io-type",
    """g (uint16[1,16] pcm) => (float[1,16] y) <float c = {32768.0}> {
        [to_float] f = Cast<to=1>(pcm)
        [scale] y = Div(f,c)
    }""", widen=True,
)  # fmt: skip

case(
    "cast_int16", "fake quantization through int16",
    "quant:cast-type dequant:integer-type",
    """g (float[1,16] x) => (float[1,16] y) {
        [quant] q = Cast<to=5>(x)
        [dequant] y = Cast<to=1>(q)
    }""",
)  # fmt: skip

case(
    "uint32_cast", "a cast to uint32",
    "e:cast-type",
    """g (float[4] x) => (uint32[4] y) {
        [e] y = Cast<to=12>(x)
    }""", 17, widen=True,
)  # fmt: skip

case(
    "fp8_cast", "a cast through float8e5m2",
    "e:cast-type b:float8-type",
    """g (float[4] x) => (float[4] y) {
        [e] h = Cast<to=19>(x)
        [b] y = Cast<to=1>(h)
    }""", 19,
)  # fmt: skip

case(
    "strings", "a string that is passed through",
    "same:string-tensor",
    """g (float[2,4] x, string[2] s) => (float[2,4] y, string[2] u) {
        [relu] y = Relu(x)
        [same] u = Identity(s)
    }""", split=True,
)  # fmt: skip

case(
    "string_normalizer", "text normalization left in the graph",
    "lower:string-tensor",
    """g (float[2,4] x, string[2] s) => (float[2,4] y, string[2] u) {
        [relu] y = Relu(x)
        [lower] u = StringNormalizer<case_change_action="LOWER",locale="C">(s)
    }""", split=True,
)  # fmt: skip

# Shapes and operands that must be constants

case(
    "float_scales_input", "scales of a Resize as an input",
    "up:float-shape-tensor",
    """g (float[1,3,8,8] x, float[4] scales) => (float[1,3,h,w] y) {
        [relu] r = Relu(x)
        [up] y = Resize<mode="nearest">(r, , scales)
    }""", bind=("scales=[1,1,2,2]",),
)  # fmt: skip

case(
    "reduce_axes_input", "axes of a reduction as an input",
    "sum:reduce-axes",
    """g (float[2,3,4] x, int64[1] axes) => (float[a,b,c] y) {
        [relu] r = Relu(x)
        [sum] s = ReduceSum<keepdims=1>(r, axes)
        [act] y = Relu(s)
    }""", bind=("axes=[1]",),
)  # fmt: skip

case(
    "reducemax_bool", "torch.any",
    "any:bool-reduction",
    """g (bool[4,4] x) => (bool[4] y) <int64[1] ax={1}> {
        [any] y = ReduceMax<keepdims=0>(x,ax)
    }""", 20,
)  # fmt: skip

case(
    "reduce_scalar", "a reduction of a scalar",
    "sum:scalar-reduction",
    """g (float x) => (float y) {
        [relu] r = Relu(x)
        [sum] y = ReduceSum<keepdims=0>(r)
    }""",
)  # fmt: skip

case(
    "baked_reshape", "a traced batch size in a Reshape",
    "flat:baked-reshape",
    """g (float[b,4,6] x) => (float[n,12] y) <int64[2] shape = {2,12}> {
        [relu] r = Relu(x)
        [flat] y = Reshape(r, shape)
    }""",
)  # fmt: skip

case(
    "eyelike_dyn", "an identity matrix of open size",
    "eye:eyelike-dynamic",
    """g (float[n,n] x) => (float[n,n] y) {
        [eye] e = EyeLike(x)
        [add] y = Add(x,e)
    }""", 17,
)  # fmt: skip

# Control flow

case(
    "if_ranks", "torch.squeeze exported as an If",
    "choose:if-ranks",
    """g (float[b,1,4] x, bool flag) => (float y) <int64[1] one={1}> {
        [relu] r = Relu(x)
        [choose] c = If(flag)<then_branch = a () => (float[b,4] t) { [squeeze] t = Squeeze(r, one) },
            else_branch = e () => (float[b,1,4] u) { [keep] u = Identity(r) }>
        [act] y = Relu(c)
    }""", bind=("flag=true",),
)  # fmt: skip

case(
    "if_ranks_inside", "a squeeze exported as an If, on a flag, and flattened later",
    "choose:if-ranks",
    """g (float[b,1,4] x, bool flag) => (float[m] y) <int64[1] one={1}, int64[1] flat={-1}, float[4] w> {
        [relu] r = Relu(x)
        [choose] c = If(flag)<then_branch = a () => (float[b,4] t) { [squeeze] t = Squeeze(r, one) },
            else_branch = e () => (float[b,1,4] u) { [keep] u = Identity(r) }>
        [scale] s = Mul(c, w)
        [flatten] f = Reshape(s, flat)
        [act] y = Tanh(f)
    }""",
)  # fmt: skip

case(
    "squeeze_by_size", "torch.squeeze of a dimension that was called dynamic",
    "squeeze:squeeze-open",
    """g (float[n,c,4] x) => (float[n,4] y) <int64[1] one={1}, int64[1] at={1}> {
        [relu] r = Relu(x)
        [shape] s = Shape(r)
        [size] d = Gather<axis=0>(s, at)
        [same] flag = Equal(d, one)
        [choose] v = If(flag)<then_branch = a () => (float[n,4] t) { [squeeze] t = Squeeze(r, one) },
            else_branch = e () => (float[n,c,4] u) { [keep] u = Identity(r) }>
        [act] y = Tanh(v)
    }""",
)  # fmt: skip

case(
    "spatial_transformer", "a spatial transformer for images of any size",
    "grid:function-body",
    """g (float[n,2,3] theta, float[n,3,h,w] x) => (float[n,3,h,w] y) {
        [relu] r = Relu(x)
        [size] s = Shape(r)
        [grid] gr = AffineGrid(theta, s)
        [sample] y = GridSample<mode="linear">(r, gr)
    }""", 20,
)  # fmt: skip

case(
    "loop_growing", "an autoregressive loop that concatenates",
    "decode:loop-growing",
    """g (float[1,4] x) => (float[m,4] y) <int64 n={3}, bool go={1}> {
        [relu] r = Relu(x)
        [decode] y = Loop(n, go, r)<body = b (int64 i, bool c, float[k,4] s) => (bool d, float[q,4] t)
            { [keep] d = Identity(c)
        [grow] t = Concat<axis=0>(s, r) }>
    }""",
)  # fmt: skip

case(
    "split_sequence", "torch.split by the dynamo exporter",
    "chunks:sequence first:sequence second:sequence",
    """g (float[2,6] x) => (float[2,3] y) <int64 three={3}, int64 zero={0}, int64 one={1}> {
        [relu] r = Relu(x)
        [chunks] s = SplitToSequence<axis=1>(r, three)
        [first] a = SequenceAt(s, zero)
        [second] b = SequenceAt(s, one)
        [add] y = Add(a,b)
    }""",
)  # fmt: skip

case(
    "sequence_cat", "torch.cat of a list by the dynamo exporter",
    "pack:sequence join:sequence",
    """g (float[2,3] x) => (float[2,6] y) {
        [relu] r = Relu(x)
        [pack] s = SequenceConstruct(x, r)
        [join] y = ConcatFromSequence<axis=1>(s)
    }""",
)  # fmt: skip

case(
    "optional", "an optional value",
    "wrap:optional get:optional",
    """g (float[4,4] x) => (float[4,4] y) {
        [wrap] o = Optional(x)
        [get] y = OptionalGetElement(o)
    }""", 17,
)  # fmt: skip

# Indexing

case(
    "nms", "non-maximum suppression",
    "nms:nms",
    """g (float[1,10,4] boxes, float[1,2,10] scores) => (int64[n,3] y) <int64 k={5}, float iou={0.5},
        float th={0.1}> {
        [nms] y = NonMaxSuppression(boxes, scores, k, iou, th)
    }""",
)  # fmt: skip

case(
    "topk_large", "a sort of 8000 scores",
    "topk:topk-large",
    """g (float[1,8000] x) => (float[1,4000] v, int64[1,4000] i) <int64[1] k={4000}> {
        [relu] r = Relu(x)
        [topk] v, i = TopK<axis=1>(r, k)
    }""",
)  # fmt: skip

case(
    "nonzero", "torch.nonzero",
    "where:nonzero",
    """g (float[4,4] x) => (int64[2,n] y) {
        [relu] r = Relu(x)
        [where] y = NonZero(r)
    }""",
)  # fmt: skip

case(
    "boolean_index", "x[mask]",
    "which:nonzero",
    """g (float[8,4] x, bool[8] mask) => (float[n,4] y) {
        [relu] r = Relu(x)
        [which] i = NonZero(mask)
        [tr] j = Transpose<perm=[1,0]>(i)
        [pick] y = GatherND(r, j)
    }""",
)  # fmt: skip

case(
    "compress", "torch.masked_select along an axis",
    "pick:compress",
    """g (float[8,4] x, bool[8] mask) => (float[n,4] y) {
        [relu] r = Relu(x)
        [pick] y = Compress<axis=0>(r, mask)
    }""",
)  # fmt: skip

case(
    "unique", "torch.unique",
    "uniq:unique",
    """g (float[8] x) => (float[n] y) {
        [relu] r = Relu(x)
        [uniq] u = Unique(r)
        [act] y = Relu(u)
    }""",
)  # fmt: skip

case(
    "scatternd_add", "index_put with accumulation",
    "accumulate:scatternd-reduction",
    """g (float[8,4] x, int64[3,1] i, float[3,4] u) => (float[8,4] y) {
        [relu] r = Relu(x)
        [accumulate] y = ScatterND<reduction="add">(r, i, u)
    }""",
)  # fmt: skip

case(
    "scatterel_add", "scatter_add",
    "accumulate:scatter-reduction",
    """g (float[8,4] x, int64[3,4] i, float[3,4] u) => (float[8,4] y) {
        [relu] r = Relu(x)
        [accumulate] y = ScatterElements<axis=0,reduction="add">(r, i, u)
    }""",
)  # fmt: skip

case(
    "scatterel_max", "scatter_reduce with amax",
    "accumulate:scatter-reduction",
    """g (float[8,4] x, int64[3,4] i, float[3,4] u) => (float[8,4] y) {
        [relu] r = Relu(x)
        [accumulate] y = ScatterElements<axis=0,reduction="max">(r, i, u)
    }""",
)  # fmt: skip

# Layers

case(
    "maxpool_indices", "max pooling with its indices",
    "pool:maxpool-indices",
    """g (float[1,3,8,8] x) => (float[1,3,4,4] y, int64[1,3,4,4] i) {
        [relu] r = Relu(x)
        [pool] y, i = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r)
    }""",
)  # fmt: skip

case(
    "maxunpool", "SegNet's unpooling",
    "pool:maxpool-indices unpool:maxpool-indices",
    """g (float[1,3,8,8] x) => (float[1,3,8,8] y) {
        [relu] r = Relu(x)
        [pool] p, i = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r)
        [unpool] y = MaxUnpool<kernel_shape=[2,2],strides=[2,2]>(p, i)
    }""",
)  # fmt: skip

case(
    "maxpool_dilated", "dilated max pooling",
    "pool:dilated-pooling",
    """g (float[1,3,8,8] x) => (float[1,3,6,6] y) {
        [relu] r = Relu(x)
        [pool] y = MaxPool<kernel_shape=[2,2],dilations=[2,2]>(r)
    }""",
)  # fmt: skip

case(
    "resize_antialias", "antialiased downsampling",
    "down:resize-antialias",
    """g (float[1,3,8,8] x) => (float[1,3,4,4] y) <int64[4] size={1,3,4,4}> {
        [relu] r = Relu(x)
        [down] y = Resize<mode="linear",antialias=1>(r, , , size)
    }""",
)  # fmt: skip

case(
    "resize_symmetric", "half_pixel_symmetric",
    "down:resize-mode",
    """g (float[1,3,8,8] x) => (float[1,3,4,4] y) <int64[4] size={1,3,4,4}> {
        [relu] r = Relu(x)
        [down] y = Resize<mode="linear",coordinate_transformation_mode="half_pixel_symmetric">(r, , , size)
    }""", 19,
)  # fmt: skip

case(
    "resize_crop", "crop_and_resize of TensorFlow",
    "crop:resize-mode",
    """g (float[1,3,8,8] x) => (float[1,3,4,4] y) <float[8] roi={0,0,0.1,0.1,1,1,0.9,0.9},int64[4]
        size={1,3,4,4}> {
        [relu] r = Relu(x)
        [crop] y = Resize<mode="linear",coordinate_transformation_mode="tf_crop_and_resize">(r, roi, , size)
    }""",
)  # fmt: skip

case(
    "resize_aspect", "a resize that keeps the aspect",
    "down:resize-mode",
    """g (float[1,3,8,8] x) => (float[1,3,4,4] y) <int64[2] size={4,4}> {
        [relu] r = Relu(x)
        [down] y = Resize<mode="linear",axes=[2,3],keep_aspect_ratio_policy="not_larger">(r, , , size)
    }""",
)  # fmt: skip

case(
    "bn_training", "BatchNorm exported in training mode",
    "bn:batchnorm-training",
    """g (float[2,3,4,4] x) => (float[2,3,4,4] y) <float[3] s={1,1,1},float[3] b={0,0,0},float[3] m={0,
        0,0},float[3] v={1,1,1}> {
        [relu] r = Relu(x)
        [bn] y, rm, rv = BatchNormalization<training_mode=1>(r,s,b,m,v)
    }""", 15,
)  # fmt: skip

case(
    "layernorm_mean", "LayerNorm that gives its mean",
    "norm:layernorm-outputs",
    """g (float[2,4] x) => (float[2,4] y, float[2,1] m) <float[4] g={1,1,1,1}> {
        [norm] y, m = LayerNormalization(x,g)
    }""", 17,
)  # fmt: skip

case(
    "attention_outputs", "Attention with its probabilities",
    "attn:attention-outputs",
    """g (float16[1,2,4,8] q, float16[1,2,4,8] k, float16[1,2,4,8] v) => (float16[1,2,4,8] y, float16[1,
        2,4,4] z) {
        [attn] y,pk,pv,z = Attention(q,k,v)
    }""", 23,
)  # fmt: skip

case(
    "dft", "a Fourier transform",
    "spectrum:fourier",
    """g (float[1,16,1] x) => (float[1,16,2] y) {
        [spectrum] y = DFT<axis=1>(x)
    }""", 17,
)  # fmt: skip

case(
    "melweight", "a mel filter bank computed in the graph",
    "mel:audio-constants",
    """g (float[1,9] x) => (float[1,8] y) <int64 b={8}, int64 d={16}, int64 r={8192}, float lo={0},
        float hi={4000}> {
        [mel] m = MelWeightMatrix(b,d,r,lo,hi)
        [mm] y = MatMul(x,m)
    }""", 17,
)  # fmt: skip

case(
    "nll_loss", "a loss left in the graph",
    "loss:loss",
    """g (float[3,5] x, int64[3] t) => (float l) {
        [lsm] p = LogSoftmax(x)
        [loss] l = NegativeLogLikelihoodLoss(p,t)
    }""", 17,
)  # fmt: skip

case(
    "xent_loss", "a cross entropy left in the graph",
    "loss:loss",
    """g (float[3,5] x, int64[3] t) => (float l) {
        [relu] r = Relu(x)
        [loss] l = SoftmaxCrossEntropyLoss(r,t)
    }""", 17,
)  # fmt: skip

case(
    "multinomial", "sampling of a token",
    "draw:random",
    """g (float[2,4] x) => (int32[2,1] y) {
        [draw] y = Multinomial<sample_size=1>(x)
    }""", 17,
)  # fmt: skip

case(
    "bernoulli", "a random mask",
    "draw:random",
    """g (float[2,4] x) => (float[2,4] y) {
        [draw] y = Bernoulli(x)
    }""", 17,
)  # fmt: skip

case(
    "bitshift", "bits of packed weights",
    "shift:bitwise",
    """g (uint8[4] x, uint8[4] s) => (uint8[4] y) {
        [shift] y = BitShift<direction="LEFT">(x,s)
    }""",
)  # fmt: skip

case(
    "bitand_i32", "bit masks",
    "band:bitwise",
    """g (int32[4] x, int32[4] s) => (int32[4] y) {
        [band] y = BitwiseAnd(x,s)
    }""",
)  # fmt: skip

# Quantization

case(
    "qlinearconv", "QOperator format of ONNX Runtime",
    "quant:zero-point qconv:qoperator dequant:zero-point",
    """g (float[1,3,8,8] x) => (float[1,4,8,8] y) <float s={0.1}, uint8 z={128}, int8[4,3,1,1] w, float
        ws={0.05}, int8 wz={0}, float ys={0.2}> {
        [quant] q = QuantizeLinear(x,s,z)
        [qconv] c = QLinearConv(q,s,z,w,ws,wz,ys,z)
        [dequant] y = DequantizeLinear(c,ys,z)
    }""", 13,
)  # fmt: skip

case(
    "dynamic_quant", "quantize_dynamic of ONNX Runtime",
    "dq:dynamic-quantization mm:dynamic-quantization",
    """g (float[2,4] x) => (float[2,5] y) <int8[4,5] w, int8 wz={0}, float ws={0.01}> {
        [dq] q, s, z = DynamicQuantizeLinear(x)
        [mm] m = MatMulInteger(q,w,z,wz)
        [to_float] f = Cast<to=1>(m)
        [sc] ss = Mul(s,ws)
        [scale] y = Mul(f,ss)
    }""", 13,
)  # fmt: skip

case(
    "qdq_uint8", "uint8 activations",
    "quant:zero-point dequant:zero-point",
    """g (float[1,3,8,8] x) => (float[1,4,8,8] y) <float s={0.1}, uint8 z={100}, float[4,3,1,1] w> {
        [quant] q = QuantizeLinear(x,s,z)
        [dequant] d = DequantizeLinear(q,s,z)
        [conv] y = Conv(d, w)
    }""", 13,
)  # fmt: skip

case(
    "qdq_asym_int8", "int8 activations with a zero point",
    "quant:zero-point dequant:zero-point",
    """g (float[1,3,8,8] x) => (float[1,4,8,8] y) <float s={0.1}, int8 z={5}, float[4,3,1,1] w> {
        [quant] q = QuantizeLinear(x,s,z)
        [dequant] d = DequantizeLinear(q,s,z)
        [conv] y = Conv(d, w)
    }""", 13,
)  # fmt: skip

case(
    "dq_int32_bias", "an int32 bias of ONNX Runtime's quantizer",
    "bias:int32-bias",
    """g (float[1,3,8,8] x) => (float[1,4,8,8] y) <float[4,3,1,1] w, int32[4] b={1,2,3,4}, float
        s={0.01}, int32 z={0}> {
        [bias] bb = DequantizeLinear(b,s,z)
        [conv] y = Conv(x, w, bb)
    }""", 13,
)  # fmt: skip

# Operators of other domains

case(
    "fused_matmul", "FusedMatMul",
    "fm:contrib-operator",
    """g (float[2,4] x) => (float[2,5] y) <float[5,4] w> {
        [fm] y = com.microsoft.FusedMatMul<transB=1,alpha=0.5>(x,w)
    }""", 17, com_microsoft=1,
)  # fmt: skip

case(
    "skip_layernorm", "SkipLayerNormalization",
    "skip:contrib-operator",
    """g (float[1,2,4] x) => (float[1,2,4] y) <float[4] g={1,1,1,1}, float[4] b={0,0,0,0}> {
        [relu] r = Relu(x)
        [skip] y = com.microsoft.SkipLayerNormalization<epsilon=0.00001>(x,r,g,b)
    }""", 17, com_microsoft=1,
)  # fmt: skip

case(
    "bias_gelu", "BiasGelu",
    "bg:contrib-operator",
    """g (float[1,2,4] x) => (float[1,2,4] y) <float[4] b={0,0,0,0}> {
        [relu] r = Relu(x)
        [bg] y = com.microsoft.BiasGelu(r,b)
    }""", 17, com_microsoft=1,
)  # fmt: skip

case(
    "custom_op", "mmdeploy's plugin for NMS",
    "mine:custom-operator",
    """g (float[1,4,8] x) => (float[1,4,8] y) {
        [relu] r = Relu(x)
        [mine] y = mmdeploy.TRTBatchedNMS<foo=2>(r)
    }""", 17, mmdeploy=1,
)  # fmt: skip

case(
    "label_encoder", "a label encoder of scikit-learn",
    "enc:ml-operator",
    """g (int64[2] x) => (int64[2] y) {
        [enc] y = ai.onnx.ml.LabelEncoder<keys_int64s=[1,2],values_int64s=[3,4]>(x)
    }""", 17, ai_onnx_ml=2,
)  # fmt: skip

case(
    "tree", "a scaler of scikit-learn",
    "sc:ml-operator",
    """g (float[2,4] x) => (float[2,4] y) {
        [relu] r = Relu(x)
        [sc] y = ai.onnx.ml.Scaler<offset=[0.0],scale=[1.0]>(r)
    }""", 17, ai_onnx_ml=2,
)  # fmt: skip

case(
    "forest", "gradient boosted trees for any number of rows",
    "trees:ml-operator",
    """g (float[n,3] x) => (float[n,1] y) {
        [relu] r = Relu(x)
        [trees] y = ai.onnx.ml.TreeEnsembleRegressor<n_targets=1, nodes_treeids=[0,0,0,1,1,1,1,1],
            nodes_nodeids=[0,1,2,0,1,2,3,4], nodes_featureids=[0,0,0,2,0,1,0,0],
            nodes_values=[0.25,0.0,0.0,0.5,0.0,1.0,0.0,0.0], nodes_modes=["BRANCH_LEQ","LEAF","LEAF",
            "BRANCH_LT","LEAF","BRANCH_LEQ","LEAF","LEAF"], nodes_truenodeids=[1,0,0,1,0,3,0,0],
            nodes_falsenodeids=[2,0,0,2,0,4,0,0], target_treeids=[0,0,1,1,1], target_nodeids=[1,2,1,3,4],
            target_ids=[0,0,0,0,0], target_weights=[0.5,-1.0,2.0,0.25,-0.75]>(r)
    }""", 17, ai_onnx_ml=1,
)  # fmt: skip

case(
    "logistic", "a pipeline of scikit-learn: scaler, logistic regression, normalized probabilities",
    "sc:ml-operator clf:ml-operator norm:ml-operator",
    """g (float[n,3] x) => (int64[n] label, float[n,3] p) {
        [sc] s = ai.onnx.ml.Scaler<offset=[0.5,0.1,-0.2],scale=[1.0,2.0,0.5]>(x)
        [clf] label, q = ai.onnx.ml.LinearClassifier<coefficients=[0.1,0.2,0.3,-0.1,0.5,0.0,0.3,-0.4,0.1],
            intercepts=[0.1,0.0,-0.1],classlabels_ints=[0,1,2],post_transform="LOGISTIC">(s)
        [norm] p = ai.onnx.ml.Normalizer<norm="L1">(q)
    }""", 17, ai_onnx_ml=1,
)  # fmt: skip

case(
    "zipmap", "a classifier as sklearn-onnx writes it, with a dictionary for each row",
    "clf:ml-operator zip:ml-operator",
    """g (float[n,3] x) => (int64[n] label, seq(map(int64, float)) z) {
        [clf] label, q = ai.onnx.ml.LinearClassifier<coefficients=[0.1,0.2,0.3,-0.1,0.5,0.0,0.3,-0.4,0.1],
            intercepts=[0.1,0.0,-0.1],classlabels_ints=[0,1,2],post_transform="SOFTMAX">(x)
        [zip] z = ai.onnx.ml.ZipMap<classlabels_int64s=[0,1,2]>(q)
    }""", 17, split=True, ai_onnx_ml=1,
)  # fmt: skip

# Operators that the specification defines by others

case(
    "affine_grid", "a spatial transformer",
    "grid:function-body",
    """g (float[1,2,3] theta, float[1,2,4,4] x) => (float[1,2,4,4] y) <int64[4] size={1,2,4,4}> {
        [grid] gr = AffineGrid(theta,size)
        [sample] y = GridSample<mode="linear">(x,gr)
    }""", 20,
)  # fmt: skip

case(
    "col2im", "torch.nn.Fold",
    "fold:function-body",
    """g (float[1,5,5] x) => (float[1,1,5,5] y) <int64[2] im={5,5}, int64[2] bl={1,5}> {
        [fold] y = Col2Im(x,im,bl)
    }""",
)  # fmt: skip

case(
    "center_crop", "a centre crop",
    "crop:function-body",
    """g (float[8,8] x) => (float[4,4] y) <int64[2] s={4,4}> {
        [crop] y = CenterCropPad(x,s)
    }""",
)  # fmt: skip

case(
    "cumprod", "torch.cumprod",
    "run:function-body",
    """g (float[2,4] x) => (float[2,4] y) <int64 ax={1}> {
        [run] y = CumProd(x,ax)
    }""", 26,
)  # fmt: skip

case(
    "det", "a determinant",
    "d:function-body",
    """g (float[2,3,3] x) => (float[2] y) {
        [d] y = Det(x)
    }""",
)  # fmt: skip

case(
    "tfidf", "n-grams",
    "tf:function-body",
    """g (int64[6] x) => (float[2] y) {
        [tf] y = TfIdfVectorizer<max_gram_length=1,max_skip_count=0,min_gram_length=1,mode="TF",
            ngram_counts=[0],ngram_indexes=[0,1],pool_int64s=[2,3]>(x)
    }""", 17,
)  # fmt: skip

case(
    "swiglu_new", "an operator of an operator set that is newer than the parser",
    "sg:function-body",
    """g (float[2,8] x, float[2,8] gate) => (float[2,8] y) {
        [sg] y = SwiGLU<alpha=1.5>(gate, x)
    }""", 28,
)  # fmt: skip

case(
    "roialign", "RoIAlign of a detector",
    "roi:roialign",
    """g (float[1,2,8,8] x, float[3,4] rois, int64[3] b) => (float[3,2,2,2] y) {
        [roi] y = RoiAlign<output_height=2,output_width=2,spatial_scale=1.0>(x,rois,b)
    }""",
)  # fmt: skip

case(
    "deform", "deformable convolution",
    "p:deform-conv",
    """g (float[1,1,3,3] x, float[1,8,2,2] off) => (float[1,1,2,2] y) <float[1,1,2,2] w> {
        [p] y = DeformConv(x,w,off)
    }""", 19,
)  # fmt: skip

# Results whose size data decide, consumed further

case(
    "masked_mean", "x[mask].mean(0)",
    "which:nonzero",
    """g (float[8,4] x, bool[8] mask) => (float[4] y, int64 n) <int64[1] axis = {0}> {
        [which] i = NonZero(mask)
        [tr] j = Transpose<perm=[1,0]>(i)
        [pick] s = GatherND(x, j)
        [mean] y = ReduceMean<keepdims=0>(s, axis)
        [count] n = Size(i)
    }""",
)  # fmt: skip

case(
    "mask_assign", "y[mask] = y[mask] * 3",
    "which:nonzero",
    """g (float[8,4] x, bool[8,4] mask) => (float[8,4] y) <float three = {3.0}> {
        [which] i = NonZero(mask)
        [tr] j = Transpose<perm=[1,0]>(i)
        [pick] s = GatherND(x, j)
        [times] t = Mul(s, three)
        [put] y = ScatterND(x, j, t)
    }""",
)  # fmt: skip

case(
    "masked_scatter", "image features put in the place of image tokens",
    "which:nonzero",
    """g (int64[1,8] ids, float[32] features) => (float[1,8,4] y) <float[10,4] table, int64 image = {3},
        int64[1] last = {-1}, int64[1] zero = {0}, int64[3] shape = {1,8,4}> {
        [embed] e = Gather(table, ids)
        [is_image] m = Equal(ids, image)
        [wide] w = Unsqueeze(m, last)
        [spread] mask = Expand(w, shape)
        [which] i = NonZero(mask)
        [tr] j = Transpose<perm=[1,0]>(i)
        [many] n = Shape<start=0, end=1>(j)
        [as_many] u = Slice(features, zero, n, zero)
        [put] y = ScatterND(e, j, u)
    }""",
)  # fmt: skip

case(
    "best_of_selected", "the three best of those above a threshold",
    "which:nonzero",
    """g (float[16] x) => (float[k] y, int64[k] at) <float least = {0.1}, int64[1] zero = {0},
        int64[1] three = {3}> {
        [above] m = Greater(x, least)
        [which] i = NonZero(m)
        [tr] j = Transpose<perm=[1,0]>(i)
        [pick] s = GatherND(x, j)
        [many] n = Shape(s)
        [few] k = Min(n, three)
        [best] y, p = TopK<axis=0>(s, k)
        [flat] f = Squeeze(i, zero)
        [where] at = Gather(f, p)
    }""",
)  # fmt: skip

case(
    "expert", "a mixture of experts: the tokens of one expert, through it, and back",
    "which:nonzero add:scatternd-reduction",
    """g (float[6,4] x, bool[2,6] chosen, float[6,2] gate) => (float[6,4] y) <float[4,4] w, float[6,4] nothing,
        int64[1] zero = {0}, int64[2] column = {-1,1}> {
        [which] i = NonZero(chosen)
        [apart] top, token = Split<axis=0, num_outputs=2>(i)
        [top1] t = Squeeze(top, zero)
        [token1] k = Squeeze(token, zero)
        [tokens] s = Gather(x, k)
        [expert] e = MatMul(s, w)
        [pairs] kt = Concat<axis=0>(token, top)
        [pairs_t] p = Transpose<perm=[1,0]>(kt)
        [weight] g1 = GatherND(gate, p)
        [gate2] g2 = Reshape(g1, column)
        [weighted] u = Mul(e, g2)
        [rows] r = Transpose<perm=[1,0]>(token)
        [add] y = ScatterND<reduction="add">(nothing, r, u)
    }""",
)  # fmt: skip

case(
    "detector", "what torchvision puts behind a detector",
    "which:nonzero nms:nms",
    """g (float[20,4] boxes, float[20] scores) => (float[n,4] y, float[n] z) <int64 all = {9223372036854775807},
        float[1] iou = {0.5}, float least = {0.05}, int64[1] zero = {0}, int64[2] two = {0,1}, int64[1] ten = {10},
        int64 box = {2}> {
        [above] m = Greater(scores, least)
        [which] i = NonZero(m)
        [flat] at = Squeeze(i, zero)
        [pick] b = Gather(boxes, at)
        [pick_scores] s = Gather(scores, at)
        [batch] b2 = Unsqueeze(b, zero)
        [classes] s2 = Unsqueeze(s, two)
        [nms] r = NonMaxSuppression(b2, s2, all, iou)
        [column] c = Gather<axis=1>(r, box)
        [first] d = Slice(c, zero, ten, zero)
        [out] y = Gather(b, d)
        [out_scores] z = Gather(s, d)
    }""",
)  # fmt: skip

case(
    "pooled_by_unique", "rows summed by the distinct values of their keys",
    "uniq:unique add:scatternd-reduction",
    """g (int64[9] keys, float[9,4] x) => (float[9,4] y, int64 n) <float[9,4] nothing, int64[1] one = {1}> {
        [uniq] u, first, inverse, counts = Unique(keys)
        [rows] r = Unsqueeze(inverse, one)
        [many] n = Size(u)
        [add] y = ScatterND<reduction="add">(nothing, r, x)
    }""",
)  # fmt: skip

case(
    "selected_twice", "a selection out of a selection, sorted",
    "which:nonzero again:compress",
    """g (float[12] x, bool[12] mask) => (float[n] y) <float zero = {0.0}> {
        [which] i = NonZero(mask)
        [tr] j = Transpose<perm=[1,0]>(i)
        [pick] s = GatherND(x, j)
        [positive] p = Greater(s, zero)
        [again] t = Compress<axis=0>(s, p)
        [many] k = Shape(t)
        [sort] y, o = TopK<axis=0, largest=0>(t, k)
    }""",
)  # fmt: skip

# Open batches, lengths and counts

case(
    "dynamic_quant_chain", "two layers by quantize_dynamic, for any batch and length",
    "dq1:dynamic-quantization mm1:dynamic-quantization dq2:dynamic-quantization mm2:dynamic-quantization",
    """g (float[b,s,16] x) => (float[b,s,8] y)
    <int8[16,16] w, float[16] ws, int8[16] wz, float[16] bias, int8[16,8] w2, float c = {0.02}> {
        [dq1] q, s1, z = DynamicQuantizeLinear(x)
        [mm1] a = MatMulInteger(q, w, z, wz)
        [to1] f = Cast<to=1>(a)
        [scale1] m = Mul(s1, ws)
        [real1] h = Mul(f, m)
        [add] g = Add(h, bias)
        [relu] r = Relu(g)
        [dq2] q2, s2, z2 = DynamicQuantizeLinear(r)
        [mm2] a2 = MatMulInteger(q2, w2, z2)
        [to2] f2 = Cast<to=1>(a2)
        [scale2] m2 = Mul(s2, c)
        [real2] y = Mul(f2, m2)
    }""", 13,
)  # fmt: skip

case(
    "qlinearconv_grouped", "a grouped QLinearConv with a scale for each channel, weights in uint8",
    "conv:qoperator",
    """g (uint8[1,4,9,9] x) => (uint8[1,6,5,5] y)
    <float xs = {0.03}, uint8 xz = {121}, uint8[6,2,3,3] w, float[6] ws = {0.01,0.02,0.005,0.03,0.01,0.02},
     uint8[6] wz = {0,0,0,0,0,0}, float ys = {0.05}, uint8 yz = {130}, int32[6] b> {
        [conv] y = QLinearConv<group=2, pads=[1,1,1,1], strides=[2,2]>(x, xs, xz, w, ws, wz, ys, yz, b)
    }""", 11,
)  # fmt: skip

case(
    "qgemm_columns", "QGemm with a scale for each column, B transposed, once left in float",
    "real:qoperator quantized:qoperator",
    """g (uint8[4,6] a) => (float[4,5] y, uint8[4,5] z)
    <float as = {0.05}, uint8 az = {7}, int8[5,6] b, float[5] bs = {0.1,0.2,0.1,0.05,0.3},
     int8[5] bz = {0,0,0,0,0}, int32[5] c, float ys = {0.2}, uint8 yz = {3}> {
        [real] y = com.microsoft.QGemm<transB=1>(a, as, az, b, bs, bz, c)
        [quantized] z = com.microsoft.QGemm<transB=1, alpha=0.5>(a, as, az, b, bs, bz, c, ys, yz)
    }""", 14, com_microsoft=1,
)  # fmt: skip

case(
    "pool_open_batch", "max pooling with its indices, for any batch",
    "pool:maxpool-indices",
    """g (float[b,2,16] x) => (float[b,2,l] y, int64[b,2,l] i) {
        [relu] r = Relu(x)
        [pool] y, i = MaxPool<kernel_shape=[3], strides=[2], pads=[1,1]>(r)
    }""", 13,
)  # fmt: skip

case(
    "index_add_open", "index_add of any number of rows, several to one place",
    "acc:scatternd-reduction",
    """g (float[2,5,3] x, int64[n,2] i, float[n,3] u) => (float[2,5,3] y) {
        [acc] s = ScatterND<reduction="add">(x, i, u)
        [act] y = Relu(s)
    }""", 16,
)  # fmt: skip

case(
    "sequence_loop", "a list that a loop fills, stacked",
    "empty:sequence cat:sequence",
    """g (float[3,4] x) => (float[4,3,4] y) <int64 n = {4}, bool going = {1}> {
        [empty] e = SequenceEmpty<dtype=1>()
        [loop] s, last = Loop(n, going, e, x)<
            body = b (int64 i, bool c, seq(float[3,4]) si, float[3,4] xi)
                => (bool co, seq(float[3,4]) so, float[3,4] xo) {
                [go] co = Identity(c)
                [step] xo = Sin(xi)
                [append] so = SequenceInsert(si, xo)
            }
        >
        [cat] y = ConcatFromSequence<axis=0, new_axis=1>(s)
    }""", 17,
)  # fmt: skip

case(
    "int16_branch", "16-bit integers inside of a branch",
    "to_i16:cast-type to_u16:cast-type",
    """g (float[2,4] x, bool flag) => (float[2,4] y) {
        [choose] y = If(flag)<
            then_branch = a () => (float[2,4] t) {
                [to_i16] i = Cast<to=5>(x)
                [square] j = Mul(i, i)
                [back] t = Cast<to=1>(j)
            },
            else_branch = e () => (float[2,4] u) {
                [to_u16] k = Cast<to=4>(x)
                [again] u = Cast<to=1>(k)
            }
        >
    }""", 17,
)  # fmt: skip

case(
    "nibbles", "weights of 4 bits unpacked in uint8",
    "hi:bitwise lo:bitwise high:uint8-arithmetic low:uint8-arithmetic cat:uint8-arithmetic",
    """g (uint8[2,8] p) => (float[2,8,2] y) <uint8 four = {4}, uint8 mask = {15}, int64[1] axis = {-1}> {
        [hi] h = BitShift<direction="RIGHT">(p, four)
        [lo] l = BitwiseAnd(p, mask)
        [high] hu = Unsqueeze(h, axis)
        [low] lu = Unsqueeze(l, axis)
        [cat] c = Concat<axis=-1>(lu, hu)
        [real] y = Cast<to=1>(c)
    }""",
)  # fmt: skip

# Harder to find

case(
    "nested_unique", "an unsupported operator inside of a branch",
    "inner:unique",
    """g (float[8] x, bool flag) => (float[n] y) {
        [relu] r = Relu(x)
        [choose] c = If(flag)<
            then_branch = a () => (float[k] t) {
                [inner] t = Unique(r)
            },
            else_branch = e () => (float[k] u) {
                [keep] u = Identity(r)
            }
        >
        [act] y = Relu(c)
    }""",
)  # fmt: skip

case(
    "three_causes", "a segmentation head with three faults",
    "down:resize-antialias pool:maxpool-indices any:bool-reduction",
    """g (float[1,3,16,16] x) => (float[1,3,4,4] y, int64[1,3,4,4] i, bool[1,3,1,1] z)
    <int64[4] size = {1,3,8,8}, int64[2] axes = {2,3}, float zero = {0.0}> {
        [relu] r = Relu(x)
        [down] d = Resize<mode="linear", antialias=1>(r, , , size)
        [pool] y, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(d)
        [positive] p = Greater(d, zero)
        [any] z = ReduceMax(p, axes)
    }""", 20,
)  # fmt: skip

case(
    "in_a_function", "an unsupported operator inside of a function",
    "inner:unique",
    """g (float[8] x) => (float[n] y) {
        [relu] r = Relu(x)
        [call] y = local.Dedupe(r)
    }
    <domain: "local", opset_import: ["" : 18]>
    Dedupe (a) => (b) {
        [inner] b = Unique(a)
    }""", local=1,
)  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for one in CASES:
        onnx.save(one.model(), folder / f"{one.name}.onnx")
    print(f"{len(CASES)} models in {folder}")


if __name__ == "__main__":
    main()
