"""The register of what is done with results of run-time size, operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from onnxlathe_passes.legalize.bounded.bench import Bench
from onnxlathe_passes.legalize.bounded.ragged import Result

Follower = Callable[[Bench, ir.Node], Sequence[Result]]

FOLLOWERS: dict[str, Follower] = {}
SOURCES: dict[str, Follower] = {}


def follows(*operators: str) -> Callable[[Follower], Follower]:
    """Register what is done with operators that read a result of run-time size, or make one of a size."""

    def register(function: Follower) -> Follower:
        FOLLOWERS.update(dict.fromkeys(operators, function))
        return function

    return register


def sources(*operators: str) -> Callable[[Follower], Follower]:
    """Register how operators begin whose result has a size that data decide."""

    def register(function: Follower) -> Follower:
        SOURCES.update(dict.fromkeys(operators, function))
        FOLLOWERS.update(dict.fromkeys(operators, function))
        return function

    return register
