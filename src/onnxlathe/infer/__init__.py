"""Types, symbolic shapes, and known contents of small tensors.

    infer_model(model)                 # everything, in place
    dims_of(value)                     # (batch, 12, seq, 64): numbers and expressions
    known(value)                       # contents of shape arithmetic: [batch, -1, 768]
    constant(value)                    # the array of an initializer or Constant node

Facts are sound: they hold for every run of a valid model with non-negative sizes. Unknown is unknown, and no
model, however strange, makes inference raise or compute something large.
"""

from onnxlathe.infer.dims import Dim, DimLike, Dims, Expr, ceil_div, floor_div, lower, maximum, minimum, upper
from onnxlathe.infer.engine import infer_model, infer_node
from onnxlathe.infer.fallback import schema_of
from onnxlathe.infer.values import constant, dims_of, forget_contents, is_static, known, set_dims, static_size

__all__ = [
    "Dim",
    "DimLike",
    "Dims",
    "Expr",
    "ceil_div",
    "constant",
    "dims_of",
    "floor_div",
    "forget_contents",
    "infer_model",
    "infer_node",
    "is_static",
    "known",
    "lower",
    "maximum",
    "minimum",
    "schema_of",
    "set_dims",
    "static_size",
    "upper",
]
