"""All lowerings: importing this registers them, in this order."""

from onnxlathe_passes.legalize import (  # noqa: F401
    bitwise,
    elementwise,
    pooling,
    quantized,
    reduce,
)
