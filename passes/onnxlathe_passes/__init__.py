"""The standard passes, one idea a file.

This package is the first plugin: it is found through the entry-point group `onnxlathe.passes` like
anybody's, and uses nothing of `onnxlathe` but its public API. The order of `PASSES` is the order in which
the members of a group are tried.
"""

from onnxlathe.rewrite import Pass
from onnxlathe_passes.fold import Fold
from onnxlathe_passes.gelu import Gelu
from onnxlathe_passes.hardswish import HardSigmoid, HardSwish
from onnxlathe_passes.layernorm import LayerNorm
from onnxlathe_passes.mish import Mish
from onnxlathe_passes.rmsnorm import RMSNorm
from onnxlathe_passes.shapes import Shapes
from onnxlathe_passes.softplus import Softplus
from onnxlathe_passes.swish import Swish

PASSES: list[type[Pass]] = [
    Shapes,
    Fold,
    LayerNorm,
    RMSNorm,
    Gelu,
    Softplus,
    Mish,
    Swish,
    HardSigmoid,
    HardSwish,
]
