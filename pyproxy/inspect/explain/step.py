"""A step of an explanation."""

from __future__ import annotations

import enum

import msgspec


class Result(enum.Enum):
    """The result of a step; the values are those of the JSON output."""

    OK = "ok"
    FAILED = "failed"
    NOTE = "note"
    SKIPPED = "skipped"


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
