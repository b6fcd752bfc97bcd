"""What others have written, as passes: functions, rules and whole programs that know nothing of this tool.

    from onnxlathe.adapters import from_graphsurgeon

    @from_graphsurgeon(name="cut_tail")
    def cut_tail(graph):
        graph.outputs = [graph.tensors()["features"]]
        graph.cleanup()

Weights stay where they are: a foreign function sees them as references that are taken back afterwards, and
reads only those that it asks for. What a foreign pass drops is said in the notes of its step.
"""

from onnxlathe.adapters.functions import from_graphsurgeon, from_onnx_ir, from_onnxscript, from_proto

__all__ = ["from_graphsurgeon", "from_onnx_ir", "from_onnxscript", "from_proto"]
