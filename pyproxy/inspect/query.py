"""What can be asked over the socket: one value for each question, for server and client alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import msgspec

from pyproxy.inspect.snapshot import AgentView

Q = TypeVar("Q", bound=msgspec.Struct)
R = TypeVar("R")


class Query(msgspec.Struct, Generic[Q, R], frozen=True):
    """A question and its answer.

    `question` is a struct of texts, numbers and booleans, which goes into the query string; `reply`
    is what comes back as JSON. `answer` runs in a thread of its own, and may raise UsageError.
    """

    path: str
    question: type[Q]
    reply: type[R]
    respond: Callable[[AgentView, Q], R]


class Stream(msgspec.Struct, Generic[Q, R], frozen=True):
    """A question that is answered again and again until the client leaves: JSON, one a line.

    None is an empty line, by which a client that has left is noticed.
    """

    path: str
    question: type[Q]
    reply: type[R]
    respond: Callable[[AgentView, Q], Iterator[R | None]]


class Nothing(msgspec.Struct, frozen=True):
    """A question without particulars."""


class ErrorReply(msgspec.Struct, frozen=True):
    """What comes back where no answer does; `usage` says that the question was wrong."""

    error: str
    usage: bool = False
