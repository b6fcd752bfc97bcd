"""Write a small model that float16 breaks in three places: `fragile_model.py fragile.onnx`.

Large activations before a normalization, a mask of -1e9, and a Pow whose squares are beyond 65504.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx

TEXT = """<ir_version: 10, opset_import: ["" : 18]>
fragile (float[n, 16] x, bool[n] mask) => (float[n, 16] y) {
    two = Constant<value_float = 2.0>()
    lowest = Constant<value_float = -1e9>()
    zero = Constant<value_float = 0.0>()
    small = Constant<value_float = 1e-6>()
    last = Constant<value_ints = [-1]>()
    many = Constant<value_float = 300.0>()
    a = MatMul(x, w0)
    loud = MatMul(a, big)
    even = LayerNormalization(loud, gain, bias)
    k = MatMul(even, w1)
    kt = Transpose<perm = [1, 0]>(k)
    q = MatMul(even, w2)
    scores = MatMul(q, kt)
    hidden = Where(mask, zero, lowest)
    masked = Add(scores, hidden)
    p = Softmax(masked)
    v = MatMul(even, w3)
    c = MatMul(p, v)
    far = Mul(c, many)
    square = Pow(far, two)
    mean = ReduceMean<keepdims = 1>(square, last)
    sum = Add(mean, small)
    root = Sqrt(sum)
    unit = Div(far, root)
    d = MatMul(unit, w1)
    y = Tanh(d)
}"""


def fragile_model() -> onnx.ModelProto:
    """The model; nodes are called after their operator and result, `/Pow/square`."""
    random = np.random.default_rng(0)
    weights = {f"w{i}": (random.standard_normal((16, 16)) * 0.25).astype(np.float32) for i in range(4)}
    weights["big"] = (random.standard_normal((16, 16)) * 12000).astype(np.float32)
    weights |= {"gain": np.ones(16, np.float32), "bias": np.zeros(16, np.float32)}
    proto = onnx.parser.parse_model(TEXT)
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for node in proto.graph.node:
        node.name = f"/{node.op_type}/{node.output[0]}"
    onnx.checker.check_model(proto)
    return proto


if __name__ == "__main__":
    onnx.save(fragile_model(), Path(sys.argv[1]))
