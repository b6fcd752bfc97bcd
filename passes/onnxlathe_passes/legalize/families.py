"""All lowerings: importing this registers them, in this order."""

from onnxlathe_passes.legalize import (  # noqa: F401
    bitwise,
    contrib,
    contrib_attention,
    contrib_grouped,
    contrib_quantized,
    contrib_renamed,
    contrib_weights,
    control,
    detection,
    elementwise,
    learned,
    matrices,
    pooling,
    quantized,
    reduce,
    resize,
    scatter,
    signal,
    training,
    trees,
)
