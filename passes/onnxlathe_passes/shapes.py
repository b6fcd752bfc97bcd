"""Shape and type inference."""

from __future__ import annotations

from onnxlathe.infer import infer_model
from onnxlathe.model import Model
from onnxlathe.rewrite import Context, Pass


class Shapes(Pass):
    """Infer element types and symbolic shapes of all values, through shape arithmetic too.

    The graph stays as it is; what is learnt is kept on the values and saved with the model, where later
    passes, ONNX Runtime and TensorRT find it.
    """

    name = "shapes"
    gives = frozenset({"shapes"})

    def run(self, model: Model, context: Context) -> int:
        infer_model(model)
        return 0
