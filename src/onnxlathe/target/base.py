"""What a target is asked and what it answers.

A target is who will run the model. It is asked, never assumed: its real parser says what it accepts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from onnxlathe.errors import LatheError

PARSE_TIMEOUT = 300.0
"""Seconds a parse may take. A multi-gigabyte model takes tens of seconds; nothing honest takes minutes."""

CRASHED = "CRASHED"
"""`Refusal.code` when the native library died on the model."""

TIMED_OUT = "TIMED_OUT"
"""`Refusal.code` when the native library did not come back in time."""


class TargetError(LatheError):
    """The target could not be asked: not installed, not loadable, or its process failed.

    Args:
        code: `CRASHED` or `TIMED_OUT` where the model was to blame, else empty.
    """

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason why a model is not accepted.

    Attributes:
        node: name of the ONNX node, empty where the reason is not about one.
        index: position of the node in the main graph, or of the node of the main graph that contains it
            (an If, a function call); -1 where the reason is not about a node.
        operator: operator type of the node.
        message: what the target says.
        code: the target's own name for the kind of error (`UNSUPPORTED_NODE`), or `CRASHED`, `TIMED_OUT`.
        stack: the nodes of the main graph, functions and branches that lead to the node, outermost first.
    """

    node: str
    index: int
    operator: str
    message: str
    code: str
    stack: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f"node {self.node or '#' + str(self.index)} ({self.operator}): " if self.index >= 0 else ""
        inside = f" [in {' > '.join(self.stack)}]" if self.stack else ""
        return f"{where}{self.message}{inside}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the target's parser said about a model.

    Attributes:
        accepted: the whole model was parsed.
        layers: number of layers of the target's network; None where the model was refused.
        errors: all reasons for a refusal, in the order of the nodes as far as the target gives one.
    """

    accepted: bool
    layers: int | None
    errors: list[Refusal] = field(default_factory=list)

    @property
    def crashed(self) -> bool:
        """The library died or hung on the model, rather than refusing it."""
        return any(error.code in (CRASHED, TIMED_OUT) for error in self.errors)


class Session(Protocol):
    """A target held ready for several questions; use as a context manager."""

    def parse(self, path: Path, *, timeout: float = PARSE_TIMEOUT) -> Answer:
        """Would the target accept the model file? (External data are found beside it.)

        A crash or a hang is an answer too (`Answer.crashed`), and the session goes on after it.

        Args:
            path: an ONNX file of any size.
            timeout: seconds.

        Raises:
            ModelError: there is no such file, or nothing in it.
            TargetError: the target itself cannot be asked.
        """
        ...

    def supports(self, path: Path, *, timeout: float = PARSE_TIMEOUT) -> list[Refusal]:
        """The nodes of the main graph that the target would not take, and why where it says so.

        Unlike `parse`, which may stop early, this looks at every node. Empty: all are supported.

        Raises:
            ModelError: there is no such file, or nothing in it.
            TargetError: the target cannot be asked, or died or hung (see `TargetError.code`).
        """
        ...

    def close(self) -> None:
        """End the session. Harmless to repeat; a later question starts it again."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Target(Protocol):
    """Who will run the model."""

    @property
    def name(self) -> str:
        """The short name that `find_target` takes."""
        ...

    @property
    def version(self) -> str:
        """Version of the installed package; empty where there is none."""
        ...

    @property
    def available(self) -> bool:
        """Whether the target can be asked here. Answers without loading it."""
        ...

    @property
    def reason(self) -> str:
        """Why it is not available, as a sentence; empty if it is."""
        ...

    def session(self) -> Session:
        """A session for several questions, which saves the start of a process for each."""
        ...

    def parse(self, path: Path, *, timeout: float = PARSE_TIMEOUT) -> Answer:
        """`Session.parse` in a session of its own."""
        ...

    def supports(self, path: Path, *, timeout: float = PARSE_TIMEOUT) -> list[Refusal]:
        """`Session.supports` in a session of its own."""
        ...


@dataclass(frozen=True, slots=True)
class NoTarget:
    """The target where none is installed: it knows why, and raises that when asked."""

    reason: str
    hint: str = ""
    name: str = "none"
    version: str = ""
    available: bool = False

    def session(self) -> Session:
        raise TargetError(self.reason, hint=self.hint)

    def parse(self, path: Path, *, timeout: float = PARSE_TIMEOUT) -> Answer:
        raise TargetError(self.reason, hint=self.hint)

    def supports(self, path: Path, *, timeout: float = PARSE_TIMEOUT) -> list[Refusal]:
        raise TargetError(self.reason, hint=self.hint)
