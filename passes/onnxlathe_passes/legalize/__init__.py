"""Rewriting what TensorRT refuses into what it takes: one family of lowerings a file."""

from onnxlathe_passes.legalize.run import Legalize

__all__ = ["Legalize"]
