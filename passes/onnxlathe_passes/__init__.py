"""The standard passes, one idea a file.

This package is the first plugin: it is found through the entry-point group `onnxlathe.passes` like
anybody's, and uses nothing of `onnxlathe` but its public API. The order of `PASSES` is the order in which
the members of a group are tried.
"""

from onnxlathe.rewrite import Pass
from onnxlathe_passes.fold import Fold
from onnxlathe_passes.shapes import Shapes

PASSES: list[type[Pass]] = [
    Shapes,
    Fold,
]
