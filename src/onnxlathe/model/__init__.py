"""Models: load, save, and what they are in between."""

from .load import load
from .model import Model, is_overridable, subgraphs, with_subgraphs
from .rows import RowTensor, rows_of, transposed
from .save import save
from .tensors import FileTensor, digest

__all__ = [
    "FileTensor",
    "Model",
    "RowTensor",
    "digest",
    "is_overridable",
    "load",
    "rows_of",
    "save",
    "subgraphs",
    "transposed",
    "with_subgraphs",
]
