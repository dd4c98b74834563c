"""A step of an explanation."""

from __future__ import annotations

import enum

import msgspec

from pyproxy.hostnet.not_read import NotRead


class Result(enum.Enum):
    """The result of a step; the values are those of the JSON output.

    UNDECIDED: the facts were read, but do not tell whether packets pass.
    """

    OK = "ok"
    FAILED = "failed"
    NOTE = "note"
    SKIPPED = "skipped"
    UNDECIDED = "undecided"


class Step(msgspec.Struct, frozen=True):
    """One step on the way from a Service to a packet.

    `message` is one sentence, `fix` the remedy of a failed step, `details` further lines. No step
    follows a `final` one.
    """

    name: str
    result: Result
    message: str
    fix: str = ""
    details: tuple[str, ...] = ()
    final: bool = False


def not_checked(name: str, part: NotRead) -> Step:
    """Return the step of a part that was not read."""
    return Step(name, Result.SKIPPED, f"not checked: {part.reason}")
