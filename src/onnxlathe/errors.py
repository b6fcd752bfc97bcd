"""What can go wrong, as the user is told it.

Every error carries what was wrong, where, and what to do next. The command line turns them into one
message and an exit code; nobody sees a traceback for a bad model, a bad option or a missing package.
"""

from __future__ import annotations


class LatheError(Exception):
    """A model, option or environment that cannot be worked with (exit code 2).

    Args:
        message: what is wrong, naming the node, tensor, file or option.
        hint: what to do next, as a sentence; shown on its own line.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ModelError(LatheError):
    """The model file is damaged, or says something that the ONNX specification does not allow."""


class UsageError(LatheError):
    """An option, pass name or pipeline text that cannot be understood."""


class PassError(LatheError):
    """A pass raised, or left the model in a state that breaks the IR's invariants."""


class VerificationError(LatheError):
    """The optimized model does not compute what the original does (exit code 1)."""

    exit_code = 1
