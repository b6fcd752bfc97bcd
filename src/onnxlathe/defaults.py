"""Defaults that the command line shows in its help and the workbench uses; light enough to import for both."""

PASS_TIMEOUT = 600.0
"""Seconds that a plugin's pass may take unless said otherwise."""

WEIGHTS_LIST = ".onnxlathe-weights.json"
"""Added to a model file's name: where its weights lie that are in other files (`onnxlathe.model.mapped`)."""
