"""Who will run the model, asked rather than assumed: TensorRT for RTX and TensorRT, in a child process.

    target = find_target()
    if target.available:
        with target.session() as session:
            answer = session.parse(path)

Nothing here loads the native libraries into the calling process.
"""

from .base import CRASHED, PARSE_TIMEOUT, TIMED_OUT, Answer, NoTarget, Refusal, Session, Target, TargetError
from .tensorrt import TARGETS, TensorRT, find_target

__all__ = [
    "CRASHED",
    "PARSE_TIMEOUT",
    "TARGETS",
    "TIMED_OUT",
    "Answer",
    "NoTarget",
    "Refusal",
    "Session",
    "Target",
    "TargetError",
    "TensorRT",
    "find_target",
]
