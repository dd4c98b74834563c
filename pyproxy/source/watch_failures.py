"""The failures of one kind's requests: which need a new list, and which success ends them.

Watches that fail are counted, to find a version from which none works although a list does.

client-go lists again after the first one, unless its status is 429 or the connection was refused.
All nodes would then list at the end of an outage, so here the version is tried again first.

Facts: tools/cache/reflector.go of client-go. kube-apiserver turns errors of etcd's watches, other
than a compaction, into events of type ERROR with status 500.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from pyproxy.errors import SourceError
from pyproxy.source.body import TooLargeError, TooSlowError
from pyproxy.source.client import ApiStatusError, UnreachableError
from pyproxy.source.stream import (
    ConnectionLostError,
    MalformedResponseError,
    WatchStatusError,
)

MOST_ERROR_EVENTS = 2
"""Watches from one version that may end in an ERROR event until a new list is needed."""

MOST_FAILURES = 10
"""Watches from one version that may fail otherwise, which takes about a minute.

In an outage of a proxy in front of the server all nodes see 5xx, and lists would fail too.
"""

UNUSABLE = (MalformedResponseError, TooLargeError)
"""Errors after which the content of responses is in doubt, so that a new list is needed."""

_LATE = (ConnectionLostError, TooSlowError, WatchStatusError)
"""Errors after the head of a response."""


class Proof(enum.IntEnum):
    """A success, by how much it proves: each also proves what those before it do."""

    HEAD = 0
    """A response with status 200."""
    CONTENT = 1
    """A complete list, or an event."""
    CHANGE = 2
    """An event with a newer version."""


class Recovery:
    """Calls `ended` at each success that proves the end of the last failure.

    `needed` is that success. After a watch with an invalid event or an error neither a good head
    nor a list proves anything. Not thread-safe.
    """

    def __init__(self, ended: Callable[[], None]) -> None:
        self.needed = Proof.HEAD
        self._ended = ended

    def note(self, proof: Proof) -> None:
        """Note a success."""
        if proof >= self.needed:
            self.needed = Proof.HEAD
            self._ended()

    def failed(self, error: SourceError, *, in_watch: bool) -> None:
        """Note a failure; `in_watch` is whether it was that of a watch from a version."""
        is_unusable = isinstance(error, UNUSABLE)
        if self.needed is not Proof.CHANGE:
            is_late = is_unusable or isinstance(error, _LATE)
            self.needed = Proof.CONTENT if is_late else Proof.HEAD
        if in_watch and (is_unusable or isinstance(error, WatchStatusError)):
            self.needed = Proof.CHANGE


class WatchFailures:
    """The failures of watches from one version, with no newer version between. Not thread-safe."""

    def __init__(self) -> None:
        self._error_events = 0
        self._others = 0

    def clear(self) -> None:
        """Forget the failures, because there is another version."""
        self._error_events = self._others = 0

    def note(self, error: SourceError) -> bool:
        """Count the failure of a watch; return whether a new list is needed."""
        status = error.status if isinstance(error, ApiStatusError) else 0
        if status == 429:
            return False
        if isinstance(error, WatchStatusError):
            self._error_events += 1
        # An unreachable server has no list either.
        elif status >= 500 or isinstance(error, ConnectionLostError):
            self._others += 1
        return self._error_events >= MOST_ERROR_EVENTS or self._others >= MOST_FAILURES


def is_outage(error: SourceError) -> bool:
    """Return whether an error may concern all clients of the server at once."""
    if isinstance(error, ApiStatusError):
        return error.status == 429 or error.status >= 500
    return isinstance(error, ConnectionLostError | UnreachableError)
