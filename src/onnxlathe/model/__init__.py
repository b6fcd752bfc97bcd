"""Models: load, save, and what they are in between."""

from .load import load
from .model import Model, is_overridable, subgraphs, with_subgraphs
from .save import save
from .tensors import FileTensor, digest

__all__ = ["FileTensor", "Model", "digest", "is_overridable", "load", "save", "subgraphs", "with_subgraphs"]
